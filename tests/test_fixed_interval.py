"""The fixed-interval MultiStream by a hand-held clock: ticks, skipped ticks, when it ends, who passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.fixed_interval import NATURAL, RAN_OUT, Result, Schedule, Settings, Stop
from tests.old_multistream import settings

TIME_BUDGET_S = 20

MS = 1_000_000
START = 5_000_000_000  # no test may depend on a clock that begins at 0


def played(s: Settings, latencies_ms: list[float], loaded: int = 0) -> tuple[Schedule, Stop | None]:
    """A test whose queries take these times each, at a prompt driver."""
    schedule = Schedule(s, s.generated_queries(loaded))
    schedule.begin(START)
    now, stop = START, None
    open_queries: dict[int, int] = {}  # query -> when it will be done
    n = s.samples_per_query

    def answer(query: int) -> int:
        done = open_queries.pop(query)
        schedule.complete(np.arange(query * n, query * n + n), done)
        return done

    for latency_ms in latencies_ms:
        while (blocker := schedule.blocker()) is not None:
            now = max(now, answer(blocker))
        now = schedule.next_tick(now)
        query = schedule.issue(now)
        open_queries[query] = now + round(latency_ms * MS)
        stop = schedule.stop(now)
        if stop is not None:
            break
    for query in sorted(open_queries):
        answer(query)
    return schedule, stop


def result_of(latencies_ms: list[float], **changes: Any) -> Result:
    schedule, _ = played(settings(min_query_count=len(latencies_ms), **changes), latencies_ms)
    return schedule.result()


# Ticks


def test_queries_go_out_at_multiples_of_the_interval_after_the_start() -> None:
    schedule, _ = played(settings(min_query_count=4), [1.0] * 4)
    assert ((schedule.tick_ns - START) / MS).tolist() == [10, 20, 30, 40]
    assert schedule.intervals.tolist() == [1, 1, 1, 1]


def test_a_query_that_is_late_makes_the_next_one_wait_for_a_tick_in_the_future() -> None:
    schedule, _ = played(settings(min_query_count=4), [1.0, 25.0, 1.0, 1.0])
    assert ((schedule.tick_ns - START) / MS).tolist() == [10, 20, 50, 60]
    assert schedule.intervals.tolist() == [1, 1, 3, 1]


def test_an_answer_at_the_very_tick_is_in_time() -> None:
    schedule, _ = played(settings(min_query_count=3), [10.0, 10.000001, 1.0])
    assert schedule.intervals.tolist() == [1, 1, 2]


def test_several_queries_may_be_open_if_the_settings_say_so() -> None:
    late = [15.0] * 6
    one, _ = played(settings(min_query_count=6), late)
    two, _ = played(settings(min_query_count=6, max_async_queries=2), late)
    assert one.intervals.tolist() == [1, 2, 2, 2, 2, 2]
    assert two.intervals.tolist() == [1] * 6
    assert two.result().perf_constraints_met is False  # the last two count by their own latency


def test_intervals_that_are_no_whole_number_of_ns_do_not_drift() -> None:
    schedule, _ = played(settings(target_qps=15.0, min_query_count=3000), [1.0] * 3000)
    assert int(schedule.tick_ns[2999]) - START == 200 * 1_000_000_000


@given(
    latencies_us=st.lists(st.integers(0, 60_000), min_size=1, max_size=60),
    qps=st.sampled_from([20.0, 62.5, 100.0, 15.0]),
    ahead=st.integers(1, 3),
)
def test_no_query_goes_out_before_its_tick_or_beside_too_many_others(
    latencies_us: list[int], qps: float, ahead: int
) -> None:
    s = settings(target_qps=qps, min_query_count=len(latencies_us), max_async_queries=ahead)
    schedule, _ = played(s, [us / 1000 for us in latencies_us])
    n = schedule.issued
    ticks, done = schedule.tick_ns[:n], schedule.done_ns[:n]
    places = np.cumsum(schedule.intervals[:n])
    assert (ticks == [START + int(k / qps * 1e9) for k in places.tolist()]).all()
    assert (np.diff(ticks) > 0).all() and (schedule.issued_ns[:n] >= ticks).all()
    for query in range(ahead, n):
        assert ticks[query] >= done[query - ahead]
        # And not a tick later than it must.
        free = max(int(ticks[query - 1]) + 1, int(done[: query - ahead + 1].max()))
        assert START + int((places[query] - 1) / qps * 1e9) < free


# Verdicts


@pytest.mark.parametrize(
    ("queries", "late", "valid"),
    [(100, 0, True), (100, 1, False), (200, 1, True), (200, 2, False), (1000, 9, True), (1000, 10, False)],
)
def test_exactly_one_percent_of_late_queries_is_invalid(queries: int, late: int, valid: bool) -> None:
    found = result_of([15.0] * late + [1.0] * (queries - late))
    assert (found.perf_constraints_met, found.late_queries, found.valid) == (valid, late, valid)


def test_of_the_official_number_of_queries_2703_may_be_late_and_one_more_not() -> None:
    s = settings(min_query_count=270_336)
    zeros = np.zeros(270_336, np.int64)
    for late, valid in ((2703, True), (2704, False)):
        intervals = np.ones(270_336, np.int64)
        intervals[1 : late + 1] = 2
        schedule = Schedule(s, 270_336)
        schedule.issued, schedule.intervals = 270_336, intervals
        schedule._latency_ns.append(0)
        schedule._count.append(270_336 * s.samples_per_query)
        schedule.tick_ns = schedule.issued_ns = schedule.done_ns = zeros
        assert schedule.result().perf_constraints_met is valid


def test_the_last_query_is_late_when_it_takes_more_than_the_interval() -> None:
    assert result_of([1.0] * 99 + [10.0]).valid
    assert not result_of([1.0] * 99 + [10.1]).valid


def test_percentiles_are_at_place_n_times_p_of_the_sorted_list() -> None:
    found = result_of([float(i) / 100 for i in range(1000, 0, -1)])  # 10.00 ms down to 0.01
    assert [ns / MS for ns in found.query_latency_ns] == [5.01, 9.01, 9.51, 9.71, 9.91, 10.0]
    assert found.sample_latency_ns == found.query_latency_ns
    assert (found.min_latency_ns, found.max_latency_ns) == (10_000, 10 * MS)
    assert found.mean_latency_ns == 5_005_000


def test_samples_of_a_query_count_by_when_each_came_back() -> None:
    s = settings(min_query_count=1, samples_per_query=4)
    schedule = Schedule(s, 1)
    schedule.begin(START)
    tick = schedule.next_tick(START)
    schedule.issue(tick)
    assert schedule.complete(np.array([3, 0, 1]), tick + 1 * MS) == []
    assert schedule.outstanding == 1
    assert schedule.complete(np.array([2]), tick + 7 * MS) == [0]
    found = schedule.result()
    assert found.mean_latency_ns == 2_500_000 and found.query_latency_ns[0] == 7 * MS
    assert found.sample_latency_ns == [1 * MS, *[7 * MS] * 5]


def test_too_few_queries_or_too_short_a_test_is_invalid() -> None:
    s = settings(min_query_count=10, max_query_count=5)
    schedule, stop = played(s, [1.0] * 10)
    assert stop is not None and stop.error and "max_query_count" in stop.why
    found = schedule.result()
    assert (found.min_queries_met, found.min_duration_met, found.valid) == (False, True, False)
    schedule, stop = played(settings(min_query_count=1, min_duration_ms=500, max_duration_ms=100), [1.0] * 99)
    assert stop is not None and stop.error and "max_duration" in stop.why
    assert not schedule.result().min_duration_met


def test_a_test_ends_when_both_queries_and_duration_are_reached() -> None:
    schedule, stop = played(settings(min_query_count=10, min_duration_ms=500), [1.0] * 1000)
    assert (stop, schedule.issued) == (NATURAL, 50)
    schedule, stop = played(settings(min_query_count=100, min_duration_ms=500), [1.0] * 1000)
    assert (stop, schedule.issued) == (NATURAL, 100)


def test_an_audit_that_asks_each_sample_once_runs_out() -> None:
    s = settings(performance_issue_unique=True, min_query_count=100)
    schedule, stop = played(s, [1.0] * 50, loaded=104)
    assert (stop, schedule.issued) == (RAN_OUT, 20)


def test_queries_are_made_for_twice_the_duration() -> None:
    assert settings(min_query_count=1, min_duration_ms=1000).generated_queries(0) == 201
    assert (
        settings(target_qps=20.0, min_query_count=270_336, min_duration_ms=600_000).generated_queries(0)
        == 270_336
    )
    assert settings(accuracy=True).generated_queries(104) == 20


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    schedule = Schedule(settings(), 10)
    schedule.begin(START)
    with pytest.raises(ValueError, match="query 0 was answered more often than asked"):
        schedule.complete(np.array([0]), START)
    schedule.issue(schedule.next_tick(START))
    schedule.complete(np.array([0, 1, 2, 3]), START)
    with pytest.raises(ValueError, match="more often"):
        schedule.complete(np.array([3, 4]), START)
