"""Lumps: the samples that LoadGen issued, on their way from lists of integers to arrays. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

# A lump this large is sliced many times: of an array that makes views, of a list copies.
ARRAY_FROM = 256
# Offline's one query has all samples of the test. To make arrays of its lists takes 75 ns a sample, which
# came before the first frame: 3.5 % of a test with 480,000 samples/s, whatever its length. So many are made
# at a time, while the workers compute.
PIECE = 16384
# So many at once become one lump: 64 queries of a sample then cost 0.5 us each, by themselves 1.0.
JOIN_FROM = 8

Ids = list[int] | np.ndarray
Issued = tuple[Ids, Ids, int]  # of one callback: ids, indices, when it came in ns


@dataclass(slots=True)
class Lump:
    """Samples of one issue callback, in order; `ids` are LoadGen's and stay in this process."""

    ids: Ids
    indices: Ids
    issued_ns: int


@dataclass(slots=True)
class Backlog:
    """A lump of long lists, which become arrays piece by piece; `dealt` samples have."""

    ids: list[int]
    indices: list[int]
    issued_ns: int
    dealt: int = 0

    def piece(self) -> Lump:
        """The oldest samples that were not dealt."""
        piece = slice(self.dealt, self.dealt + PIECE)
        self.dealt += PIECE
        ids, indices = np.array(self.ids[piece], np.uint64), np.array(self.indices[piece], np.uint32)
        return Lump(ids, indices, self.issued_ns)


def lumps_of(issued: Sequence[Issued]) -> list[Lump]:
    """What came at once, in order; many small ones become one, which came when they did in the mean."""
    if len(issued) < JOIN_FROM or max(len(ids) for ids, _, _ in issued) > ARRAY_FROM:
        return [Lump(*one) for one in issued]
    ids, indices, times = zip(*issued, strict=True)
    first_ns, n = times[0], len(issued)
    after_ns = sum(at - first_ns for at in times)
    all_ids = joined(ids, np.uint64)
    if len(all_ids) != n:
        n = len(all_ids)
        after_ns = sum((at - first_ns) * len(some) for some, at in zip(ids, times, strict=True))
    return [Lump(all_ids, joined(indices, np.uint32), first_ns + after_ns // n)]


def joined(pieces: Sequence[Ids], dtype: type) -> np.ndarray:
    """One array of all pieces; one conversion for many short lists is several times cheaper than one each."""
    if len(pieces) == 1:
        return np.asarray(pieces[0], dtype)
    if np.ndarray in map(type, pieces):
        return np.concatenate([np.asarray(p, dtype) for p in pieces])
    return np.array(list(chain.from_iterable(pieces)), dtype)
