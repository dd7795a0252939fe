"""Which files lie in a result's folders: what is missing, what is too much, what is in the wrong place.

What is missing is found here and nowhere else: the checks of logs judge the files that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.check.finding import Context, Finding, Official
from orchestrator.paths import (
    ACCURACY_LOG,
    ACCURACY_TXT,
    AUDIT_CONFIG,
    BASELINE_TXT,
    COMPLIANCE_TXT,
    DETAIL,
    SUMMARY,
    VERIFY_ACCURACY,
    VERIFY_PERFORMANCE,
)
from orchestrator.submission.layout import RUN, SPL
from orchestrator.submission.tree import Cell, Submission

# Always tolerated by files_diff of all checkers.
TOLERATED = {"mlperf_log_trace.json", "results.json"}
POWER, RANGING = "power", "ranging"
LOGS = (SUMMARY, DETAIL)
AGAIN = "add the file as the test left it"
# Whole trees of their own, in the folder of a result since v6.0.
TEST = re.compile(r"TEST\d\d(-[AB])?")
PRIVATE_ID = "privateid.json"


def contents(context: Context, cell: Cell) -> Iterator[Finding]:
    """The files of a result's performance and accuracy tests."""
    power = context.is_folder(cell.path / "performance" / POWER)
    yield from _logs(context, cell)
    yield from _accuracy(context, cell)
    extra = {ACCURACY_LOG} | ({SPL} if power else set())
    # Checkers of v1.x call it a file list mismatch, and the newest does not look at these two folders.
    binding: Official = "unseen" if context.layout.one_tree else "logged"
    yield from _extra(context, cell.performance, {*LOGS, *extra}, binding)
    yield from _extra(context, cell.accuracy, {*LOGS, ACCURACY_LOG, ACCURACY_TXT}, binding)
    yield from _misplaced(context, cell.path / "performance", {RUN, POWER, RANGING}, set())
    if context.layout.one_tree:
        own = {"user.conf", "README.md", "measurements.json", "mlperf.conf"}
        yield from _misplaced(context, cell.path, {"performance", "accuracy", TEST.pattern}, own)
    else:
        yield from _misplaced(context, cell.path, {"performance", "accuracy"}, set())


def _logs(context: Context, cell: Cell) -> Iterator[Finding]:
    newest = context.layout.one_tree
    if not context.is_folder(cell.performance):
        yield context.finding(
            "performance-missing",
            cell.performance,
            "the result has no performance test",
            "add performance/run_1 with the test's logs",
            official="error",  # "is missing", NoResults
        )
        return
    # A folder without the detail log raises in the checkers; the summary is missed by those of v1.x, which
    # compare lists of names, but only while the folder holds any file at all (files_diff).
    for name, official in ((DETAIL, "error"), (SUMMARY, "unseen" if newest else "logged")):
        if not context.is_file(cell.performance / name):
            holds = bool(context.names(cell.performance))
            seen: Official = official if official == "error" or holds else "unseen"  # type: ignore[assignment]
            yield _missing(context, cell.performance / name, seen)


def _accuracy(context: Context, cell: Cell) -> Iterator[Finding]:
    newest, enforced = context.layout.one_tree, context.enforced(cell.submission)
    if not context.is_folder(cell.accuracy):
        yield context.finding(
            "accuracy-missing",
            cell.accuracy,
            "the result has no accuracy test",
            "add accuracy/ with the test's logs and accuracy.txt",
            official="error",
        )
        return
    # The open division of v1.x takes any accuracy.txt as it is: "accuracy not valid but taken for open".
    binding: Official = "error" if newest or enforced else "logged"
    files: tuple[tuple[str, Official], ...] = (
        (ACCURACY_TXT, "error"),
        (DETAIL, binding),
        (ACCURACY_LOG, binding),
        (SUMMARY, "unseen" if newest else "logged"),
    )
    for name, official in files:
        if not context.is_file(cell.accuracy / name):
            yield _missing(context, cell.accuracy / name, official)


def _missing(context: Context, path: Path, official: Official) -> Finding:
    return context.finding("file-missing", path, f"{path.name} is missing", AGAIN, official=official)


def _extra(context: Context, folder: Path, known: set[str], binding: Official) -> Iterator[Finding]:
    """Files that a folder of logs does not hold; folders no checker looks at."""
    for name in context.names(folder):
        path = folder / name
        if name in known or name in TOLERATED or name.startswith(".") or path.is_symlink():
            continue
        if name == AUDIT_CONFIG:
            mend = "remove it, and see that the run did not use it: it changes seeds and settings"
        else:
            mend = "remove it from the tree"
        what = "a folder" if path.is_dir() else "a file"
        yield context.finding(
            "extra-file",
            path,
            f"{name} is {what} that has no place in {folder.parent.name}/{folder.name}",
            mend,
            official="unseen" if path.is_dir() else binding,
        )


def _misplaced(context: Context, folder: Path, folders: set[str], files: set[str]) -> Iterator[Finding]:
    for name in context.names(folder):
        path = folder / name
        if name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            if any(re.fullmatch(known, name) for known in folders):
                continue
            if re.fullmatch(r"run_\d+", name):
                yield context.finding(
                    "extra-run",
                    path,
                    f"{name}: a result has one performance test, {RUN}; no other is read",
                    f"keep the run that counts as {RUN}, and remove the others",
                )
                continue
        elif name in files:
            continue
        yield _stray(context, path)


def _stray(context: Context, path: Path) -> Finding:
    what = "a folder" if path.is_dir() else "a file"
    return context.finding(
        "stray",
        path,
        f"{what} that has no place here",
        "move it to where it belongs, or remove it",
    )


def levels(context: Context, submission: Submission) -> Iterator[Finding]:
    """Files above the folders of results: results/SYSTEM/MODEL hold folders only, so do the other trees."""
    trees = ("results",) if context.layout.one_tree else ("results", "measurements", "compliance")
    for tree in trees:
        top = submission.path / tree
        for folder in _upper(context, top, 0):
            for name in context.names(folder):
                path = folder / name
                if name.startswith(".") or path.is_symlink() or path.is_dir() or _serves_many(tree, name):
                    continue
                yield _stray(context, path)


def _serves_many(tree: str, name: str) -> bool:
    """What may lie above the folders of one result, by the rules.

    Of measurements the power analyser's settings and documents, of results what the checker itself wrote:
    compliance_checker_log.txt (rules of v1.x), privateid.json (--private-ids of the newest checker).
    """
    if tree == "measurements":
        return name.lower().startswith(("analyzer", "power", "readme", "calibration"))
    return name == PRIVATE_ID or "_checker" in name


def _upper(context: Context, folder: Path, depth: int) -> Iterator[Path]:
    if not context.is_folder(folder):
        return
    yield folder
    if depth < 2:
        for name in context.names(folder):
            yield from _upper(context, folder / name, depth + 1)


def compliance_folders(context: Context, cell: Cell) -> Iterator[Finding]:
    """A folder for every compliance test that the round asks for; what is in them, others judge."""
    benchmark, scenario = context.benchmark(cell), context.scenario(cell)
    if not context.enforced(cell.submission) or benchmark is None or scenario is None:
        return
    place = context.place(cell)
    if place is not None and not place.checker.allows(scenario):
        return  # the result itself has no place: said already
    wanted = context.round.compliance_tests(benchmark.name, scenario)
    missing = [test for test in wanted if not context.is_folder(cell.compliance(context.layout, test))]
    official: Official = "error" if context.layout.one_tree else "logged"
    if wanted and len(missing) == len(wanted):
        yield _no_tests(context, cell, wanted, official)
        return
    for test in missing:
        yield context.finding(
            "compliance-test-missing",
            cell.compliance(context.layout, test),
            f"{test} is missing, which {benchmark.name} needs in {scenario}",
            f"run {test} (`loadgrid run --compliance`) and submit again",
            official=official,  # "Missing TEST05 in compliance dir"
        )
    have = cell.compliance(context.layout, wanted[0]).parent if wanted else cell.path
    for name in context.names(have):
        # A test that the scenario is exempt from may be there; one that the round has not may not.
        known = name in wanted or name in context.round.compliance
        if not known and context.is_folder(have / name) and TEST.fullmatch(name):
            yield context.finding(
                "compliance-test-unknown",
                have / name,
                f"{context.round.name} has no {name}: the tests of {benchmark.name} are {', '.join(wanted)}",
                "remove the folder",
            )


def compliance_files(context: Context, cell: Cell) -> Iterator[Finding]:
    """What lies in the folders of compliance tests and does not belong there; what is missing, others say."""
    benchmark = context.benchmark(cell)
    top = cell.compliance(context.layout, "TEST").parent
    # check_compliance_perf_dir of the newest checker; those of v1.x only tell (log.info).
    binding: Official = "error" if context.layout.one_tree else "unseen"
    for name in context.names(top):
        folder = top / name
        if not TEST.fullmatch(name) or not context.is_folder(folder):
            continue
        run = folder / "performance" / RUN
        wanted = benchmark is not None and name in benchmark.compliance_tests
        read = wanted and context.enforced(cell.submission)
        yield from _extra(context, run, {*LOGS, ACCURACY_LOG}, binding if read else "unseen")
        answers = {ACCURACY_LOG, ACCURACY_TXT, BASELINE_TXT, COMPLIANCE_TXT}
        yield from _extra(context, folder / "accuracy", answers, "unseen")
        yield from _misplaced(context, folder / "performance", {RUN}, set())
        yield from _misplaced(
            context, folder, {"performance", "accuracy"}, {VERIFY_PERFORMANCE, VERIFY_ACCURACY}
        )


def _no_tests(context: Context, cell: Cell, wanted: Sequence[str], official: Official) -> Finding:
    folder = cell.path if context.layout.one_tree else cell.compliance(context.layout, wanted[0]).parent
    return context.finding(
        "compliance-missing",
        folder,
        f"the compliance tests are missing: {', '.join(wanted)}",
        "run them (`loadgrid run --compliance`) and submit again",
        official=official,  # "no compliance dir for"
    )
