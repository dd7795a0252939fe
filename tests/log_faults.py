"""Faults put into the logs of made trees, one at a time, and what a check of logs says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.check.finding import Context, Finding, context_of
from orchestrator.paths import DETAIL, SUMMARY
from orchestrator.submission.tree import Cell, submissions
from tests import made_cell_logs
from tests.made_trees import MadeTree, made_tree

Check = Callable[[Context, Cell], Iterator[Finding]]
_FOLDERS: list[TemporaryDirectory[str]] = []  # live as long as the tests do


@cache
def tree_of(kind: str) -> MadeTree:
    """One tree of a kind for all tests of a process; they put back what they change."""
    _FOLDERS.append(TemporaryDirectory())
    return made_tree(Path(_FOLDERS[-1].name), kind)


def found(check: Check, tree: MadeTree, scenario: str | None = None) -> dict[str, str]:
    """What the check says of one result: rule -> what the official checker does."""
    context = context_of(tree.root, tree.kind.round)
    for submission in submissions(tree.root):
        for cell in submission.cells():
            if cell.scenario == tree.scenario(scenario):
                return {one.rule: one.official for one in check(context, cell)}
    raise AssertionError(f"no result of {scenario}")


@contextmanager
def changed(folder: Path, **values: Any) -> Iterator[None]:
    """A detail log with other values, None for a line that is not there; keys as LoadGen logs them."""
    told = {name.removeprefix("x_"): value for name, value in values.items()}
    with kept(folder / DETAIL), kept(folder / SUMMARY):
        (folder / SUMMARY).unlink()  # else the two logs contradict each other
        made_cell_logs.changed(folder / DETAIL, **told)
        yield


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """A file that is put back at the end, whatever became of it."""
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if path.is_symlink() or (before is None and path.exists()):
            path.unlink()
        if before is not None:
            path.write_bytes(before)


@contextmanager
def text(path: Path, content: str | bytes) -> Iterator[None]:
    """A file with another content."""
    with kept(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        yield
