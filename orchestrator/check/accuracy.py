"""The accuracy test of a result: its logs, what they cover, the score and the log that it was made from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.check.answer_ends import faults_of_ends
from orchestrator.check.cell_logs import (
    ACCURACY,
    PERFORMANCE,
    Test,
    damage,
    official,
    own_file,
    test_of,
    text_of,
    unreadable,
)
from orchestrator.check.finding import Context, Finding, Official
from orchestrator.check.loadgen_origin import origin
from orchestrator.check.performance import errors
from orchestrator.check.performance_settings import audit_leaks, seeds
from orchestrator.logs import LogError
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL
from orchestrator.rules import Accuracy, Benchmark
from orchestrator.submission.layout import LONGEST_ACCURACY_LOG_BYTES
from orchestrator.submission.tree import Cell

HASH = re.compile(r"hash=([\w\d]+)$")  # the checkers' own
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# accuracy-squad.py: both in percent, and an exact match counts as an F1 of 1.
EXACT_MATCH = re.compile(r'"exact_match":\s*([\d.]{1,20})')
RESNET_COUNTS = re.compile(r"good=(\d{1,9}), total=(\d{1,9})")  # accuracy-imagenet.py
# By these is judged what an accuracy test covered; all published logs of v1.0 and v1.1 have them.
COVERAGE_KEYS = (
    "qsl_reported_total_count",
    "generated_query_count",
    "generated_samples_per_query",
    "power_begin",
    "power_end",
)
AGAIN = "run the accuracy test over the whole data set, score it and submit what came of it"


def accuracy(context: Context, cell: Cell) -> Iterator[Finding]:
    """Everything about the folder accuracy."""
    yield from score_file(context, cell)
    yield from answer_log(context, cell)
    if not own_file(context, cell.accuracy / DETAIL):
        return  # told by the checks of what lies in the folders
    try:
        test = test_of(context, cell, ACCURACY, cell.accuracy)
    except LogError as error:
        yield unreadable(context, cell.accuracy, str(error))
        return
    yield from (_as_accuracy(test, found) for found in damage(test))
    if not test.logs.detail.form:
        return
    yield from mode_and_scenario(test)
    yield from (_as_accuracy(test, found) for found in errors(test))
    for found in (*seeds(test), *audit_leaks(test)):
        yield _unseen(found)
    yield from (_unseen(found) for found in origin(test))
    yield from coverage(test)


def _old(context: Context, cell: Cell) -> Official:
    """v1.x logs an accuracy that does not pass, and takes it all the same in the open division."""
    return "error" if context.enforced(cell.submission) else "logged"


def _as_accuracy(test: Test, found: Finding) -> Finding:
    """What checkers do about a fault of an accuracy test's log: since v5.0 its errors count as well."""
    if found.official == "unseen" and found.rule != "loadgen-error":
        return found
    seen = official(test.context, _old(test.context, test.cell), "error")
    return Finding(found.rule, found.path, found.message, found.mend, seen)


def _unseen(found: Finding) -> Finding:
    return Finding(found.rule, found.path, found.message, found.mend, "unseen")


def mode_and_scenario(test: Test) -> Iterator[Finding]:
    """Whether this is an accuracy test, of the folder's scenario or the one that it is inferred from."""
    if test.run.mode != "AccuracyOnly":
        what = f"LoadGen ran in mode {test.run.mode or '(not said)'}; an accuracy test is AccuracyOnly"
        yield test.finding("wrong-mode", what, AGAIN)
    folder = test.context.scenario(test.cell)
    allowed = {folder}
    try:
        beside = test_of(test.context, test.cell, PERFORMANCE, test.cell.performance).run.scenario
        allowed.add(beside)
    except LogError:
        pass  # told by the performance test's checks
    if folder is not None and test.run.scenario not in allowed:
        what = f"LoadGen's scenario is {test.run.scenario or '(not said)'}, the result is of {folder}"
        mend = f"run the accuracy test in {folder}"
        yield test.finding("accuracy-scenario", what, mend)


def coverage(test: Test) -> Iterator[Finding]:
    """Whether the test asked for every sample of the data set."""
    benchmark, run = test.benchmark, test.run
    if benchmark is None:
        return
    for key in COVERAGE_KEYS:
        if key not in test.logs.detail.values:
            what = f"{key} is missing from the detail log, which LoadGen always writes there"
            yield test.finding("missing-key", what, "submit the log as LoadGen wrote it")
    wanted = benchmark.accuracy_sample_count
    count = run.effective.get("accuracy_sample_count", run.counts.data_set_samples)
    if count != wanted:
        shown = "not said" if count is None else count
        what = f"the accuracy test had {shown} samples; the data set of {benchmark.name} has {wanted}"
        yield test.finding("accuracy-coverage", what, AGAIN, "unseen", "error")
        return
    queries, each = run.counts.generated_queries, run.counts.generated_samples_per_query
    # LoadGen goes through the data set in sets that fit into memory; the first is logged, and is the largest.
    sets = run.power.phases if run.power is not None else 0
    if queries is not None and each is not None and 0 < queries * each * sets < wanted:
        what = f"LoadGen asked {sets} times for at most {queries * each} samples, so not for all {wanted}"
        yield test.finding("accuracy-coverage", what, AGAIN)
    library = run.counts.data_set_samples
    if library is not None and library != wanted:
        what = f"the sample library reported {library} samples; the data set has {wanted}"
        yield test.finding("accuracy-coverage", what, AGAIN)


# accuracy.txt


@dataclass(frozen=True)
class Scores:
    """What accuracy.txt says: every value in the round's form, and the hash lines."""

    values: tuple[str, ...]
    hashes: tuple[str, ...]


def read_scores(text: str, accuracy_rule: Accuracy) -> Scores:
    """The lines that the checkers look for."""
    lines = text.split("\n")
    values = [found[1] for line in lines if (found := re.match(accuracy_rule.pattern, line))]
    hashes = [found[1] for line in lines if (found := HASH.match(line.rstrip("\r")))]
    return Scores(tuple(values), tuple(hashes))


def number_in(text: str) -> float | None:
    """A score's number: patterns let 1.2.3 through."""
    try:
        return float(text)
    except ValueError:
        return None


def score_file(context: Context, cell: Cell) -> Iterator[Finding]:
    """accuracy.txt: a score in the round's form, at its target, and the log's hash."""
    path = cell.accuracy / ACCURACY_TXT
    text, benchmark = text_of(context, path), context.benchmark(cell)
    if text is None or benchmark is None:
        return
    scores = read_scores(text, benchmark.accuracy)
    yield from _hash_lines(context, cell, path, scores)
    yield from _values(context, cell, path, scores, text)


def _hash_lines(context: Context, cell: Cell, path: Path, scores: Scores) -> Iterator[Finding]:
    mend = f"add the line hash=SHA256, of {ACCURACY_LOG} before it was truncated (truncate_accuracy_log.py)"
    if not scores.hashes:
        closed = context.enforced(cell.submission)
        seen: Official = "error" if closed else "logged"
        yield context.finding("no-hash", path, "no line is hash=...", mend, official=seen)
        return
    if len(set(scores.hashes)) > 1:
        yield context.finding(
            "bad-hash", path, f"{len(set(scores.hashes))} lines give different hashes", mend
        )
    elif not SHA256.fullmatch(scores.hashes[0]):
        what = f"hash={scores.hashes[0][:80]} is no SHA-256, which has 64 hexadecimal digits"
        yield context.finding("bad-hash", path, what, mend)


def _values(context: Context, cell: Cell, path: Path, scores: Scores, text: str) -> Iterator[Finding]:
    benchmark = context.benchmark(cell)
    if benchmark is None:
        return
    rule, closed = benchmark.accuracy, context.enforced(cell.submission)
    if not scores.values:
        other = _other_metric(context, benchmark, text)
        what = f"no line has the form of {benchmark.name}'s score ({rule.metric})"
        what += f"; one has that of {other}" if other else ""
        mend = f"score the accuracy test with the reference script of {benchmark.name}"
        yield context.finding("no-accuracy", path, what, mend, official=("error" if closed else "unseen"))
        return
    if len({number_in(value) for value in scores.values}) > 1:
        what = f"several values stand there: {', '.join(scores.values[:4])}; checkers read different ones"
        yield context.finding("several-accuracies", path, what, "leave the output of one scoring there")
    value = number_in(scores.values[0])
    most = 1.0 if rule.unit == "fraction" else 100.0
    if value is None or value > most:
        what = f"{rule.metric} {scores.values[0][:40]} is impossible: the most is {most:g}"
        seen: Official = "error" if value is None else "unseen"
        yield context.finding("impossible-accuracy", path, what, AGAIN, official=seen)
    elif closed and any((number_in(one) or 0.0) < rule.target for one in scores.values):
        told = ", ".join(scores.values[:4])
        what = f"{rule.metric} {told} is below {benchmark.name}'s target {rule.target:g}"
        mend = "mend the model's quality and measure again, or submit in the open division"
        yield context.finding("low-accuracy", path, what, mend, official="error")
    yield from _counts(context, path, benchmark, text)
    exact = number_in(found[1]) if (found := EXACT_MATCH.search(text)) else None
    if rule.metric == "F1" and exact is not None and value is not None and exact > value:
        what = f"exact_match {exact:g} is above f1 {value:g}, which counts every exact match in full"
        yield context.finding("accuracy-contradicts", path, what, AGAIN)


def _other_metric(context: Context, own: Benchmark, text: str) -> str | None:
    for other in context.round.benchmarks.values():
        if other.accuracy.pattern != own.accuracy.pattern and read_scores(text, other.accuracy).values:
            return f"{other.name} ({other.accuracy.metric})"
    return None


def _counts(context: Context, path: Path, benchmark: Benchmark, text: str) -> Iterator[Finding]:
    """accuracy-imagenet.py says how many pictures it scored."""
    found = RESNET_COUNTS.search(text)
    if benchmark.accuracy.metric != "acc" or found is None:
        return
    good, total = int(found[1]), int(found[2])
    if total != benchmark.accuracy_sample_count:
        what = f"{total} samples were scored; the data set has {benchmark.accuracy_sample_count}"
        yield context.finding("accuracy-coverage", path, what, AGAIN)
    values = read_scores(text, benchmark.accuracy).values
    value = number_in(values[0]) if values else None
    # Printed with three decimals.
    if value is not None and total and abs(100 * good / total - value) > 0.001:
        what = f"accuracy={value:g} is not {good} of {total}, which is {100 * good / total:.3f}"
        yield context.finding("accuracy-contradicts", path, what, AGAIN)


# mlperf_log_accuracy.json


def answer_log(context: Context, cell: Cell) -> Iterator[Finding]:
    """The accuracy log: there, truncated in the official form, and the one that the hash is of."""
    path = cell.accuracy / ACCURACY_LOG
    seen = official(context, _old(context, cell), "error")
    if not own_file(context, path):
        return
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(LONGEST_ACCURACY_LOG_BYTES)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        yield unreadable(context, path, str(error.strerror))
        return
    if size > LONGEST_ACCURACY_LOG_BYTES:
        what = f"{size} bytes: the most is {LONGEST_ACCURACY_LOG_BYTES}"
        mend = "truncate it with truncate_accuracy_log.py, which also adds the hash; keep the original"
        yield context.finding("accuracy-log-not-truncated", path, what, mend, official=seen)
    truncated = size <= LONGEST_ACCURACY_LOG_BYTES and b"..." in head
    if truncated:
        yield from _truncated(context, cell, path, head)
    else:
        yield from _whole(context, cell, path, digest)


def _truncated(context: Context, cell: Cell, path: Path, text: bytes) -> Iterator[Finding]:
    benchmark = context.benchmark(cell)
    mend = "truncate the original of this test again with truncate_accuracy_log.py"
    if benchmark is not None:
        for what in faults_of_ends(text, benchmark.accuracy_sample_count, accuracy_test=True):
            yield context.finding("accuracy-log-form", path, what, mend)


def _whole(context: Context, cell: Cell, path: Path, digest: str) -> Iterator[Finding]:
    benchmark = context.benchmark(cell)
    text = text_of(context, cell.accuracy / ACCURACY_TXT) or ""
    hashes = {found[1].lower() for line in text.split("\n") if (found := HASH.match(line.rstrip("\r")))}
    if hashes and digest not in hashes:
        what = f"its SHA-256 is {digest}; {ACCURACY_TXT} gives another"
        mend = "score this log, or put the log there that was scored"
        yield context.finding("hash-differs", path, what, mend)
    try:
        log = test_of(context, cell, ACCURACY, cell.accuracy).run.accuracy_log
    except LogError:
        return
    if log is None or log.size_bytes > LONGEST_ACCURACY_LOG_BYTES:
        return
    if log.entries is None:
        what = "it is cut short or damaged: no whole JSON list of LoadGen's"
        yield context.finding("accuracy-log-form", path, what, AGAIN)
    elif benchmark is not None and log.entries < benchmark.accuracy_sample_count:
        what = f"it holds {log.entries} answers; the data set has {benchmark.accuracy_sample_count} samples"
        yield context.finding("accuracy-coverage", path, what, AGAIN)
