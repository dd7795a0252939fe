"""What the gate finds in a tree (Finding), and what a check may ask of the round and the tree (Context)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.rules import Benchmark, Place, Round, RulesError, load_round
from orchestrator.submission.guessed_models import guessed_model
from orchestrator.submission.layout import MAPPING, Layout, layout_of
from orchestrator.submission.tree import Cell, Submission

# What the official checker of the round does about a fault: it exits with 1, it only logs (an ERROR or a
# WARNING, exit code 0), or it sees nothing.
Official = Literal["error", "logged", "unseen"]
OFFICIAL: tuple[Official, ...] = get_args(Official)
LARGEST_TEXT_BYTES = 4_000_000  # a description or a document of kilobytes; larger ones are refused unread


@dataclass(frozen=True)
class Finding:
    """One fault: `rule` is a short stable id, `path` is relative to the tree, `mend` says what to do."""

    rule: str
    path: str
    message: str
    mend: str
    official: Official


@dataclass(frozen=True)
class Context:
    """The tree that is judged and the rules that judge it; no symbolic link in the tree is followed."""

    root: Path
    round: Round
    layout: Layout
    _read: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)
    _plain: dict[Path, bool] = field(default_factory=dict, repr=False, compare=False)
    # What a check reckons once for the whole tree, by the check's name.
    reckoned: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def finding(
        self, rule: str, path: Path, message: str, mend: str, *, official: Official = "unseen"
    ) -> Finding:
        """A finding at a path of this tree."""
        return Finding(rule, self.relative(path), message, mend, official)

    def relative(self, path: Path) -> str:
        """The path as it is shown: from the tree's root."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    # What is in the tree

    def is_file(self, path: Path) -> bool:
        """Whether it is a plain file that no link leads to."""
        return path.is_file() and self._straight(path)

    def is_folder(self, path: Path) -> bool:
        """Whether it is a folder that no link leads to."""
        return path.is_dir() and self._straight(path)

    def names(self, folder: Path) -> list[str]:
        """What lies in a folder, by name; nothing if there is no such folder."""
        return sorted(os.listdir(folder)) if self.is_folder(folder) else []

    def files(self, folder: Path) -> Iterator[Path]:
        """Every plain file in a folder and below, however deep."""
        waiting = [folder] if self.is_folder(folder) else []
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        yield Path(entry.path)

    def text(self, path: Path) -> str | None:
        """A small file's text, undecodable bytes replaced; None if there is none, or too much."""
        if not self.is_file(path) or path.stat().st_size > LARGEST_TEXT_BYTES:
            return None
        return path.read_bytes().decode(errors="replace")

    def json(self, path: Path) -> dict[str, Any] | None:
        """The JSON object of a file; None if there is none: the checks of that file say why. Read once."""
        if path not in self._read:
            self._read[path] = self._object(path)
        found: dict[str, Any] | None = self._read[path]
        return found

    def _straight(self, path: Path) -> bool:
        return path == self.root or (
            not (path.is_symlink() or ".." in path.parts) and self._reached(path.parent)
        )

    def _reached(self, folder: Path) -> bool:
        """Whether a folder is reached from the root without a link; found out once for each."""
        if folder == self.root:
            return True
        if folder not in self._plain:
            above = len(folder.parts) > len(self.root.parts) and self._reached(folder.parent)
            self._plain[folder] = above and not folder.is_symlink()
        return self._plain[folder]

    def _object(self, path: Path) -> dict[str, Any] | None:
        try:
            if not self.is_file(path) or path.stat().st_size > LARGEST_TEXT_BYTES:
                return None
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    # What a cell is

    def suite(self, cell: Cell) -> str | None:
        """The suite that the system's system_type puts the cell in ("datacenter,edge" for both)."""
        values = self.json(cell.system_json(self.layout)) or {}
        return suite_name(values.get("system_type"))

    def benchmark(self, cell: Cell) -> Benchmark | None:
        """The benchmark that the cell's model stands for; None if the round does not know it."""
        try:
            return self.round.benchmark(self.official_model(cell))
        except RulesError:
            return None

    def official_model(self, cell: Cell) -> str:
        """The official name of the model: its own, or in the open division what it stands for."""
        if cell.submission.division != "open" or cell.model in self.round.benchmark_names():
            return cell.model
        mapping = (self.json(cell.submission.path / MAPPING) or {}) if self.layout.one_tree else {}
        return str(mapping.get(cell.model) or guessed_model(cell.model, self.layout))

    def scenario(self, cell: Cell) -> str | None:
        """The scenario in the round's spelling; None if it is none."""
        return scenario_name(self.round, cell.scenario)

    def place(self, cell: Cell) -> Place | None:
        """Which scenarios the cell's benchmark needs in its suite; None if it has no place there."""
        suite, benchmark = self.suite(cell), self.benchmark(cell)
        return self.round.place(suite, benchmark.name) if suite and benchmark else None

    def enforced(self, submission: Submission) -> bool:
        """Whether targets, all scenarios and compliance are demanded: not in the open division."""
        return submission.division != "open"


def context_of(root: Path, round_name: str) -> Context:
    """The context of a tree; RulesError for a round that LoadGrid does not know."""
    # The real folder: a ".." on the way to the tree is the user's own, one below it is not.
    return Context(root.resolve(), load_round(round_name), layout_of(round_name))


def suite_name(system_type: Any) -> str | None:
    """The suite of a system_type, whatever its case, spaces and order; None if it is none."""
    parts = sorted(part.strip() for part in str(system_type or "").lower().split(","))
    name = ",".join(parts)
    return name if name in ("datacenter", "edge", "datacenter,edge") else None


def scenario_name(rules: Round, folder: str) -> str | None:
    """The scenario that a folder's name means; None if it is none."""
    return next((name for name in rules.scenarios if name.lower() == folder.lower()), None)
