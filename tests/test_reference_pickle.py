"""The references' pickles: arrays, numbers and containers come out, whatever could run code stays in."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.tasks import TaskError
from workers.tasks.reference_pickle import read_pickle

TIME_BUDGET_S = 5


def written(folder: Path, held: Any, protocol: int = 4) -> Path:
    path = folder / "case.pkl"
    path.write_bytes(pickle.dumps(held, protocol))
    return path


def why(path: Path) -> str:
    with pytest.raises(TaskError) as caught:
        read_pickle("brats", path)
    assert caught.value.option == "path"
    return str(caught.value)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_the_references_write_comes_back_equal(tmp_path: Path, protocol: int) -> None:
    volume = np.random.default_rng(1).standard_normal((2, 3, 4), np.float32)
    arrays = [volume, np.asfortranarray(volume), volume[:, ::2], volume.astype(">f2"), np.zeros((0, 3))]
    facts: dict[str, Any] = OrderedDict(size=(3, 4), spacing=np.array([1, 2]), one=np.float64(1.5), none=None)
    found = read_pickle("brats", written(tmp_path, [arrays, facts, "name", 7, True], protocol))
    for made, kept in zip(found[0], arrays, strict=True):
        assert made.shape == kept.shape and made.dtype == kept.dtype and (made == kept).all()
    assert list(found[1]) == list(facts) and found[1]["size"] == (3, 4) and found[1]["one"] == 1.5
    assert (found[1]["spacing"] == [1, 2]).all() and found[2:] == ["name", 7, True]


def test_names_of_the_numpy_before_2_are_known(tmp_path: Path) -> None:
    path = written(tmp_path, np.arange(3), 3)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert read_pickle("kits", path).tolist() == [0, 1, 2]


class Calls:
    """Pickles as a call."""

    def __init__(self, called: Any, *given: Any) -> None:
        self.called, self.given = called, given

    def __reduce__(self) -> Any:
        return self.called, self.given


@pytest.mark.parametrize("called", [os.system, eval, exec, open, np.load, getattr, pickle.loads])
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(tmp_path: Path, called: Any) -> None:
    mark = tmp_path / "mark"
    text = why(written(tmp_path, [np.zeros(3), Calls(called, f"touch {mark}")]))
    assert called.__name__ in text and "case.pkl holds" in text and "which is refused" in text
    assert not mark.exists()


def test_objects_that_are_no_plain_arrays_are_refused(tmp_path: Path) -> None:
    pairs = np.zeros(2, np.dtype([("a", "f4"), ("b", "f8")]))
    assert "an array of type 'V12'" in why(written(tmp_path, pairs))
    assert "an array of type 'O8'" in why(written(tmp_path, np.array([{}, None], dtype=object)))
    assert "tests.test_reference_pickle" in why(written(tmp_path, Calls))
    assert "builtins.complex" in why(written(tmp_path, 1j))
    nested: list[Any] = []
    for _ in range(20):
        nested = [nested]
    assert "containers more than" in why(written(tmp_path, nested))


def test_forged_arrays_are_refused(tmp_path: Path) -> None:
    class Forged(np.ndarray):
        def __reduce__(self) -> Any:
            made = np.zeros(2, np.float32).__reduce__()
            return made[0], made[1], (1, (1 << 40,), np.dtype("f4"), False, b"12345678")

    assert "an array of shape (1099511627776,) in 8 bytes" in why(
        written(tmp_path, np.zeros(2).view(Forged), 4)
    )
    reconstruct = np.zeros(1).__reduce__()[0]
    assert "an array without its voxels" in why(written(tmp_path, Calls(reconstruct, np.ndarray, (0,), b"b")))
    assert "dtype where a value should be" in why(written(tmp_path, np.dtype("f4")))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, [np.arange(1000)])
    whole = path.read_bytes()
    for damaged in (b"", b"no pickle", whole[:-20], whole[:1] + whole[9:], b"\x80\x04\x8e" + b"\x7f" * 8):
        path.write_bytes(damaged)
        assert "case.pkl is damaged or no pickle" in why(path)
    assert "cannot be read" in why(tmp_path / "absent.pkl")


def test_a_list_that_is_named_a_thousand_million_times_is_made_once(tmp_path: Path) -> None:
    held: Any = "x"
    for _ in range(7):
        held = [held] * 60
    found = read_pickle("brats", written(tmp_path, {"a": held, "b": (held, held)}))
    assert found["b"][0] is found["a"] and found["a"][0] is found["a"][59]
    held = []
    held.append(held)
    assert "containers more than" in why(written(tmp_path, held))


def test_a_pickle_that_asks_for_more_than_it_brings_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "case.pkl"
    # A place in the memo, and bytes, beyond any memory.
    for greedy in (b"\x80\x02]r\0\0\0\x7f.", b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc."):
        path.write_bytes(greedy)
        assert "no honest pickle" in why(path)


def test_a_shape_that_is_no_row_of_numbers_is_refused(tmp_path: Path) -> None:
    reduced: Any = np.zeros(2).__reduce_ex__(5)
    rebuild, given = reduced[0], reduced[1]
    for shape in ([2], ((2,),), (2.0,)):
        forged = Calls(rebuild, bytes(16), given[1], shape, "C")
        assert "shape is no row of numbers" in why(written(tmp_path, forged, 5))
