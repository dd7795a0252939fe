"""The logs of one test in a tree, read once for all checks, and what every check of logs asks of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator.check.finding import Context, Finding, Official
from orchestrator.loadgen_logs import contradictions, read_run
from orchestrator.loadgen_run import LoadgenRun
from orchestrator.loadgen_summary import read_summary
from orchestrator.logs import DetailLog, LogError, read_detail
from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY
from orchestrator.rules import Benchmark
from orchestrator.submission.layout import LONGEST_ACCURACY_LOG_BYTES, RUN
from orchestrator.submission.tree import Cell

LOGS = (DETAIL, SUMMARY, ACCURACY_LOG)
TEXT_BYTES = (
    4 << 20
)  # of accuracy.txt and verify_*.txt; real ones have some kB, the reference's output included
PERFORMANCE, ACCURACY = "performance", "accuracy"


@dataclass(frozen=True)
class Logs:
    """One test's logs: the typed run, the detail log's entries, and what the summary says otherwise."""

    run: LoadgenRun
    detail: DetailLog
    contradictions: tuple[str, ...]


@dataclass(frozen=True)
class Test:
    """One test of a cell with its logs; `kind` is performance, accuracy or a compliance test's name."""

    __test__ = False

    context: Context
    cell: Cell
    kind: str
    folder: Path
    logs: Logs

    @property
    def run(self) -> LoadgenRun:
        """What its logs tell."""
        return self.logs.run

    @property
    def benchmark(self) -> Benchmark | None:
        """The cell's benchmark, None where the round does not know the model."""
        return self.context.benchmark(self.cell)

    @property
    def scenario(self) -> str | None:
        """The scenario that LoadGen ran: the one that checkers judge by, whatever the folder's name."""
        run = self.run.scenario
        return run if run in self.context.round.scenarios else None

    @property
    def enforced(self) -> bool:
        """Whether targets and settings bind: the open division chooses them."""
        return self.context.enforced(self.cell.submission)

    def finding(
        self, rule: str, message: str, mend: str, old: Official = "unseen", newest: Official = "unseen"
    ) -> Finding:
        """A fault of this test's detail log; `old` is what the checkers of v1.x do about it in a result.

        Of compliance tests those of v1.x read the verdicts only; the newest judges TEST01 and TEST04 as it
        does the performance test (compliance_check.py, performance_check).
        """
        seen = newest if self.context.layout.one_tree else old
        if self.kind not in (PERFORMANCE, ACCURACY) and not self.context.layout.one_tree:
            seen = "unseen"
        return self.context.finding(rule, self.folder / DETAIL, message, mend, official=seen)


def official(context: Context, old: Official, newest: Official) -> Official:
    """What the round's checker does: `old` are those of v1.x, `newest` is the one since v5.0."""
    return newest if context.layout.one_tree else old


def test_of(context: Context, cell: Cell, kind: str, folder: Path) -> Test:
    """A test with its logs; LogError says why there are none to judge."""
    if not own_file(context, folder / DETAIL):
        raise LogError(f"there is no {DETAIL}")
    for name in LOGS:
        path = folder / name
        if not own_file(context, path) and os.path.lexists(path):
            raise LogError(f"{name} is no plain file of this tree")
    stamp = tuple(_stamp(folder / name) for name in LOGS)
    try:
        logs = _read(folder, stamp, context.round.name)
    except OSError as error:
        raise LogError(f"{folder.name}: {error.strerror}") from None
    return Test(context, cell, kind, folder, logs)


def tests_of(context: Context, cell: Cell) -> dict[str, Test]:
    """The tests of a cell whose logs can be read: performance, accuracy, compliance tests by their names."""
    folders = {PERFORMANCE: cell.performance, ACCURACY: cell.accuracy}
    benchmark = context.benchmark(cell)
    for test in benchmark.compliance_tests if benchmark else ():
        folders[test] = cell.compliance(context.layout, test) / PERFORMANCE / RUN
    found = {}
    for kind, folder in folders.items():
        try:
            found[kind] = test_of(context, cell, kind, folder)
        except LogError:
            continue  # told by the checks of that test
    return found


def own_file(context: Context, path: Path) -> bool:
    """Whether a path is a plain file of the tree: links may lead out of it, pipes never end."""
    try:
        return context.is_file(path)
    except OSError:  # a folder that may not be searched
        return False


def text_of(context: Context, path: Path) -> str | None:
    """The first megabytes of a text file; None where it is missing or no file of the tree's."""
    if not own_file(context, path):
        return None
    try:
        with open(path, "rb") as file:
            return file.read(TEXT_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=24)  # a cell has up to six tests, each read by several checks
def _read(folder: Path, stamp: tuple[tuple[int, int, int], ...], round_name: str) -> Logs:
    small = 0 < stamp[2][2] <= LONGEST_ACCURACY_LOG_BYTES
    run = read_run(folder, round_name, read_answers=small, detail_alone=True)
    detail = read_detail(folder / DETAIL)
    told = contradictions(detail, read_summary(folder / SUMMARY)) if stamp[1] != (0, 0, 0) else []
    return Logs(run, detail, tuple(told))


def unreadable(context: Context, folder: Path, why: str) -> Finding:
    """Logs that are there and cannot be read; checkers end with an exception."""
    mend = "put the test's logs there as plain files that everybody may read"
    return context.finding(
        "unreadable-log", folder, f"the logs cannot be read: {why}", mend, official="error"
    )


def damage(test: Test) -> Iterator[Finding]:
    """What is broken in the logs themselves."""
    detail, run = test.logs.detail, test.run
    again = "submit the logs as LoadGen wrote them; if they are damaged at their source, run the test again"
    if not detail.form:
        yield test.finding("no-log", f"{DETAIL} holds no line of LoadGen's", again, "error", "error")
        return
    if detail.form == "text":
        what = (
            f"{DETAIL} is in the form of v0.5 and v0.7: the checkers of {test.context.round.name} read MLLOG"
        )
        yield test.finding("old-log", what, "run the test with the round's own LoadGen", "error", "error")
    for text in detail.damaged[:3]:
        more = f" (and {len(detail.damaged) - 1} more)" if len(detail.damaged) > 1 else ""
        yield test.finding("damaged-log", f"{text}{more}", again, "error", "error")
        break
    if detail.cut_short:
        # Without its line break the last line is no JSON, which stops every checker.
        yield test.finding("cut-log", f"{DETAIL} is cut short in its last line", again, "error", "error")
    starts = max(detail.times["loadgen_version"], detail.times["test_datetime"])
    if starts > 1:
        what = f"{DETAIL} holds {starts} tests, of which checkers read the first"
        yield test.finding("several-tests", what, "give every test a folder of its own")
    if "loadgen_version" not in run.values:
        what = f"{DETAIL} does not say LoadGen's version: its beginning is missing"
        yield test.finding("cut-log", what, again)
    for text in test.logs.contradictions:
        yield test.finding("logs-contradict", text, "submit both logs of one and the same run, unchanged")
