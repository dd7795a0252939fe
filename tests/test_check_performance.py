"""The gate's checks of performance logs: each single fault in a made result is found, a good one passes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.check.finding import context_of
from orchestrator.check.gate import judge
from orchestrator.check.performance import performance
from orchestrator.old_logs import GENERATOR
from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY, USER_CONF
from orchestrator.rules import load_round
from tests.log_faults import changed, found, kept, text, tree_of
from tests.made_logs import mllog
from tests.made_trees import KINDS

TIME_BUDGET_S = 30

V1, V6, EDGE, OPEN = "v1.0-datacenter", "v6.1-edge", "v1.0-edge", "v1.0-open"
PERMUTED = "effective_sample_concatenate_permutation"
SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_performance_test_has_no_finding(kind: str) -> None:
    tree = tree_of(kind)
    assert [found(performance, tree, scenario) for scenario in tree.kind.scenarios] == [{}] * len(
        tree.kind.scenarios
    )


# kind, scenario, changed values of the log, rule, what the official checker of that round does
FAULTS: list[tuple[str, str, dict[str, Any], str, str]] = [
    (V1, "Server", {"result_validity": "INVALID"}, "invalid-result", "error"),
    (V6, "SingleStream", {"result_validity": "INVALID"}, "invalid-result", "unseen"),
    (OPEN, "Offline", {"result_validity": "INVALID"}, "invalid-result", "error"),
    (V1, "Server", {"result_validity": None}, "invalid-result", "error"),
    (V1, "Server", {"result_min_duration_met": False}, "verdict-contradicts", "unseen"),
    (V1, "Server", {"effective_test_mode": "SubmissionRun"}, "wrong-mode", "unseen"),
    (V1, "Server", {"effective_test_mode": "AccuracyOnly"}, "wrong-mode", "unseen"),
    (V1, "Offline", {"effective_scenario": "Server"}, "wrong-scenario", "error"),
    (V1, "Server", {"effective_scenario": "Offline"}, "wrong-scenario", "unseen"),
    (V1, "Server", {"effective_scenario": None}, "wrong-scenario", "error"),
    (V1, "Offline", {"effective_scenario": "SingleStream"}, "inferred-off-edge", "unseen"),
    (V6, "SingleStream", {"effective_scenario": "Offline"}, "wrong-scenario", "error"),
    *[(V1, "Server", {f"effective_{seed}": 1}, "wrong-seed", "logged") for seed in SEEDS],
    *[(V6, "Offline", {f"effective_{seed}": 1}, "wrong-seed", "error") for seed in SEEDS],
    (V1, "Server", {"effective_qsl_rng_seed": None}, "wrong-seed", "logged"),
    (V1, "Server", {"effective_min_duration_ms": 60_000}, "short-duration", "logged"),
    (V6, "Offline", {"effective_min_duration_ms": 599_999}, "short-duration", "error"),
    (V1, "Server", {"power_end": "03-08-2021 00:09:05.233"}, "short-test", "unseen"),
    (V1, "Offline", {"result_max_latency_ns": 599 * 10**9}, "short-test", "unseen"),
    (V1, "Server", {"effective_min_query_count": 270_335}, "few-queries", "logged"),
    (V6, "MultiStream", {"effective_min_query_count": 661}, "few-queries", "unseen"),
    (V1, "Offline", {"effective_samples_per_query": 24_575}, "few-offline-samples", "logged"),
    (V6, "Offline", {"effective_samples_per_query": 24_575}, "few-offline-samples", "error"),
    (V1, "Offline", {"generated_samples_per_query": 64}, "few-offline-samples", "unseen"),
    (V1, "Server", {"effective_performance_sample_count": 1023}, "few-samples", "error"),
    (V6, "SingleStream", {"effective_performance_sample_count": 1023}, "few-samples", "error"),
    (V1, "Server", {"effective_target_latency_ns": 15_000_001}, "latency-target", "unseen"),
    (V1, "Server", {"result_99.00_percentile_latency_ns": 15_000_001}, "latency-limit", "logged"),
    (
        EDGE,
        "MultiStream",
        {"result_99.00_percentile_per_query_latency_ns": 50_000_001},
        "latency-limit",
        "logged",
    ),
    (V1, "Server", {"effective_target_latency_percentile": 0.97}, "latency-percentile", "unseen"),
    (EDGE, "MultiStream", {"effective_target_qps": 15}, "long-interval", "unseen"),
    (EDGE, "MultiStream", {"effective_max_async_queries": 2}, "async-queries", "unseen"),
    (V6, "MultiStream", {"effective_samples_per_query": 9}, "samples-per-query", "unseen"),
    (V6, "SingleStream", {"early_stopping_met": False}, "early-stopping", "error"),
    (V6, "MultiStream", {"early_stopping_met": None}, "early-stopping", "error"),
    ("v6.1-datacenter", "Offline", {PERMUTED: False}, "equal-issue", "unseen"),
    (V6, "Offline", {PERMUTED: True}, "equal-issue", "unseen"),
    (V1, "Server", {"effective_accuracy_log_sampling_target": 4096}, "audit-leak", "unseen"),
    (V1, "Server", {"effective_performance_issue_same": True}, "audit-leak", "unseen"),
    (V1, "Server", {"effective_performance_issue_unique": True}, "audit-leak", "unseen"),
    (V1, "Server", {"loadgen_version": "6.0.17 @ d6147c7eb7"}, "loadgen-version", "unseen"),
    (V1, "Server", {"loadgen_version": "1.0.1 @ 0123456789"}, "loadgen-revision", "unseen"),
    (V1, "Server", {"loadgen_git_status_message": " M loadgen.cc"}, "loadgen-changed", "unseen"),
    (EDGE, "MultiStream", {"loadgen_version": GENERATOR}, "unofficial-generator", "unseen"),
    ("v6.1-network", "Offline", {"sut_name": "PySUT"}, "sut-name", "error"),
    (V6, "Offline", {"sut_name": "Network SUT: two"}, "sut-name", "unseen"),
    (V1, "Server", {"test_datetime": "2121-03-07T23:59:12Z"}, "bad-date", "unseen"),
    (V1, "Server", {"test_datetime": "soon"}, "bad-date", "unseen"),
    (V1, "Server", {"test_datetime": "2020-03-07T23:59:12Z"}, "bad-date", "unseen"),
    (V1, "Offline", {"result_samples_per_second": 99_999}, "figures-contradict", "unseen"),
    (EDGE, "SingleStream", {"result_mean_latency_ns": 3_000_000}, "figures-contradict", "unseen"),
    (V1, "Server", {"result_50.00_percentile_latency_ns": 14_000_000}, "figures-contradict", "unseen"),
    (V1, "Server", {"result_scheduled_samples_per_sec": None}, "no-result", "error"),
    (V6, "SingleStream", {"early_stopping_latency_ss": 0}, "no-result", "error"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "scenario", "values", "rule", "official"), FAULTS)
def test_a_fault_in_a_performance_log_is_found(
    kind: str, scenario: str, values: dict[str, Any], rule: str, official: str
) -> None:
    tree = tree_of(kind)
    with changed(tree.performance(scenario), **values):
        assert found(performance, tree, scenario).get(rule) == official


@pytest.mark.parametrize(("kind", "official"), [(V1, "error"), (V6, "unseen")])
def test_an_error_of_loadgen_is_found(kind: str, official: str) -> None:
    tree = tree_of(kind)
    log = tree.performance() / DETAIL
    line = mllog("error_uncommitted_loadgen_changes", "Loadgen built with uncommitted changes!", error=True)
    with text(log, log.read_text() + line), kept(tree.performance() / SUMMARY):
        (tree.performance() / SUMMARY).unlink()
        assert found(performance, tree)["loadgen-error"] == official


def test_the_warning_that_an_audit_config_was_found_is_a_leak() -> None:
    tree = tree_of(V1)
    log = tree.performance() / DETAIL
    line = mllog(
        "warning_generic_message", "Found Audit Config file (audit.config). Overriding", warning=True
    )
    with text(log, log.read_text() + line):
        assert "audit-leak" in found(performance, tree)


def test_answers_in_a_performance_log_are_a_leak() -> None:
    tree = tree_of(V1)
    answer = '[\n{ "seq_id" : 5, "qsl_idx" : 1772, "data" : "00802C44" }\n]\n'
    with text(tree.performance() / ACCURACY_LOG, answer):
        assert "audit-leak" in found(performance, tree)
    with text(tree.performance() / ACCURACY_LOG, "[\n]\n"):
        assert found(performance, tree) == {}


def test_a_damaged_or_a_cut_log_is_found() -> None:
    tree = tree_of(V1)
    log = tree.performance() / DETAIL
    whole = log.read_text()
    with text(log, whole[:-150]):
        assert found(performance, tree)["cut-log"] == "error"
    with text(log, whole.replace('"value": "VALID"', '"value": VALID"')):
        assert "damaged-log" in found(performance, tree)
    with text(log, whole.replace("made", "ma\0de")):
        assert "damaged-log" in found(performance, tree)
    with text(log, ""):
        assert found(performance, tree) == {"no-log": "error"}
    with text(log, whole + whole):
        assert "several-tests" in found(performance, tree)


def test_two_logs_that_say_different_things_are_found() -> None:
    tree = tree_of(V1)
    summary = tree.performance() / SUMMARY
    with text(summary, summary.read_text().replace("Result is : VALID", "Result is : INVALID")):
        assert found(performance, tree) == {"logs-contradict": "unseen"}


def test_an_inferred_scenario_passes_on_edge() -> None:
    tree = tree_of(EDGE)
    stream = (tree.performance("SingleStream") / DETAIL).read_text()
    with (
        text(tree.performance("Offline") / DETAIL, stream),
        text(tree.performance("Offline") / SUMMARY, (tree.performance("SingleStream") / SUMMARY).read_text()),
    ):
        assert found(performance, tree, "Offline") == {}


def test_loadgens_sources_count_more_than_its_revision() -> None:
    tree = tree_of(V1)
    log = tree.performance() / DETAIL
    line = mllog("loadgen_file_sha1", {"/loadgen.cc": "0" * 40, "/README.md": "1" * 40})
    with text(log, log.read_text() + line):
        assert found(performance, tree) == {"loadgen-sources": "unseen"}


def test_a_user_conf_that_gives_other_settings_is_found() -> None:
    tree = tree_of(V1)
    conf = tree.measurements("Server") / USER_CONF
    with text(
        conf, "*.Server.target_qps = 1000\nresnet50.Server.target_qps = 900 # the model's own line wins\n"
    ):
        assert found(performance, tree) == {"user-conf-differs": "unseen"}
    with text(
        conf, "resnet50.Server.target_qps = 1000\n*.*.target_qps = 7\nbert.Server.target_qps = 1.2.3\n"
    ):
        assert found(performance, tree) == {}


def test_logs_that_are_no_plain_files_are_not_followed(tmp_path: Path) -> None:
    tree = tree_of(V1)
    summary = tree.performance() / SUMMARY
    (tmp_path / "away").write_text(summary.read_text())
    with kept(summary):
        summary.unlink()
        summary.symlink_to(tmp_path / "away")
        assert found(performance, tree) == {"unreadable-log": "error"}
    with kept(summary):
        summary.unlink()
        os.mkfifo(summary)
        try:
            assert found(performance, tree) == {"unreadable-log": "error"}
        finally:
            summary.unlink()


KEYS = ["effective_scenario", "effective_qsl_rng_seed", "power_begin", "test_datetime", "loadgen_version"]
KEYS += ["result_validity", "result_max_latency_ns", "effective_target_qps", "sut_name", "loadgen_file_sha1"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=4))
def test_no_value_of_a_log_breaks_the_check(values: dict[str, Any]) -> None:
    tree = tree_of("v6.1-datacenter")
    lines = [f':::MLLOG {{"key": "{key}", "value": {json.dumps(value)}, ' for key, value in values.items()]
    end = '"metadata": {"is_error": false, "is_warning": false}}\n'
    log = tree.performance() / DETAIL
    body = "".join(line + end for line in lines) + log.read_text()
    with text(log, body):
        found(performance, tree)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=400), name=st.sampled_from([DETAIL, SUMMARY, ACCURACY_LOG]))
def test_no_bytes_of_a_log_break_the_check(raw: bytes, name: str) -> None:
    tree = tree_of("v6.1-datacenter")
    with text(tree.performance() / name, raw):
        found(performance, tree)


def test_the_seeds_of_another_round_are_told_as_such() -> None:
    tree = tree_of(V1)
    other = load_round("v1.1").seeds["qsl_rng_seed"]
    with changed(tree.performance("Server"), effective_qsl_rng_seed=other):
        told = [f.message for f in judge(context_of(tree.root, "v1.0")) if f.rule == "wrong-seed"]
    assert told
    assert "--round v1.1" in told[0]
