"""Volumes that differ in shape as samples: four int32 (1, d, h, w), then the voxels as float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.tasks import TaskError

HEADER = np.dtype("<i4")
HEADER_BYTES = 4 * HEADER.itemsize
VOXEL = np.dtype("<f4")


def pack(volume: np.ndarray) -> np.ndarray:
    """A sample's bytes, uint8, of a volume (d, h, w)."""
    header = np.array([1, *volume.shape], HEADER).view(np.uint8)
    return np.concatenate([header, np.ascontiguousarray(volume, VOXEL).reshape(-1).view(np.uint8)])


def unpack(task: str, samples: Sequence[memoryview], out: np.ndarray | None) -> np.ndarray:
    """float32 (1, 1, d, h, w) of the one sample, in `out` if that has its shape."""
    if len(samples) != 1:
        raise TaskError(f"task {task!r}: volumes differ in shape: one a batch, not {len(samples)}")
    shape = (1, *np.frombuffer(samples[0], HEADER, 4).tolist())
    volume = np.frombuffer(samples[0], VOXEL, offset=HEADER_BYTES).reshape(shape)
    if out is None or out.shape[1:] != shape[1:]:
        return volume.copy()
    out[:1] = volume
    return out[:1]
