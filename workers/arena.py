"""Loaded samples in memory that a device reads by itself, and batches of them. NumPy only.

The rules let the loaded samples lie in host memory that is mapped into the accelerator. A batch of them is
then no list of bytes but addresses, from which the device fetches what it computes; it keeps nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np

# Every sample starts at a multiple of it: so those lay whose copies were measured (torch_gather.py).
ALIGNED_BYTES = 16
# torch rounds pinned memory up to a power of two, so that much is asked for at a time and no more is lost
# than half of the last chunk.
CHUNK_BYTES = 1 << 30

# So many bytes as uint8; MemoryError or RuntimeError if there are none.
Pin = Callable[[int], np.ndarray]
Views = Callable[[], Sequence[memoryview]]


class LoadedSamples(Sequence[memoryview]):
    """Samples of an arena: `addresses` and `sizes` int64 (n,), in bytes; as a sequence their bytes.

    Bytes that came with the work are never one, whatever indices they have: only an arena makes these.
    """

    __slots__ = ("_memory", "_views", "addresses", "sizes")

    def __init__(
        self, addresses: np.ndarray, sizes: np.ndarray, views: Views, memory: tuple[np.ndarray, ...]
    ) -> None:
        self.addresses = addresses
        self.sizes = sizes
        self._views = views
        self._memory = memory  # stays while a batch of it may still be read

    def __len__(self) -> int:
        return len(self.addresses)

    @overload
    def __getitem__(self, item: int) -> memoryview: ...
    @overload
    def __getitem__(self, item: slice) -> LoadedSamples: ...
    def __getitem__(self, item: int | slice) -> memoryview | LoadedSamples:
        if not isinstance(item, slice):
            return self._views()[item]
        return LoadedSamples(
            self.addresses[item], self.sizes[item], lambda: self._views()[item], self._memory
        )

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views())


class _Chunk:
    """Memory from `pin`, filled from its start; given back when the last of its samples is."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.base = int(memory.ctypes.data)
        self.used = 0
        self.samples = 0

    def room(self) -> int:
        return len(self.memory) - self.used


class Arena:
    """Copies of the loaded samples of a library whose samples have `sizes`, in `most_bytes` from `pin`.

    All loaded samples lie here or none does, so that a test is gathered in one way; `refused` then says why
    none does, until all are unloaded.
    """

    def __init__(self, sizes: np.ndarray, pin: Pin, most_bytes: int) -> None:
        self.refused = ""
        self.held_bytes = 0
        self._sizes = sizes
        self._pin = pin
        self._most_bytes = most_bytes
        self._addresses = np.zeros(len(sizes), np.int64)  # 0: not here
        self._owner = np.full(len(sizes), -1, np.int64)  # the number of its chunk
        self._chunks: dict[int, _Chunk] = {}
        self._made = 0
        self._memory: tuple[np.ndarray, ...] = ()

    def load(self, indices: np.ndarray, data: memoryview, offsets: np.ndarray) -> None:
        """Copy the samples that are not here yet; sample i is data[offsets[i]:offsets[i + 1]]."""
        if self.refused:
            return
        new = np.unique(indices)
        new = new[self._addresses[new] == 0]
        try:
            places = self._place(new)
        except (MemoryError, RuntimeError) as error:
            self._refuse((str(error).splitlines() or [type(error).__name__])[0])
            return
        bytes_ = np.frombuffer(data, np.uint8)
        starts, stops = offsets[new].tolist(), offsets[new + 1].tolist()
        for (memory, at), start, stop in zip(places, starts, stops, strict=True):
            memory[at : at + stop - start] = bytes_[start:stop]

    def unload(self, indices: np.ndarray, any_left: bool) -> None:
        """Give memory back; `any_left`: samples of the library are still loaded."""
        if not any_left:
            self._clear()
            self.refused = ""
            return
        gone = np.unique(indices)
        gone = gone[self._addresses[gone] != 0]
        numbers, counts = np.unique(self._owner[gone], return_counts=True)
        self._addresses[gone], self._owner[gone] = 0, -1
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._chunks[number].samples -= count
            if not self._chunks[number].samples:
                self.held_bytes -= len(self._chunks.pop(number).memory)
        self._memory = tuple(chunk.memory for chunk in self._chunks.values())

    def batch(self, indices: np.ndarray, views: Views) -> LoadedSamples | None:
        """The samples `indices` int64 (n,), whose bytes `views` gives; None unless all lie here."""
        addresses = self._addresses[indices]
        if self.refused or not addresses.all():
            return None
        return LoadedSamples(addresses, self._sizes[indices], views, self._memory)

    def _place(self, new: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Find a place for each sample; (memory, offset) of each. MemoryError, also beyond the bound."""
        padded = -(-self._sizes[new] // ALIGNED_BYTES) * ALIGNED_BYTES
        ends = np.cumsum(padded)
        places: list[tuple[np.ndarray, int]] = []
        start = 0
        number = self._made - 1
        while start < len(new):
            before = int(ends[start] - padded[start])
            chunk = self._chunks.get(number)
            stop = start
            if chunk is not None:
                stop = int(np.searchsorted(ends, before + chunk.room(), "right"))
            if chunk is None or stop == start:
                number = self._add_chunk(int(padded[start]), int(ends[-1]) - before)
                continue
            at = chunk.used + ends[start:stop] - padded[start:stop] - before
            some = new[start:stop]
            self._addresses[some], self._owner[some] = chunk.base + at, number
            chunk.used += int(ends[stop - 1]) - before
            chunk.samples += len(some)
            places += [(chunk.memory, offset) for offset in at.tolist()]
            start = stop
        self._memory = tuple(chunk.memory for chunk in self._chunks.values())
        return iter(places)

    def _add_chunk(self, least: int, wanted: int) -> int:
        """Pin a chunk that holds `least` bytes, and `wanted` if it may; its number."""
        size = 1 << (max(least, min(wanted, CHUNK_BYTES), ALIGNED_BYTES) - 1).bit_length()
        if self.held_bytes + size > self._most_bytes:
            raise MemoryError(
                f"the loaded samples need more than the {self._most_bytes / 1e9:.1f} GB that may be pinned"
            )
        self._chunks[self._made] = _Chunk(self._pin(size))
        self._made += 1
        self.held_bytes += size
        return self._made - 1

    def _refuse(self, why: str) -> None:
        self._clear()
        self.refused = why

    def _clear(self) -> None:
        self._addresses[:], self._owner[:] = 0, -1
        self._chunks, self._memory, self.held_bytes = {}, (), 0
