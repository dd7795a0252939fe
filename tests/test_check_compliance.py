"""The gate's checks of compliance tests: settings in effect, verdicts, and verdicts reckoned again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.check.compliance import compliance
from orchestrator.paths import (
    ACCURACY_LOG,
    ACCURACY_TXT,
    BASELINE_TXT,
    COMPLIANCE_TXT,
    DETAIL,
    SUMMARY,
    VERIFY_ACCURACY,
    VERIFY_PERFORMANCE,
)
from tests.log_faults import changed, found, kept, text, tree_of
from tests.made_trees import KINDS, MadeTree

TIME_BUDGET_S = 30

V1, V6, EDGE = "v1.0-datacenter", "v6.1-edge", "v1.0-edge"


@pytest.mark.parametrize("kind", KINDS)
def test_good_compliance_tests_have_no_finding(kind: str) -> None:
    tree = tree_of(kind)
    assert [found(compliance, tree, scenario) for scenario in tree.kind.scenarios] == [{}] * len(
        tree.kind.scenarios
    )


# kind, test, changed values of its log, rule, what the official checker of that round does
FAULTS: list[tuple[str, str, dict[str, Any], str, str]] = [
    (V1, "TEST01", {"effective_accuracy_log_rng_seed": 0}, "audit-settings", "unseen"),
    (V1, "TEST01", {"effective_accuracy_log_sampling_target": 256}, "audit-settings", "unseen"),
    (V6, "TEST01", {"effective_accuracy_log_sampling_target": 0}, "audit-settings", "unseen"),
    (V1, "TEST04-A", {"effective_performance_issue_unique": False}, "audit-settings", "unseen"),
    (V1, "TEST04-B", {"effective_performance_issue_same_index": 0}, "audit-settings", "unseen"),
    (V6, "TEST04", {"effective_performance_issue_same": False}, "audit-settings", "unseen"),
    (V1, "TEST05", {"effective_qsl_rng_seed": 7322528924094909334}, "wrong-seed", "unseen"),
    (V1, "TEST01", {"effective_qsl_rng_seed": 1}, "wrong-seed", "unseen"),
    (V6, "TEST01", {"effective_qsl_rng_seed": 1}, "wrong-seed", "error"),
    (V1, "TEST01", {"result_validity": "INVALID"}, "compliance-recomputed", "unseen"),
    (V1, "TEST05", {"result_validity": "INVALID"}, "invalid-result", "unseen"),
    (V6, "TEST04", {"effective_min_duration_ms": 60_000}, "short-duration", "error"),
    (V1, "TEST01", {"effective_min_duration_ms": 60_000}, "short-duration", "unseen"),
    (V1, "TEST01", {"result_scheduled_samples_per_sec": 1101}, "compliance-recomputed", "unseen"),
    (V1, "TEST05", {"result_scheduled_samples_per_sec": 1051}, "compliance-recomputed", "unseen"),
    (V1, "TEST05", {"result_scheduled_samples_per_sec": 1001}, "compliance-other-logs", "unseen"),
    (V1, "TEST04-B", {"result_scheduled_samples_per_sec": 1101}, "compliance-recomputed", "unseen"),
    (V6, "TEST04", {"early_stopping_latency_ss": 1_000_000}, "compliance-recomputed", "unseen"),
    (V1, "TEST01", {"effective_scenario": "Offline"}, "compliance-recomputed", "unseen"),
    (V1, "TEST01", {"loadgen_version": "6.0.17 @ NA"}, "loadgen-version", "unseen"),
]


@pytest.mark.parametrize(("kind", "test", "values", "rule", "official"), FAULTS)
def test_a_fault_in_the_logs_of_a_compliance_test_is_found(
    kind: str, test: str, values: dict[str, Any], rule: str, official: str
) -> None:
    tree = tree_of(kind)
    with changed(tree.compliance(test) / "performance" / "run_1", **values):
        assert found(compliance, tree).get(rule) == official


def test_a_compliance_test_that_is_the_performance_test_itself_is_found() -> None:
    tree = tree_of(V1)
    log = tree.compliance("TEST01") / "performance" / "run_1" / DETAIL
    with text(log, (tree.performance() / DETAIL).read_text()):
        assert {"compliance-copied", "audit-settings"} <= set(found(compliance, tree))


VERDICTS = [
    (V1, "TEST01", "compliance-failed", "unseen"),
    (V1, "TEST04-A", "compliance-failed", "unseen"),
    (V1, "TEST05", "compliance-failed", "logged"),
    (V6, "TEST01", "compliance-failed", "error"),
    (V6, "TEST04", "compliance-failed", "error"),
]


@pytest.mark.parametrize(("kind", "test", "rule", "official"), VERDICTS)
def test_a_verdict_that_is_no_pass_is_found(kind: str, test: str, rule: str, official: str) -> None:
    tree = tree_of(kind)
    path = tree.compliance(test) / VERIFY_PERFORMANCE
    with text(path, path.read_text().replace("TEST PASS", "TEST FAIL: Test score invalid")):
        assert found(compliance, tree) == {rule: official}


MISSING = [
    (V1, "TEST01", VERIFY_PERFORMANCE, "logged"),
    (V1, "TEST01", VERIFY_ACCURACY, "logged"),
    (V6, "TEST01", VERIFY_ACCURACY, "error"),
    (V6, "TEST04", f"performance/run_1/{DETAIL}", "error"),
    (V1, "TEST05", f"performance/run_1/{DETAIL}", "unseen"),
    (V1, "TEST05", f"performance/run_1/{SUMMARY}", "unseen"),
    (V1, "TEST01", f"accuracy/{ACCURACY_LOG}", "unseen"),
    (V1, "TEST01", f"accuracy/{ACCURACY_TXT}", "unseen"),
]


@pytest.mark.parametrize(("kind", "test", "name", "official"), MISSING)
def test_a_missing_file_of_a_compliance_test_is_found(kind: str, test: str, name: str, official: str) -> None:
    tree = tree_of(kind)
    path = tree.compliance(test) / name
    with kept(path):
        path.unlink()
        assert found(compliance, tree) == {"compliance-file-missing": official}


@contextmanager
def answers_fail(tree: MadeTree, baseline: str | None, scored: str | None) -> Iterator[None]:
    """TEST01 whose answers differ, with the files of the fallback."""
    folder = tree.compliance("TEST01")
    verdict = folder / VERIFY_ACCURACY
    told = verdict.read_text().replace("TEST PASS", "TEST FAIL").replace("_mismatch = 0", "_mismatch = 9")
    with ExitStack() as files:
        files.enter_context(text(verdict, told))
        for name, line in ((BASELINE_TXT, baseline), (COMPLIANCE_TXT, scored)):
            if line is not None:
                files.enter_context(text(folder / "accuracy" / name, line))
        yield


@pytest.mark.parametrize(
    ("kind", "baseline", "scored", "rules"),
    [
        (V1, None, None, {"compliance-answers": "unseen"}),
        (V6, None, None, {"compliance-answers": "error"}),
        (V1, "accuracy=76.000%", "accuracy=76.700%", {}),
        (V1, "accuracy=76.000%", "accuracy=77.000%", {"compliance-answers": "unseen"}),
        (V6, "accuracy=76.000%", "accuracy=77.000%", {"compliance-answers": "error"}),
        (V6, "accuracy=76.000%", "mAP=76%", {"compliance-answers": "error"}),
    ],
)
def test_answers_that_differ_need_scores_that_do_not(
    kind: str, baseline: str | None, scored: str | None, rules: dict[str, str]
) -> None:
    tree = tree_of(kind)
    with answers_fail(tree, baseline, scored):
        assert found(compliance, tree) == rules


def test_the_files_of_the_fallback_are_these_four() -> None:
    tree = tree_of(V6)
    score = "accuracy=76.000%"
    folder = tree.compliance("TEST01") / "accuracy"
    with answers_fail(tree, score, score):
        with text(folder / "notes.txt", "a note"):
            assert found(compliance, tree) == {"extra-file": "error"}
        with text(folder / ACCURACY_LOG, "[\n" + " " * 10240), text(folder / ACCURACY_TXT, "hash\n"):
            assert found(compliance, tree) == {"accuracy-log-not-truncated": "unseen", "no-hash": "unseen"}


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("num_perf_log_data_mismatch = 0", "num_perf_log_data_mismatch = 3", "compliance-verdict"),
        ("num_perf_log_qsl_idx_match = 1003", "num_perf_log_qsl_idx_match = 0", "compliance-verdict"),
        ("num_acc_log_entries = 50000", "num_acc_log_entries = 1024", "accuracy-coverage"),
        ("num_acc_log_entries = 50000", "num_acc_log_entries = 9999999", "compliance-verdict"),
        ("num_perf_log_qsl_idx_match = 1003", "num_perf_log_qsl_idx_match = 5", "compliance-verdict"),
        ("num_missing_qsl_idxs = 0", "num_missing_qsl_idxs = 500", "compliance-verdict"),
    ],
)
def test_counts_that_do_not_bear_a_verdict_out_are_found(before: str, after: str, rule: str) -> None:
    tree = tree_of(V1)
    path = tree.compliance("TEST01") / VERIFY_ACCURACY
    with text(path, path.read_text().replace(before, after)):
        assert found(compliance, tree) == {rule: "unseen"}


def test_a_performance_verdict_without_the_scores_that_it_compared_is_found() -> None:
    tree = tree_of(V1)
    with text(tree.compliance("TEST01") / VERIFY_PERFORMANCE, "TEST PASS\n"):
        assert found(compliance, tree) == {"compliance-verdict": "unseen"}


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        (ACCURACY_LOG, "", "accuracy-log-form"),
        (ACCURACY_LOG, "[\n]\n", "accuracy-log-form"),
        (ACCURACY_LOG, "hello world", "accuracy-log-form"),
        (
            ACCURACY_LOG,
            '[\n{ "seq_id" : 3, "qsl_idx" : 50000, "data" : "00" }\n]\n',
            "accuracy-log-form",
        ),
        (ACCURACY_TXT, "hash=0\n", "bad-hash"),
    ],
)
def test_answers_of_test01_that_are_no_log_of_loadgens_are_found(name: str, content: str, rule: str) -> None:
    tree = tree_of(V1)
    with text(tree.compliance("TEST01") / "accuracy" / name, content):
        assert found(compliance, tree) == {rule: "unseen"}


@pytest.mark.parametrize("name", [ACCURACY_LOG, ACCURACY_TXT])
def test_answers_of_test01_that_are_the_accuracy_tests_are_found(name: str) -> None:
    tree = tree_of(V1)
    with text(tree.compliance("TEST01") / "accuracy" / name, (tree.accuracy() / name).read_bytes()):
        assert found(compliance, tree) == {"compliance-copied": "unseen"}


def test_answers_are_compared_again_where_both_logs_are_whole() -> None:
    tree = tree_of("v6.1-datacenter")
    entry = '[\n{{ "seq_id" : {}, "qsl_idx" : 7, "data" : "{}" }}\n]\n'
    log = tree.compliance("TEST01") / "accuracy" / ACCURACY_LOG
    with text(tree.accuracy() / ACCURACY_LOG, entry.format(0, "0102")):
        with text(log, entry.format(1, "0102")):
            assert found(compliance, tree) == {}
        with text(log, entry.format(1, "0202")):
            assert found(compliance, tree) == {"compliance-recomputed": "unseen"}


NAMES = (VERIFY_ACCURACY, VERIFY_PERFORMANCE, f"performance/run_1/{DETAIL}", f"accuracy/{ACCURACY_LOG}")
WORDS = st.sampled_from([b"TEST PASS\n", b"TEST FAIL\n", b"reference score = ", b"1e999\n", b"num_x = 9\n"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(raw=st.lists(WORDS | st.binary(max_size=40), max_size=6).map(b"".join), name=st.sampled_from(NAMES))
def test_no_bytes_break_the_check(raw: bytes, name: str) -> None:
    tree = tree_of("v6.1-datacenter")
    with text(tree.compliance("TEST01") / name, raw):
        found(compliance, tree)
