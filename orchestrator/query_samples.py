"""LoadGen's QuerySamples as they lie in its memory: sample after sample, an id and an index of 8 bytes each.

Bytes are joined and cut without looking at a sample; lists of as many integers cost a hundred times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.protocol import Buffer

SAMPLE_BYTES = 16

Ids = Sequence[int] | np.ndarray


def packed(ids: Ids, indices: Ids) -> bytes:
    """The samples of these ids and indices."""
    pairs = np.empty((len(ids), 2), np.uint64)
    pairs[:, 0], pairs[:, 1] = ids, indices
    return pairs.tobytes()


def columns(samples: Buffer) -> tuple[np.ndarray, np.ndarray]:
    """Their ids, uint64 (n,), a view; their indices, uint32 (n,)."""
    words = np.frombuffer(samples, np.uint64)
    return words[::2], words[1::2].astype(np.uint32)
