"""KiTS: scans to samples as the reference preprocesses them, labels to response bytes."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests import made_kits
from workers.library import Library
from workers.tasks import TaskError, open_task
from workers.tasks.kits_volumes import fit, image_of, labels_of, peak_bytes
from workers.tasks.label_volumes import LabelVolumes

TIME_BUDGET_S = 15


def all_of(library: Library) -> list[memoryview]:
    library.load(np.arange(library.count))
    return library.samples(np.arange(library.count))


@pytest.mark.parametrize(
    ("side", "fitted"),
    [(30, 128), (128, 128), (129, 128), (159, 128), (160, 192), (191, 192), (192, 192), (223, 192)],
)
def test_sides_come_to_whole_half_windows_as_in_the_reference(side: int, fitted: int) -> None:
    # preprocess.py: under a window is padded to one; less than half of 64 over is cut, else filled to 64 more
    assert fit(np.zeros((side, 128, 128), np.uint8), 128, 0).shape == (fitted, 128, 128)


def test_a_short_side_repeats_its_border_and_a_filled_one_has_the_padding() -> None:
    line = np.arange(1.0, 4.0).reshape(3, 1, 1) * np.ones((3, 8, 8))
    assert fit(line, 8, -2.2)[:, 0, 0].tolist() == [1, 1, 1, 2, 3, 3, 3, 3]
    filled = fit(np.ones((11, 8, 8)), 8, -2.2)[:, 0, 0]
    assert filled.tolist() == [1] * 11 + [-2.2]
    assert fit(np.arange(9.0).reshape(9, 1, 1) * np.ones((9, 8, 8)), 8, 0)[:, 0, 0].tolist() == list(range(8))


def test_values_are_clipped_and_normalised(tmp_path: Path) -> None:
    made_kits.write(tmp_path, 3, 1)
    case = tmp_path / "data" / "case_00002"  # has the reference's spacing: nothing is resampled
    held: Any = nibabel.load(case / "imaging.nii.gz")
    scan = held.get_fdata()
    image = image_of(case, made_kits.WINDOW)
    assert image.dtype == np.float32 and image.shape == (64, 96, 64)
    expected = (np.clip(scan[:64, :96].astype(np.float32), -79, 304) - 101) / 76.9
    assert np.abs(image - expected).max() < 1e-5


def test_scans_of_other_spacing_are_resampled_and_labels_stay_labels(tmp_path: Path) -> None:
    made_kits.write(tmp_path, 2, 1)
    case = tmp_path / "data" / "case_00001"  # 52 x 150 x 96 at 2.0 x 0.9 x 0.9 mm: 65 x 112 x 72
    image, labels = image_of(case, 64), labels_of(case, 64)
    assert image.shape == labels.shape == (64, 128, 64)
    assert labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1, 2}
    assert image[labels == 2].mean() > image[labels == 1].mean() > image[labels == 0].mean()


def test_samples_keep_their_shapes(tmp_path: Path) -> None:
    options = made_kits.write(tmp_path, 3, 1)
    task = open_task("kits", options)
    library = task.prepare(tmp_path / "cache")
    shapes = [task.collate([sample]).shape for sample in all_of(library)]
    assert shapes == [(1, 1, 64, 64, 64), (1, 1, 64, 128, 64), (1, 1, 64, 96, 64)]
    assert library.meta["cases"] == ["case_00000", "case_00001", "case_00002"]
    truth = LabelVolumes(library)
    for i, sample in enumerate(library.samples(np.arange(3))):
        case = tmp_path / "data" / f"case_{i:05}"
        assert (task.collate([sample])[0, 0] == image_of(case, 64)).all()
        assert (truth.volume(i) == labels_of(case, 64)).all()
    with pytest.raises(TaskError, match="one a batch, not 2"):
        task.collate(library.samples(np.arange(2)))


def test_a_batch_is_put_where_it_fits(tmp_path: Path) -> None:
    task = open_task("kits", {"generated": 1, "window": 8})
    sample = task.warm_up_samples(1)[0]
    out = np.zeros((1, 1, 16, 16, 32), np.float32)
    assert np.shares_memory(task.collate([sample], out), out) and out.all()
    other = np.zeros((1, 1, 16, 16, 16), np.float32)
    assert task.collate([sample], other).shape == out.shape and not other.any()


def preprocessed(folder: Path, names: list[str]) -> Path:
    """What the reference's preprocess.py makes of the cases."""
    made = folder / "preprocessed_data"
    made.mkdir()
    for name in names:
        pair = [image_of(folder / "data" / name, 64)[None], labels_of(folder / "data" / name, 64)[None]]
        (made / f"{name}.pkl").write_bytes(pickle.dumps(pair))
    facts = {name: {"case": name, "zoom_factor": np.ones(3), "original_affine": np.eye(4)} for name in names}
    (made / "preprocessed_files.pkl").write_bytes(pickle.dumps({"file_list": names, "cases": facts}))
    return made


def test_preprocessed_pickles_and_scans_give_the_same_library(tmp_path: Path) -> None:
    options = made_kits.write(tmp_path, 3, 1)
    made = preprocessed(tmp_path, ["case_00000", "case_00001", "case_00002"])
    raw = open_task("kits", options).prepare(tmp_path / "a")
    ready = open_task("kits", {"path": str(made), "window": 64}).prepare(tmp_path / "b")
    assert raw.digest == ready.digest and raw.meta["cases"] == ready.meta["cases"]


def test_a_calibration_list_gives_its_cases_in_its_order(tmp_path: Path) -> None:
    options = made_kits.write(tmp_path, 3, 1) | {"count": 0}
    listed = tmp_path / "calibration_cases.json"
    listed.write_text(json.dumps(["case_00002", "case_00000"]))
    library = open_task("kits", options | {"calibration": str(listed)}).prepare(tmp_path / "cache")
    assert library.meta["cases"] == ["case_00002", "case_00000"]


def test_the_response_is_uint8_labels() -> None:
    task = open_task("kits", {"generated": 1})
    labels = np.random.default_rng(1).integers(0, 3, (1, 1, 4, 5, 6))
    responses = task.respond(labels, np.arange(1))
    assert responses.sizes is None and responses.blob.tolist() == labels.ravel().tolist()


def test_generated_volumes_differ_in_shape_as_scans_do(tmp_path: Path) -> None:
    task = open_task("kits", {"generated": 12, "window": 8})
    library = task.prepare(tmp_path)
    shapes = {task.collate([sample]).shape for sample in all_of(library)}
    assert len(shapes) > 3 and all(s % 4 == 0 and s >= 8 for shape in shapes for s in shape[2:])
    assert library.meta["generated"] and "scorer" not in library.meta
    assert task.collate(task.warm_up_samples(1)).shape == (1, 1, 16, 16, 32)


def test_bad_data_is_named_before_the_clock_starts(tmp_path: Path) -> None:
    options = made_kits.write(tmp_path, 2, 1)
    case = tmp_path / "data" / "case_00001"

    def why(**more: Any) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("kits", options | more).prepare(tmp_path / "cache")
        return str(caught.value)

    assert "set cases to the reference's meta/inference_cases.json" in why(cases="")
    assert "has 2 cases, task.count says 43" in why(count=43)
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps(["case_00400"]))
    assert "case_00400 is a copy of case_00185" in why(cases=str(listed), count=0)
    listed.write_text(json.dumps({"case_00000": 1}))
    assert "holds no list of case names" in why(cases=str(listed))
    listed.write_text("[")
    assert "JSON" in why(cases=str(listed))
    labels = case / "segmentation.nii.gz"
    kept = labels.read_bytes()
    labels.write_bytes(kept[: len(kept) // 2])
    assert f"{labels} is damaged" in why()
    for shape, value, message in (((52, 150, 96), 3, "other labels than 0 to 2"), ((5, 5, 5), 1, "its scan")):
        other = nibabel.Nifti1Image(np.full(shape, value, np.uint8), np.eye(4))
        nibabel.save(other, labels)
        assert message in why()
    (case / "imaging.nii.gz").unlink()
    assert f"{case / 'imaging.nii.gz'} is missing" in why()


def test_bad_pickles_are_named(tmp_path: Path) -> None:
    made_kits.write(tmp_path, 1, 1)
    made = preprocessed(tmp_path, ["case_00000"])
    pickled = made / "case_00000.pkl"
    image, labels = pickle.loads(pickled.read_bytes())

    def why(held: Any) -> str:
        pickled.write_bytes(pickle.dumps(held))
        with pytest.raises(TaskError) as caught:
            open_task("kits", {"path": str(made), "window": 64}).prepare(tmp_path / "cache")
        return str(caught.value)

    assert "no pair of image and labels" in why([image])
    assert "not two of one shape" in why([image[:, :50], labels[:, :50]])
    assert "an image of float64" in why([image.astype(np.float64), labels])
    assert "other labels than 0 to 2" in why([image, labels + 2])
    (made / "preprocessed_files.pkl").write_bytes(pickle.dumps([1]))
    assert "holds no list of case names" in why([image, labels])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set either path"),
        ({"path": "x", "generated": 3}, "set either path"),
        ({"generated": 1, "window": 6}, "window is 4 to 1024"),
        ({"generated": -1}, "generated and count are 0 to"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        open_task("kits", options)


def one_case(folder: Path, voxels: np.ndarray, spacing_mm: tuple[float, ...]) -> dict[str, Any]:
    """A case of that spacing; the task's options."""
    case = folder / "case_00000"
    case.mkdir(exist_ok=True)
    for file, values in (("imaging", voxels), ("segmentation", np.zeros(voxels.shape, np.uint8))):
        image = nibabel.Nifti1Image(values, np.eye(4))
        image.header.set_zooms(spacing_mm)
        nibabel.save(image, case / f"{file}.nii.gz")
    (folder / "cases.json").write_text('["case_00000"]')
    return {"path": str(folder), "cases": str(folder / "cases.json"), "window": 8}


@pytest.mark.parametrize("spacing_mm", [(1e8, 1e8, 1e8), (6000, 3000, 3000), (1e-6, 1, 1), (0.1, 1, 1)])
def test_a_spacing_that_leaves_nothing_or_too_much_is_named(
    tmp_path: Path, spacing_mm: tuple[float, ...]
) -> None:
    options = one_case(tmp_path, np.zeros((8, 8, 8), np.float32), spacing_mm)
    with pytest.raises(TaskError, match=r"imaging.nii.gz names the spacing .* mm for \(8, 8, 8\) voxels"):
        open_task("kits", options).prepare(tmp_path / "cache")


def test_lists_and_scans_of_no_sense_are_named(tmp_path: Path) -> None:
    colours = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    options = one_case(tmp_path, colours, (1, 1, 1))

    def why() -> str:
        with pytest.raises(TaskError) as caught:
            open_task("kits", options).prepare(tmp_path / "cache")
        return str(caught.value)

    assert "imaging.nii.gz holds" in why() and "instead of numbers" in why()
    header = nibabel.Nifti1Header()
    header.set_data_shape((32000, 32000, 32000))
    (tmp_path / "case_00000" / "imaging.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    assert "has the shape (32000, 32000, 32000), not three sides of a scan" in why()
    for names, wrong in (("[" * 200_000, "nested too deep"), (json.dumps(["a" * 300]), "is missing")):
        (tmp_path / "cases.json").write_text(names)
        assert wrong in why()


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("slope", [1.0, 0.37])
def test_voxels_are_those_of_nibabels_float64_in_less_memory(
    tmp_path: Path, kind: type[np.generic], slope: float
) -> None:
    values = np.random.default_rng(1).integers(-1000, 1000, (8, 16, 16)).astype(kind)
    one_case(tmp_path, values, (1.6, 1.2, 1.2))
    file = tmp_path / "case_00000" / "imaging.nii.gz"
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[112:120] = struct.pack("<ff", slope, -7.3 if slope != 1 else 0)  # scl_slope and scl_inter
    file.write_bytes(gzip.compress(bytes(raw)))
    scan: Any = nibabel.load(file)
    expected = scan.get_fdata().astype(np.float32)
    assert (slope == 1.0) == bool((expected == values).all())
    expected = ((np.clip(expected, -79.0, 304.0) - 101.0) / 76.9).astype(np.float32)
    assert (image_of(tmp_path / "case_00000", 8) == expected).all()


def test_what_a_scan_takes_of_the_memory_is_known_before_and_is_not_exceeded(tmp_path: Path) -> None:
    for spacing_mm in ((1.0, 0.78, 0.78), (3.0, 2.0, 2.0)):
        one_case(tmp_path, np.zeros((32, 96, 96), np.int16), spacing_mm)
        image_of(tmp_path / "case_00000", 8)
        tracemalloc.start()
        image_of(tmp_path / "case_00000", 8)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < peak_bytes(tmp_path / "case_00000", 8) < 4 * most
