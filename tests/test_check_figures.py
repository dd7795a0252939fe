"""`loadgrid check`: what a result is judged by stands in its detail log, once, and agrees with itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.check.compliance import compliance
from orchestrator.check.consistency import consistency
from orchestrator.check.judged_keys import ALWAYS, OF_SCENARIO, SINCE_V2
from orchestrator.check.performance import performance
from orchestrator.paths import DETAIL, USER_CONF
from tests import made_cell_logs
from tests.log_faults import changed, found, kept, text, tree_of
from tests.made_logs import mllog

TIME_BUDGET_S = 30

V1, V6, EDGE = "v1.0-datacenter", "v6.1-edge", "v1.0-edge"
BERT = "v1.1-edge"

# What the official checkers did where one key was taken out of the detail log, the summary left as it was.
MEASURED = {
    (V1, "Server", "error"): (
        "effective_scenario",
        "effective_min_duration_ms",
        "effective_min_query_count",
        "effective_performance_sample_count",
        "result_validity",
        "result_scheduled_samples_per_sec",
        "result_99.00_percentile_latency_ns",
    ),
    (V1, "Offline", "error"): (
        "effective_samples_per_query",
        "effective_min_query_count",
        "result_samples_per_second",
    ),
    (BERT, "SingleStream", "error"): ("result_90.00_percentile_latency_ns", "result_validity"),
    (EDGE, "MultiStream", "error"): (
        "result_99.00_percentile_per_query_latency_ns",
        "effective_samples_per_query",
    ),
    (V1, "Server", "logged"): ("effective_qsl_rng_seed", "effective_schedule_rng_seed"),
    (V6, "SingleStream", "error"): (
        "effective_qsl_rng_seed",
        "effective_min_duration_ms",
        "early_stopping_met",
        "early_stopping_latency_ss",
    ),
    (V6, "Offline", "error"): (
        "effective_samples_per_query",
        "effective_min_query_count",
        "result_samples_per_second",
    ),
}
CASES = [(*case, key) for case, keys in MEASURED.items() for key in keys]


@pytest.mark.parametrize(("kind", "scenario", "official", "key"), CASES)
def test_a_key_that_the_summary_alone_has_is_missing_as_for_the_official_checker(
    kind: str, scenario: str, official: str, key: str
) -> None:
    tree = tree_of(kind)
    log = tree.performance(scenario) / DETAIL
    with kept(log):
        made_cell_logs.changed(log, **{key: None})
        seen = set(found(performance, tree, scenario).values())
    assert official in seen and (official == "error" or "error" not in seen)


@pytest.mark.parametrize(
    ("kind", "scenario"),
    [(V1, "Server"), (V1, "Offline"), (EDGE, "MultiStream"), (EDGE, "SingleStream"), (V6, "SingleStream")],
)
def test_every_judged_key_is_missed_in_turn(kind: str, scenario: str) -> None:
    tree = tree_of(kind)
    log = tree.performance(scenario) / DETAIL
    keys = [*ALWAYS, *OF_SCENARIO[scenario], *(SINCE_V2 if kind == V6 else ())]
    whole = log.read_text().splitlines(keepends=True)
    for key in keys:
        left = [line for line in whole if json.loads(line.removeprefix(":::MLLOG "))["key"] != key]
        assert len(left) == len(whole) - 1, key
        with text(log, "".join(left)):
            assert "missing-key" in found(performance, tree, scenario), key


def test_a_missing_key_of_a_compliance_test_is_found() -> None:
    tree = tree_of(V1)
    with changed(tree.compliance("TEST05") / "performance" / "run_1", generated_query_count=None):
        assert found(compliance, tree).get("missing-key") == "unseen"


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    (V1, "Server", {"result_scheduled_samples_per_sec": 10_000}),
    (V1, "Server", {"result_completed_samples_per_sec": 1_100}),
    (V1, "Server", {"generated_query_count": 1000}),
    (V1, "Server", {"generated_query_duration": 60 * 10**9}),
    (V1, "Server", {"power_end": "03-08-2021 00:30:06.241"}),
    (V1, "Server", {"generated_query_duration": 700 * 10**9, "generated_query_count": 700_000}),
    (EDGE, "SingleStream", {"result_qps_with_loadgen_overhead": 400.0}),
    (EDGE, "SingleStream", {"generated_query_count": 60_000}),
    (EDGE, "SingleStream", {"generated_query_duration": 60 * 10**9}),
    (EDGE, "MultiStream", {"generated_query_count": 1000}),
    (V6, "SingleStream", {"early_stopping_latency_ss": 400_000}),
    (V6, "MultiStream", {"early_stopping_latency_ms": 400_000}),
    (V6, "SingleStream", {"result_query_count": 10**6}),
    (V6, "SingleStream", {"result_query_count": 10**6, "generated_query_count": 10**6}),
]


@pytest.mark.parametrize(("kind", "scenario", "values"), WRONG)
def test_a_headline_figure_that_its_counts_and_times_belie_is_found(
    kind: str, scenario: str, values: dict[str, Any]
) -> None:
    tree = tree_of(kind)
    with changed(tree.performance(scenario), **values):
        assert found(performance, tree, scenario) == {"figures-contradict": "unseen"}


def test_a_server_test_without_its_99th_percentile_has_no_result() -> None:
    tree = tree_of(V1)
    with changed(tree.performance("Server"), **{"result_99.00_percentile_latency_ns": None}):
        assert found(performance, tree)["no-result"] == "error"


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("result_validity", "VALID"),
        ("effective_min_duration_ms", 600_000),
        ("generated_query_count", 999_999),
    ],
)
def test_a_key_that_stands_there_with_two_values_is_found(key: str, first: Any) -> None:
    tree = tree_of(V1)
    log = tree.performance("Server") / DETAIL
    later = mllog(key, "INVALID" if key == "result_validity" else 700_000)
    with text(log, mllog(key, first) + log.read_text() + later):
        assert "repeated-key" in found(performance, tree)
    with text(log, log.read_text() + mllog("generic_message", "once more")):
        assert found(performance, tree) == {}


def test_a_copied_log_is_found_by_its_figures() -> None:
    tree = tree_of(V1)
    stolen = (tree.performance("Server") / DETAIL).read_text().replace("Server", "Offline")
    with text(tree.performance("Offline") / DETAIL, stolen):
        assert "copied-log" in found(consistency, tree, "Offline")


SEED = "*.Server.target_qps = 1000\n*.*.qsl_rng_seed = "
CONFS = [
    (V1, "Server", "# nothing\n", "user-conf-differs"),
    (V1, "Server", "rnnt.Server.target_qps = 3\n", "user-conf-differs"),
    (V1, "Server", f"{SEED}7322528924094909335\n", "user-conf-differs"),
    (V1, "Server", "*.Server.target_qps = 1000\n*.*.min_query_count = 270335\n", "user-conf-differs"),
    (V1, "Server", "*.Server.target_qps = 1000\nnonsense\n", "user-conf-unread"),
    (V1, "Server", "*.Server.target_qps = 1000\nServer.mode = 2\n", "user-conf-unread"),
    (
        V1,
        "Server",
        "*.Server.target_qps = 1000\n*.*.performance_sample_count_override = 1\n",
        "user-conf-differs",
    ),
    (V1, "Server", "*.Server.target_qps = 1000\n*.*.performance_sample_count_override = 0\n", None),
    (V1, "Server", f"{SEED}7322528924094909334\n", None),
    (V1, "Server", "# a comment\n\n  *.Server.target_qps = 1000.0  # a rate\n", None),
]


@pytest.mark.parametrize(("kind", "scenario", "conf", "rule"), CONFS)
def test_a_user_conf_is_held_against_the_log_to_the_last_digit(
    kind: str, scenario: str, conf: str, rule: str | None
) -> None:
    tree = tree_of(kind)
    with text(tree.measurements(scenario) / USER_CONF, conf):
        assert set(found(performance, tree, scenario)) == ({rule} if rule else set())


@pytest.mark.parametrize(("told", "rules"), [("4.4", set()), ("5", {"user-conf-differs"})])
def test_old_loadgens_read_a_latency_in_whole_milliseconds(told: str, rules: set[str]) -> None:
    tree = tree_of(BERT)
    log = tree.performance("SingleStream") / DETAIL
    conf = f"*.SingleStream.target_latency = {told}\n"
    line = mllog("requested_single_stream_expected_latency_ns", 4_000_000)
    with text(log, log.read_text() + line), text(tree.measurements("SingleStream") / USER_CONF, conf):
        assert set(found(performance, tree, "SingleStream")) == rules
