"""How late the driver issued: the schedule is LoadGen's own, checked against the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from orchestrator.lateness import CHUNK, MOST_QUERIES, IssueLog, server_lateness, server_schedule_ns

TIME_BUDGET_S = 10
SEED = 3_133_965_575_612_453_542  # of a real round: its upper half must not count
QPS = 2000.0

# A process of its own: LoadGen takes one configuration a process.
REAL_SERVER = """
import json, queue, sys, tempfile, threading, time
import mlperf_loadgen as lg
mode, seed, qps = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
settings = lg.TestSettings()
settings.scenario, settings.mode = lg.TestScenario.Server, getattr(lg.TestMode, mode)
settings.server_target_qps, settings.schedule_rng_seed = qps, seed
settings.min_duration_ms, settings.min_query_count = 300, 600
settings.server_target_latency_ns = 10**9
issued, sets, waiting = [], [], queue.SimpleQueue()

def issue(ids, indices):
    issued.append((time.monotonic_ns(), len(ids)))
    waiting.put(ids)

def answer():
    while (ids := waiting.get()) is not None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(i, 0, 0) for i in ids])

threading.Thread(target=answer, daemon=True).start()
sut = lg.ConstructFastSUT(issue, lambda: None)
qsl = lg.ConstructQSL(600, 250, lambda indices: sets.append(len(issued)), lambda indices: None)
log = lg.LogSettings()
with tempfile.TemporaryDirectory() as folder:
    log.log_output.outdir, log.log_output.copy_summary_to_stdout = folder, False
    lg.StartTestWithLogSettings(sut, qsl, settings, log, folder + "/none")
print(json.dumps({"issued": issued, "sets": sets}))
"""


def log_of(issued: list[list[int]], sets: Sequence[int] = ()) -> IssueLog:
    log = IssueLog()
    for number, (at_ns, count) in enumerate(issued):
        if number in sets:
            log.start_set()
        log.add(at_ns, count)
    return log


@pytest.fixture(scope="module", params=["PerformanceOnly", "AccuracyOnly"])
def real(request: pytest.FixtureRequest) -> dict[str, Any]:
    command = [sys.executable, "-c", REAL_SERVER, request.param, str(SEED), str(QPS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]), mode=request.param)


def test_the_schedule_is_the_one_by_which_the_real_loadgen_issues(real: dict[str, Any]) -> None:
    lateness = server_lateness(log_of(real["issued"], real["sets"]), SEED, QPS)
    assert lateness is not None and lateness.queries == sum(n for _, n in real["issued"]) >= 600
    # A schedule of other gaps is tens of milliseconds away; a busy machine delays some issues, hardly half of
    # them.
    assert lateness.p50_ms < 3
    other = server_lateness(log_of(real["issued"], real["sets"]), SEED + 1, QPS)
    assert other is not None and other.p50_ms > 2 * lateness.p50_ms


def test_an_accuracy_test_begins_its_schedule_with_every_sample_set(real: dict[str, Any]) -> None:
    assert len(real["sets"]) == (3 if real["mode"] == "AccuracyOnly" else 1)


def test_the_first_query_is_due_at_once_and_none_before_the_one_before() -> None:
    schedule = server_schedule_ns(SEED, QPS, 5000)
    assert schedule[0] == 0 and len(schedule) == 5000
    assert (np.diff(schedule) >= 0).all()


def test_the_gaps_are_exponential_with_the_asked_mean() -> None:
    gaps = np.diff(server_schedule_ns(SEED, QPS, 200_001)) * 1e-9 * QPS
    assert abs(gaps.mean() - 1) < 0.01
    assert abs(np.quantile(gaps, 0.99) + np.log(0.01)) < 0.1


def test_only_the_lower_half_of_a_seed_counts() -> None:
    a, b = server_schedule_ns(SEED, QPS, 50), server_schedule_ns(SEED & 0xFFFFFFFF, QPS, 50)
    assert a.tolist() == b.tolist()
    assert a.tolist() != server_schedule_ns(SEED + 1, QPS, 50).tolist()


def test_a_longer_schedule_begins_like_a_shorter_one() -> None:
    assert server_schedule_ns(SEED, QPS, 100)[:40].tolist() == server_schedule_ns(SEED, QPS, 40).tolist()


@pytest.mark.parametrize("count", [-1, 0, 1])
def test_a_schedule_of_none_or_one_is_no_trouble(count: int) -> None:
    assert server_schedule_ns(SEED, QPS, count).tolist() == [0] * max(count, 0)


def test_a_driver_that_is_never_late_is_never_late() -> None:
    schedule = server_schedule_ns(SEED, QPS, 300)
    lateness = server_lateness(log_of([[int(t) + 10**12, 1] for t in schedule]), SEED, QPS)
    assert lateness is not None and (lateness.p50_ms, lateness.max_ms) == (0, 0)


def test_one_stall_shows_in_the_worst_and_not_in_the_median() -> None:
    times = [int(t) for t in server_schedule_ns(SEED, QPS, 300)]
    times[100] += 7_000_000
    lateness = server_lateness(log_of([[t, 1] for t in times]), SEED, QPS)
    assert lateness is not None and (lateness.p50_ms, lateness.max_ms) == (0, 7)


def test_a_coalesced_lump_makes_its_first_query_late_and_its_last_prompt() -> None:
    schedule = server_schedule_ns(SEED, QPS, 8)
    lateness = server_lateness(log_of([[0, 1], [int(schedule[7]), 7]]), SEED, QPS)
    assert lateness is not None and lateness.queries == 8
    assert lateness.max_ms == pytest.approx((schedule[7] - schedule[1]) / 1e6, abs=1e-3)


def test_no_callback_gives_no_lateness_and_a_full_log_stops_growing() -> None:
    assert server_lateness(IssueLog(), SEED, QPS) is None
    log = IssueLog(capacity=3)
    for at in range(9):
        log.add(at, 2)
    assert [a.tolist() for a in log.lumps] == [[0, 1, 2], [2, 2, 2]]
    assert server_lateness(log, SEED, QPS) is not None


def test_a_schedule_drawn_in_chunks_is_one_schedule() -> None:
    count = 2 * CHUNK + 77
    words = np.random.RandomState(SEED & 0xFFFFFFFF).randint(0, 2**32, 2 * (count - 1), np.uint32)
    u = (words[0::2] + words[1::2] * 2.0**32) / 2.0**64
    gaps = np.floor(-np.log1p(-u) / QPS * 1e9).astype(np.int64)
    assert np.array_equal(server_schedule_ns(SEED, QPS, count), np.concatenate([[0], np.cumsum(gaps)]))


def test_only_the_first_queries_are_looked_at_and_their_number_is_told() -> None:
    times = [int(t) for t in server_schedule_ns(SEED, QPS, 300)]
    times[200] += 7_000_000
    log = log_of([[t, 1] for t in times])
    all_of_them, some = server_lateness(log, SEED, QPS), server_lateness(log, SEED, QPS, most=150)
    assert all_of_them is not None and (all_of_them.queries, all_of_them.max_ms) == (300, 7)
    assert some is not None and (some.queries, some.max_ms) == (150, 0)
    lumps = server_lateness(log_of([[0, 4], [10**9, 4], [2 * 10**9, 4]], sets=[2]), SEED, QPS, most=6)
    assert lumps is not None and lumps.queries == 6
    over_sets = server_lateness(log_of([[0, 4], [0, 4], [0, 4]], sets=[1, 2]), SEED, QPS, most=9)
    assert over_sets is not None and over_sets.queries == 9
    assert MOST_QUERIES == 5_000_000
