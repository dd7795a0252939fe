"""LoadGen's QuerySampleResponse objects, written through memory."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import numpy as np

from orchestrator.dispatch import Completion
from orchestrator.issue_in_place import USER_SPACE

# CPython's object header; pybind11 keeps the pointer to a simple instance's C++ value right behind it.
INSTANCE_POINTER_AT = 16
# A batch is reported in one call; larger lumps (a test process that was stalled) in several.
POOL_SIZE = 8192
# Answers up to this size are copied (12 ns) rather than pointed to (two scatters more).
STEADY_BYTES = 64
FIELD_WORDS = {"id": 0, "data": 1, "size": 2}


class ResponsePool:
    """QuerySampleResponse objects made once and reused: setting `.id` costs a third of building one.

    Where the objects' memory is laid out as expected (checked at start by writing through memory and reading
    back through the objects), ids, addresses and sizes of a whole lump are written by one NumPy scatter each:
    97 to 155 ns a sample instead of 560. Otherwise the attributes are set one by one.
    """

    def __init__(self, module: ModuleType, size: int = POOL_SIZE) -> None:
        self._module = module
        self._pool: list[Any] = [module.QuerySampleResponse(0, 0, 0) for _ in range(size)]
        self._memory: np.ndarray | None = None
        self._at = np.empty(0, np.int64)
        self.scattered = True
        self._steady = np.empty(0, np.uint8)
        self._steady_size = 0  # of the answers that the objects point to; 0: they point elsewhere
        self._find_memory()

    def complete(self, completion: Completion) -> None:
        """Report a lump to LoadGen, which stamps its time on entry and copies what it wants to log."""
        n, most = len(completion.ids), len(self._pool)
        if n <= most:
            self._report(completion)
            return
        # Making more objects here would stall the loop for longer than the backlog that asked for them.
        for first in range(0, n, most):
            self._report(_part(completion, first, first + most))

    def _report(self, completion: Completion) -> None:
        n, size = len(completion.ids), completion.sizes
        if completion.offsets is None and size.__class__ is int and 0 < size <= STEADY_BYTES:
            self._set_steady(completion.ids, completion.blob, size)
        else:
            self._set_any(completion)
        self._module.QuerySamplesComplete(self._pool[:n])

    def _set_steady(self, ids: np.ndarray, blob: np.ndarray, size: int) -> None:
        """Small answers of one size are copied to where the objects point already: only the ids change."""
        if size != self._steady_size:
            total = len(self._pool)
            self._steady = np.zeros(total * size, np.uint8)
            self._steady_size = size
            everywhere = np.zeros(total, np.uint64)
            self._set_any(Completion(everywhere, self._steady, None, size), keep_steady=True)
        self._steady[: blob.size] = blob
        if self._memory is not None:
            self._memory[self._at[: len(ids)]] = ids
            return
        for response, one_id in zip(self._pool, ids.tolist(), strict=False):
            response.id = one_id

    def _set_any(self, completion: Completion, keep_steady: bool = False) -> None:
        """Write ids, addresses and sizes of a lump into the first objects of the pool."""
        n = len(completion.ids)
        if not keep_steady:
            self._steady_size = 0
        base = int(completion.blob.ctypes.data) if completion.blob.size else 0
        offsets, sizes = completion.offsets, completion.sizes
        if offsets is None:
            assert isinstance(sizes, int)
            addresses: Any = np.arange(base, base + n * sizes, sizes, dtype=np.uint64) if sizes else 0
        else:
            addresses = (offsets + base).astype(np.uint64)
        if self._memory is not None:
            at = self._at[:n]
            self._memory[at] = completion.ids
            self._memory[at + 1] = addresses
            self._memory[at + 2] = sizes
        else:
            self._set_attributes(completion.ids, addresses, sizes)

    def _set_attributes(self, ids: np.ndarray, addresses: Any, sizes: Any) -> None:
        n = len(ids)
        places = np.broadcast_to(addresses, n).tolist()
        lengths = np.broadcast_to(sizes, n).tolist()
        for response, one_id, place, length in zip(self._pool, ids.tolist(), places, lengths, strict=False):
            response.id, response.data, response.size = one_id, place, length

    def _find_memory(self) -> None:
        """Where the objects' values lie, if they lie as expected."""
        addresses = np.array(
            [ctypes.c_uint64.from_address(id(r) + INSTANCE_POINTER_AT).value for r in self._pool], np.uint64
        )
        if not _looks_like_values(addresses, self._pool):
            self.scattered = False
            return
        low, high = int(addresses.min()), int(addresses.max()) + 8 * len(FIELD_WORDS)
        words = (ctypes.c_uint64 * ((high - low) // 8)).from_address(low)
        self._memory = np.ctypeslib.as_array(words)
        self._at = ((addresses - low) // 8).astype(np.int64)
        self._check_scatter()

    def _check_scatter(self) -> None:
        """Write through memory, read back through the objects; on any difference fall back to attributes."""
        assert self._memory is not None
        n = len(self._pool)
        marks = np.arange(1, n + 1, dtype=np.uint64)
        for field, word in FIELD_WORDS.items():
            self._memory[self._at + word] = marks * np.uint64(7) + np.uint64(word)
            seen = np.array([getattr(r, field) for r in self._pool], np.uint64)
            if not np.array_equal(seen, marks * np.uint64(7) + np.uint64(word)):
                self.scattered, self._memory = False, None
                return


def _part(completion: Completion, first: int, last: int) -> Completion:
    """Samples `first` to `last` of a lump."""
    ids, blob, offsets, sizes = (
        completion.ids[first:last],
        completion.blob,
        completion.offsets,
        completion.sizes,
    )
    if offsets is None:
        assert isinstance(sizes, int)
        return Completion(ids, blob[first * sizes : last * sizes], None, sizes)
    if not isinstance(sizes, int):
        sizes = sizes[first:last]
    return Completion(ids, blob, offsets[first:last], sizes)


def _looks_like_values(addresses: np.ndarray, pool: list[Any]) -> bool:
    """Whether each address is plausibly the object's value: mark it through `.id` and read it there.

    Reading comes before any writing: a layout that differs is found without touching memory that is not ours.
    """
    if (addresses % 8).any() or (addresses < 4096).any() or (addresses >= USER_SPACE).any():
        return False
    for mark, response in enumerate(pool, 1):
        response.id, response.data, response.size = mark * 3, mark * 5, mark * 7
    for mark, address in enumerate(addresses.tolist(), 1):
        values = (ctypes.c_uint64 * 3).from_address(address)
        if list(values) != [mark * 3, mark * 5, mark * 7]:
            return False
    return True
