"""The gate's checks of accuracy tests: each single fault in a made result is found, a good one passes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.check.accuracy import COVERAGE_KEYS, accuracy
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL, SUMMARY
from tests.log_faults import changed, found, kept, text, tree_of
from tests.made_logs import mllog
from tests.made_trees import KINDS

TIME_BUDGET_S = 30

V1, V6, EDGE, OPEN, OPEN6 = "v1.0-datacenter", "v6.1-edge", "v1.0-edge", "v1.0-open", "v6.1-open"
HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_accuracy_test_has_no_finding(kind: str) -> None:
    tree = tree_of(kind)
    assert [found(accuracy, tree, scenario) for scenario in tree.kind.scenarios] == [{}] * len(
        tree.kind.scenarios
    )


LOG_FAULTS: list[tuple[str, dict[str, Any], str, str]] = [
    (V1, {"effective_test_mode": "PerformanceOnly"}, "wrong-mode", "unseen"),
    (V1, {"effective_scenario": "MultiStream"}, "accuracy-scenario", "unseen"),
    (V1, {"effective_qsl_rng_seed": 1}, "wrong-seed", "unseen"),
    (V6, {"effective_schedule_rng_seed": 1}, "wrong-seed", "unseen"),
    (V1, {"qsl_reported_total_count": 5000}, "accuracy-coverage", "unseen"),
    (V6, {"effective_accuracy_sample_count": 49_999}, "accuracy-coverage", "error"),
    (OPEN6, {"effective_accuracy_sample_count": 500}, "accuracy-coverage", "error"),
    (V6, {"qsl_reported_total_count": 500}, "accuracy-coverage", "unseen"),
    (V1, {"generated_query_count": 49_999}, "accuracy-coverage", "unseen"),
    *[(V1, {key: None}, "missing-key", "unseen") for key in COVERAGE_KEYS],
    (V1, {"effective_performance_issue_same": True}, "audit-leak", "unseen"),
    (V1, {"loadgen_version": "6.0.17 @ d6147c7eb7"}, "loadgen-version", "unseen"),
]


@pytest.mark.parametrize(("kind", "values", "rule", "official"), LOG_FAULTS)
def test_a_fault_in_an_accuracy_log_is_found(
    kind: str, values: dict[str, Any], rule: str, official: str
) -> None:
    tree = tree_of(kind)
    with changed(tree.accuracy(), **values):
        assert found(accuracy, tree).get(rule) == official


@pytest.mark.parametrize(
    ("kind", "official"), [(V1, "error"), (OPEN, "logged"), (V6, "error"), (OPEN6, "error")]
)
def test_an_error_of_loadgen_is_found(kind: str, official: str) -> None:
    tree = tree_of(kind)
    log, summary = tree.accuracy() / DETAIL, tree.accuracy() / SUMMARY
    with kept(summary), text(log, log.read_text() + mllog("error_runtime", "lost a response", error=True)):
        summary.unlink()
        assert found(accuracy, tree) == {"loadgen-error": official}


TXT_FAULTS = [
    (V1, f"accuracy=75.694%, good=37847, total=50000\nhash={HASH}\n", {"low-accuracy": "error"}),
    (V1, "accuracy=76.000%, good=38000, total=50000\n", {"no-hash": "error"}),
    (OPEN, "accuracy=76.000%, good=38000, total=50000\n", {"no-hash": "logged"}),
    (OPEN, f"accuracy=10.000%, good=5000, total=50000\nhash={HASH}\n", {}),
    (V1, "accuracy=76.000%, good=38000, total=50000\nhash=abc\n", {"bad-hash": "unseen"}),
    (V1, f"accuracy=76.000%, good=38000, total=50000 hash={HASH}\n", {"no-hash": "error"}),
    (V1, f"mAP=22.100%\nhash={HASH}\n", {"no-accuracy": "error"}),
    (OPEN6, f"nothing\nhash={HASH}\n", {"no-accuracy": "unseen"}),
    (V1, f"accuracy=nan%\nhash={HASH}\n", {"no-accuracy": "error"}),
    (V1, f"accuracy=1.2.3%\nhash={HASH}\n", {"impossible-accuracy": "error"}),
    (V1, f"accuracy=176.0%\nhash={HASH}\n", {"impossible-accuracy": "unseen"}),
    (V1, f"accuracy=76.0%\naccuracy=77.0%\nhash={HASH}\n", {"several-accuracies": "unseen"}),
    (V1, f"accuracy=76.000%, good=760, total=1000\nhash={HASH}\n", {"accuracy-coverage": "unseen"}),
    (V1, f"accuracy=77.000%, good=38000, total=50000\nhash={HASH}\n", {"accuracy-contradicts": "unseen"}),
    (
        "v6.1-datacenter",
        "Accuracy: mean = 86.1, whole\n",
        {"impossible-accuracy": "unseen", "no-hash": "error"},
    ),
]


@pytest.mark.parametrize(("kind", "content", "rules"), TXT_FAULTS)
def test_a_fault_in_accuracy_txt_is_found(kind: str, content: str, rules: dict[str, str]) -> None:
    tree = tree_of(kind)
    with text(tree.accuracy() / ACCURACY_TXT, content):
        assert found(accuracy, tree) == rules


ENTRY = '{ "seq_id" : 0, "qsl_idx" : 0, "data" : "00" }'
ENDS = (b"[\n" + b"0" * 4094, b"0" * 4093 + b"\n]\n")
JSON_FAULTS = [
    (V1, b"[\n" + b" " * 10240, {"accuracy-log-not-truncated": "error", "hash-differs": "unseen"}),
    (OPEN, b"[\n" + b" " * 10240, {"accuracy-log-not-truncated": "logged", "hash-differs": "unseen"}),
    (V6, ENDS[0] + b"..." + ENDS[1], {"accuracy-log-form": "unseen"}),
    (V6, ENDS[0][:100] + b"\n\n...\n\n" + ENDS[1], {"accuracy-log-form": "unseen"}),
    (V6, b"0" * 4096 + b"\n\n...\n\n" + ENDS[1], {"accuracy-log-form": "unseen"}),
    (V6, f"[\n{ENTRY}\n]\n".encode(), {"accuracy-coverage": "unseen", "hash-differs": "unseen"}),
    (V6, b"[\n", {"accuracy-log-form": "unseen", "hash-differs": "unseen"}),
]


ENTRY_FAULTS = [
    ('"qsl_idx" : 7,', '"qsl_idx" : 50000,'),
    ('"seq_id" : 7,', '"seq_id" : 123456789,'),
    ('"seq_id" : 7,', '"seq" : 7,'),
    ('"data" : "00000007"', '"data" : "0000000G"'),
    ('{ "seq_id" : 49990,', '"seq_id" : 49990,'),
    ("}\n]\n", "} ]x\n]\n"),
]


@pytest.mark.parametrize(("before", "after"), ENTRY_FAULTS)
def test_an_entry_that_loadgen_did_not_write_is_found(before: str, after: str) -> None:
    tree = tree_of(V1)
    log = tree.accuracy() / ACCURACY_LOG
    whole = log.read_text()
    assert before in whole
    with text(log, whole.replace(before, after)):
        assert found(accuracy, tree) == {"accuracy-log-form": "unseen"}


def test_entries_that_a_tool_spread_over_lines_are_entries() -> None:
    tree = tree_of(V1)
    entry = b'  {\n    "data": "00",\n    "qsl_idx": 466,\n    "seq_id": 9\n  },\n'
    first, last = b"[\n" + entry * 90, entry * 90 + entry.replace(b"},", b"}") + b"]\n"
    with text(tree.accuracy() / ACCURACY_LOG, first[:4096] + b"\n\n...\n\n" + last[-4096:]):
        assert found(accuracy, tree) == {}


def test_an_exact_match_above_f1_is_found() -> None:
    tree = tree_of("v1.1-edge")
    scores = f'{{"exact_match": 95.0, "f1": 90.9}}\nhash={HASH}\n'
    with text(tree.accuracy() / ACCURACY_TXT, scores):
        assert found(accuracy, tree) == {"accuracy-contradicts": "unseen"}


@pytest.mark.parametrize(("kind", "content", "rules"), JSON_FAULTS)
def test_a_fault_in_the_truncated_log_is_found(kind: str, content: bytes, rules: dict[str, str]) -> None:
    tree = tree_of(kind)
    with text(tree.accuracy() / ACCURACY_LOG, content):
        assert found(accuracy, tree) == rules


def test_a_hash_of_a_whole_log_is_checked() -> None:
    tree = tree_of("v6.1-datacenter")
    entries = ",\n".join(ENTRY.replace('"qsl_idx" : 0', f'"qsl_idx" : {i}') for i in range(43))
    log = f"[\n{entries}\n]\n"
    digest = hashlib.sha256(log.encode()).hexdigest()
    scores = tree.accuracy() / ACCURACY_TXT
    line = scores.read_text().splitlines()[0]
    with text(tree.accuracy() / ACCURACY_LOG, log), text(scores, f"{line}\nhash={digest}\n"):
        assert found(accuracy, tree) == {}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=300), name=st.sampled_from([DETAIL, SUMMARY, ACCURACY_LOG, ACCURACY_TXT]))
def test_no_bytes_break_the_check(raw: bytes, name: str) -> None:
    tree = tree_of("v6.1-datacenter")
    with text(tree.accuracy() / name, raw):
        found(accuracy, tree)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(line=st.text("hash=accury:%mean .0123456789\n\r\0é", max_size=60))
def test_no_line_of_accuracy_txt_breaks_the_check(line: str) -> None:
    tree = tree_of("v6.1-datacenter")
    with text(tree.accuracy() / ACCURACY_TXT, line):
        found(accuracy, tree)
