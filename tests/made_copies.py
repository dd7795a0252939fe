"""Copies as a GPU's copy engines would do them, and samples to copy: for tests of how slots gather."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from workers.arena import Arena, Pin

NO_BOUND = 1 << 40


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


class Fetched:
    """What the copy engines do, without a GPU; how many copies and bytes each launch had."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, int]] = []

    def __call__(self, destinations: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> None:
        given = (destinations, sources, sizes)
        assert all(a.dtype == np.uint64 and a.flags.c_contiguous and len(a) == len(sizes) for a in given)
        assert sizes.all() and sources.all()
        self.launches.append((len(sizes), int(sizes.sum())))
        for to, source, size in zip(*(array.tolist() for array in given), strict=True):
            ctypes.memmove(to, source, size)


class Placed:
    """Samples of `sizes` in an arena, their bytes, and a batch of `picks`."""

    def __init__(self, sizes: Sequence[int], picks: Sequence[int], pin: Pin) -> None:
        rng = np.random.default_rng(3)
        samples = [rng.bytes(size) for size in sizes]
        arena = Arena(np.array(sizes), pin, NO_BOUND)
        arena.load(np.arange(len(sizes)), memoryview(b"".join(samples)), np.cumsum([0, *sizes]))
        batch = arena.batch(np.array(picks, np.int64), list)
        assert batch is not None
        self.batch, self.wanted = batch, b"".join(samples[pick] for pick in picks)
