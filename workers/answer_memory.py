"""Memory that a worker shares with a test on its own host, so that large answers need not travel.

It is an anonymous file (memfd), which the test opens by way of /proc: nothing lies in /dev/shm, and nothing
is left when both processes are gone. Its seals promise the test that no page of it can be taken away any
more: reading a page of a file that was truncated is a SIGBUS, the end of the test without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import threading
import weakref
from bisect import insort
from dataclasses import dataclass, field

import numpy as np

from workers.free_memory import available_memory_bytes
from workers.protocol import OFFER, ProtocolError

NAME = "loadgrid-answers"
# Smaller answers travel. One worker on 2 cores, batches of 1, answers/s by memory and by TCP with CURVE: of
# 1 MB 1,700 and 300, of 0.52 MB 1,860 and 670, of 0.26 MB 2,210 and 1,200, of 0.13 MB 2,650 and 1,600.
LARGE_BYTES = 1 << 18
# Four that the engine's slots write, one that waits to be sent, one that the test reads, one whose release is
# under way; and one more, for batches of ragged samples are of different sizes, so that a gap may be too
# small for the next.
ANSWERS = 8
MOST_BYTES = 4 << 30
# Of what is free; a host may have eight workers, and LoadGen in an accuracy test needs memory too.
FREE_SHARE = 8
# The first page holds the token, answers lie behind it.
DATA_AT = 4096
TOKEN_BYTES = 32
# Linux 5.1; not in the fcntl module. With it no hole can be punched either.
F_SEAL_FUTURE_WRITE = 0x10
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


@dataclass
class Room:
    """Which bytes of `size` are taken: first fit, by whole pages. Pure."""

    size: int
    _taken: list[tuple[int, int]] = field(default_factory=list)  # (start, end), in order

    def take(self, count: int) -> int | None:
        """The offset of `count` bytes that nobody has, None if there are none."""
        count = max(-(-count // mmap.PAGESIZE), 1) * mmap.PAGESIZE
        at = 0
        for start, end in self._taken:
            if start - at >= count:
                break
            at = end
        if self.size - at < count:
            return None
        insort(self._taken, (at, at + count))
        return at

    def give(self, offset: int) -> None:
        """Give back what starts at `offset`."""
        self._taken = [span for span in self._taken if span[0] != offset]


@dataclass(slots=True)
class _Region:
    """An answer's bytes: taken while somebody here holds the array, or while the test may read it."""

    array: weakref.ref[np.ndarray]
    with_test: bool = False


class AnswerMemory:
    """`size` bytes for answers, all of them present from the start; OSError: this system has none to give.

    It outlives tests. An engine's threads may write answers into it while the worker's loop sends others.
    """

    made_for = 0  # bytes of an answer

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        total = DATA_AT + self.size
        self._fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # 256 MB take 0.15 s here and 0.02 s in the test: page faults that no clock should see.
            os.posix_fallocate(self._fd, 0, total)
            self._map = mmap.mmap(self._fd, total, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError:
            os.close(self._fd)
            raise
        self._start = np.frombuffer(self._map, np.uint8, self.size, DATA_AT).ctypes.data
        self._room = Room(self.size)
        self._regions: dict[int, _Region] = {}
        self._lock = threading.Lock()
        self._open = True

    def offer(self) -> bytes:
        """What a new test must know to open it; whatever an earlier test had of it is free again."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._map[:TOKEN_BYTES] = token
        with self._lock:
            for region in self._regions.values():
                region.with_test = False
        return OFFER.pack(os.getpid(), self._fd, token)

    def copy(self, blob: np.ndarray) -> np.ndarray:
        """A copy of an answer uint8 (n,): in this memory if it is large and there is room, else elsewhere."""
        there = self._array(blob.size) if blob.size >= LARGE_BYTES else None
        if there is None:
            return blob.copy()
        there[:] = blob
        return there

    def hand_over(self, blob: np.ndarray) -> int | None:
        """The offset of an answer, copied if it lies elsewhere; the test has it until free().

        None: it is small or there is no room, so it must travel.
        """
        if blob.size < LARGE_BYTES:
            return None
        offset = self._offset_of(blob)
        if offset is None:
            blob = self.copy(blob)
            offset = self._offset_of(blob)
        if offset is not None:
            self._regions[offset].with_test = True
        return offset

    def free(self, offset: int) -> None:
        """The test is done with the answer at `offset`; ProtocolError if it has none there."""
        region = self._regions.get(offset)
        if region is None or not region.with_test:
            raise ProtocolError(f"the test gives back an answer at {offset} of shared memory that it has not")
        region.with_test = False

    def close(self) -> None:
        """Give it back: arrays in it hold until their owners drop them, and copies go elsewhere."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            os.close(self._fd)
            with contextlib.suppress(BufferError):
                self._map.close()

    def _offset_of(self, blob: np.ndarray) -> int | None:
        """Where an answer lies in this memory, None if elsewhere."""
        offset = int(blob.ctypes.data) - self._start
        return offset if offset in self._regions else None

    def _array(self, count: int) -> np.ndarray | None:
        """Room for an answer, None if there is none."""
        with self._lock:
            if not self._open:
                return None  # an engine that did not end in time finishes its batch
            for offset, region in list(self._regions.items()):
                if not region.with_test and region.array() is None:
                    del self._regions[offset]
                    self._room.give(offset)
            at = self._room.take(count)
            if at is None:
                return None
            array = np.frombuffer(self._map, np.uint8, count, DATA_AT + at)
            self._regions[at] = _Region(weakref.ref(array))
            return array


def memory_for(answer_bytes: int, present: AnswerMemory | None) -> AnswerMemory | None:
    """Memory for several answers of this size: the `present` one if it will do, None if it cannot be had."""
    if answer_bytes < LARGE_BYTES:
        return present
    if present is not None:
        if present.made_for >= answer_bytes:
            return present
        present.close()
    free = available_memory_bytes()
    size = min(ANSWERS * (answer_bytes + mmap.PAGESIZE), MOST_BYTES - DATA_AT)
    size = size if free is None else min(size, free // FREE_SHARE)
    if size < answer_bytes + mmap.PAGESIZE:
        return None
    try:
        made = AnswerMemory(size)
    except OSError:
        return None
    made.made_for = answer_bytes
    return made
