"""How a result was measured: user.conf, mlperf.conf, README.md, the implementation's description, code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.check.finding import Context, Finding, Official
from orchestrator.paths import USER_CONF
from orchestrator.rules import Round
from orchestrator.submission.tree import Cell

README = "README.md"
MLPERF_CONF = "mlperf.conf"
# SYSTEM_IMP_REQUIRED_FILES of all checkers; the newest also wants something in each.
FIELDS = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)
# "N", "No", "none", "0", "We don't retrain the model weight.": all 3,000 of closed, v1.0 to v5.1.
NOT_RETRAINED = re.compile(r"^(n|no|none|n/a|0|false)\b|\b(not|never|without)\b|n['\u2019]t\b", re.IGNORECASE)
README_WORDS = 5  # fewer say nothing about how to repeat a run: a title, a promise
LARGEST_REDIRECT_BYTES = 4096  # code/MODEL as a file names one folder
_SEED = re.compile(r"^\s*\*\.\*\.(\w+_rng_seed)\s*=\s*(\d+)\s*$", re.MULTILINE)


def measurements(context: Context, cell: Cell) -> Iterator[Finding]:
    """The folder of a result's measurements: files that must be there, and what they say."""
    folder = cell.measurements(context.layout)
    if not context.is_folder(folder):
        yield context.finding(
            "measurements-missing",
            folder,
            "the result has no measurements",
            "add user.conf, mlperf.conf, README.md and the implementation's description",
            official="error",  # "no measurement_dir for", NoResults
        )
        return
    yield from _files(context, folder)
    yield from _implementation(context, cell, folder)
    yield from _seeds(context, folder / MLPERF_CONF)


def _missing(context: Context) -> Official:
    """measurement_dir has issues: v1.x logs it (errors += 1) and goes on, the newest exits with 1."""
    return "error" if context.layout.one_tree else "logged"


def _files(context: Context, folder: Path) -> Iterator[Finding]:
    mends = {
        USER_CONF: "add the user.conf that the run was started with",
        MLPERF_CONF: "add the round's mlperf.conf, unchanged",
        README: "write how to repeat this run: commands, data, software versions",
    }
    for name in mends:
        path = folder / name
        # LoadGen 6 has the settings of mlperf.conf built in, and the newest checker no longer asks for it.
        built_in = name == MLPERF_CONF and context.layout.one_tree
        if not context.is_file(path):
            official: Official = "unseen" if built_in else _missing(context)
            yield context.finding(
                f"{_rule(name)}-missing", path, f"{name} is missing", mends[name], official=official
            )
        elif path.stat().st_size == 0:
            yield context.finding(
                f"{_rule(name)}-empty",
                path,
                f"{name} is empty",
                mends[name],
                official="error" if context.layout.one_tree and not built_in else "unseen",
            )
        elif name == README and len((context.text(path) or "").split()) < README_WORDS:
            yield context.finding(
                "readme-says-nothing", path, f"{name} does not tell how to repeat the run", mends[name]
            )


def _rule(name: str) -> str:
    return {USER_CONF: "user-conf", MLPERF_CONF: "mlperf-conf", README: "readme"}[name]


def _seeds(context: Context, path: Path) -> Iterator[Finding]:
    """mlperf.conf is the round's own: its seeds tell which round it is of."""
    for name, told in _SEED.findall(context.text(path) or ""):
        wanted = _seed_of(context.round, name)
        if wanted is not None and int(told[:30]) != wanted:
            yield context.finding(
                "mlperf-conf-of-another-round",
                path,
                f"{name} is {told[:30]}; {context.round.name} has {wanted}",
                f"add the mlperf.conf of {context.round.name}, and see whether the runs used it",
            )


def _seed_of(rules: Round, name: str) -> int | None:
    return rules.seeds.get(name)


# The implementation's description


def _implementation(context: Context, cell: Cell, folder: Path) -> Iterator[Finding]:
    path = implementation_json(context, cell)
    if path is None:
        name = context.layout.implementation_json(cell.system, "IMPLEMENTATION", cell.scenario)
        yield context.finding(
            "implementation-missing",
            folder / name,
            "the implementation's description is missing",
            f"add {name} with {', '.join(FIELDS)}",
            official=_missing(context),
        )
        return
    if not context.layout.one_tree:
        yield from _name(context, cell, path)
        yield from _code(context, cell, path)
    try:
        values: Any = json.loads((context.text(path) or "").encode())
        wrong = None if isinstance(values, dict) else "is no JSON object"
    except (ValueError, RecursionError) as error:
        wrong = f"is not JSON: {error}"
    if wrong:
        yield context.finding(
            "implementation-unreadable",
            path,
            f"{path.name} {wrong}",
            f"write a JSON object with {', '.join(FIELDS)}",
            official="error",  # json.load ends the checkers with a traceback
        )
        return
    yield from _fields(context, path, values)
    told = values.get("retraining")
    if context.enforced(cell.submission) and told and not NOT_RETRAINED.search(str(told).strip()):
        division = cell.submission.division
        yield context.finding(
            "retraining",
            path,
            f'retraining is "{str(told)[:60]}", which the {division} division does not allow',
            'write "No" if the weights are the reference\'s; else submit in the open division',
        )


def _fields(context: Context, path: Path, values: dict[str, Any]) -> Iterator[Finding]:
    for name in FIELDS:
        if name not in values:
            yield context.finding(
                "implementation-field",
                path,
                f"{name} is missing",
                f'add "{name}"',
                official=_missing(context),
            )
        elif not values[name] or not str(values[name]).strip():
            yield context.finding(
                "implementation-field",
                path,
                f"{name} is empty",
                'say what holds, as text: "retraining" is "N" or "Y"',
                official="error" if context.layout.one_tree and not values[name] else "unseen",
            )


def implementation_json(context: Context, cell: Cell) -> Path | None:
    """The implementation's description as the round's checker finds it; None if there is none."""
    folder = cell.measurements(context.layout)
    if context.layout.one_tree:
        path = folder / context.layout.implementation_json(cell.system, "", cell.scenario)
        return path if context.is_file(path) else None
    names = [
        name
        for name in context.names(folder)
        if name.startswith(cell.system) and name.endswith(".json") and context.is_file(folder / name)
    ]
    # check_measurement_dir takes the first in the order of the disk; the one with the scenario is meant.
    names.sort(key=lambda name: (not name.endswith(f"_{cell.scenario}.json"), name))
    return folder / names[0] if names else None


def _name(context: Context, cell: Cell, path: Path) -> Iterator[Finding]:
    """<system>_<implementation>_<scenario>.json; a result that is inferred keeps its source's name."""
    tail = path.stem.removeprefix(cell.system).lower()
    ends = {cell.scenario.lower()} | ({"singlestream"} if context.scenario(cell) == "Offline" else set())
    if not tail.startswith("_") or not any(tail.endswith(f"_{end}") for end in ends):
        wanted = context.layout.implementation_json(cell.system, "IMPLEMENTATION", cell.scenario)
        yield context.finding(
            "implementation-name",
            path,
            f"{path.name} does not say which implementation and scenario it describes",
            f"name it {wanted}, after code/{cell.model}/IMPLEMENTATION",
        )
    others = [
        name
        for name in context.names(path.parent)
        if name.startswith(cell.system) and name.endswith(".json") and name != path.name
    ]
    if others:
        yield context.finding(
            "implementation-twice",
            path.parent,
            f"{path.name} and {', '.join(others)} may each be the description: which one is read is chance",
            "keep one of them",
        )


def _code(context: Context, cell: Cell, described: Path) -> Iterator[Finding]:
    """code/<model>/<implementation>, or code/<model> as a file with one line: another folder under code/."""
    implementation = described.stem.removeprefix(cell.system).rpartition("_")[0].strip("_")
    code = cell.submission.path / "code"
    folder = code / cell.model
    if context.is_file(folder):
        told = (context.text(folder) or "")[:LARGEST_REDIRECT_BYTES].strip()
        target = PurePosixPath(told)
        if not told or "\n" in told or "\0" in told or target.is_absolute() or ".." in target.parts:
            yield context.finding(
                "code-missing",
                folder,
                f"code/{cell.model} is a file that names no folder under code/",
                "write the name of one folder under code/ into it, in one line",
                official="logged",
            )
            return
        folder = code / told
    if folder.is_symlink() and context.is_folder(folder.resolve()):
        return  # a link within the tree: hygiene's
    if not context.is_folder(folder):
        where = context.relative(folder)
        yield context.finding(
            "code-missing",
            folder,
            f"the code of {cell.model} is missing: {where} is not there",
            f"add the code as code/{cell.model}/{implementation or 'IMPLEMENTATION'}",
            official="logged",  # "is missing code_dir"
        )
        return
    own = folder / implementation
    if not any(True for _ in context.files(own if context.is_folder(own) else folder)):
        yield context.finding(
            "code-empty",
            own if context.is_folder(own) else folder,
            f"the code of {cell.model} is an empty folder",
            "add the code that was run, or what tells where it is and which version it was",
        )
