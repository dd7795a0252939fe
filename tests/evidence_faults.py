"""Single faults of a tree: every one that the checkers of the rounds know, log only, or do not see.

Each names the trees that it is put into, and the rule that the gate must tell. In places `{perf}`, `{acc}`,
`{cell}` and `{conf}` are the folders of the scenario's performance test, accuracy test, result and settings,
`{TEST01}` and so on its compliance tests', `{system}` the description, `{top}` the submitter's folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.paths import DETAIL
from orchestrator.submission.layout import RUN
from orchestrator.submission.tree import submissions
from tests.evidence_trees import Tree

MARK = ":::MLLOG "


@dataclass
class Edit:
    """Changes of one tree, which `undo` takes back in the order in which they were made."""

    tree: Tree
    scenario: str
    aside: Path
    _undo: list[Callable[[], Any]] = field(default_factory=list)

    def path(self, place: str) -> Path:
        """The path that a place means."""
        cell, layout = self.tree.cell(self.scenario), self.tree.context.layout
        places = {
            "root": self.tree.root,
            "top": cell.submission.path,
            "cell": cell.path,
            "perf": cell.performance,
            "acc": cell.accuracy,
            "conf": cell.measurements(layout),
            "system": cell.system_json(layout),
            "code": cell.submission.path / layout.code,
        }
        if "{implementation}" in place:
            places["implementation"] = next(iter(places["conf"].glob("*.json")))
        tests = self.tree.context.round.compliance
        places |= {test: cell.compliance(layout, test) for test in tests}
        return Path(os.path.normpath(place.format_map(places)))

    def write(self, place: str, data: bytes) -> None:
        """A file with new contents."""
        path = self.path(place)
        if path.exists():
            before = path.read_bytes()
            self._undo.append(lambda: path.write_bytes(before))
        else:
            made = _first_made(path)
            self._undo.append(lambda: shutil.rmtree(made) if made.is_dir() else made.unlink())
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def remove(self, place: str) -> None:
        """A file or folder less."""
        path, kept = self.path(place), self.aside / str(len(self._undo))
        self._undo.append(lambda: kept.rename(path))
        path.rename(kept)

    def move(self, place: str, to: str) -> None:
        """A file or folder with another name."""
        path, target = self.path(place), self.path(to)
        self._undo.append(lambda: target.rename(path))
        path.rename(target)

    def copy(self, place: str, to: str) -> None:
        """A file, or a folder with all that is in it, where there was none or another."""
        path, target = self.path(place), self.path(to)
        if path.is_dir():
            made = _first_made(target)
            self._undo.append(lambda: shutil.rmtree(made))
            shutil.copytree(path, target)
        else:
            self.write(to, path.read_bytes())

    def made(self, place: str, make: Callable[[Path], Any]) -> None:
        """Something that is no ordinary file."""
        path = self.path(place)
        self._undo.append(
            lambda: shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        )
        make(path)

    def undo(self) -> None:
        """The tree as it was."""
        while self._undo:
            self._undo.pop()()


def _first_made(path: Path) -> Path:
    """What will be there that was not: the path, or the uppermost of its folders."""
    return next((parent for parent in reversed(path.parents) if not parent.exists()), path)


@contextmanager
def edited(tree: Tree, fault: Fault, aside: Path) -> Iterator[None]:
    """The tree with a fault, which is gone afterwards."""
    aside.mkdir(exist_ok=True)
    first = sorted(cell.scenario for one in submissions(tree.root) for cell in one.cells())
    preferred = [name for name in ("Server", "SingleStream", *first) if name in first]
    edit = Edit(tree, fault.scenario or preferred[0], aside)
    try:
        fault.change(edit)
        yield
    finally:
        edit.undo()


@dataclass(frozen=True)
class Fault:
    """What is done to trees, and the rule that must be told; `scenario`: of which result (else the first)."""

    trees: tuple[str, ...]
    rule: str
    change: Callable[[Edit], None]
    scenario: str = ""


# What can be done, as functions that make a change


def entry(place: str, key: str, value: Any) -> Callable[[Edit], None]:
    """Another value of a key of a detail log."""

    def change(edit: Edit) -> None:
        where = f"{place}/{DETAIL}"
        lines, hits = edit.path(where).read_text().split("\n"), 0
        for i, line in enumerate(lines):
            if f'"key": "{key}"' in line:
                whole = json.loads(line.removeprefix(MARK))
                lines[i] = MARK + json.dumps(
                    whole | {"value": value(whole["value"]) if callable(value) else value}
                )
                hits += 1
        assert hits, f"{where} has no {key}"
        edit.write(where, "\n".join(lines).encode())

    return change


def error(place: str) -> Callable[[Edit], None]:
    """An error that LoadGen logged."""
    line = {
        "key": "error_runtime",
        "value": "made for a test",
        "time_ms": 1.0,
        "namespace": "mlperf::logging",
    }
    line |= {
        "event_type": "POINT_IN_TIME",
        "metadata": {"is_error": True, "is_warning": False, "file": "f.cc"},
    }
    line["metadata"] |= {"line_no": 1, "pid": 1, "tid": 1}  # type: ignore[operator]

    def change(edit: Edit) -> None:
        text = edit.path(f"{place}/{DETAIL}").read_bytes()
        edit.write(f"{place}/{DETAIL}", text + f"{MARK}{json.dumps(line)}\n".encode())

    return change


def text(place: str, old: str, new: str) -> Callable[[Edit], None]:
    """Other words in a file."""

    def change(edit: Edit) -> None:
        before = edit.path(place).read_text()
        assert old in before, f"{place} has no {old!r}"
        edit.write(place, before.replace(old, new).encode())

    return change


def content(place: str, data: bytes | str) -> Callable[[Edit], None]:
    """A file with these contents, new or not."""
    return lambda edit: edit.write(place, data.encode() if isinstance(data, str) else data)


def gone(*places: str) -> Callable[[Edit], None]:
    """Files or folders less."""

    def change(edit: Edit) -> None:
        for place in places:
            edit.remove(place)

    return change


def moved(place: str, to: str) -> Callable[[Edit], None]:
    return lambda edit: edit.move(place, to)


def copied(place: str, to: str) -> Callable[[Edit], None]:
    return lambda edit: edit.copy(place, to)


def value(place: str, name: str, new: Any) -> Callable[[Edit], None]:
    """A field of a JSON object; ... takes it away."""

    def change(edit: Edit) -> None:
        whole = json.loads(edit.path(place).read_text())
        assert name in whole or new is not ..., f"{place} has no {name}"
        whole[name] = new
        kept = {key: told for key, told in whole.items() if told is not ...}
        edit.write(place, json.dumps(kept).encode())

    return change


def link(place: str, to: str) -> Callable[[Edit], None]:
    return lambda edit: edit.made(place, lambda path: path.symlink_to(to))


def folder(place: str) -> Callable[[Edit], None]:
    return lambda edit: edit.made(place, Path.mkdir)


def large(place: str, size_bytes: int) -> Callable[[Edit], None]:
    """A file of that size, with nothing on the disk."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size_bytes)

    return lambda edit: edit.made(place, make)


def both(*changes: Callable[[Edit], None]) -> Callable[[Edit], None]:
    """One fault that needs several changes."""

    def change(edit: Edit) -> None:
        for each in changes:
            each(edit)

    return change


def run_of(place: str) -> str:
    """The folder of a compliance test's logs."""
    return f"{place}/performance/{RUN}"
