"""Whether a result's tests belong together, and are no other result's: one LoadGen, one system, no copies."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from orchestrator.check.cell_logs import ACCURACY, PERFORMANCE, Test, own_file, tests_of
from orchestrator.check.finding import Context, Finding
from orchestrator.check.loadgen_origin import SOURCES, source_hash
from orchestrator.paths import DETAIL
from orchestrator.submission.layout import RUN
from orchestrator.submission.tree import Cell, submissions

SHOWN = 3
ONE_RUN = "run the tests of one result with the same LoadGen, system and data set"
# A LoadGen logs its latencies in ns; two tests never share three of them.
LATENCY = re.compile(rb'"key": "(result_[\w.]{1,60}latency_ns)", "value": (\d{1,20})')
FEWEST_FIGURES = 3
LONGEST_BYTES = 64 << 20
Place = tuple[Cell, str]


def consistency(context: Context, cell: Cell) -> Iterator[Finding]:
    """The tests of a cell beside each other, and its logs beside those of the other cells."""
    tests = tests_of(context, cell)
    reference = tests.get(PERFORMANCE)
    if reference is not None:
        for kind, test in tests.items():
            if kind != PERFORMANCE:
                yield from _alike(reference, kind, test)
    yield from _copies(context, cell)


def _alike(reference: Test, kind: str, test: Test) -> Iterator[Finding]:
    """What all tests of a result share. Names of SUTs may differ: some say in which mode they run."""
    loadgens = source_hash(reference), source_hash(test)
    if None in loadgens:  # the same sources may have several revisions
        loadgens = _loadgen(reference), _loadgen(test)
    elif set(loadgens) <= SOURCES[test.context.round.name]:
        loadgens = None, None  # the round has both, which differ in a binding to Python only
    names = reference.run.qsl_name, test.run.qsl_name
    for what, one, other in (("LoadGen", *loadgens), ("the sample library's name", *names)):
        if one is not None and other is not None and one != other:
            shown = [_loadgen(test), _loadgen(reference)] if what == "LoadGen" else [other, one]
            told = f"{what} is {str(shown[0])[:80]}, the performance test's {str(shown[1])[:80]}"
            yield test.finding("tests-differ", f"{kind}: {told}", ONE_RUN)


def _loadgen(test: Test) -> str | None:
    """Version and revision, where both are known."""
    run = test.run
    return f"{run.loadgen_version} @ {run.loadgen_revision}" if run.loadgen_version else None


# Copies


def _copies(context: Context, cell: Cell) -> Iterator[Finding]:
    """Detail logs with the figures of another result's, where no rule lets one test serve both."""
    for kind, folder in _folders(context, cell):
        path = folder / DETAIL
        places = _holders(context).get(_digest(context, path) or "", [])
        others = [place for place in places if place != (cell, kind)]
        wrong = [other for other in others if not _may_share(context, (cell, kind), other)]
        if not wrong:
            yield from _other_accuracy(context, cell, [there for there, its in others if its == PERFORMANCE])
            continue
        names = ", ".join(_named(context, *other) for other in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        what = f"this log is also that of {names}{more}"
        yield context.finding("copied-log", path, what, "run a test of its own for every result")


def _other_accuracy(context: Context, cell: Cell, sharing: list[Cell]) -> Iterator[Finding]:
    """Where 99 % and 99.9 % share a performance test, the accuracy is that of the same model."""
    own = _digest(context, cell.accuracy / DETAIL)
    for there in sharing:
        its = _digest(context, there.accuracy / DETAIL)
        alike = context.scenario(there) == context.scenario(cell) and there.submission == cell.submission
        if alike and own is not None and its is not None and own != its:
            what = f"{context.relative(there.path)} has the same performance test, but another accuracy test"
            mend = "submit the accuracy of the model that the performance test ran"
            yield context.finding("other-accuracy", cell.accuracy / DETAIL, what, mend)


def _named(context: Context, cell: Cell, kind: str) -> str:
    return f"{context.relative(cell.path)} ({kind})"


def _folders(context: Context, cell: Cell) -> Iterator[tuple[str, Path]]:
    yield PERFORMANCE, cell.performance
    yield ACCURACY, cell.accuracy
    benchmark = context.benchmark(cell)
    for test in benchmark.compliance_tests if benchmark else ():
        yield test, cell.compliance(context.layout, test) / PERFORMANCE / RUN


def _may_share(context: Context, one: Place, other: Place) -> bool:
    """One test may serve 99 % and 99.9 % of a benchmark, an inferred scenario, and another division.

    The rules let a 99.9 % result stand for 99 %, an edge stream for other scenarios (preprocess_submission.py
    copies both); a compliance test and the accuracy test go along. Each cell's own checks judge whether the
    accuracy is enough for it, and whether the scenario may be inferred.
    """
    (cell, kind), (there, its_kind) = one, other
    same_system = (cell.submission.submitter, cell.system) == (there.submission.submitter, there.system)
    if kind != its_kind or not same_system:
        return False
    own, its = context.benchmark(cell), context.benchmark(there)
    if own is None or its is None:
        return cell.model == there.model and cell.submission != there.submission
    if own.conf_model_name != its.conf_model_name:
        return False
    if context.scenario(cell) == context.scenario(there):
        return True
    # In the cells of two scenarios one of them is inferred: its performance logs say so, and the checks of
    # the scenario judge it. An accuracy test of one scenario is none of another, but where that is inferred.
    return _shared_performance(context, cell, there)


def _shared_performance(context: Context, cell: Cell, there: Cell) -> bool:
    """Byte for byte: an inferred result has the very log, which says its true scenario."""
    own = _digest(context, cell.performance / DETAIL, of_figures=False)
    return own is not None and own == _digest(context, there.performance / DETAIL, of_figures=False)


def _holders(context: Context) -> dict[str, list[Place]]:
    """Which cells hold a log, by its hash: of the whole tree, reckoned once for it."""
    if "holders" not in context.reckoned:
        found: dict[str, list[Place]] = defaultdict(list)
        for place, folder in _places(context):
            digest = _digest(context, folder / DETAIL)
            if digest is not None:
                found[digest].append(place)
        context.reckoned["holders"] = found
    holders: dict[str, list[Place]] = context.reckoned["holders"]
    return holders


def _places(context: Context) -> Iterator[tuple[Place, Path]]:
    for submission in submissions(context.root):
        for cell in submission.cells():
            for kind, folder in _folders(context, cell):
                yield (cell, kind), folder


def _digest(context: Context, path: Path, *, of_figures: bool = True) -> str | None:
    """What no two logs share: the latencies to the ns, else every byte; None for none, or an empty one."""
    if not own_file(context, path):
        return None
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            figures = dict(LATENCY.findall(file.read())) if of_figures and size <= LONGEST_BYTES else {}
            if len(set(figures.values())) >= FEWEST_FIGURES:
                return hashlib.sha256(repr(sorted(figures.items())).encode()).hexdigest()
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest() if size else None
    except OSError:
        return None
