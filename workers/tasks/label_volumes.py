"""Label volumes of different shapes as a library's arrays, compressed: a hundredth of their bytes.

truth           uint8: the volumes, each compressed by zlib, back to back
truth_offsets   int64 (count + 1,): volume i is truth[truth_offsets[i]:truth_offsets[i + 1]]
truth_shapes    int64 (count, 3)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from workers.library import Library

_LEVEL = 3  # large areas of one label compress well at any level


class Writer(Protocol):
    """What takes arrays into a library."""

    def add_array(self, name: str, values: np.ndarray) -> None:
        """Keep an array beside the samples."""


def keep_volumes(writer: Writer, volumes: Iterable[np.ndarray]) -> None:
    """Add the volumes, uint8 (d, h, w) each, holding one of them at a time."""
    packed: list[bytes] = []
    shapes: list[tuple[int, ...]] = []
    for volume in volumes:
        packed.append(zlib.compress(np.ascontiguousarray(volume, np.uint8).tobytes(), _LEVEL))
        shapes.append(volume.shape)
    sizes = np.array([len(one) for one in packed], np.int64)
    writer.add_array("truth", np.frombuffer(b"".join(packed), np.uint8))
    writer.add_array("truth_offsets", np.concatenate([[0], np.cumsum(sizes)]))
    writer.add_array("truth_shapes", np.array(shapes, np.int64))


class LabelVolumes:
    """The volumes of a library, unpacked one at a time."""

    def __init__(self, library: Library) -> None:
        self._packed = library.array("truth")
        self._offsets = library.array("truth_offsets")
        self._shapes = library.array("truth_shapes")

    def volume(self, index: int) -> np.ndarray:
        """uint8 (d, h, w)."""
        packed = self._packed[self._offsets[index] : self._offsets[index + 1]]
        return np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8).reshape(self._shapes[index])

    def shape(self, index: int) -> tuple[int, ...]:
        """(d, h, w)."""
        return tuple(self._shapes[index].tolist())
