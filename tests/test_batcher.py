"""The Batcher under a hand-held clock: which samples go together, and when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batcher import Batcher
from workers.protocol import FAR_NS, Segment, Work

TIME_BUDGET_S = 8
MS = 10**6


def work(frame: int, n: int, payload: bool = False) -> Work:
    """Frame number `frame` of `n` samples, whose indices tell frame and position."""
    indices = frame * 1000 + np.arange(n, dtype=np.int64)
    samples = [memoryview(b"%d" % i) for i in indices.tolist()] if payload else []
    return Work(frame, indices, samples)


def places(segments: list[Segment]) -> list[tuple[int, list[int]]]:
    return [
        (s.frame, list(range(s.count) if s.positions is None else map(int, s.positions))) for s in segments
    ]


def test_nothing_is_due_when_nothing_waits() -> None:
    assert Batcher(8).due_ns(5 * MS) == FAR_NS


def test_one_sample_is_due_as_soon_as_the_engine_is_free() -> None:
    batcher = Batcher(8)
    batcher.add(work(1, 1), 3 * MS)
    assert batcher.due_ns(3 * MS) == 3 * MS
    assert batcher.due_ns(10 * MS) == 10 * MS


def test_a_deadline_counts_from_the_oldest_sample() -> None:
    batcher = Batcher(8, deadline_ns=2 * MS)
    batcher.add(work(1, 1), 3 * MS)
    batcher.add(work(2, 1), 4 * MS)
    assert batcher.due_ns(0) == 5 * MS
    assert batcher.due_ns(7 * MS) == 7 * MS
    batcher.take()
    batcher.add(work(3, 1), 9 * MS)
    assert batcher.due_ns(0) == 11 * MS


def test_a_full_batch_is_due_at_once_whatever_the_deadline_and_before_the_engine_is_free() -> None:
    batcher = Batcher(4, deadline_ns=2 * MS)
    batcher.add(work(1, 3), 0)
    assert batcher.due_ns(9 * MS) == 9 * MS
    batcher.add(work(2, 1), 1 * MS)
    assert batcher.due_ns(9 * MS) <= 1 * MS


def test_nothing_is_due_while_the_engine_has_no_slot() -> None:
    batcher = Batcher(1)
    batcher.add(work(1, 5), 0)
    assert batcher.due_ns(FAR_NS) == FAR_NS


def test_what_comes_while_the_engine_is_busy_goes_into_the_next_batch() -> None:
    batcher = Batcher(4)
    for frame, at in enumerate((1, 2, 3), 1):
        batcher.add(work(frame, 1), at * MS)
        assert batcher.due_ns(9 * MS) == 9 * MS
    assert len(batcher.take().indices) == 3


def test_a_batch_takes_the_oldest_first_and_remembers_when_each_came() -> None:
    batcher = Batcher(4)
    batcher.add(work(1, 2), 1 * MS)
    batcher.add(work(2, 1), 2 * MS)
    batcher.add(work(3, 3), 3 * MS)
    first, second = batcher.take(), batcher.take()
    assert first.indices.tolist() == [1000, 1001, 2000, 3000]
    assert places(first.segments) == [(1, [0, 1]), (2, [0]), (3, [0])]
    assert [s.received_ns for s in first.segments] == [1 * MS, 2 * MS, 3 * MS]
    assert places(second.segments) == [(3, [1, 2])]
    assert second.segments[0].received_ns == 3 * MS


def test_a_frame_that_fits_is_answered_whole_and_not_as_a_list() -> None:
    batcher = Batcher(8)
    batcher.add(work(1, 8), 0)
    taken = batcher.take()
    assert taken.segments == [Segment(1, 0, 8, None)]
    assert taken.indices.tolist() == list(range(1000, 1008))


def test_a_frame_larger_than_a_batch_is_cut_into_ranges() -> None:
    batcher = Batcher(4)
    batcher.add(work(1, 10), 0)
    assert [s.positions for _ in range(3) for s in batcher.take().segments] == [
        range(4),
        range(4, 8),
        range(8, 10),
    ]


def test_samples_travel_with_their_indices() -> None:
    batcher = Batcher(3)
    batcher.add(work(1, 2, payload=True), 0)
    batcher.add(work(2, 2, payload=True), 0)
    for want in ([1000, 1001, 2000], [2001]):
        taken = batcher.take()
        assert taken.indices.tolist() == want
        assert [int(bytes(s)) for s in taken.samples] == want


def test_clear_tells_how_many_samples_it_dropped() -> None:
    batcher = Batcher(4)
    batcher.add(work(1, 5), 0)
    batcher.take()
    batcher.add(work(2, 2), 0)
    assert batcher.clear() == 3
    assert (batcher.samples, batcher.due_ns(0), batcher.clear()) == (0, FAR_NS, 0)


@given(
    st.integers(1, 9),
    st.lists(st.one_of(st.integers(1, 20), st.none()), min_size=1, max_size=40),
)
def test_every_sample_is_taken_once_in_order_and_no_batch_is_too_large(
    max_batch: int, steps: list[int | None]
) -> None:
    batcher = Batcher(max_batch)
    added: list[int] = []
    taken: list[int] = []
    for now, step in enumerate([*steps, *[None] * 900]):
        if step is not None:
            batcher.add(work(now + 1, step), now)
            added += work(now + 1, step).indices.tolist()
        elif batcher.due_ns(now) < FAR_NS:
            waited = batcher.samples
            batch = batcher.take()
            assert len(batch.indices) == min(max_batch, waited)
            assert batch.indices.tolist() == [
                f * 1000 + p for f, where in places(batch.segments) for p in where
            ]
            taken += batch.indices.tolist()
        assert batcher.samples == len(added) - len(taken)
    assert taken == added


@pytest.mark.parametrize("deadline_ms", [0, 2])
def test_a_lone_sample_waits_for_the_deadline_and_not_longer(deadline_ms: int) -> None:
    # SingleStream: with a deadline of 2 ms each query takes 2 ms more, with none it takes nothing more.
    batcher = Batcher(8, deadline_ns=deadline_ms * MS)
    now = 0
    for frame in range(1, 6):
        batcher.add(work(frame, 1), now)
        due = batcher.due_ns(now)
        assert due == now + deadline_ms * MS
        batcher.take()
        now = due + 5 * MS
