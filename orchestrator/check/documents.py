"""Documents of a whole submission: calibration, bandwidth, network; its source, its mapping of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.check.finding import Context, Finding
from orchestrator.rules import RulesError
from orchestrator.submission.layout import MAPPING
from orchestrator.submission.tree import Submission

SUFFIXES = (".md", ".adoc", ".txt", ".rst", ".pdf", ".html", "")


def documents(context: Context, submission: Submission) -> Iterator[Finding]:
    """The documents that the rules ask for; no checker looks for any of them, but for src/."""
    if not any(True for _ in submission.cells()):
        return
    yield from _calibration(context, submission)
    if not context.layout.one_tree:
        return
    yield from _source(context, submission)
    if submission.division == "open":
        yield from _mapping(context, submission)
    else:
        yield from _bandwidth(context, submission)
    if submission.division == "network":
        yield from _network(context, submission)


def _calibration(context: Context, submission: Submission) -> Iterator[Finding]:
    """One for the submission, in its folder or with its code, or one in every result's measurements."""
    top = submission.path
    places = (top, top / "documentation") if context.layout.one_tree else (top,)
    if any(_document(context, place, "calibration") for place in places) or _in_code(context, submission):
        return
    cells = list(submission.cells())
    without = [c for c in cells if not _document(context, c.measurements(context.layout), "calibration")]
    if not without:
        return
    wanted = context.layout.documentation("calibration.md")
    here = top / wanted if len(without) == len(cells) else without[0].measurements(context.layout)
    what = (
        "no document tells how the weights were calibrated"
        if len(without) == len(cells)
        else f"{len(without)} of {len(cells)} results have no calibration document"
    )
    yield context.finding(
        "calibration-missing",
        here,
        what,
        f"write {submission.division}/{submission.submitter}/{wanted}; if nothing was quantised, say that",
    )


def _document(context: Context, folder: Path, start: str) -> bool:
    """Whether a document of this name, with something in it, lies in a folder."""
    return any(
        name.lower().startswith(start)
        and Path(name).suffix.lower() in SUFFIXES
        and context.is_file(folder / name)
        and (folder / name).stat().st_size > 0
        for name in context.names(folder)
    )


def _in_code(context: Context, submission: Submission) -> bool:
    """Submitters also put it beside the code that calibrates: code/MODEL/calibration/README.md."""
    top = submission.path / context.layout.code
    for path in context.files(top):
        start, suffix = path.stem.lower(), path.suffix.lower()
        named = start.startswith("calibration")
        beside = "calibration" in path.parent.name.lower() and start.startswith("readme")
        if (named or beside) and suffix in SUFFIXES[:-1]:
            return True
    return False


def _source(context: Context, submission: Submission) -> Iterator[Finding]:
    folder = submission.path / context.layout.code
    if not context.is_folder(folder):
        yield context.finding(
            "code-missing",
            folder,
            "src/ is missing",
            "add the source that was run",
            official="error",  # "src directory does not exist"
        )
    elif not any(True for _ in context.files(folder)):
        yield context.finding("code-empty", folder, "src/ is empty", "add the source that was run")


def _mapping(context: Context, submission: Submission) -> Iterator[Finding]:
    """model_mapping.json: custom model name -> official name, as the newest checker's loader reads it."""
    path = submission.path / MAPPING
    if not context.is_file(path):
        return  # models without an official name are found one by one
    try:
        values = json.loads((context.text(path) or "").encode())
    except (ValueError, RecursionError) as error:
        yield context.finding(
            "model-mapping",
            path,
            f"{MAPPING} is not JSON: {error}",
            'write an object such as {"my-resnet": "resnet"}',
            official="error",  # json.load ends the checker with a traceback
        )
        return
    pairs = values.items() if isinstance(values, dict) else [("", values)]
    for name, told in pairs:
        try:
            context.round.benchmark(told if isinstance(told, str) else json.dumps(told))
        except RulesError as error:
            yield context.finding(
                "model-mapping",
                path,
                f"{MAPPING} maps {name!r} to no benchmark: {error}",
                'write an object such as {"my-resnet": "resnet"}',
                # It matters once a result is of that model and the checker does not know the name itself.
                official="error" if _is_asked_for(context, submission, name) else "unseen",
            )


def _is_asked_for(context: Context, submission: Submission, name: str) -> bool:
    used = any(cell.model == name for cell in submission.cells())
    return used and name not in context.round.benchmark_names()


def _bandwidth(context: Context, submission: Submission) -> Iterator[Finding]:
    """Datacenter systems show that their network could carry the samples: rules since v3.0."""
    suites = {context.suite(cell) or "" for cell in submission.cells()}
    folder = submission.path / "documentation"
    if not any("datacenter" in suite for suite in suites):
        return
    if not any(
        "bandwidth" in name.lower() and context.is_file(folder / name) for name in context.names(folder)
    ):
        yield context.finding(
            "bandwidth-missing",
            folder / "bandwidth.md",
            "no document shows that the network can carry the samples in and the answers out",
            "write documentation/bandwidth.md: network cards, their bandwidth, what each benchmark needs",
        )


def _network(context: Context, submission: Submission) -> Iterator[Finding]:
    """The rules' documents of the network division: system diagram, the QDL, network cards and software."""
    folder = submission.path / "documentation"
    names = [name.lower() for name in context.names(folder) if context.is_file(folder / name)]
    if not any(word in name for name in names for word in ("network", "diagram", "architecture")):
        yield context.finding(
            "network-document-missing",
            folder / "network.md",
            "no document describes the network division's system: its diagram, network cards and software",
            "write documentation/network.md",
        )
