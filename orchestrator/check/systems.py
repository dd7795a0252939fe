"""Systems: their descriptions, and that results, measurements and compliance belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.check.finding import Context, Finding, Official, suite_name
from orchestrator.check.nameplate import POWER_YAML, nameplate
from orchestrator.submission import system as described
from orchestrator.submission.tree import Submission


def systems(context: Context, submission: Submission) -> Iterator[Finding]:
    """Each system of a submission: described, well, and with results."""
    folder, results = submission.path / "systems", submission.path / "results"
    with_results = {name for name in context.names(results) if context.is_folder(results / name)}
    for name in sorted(with_results):
        path = folder / f"{name}.json"
        if not context.is_file(path):
            yield context.finding(
                "system-missing",
                path,
                f"the system {name} has results and no description",
                f"write one with `loadgrid describe-system`, as systems/{name}.json",
                # "no system_desc for"; the newest checker ends with AttributeError.
                official="error",
            )
    for name in context.names(folder):
        path = folder / name
        if path.is_symlink() or name.startswith("."):  # hygiene's
            continue
        if not name.endswith(".json"):
            if name.endswith(POWER_YAML) and context.is_file(path):
                yield from nameplate(context, path, with_results)
            else:
                yield _stray(context, path)
            continue
        used = path.stem in with_results
        yield from _description(context, submission, path, used)
        if not used:
            yield context.finding(
                "system-without-results",
                path,
                f"the system {path.stem} is described and has no results",
                "remove the description, or add the system's results",
            )


def _description(context: Context, submission: Submission, path: Path, used: bool) -> Iterator[Finding]:
    try:
        found = described.read_system(path)
    except described.SystemError as error:
        message = str(error).replace(str(path), path.name)
        mend = "mend the file; `loadgrid describe-system` writes one of the right form"
        # json.load ends the checkers with a traceback, where they come to read it.
        yield context.finding("system-unreadable", path, message, mend, official=_if(used, "error"))
        return
    for name in found.repeated:
        yield context.finding(
            "system-field",
            path,
            f"{name} stands there more than once; the last value counts",
            f"keep one line of {name}",
        )
    for problem in described.problems(
        found.values, context.layout, submission.division, submission.submitter
    ):
        yield context.finding(
            "system-field",
            path,
            f"{problem.field} {problem.message}",
            f"mend {problem.field} in {path.name}",
            official=_if(used, "error" if problem.fatal else "logged" if problem.logged else "unseen"),
        )
    if used and suite_name(found.values.get("system_type")) is None:
        # What belongs to the suite (scenarios, benchmarks) cannot be judged without it: said once, here.
        yield context.finding(
            "suite-unknown",
            path,
            "system_type names no suite, so the system's scenarios and benchmarks were not judged",
            'write "datacenter", "edge" or "datacenter,edge", and check again',
            official="error",
        )


def _if(used: bool, official: Official) -> Official:
    """Descriptions without results are never read."""
    return official if used else "unseen"


def _stray(context: Context, path: Path) -> Finding:
    return context.finding(
        "stray",
        path,
        f"{path.name} has no place in systems/, which holds SYSTEM.json files",
        "move it to where it belongs, or remove it",
    )


def orphans(context: Context, submission: Submission) -> Iterator[Finding]:
    """Measurements and compliance of results that are not there; since v6.0 they lie in one folder."""
    if context.layout.one_tree:
        return
    for part in ("measurements", "compliance"):
        top = submission.path / part
        for system, model, scenario in _cells(context, top):
            if not context.is_folder(submission.path / "results" / system / model / scenario):
                yield context.finding(
                    f"{part}-without-results",
                    top / system / model / scenario,
                    f"{part} of a result that is not there",
                    f"remove the folder, or add results/{system}/{model}/{scenario}",
                )


def _cells(context: Context, top: Path) -> Iterator[tuple[str, str, str]]:
    for system in context.names(top):
        for model in context.names(top / system):
            for scenario in context.names(top / system / model):
                if context.is_folder(top / system / model / scenario):
                    yield system, model, scenario
