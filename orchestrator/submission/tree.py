"""What lies in a submission tree: submitters and result cells of any round, found and not judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.submission.layout import RUN, Layout

DIVISIONS = ("closed", "open", "network")
Unreadable = dict[Path, OSError]  # folders that were passed over because they may not be read


@dataclass(frozen=True)
class Submission:
    """One submitter's part of a tree."""

    root: Path
    division: str
    submitter: str

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.root / self.division / self.submitter

    def cells(self, unreadable: Unreadable | None = None) -> Iterator[Cell]:
        """Its results, in order of name: each folder results/SYSTEM/MODEL/SCENARIO."""
        for system in _folders(self.path / "results", unreadable):
            for model in _folders(system, unreadable):
                for scenario in _folders(model, unreadable):
                    yield Cell(self, system.name, model.name, scenario.name)


@dataclass(frozen=True)
class Cell:
    """One result: names as folders are named, whatever the round calls them."""

    submission: Submission
    system: str
    model: str
    scenario: str

    @property
    def path(self) -> Path:
        """Its folder under results."""
        return self.submission.path / "results" / self.system / self.model / self.scenario

    @property
    def performance(self) -> Path:
        """The folder of the performance test's logs."""
        return self.path / "performance" / RUN

    @property
    def accuracy(self) -> Path:
        """The folder of the accuracy test's logs."""
        return self.path / "accuracy"

    def measurements(self, layout: Layout) -> Path:
        """The folder of its configuration and README."""
        return self.submission.path / layout.measurements(self.system, self.model, self.scenario)

    def compliance(self, layout: Layout, test: str) -> Path:
        """The folder of one of its compliance tests."""
        return self.submission.path / layout.compliance(self.system, self.model, self.scenario, test)

    def system_json(self, layout: Layout) -> Path:
        """The description of its system."""
        return self.submission.path / layout.system_json(self.system)


def submissions(root: Path, unreadable: Unreadable | None = None) -> Iterator[Submission]:
    """Every submitter of a tree, by division; `root` holds closed/, open/ or network/."""
    for division in DIVISIONS:
        for folder in _folders(root / division, unreadable):
            yield Submission(root, division, folder.name)


def _folders(path: Path, unreadable: Unreadable | None) -> list[Path]:
    """The folders in a folder, without hidden ones; links may lead out of the tree and are not followed."""
    try:
        if path.is_symlink() or not path.is_dir():
            return []
        return sorted(
            p for p in path.iterdir() if not p.name.startswith(".") and p.is_dir() and not p.is_symlink()
        )
    except OSError as error:
        if unreadable is not None:
            unreadable[path] = error
        return []
