"""Results that the edge suite may take from another scenario's run (rules, Scenario inference). Reads logs.

v1.x: Offline from SingleStream. Since v2.0 (checked at head): Offline from MultiStream or SingleStream, and
MultiStream from SingleStream, eight times its early-stopping estimate, which takes 662 queries or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.loadgen_logs import LogError, read_run
from orchestrator.loadgen_metrics import Metric
from orchestrator.rules import Round
from orchestrator.submission.gather import Evidence
from orchestrator.submission.refusal import SubmitError

# Target -> sources, the better first: MultiStream's mean is of queries of eight samples.
_SOURCES = {"MultiStream": ("SingleStream",), "Offline": ("MultiStream", "SingleStream")}


def with_inferred(found: Round, suite: str, cells: Sequence[Evidence]) -> list[Evidence]:
    """`cells`, and those that the suite asks for and that can be inferred; SubmitError if none can."""
    if suite != "edge":
        raise SubmitError(
            f"results are inferred in suite edge only (rules, Scenario inference), not in {suite}"
        )
    done = list(cells)
    for benchmark in dict.fromkeys(cell.benchmark for cell in cells):
        present = {cell.scenario: cell for cell in cells if cell.benchmark == benchmark}
        place = found.place(suite, benchmark)
        wanted = place.rules.required if place else ()
        for target in wanted:
            if target in present or target not in _SOURCES:
                continue
            for source in _SOURCES[target]:
                if source in present and inferred(found, present[source], target):
                    done.append(replace(present[source], scenario=target, inferred_from=source))
                    break
    if len(done) == len(cells):
        raise SubmitError(
            "nothing can be inferred: no required scenario is missing that a stream's run gives (MultiStream "
            "from SingleStream takes 662 queries or more and round v2.0 or later)"
        )
    return done


def inferred(found: Round, cell: Evidence, target: str) -> Metric | None:
    """The result that the cell's run gives for another scenario; None where it gives none."""
    try:
        run = read_run(cell.performance.folder, found.name, read_answers=False)
    except LogError as error:
        raise SubmitError(str(error)) from None
    return run.inferred(target, found.name)


def metric(found: Round, cell: Evidence) -> Metric | None:
    """The cell's result as the round's checker reads it."""
    try:
        run = read_run(cell.performance.folder, found.name, read_answers=False)
    except LogError as error:
        raise SubmitError(str(error)) from None
    return run.inferred(cell.scenario, found.name) if cell.inferred_from else run.metric_of(found.name)
