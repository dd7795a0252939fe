"""Criteo: the reference's groups of pairs, both of its files, response bytes, and wrong data sets."""

from __future__ import annotations

import hashlib
import io
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import made_criteo
from tests.made_criteo import QUANTILES
from workers.library import Library
from workers.tasks import TaskError, counts_of, open_task
from workers.tasks.criteo import (
    BIN_FILE,
    DAY_FILE,
    QUANTILE_FILE,
    TABLE_ROWS,
    TEST_ROWS,
    group_bounds,
    trace_md5,
)

TIME_BUDGET_S = 15


def all_of(library: Library) -> list[memoryview]:
    library.load(np.arange(library.count))
    return library.samples(np.arange(library.count))


def one_draw_at_a_time(quantiles: list[int], rows: int) -> list[int]:
    """Bounds of samples, drawn from NumPy's seeded global generator as the reference's criteo.py does."""
    state = np.random.get_state()
    np.random.seed(123)
    bounds = [0]
    while bounds[-1] < rows:
        bounds.append(min(bounds[-1] + quantiles[np.random.randint(low=0, high=len(quantiles))], rows))
    np.random.set_state(state)
    return bounds


@pytest.mark.parametrize(
    ("quantiles", "rows"), [(QUANTILES, 100_003), ((1, 2, 3), 999), ((5,), 20), ((7,), 3)]
)
def test_samples_are_drawn_as_one_by_one(quantiles: tuple[int, ...], rows: int) -> None:
    bounds = group_bounds(np.array(quantiles), rows)
    assert bounds.tolist() == one_draw_at_a_time(list(quantiles), rows)
    lines = [f"{a}, {b}, {b - a}\n" for a, b in pairwise(bounds)]
    assert trace_md5(bounds) == hashlib.md5("".join(lines).encode()).hexdigest()


def test_the_true_test_set_is_cut_in_a_moment() -> None:
    bounds = group_bounds(np.array([100, 440]), TEST_ROWS)
    assert bounds[-1] == TEST_ROWS and abs(len(bounds) - 1 - TEST_ROWS / 270) < 2000


def test_both_files_of_the_reference_give_the_same_library(tmp_path: Path) -> None:
    binary = open_task("criteo", made_criteo.write(tmp_path / "a", 6, seed=1)).prepare(tmp_path / "cache")
    day = open_task("criteo", made_criteo.write(tmp_path / "b", 6, seed=1, binary=False))
    assert day.prepare(tmp_path / "cache").digest == binary.digest
    assert not list((tmp_path / "cache").glob("*.rows*"))


def test_a_sample_is_its_pairs_without_their_labels(tmp_path: Path) -> None:
    task = open_task("criteo", made_criteo.write(tmp_path / "data", 6, seed=2))
    library = task.prepare(tmp_path / "cache")
    rows = np.fromfile(tmp_path / "data" / BIN_FILE, "<i4").reshape(-1, 40)
    bounds = library.array("bounds")
    assert bounds.tolist() == one_draw_at_a_time(list(QUANTILES), len(rows))
    assert (library.array("targets") == rows[:, 0]).all()
    samples = all_of(library)
    for i, sample in enumerate(samples):
        assert (task.collate([sample]) == rows[bounds[i] : bounds[i + 1], 1:]).all()
    assert counts_of(task, samples).tolist() == np.diff(bounds).tolist()
    assert library.meta["scorer"] == "auc" and library.count == 6


def test_collate_stacks_samples_into_what_it_is_given(tmp_path: Path) -> None:
    task = open_task("criteo", {"generated": 4})
    samples = all_of(task.prepare(tmp_path))
    total = int(counts_of(task, samples).sum())
    out = np.full((total + 5, 39), -1, np.int32)
    rows = task.collate(samples, out)
    assert np.shares_memory(rows, out) and rows.shape == (total, 39) and (out[total:] == -1).all()
    assert (rows == task.collate(samples)).all() and rows.tobytes() == b"".join(map(bytes, samples))


def test_indices_wrap_at_max_ind_range(tmp_path: Path) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=4)
    plain = open_task("criteo", options)
    wrapped = open_task("criteo", {**options, "max_ind_range": 17})
    before, after = (t.collate(all_of(t.prepare(tmp_path / "cache"))) for t in (plain, wrapped))
    assert (after[:, 13:] == before[:, 13:] % 17).all() and (after[:, :13] == before[:, :13]).all()


def test_the_calibration_set_is_the_beginning_of_the_second_half(tmp_path: Path) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=5)
    task = open_task("criteo", {**options, "count": 0, "calibration": str(tmp_path / "data" / DAY_FILE)})
    library = task.prepare(tmp_path / "cache")
    rows = task.collate(all_of(library))
    with np.load(tmp_path / "data" / DAY_FILE) as day:
        half = -(-len(day["y"]) // 2)
        assert (rows[:, :13] == day["X_int"][half:]).all() and (rows[:, 13:] == day["X_cat"][half:]).all()
    assert "scorer" not in library.meta


def test_responses_are_the_predictions_of_each_sample() -> None:
    task = open_task("criteo", {"generated": 1})
    outputs = np.linspace(0, 1, 6, dtype=np.float16)
    responses = task.respond(outputs, np.array([4, 2]), np.array([2, 4]))
    assert responses.sizes is not None and responses.sizes.tolist() == [8, 16]
    assert (responses.blob.view("<f4") == outputs.astype("<f4")).all()


def test_warm_up_and_generated_samples_have_the_true_sizes(tmp_path: Path) -> None:
    task = open_task("criteo", {"generated": 40})
    library = task.prepare(tmp_path)
    assert library.meta == {"generated": True} and library.count == 40
    for samples in (all_of(library), task.warm_up_samples(40)):
        counts, rows = counts_of(task, samples), task.collate(samples)
        assert set(counts.tolist()) <= set(range(100, 800, 100)) and 200 < counts.mean() < 350
        assert (rows[:, :13] >= 1).all() and (rows[:, 13:] >= 0).all() and (rows[:, 13:] < TABLE_ROWS).all()
        assert rows[:, 13].max() > 35_000_000


def test_onnx_inputs_are_those_of_the_published_file() -> None:
    task: Any = open_task("criteo", {"generated": 1})
    samples = task.warm_up_samples(2)
    rows, counts = task.collate(samples), counts_of(task, samples)
    inputs = task.onnx_inputs(rows, counts)
    assert {name: (array.dtype, array.shape) for name, array in inputs.items()} == {
        "dense_x": (np.float32, (len(rows), 13)),
        "offsets": (np.int64, (26, len(rows))),
        "indices": (np.int64, (26, len(rows))),
    }
    assert np.allclose(inputs["dense_x"], np.log1p(rows[:, :13].astype(float)))
    assert (rows[:, 13:] == inputs["indices"].T).all() and (inputs["offsets"] == np.arange(len(rows))).all()
    predictions, back = task.onnx_outputs({"pred": np.ones((len(rows), 1), np.float32)}, counts)
    assert predictions.shape == (len(rows),) and (back == counts).all()


def test_wrong_data_sets_are_explained(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    options = made_criteo.write(folder, 3, seed=6)

    def why(**changed: object) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("criteo", {**options, **changed}).prepare(tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*.rows*"))
        return str(caught.value)

    assert "either path (the data) or generated" in why(generated=3)
    assert "either path (the data) or generated" in why(path="")
    assert "is no folder" in why(path=str(tmp_path / "absent"))
    assert "give 3 samples, the manifest says 4" in why(count=4)
    assert "max_ind_range must be between" in why(max_ind_range=0)
    assert "tools/dist_quantile.txt of the reference" in why(quantiles=str(tmp_path / "none.txt"))
    (tmp_path / "words.txt").write_text("a, b\n")
    assert "one line of numbers" in why(quantiles=str(tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_text("100, 0\n")
    assert "a size of samples that is none" in why(quantiles=str(tmp_path / "words.txt"))
    assert f"must name the reference's {DAY_FILE}" in why(calibration=str(tmp_path / "none.npz"))
    whole = (folder / BIN_FILE).read_bytes()
    (folder / BIN_FILE).write_bytes(whole[:-3])
    assert "is cut short" in why()
    (folder / BIN_FILE).write_bytes(whole[:160] + b"\xff\xff\xff\xff" + whole[164:])
    assert "row 1 (from 0) is not a label" in why()
    (folder / BIN_FILE).unlink()
    np.savez_compressed(folder / "day_fea_count.npz", counts=np.full(26, 2))
    assert "do not belong together" in why() and "is not below 2" in why()
    (folder / "day_fea_count.npz").write_bytes(b"no archive")
    assert "holds no array 'counts'" in why()
    (folder / "day_fea_count.npz").unlink()
    day = (folder / DAY_FILE).read_bytes()
    for damaged in (b"", b"no archive", day[: len(day) // 2], day[:5000] + b"\0" * 3000 + day[8000:]):
        (folder / DAY_FILE).write_bytes(damaged)
        assert f"{DAY_FILE} is damaged" in why()
    np.savez(folder / DAY_FILE, y=np.zeros(4), X_int=np.zeros((4, 13)), X_cat=np.zeros((4, 25)))
    assert "rows of 26 numbers are expected" in why()
    (folder / DAY_FILE).unlink()
    assert f"holds neither {BIN_FILE}" in why()
    (folder / QUANTILE_FILE).unlink()
    assert "dist_quantile.txt is missing" in why()


def test_the_count_is_compared_with_a_library_that_is_there_already(tmp_path: Path) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=7)
    open_task("criteo", options).prepare(tmp_path / "cache")
    with pytest.raises(TaskError, match="give 3 samples, the manifest says 330067"):
        open_task("criteo", {**options, "count": 330067}).prepare(tmp_path / "cache")


@pytest.mark.parametrize("most", [40_000_000, 17])
def test_the_library_keeps_the_largest_indices(tmp_path: Path, most: int) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=8)
    task = open_task("criteo", {**options, "max_ind_range": most})
    library = task.prepare(tmp_path / "cache")
    assert library.array("largest").tolist() == task.collate(all_of(library))[:, 13:].max(axis=0).tolist()


def npz(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return held.getvalue()


def npy(shape: tuple[int, ...], descr: str = "<i8") -> bytes:
    """An array's header without its numbers."""
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": descr, "fortran_order": False, "shape": shape})
    return held.getvalue()


def forged(archive: bytes, at_local: int, at_central: int, value: int) -> bytes:
    """`value` into a field of the first member's two headers."""
    found = bytearray(archive)
    found[at_local] = value
    found[found.find(b"PK\x01\x02") + at_central] = value
    return bytes(found)


def bad_archives(*names: str) -> list[bytes]:
    """Members that are encrypted, compressed in an unknown way, without a shape, endless, or no Python."""
    good = npz(**dict.fromkeys(names, npy((26,)) + bytes(8 * 26)))
    odd = npy((26,)).replace(b"'shape'", b"((((((1")
    shapes = [npz(**dict.fromkeys(names, npy(shape))) for shape in ((), (10**13,), (-1,), (26, 2))]
    return [forged(good, 6, 8, 1), forged(good, 8, 10, 99), npz(**dict.fromkeys(names, odd)), *shapes]


def test_archives_of_no_sense_are_named(tmp_path: Path) -> None:
    options = made_criteo.write(tmp_path / "data", 3, seed=9)

    def why(**more: object) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("criteo", {**options, **more}).prepare(tmp_path / "cache")
        return str(caught.value)

    counts = tmp_path / "data" / "day_fea_count.npz"
    kept = counts.read_bytes()
    arrays: list[Any] = [
        np.int64(3),
        np.full((26, 2), 300),
        np.array(["a"] * 26),
        np.zeros(26),
        np.full(25, 300),
    ]
    for array in arrays:
        np.savez(counts, counts=array)
        assert "day_fea_count.npz is damaged: it holds no array 'counts' of 26 numbers" in why()
    for archive in bad_archives("counts"):
        counts.write_bytes(archive)
        assert "day_fea_count.npz is damaged: it holds no array 'counts' of 26 numbers" in why()
    counts.write_bytes(kept)
    (tmp_path / "words.txt").write_text("9" * 400)
    assert "one line of numbers" in why(quantiles=str(tmp_path / "words.txt"))
    (tmp_path / "data" / BIN_FILE).unlink()
    for archive in bad_archives("y", "X_int", "X_cat"):
        (tmp_path / "data" / DAY_FILE).write_bytes(archive)
        assert f"{DAY_FILE} is damaged" in why()
        assert not list((tmp_path / "cache").glob("*.rows*"))


def test_no_spare_file_is_left_by_an_error_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_task("criteo", made_criteo.write(tmp_path / "data", 3, seed=10, binary=False))

    def full(*_: object) -> None:
        assert list((tmp_path / "cache").glob("*.rows"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workers.library.LibraryWriter.add_array", full)
    with pytest.raises(OSError, match="No space left"):
        task.prepare(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.rows*"))
