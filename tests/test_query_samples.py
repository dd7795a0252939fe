"""QuerySamples as bytes, and how the Dispatcher cuts and joins them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch import Dispatcher
from orchestrator.query_samples import SAMPLE_BYTES, columns, packed
from tests.test_dispatch import FIRST, MS, answer, dispatcher, issue, nothing_is_left, paced, whole

TIME_BUDGET_S = 10
Pairs = list[tuple[int, int]]
PAIRS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), min_size=1)


@given(PAIRS, PAIRS)
def test_what_is_packed_and_joined_reads_back(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    lumps = [packed(*zip(*pairs, strict=True)) for pairs in (first, second)]
    assert [len(lump) for lump in lumps] == [SAMPLE_BYTES * len(pairs) for pairs in (first, second)]
    ids, indices = columns(b"".join(lumps))
    assert ids.dtype == np.uint64 and indices.dtype == np.uint32
    assert list(zip(ids.tolist(), indices.tolist(), strict=True)) == first + second


def test_samples_lie_as_loadgen_has_them() -> None:
    assert packed([1, 0x0203], [4, 5]) == b"".join(n.to_bytes(8, "little") for n in (1, 4, 0x0203, 5))


@pytest.mark.parametrize("lumps", [[10_000], [1] * 50, [5, 10_000, 5], [3000, 2999, 3001]])
def test_lumps_of_any_size_are_dealt_in_their_order_and_completed_with_their_ids(lumps: list[int]) -> None:
    d = Dispatcher([("node/0", paced(max_batch=3000))])
    for first, n in zip(itertools.accumulate(lumps, initial=0), lumps, strict=False):
        issue(d, first, n)
    order: list[int] = []
    while d.outstanding:
        for send in d.sends(0):
            order += send.indices.tolist()
            done = d.answer(0, answer(whole(send), width=1), MS)
            assert done is not None and (done.ids - np.uint64(FIRST)).tolist() == send.indices.tolist()
    assert order == list(range(sum(lumps)))
    assert nothing_is_left(d)


def test_what_a_loss_moves_goes_before_the_rest_of_a_lump_that_was_cut() -> None:
    d = dispatcher(2)
    issue(d, 0, 10_000)
    lost, kept = d.sends(0)
    d.lose(lost.worker, "cut", MS)
    done = d.answer(kept.worker, answer(whole(kept)), MS)
    again = d.sends(MS)[0]
    assert done is not None and done.ids.tolist() == [FIRST + i for i in kept.indices.tolist()]
    assert again.indices.tolist() == lost.indices.tolist()
    done = d.answer(kept.worker, answer(whole(again)), MS)
    assert done is not None and done.ids.tolist() == [FIRST + i for i in lost.indices.tolist()]
