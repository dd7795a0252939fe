"""Grouping by length: every sample once, bounded waste, and padded places that hold the right rows."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.lengths import MOST_WASTE, group_by_length, padded_rows

TIME_BUDGET_S = 15

lengths = st.lists(st.integers(0, 700), min_size=1, max_size=60).map(lambda found: np.array(found, np.int64))
wastes = st.sampled_from([0.0, 0.05, MOST_WASTE, 0.5, 3.0])


@settings(max_examples=200, deadline=None)
@given(counts=lengths, waste=wastes, most_rows=st.sampled_from([0, 1, 300, 5000]))
def test_every_sample_is_in_one_group_and_no_group_wastes_more_than_it_may(
    counts: np.ndarray, waste: float, most_rows: int
) -> None:
    groups = group_by_length(counts, waste, most_rows)
    assert sorted(np.concatenate([group.members for group in groups]).tolist()) == list(range(len(counts)))
    for group in groups:
        own = counts[group.members]
        padded = len(own) * group.length
        assert own.max() == group.length and (np.diff(own) <= 0).all()
        assert padded <= (1 + waste) * own.sum()
        assert not most_rows or padded <= most_rows or len(own) == 1
    assert [group.length for group in groups] == sorted((group.length for group in groups), reverse=True)


@settings(max_examples=100, deadline=None)
@given(counts=lengths, waste=wastes)
def test_a_group_that_could_take_the_next_sample_has_taken_it(counts: np.ndarray, waste: float) -> None:
    groups = group_by_length(counts, waste)
    for group, following in itertools.pairwise(groups):
        own = [*counts[group.members].tolist(), following.length]
        assert len(own) * group.length > (1 + waste) * sum(own)


@settings(max_examples=100, deadline=None)
@given(counts=lengths, waste=wastes)
def test_padded_places_hold_the_samples_rows_in_order(counts: np.ndarray, waste: float) -> None:
    rows = np.repeat(np.arange(len(counts)), counts) * 1000 + np.concatenate([np.arange(n) for n in counts])
    if not len(rows):
        return
    for group in group_by_length(counts, waste):
        places, real = padded_rows(counts, group)
        assert places.shape == real.shape == (len(group.members), group.length)
        padded = rows[places]
        for member, got, counted in zip(group.members.tolist(), padded, real, strict=True):
            own = got[counted].tolist()
            assert own == [member * 1000 + k for k in range(counts[member])]
            assert not own or (got[~counted] == own[-1]).all()


def test_equal_lengths_are_one_group_and_an_empty_batch_is_none() -> None:
    (group,) = group_by_length(np.full(9, 384))
    assert (group.length, group.members.tolist()) == (384, list(range(9)))
    assert group_by_length(np.zeros(0, np.int64)) == []
