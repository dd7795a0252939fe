"""The search for a peak: within 2 % of a known capacity in few probes, from any start, on noisy machines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.peak import MOST_SAMPLES, PROBES
from orchestrator.peak_search import (
    CONFIRMATIONS,
    TRIES,
    Confirmation,
    PeakSearch,
    Seen,
    bracket,
)
from tests.simulated_queue import Queue, found_by

TIME_BUDGET_S = 40


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    service_s=st.sampled_from([1e-6, 1e-4, 3e-3, 0.5]),
    limit=st.sampled_from([5, 15, 40, 150]),
    random=st.booleans(),
    off=st.floats(-1, 1),
    hint=st.sampled_from([None, 0.5, 1.0, 1.6]),
)
def test_one_server_of_any_speed_is_found_within_2_percent_in_12_probes(
    seed: int, service_s: float, limit: int, random: bool, off: float, hint: float | None
) -> None:
    """From starts of up to ten times too low or too high, whatever the warm-up said."""
    limit_s = max(limit, 15 if random else 5) * service_s
    queue = Queue(np.random.default_rng(seed), limit_s, service_s, random=random)
    peak = queue.peak()
    search, confirmation = found_by(queue, peak * 10**off, hint and hint * queue.capacity)
    assert 0.98 * peak < confirmation.low < 1.004 * peak
    assert len(search.seen) <= PROBES == 12 and len(confirmation.seen) <= CONFIRMATIONS


@pytest.mark.parametrize(("max_batch", "workers", "limit", "off"), [(8, 2, 4, 10.0)])
def test_workers_that_batch_are_found_within_2_percent(
    rng: np.random.Generator, max_batch: int, workers: int, limit: int, off: float
) -> None:
    """`limit` in full batches."""
    batch_s, sample_s = 1e-3, 0.25e-3
    limit_s = limit * (batch_s + max_batch * sample_s)
    queue = Queue(rng, limit_s, sample_s, batch_s, max_batch, workers)
    peak = queue.peak()
    search, confirmation = found_by(queue, off * peak)
    assert 0.98 * peak < confirmation.low < 1.004 * peak
    assert len(search.seen) <= PROBES


def test_a_machine_that_stalls_in_every_seventh_probe_is_no_slower(rng: np.random.Generator) -> None:
    for _ in range(3):
        queue = Queue(rng, 30e-3, 1e-3, stalls=0.15)
        peak = queue.peak()
        search, confirmation = found_by(queue, peak * 10 ** rng.uniform(-1, 1))
        assert 0.97 * peak < confirmation.low < 1.004 * peak
        assert len(search.seen) <= PROBES


def test_the_edge_is_tried_again_before_it_decides() -> None:
    search = PeakSearch(100.0)
    search.add(Seen(100.0, True))
    search.add(Seen(101.0, False))
    assert search.next() == 101.0
    search.add(Seen(101.0, True))
    assert (search.low, search.high) == (101.0, float("inf"))
    above = search.next()
    assert above is not None and above > 101.0
    for _ in range(TRIES):
        search.add(Seen(101.5, False))
    assert search.next() is None and (search.low, search.high) == (101.0, 101.5)


def test_what_failed_far_below_the_edge_that_seems_is_asked_again_at_once() -> None:
    search = PeakSearch(100.0, hint=200.0)
    search.add(Seen(100.0, True, 9.0))
    search.add(Seen(120.0, False, 0.7))
    assert search.next() == 120.0


@given(seed=st.integers(0, 10**6))
def test_whatever_the_answers_it_ends_and_its_bracket_is_made_of_answers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    search = PeakSearch(float(10 ** rng.uniform(0, 5)), hint=float(10 ** rng.uniform(0, 6)))
    for _ in range(300):
        low, high = bracket(search.seen)
        if (value := search.next()) is None:
            break
        assert low <= value <= high and value > low
        assert sum(seen.value == value for seen in search.seen) <= TRIES
        held = bool(rng.random() < 0.5)
        room = float(rng.uniform(-1, 3)) if rng.random() < 0.7 else None
        capacity = float(value * rng.uniform(0.1, 2)) if not held and rng.random() < 0.5 else None
        search.add(Seen(value, held, room, capacity))
    else:
        raise AssertionError("it does not end")
    assert search.low == 0.0 or any(seen.held and seen.value == search.low for seen in search.seen)


# Whole numbers


@given(limit=st.integers(0, 5000), first=st.integers(1, 5000), most=st.integers(1, 5000))
def test_of_whole_numbers_it_finds_the_largest_that_passes(limit: int, first: int, most: int) -> None:
    search = PeakSearch(first, most, whole=True)
    tried: list[float] = []
    while (value := search.next()) is not None:
        tried.append(value)
        search.add(Seen(value, value <= limit))
    assert search.low == min(limit, most)
    assert len(tried) <= 27 and all(1 <= value <= most and value == int(value) for value in tried)
    again = {value for value in tried if tried.count(value) > 1}
    assert again <= {search.high} and all(tried.count(value) <= TRIES for value in again)


@settings(max_examples=40)
@given(limit=st.integers(1, 5000), off=st.floats(-1, 1))
def test_latency_that_grows_with_the_number_needs_few_probes(limit: int, off: float) -> None:
    """A query of n samples takes (3 + n) of the (limit + 3.5) units between two."""
    search = PeakSearch(max(round(limit * 10**off), 1), MOST_SAMPLES, whole=True)
    while (value := search.next()) is not None:
        strain = (3 + value) / (limit + 3.5)
        search.add(Seen(value, strain <= 1, 2 - strain))
        search.hint = 2 * value / strain
    assert search.low == limit and len(search.seen) <= PROBES


def test_a_number_that_is_not_confirmed_goes_down_one_by_one_and_never_to_none() -> None:
    confirmation = Confirmation(3, whole=True)
    asked = []
    while (value := confirmation.next()) is not None:
        asked.append(value)
        confirmation.add(Seen(value, False))
    assert asked == [3, 2, 1] and confirmation.low == 0.0


# Confirmation


def test_a_valid_test_with_room_is_followed_by_one_further_up() -> None:
    confirmation = Confirmation(1000.0, capacity=1300.0)
    confirmation.add(Seen(1000.0, True, 1.1))  # the line from 1300 meets the limit at 1027
    value = confirmation.next()
    assert value is not None and 1015 < value < 1027
    confirmation.add(Seen(value, False, 0.99))
    assert confirmation.next() is None or 1000 < (confirmation.next() or 0) < value
    assert confirmation.low == 1000.0


def test_an_invalid_test_is_followed_by_one_as_far_down_as_it_was_over() -> None:
    confirmation = Confirmation(1000.0, capacity=1300.0)
    confirmation.add(Seen(1000.0, False, 0.9))  # the line from 1300 meets the limit at 967
    value = confirmation.next()
    assert value is not None and 955 < value < 967
    far_over = Confirmation(1000.0)
    far_over.add(Seen(1000.0, False, 0.1, 1001.0))
    assert far_over.next() == 985.0


def test_two_that_were_invalid_tell_by_a_line_how_far_down_to_go() -> None:
    confirmation = Confirmation(1000.0)
    confirmation.add(Seen(1000.0, False, 0.92))
    assert confirmation.next() == 990.0  # one alone tells nothing: a small step
    confirmation.add(Seen(990.0, False, 0.94))
    assert confirmation.next() == pytest.approx(0.995 * 960)
    confirmation.add(Seen(955.2, False, 0.93))  # a line that goes up the other way is none
    assert confirmation.next() == pytest.approx(0.99 * 955.2, abs=0.1)


def test_a_search_that_was_cut_short_far_from_the_edge_does_not_creep_up_at_full_length() -> None:
    search = PeakSearch(100.0)
    search.add(Seen(100.0, True, 9.0))
    search.add(Seen(400.0, False, 0.1, 300.0))
    assert not search.closed
    confirmation = Confirmation(search.low, 300.0, up=search.closed)
    confirmation.add(Seen(100.0, True, 9.0))
    assert confirmation.next() is None and confirmation.low == 100.0


def test_a_value_that_was_valid_with_little_room_is_tested_once_more() -> None:
    confirmation = Confirmation(1000.0, capacity=1300.0)
    confirmation.add(Seen(1000.0, True, 1.02))
    assert confirmation.next() == 1000.0
    confirmation.add(Seen(1000.0, True, 1.01))
    assert confirmation.next() is None and confirmation.low == 1000.0


def test_so_is_one_near_below_a_test_that_failed() -> None:
    confirmation = Confirmation(1000.0, up=False)
    confirmation.add(Seen(1000.0, False, 0.8))
    confirmation.add(Seen(990.0, True, 3.0))
    assert confirmation.next() == 990.0
    by_probes = Confirmation(1000.0, up=False, failed=1010.0)
    by_probes.add(Seen(1000.0, True, 3.0))
    assert by_probes.next() == 1000.0


def test_probes_that_failed_below_what_held_at_full_length_are_no_reason_to_doubt_it() -> None:
    confirmation = Confirmation(1000.0, up=False, failed=960.0)
    confirmation.add(Seen(1000.0, True, 3.0))
    assert confirmation.next() is None and confirmation.low == 1000.0


def test_a_value_that_is_valid_and_then_invalid_counts_no_more_and_the_search_goes_down() -> None:
    confirmation = Confirmation(1000.0, capacity=1300.0)
    confirmation.add(Seen(1000.0, True, 1.02))
    confirmation.add(Seen(1000.0, False, 0.98))
    assert confirmation.low == 0.0
    value = confirmation.next()
    assert value is not None and 980 < value < 1000
    confirmation.add(Seen(value, True, 1.2))
    assert confirmation.low == value == confirmation.next()


def test_the_last_test_is_not_spent_on_a_value_further_up() -> None:
    confirmation = Confirmation(1000.0, capacity=1300.0, most=2)
    confirmation.add(Seen(1000.0, True, 1.2))
    assert confirmation.next() is None and confirmation.low == 1000.0


def test_it_goes_on_from_the_tests_of_earlier_programs_within_the_same_bound() -> None:
    before = [Seen(100.0, True, 9.0)]
    confirmation = Confirmation(130.0, up=False, seen=before)
    assert confirmation.next() == 130.0
    used_up = Confirmation(130.0, most=1, seen=[Seen(100.0, True, 9.0)])
    assert used_up.next() is None and used_up.low == 100.0


def test_it_ends_after_so_many_tests_without_one_that_is_valid() -> None:
    confirmation = Confirmation(1000.0)
    while (value := confirmation.next()) is not None:
        confirmation.add(Seen(value, False, 0.5))
    assert len(confirmation.seen) == CONFIRMATIONS and confirmation.low == 0.0
