"""early_stopping.py and course.py: LoadGen's bound, and where a running test is heading."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.course import CourseWatch
from orchestrator.early_stopping import (
    fewest_by_percentile,
    fewest_in_limit,
    most_late,
    most_late_by_percentile,
)
from orchestrator.manifest import parse_manifest
from orchestrator.phrases import course_in_words
from orchestrator.plan import TestSpec, plan
from orchestrator.rules import load_round

TIME_BUDGET_S = 10


def spec_of(**server: Any) -> TestSpec:
    """A Server test of 15 ms; by default 100 queries a second for 100 s."""
    words = {"target_qps": 100, "target_latency": 15, "min_duration": 100000, "min_query_count": 1} | server
    text = f"""
round: v6.1
suite: edge
division: open
benchmark: resnet
scenarios: [Server]
runs: [performance]
task: {{name: "null", count: 1024}}
backend: {{engine: echo}}
loadgen:
  Server: {words}
""".replace("'", "")
    manifest = parse_manifest(text.encode())
    return plan(manifest, load_round("v6.1"))[0]


def exact_chance(queries: int, late: int, share: float) -> float:
    return sum(math.comb(queries, k) * share**k * (1 - share) ** (queries - k) for k in range(late + 1))


def test_the_bound_is_that_of_loadgen_s_rule() -> None:
    assert fewest_in_limit(0) == 459  # LoadGen's first answer at the 99th: ceil(log(0.01) / log(0.99))
    assert fewest_in_limit(1) + 1 == 662  # the fewest queries of a stream's estimate for MultiStream
    assert most_late(270_336) == 2583  # of the 2703 that one in a hundred would be


@pytest.mark.parametrize("queries", [3, 458])
def test_too_few_queries_pass_with_no_late_one_at_all(queries: int) -> None:
    assert most_late(queries) is None
    assert most_late(459) == 0


@settings(max_examples=30, deadline=None)
@given(late=st.integers(0, 40), percentile=st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bound_is_the_first_that_the_binomial_allows(late: int, percentile: float) -> None:
    fewest = fewest_in_limit(late, percentile)
    share = 1 - percentile
    assert exact_chance(fewest + late, late, share) < 0.01
    assert exact_chance(fewest + late - 1, late, share) >= 0.01


@settings(max_examples=25, deadline=None)
@given(queries=st.integers(459, 50_000_000))
def test_one_more_late_query_than_allowed_is_too_many_at_any_size(queries: int) -> None:
    most = most_late(queries)
    assert most is not None
    assert most + fewest_in_limit(most) <= queries < most + 1 + fewest_in_limit(most + 1)


@given(late=st.integers(0, 100_000), percentile=st.sampled_from([0.9, 0.97, 0.99]))
def test_old_loadgens_look_at_one_latency_of_the_sorted_ones(late: int, percentile: float) -> None:
    queries = fewest_by_percentile(late, percentile)
    # result_NN_percentile_latency: sorted_latencies[n * percentile] must not be late.
    assert queries - late > int(queries * percentile) or late == 0
    assert late == 0 or queries - 1 - late <= int((queries - 1) * percentile)


def test_an_old_loadgen_allows_more_late_queries_than_early_stopping_does() -> None:
    assert (most_late_by_percentile(300_001), most_late(300_001)) == (3000, 2873)
    old = CourseWatch(spec_of(), early_stopping=False).look(50.0, 5000, 5000, 90)
    new = CourseWatch(spec_of()).look(50.0, 5000, 5000, 90)
    assert old is not None
    assert new is not None
    assert (old.allowed_late, new.allowed_late) == (100, 77)
    assert (old.word, new.word) == ("at risk", "cannot pass")


def test_a_test_within_the_bound_is_on_course_and_needs_the_rest_of_its_queries() -> None:
    watch = CourseWatch(spec_of())
    course = watch.look(10.0, issued=1005, completed=1000, late=3)
    assert course is not None
    assert (course.word, course.late, course.expected, course.allowed_late) == ("on course", 3, 10_001, 77)
    assert course.more_needed == 3 + fewest_in_limit(3) - 1000
    assert watch.look(20.0, 5000, 5000, 3).more_needed == 0  # type: ignore[union-attr]


def test_a_rate_of_late_queries_above_the_bound_is_a_risk_before_the_bound_is_reached() -> None:
    course = CourseWatch(spec_of()).look(10.0, issued=1000, completed=1000, late=20)
    assert course is not None
    assert course.word == "at risk"
    assert "20 of 1,000" in course.why


def test_the_first_queries_are_too_few_for_a_forecast() -> None:
    course = CourseWatch(spec_of()).look(1.0, issued=100, completed=100, late=20)
    assert course is not None
    assert course.word == "on course"


def test_more_late_queries_than_any_length_of_the_test_allows_cannot_be_made_good() -> None:
    watch = CourseWatch(spec_of())
    most = most_late(10_001 + 601)  # six roots more than expected: arrivals are random
    assert most == 82
    last, over = watch.look(50.0, 5000, 5000, most), watch.look(50.1, 5000, 5000, most + 1)
    assert last is not None
    assert over is not None
    assert (last.word, over.word) == ("at risk", "cannot pass")
    assert "longer than 15 ms" in over.why


def test_queries_that_pile_up_are_a_risk_although_none_was_late_yet() -> None:
    watch = CourseWatch(spec_of(target_latency=1000))
    courses = [watch.look(0.5 * i, issued=50 * i, completed=45 * i, late=0) for i in range(1, 25)]
    assert courses[4] is not None
    assert courses[4].word == "on course"  # the trend of two seconds says nothing
    assert courses[-1] is not None
    assert courses[-1].word == "at risk"
    assert courses[-1].outstanding_per_s == pytest.approx(10.0)


def test_a_steady_number_of_outstanding_queries_is_no_risk() -> None:
    watch = CourseWatch(spec_of(target_latency=1000))
    for i in range(1, 60):
        course = watch.look(0.5 * i, issued=50 * i + i % 3, completed=50 * i - 20, late=0)
        assert course is not None
        assert course.word == "on course"


def test_the_noise_of_a_short_limit_is_no_trend() -> None:
    """Two or three in flight at 300 a second and a limit of 15 ms: five are already the whole limit."""
    random, watch = np.random.default_rng(5), CourseWatch(spec_of(target_qps=300))
    for tick in range(1, 900):
        done = 30 * tick
        course = watch.look(0.1 * tick, done + int(random.poisson(2.5)), done, 0, at_once=False)
        assert course is not None and course.word == "on course", course


def test_a_queue_that_fills_once_at_the_start_is_no_trend() -> None:
    watch = CourseWatch(spec_of(target_qps=300, target_latency=100))
    for tick in range(100):
        course = watch.look(0.1 * tick, 30 * tick, max(30 * tick - 12, 0), 0, at_once=False)
        assert course is None or course.word == "on course", course


def test_a_risk_gives_the_figures_that_explain_it() -> None:
    watch = CourseWatch(spec_of(target_qps=1000, target_latency=100))
    for tick in range(1, 71):
        course = watch.look(0.1 * tick, 100 * tick, 98 * tick, 0)
    assert course is not None and course.word == "at risk"
    assert course.why == "queries pile up: 140 now, 20 more each second; 100 take 100 ms"


def test_more_late_queries_than_the_expected_end_allows_are_told_as_that() -> None:
    course = CourseWatch(spec_of()).look(60.0, issued=6000, completed=6000, late=79)
    assert course is not None and course.word == "at risk"
    assert course.why == "79 of 6,000 were late, 77 of 10,001 may be"
    more = fewest_in_limit(79) + 79 - 6000
    assert course.more_needed == more > 4001  # more than are left
    assert course_in_words(course) == f"at risk: {course.why}; {more:,} more within the limit are needed"


def test_a_test_too_short_for_any_proof_cannot_pass() -> None:
    course = CourseWatch(spec_of(min_duration=1000)).look(0.5, 50, 50, 0)
    assert course is not None
    assert course.word == "cannot pass"
    assert "459" in course.why


def test_other_scenarios_have_no_such_verdict() -> None:
    offline = spec_of().model_copy(update={"scenario": "Offline"})
    assert CourseWatch(offline).look(1.0, 10, 10, 10) is None
    assert CourseWatch(spec_of()).look(1.0, 10, 0, 0) is None


@pytest.mark.parametrize(
    ("queries", "word", "why"),
    [
        # LoadGen asks for a time: at 457 a second it asked 457 to 475 queries in this second, by its seed.
        (457, "at risk", "may prove nothing: 459 are the fewest"),
        (300, "cannot pass", "proves nothing: 459 are the fewest"),
    ],
)
def test_a_test_near_the_fewest_queries_may_still_pass(queries: int, word: str, why: str) -> None:
    watch = CourseWatch(spec_of(target_qps=queries, min_duration=1000))
    beforehand = watch.too_few()
    course = watch.look(0.5, 50, 50, 0)
    assert course is not None and course.word == word and why in course.why
    assert beforehand == (course.why if word == "cannot pass" else None)
