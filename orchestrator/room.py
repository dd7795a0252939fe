"""Memory that LoadGen's module wants inside the clock, asked of the system before it.

Before the callback of Offline's one query runs, the module copies its ids and indices several times and makes
two Python integers of each sample. Measured on two cores, 2 million samples: 73 ns a sample; 48 with room for
the integers; 28 with room for the rest too, for every page that the system first gives must be cleared. At
480,000 samples/s, one GPU's DLRM or eight GPUs' ResNet-50, 20 ns are 1 % of any test, however long.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass

from orchestrator.machine import available_memory_bytes

# One integer kept of so many keeps the memory of all: Python gives back only whole arenas, of 8,192 (3.11) or
# 32,768 integers.
KEPT_EVERY = 4096
INTEGERS_PER_SAMPLE = 2
INTEGER_BYTES = 40  # itself and its place in a list
# With less than 128 it is as if there was none, with more nothing more is won (0 to 384 tried).
COPIES_BYTES = 160
SAMPLE_BYTES = INTEGERS_PER_SAMPLE * INTEGER_BYTES + COPIES_BYTES
SHARE_OF_MEMORY = 4
# Whose copies take milliseconds. Smaller ones may be of volumes: then malloc() should give memory back.
FEWEST_SAMPLES = 100_000
# glibc's names for what mallopt() sets.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def share_memory() -> None:
    """Have all threads that begin from now on share one memory of malloc()'s; of glibc's, else nothing.

    A thread's own has pieces of 64 MB at most.
    """
    _mallopt(M_ARENA_MAX, 1)


@dataclass(frozen=True)
class Room:
    """Memory of a query of `samples` samples; of its integers as long as this is kept."""

    samples: int
    copies: bool
    kept: list[int]


def room_for_query(samples: int, copies: bool) -> Room:
    """Let this process have the memory of a query of so many samples, its copies too if there are many.

    A quarter of what the machine has available, at most. With copies: to be called by a thread that began
    after `share_memory`; what malloc() is given from now on it keeps.
    """
    fitting = min(samples, (available_memory_bytes() or 0) // SHARE_OF_MEMORY // SAMPLE_BYTES)
    many = samples >= FEWEST_SAMPLES and fitting > 0
    made = copies and many and _room_for_copies(fitting * COPIES_BYTES)
    first = 1 << 32
    kept = list(range(first, first + INTEGERS_PER_SAMPLE * fitting))[::KEPT_EVERY]
    return Room(fitting, made, kept)


def _mallopt(name: int, value: int) -> bool:
    """Whether the C library took it."""
    with contextlib.suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).mallopt(name, value))
    return False


def _room_for_copies(size_bytes: int) -> bool:
    """Touch so much of malloc()'s memory, and have it kept: else large pieces go back at every free()."""
    if not (_mallopt(M_MMAP_MAX, 0) and _mallopt(M_TRIM_THRESHOLD, -1)):
        return False
    libc = ctypes.CDLL(None)
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    place = malloc(size_bytes)
    if place:
        ctypes.memset(place, 1, size_bytes)
        free(place)
    return bool(place)
