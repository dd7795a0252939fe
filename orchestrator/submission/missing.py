"""What a tree still lacks for its division: scenarios and compliance tests. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.rules import Round
from orchestrator.submission.gather import Evidence


def missing(found: Round, suite: str, division: str, cells: Sequence[Evidence]) -> list[str]:
    """Nothing for open, which asks for no scenario and no compliance; for the others as the rules have it."""
    if division == "open":
        return []
    return [*_scenarios(found, suite, cells), *_compliance(found, cells)]


def failures(division: str, cells: Sequence[Evidence]) -> list[str]:
    """Tests of a draft that did not come out as a result must; official records have none."""
    return [text for cell in cells if cell.inferred_from is None for text in _failed(division, cell)]


def _failed(division: str, cell: Evidence) -> Iterator[str]:
    where = f"{cell.benchmark} {cell.scenario}"
    if cell.performance.record.result.valid is not True:
        yield f"{where}: a VALID performance test (LoadGen's verdict is not VALID)"
    got = cell.accuracy.record.accuracy
    if got is None:
        yield f"{where}: a scored accuracy test"
    elif not got.reached and division != "open":
        yield f"{where}: accuracy {got.target:g} {got.unit} (it is {got.value:g})"
    for name, test in cell.audits.items():
        audit = test.record.audit
        if audit is not None and not audit.good:
            yield f"{where}: a {name} that passes ({audit.reason})"


def _scenarios(found: Round, suite: str, cells: Sequence[Evidence]) -> Iterator[str]:
    benchmarks: dict[str, list[str]] = {}
    for cell in cells:
        benchmarks.setdefault(cell.benchmark, []).append(cell.scenario)
    for benchmark, present in benchmarks.items():
        place = found.place(suite, benchmark)
        if place is None:
            yield f"{benchmark}: has no place in suite {suite} of round {found.name}"
            continue
        for scenario in dict.fromkeys((*place.rules.required, *place.checker.required)):
            if scenario not in present:
                yield f"{benchmark}: scenario {scenario} is required in suite {suite}"
        for scenario in present:
            if not place.rules.allows(scenario) and not place.checker.allows(scenario):
                yield f"{benchmark}: scenario {scenario} has no place in suite {suite}; leave it out"


def _compliance(found: Round, cells: Sequence[Evidence]) -> Iterator[str]:
    for cell in cells:
        # Copies of a stream's tests are judged by what the stream must have.
        wanted = found.compliance_tests(cell.benchmark, cell.inferred_from or cell.scenario)
        absent = [test for test in wanted if test not in cell.audits]
        if absent:
            yield f"{cell.benchmark} {cell.scenario}: {', '.join(absent)} (`loadgrid run --compliance`)"
