"""A compliance test's verdict, from logs alone: its own, and those that it is compared with. Runs no test.

Writes verify_performance.txt and, for TEST01, verify_accuracy.txt beside the test's logs, in the words that
the official checkers look for. Where TEST01's answers differ (the size of a batch changes the last bits of a
sum), the rules compare scores instead: of what TEST01 logged, and of the accuracy test's answers to the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.accuracy import AccuracyError, AccuracyScore
from orchestrator.audit import FIRST_HALF
from orchestrator.audit_answers import (
    AnswerCounts,
    answer_dtype,
    compare_answers,
    fallback_percent,
    score_delta_percent,
    write_baseline,
)
from orchestrator.audit_performance import Comparison, compare
from orchestrator.logs import DetailLog, LogError, read_detail
from orchestrator.paths import (
    ACCURACY_LOG,
    BASELINE_LOG,
    BASELINE_TXT,
    COMPLIANCE_TXT,
    DETAIL,
    RECORD,
    VERIFY_ACCURACY,
    VERIFY_PERFORMANCE,
    write_atomically,
)
from orchestrator.record import Audit, AuditedAnswers, Record, RecordError, read_record
from orchestrator.rules import Benchmark, Round
from orchestrator.scorers import score
from workers.library import Library, LibraryError


class NotVerified(Exception):
    """A log that the comparison needs is not there or not to be trusted; the text says which."""


@dataclass(frozen=True)
class Case:
    """One compliance test to verify: its own folder, and the run's, whose other tests it is compared with."""

    found: Round
    benchmark: Benchmark
    scenario: str
    test: str
    own: Path
    run: Path
    library: Library

    def folder(self, test: str) -> Path:
        """Where another test of the same scenario lies."""
        return self.run / f"{self.scenario}-{test}"


def verify(case: Case) -> Audit:
    """The verdict on a test that has ended; never raises for what is in the logs."""
    against = f"{case.scenario}-{'TEST04-A' if case.test == 'TEST04-B' else 'performance'}"
    if case.test in FIRST_HALF:
        second = f"{case.scenario}-{FIRST_HALF[case.test]}"
        why = f"judged together with {second}"
        return Audit(test=case.test, passed=None, reason=why, against=second, awaited=True)
    try:
        return _verified(case, against)
    except (NotVerified, LogError, AccuracyError, LibraryError) as error:
        return Audit(test=case.test, passed=None, reason=f"not verified: {error}", against=against)


def _verified(case: Case, against: str) -> Audit:
    half = against.removeprefix(f"{case.scenario}-")
    reference, _ = _trusted(case, half)
    found = compare(case.found, case.test, case.scenario, reference, read_detail(case.own / DETAIL))
    write_atomically(case.own / VERIFY_PERFORMANCE, found.text.encode())
    passed, reasons, answers = found.passed, [found.reason], None
    if case.test == "TEST01":
        answers, reason = _answers(case)
        passed, reasons = passed and not reason, [found.reason, reason]
    return _audit(case, against, passed, "; ".join(text for text in reasons if text), found, answers)


def _audit(
    case: Case, against: str, passed: bool, reason: str, found: Comparison, answers: AuditedAnswers | None
) -> Audit:
    return Audit(
        test=case.test,
        passed=passed,
        reason=reason,
        against=against,
        reference_score=found.reference,
        score=found.score,
        allowed=found.allowed,
        answers=answers,
    )


def _trusted(case: Case, test: str) -> tuple[DetailLog, Record]:
    """The detail log and the record of another test of the run, as its record has it; NotVerified if not."""
    folder = case.folder(test)
    try:
        record = read_record(folder / RECORD)
    except RecordError as error:
        raise NotVerified(f"{case.scenario}-{test} has no record ({error})") from None
    if record.status != "finished":
        raise NotVerified(f"{record.test} {record.status}: {record.reason}")
    try:
        digest = hashlib.sha256((folder / DETAIL).read_bytes()).hexdigest()
    except OSError as error:
        raise NotVerified(f"{folder / DETAIL}: {error.strerror}") from None
    _refuse_changed(record, DETAIL, digest)
    return read_detail(folder / DETAIL), record


def _refuse_changed(record: Record, name: str, digest: str) -> None:
    if record.files.get(name) != digest:
        raise NotVerified(f"{name} of {record.test} is not the file that its record names")


def _answers(case: Case) -> tuple[AuditedAnswers, str]:
    """TEST01's answers, and why they do not pass (empty if they do)."""
    _, record = _trusted(case, "accuracy")
    dtype, digest = answer_dtype(case.library), hashlib.sha256()
    accuracy_log = case.folder("accuracy") / ACCURACY_LOG
    counts = compare_answers(accuracy_log, case.own / ACCURACY_LOG, dtype, digest)
    _refuse_changed(record, ACCURACY_LOG, digest.hexdigest())
    fallback: dict[str, Any] = {}
    reason, text = counts.reason, counts.text()
    if counts.perf_log_data_mismatch:
        fallback, reason = _scores(case, counts, accuracy_log)
        text += _fallback_text(case, fallback)
    write_atomically(case.own / VERIFY_ACCURACY, text.encode())
    answers = AuditedAnswers(
        dtype=dtype,
        logged=counts.perf_log_entries,
        compared=counts.perf_log_qsl_idx_match,
        missing=counts.missing_qsl_idxs,
        first_differ=counts.perf_log_data_mismatch,
        whole_differ=counts.whole_mismatch,
        **fallback,
    )
    return answers, reason


def _scores(case: Case, counts: AnswerCounts, accuracy_log: Path) -> tuple[dict[str, Any], str]:
    """The rules' fallback: both scores of the logged samples, and why they do not pass either."""
    if counts.missing_qsl_idxs:
        return {}, f"{counts.reason}, and {counts.missing_qsl_idxs} are not in the accuracy test"
    baseline_log = case.own / BASELINE_LOG
    write_baseline(accuracy_log, counts.indices, baseline_log)
    try:
        logs = ((baseline_log, BASELINE_TXT), (case.own / ACCURACY_LOG, COMPLIANCE_TXT))
        baseline, compliance = (_scored(case, log, counts.indices, name) for log, name in logs)
    except (AccuracyError, LibraryError) as error:
        return {}, f"{counts.reason}, and their scores cannot be compared: {error}"
    allowed = fallback_percent(case.benchmark.name)
    found = {"baseline": baseline, "compliance": compliance, "allowed_percent": allowed}
    if baseline <= 0 or compliance <= 0:
        return found, f"{counts.reason}, and a score of 0 compares with nothing"
    delta = score_delta_percent(baseline, compliance)
    why = f"{counts.reason}, and their scores by {delta:.4g} %; the rules allow {allowed:g} %"
    return {**found, "delta_percent": delta}, "" if delta <= allowed else why


def _scored(case: Case, log: Path, indices: frozenset[int], name: str) -> float:
    """The figure that the checker reads from the score's line, which goes to a file of its own."""
    scored: AccuracyScore = score(log, case.library, case.library.count, indices)
    write_atomically(case.own / name, f"{scored.line}\n".encode())
    seen = re.match(case.benchmark.accuracy.pattern, scored.line)
    if seen is None:
        raise AccuracyError(f"{name} is not in the round's form: {scored.line}")
    return float(seen[1])


def _fallback_text(case: Case, found: dict[str, Any]) -> str:
    """What verify_accuracy_baseline.py of v1.1 adds; it knows BERT alone, and the other rounds have none.

    The checkers of all rounds take the files with both scores beside a TEST FAIL.
    """
    known = case.found.name == "v1.1" and case.benchmark.name.startswith("bert")
    if not known or "delta_percent" not in found:
        return ""
    baseline, compliance, wanted = found["baseline"], found["compliance"], 100 - found["allowed_percent"]
    match = 100 * compliance / baseline
    verdict = "TEST PASS" if found["delta_percent"] <= found["allowed_percent"] else "TEST FAIL"
    return (
        "Verifying accuracy via baseline comparison...\n"
        f"baseline accuracy: {baseline} (100.00%)\ncompliance accuracy: {compliance} ({match:.2f}%)\n"
        f"threshold accuracy: {wanted}%\n{verdict}\n"
    )
