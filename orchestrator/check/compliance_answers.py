"""TEST01's answers: what verify_accuracy.txt says, the fallback of the rules, and the answers themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from orchestrator.accuracy import AccuracyError
from orchestrator.audit_answers import compare_answers, fallback_percent, score_delta_percent
from orchestrator.check.accuracy import HASH, SHA256, number_in, read_scores
from orchestrator.check.answer_ends import faults_of_ends, faults_of_whole
from orchestrator.check.cell_logs import own_file, text_of
from orchestrator.check.finding import Context, Finding, Official
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, BASELINE_TXT, COMPLIANCE_TXT, VERIFY_ACCURACY
from orchestrator.rules import Benchmark
from orchestrator.submission.layout import LONGEST_ACCURACY_LOG_BYTES, RUN
from orchestrator.submission.tree import Cell

# verify_accuracy.py of all rounds.
_COUNT = re.compile(r"num_(\w+)\s*=\s*(\d{1,12})\s*")
TOLERATED = ("mlperf_log_trace.json", "results.json", ".gitkeep")  # files_diff of the newest checker
AGAIN = "verify again with verify_accuracy.py, against the untruncated log of the accuracy test"


def answers(context: Context, cell: Cell, benchmark: Benchmark, folder: Path) -> Iterator[Finding]:
    """verify_accuracy.txt of TEST01 in `folder`, and what it is about."""
    newest = context.layout.one_tree
    path = folder / VERIFY_ACCURACY
    if not own_file(context, path):
        what, mend = "TEST01: it is missing", "add the file that verify_accuracy.py wrote"
        seen: Official = "error" if newest else "logged"
        yield context.finding("compliance-file-missing", path, what, mend, official=seen)
        return
    text = text_of(context, path) or ""
    lines = [line.strip() for line in text.split("\n")]
    # v1.x looks for the words anywhere in a line, the newest for a line of its own.
    passed = "TEST PASS" in lines if newest else any("TEST PASS" in line for line in lines)
    counts = {found[1]: int(found[2]) for line in lines if (found := _COUNT.fullmatch(line))}
    fallback = not passed or any("TEST FAIL" in line for line in lines)
    if fallback:
        said = next((line for line in lines if "TEST FAIL" in line), "there is no verdict")
        yield from _fallback(context, benchmark, folder, f'verify_accuracy.txt: "{said[:120]}"')
    yield from _stored(context, folder / "accuracy", not passed)
    yield from _kept(context, cell, benchmark, folder / "accuracy")
    yield from _counts(context, cell, benchmark, path, counts, fallback)
    yield from _again(context, cell, folder, path, passed and not fallback)


def _fallback(context: Context, benchmark: Benchmark, folder: Path, said: str) -> Iterator[Finding]:
    """Where answers differ the rules compare the scores of the samples that TEST01 logged."""
    seen: Official = "error" if context.layout.one_tree else "unseen"
    mend = f"score both subsets ({BASELINE_TXT}, {COMPLIANCE_TXT}); if they differ by more, mend the run"
    scores = []
    for name in (BASELINE_TXT, COMPLIANCE_TXT):
        path = folder / "accuracy" / name
        text = text_of(context, path)
        if text is None:
            what = f"TEST01: {said}, and {name} is missing for the comparison of scores"
            yield context.finding("compliance-answers", path, what, mend, official=seen)
            return
        found = read_scores(text, benchmark.accuracy).values
        score = number_in(found[-1]) if found else None  # the newest checker takes the last line
        if score is None or score <= 0:
            what = f"TEST01: {said}, and {name} has no {benchmark.accuracy.metric} above 0"
            yield context.finding("compliance-answers", path, what, mend, official=seen)
            return
        scores.append(score)
    delta, allowed = score_delta_percent(*scores), fallback_percent(benchmark.name)
    if delta > allowed:
        told = f"{scores[0]:g} and {scores[1]:g}"
        what = f"TEST01: {said}, and the scores {told} differ by {delta:.3g} %; {allowed:g} % are allowed"
        yield context.finding(
            "compliance-answers", folder / "accuracy" / COMPLIANCE_TXT, what, mend, official=seen
        )


def _stored(context: Context, folder: Path, fallback: bool) -> Iterator[Finding]:
    """The logged answers, truncated as the accuracy test's are, and the hash of what was cut."""
    log, scores = folder / ACCURACY_LOG, folder / ACCURACY_TXT
    size = log.stat().st_size if own_file(context, log) else 0
    mend = "truncate it with truncate_accuracy_log.py, which also adds the hash; keep the original"
    if size > LONGEST_ACCURACY_LOG_BYTES:
        what = f"TEST01: {size} bytes: the most is {LONGEST_ACCURACY_LOG_BYTES}"
        yield context.finding("accuracy-log-not-truncated", log, what, mend)
    text = text_of(context, scores)
    # Where the fallback counts the newest wants these four files and no others (compliance_check.py).
    strict = fallback and context.layout.one_tree
    if text is None:
        what = "TEST01: it is missing; it holds the hash of the log of the answers"
        seen: Official = "error" if strict else "unseen"
        yield context.finding("compliance-file-missing", scores, what, mend, official=seen)
    elif not any(HASH.match(line.rstrip("\r")) for line in text.split("\n")):
        yield context.finding("no-hash", scores, "TEST01: no line is hash=...", mend)
    known = (ACCURACY_LOG, ACCURACY_TXT, BASELINE_TXT, COMPLIANCE_TXT, *TOLERATED)
    for name in context.names(folder) if strict else ():
        if name not in known and own_file(context, folder / name):
            what = f"TEST01: {name} has no place beside the files of the fallback"
            yield context.finding("extra-file", folder / name, what, "take it away", official="error")


def _kept(context: Context, cell: Cell, benchmark: Benchmark, folder: Path) -> Iterator[Finding]:
    """The log of the answers and its hash: a log of LoadGen's, and TEST01's own."""
    log, path = folder / ACCURACY_LOG, folder / ACCURACY_TXT
    mend = "put the log there that TEST01 wrote, truncated, and its own hash (truncate_accuracy_log.py)"
    own, its = _bytes(context, log), _bytes(context, cell.accuracy / ACCURACY_LOG)
    samples = benchmark.accuracy_sample_count
    if own is not None and len(own) <= LONGEST_ACCURACY_LOG_BYTES:
        cut = b"..." in own
        faults = faults_of_ends(own, samples, accuracy_test=False) if cut else faults_of_whole(log, samples)
        for what in faults:
            yield context.finding("accuracy-log-form", log, f"TEST01: {what}", mend)
    if own and own == its:
        what = "TEST01: this is the accuracy test's log, not that of its own answers"
        yield context.finding("compliance-copied", log, what, mend)
    hashes, others = _hashes(context, path), _hashes(context, cell.accuracy / ACCURACY_TXT)
    if hashes and hashes & others:
        what = "TEST01: its hash is that of the accuracy test's log"
        yield context.finding("compliance-copied", path, what, mend)
    wrong = sorted(text for text in hashes if not SHA256.fullmatch(text))
    if wrong:
        what = f"TEST01: hash={wrong[0][:80]} is no SHA-256, which has 64 hexadecimal digits"
        yield context.finding("bad-hash", path, what, mend)


def _hashes(context: Context, path: Path) -> set[str]:
    lines = (text_of(context, path) or "").split("\n")
    return {found[1].lower() for line in lines if (found := HASH.match(line.rstrip("\r")))}


def _bytes(context: Context, path: Path) -> bytes | None:
    """A log as far as one in a tree may reach; None where there is none."""
    if not own_file(context, path):
        return None
    try:
        with open(path, "rb") as file:
            return file.read(LONGEST_ACCURACY_LOG_BYTES + 1)
    except OSError:
        return None


def _counts(
    context: Context, cell: Cell, benchmark: Benchmark, path: Path, counts: dict[str, int], fallback: bool
) -> Iterator[Finding]:
    """The counts that verify_accuracy.py prints, against the verdict and the data set."""
    if counts.get("perf_log_data_mismatch") and not fallback:
        what = f"TEST01: {counts['perf_log_data_mismatch']} answers differ, and the verdict is TEST PASS"
        yield context.finding("compliance-verdict", path, what, AGAIN)
    if counts.get("perf_log_qsl_idx_match") == 0:
        # The scripts of v1.0 and v1.1 pass a test that logged nothing.
        what = "TEST01: not one answer was compared"
        mend = "run TEST01 with the sampling target of its audit.config, and verify again"
        yield context.finding("compliance-verdict", path, what, mend)
    for what in () if fallback else _odd(counts, benchmark.accuracy_sample_count):
        yield context.finding("compliance-verdict", path, f"TEST01: {what}", AGAIN)
    entries = counts.get("acc_log_entries")
    if entries is not None and entries < benchmark.accuracy_sample_count:
        what = f"TEST01: the accuracy log that it was compared with has {entries} answers"
        what += f"; the data set has {benchmark.accuracy_sample_count} samples"
        yield context.finding("accuracy-coverage", path, what, AGAIN)
    if not counts and not fallback:
        what = "TEST01: it holds a verdict, but none of the counts that verify_accuracy.py prints"
        yield context.finding("compliance-verdict", path, what, AGAIN)


def _odd(counts: dict[str, int], samples: int) -> Iterator[str]:
    """Counts that verify_accuracy.py never prints with a pass (909 published files)."""
    if counts.get("missing_qsl_idxs"):
        yield f"{counts['missing_qsl_idxs']} samples are missing from the accuracy log"
    logged, matched = counts.get("perf_log_entries"), counts.get("perf_log_qsl_idx_match")
    if logged is not None and matched and matched != logged:
        yield f"{matched} answers were compared, of {logged} that were logged"
    different = counts.get("acc_log_entries", 0) - counts.get("acc_log_duplicate_keys", 0)
    if different > samples:
        yield f"the accuracy log had answers to {different} samples; the data set has {samples}"


def _again(context: Context, cell: Cell, folder: Path, path: Path, passed: bool) -> Iterator[Finding]:
    """The first elements compared again, where both logs are whole, which they rarely are in a tree.

    By their first byte: where it differs the element does, whatever its type.
    """
    logged = [folder / "accuracy" / ACCURACY_LOG, folder / "performance" / RUN / ACCURACY_LOG]
    whole = [log for log in logged if _is_whole(context, log)]
    accuracy_log = cell.accuracy / ACCURACY_LOG
    if not passed or not whole or not _is_whole(context, accuracy_log):
        return
    try:
        counts = compare_answers(accuracy_log, whole[0], "byte")
    except AccuracyError:
        return  # a log that is no log is told by the checks of that log
    if not counts.passed:
        what = f"TEST01: it says TEST PASS, but in the logs of this tree {counts.reason}"
        yield context.finding("compliance-recomputed", path, what, AGAIN)


def _is_whole(context: Context, path: Path) -> bool:
    if not own_file(context, path):
        return False
    try:
        with open(path, "rb") as file:
            return b"..." not in file.read(LONGEST_ACCURACY_LOG_BYTES)
    except OSError:
        return False
