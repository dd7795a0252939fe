"""TEST01's answers against the accuracy test's, the fallback to scores, and verdicts on damaged evidence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator import audit_verify
from orchestrator.accuracy import AccuracyError, read_accuracy_log
from orchestrator.audit_answers import (
    AnswerCounts,
    answer_dtype,
    compare_answers,
    fallback_percent,
    score_delta_percent,
    write_baseline,
)
from orchestrator.audit_verify import Case, verify
from orchestrator.campaign import EXIT_INVALID, EXIT_VALID, exit_code
from orchestrator.logs import DetailLog
from orchestrator.paths import (
    ACCURACY_LOG,
    BASELINE_LOG,
    BASELINE_TXT,
    COMPLIANCE_TXT,
    DETAIL,
    RECORD,
    VERIFY_ACCURACY,
    VERIFY_PERFORMANCE,
)
from orchestrator.phrases import verdict
from orchestrator.record import Audit
from orchestrator.rules import load_round
from orchestrator.scorers import score
from tests import made_records
from tests.made_audits import Answers, case_of_test01, finished_test, label_library, log_text
from tests.made_logs import accuracy_log
from workers.library import Library

TIME_BUDGET_S = 15

LABELS = range(2000)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """2,000 samples; the right label of each is its index."""
    return label_library(tmp_path_factory.mktemp("audited") / "library", LABELS)


def right(*indices: int) -> list[tuple[int, bytes]]:
    return [(i, i.to_bytes(4, "little")) for i in indices]


def wrong(*indices: int) -> list[tuple[int, bytes]]:
    return [(i, (i + 5000).to_bytes(4, "little")) for i in indices]


def counts(tmp_path: Path, accurate: Answers, logged: Answers, dtype: str = "int32") -> AnswerCounts:
    return compare_answers(
        accuracy_log(tmp_path / "a", accurate), accuracy_log(tmp_path / "t", logged), dtype
    )


# The comparison of answers


def test_equal_answers_pass_in_official_words(tmp_path: Path) -> None:
    found = counts(tmp_path, right(0, 1, 2), right(2, 0, 2))
    assert found.passed
    assert found.text() == (
        "Verifying accuracy. This might take a while...\nReading accuracy mode results...\n"
        "Reading performance mode results...\nnum_acc_log_entries = 3\nnum_acc_log_duplicate_keys = 0\n"
        "num_acc_log_data_mismatch = 0\nnum_perf_log_entries = 3\nnum_perf_log_qsl_idx_match = 3\n"
        "num_perf_log_data_mismatch = 0\nnum_missing_qsl_idxs = 0\nTEST PASS\n\n"
    )


@pytest.mark.parametrize(
    ("dtype", "one", "other", "first_differ", "whole_differ"),
    [
        ("byte", b"\x01\x02", b"\x01\x03", 0, 1),
        ("byte", b"\x01\x02", b"\x02\x02", 1, 1),
        ("int32", b"\x01\0\0\0\x07\0\0\0", b"\x01\0\0\0\x08\0\0\0", 0, 1),
        ("int32", b"\x01\0\0\0", b"\x01\0\0\x01", 1, 1),
        ("int64", b"\x01" + b"\0" * 7, b"\x01" + b"\0" * 15, 0, 1),
        ("float32", np.float32(0.0).tobytes(), np.float32(-0.0).tobytes(), 0, 1),
        ("float32", np.float32(np.nan).tobytes(), np.float32(np.nan).tobytes(), 1, 0),
        ("byte", b"", b"", 0, 0),
        ("byte", b"", b"\0", 1, 1),
    ],
)
def test_first_elements_decide_and_whole_answers_are_counted(
    tmp_path: Path, dtype: str, one: bytes, other: bytes, first_differ: int, whole_differ: int
) -> None:
    found = counts(tmp_path, [(4, one)], [(4, other)], dtype)
    assert (found.perf_log_data_mismatch, found.whole_mismatch) == (first_differ, whole_differ)
    assert found.passed is (first_differ == 0)


def test_a_sample_answered_twice_is_compared_with_the_answer_before_as_the_script_does(
    tmp_path: Path,
) -> None:
    # Right, wrong, wrong: only the first wrong one differs from the one before it.
    found = counts(tmp_path, right(3), [*right(3), *wrong(3), *wrong(3)])
    assert (found.perf_log_data_mismatch, found.whole_mismatch) == (1, 2)


def test_duplicates_and_samples_that_are_missing_are_counted_and_fail_nothing(tmp_path: Path) -> None:
    accurate = [*right(0, 1), *right(0), *wrong(1)]
    found = counts(tmp_path, accurate, right(0, 9))
    shown = (found.acc_log_duplicate_keys, found.acc_log_data_mismatch, found.missing_qsl_idxs)
    assert (shown, found.passed) == ((2, 1, 1), True)


@pytest.mark.parametrize("logged", [[], right(7)])
def test_a_test_that_logged_nothing_to_compare_does_not_pass(tmp_path: Path, logged: Answers) -> None:
    found = counts(tmp_path, right(0), logged)
    assert (found.passed, found.reason) == (False, "no logged answer is to a sample of the accuracy test")
    assert "TEST FAIL" in found.text()


def test_an_answer_of_part_of_an_element_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match="answer to sample 1 has 3 bytes, elements of type int32 have 4"):
        counts(tmp_path, right(1), [(1, b"abc")])


@pytest.mark.parametrize(
    ("meta", "dtype"),
    [
        ({"response": {"dtype": "float32"}}, "float32"),
        ({"response": {"dtype": "int64"}}, "int64"),
        ({"response": {"dtype": "float16"}}, "byte"),
        ({"response": {"dtype": "uint8"}}, "byte"),
        ({"label_dtype": "int32"}, "int32"),
        ({}, "byte"),
    ],
)
def test_the_dtype_is_that_of_the_data_sets_answers(meta: dict[str, object], dtype: str) -> None:
    class Described:
        def __init__(self) -> None:
            self.meta = meta

    assert answer_dtype(Described()) == dtype  # type: ignore[arg-type]


def test_the_baseline_is_the_accuracy_tests_first_answers_to_the_same_samples(tmp_path: Path) -> None:
    log = accuracy_log(tmp_path / "log", [*right(5, 2, 7), *wrong(2)])
    assert write_baseline(log, frozenset({2, 5, 11}), tmp_path / "base") == 2
    assert list(read_accuracy_log(tmp_path / "base")) == right(5, 2)
    assert json.loads((tmp_path / "base").read_text())[1] == {"seq_id": 1, "qsl_idx": 2, "data": "02000000"}
    assert write_baseline(log, frozenset(), tmp_path / "none") == 0
    assert list(read_accuracy_log(tmp_path / "none")) == []


# The fallback to scores


def test_scores_may_differ_by_one_percent_or_a_tenth() -> None:
    assert [fallback_percent(name) for name in ("resnet", "bert-99", "bert-99.9")] == [1.0, 1.0, 0.1]
    assert score_delta_percent(99.0, 100.0) == pytest.approx(1.0)
    assert score_delta_percent(100.0, 99.0) == pytest.approx(1.0101, abs=1e-4)


def fallback(
    tmp_path: Path, library: Library, differ: int, round_name: str = "v6.1"
) -> tuple[Case, audit_verify.Audit]:
    """All right in the accuracy test; in TEST01 `differ` of 1,000 logged answers are wrong."""
    logged = [*wrong(*range(differ)), *right(*range(differ, 1000))]
    case = case_of_test01(tmp_path, library, right(*LABELS), logged, round_name=round_name)
    return case, verify(case)


@pytest.mark.parametrize(("differ", "passed"), [(9, True), (10, False)])
def test_where_answers_differ_the_scores_of_the_same_samples_decide(
    tmp_path: Path, library: Library, differ: int, passed: bool
) -> None:
    # 100 % and 99.1 %: 100/99.1 - 1 is 0.908 %. 100/99 - 1 is 1.0101 %, which is more than 1 %.
    case, found = fallback(tmp_path, library, differ)
    assert found.passed is passed and found.answers is not None
    answers = found.answers
    assert (answers.first_differ, answers.whole_differ, answers.logged) == (differ, differ, 1000)
    assert (answers.baseline, answers.compliance) == (100.0, 100 - differ / 10)
    assert answers.delta_percent == pytest.approx(100 * (100 / (100 - differ / 10) - 1))
    assert (case.own / BASELINE_TXT).read_text() == "accuracy=100.000%, good=1000, total=1000\n"
    shown = (case.own / COMPLIANCE_TXT).read_text()
    assert re.match(case.benchmark.accuracy.pattern, shown)
    # As the official script leaves it: the checkers then look for the two scores.
    assert "TEST FAIL" in (case.own / VERIFY_ACCURACY).read_text()
    assert len(list(read_accuracy_log(case.own / BASELINE_LOG))) == 1000
    if not passed:
        assert (
            found.reason
            == "10 of 1000 logged answers differ, and their scores by 1.01 %; the rules allow 1 %"
        )


def test_scores_of_nothing_or_of_unknown_samples_do_not_pass(tmp_path: Path, library: Library) -> None:
    none = verify(case_of_test01(tmp_path / "a", library, wrong(*LABELS), right(0, 1)))
    assert none.reason.endswith("2 of 2 logged answers differ, and a score of 0 compares with nothing")
    strange = verify(case_of_test01(tmp_path / "b", library, right(0, 1), [*wrong(0), *right(5)]))
    assert strange.reason == "1 of 2 logged answers differ, and 1 are not in the accuracy test"
    assert (none.passed, strange.passed) == (False, False)


def test_v1_1_adds_the_comparison_of_scores_for_bert_alone(tmp_path: Path, library: Library) -> None:
    found = load_round("v1.1")
    texts = {}
    for name in ("bert-99", "bert-99.9", "resnet"):
        case = Case(found, found.benchmark(name), "Offline", "TEST01", tmp_path, tmp_path, library)
        scores = {"baseline": 90.0, "compliance": 89.8, "delta_percent": 0.2227, "allowed_percent": 1.0}
        if name == "bert-99.9":
            scores["allowed_percent"] = 0.1
        texts[name] = audit_verify._fallback_text(case, scores)
    assert texts["bert-99"] == (
        "Verifying accuracy via baseline comparison...\nbaseline accuracy: 90.0 (100.00%)\n"
        "compliance accuracy: 89.8 (99.78%)\nthreshold accuracy: 99.0%\nTEST PASS\n"
    )
    assert texts["bert-99.9"].endswith("threshold accuracy: 99.9%\nTEST FAIL\n")
    assert texts["resnet"] == ""


def test_a_scorer_takes_some_samples_alone(tmp_path: Path, library: Library) -> None:
    log = accuracy_log(tmp_path / "log", [*right(3, 8), *wrong(11)])
    scored = score(log, library, library.count, {3, 8, 11})
    assert (scored.good, scored.total, scored.line) == (2, 3, "accuracy=66.667%, good=2, total=3")
    for only in ({3, 8}, {3, 8, 11, 12}):
        with pytest.raises(AccuracyError, match=f"answers to {len(only)} samples"):
            score(log, library, library.count, only)


# The whole verdict


def test_a_test01_passes_on_answers_and_score_and_writes_both_files(tmp_path: Path, library: Library) -> None:
    case = case_of_test01(tmp_path, library, right(*LABELS), right(1, 2, 3), scores=(1000.0, 950.0))
    found = verify(case)
    assert (found.passed, found.reason, found.against) == (True, "", "Offline-performance")
    assert (found.reference_score, found.score, found.allowed) == (1000.0, 950.0, 0.1)
    assert found.answers is not None and found.answers.dtype == "int32"
    assert "\nTEST PASS\n" in (case.own / VERIFY_ACCURACY).read_text()
    assert "\nTEST PASS\n" in (case.own / VERIFY_PERFORMANCE).read_text()
    assert not (case.own / BASELINE_LOG).exists()


def test_a_slow_test01_fails_though_its_answers_are_right(tmp_path: Path, library: Library) -> None:
    case = case_of_test01(tmp_path, library, right(*LABELS), right(1), scores=(1000.0, 800.0))
    found = verify(case)
    assert (found.passed, found.reason) == (False, "the score differs by -20.00 %; it must be within 10 %")
    assert "TEST PASS" in (case.own / VERIFY_ACCURACY).read_text()


def _without(name: str) -> Callable[[Case], None]:
    return lambda case: (case.run / name).unlink()


def _spoilt(name: str, old: str, new: str) -> Callable[[Case], None]:
    def spoil(case: Case) -> None:
        path = case.run / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return spoil


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_without(f"Offline-performance/{RECORD}"), "Offline-performance has no record"),
        (_without(f"Offline-accuracy/{RECORD}"), "Offline-accuracy has no record"),
        (_without(f"Offline-accuracy/{ACCURACY_LOG}"), f"{ACCURACY_LOG} cannot be read"),
        (_without(f"Offline-TEST01.partial/{ACCURACY_LOG}"), f"{ACCURACY_LOG} cannot be read"),
        (_without(f"Offline-TEST01.partial/{DETAIL}"), "No such file"),
        (_without(f"Offline-performance/{DETAIL}"), "No such file"),
        (_spoilt(f"Offline-performance/{DETAIL}", "1000", "1001"), "is not the file that its record names"),
        (_spoilt(f"Offline-accuracy/{ACCURACY_LOG}", "01000000", "02000000"), "is not the file that its rec"),
        (_spoilt(f"Offline-accuracy/{ACCURACY_LOG}", "}\n]", "}"), "cut short or damaged"),
        (_spoilt(f"Offline-TEST01.partial/{ACCURACY_LOG}", '"data"', '"date"'), "entry 0 is damaged"),
        (_spoilt(f"Offline-performance/{RECORD}", '"finished"', '"failed"'), "Offline-performance failed"),
    ],
)
def test_evidence_that_is_missing_or_damaged_gives_no_verdict_but_a_reason(
    tmp_path: Path, library: Library, damage: Callable[[Case], None], told: str
) -> None:
    case = case_of_test01(tmp_path, library, right(*range(20)), right(1, 2))
    damage(case)
    found = verify(case)
    assert (found.passed, found.good, found.awaited) == (None, False, False)
    assert told in found.reason and found.reason.startswith("not verified: ")


def test_test04_of_the_old_rounds_is_judged_with_its_second_half(tmp_path: Path, library: Library) -> None:
    old, run = load_round("v1.0"), tmp_path / "run"
    unique = log_text("v1.0", "Offline", 1000.0, effective_performance_issue_unique=True)
    finished_test(run / "Offline-TEST04-A", unique)
    own = run / "Offline-TEST04-B.partial"
    own.mkdir()
    resnet = old.benchmark("resnet")
    first = verify(Case(old, resnet, "Offline", "TEST04-A", run / "Offline-TEST04-A", run, library))
    assert (first.passed, first.good, first.against) == (None, True, "Offline-TEST04-B")
    for value, passed in ((1050.0, True), (1200.0, False)):
        same = log_text("v1.0", "Offline", value, effective_performance_issue_same=True)
        (own / DETAIL).write_text(same)
        found = verify(Case(old, resnet, "Offline", "TEST04-B", own, run, library))
        assert (found.passed, found.against, found.reference_score) == (passed, "Offline-TEST04-A", 1000.0)
    assert "TEST04-B score = 1200\nTEST FAIL" in (own / VERIFY_PERFORMANCE).read_text()
    assert not (own / VERIFY_ACCURACY).exists()


def test_an_empty_log_has_no_trouble_with_the_reader() -> None:
    assert DetailLog().troubles == []


@pytest.mark.parametrize(
    ("passed", "awaited", "code"),
    [
        (True, False, EXIT_VALID),
        (None, True, EXIT_VALID),
        (False, False, EXIT_INVALID),
        (None, False, EXIT_INVALID),
    ],
)
def test_the_exit_code_hangs_on_the_verdict_not_on_loadgens(
    passed: bool | None, awaited: bool, code: int
) -> None:
    # TEST04-A ends INVALID and with an error by its nature.
    audit = Audit(test="TEST04-A", passed=passed, reason="", against="", awaited=awaited)
    result = made_records.invalid([]).model_copy(update={"errors": ["Ran out of generated queries"]})
    plain = made_records.record("Server")
    record = plain.model_copy(update={"kind": "compliance", "audit": audit, "result": result})
    assert exit_code([plain, record], interrupted=False) == code
    assert verdict(record).good is (code == EXIT_VALID)
