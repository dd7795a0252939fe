"""BraTS: the reference's pickles to samples, logits to response bytes; what is wrong is named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests import made_brats
from workers.library import Library
from workers.tasks import Task, TaskError, open_task
from workers.tasks.label_volumes import LabelVolumes

TIME_BUDGET_S = 10

SHAPE = (4, *made_brats.SHAPE)


def all_of(library: Library) -> list[memoryview]:
    library.load(np.arange(library.count))
    return library.samples(np.arange(library.count))


def opened(options: dict[str, Any], **more: Any) -> Task:
    return open_task("brats", options | more)


def test_a_sample_is_the_pickled_volume_unchanged(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 3, 1)
    library = opened(options).prepare(tmp_path / "cache")
    names = pickle.loads((Path(options["path"]) / "preprocessed_files.pkl").read_bytes())
    assert library.meta["scorer"] == "brats" and library.meta["cases"] == names
    for name, sample in zip(names, all_of(library), strict=True):
        volume = pickle.loads((Path(options["path"]) / f"{name}.pkl").read_bytes())[0]
        assert bytes(sample) == volume.astype("<f4").tobytes()


def test_float16_samples_are_the_same_volumes_rounded(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 2, 1)
    exact, half = opened(options), opened(options, dtype="float16")
    whole = exact.collate(all_of(exact.prepare(tmp_path / "cache")))
    rounded = half.collate(all_of(half.prepare(tmp_path / "cache")))
    assert rounded.dtype == np.float16 and (whole.astype(np.float16) == rounded).all()
    assert whole.shape == (2, *SHAPE)
    out = np.zeros((4, *SHAPE), np.float32)
    filled = exact.collate(all_of(exact.prepare(tmp_path / "cache"))[:1], out)
    assert np.shares_memory(filled, out) and (out[0] == whole[0]).all() and not out[1:].any()


def test_labels_lie_in_the_library_in_the_order_of_nnunets_axes(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 2, 5)
    library = opened(options).prepare(tmp_path / "cache")
    for i, name in enumerate(library.meta["cases"]):
        file = Path(options["truth"]) / "labelsTr" / f"{name}.nii.gz"
        scan: Any = nibabel.load(file)
        labels = scan.get_fdata()
        assert (LabelVolumes(library).volume(i) == labels.transpose()).all()
    assert library.array("geometry")[:, 0].tolist() == [list(made_brats.SCAN)] * 2


def test_without_labels_it_runs_and_names_what_a_score_needs(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 2, 1) | {"truth": ""}
    assert "truth.npy" not in opened(options).prepare(tmp_path / "cache").files


def test_the_response_is_float16_logits(tmp_path: Path) -> None:
    task = opened({"generated": 1, "shape": made_brats.SHAPE})
    logits = np.random.default_rng(1).standard_normal((2, *SHAPE), np.float32)
    for outputs in (logits, logits.astype(np.float16)):
        responses = task.respond(outputs, np.arange(2))
        assert responses.sizes is None and responses.blob.nbytes == 2 * 2 * np.prod(SHAPE)
        assert responses.blob.tobytes() == logits.astype("<f2").tobytes()


def test_generated_volumes_need_no_data_and_are_never_alike(tmp_path: Path) -> None:
    task = opened({"generated": 3, "shape": [8, 8, 8]})
    library = task.prepare(tmp_path)
    volumes = task.collate(all_of(library))
    assert library.meta["generated"] and "scorer" not in library.meta
    assert abs(volumes.std() - 1) < 0.1 and len({v.tobytes() for v in volumes}) == 3
    warm = task.warm_up_samples(3)
    assert [s.nbytes for s in warm] == library.sizes.tolist()
    assert len({bytes(s) for s in warm} | {v.tobytes() for v in volumes}) == 6
    whole: Any = open_task("brats", {"generated": 67})
    assert whole.sample_bytes == 128_450_560


def test_a_calibration_list_gives_its_cases_in_its_order(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 4, 1) | {"count": 0}
    names = pickle.loads((Path(options["path"]) / "preprocessed_files.pkl").read_bytes())
    listed = tmp_path / "brats_cal_images_list.txt"
    listed.write_text(f"{names[3]}\n{names[1]}\n")
    library = opened(options, calibration=str(listed)).prepare(tmp_path / "cache")
    assert library.meta["cases"] == [names[3], names[1]]
    listed.write_text("HGG__absent\n")
    with pytest.raises(TaskError, match="HGG__absent.* not among the preprocessed cases"):
        opened(options, calibration=str(listed)).prepare(tmp_path / "cache")


def test_an_onnx_session_is_fed_and_read_as_the_reference_does() -> None:
    task: Any = opened({"generated": 1, "shape": made_brats.SHAPE})
    rows = np.ones((1, *SHAPE), np.float16)
    ((name, given),) = task.onnx_inputs(rows, np.ones(1)).items()
    assert name == "input" and given.dtype == np.float32 and given.shape == rows.shape
    found, counts = task.onnx_outputs({"output": given, "500": rows[:, :1]}, np.ones(1))
    assert found is given and counts is None


def rewrite(path: Path, change: Any) -> None:
    held = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(held) or held))


def test_bad_data_is_named_before_the_clock_starts(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 2, 1)
    folder = Path(options["path"])
    name = pickle.loads((folder / "preprocessed_files.pkl").read_bytes())[1]
    case, labels = folder / f"{name}.pkl", Path(options["truth"]) / "labelsTr" / f"{name}.nii.gz"
    kept, kept_labels = case.read_bytes(), labels.read_bytes()

    def why(**more: Any) -> str:
        with pytest.raises(TaskError) as caught:
            opened(options, **more).prepare(tmp_path / "cache")
        return str(caught.value)

    assert "has 2 cases, task.count says 67" in why(count=67)
    assert "is no folder; set task.truth" in why(truth=str(tmp_path / "absent"))
    rewrite(case, lambda held: [held[0][:, :5], held[1]])
    assert f"{case} holds a volume float32 (4, 5, 32, 32)" in why()
    case.write_bytes(kept)
    rewrite(case, lambda held: [held[0] * np.nan, held[1]])
    assert "voxels that are no numbers" in why()
    case.write_bytes(kept)
    rewrite(case, lambda held: held[1].pop("crop_bbox") and None)
    assert "its properties lack" in why()
    case.write_bytes(kept)
    rewrite(case, lambda held: held[1].update(size_after_cropping=(500, 1, 1)) or None)
    assert "does not fit" in why()
    case.write_bytes(kept[:-9])
    assert "is damaged or no pickle" in why()
    case.write_bytes(kept)
    labels.write_bytes(kept_labels[: len(kept_labels) // 2])
    assert f"{labels} is damaged or no NIfTI file" in why()
    own = nibabel.Nifti1Image(np.full(made_brats.SCAN[::-1], 4, np.uint8), np.eye(4))
    nibabel.save(own, labels)
    assert "other labels than 0 to 3: convert them" in why()
    labels.unlink()
    assert f"{labels} is missing: the labels of a case" in why()
    case.unlink()
    assert f"{case} is missing: a case of preprocessed_files.pkl" in why()
    (folder / "preprocessed_files.pkl").write_bytes(pickle.dumps(["../x"]))
    assert "'../x', which is no name of a case" in why(count=0)
    (folder / "preprocessed_files.pkl").unlink()
    assert "make preprocess_data" in why()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set either path"),
        ({"path": "x", "generated": 3}, "set either path"),
        ({"path": "x", "dtype": "int8"}, "dtype is float32 or float16, not 'int8'"),
        ({"generated": -1}, "generated and count are 0 to"),
        ({"generated": 1, "shape": [224, 224]}, "shape is three sides"),
        ({"generated": 1, "shape": [224, 224, "x"]}, "shape is three sides"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        open_task("brats", options)


NO_SIZES = {"inf": float("inf"), "nan": float("nan"), "long": 10**5000, "negative": -1, "text": "9" * 5000}


@pytest.mark.parametrize("number", NO_SIZES.values(), ids=NO_SIZES)
@pytest.mark.parametrize("key", ["original_size_of_raw_data", "size_after_cropping", "crop_bbox"])
def test_sizes_that_no_scan_has_are_named(tmp_path: Path, key: str, number: Any) -> None:
    options = made_brats.write(tmp_path, 1, 1)
    folder = Path(options["path"])
    case = next(path for path in folder.glob("*.pkl") if "MADE" in path.name)
    value = [(number, 1)] * 3 if key == "crop_bbox" else [number] * 3
    rewrite(case, lambda held: held[1].update({key: value}))
    with pytest.raises(TaskError, match=f"{case}: its sizes or its crop_bbox are damaged"):
        opened(options).prepare(tmp_path / "cache")


def test_lists_of_no_sense_are_named(tmp_path: Path) -> None:
    options = made_brats.write(tmp_path, 1, 1) | {"count": 0}
    listed = tmp_path / "list.txt"

    def why(**more: Any) -> str:
        with pytest.raises(TaskError) as caught:
            opened(options, **more).prepare(tmp_path / "cache")
        return str(caught.value)

    listed.write_text("root:" + "x" * 300)
    assert "'root:xxx" in why(calibration=str(listed)) and "x" * 41 not in why(calibration=str(listed))
    # Reading it fails with EIO, and it is a file.
    assert "/proc/self/mem cannot be read" in why(calibration="/proc/self/mem")
    (Path(options["path"]) / "preprocessed_files.pkl").write_bytes(pickle.dumps(["a" * 300]))
    assert "is missing: a case of preprocessed_files.pkl" in why()
