"""Several watchers of one run, each told everything, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.course import Course
from orchestrator.manifest import Manifest
from orchestrator.plan import TestSpec
from orchestrator.record import Record
from orchestrator.timings import Board


class Watcher(Protocol):
    """Who is told how a run goes: the terminal, Prometheus, or nobody."""

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """The run begins."""

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""

    def progressed(self, step: str, done: int, total: int) -> None:
        """How far the preparation of a data set is."""

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """A worker has loaded its model."""

    def warned(self, text: str) -> None:
        """Something worth knowing that stops nothing."""

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """A test begins."""

    def event(self, event: dict[str, Any]) -> None:
        """The test process said something (attached, running, loss)."""

    def tick(self, board: Board) -> None:
        """Some time has passed."""

    def judged(self, course: Course) -> None:
        """Where the test is heading, before the tick that it belongs to."""

    def test_ended(self, record: Record, folder: Path) -> None:
        """A test's record is written."""

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """The run is over."""


class Watchers:
    """Passes everything on to each of `watchers`."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.planned(manifest, specs, folder)

    def preparing(self, what: str) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.preparing(what)

    def progressed(self, step: str, done: int, total: int) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.progressed(step, done, total)

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.worker_ready(facts)

    def warned(self, text: str) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.warned(text)

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.test_began(spec, workers)

    def event(self, event: dict[str, Any]) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.event(event)

    def tick(self, board: Board) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.tick(board)

    def judged(self, course: Course) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.judged(course)

    def test_ended(self, record: Record, folder: Path) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.test_ended(record, folder)

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """See Watcher."""
        for watcher in self._watchers:
            watcher.ended(records, folder)
