"""The compliance tests of a result: run as audits, and verdicts that the tree's own logs bear out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.audit import FIRST_HALF, ISSUED_UNIQUE_OR_SAME, audit_settings, audit_words
from orchestrator.audit_performance import compare
from orchestrator.check.cell_logs import (
    PERFORMANCE,
    Test,
    damage,
    official,
    own_file,
    test_of,
    text_of,
    unreadable,
)
from orchestrator.check.compliance_answers import answers
from orchestrator.check.finding import Context, Finding, Official
from orchestrator.check.headline import headline
from orchestrator.check.judged_keys import missing_keys, repeated_keys
from orchestrator.check.loadgen_origin import origin
from orchestrator.check.performance import duration, errors, scenario_of, verdict
from orchestrator.check.performance_settings import amounts, limits, seeds
from orchestrator.logs import LogError
from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY, VERIFY_PERFORMANCE
from orchestrator.rules import Benchmark
from orchestrator.submission.layout import RUN
from orchestrator.submission.tree import Cell

PASS, FAIL = "TEST PASS", "TEST FAIL"
# The scores that verify_performance.txt compares, by the scripts of all rounds.
_REFERENCE = re.compile(r"(?:[Rr]eference|TEST04-A) score\s*=\s*([-+.\deE]+)")
_SCORE = re.compile(r"(?:[Tt]est|TEST04-B) score\s*=\s*([-+.\deE]+)")
# The scripts of v1.x read summaries, which round rates to two decimals; logs have six digits.
SCORE_SLACK = 1e-4
TWO_DECIMALS = 0.0051
AGAIN = "run the compliance test again, and verify it against the performance test that is submitted"


@dataclass(frozen=True)
class Audit:
    """One compliance test that the round asks for, of one cell."""

    context: Context
    cell: Cell
    benchmark: Benchmark
    name: str

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.cell.compliance(self.context.layout, self.name)

    @property
    def logs_folder(self) -> Path:
        """The folder of its logs."""
        return self.folder / PERFORMANCE / RUN

    def finding(self, rule: str, path: Path, message: str, mend: str, old: Official = "unseen") -> Finding:
        """A fault that the newest checker takes for an error; `old` is what those of v1.x do."""
        return self.context.finding(
            rule, path, f"{self.name}: {message}", mend, official=official(self.context, old, "error")
        )

    def unseen(self, rule: str, path: Path, message: str, mend: str) -> Finding:
        """A fault that no checker sees."""
        return self.context.finding(rule, path, f"{self.name}: {message}", mend)


def compliance(context: Context, cell: Cell) -> Iterator[Finding]:
    """Every test that the round asks for; folders that are missing are told by the checks of contents."""
    benchmark, scenario = context.benchmark(cell), context.scenario(cell)
    if not context.enforced(cell.submission) or benchmark is None or scenario is None:
        return
    for name in context.round.compliance_tests(benchmark.name, scenario):
        audit = Audit(context, cell, benchmark, name)
        try:
            if not context.is_folder(audit.folder):
                continue
        except OSError as error:
            yield unreadable(context, audit.folder, str(error.strerror))
            continue
        yield from _files(audit)
        yield from _run(audit)
        if name == "TEST01":
            yield from answers(context, cell, benchmark, audit.folder)


def _files(audit: Audit) -> Iterator[Finding]:
    """What a test's folder must hold; TEST04-B's verdict lies with TEST04-A."""
    add = "add the file as the test and its verification left it"
    if audit.name not in FIRST_HALF.values():
        path = audit.folder / VERIFY_PERFORMANCE
        if not own_file(audit.context, path):
            yield audit.finding("compliance-file-missing", path, "it is missing", add, "logged")
        else:
            yield from _claim(audit, path)
    if not own_file(audit.context, audit.logs_folder / DETAIL):
        # v1.x only looks whether there is a folder run_1.
        old: Official = "unseen" if audit.logs_folder.exists() else "logged"
        yield audit.finding("compliance-file-missing", audit.logs_folder / DETAIL, "it is missing", add, old)
    if not own_file(audit.context, audit.logs_folder / SUMMARY):
        yield audit.finding("compliance-file-missing", audit.logs_folder / SUMMARY, "it is missing", add)
    if audit.name == "TEST01":
        log = audit.folder / "accuracy" / ACCURACY_LOG
        if not own_file(audit.context, log):
            # v1.x asks for the folder, and tells of its files as information only.
            old = "unseen" if log.parent.exists() else "logged"
            seen = official(audit.context, old, "unseen")
            what = f"{audit.name}: it is missing: the answers that were compared"
            yield audit.context.finding("compliance-file-missing", log, what, add, official=seen)


def _claim(audit: Audit, path: Path) -> Iterator[Finding]:
    """What verify_performance.txt says: checkers look for TEST PASS anywhere in a line."""
    text = text_of(audit.context, path) or ""
    said = next((line.strip() for line in text.split("\n") if FAIL in line), "")
    if PASS not in text:
        what = f'the performance verdict is "{said[:120]}"' if said else f'no line says "{PASS}"'
        # v1.x keeps the verdict of the last test that it looks at, which is TEST05's.
        old: Official = "logged" if audit.name == "TEST05" else "unseen"
        yield audit.finding("compliance-failed", path, what, AGAIN, old)
    elif said:
        what = f'it says "{PASS}" and "{said[:120]}"'
        yield audit.unseen("compliance-verdict", path, what, AGAIN)
    elif not (_REFERENCE.search(text) and _SCORE.search(text)):
        what = f'it says "{PASS}", but not the two scores that the official script compares'
        yield audit.unseen("compliance-verdict", path, what, AGAIN)


def _run(audit: Audit) -> Iterator[Finding]:
    """The test's logs: settings, errors, and the comparison made again."""
    context, cell = audit.context, audit.cell
    if not own_file(context, audit.logs_folder / DETAIL):
        return
    try:
        test = test_of(context, cell, audit.name, audit.logs_folder)
    except LogError as error:
        yield unreadable(context, audit.logs_folder, str(error))
        return
    yield from damage(test)
    if not test.logs.detail.form:
        return
    yield from missing_keys(test)
    yield from repeated_keys(test)
    yield from headline(test)
    yield from scenario_of(test)
    yield from _settings(audit, test)
    yield from origin(test)
    if audit.name not in ISSUED_UNIQUE_OR_SAME:
        # TEST04-A and -B of v1.x end when their samples are used up: INVALID and short by their nature.
        yield from verdict(test)
        yield from errors(test)
        yield from limits(test)
        yield from duration(test)
    yield from amounts(test)
    yield from _compared(audit, test)


def _settings(audit: Audit, test: Test) -> Iterator[Finding]:
    """Whether audit.config was really obeyed: LoadGen 6 passes over the seeds of TEST05 without a word."""
    words = audit_words(audit.context.round, audit.benchmark, audit.name)
    for name, wanted in audit_settings(words).items():
        found = test.run.effective.get(name)
        if found == wanted or name in audit.context.round.seeds:
            continue
        what = f"{audit.name}: effective_{name} is {'not logged' if found is None else found}, not {wanted}"
        mend = "run the test with the audit.config of the round and the benchmark"
        yield test.finding("audit-settings", what, mend)
    yield from seeds(test, words)


def _compared(audit: Audit, test: Test) -> Iterator[Finding]:
    """The comparison of the official script, from the logs that are in the tree."""
    context, cell, name = audit.context, audit.cell, audit.name
    if name in FIRST_HALF:
        return  # judged together with the other half
    first = {second: half for half, second in FIRST_HALF.items()}.get(name)
    where = cell.performance
    path = audit.folder / VERIFY_PERFORMANCE
    if first is not None:
        where = cell.compliance(context.layout, first) / PERFORMANCE / RUN
        path = cell.compliance(context.layout, first) / VERIFY_PERFORMANCE
    try:
        reference = test_of(context, cell, PERFORMANCE, where)
    except LogError:
        return  # told where that test is judged
    scenario = reference.run.scenario
    if scenario is None or scenario not in context.round.result_keys:
        return
    found = compare(context.round, name, scenario, reference.logs.detail, test.logs.detail)
    if not found.passed:
        what = f"the logs of this tree do not pass: {found.reason or found.text.splitlines()[-1]}"
        claimed = PASS in (text_of(context, path) or "")
        what += f"; {VERIFY_PERFORMANCE} claims that they do" if claimed else ""
        yield audit.unseen("compliance-recomputed", path, what, AGAIN)
    yield from _scores(audit, path, found.reference, found.score)
    if first is None and _figures(test) and _figures(test) == _figures(reference):
        what = "its latencies are those of the performance test to the last ns: it is no test of its own"
        yield audit.unseen("compliance-copied", audit.logs_folder / DETAIL, what, AGAIN)


def _figures(test: Test) -> tuple[object, ...]:
    """What no two tests share: the latencies to the ns; nothing where they are not logged."""
    found = test.run.latencies
    told = (found.min_ns, found.max_ns, found.mean_ns, *found.percentiles_ns.values())
    return told if found.mean_ns is not None and len(set(told)) > 1 else ()


def _scores(audit: Audit, path: Path, reference: float | None, score: float | None) -> Iterator[Finding]:
    """Whether the verdict is on these logs: it names the scores that it compared."""
    text = text_of(audit.context, path) or ""
    for pattern, own, whose in ((_REFERENCE, reference, "reference"), (_SCORE, score, "test")):
        found = pattern.search(text)
        try:
            claimed = float(found[1]) if found else None
        except ValueError:
            claimed = None
        if claimed is None or own is None:
            continue
        if not abs(claimed - own) <= SCORE_SLACK * abs(own) + TWO_DECIMALS:
            what = f"the {whose} score is said to be {claimed:g}, the logs of this tree have {own:g}"
            mend = "verify again with the logs that are submitted"
            yield audit.unseen("compliance-other-logs", path, what, mend)
