"""Our generator against a real LoadGen of the old rounds: the same samples, verdicts and ns."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.fixed_interval import LOGGED_PERCENTILES, LoggedSamples, Result, Schedule
from orchestrator.logs import DetailLog, read_detail
from orchestrator.old_draw import query_starts, sample_sets
from orchestrator.old_logs import GENERATOR, OldLogs
from tests.old_multistream import MANIFEST, RealTest, run_real, settings
from tests.program import Program

TIME_BUDGET_S = 120  # for two modules; nothing without one

MODULES: list[Path | None] = [Path(p) for p in os.environ.get("LOADGRID_OLD_LOADGEN", "").split(":") if p]


@pytest.fixture(params=MODULES or [None], ids=lambda path: path.parent.name if path else "none")
def module(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("LOADGRID_OLD_LOADGEN names no folder of a LoadGen module built from v1.0 or v1.1")
    return request.param


def ours(s: Any, *, count: int, at_once: int) -> tuple[list[list[int]], list[list[int]]]:
    """What our generator loads and asks."""
    sets = sample_sets(
        count, s.performance_sample_count_override or at_once, s.samples_per_query, s.qsl_rng_seed
    )
    sets = sets if s.accuracy else sets[:1]
    asked = []
    for drawn in sets:
        queries = s.generated_queries(len(drawn.indices))
        seed, n = s.sample_index_rng_seed, s.samples_per_query
        starts = query_starts(drawn, n, seed, queries, kind=s.kind, same=s.performance_issue_same_index)
        asked += [drawn.indices[start : start + n].tolist() for start in starts.tolist()]
    return [drawn.indices.tolist() for drawn in sets], asked


@pytest.mark.parametrize(
    ("changes", "count", "at_once"),
    [
        ({}, 5000, 100),
        ({"samples_per_query": 1}, 101, 33),
        ({"samples_per_query": 130}, 1000, 100),  # more than are loaded: the set repeats
        ({"min_query_count": 20, "min_duration_ms": 50}, 70_000, 64),  # the other way of shuffling
        ({"performance_sample_count_override": 64}, 100, 100),
        ({"performance_issue_unique": True}, 500, 100),
        ({"performance_issue_same": True, "performance_issue_same_index": 3}, 500, 100),
        ({"accuracy": True}, 105, 50),
        ({"accuracy": True, "samples_per_query": 8}, 500, 200),
        ({"max_async_queries": 3}, 500, 100),
    ],
)  # fmt: skip
def test_it_loads_and_asks_for_the_same_samples(
    tmp_path: Path, module: Path, changes: dict[str, Any], count: int, at_once: int
) -> None:
    s = settings(**{"target_qps": 2000.0, **changes})
    real = run_real(module, tmp_path / "real", s, count=count, at_once=at_once)
    loaded, asked = ours(s, count=count, at_once=at_once)
    assert loaded == real.loaded
    if not s.accuracy:  # which makes them set by set
        assert real.detail.values["generated_query_count"] == len(asked)
    # A test that has enough does not ask all that it made.
    assert asked[: len(real.issued)] == real.issued
    if s.kind != "random":
        assert len(asked) == len(real.issued)


def test_it_logs_the_answers_of_the_same_samples(tmp_path: Path, module: Path) -> None:
    s = settings(target_qps=2000.0, accuracy_log_rng_seed=720381539243781796, accuracy_log_sampling_target=60)
    real = run_real(module, tmp_path / "real", s, count=500, at_once=100)
    chosen = LoggedSamples(s)
    kept = np.concatenate([chosen.of_next_query() for _ in real.issued])
    seq_ids = sorted(entry["seq_id"] for entry in real.answers)
    assert np.flatnonzero(kept).tolist() == seq_ids and 20 < len(seq_ids) < 120


# Verdicts


def replayed(s: Any, real: RealTest) -> Schedule:
    """Our book of what the real LoadGen saw, at its times."""
    n = s.samples_per_query
    schedule = Schedule(s, max(len(real.queries), 1))
    schedule.begin(real.start_ns)
    for number, query in enumerate(real.queries):
        assert schedule.blocker() is None
        assert schedule.next_tick(query.looked_ns) == query.tick_ns
        schedule.issue(query.issued_ns)
        schedule.complete(np.arange(number * n, number * n + n), query.done_ns)
        over = schedule.stop(query.issued_ns)
        assert (over is not None) == (number == len(real.queries) - 1)
    return schedule


def shown(result: Result) -> dict[str, Any]:
    """Our result under the keys of the detail log."""
    found: dict[str, Any] = {
        "result_validity": "VALID" if result.valid else "INVALID",
        "result_perf_constraints_met": result.perf_constraints_met,
        "result_min_duration_met": result.min_duration_met,
        "result_min_queries_met": result.min_queries_met,
        "result_min_latency_ns": result.min_latency_ns,
        "result_max_latency_ns": result.max_latency_ns,
        "result_mean_latency_ns": result.mean_latency_ns,
    }
    rows = zip(
        LOGGED_PERCENTILES, result.intervals, result.query_latency_ns, result.sample_latency_ns, strict=True
    )
    for percentile, ticks, query_ns, sample_ns in rows:
        name = f"result_{100 * percentile:.2f}_percentile"
        found[f"{name}_num_intervals_between_queries"] = ticks
        found[f"{name}_per_query_latency_ns"] = query_ns
        found[f"{name}_latency_ns"] = sample_ns
    return found


CASES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "none late": ({}, {}),
    "exactly 1 %": ({}, {5: 0.05}),
    "the last one late": ({}, {99: 0.05}),
    "a lower percentile": ({"target_latency_percentile": 0.9}, dict.fromkeys(range(5, 9), 0.025)),
    "too short": ({"min_duration_ms": 600, "max_query_count": 20}, {}),
    "stopped by max_duration": ({"max_duration_ms": 300}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_same_verdict_and_numbers_for_the_same_times(
    tmp_path: Path, module: Path, case: str
) -> None:
    changes, slow = CASES[case]
    s = settings(target_qps=50.0, **changes)
    real = run_real(module, tmp_path / "real", s, count=500, at_once=100, slow=slow)
    schedule = replayed(s, real)
    result = schedule.result()
    theirs = {key: value for key, value in real.detail.values.items() if key in shown(result)}
    assert shown(result) == theirs and len(theirs) == 25
    if slow and not changes:
        assert not result.valid
    if case == "stopped by max_duration":
        over = schedule.stop(real.queries[-1].issued_ns)
        assert over is not None and over.error and len(real.detail.errors) == 1


def test_the_same_manifest_runs_with_the_rounds_own_loadgen_and_without(tmp_path: Path, module: Path) -> None:
    records = []
    for name, path in (("ours", ""), ("theirs", f"  path: {module}\n")):
        folder = tmp_path / name
        folder.mkdir()
        file = folder / "streams.yaml"
        file.write_text(MANIFEST.format(round="v1.0") + path)
        with Program(folder, "run", file) as program:
            assert program.end(40.0) in (0, 1), program.said
        records.append(program.record("MultiStream-performance", "streams"))
    mine, theirs = records
    assert (mine.settings, mine.seeds, mine.hashes["user_conf"]) == (
        theirs.settings,
        theirs.seeds,
        theirs.hashes["user_conf"],
    )
    assert mine.driver["completed"] == theirs.driver["completed"] == 30 * 4
    assert mine.result.value == theirs.result.value == 4.0
    assert mine.loadgen["version"] == GENERATOR and " @ " in theirs.loadgen["version"]


# Forms


def keys_of(log: Path) -> list[str]:
    return re.findall(r':::MLLOG \{"key": "([^"]+)"', log.read_text())


def written(folder: Path, s: Any, real: RealTest, count: int) -> DetailLog:
    """Our logs of the same test."""
    folder.mkdir()
    with OldLogs(folder) as logs:
        logs.header(s, 500, 100)
        logs.detail("loaded_qsl_set", np.array(real.loaded[0]))
        logs.queries_made(s, count)
        logs.detail("generic_message", "")
        logs.power_window(0.0, 1)
        logs.result(s, replayed(s, real).result(), 100)
    return read_detail(folder / "mlperf_log_detail.txt")


def test_its_logs_have_the_same_keys_in_the_same_order_and_values(tmp_path: Path, module: Path) -> None:
    s = settings(target_qps=62.5, target_latency_percentile=0.97)
    real = run_real(module, tmp_path / "real", s, count=500, at_once=100, slow={5: 0.04})
    log = written(tmp_path / "ours", s, real, real.detail.values["generated_query_count"])
    theirs = [k for k in keys_of(tmp_path / "real" / "mlperf_log_detail.txt") if not k.startswith("logger_")]
    mine = keys_of(tmp_path / "ours" / "mlperf_log_detail.txt")
    mine.remove("warning_generic_message")
    assert mine == theirs
    own = {"generic_message", "test_datetime", "sut_name", "qsl_name", "power_begin", "power_end"}
    own |= {key for key in theirs if key.startswith("loadgen_") or key == "result_invalid_reason"}
    assert {k: log.values[k] for k in mine if k not in own} == {
        k: real.detail.values[k] for k in mine if k not in own
    }


def test_its_summary_differs_in_the_names_and_the_warning_only(tmp_path: Path, module: Path) -> None:
    s = settings(target_qps=62.5)
    real = run_real(module, tmp_path / "real", s, count=500, at_once=100)
    written(tmp_path / "ours", s, real, 100)
    summary = (tmp_path / "ours" / "mlperf_log_summary.txt").read_text()
    summary = summary.replace("SUT name : LoadGrid", "SUT name : PySUT")
    summary = summary.replace(
        "1 warning encountered. See detailed log.", "No warnings encountered during test."
    )
    drop = re.compile(r"(?m)^ \* .*\n")  # recommendations are in words of our own
    assert drop.sub("", summary) == drop.sub("", real.summary)
