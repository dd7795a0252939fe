"""Reads the pickles that the segmentation references write, and nothing else that a pickle can hold.

The references keep preprocessed volumes as pickles (preprocess.py of vision/medical_imaging/3d-unet and
3d-unet-kits19). A pickle is a program: it names functions and has them called. Here every name of the few
that such a file needs means a stand-in of this module, which takes plain numbers only and checks their size;
any other name is refused before anything is called. NumPy's own functions are not called: what a forged
state does to an array or a dtype is not checked there.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from workers.pickle_limits import refuse_greedy
from workers.tasks import TaskError

# Booleans, whole numbers and floating-point numbers, as a dtype's name in a pickle.
_PLAIN = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_DEEPEST = 8  # containers within containers: the references' files have three


class _Refused(Exception):
    """A pickle holds something that is no array, number, text or container."""


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _PLAIN:
            raise _Refused(f"an array of type {name!r:.40}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, ...): nothing but the order concerns a plain dtype."""
        self.dtype = self.dtype.newbyteorder("=" if state[1] == "|" else state[1])


class _Array:
    """Stands in for an array that is made empty and then given its state."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, dtype, whether in Fortran's order, bytes)."""
        _, shape, dtype, fortran, data = state
        self.value = _filled(data, dtype, shape, "F" if fortran else "C").value


def _reconstruct(*_: object) -> _Array:
    """Stands in for numpy.core.multiarray._reconstruct."""
    return _Array()


def _filled(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Stands in for numpy.core.numeric._frombuffer."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise _Refused("an array that is not given as bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
        raise _Refused("an array whose shape is no row of numbers")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {shape!r:.60} in {len(data)} bytes")
    made = _Array()
    made.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    return made


def _number(dtype: _Dtype, data: bytes) -> Any:
    """Stands in for numpy.core.multiarray.scalar."""
    made = _filled(data, dtype, (1,), "C").value
    return None if made is None else made[0].item()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
}
for _core in ("numpy.core", "numpy._core"):  # the name before and since NumPy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _number
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _filled


class _Reader(pickle.Unpickler):
    """An unpickler for which the allowed names are all that exists."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for that name."""
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Nothing lies outside of the file."""
        raise _Refused(f"an object outside of the file ({pid!r:.40})")


def _plain(held: Any, made: dict[int, Any], depth: int = 0) -> Any:
    """`held` with arrays in the place of what stood in for them.

    `made` has the containers that are done, by the id of what they were made of, which whoever holds the
    whole keeps alive: a pickle of 200 bytes can name one list 60^7 times.
    """
    if depth > _DEEPEST:
        raise _Refused(f"containers more than {_DEEPEST} deep")
    if isinstance(held, _Array):
        if held.value is None:
            raise _Refused("an array without its voxels")
        return held.value
    if isinstance(held, dict | list | tuple):
        if id(held) not in made:
            values = held.values() if isinstance(held, dict) else held
            plain = [_plain(value, made, depth + 1) for value in values]
            if isinstance(held, dict):
                made[id(held)] = dict(zip(held, plain, strict=True))
            else:
                made[id(held)] = plain if isinstance(held, list) else tuple(plain)
        return made[id(held)]
    if held is None or isinstance(held, str | bytes | bool | int | float):
        return held
    raise _Refused(f"{type(held).__name__.strip('_').lower()} where a value should be")


def read_pickle(task: str, path: Path) -> Any:
    """Arrays, numbers, texts, lists, tuples and dicts; TaskError names the file, and what is refused."""
    try:
        data = path.read_bytes()
        refuse_greedy(data, "it")
        whole = _Reader(io.BytesIO(data)).load()
        return _plain(whole, {})
    except _Refused as refused:
        harm = "only arrays, numbers, text, lists, tuples and dicts are read, as anything else can run code"
        what = f"{path} holds {refused}, which is refused: {harm}; preprocess the data anew"
        raise TaskError(f"task {task!r}: {what}", "path") from None
    except OSError as error:
        raise TaskError(f"task {task!r}: {path} cannot be read ({error.strerror})", "path") from None
    except Exception as error:
        # What a damaged pickle makes the unpickler raise is not documented and can be nearly anything,
        # a MemoryError for a size that is no size among them.
        why = f"{type(error).__name__}: {error}"
        what = f"{path} is damaged or no pickle ({why:.120}); preprocess the data anew"
        raise TaskError(f"task {task!r}: {what}", "path") from None
