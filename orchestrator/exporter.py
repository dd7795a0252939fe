"""Serves /metrics to Prometheus from the driver's process: a Watcher that keeps a View of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from orchestrator.campaign import SetUpError
from orchestrator.course import Course
from orchestrator.manifest import Manifest
from orchestrator.manifest_metrics import MetricsSection
from orchestrator.metrics import RunCollector, View
from orchestrator.plan import TestSpec
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.timings import Board

PHASES = {
    "began": "attaching",
    "endpoint": "attaching",
    "workers": "attaching",
    "attached": "loading",
    "running": "running",
    "result": "reading",
}


class ExporterError(SetUpError):
    """/metrics cannot be served; the text says why and the mend."""


def serve_metrics(section: MetricsSection, say: Callable[[str], None]) -> Exporter | None:
    """Serve as a manifest asks, at any free port if its own is taken; None if it asks for nothing."""
    if section.port is None:
        return None
    try:
        exporter = Exporter(section.listen, section.port)
    except ExporterError as error:
        exporter = Exporter(section.listen, 0)
        say(str(error))
    say(f"metrics for Prometheus: http://{section.listen}:{exporter.port}/metrics")
    return exporter


class Exporter:
    """Serves until close(); `port` 0 takes any free one, which `port` then tells."""

    def __init__(self, address: str, port: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._collector = RunCollector()
        self._progress: Progress | None = None
        registry = CollectorRegistry()
        registry.register(self._collector)
        try:
            self._server: WSGIServer
            self._server, self._thread = start_http_server(port, address, registry)
        except (OSError, OverflowError) as error:
            raise ExporterError(
                f"metrics cannot be served at {address}:{port}: {error}; free the port, or name another"
            ) from None
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving and give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- Watcher -----------------------------------------------------------------------------------

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """The run begins."""
        self._put(run=folder.name, tests_planned=len(specs), tests_done=0, state="preparing")

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""
        self._put(state="preparing")

    def progressed(self, step: str, done: int, total: int) -> None:
        """Not told: it ends before there is anything to watch."""

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """Not told: a worker counts once a test has it."""

    def warned(self, text: str) -> None:
        """Not told: words are no metric."""

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """A test begins; what was of the last one is gone."""
        self._progress = Progress(spec, self._clock_s())
        view = self._collector.view
        self._collector.view = View(
            run=view.run,
            tests_planned=view.tests_planned,
            tests_done=view.tests_done,
            state=PHASES["began"],
            spec=spec,
            workers=tuple(workers),
        )

    def event(self, event: dict[str, Any]) -> None:
        """The test process said something."""
        kind = event["event"]
        if kind == "running" and self._progress is not None and self._progress.running_since_s is None:
            self._progress.running_since_s = self._clock_s()
        if kind == "loss":
            self._put(lost=self._collector.view.lost | {event["worker"]})
        elif kind in PHASES:
            self._put(state=PHASES[kind])

    def tick(self, board: Board) -> None:
        """Some time has passed."""
        progress = self._progress
        if progress is None:
            return
        progress.look(board, self._clock_s())
        self._put(
            board=board,
            elapsed_s=progress.elapsed_s,
            left_s=progress.left_s if progress.running_since_s is not None else None,
            expected=progress.samples,
        )

    def judged(self, course: Course) -> None:
        """Where the test is heading."""
        self._put(course=course)

    def test_ended(self, record: Record, folder: Path) -> None:
        """A test's record is written; its last figures stay until the next test begins."""
        self._put(tests_done=self._collector.view.tests_done + 1, state="idle", left_s=None)

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """The run is over."""
        self._put(state="idle")

    def _put(self, **changes: Any) -> None:
        """A new view in the place of the old, in one step: a scrape sees one or the other."""
        self._collector.view = replace(self._collector.view, **changes)
