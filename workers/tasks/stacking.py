"""Samples to one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stack(samples: Sequence[memoryview], out: np.ndarray) -> None:
    """Copy the samples' bytes back to back into the contiguous array `out`, which is as large as they all."""
    blocks = [np.frombuffer(sample, np.uint8) for sample in samples]
    np.concatenate(blocks, out=out.reshape(-1).view(np.uint8))
