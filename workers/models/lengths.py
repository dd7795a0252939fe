"""Which samples of unequal length a model computes together when it must pad them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Padding that a group may add to its samples' own rows. A new group costs a pass of its own.
MOST_WASTE = 0.125


@dataclass(frozen=True)
class Group:
    """Samples padded to one length: `members` int64 (n,) are their places in the batch, longest first."""

    members: np.ndarray
    length: int


def group_by_length(counts: np.ndarray, waste: float = MOST_WASTE, most_rows: int = 0) -> list[Group]:
    """Every sample in exactly one group, longest groups first; `counts` int64 (n,) are the samples' lengths.

    Of each group n * length <= (1 + waste) * its samples' own rows, so the same holds for all. `most_rows`
    bounds n * length where a group of one sample allows it; 0: no bound.
    """
    order = np.argsort(-counts, kind="stable")
    groups: list[Group] = []
    start = 0
    while start < len(order):
        lengths = counts[order[start:]]
        size = np.arange(1, len(lengths) + 1)
        padded = size * lengths[0]
        held = padded <= (1 + waste) * np.cumsum(lengths)
        if most_rows:
            held &= (padded <= most_rows) | (size == 1)
        # The mean falls with every further sample, so whoever fits stands before all that do not.
        n = len(held) if held.all() else int(held.argmin())
        groups.append(Group(order[start : start + n], int(lengths[0])))
        start += n
    return groups


def padded_rows(counts: np.ndarray, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Which row of the batch stands in each padded place of a group, int64 (n, length), and which are real.

    bool (n, length): True where a place holds a row of its sample. The others repeat the sample's last row,
    or, where it has none, a neighbour's.
    """
    ends = np.cumsum(counts)[group.members]
    lengths = counts[group.members]
    within = np.arange(group.length) < lengths[:, None]
    places = (ends - lengths)[:, None] + np.arange(group.length)
    return np.maximum(np.minimum(places, ends[:, None] - 1), 0), within
