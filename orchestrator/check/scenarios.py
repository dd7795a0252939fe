"""Models and scenarios: known to the round, in their suite, in the right spelling, and complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.check.finding import Context, Finding, Official
from orchestrator.submission.layout import MAPPING
from orchestrator.submission.tree import Cell, Submission


def models(context: Context, submission: Submission) -> Iterator[Finding]:
    """Each model of each system: its name, its suite, its scenarios."""
    by_model: dict[Path, list[Cell]] = defaultdict(list)
    for cell in submission.cells():
        by_model[cell.path.parent].append(cell)
    for folder in _model_folders(context, submission):
        cells = by_model.get(folder)
        if not cells:
            yield context.finding(
                "no-scenario",
                folder,
                f"{folder.name} has no scenario",
                "add the results of its scenarios, or remove the folder",
                # "does not have all required scenarios"; the newest lists the scenarios it finds: none, and
                # ends with a TypeError where the model is of another suite.
                official="error"
                if context.enforced(submission) and _is_missed(context, submission, folder)
                else "unseen",
            )
            continue
        yield from _model(context, folder, cells)
    yield from _twice(context, submission)


def _is_missed(context: Context, submission: Submission, folder: Path) -> bool:
    somewhere = Cell(submission, folder.parent.name, folder.name, context.round.scenarios[-1])
    return not context.layout.one_tree or context.place(somewhere) is None


def _model_folders(context: Context, submission: Submission) -> Iterator[Path]:
    results = submission.path / "results"
    for system in context.names(results):
        if not context.is_folder(results / system) or system.startswith("."):
            continue
        models = [n for n in context.names(results / system) if context.is_folder(results / system / n)]
        for model in models:
            if not model.startswith("."):
                yield results / system / model


def _model(context: Context, folder: Path, cells: Sequence[Cell]) -> Iterator[Finding]:
    cell = cells[0]
    benchmark, suite = context.benchmark(cell), context.suite(cell)
    for one in cells:
        yield from _spelling(context, one)
    if benchmark is None:
        yield _unknown_model(context, folder, cell)
        return
    if suite is None:  # said of the system
        return
    if context.place(cell) is None:
        known = ", ".join(context.round.suite(suite))
        yield context.finding(
            "model-not-in-suite",
            folder,
            f"{benchmark.name} is no benchmark of the suite {suite} in {context.round.name}: it has {known}",
            "submit it with a system of another system_type, or leave it out",
            # "has a invalid model"; of the newest TypeError, in the divisions whose scenarios it compares.
            official="error"
            if context.enforced(cell.submission) or not context.layout.one_tree
            else "unseen",
        )
        return
    if context.enforced(cell.submission):
        yield from _complete(context, folder, cells)


def _unknown_model(context: Context, folder: Path, cell: Cell) -> Finding:
    known = ", ".join(context.round.benchmark_names())
    if cell.submission.division == "open":
        mend = f"name the folder after the benchmark: {known}"
        if context.layout.one_tree:
            mapping = f'{{"{cell.model}": "resnet"}}'
            mend = f"say in {MAPPING} in the submitter's folder what it is, as in {mapping}; known: {known}"
    else:
        mend = f"name the folder after the benchmark: {known}"
    told = context.official_model(cell)
    stands = "" if told == cell.model else f" (mapped to {told})"
    return context.finding(
        "unknown-model",
        folder,
        f"{cell.model}{stands} is no benchmark that LoadGrid knows of {context.round.name}, "
        "so its targets were not judged",
        mend,
        # "has a invalid model"; ValueError or TypeError of the newest, which knows more models than LoadGrid
        official="error",
    )


def _spelling(context: Context, cell: Cell) -> Iterator[Finding]:
    """Folders count by their exact name or in lower case: SCENARIO_MAPPING, UNIT_DICT of the newest."""
    scenario = context.scenario(cell)
    if scenario is None:
        yield context.finding(
            "unknown-scenario",
            cell.path,
            f"{cell.scenario} is no scenario of {context.round.name}",
            f"name the folder {', '.join(context.round.scenarios)}, or remove it",
            official="error" if context.enforced(cell.submission) or context.layout.one_tree else "unseen",
        )
        return
    if cell.scenario not in (scenario, scenario.lower()):
        yield context.finding(
            "scenario-spelling",
            cell.path,
            f"{cell.scenario} is a spelling of {scenario} that checkers do not take",
            f"name the folder {scenario}",
            official="error" if context.enforced(cell.submission) or context.layout.one_tree else "unseen",
        )
    elif cell.scenario == "multistream" and context.round.fixed_interval_multistream:
        benchmark = context.benchmark(cell)
        tests = benchmark.compliance_tests if benchmark else ()
        if context.enforced(cell.submission) and any(test.startswith("TEST04") for test in tests):
            yield context.finding(
                "scenario-spelling",
                cell.path,
                "the checker takes TEST04 off for the exact spelling MultiStream only",
                "name the folder MultiStream, in compliance and measurements too",
                official="logged",  # "Missing TEST04-A in compliance dir"
            )


def _complete(context: Context, folder: Path, cells: Sequence[Cell]) -> Iterator[Finding]:
    """Both lists bind: the rules' text, and the checker's, which asks for less in old rounds (Place)."""
    place = context.place(cells[0])
    if place is None:
        return
    have = {context.scenario(cell) for cell in cells}
    for scenario in context.round.scenarios:
        by_checker = scenario in place.checker.required
        if scenario in have or not (by_checker or scenario in place.rules.required):
            continue
        who = "the rules and the checker ask" if by_checker else "the rules ask (the checker does not)"
        inferred = _inferable(context, scenario, have)
        yield context.finding(
            "missing-scenario",
            folder,
            f"{scenario} is missing, for which {who}",
            f"add {folder.name}/{scenario}{inferred}",
            official="error" if by_checker else "unseen",
        )
    for cell in cells:
        found = context.scenario(cell)
        if found is None:
            continue
        official: Official = "unseen" if place.checker.allows(found) else "error"
        if not place.rules.allows(found) or official == "error":
            yield context.finding(
                "scenario-not-in-suite",
                cell.path,
                f"{found} is no scenario of {folder.name} in the suite {context.suite(cell)} "
                f"of {context.round.name}",
                "remove the result, with its measurements and compliance tests",
                official=official,
            )


def _inferable(context: Context, scenario: str, have: set[str | None]) -> str:
    """What may be copied instead of run, by the rules and preprocess_submission.py."""
    sources: dict[str, tuple[str, ...]] = {"Offline": ("SingleStream",)}
    if context.layout.one_tree:
        sources = {"Offline": ("MultiStream", "SingleStream"), "MultiStream": ("SingleStream",)}
    source = next((name for name in sources.get(scenario, ()) if name in have), None)
    return f" (on edge systems it may be inferred: a copy of {source}'s folders)" if source else ""


def _twice(context: Context, submission: Submission) -> Iterator[Finding]:
    """One system, benchmark and scenario is one result; open submissions may bring several models for one."""
    seen: dict[tuple[str, str, str], Cell] = {}
    for cell in submission.cells():
        benchmark, scenario = context.benchmark(cell), context.scenario(cell)
        name = cell.model if submission.division == "open" or benchmark is None else benchmark.name
        key = (cell.system, name, scenario or cell.scenario)
        first = seen.setdefault(key, cell)
        if first is not cell:
            yield context.finding(
                "duplicate-result",
                cell.path,
                f"{first.model}/{first.scenario} of this system is the same benchmark and scenario",
                "keep one of the two",
            )
