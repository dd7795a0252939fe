"""What a worker is expected to need: from its warm-up, and from its batches since."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.pace import FLOOR_S, Pace, even_warm_ups

TIME_BUDGET_S = 3


def test_sizes_between_two_measured_ones_are_interpolated() -> None:
    pace = Pace([(1, 0.010), (8, 0.024)], 8)
    assert pace.expected_s[4] == pytest.approx(0.016)
    assert (pace.first_s, pace.batch_s, pace.sample_s) == pytest.approx((0.010, 0.024, 0.003))


def test_sizes_beyond_the_measured_ones_cost_in_proportion_and_below_them_the_same() -> None:
    pace = Pace([(4, 0.010)], 8)
    assert pace.expected_s[8] == pytest.approx(0.020)
    assert pace.expected_s[1] == pytest.approx(0.010)


def test_the_order_of_the_warm_up_does_not_matter() -> None:
    assert Pace([(8, 0.02), (1, 0.01)], 8).expected_s == Pace([(1, 0.01), (8, 0.02)], 8).expected_s


def test_an_engine_that_takes_no_time_is_given_a_floor() -> None:
    pace = Pace([(1, 0.0), (8, 0.0)], 8)
    assert pace.sample_s == pytest.approx(FLOOR_S) and pace.first_s == pytest.approx(FLOOR_S)


def test_a_worker_that_slows_down_is_believed_after_a_while() -> None:
    pace = Pace([(1, 0.010), (8, 0.024)], 8)
    pace.observe(8, 0.072)
    assert pace.factor < 1.2
    for _ in range(100):
        pace.observe(8, 0.072)
    assert pace.batch_s == pytest.approx(0.072, rel=0.02)


def test_a_small_batch_does_not_look_like_a_slow_worker() -> None:
    pace = Pace([(1, 0.010), (8, 0.024)], 8)
    for _ in range(50):
        pace.observe(1, 0.010)
    assert pace.factor == pytest.approx(1)


@pytest.mark.parametrize("compute_s", [-1e9, 0.0, 1e12])
@pytest.mark.parametrize("size", [0, 8, 2**32 - 1])
def test_an_absurd_batch_moves_the_pace_by_a_bounded_step(size: int, compute_s: float) -> None:
    pace = Pace([(1, 0.010), (8, 0.024)], 8)
    pace.observe(size, compute_s)
    assert 0.9 < pace.factor < 3.5


def test_twins_begin_with_the_pace_of_the_fastest() -> None:
    def worker(device: str, *seconds: float) -> dict[str, Any]:
        return {"device": device, "model_hash": "m", "warm_up": [[1, seconds[0]], [8, seconds[1]]]}

    found = even_warm_ups([worker("cpu", 0.17, 0.06), worker("cpu", 0.03, 0.07), worker("cuda", 0.01, 0.02)])
    assert found == [[(1, 0.03), (8, 0.06)], [(1, 0.03), (8, 0.06)], [(1, 0.01), (8, 0.02)]]
    slowed = worker("cpu", 0.3, 0.6) | {"slowed": 10.0}
    assert even_warm_ups([worker("cpu", 0.03, 0.06), slowed])[1] == [(1, 0.3), (8, 0.6)]
