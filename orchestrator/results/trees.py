"""Which submissions a path holds (a repository, a division of it, a submitter's folder), of which round."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.loadgen_logs import read_run
from orchestrator.loadgen_metrics import RoundNumber, round_number
from orchestrator.loadgen_run import LoadgenRun
from orchestrator.logs import LogError
from orchestrator.named_round import other_round, round_of_seeds
from orchestrator.results.reading import Unreadable, json_object, strays, told_path
from orchestrator.rules import load_round, round_names
from orchestrator.submission.layout import layout_of
from orchestrator.submission.tree import DIVISIONS, Cell, Submission, submissions
from orchestrator.submission.tree import Unreadable as UnreadableFolders

# inference_results_v5.1, submissions_inference_1_1, v1.0. Rounds are 0.5, 0.7, x.0 and x.1 only.
_ROUND_FOLDER = re.compile(r"(?:(?:^|_)v|inference_)(0[._][57]|[1-9]\d?[._][01])(?=$|[^\d.])")
RUNS_LOOKED_AT = 200  # of a tree whose name does not say its round
RUNS_HELD_AGAINST_A_NAME = 20  # of a tree whose round the user says


class TreeError(Exception):
    """A path is no results tree, or its round cannot be told; the text says what would be."""


def submissions_of(path: Path, unreadable: UnreadableFolders) -> list[Submission]:
    """Every submission of a tree, a division or a submitter's folder; `unreadable` gets those passed over."""
    if not path.is_dir():
        raise TreeError(f"{path} is {'not a folder' if path.exists() else 'not there'}; name a results tree")
    absolute = Path(os.path.abspath(path))  # "." has no name; links in the path itself are the user's own
    if any(os.path.isdir(absolute / division) for division in DIVISIONS):
        found = list(submissions(absolute, unreadable))
    elif os.path.isdir(absolute / "results"):
        found = [Submission(absolute.parent.parent, absolute.parent.name, absolute.name)]
    elif absolute.name in DIVISIONS:
        found = [one for one in submissions(absolute.parent, unreadable) if one.division == absolute.name]
    else:
        found = []
    found = [one for one in found if _has_results(one, unreadable)]
    if not found and unreadable:
        folder, error = next(iter(unreadable.items()))
        raise TreeError(f"{folder} cannot be read: {error.strerror or error}")
    if not found:
        raise TreeError(
            f"{path} holds no results: no closed/, open/ or network/ with SUBMITTER/results/, and no results/"
        )
    return found


def _has_results(submission: Submission, unreadable: UnreadableFolders) -> bool:
    try:
        return (submission.path / "results").is_dir()
    except OSError as error:
        unreadable[submission.path] = error
        return False


def round_of_tree(path: Path, found: Sequence[Submission]) -> tuple[str, str | None]:
    """The round of a tree, and a remark where it is concluded from the logs; TreeError if they do not say."""
    for folder in (Path(os.path.abspath(path)), *Path(os.path.abspath(path)).parents[:3]):
        if hit := _ROUND_FOLDER.search(folder.name):
            return f"v{hit[1].replace('_', '.')}", None
    newest: RoundNumber | None = None
    for _, run in _runs(found, RUNS_LOOKED_AT):
        if known := round_of_seeds(run):
            return known, f"the round is taken from the logs: the seeds are those of {known}"
        if known := _approving(run):
            return (
                known,
                f"the round is taken from the logs: LoadGen {run.loadgen_version} is that of {known}",
            )
        if run.round_number and (newest is None or run.round_number > newest):
            newest = run.round_number
    if newest is None:
        raise TreeError(f"{path}: neither its name nor its logs say which round it is of; give --round")
    name = _named(newest, found)
    return name, f"the round is taken from the logs: none was made with a newer LoadGen than that of {name}"


def system_values(cell: Cell) -> dict[str, object]:
    """The system's description; Unreadable where there is none."""
    return json_object(cell.submission.root, cell.system_json(layout_of("v1.0")))


def remark_on_named(name: str, found: Sequence[Submission]) -> str | None:
    """A remark where --round names another round than the seeds of a log are known to be of."""
    for cell, run in _runs(found, RUNS_HELD_AGAINST_A_NAME):
        if round_of_seeds(run):
            remark = other_round(run, name)
            return remark and f"{told_path(cell.submission.root, cell.path)}: {remark}"
    return None


def _runs(found: Sequence[Submission], most: int) -> Iterator[tuple[Cell, LoadgenRun]]:
    """Some runs, spread over the submissions: one of every fifth cell and the like."""
    cells = [cell for submission in found for cell in submission.cells()]
    for cell in cells[:: max(1, len(cells) // most)]:
        if strays(cell.submission.root, cell.performance):
            continue
        try:
            yield cell, read_run(cell.performance, read_answers=False)
        except LogError:  # told in the cell itself, later
            continue


def _approving(run: LoadgenRun) -> str | None:
    """The round that LoadGrid knows by its LoadGen; .5a1 is of older rounds too, by the log's form."""
    for name in reversed(round_names()):
        if run.loadgen_version in load_round(name).loadgen.versions:
            return name if run.round_number == round_number(run.loadgen_version or "") else None
    return None


def _named(number: RoundNumber, found: Sequence[Submission]) -> str:
    """v0.5 and v0.7 have the same LoadGen; systems have a system_type since v0.7."""
    if number >= (1, 0):
        return f"v{number[0]}.{number[1]}"
    for cell in (cell for submission in found for cell in submission.cells()):
        try:
            return "v0.7" if "system_type" in system_values(cell) else "v0.5"
        except Unreadable:
            continue
    return "v0.7"
