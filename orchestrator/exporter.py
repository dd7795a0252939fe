"""Serves /metrics to Prometheus from the driver's process: a Watcher that keeps a View of the run."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

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


# Who connects and says nothing must not keep a thread and a descriptor of the driver for long, nor many.
SILENCE_S = 5.0
MOST_AT_ONCE = 16
NO_DESCRIPTOR_PAUSE_S = 0.2


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the run's."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__(where[:2], _Handler)  # type: ignore[arg-type]

    def get_request(self) -> Any:
        """Accept; without a free descriptor the caller would try again at once, for ever."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(NO_DESCRIPTOR_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or not at all when too many are being answered."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that left."""


class ExporterError(SetUpError):
    """/metrics cannot be served; the text says why and the mend."""


def serve_metrics(section: MetricsSection, say: Callable[[str], None]) -> Exporter | None:
    """Serve as a manifest asks, at any free port if its own is taken; None if it asks for nothing."""
    if section.port is None:
        return None
    taken = ""
    try:
        exporter = Exporter(section.listen, section.port)
    except ExporterError as error:
        exporter, taken = Exporter(section.listen, 0), f", at a free port ({error})"
    host = f"[{section.listen}]" if ":" in section.listen else section.listen
    say(f"metrics for Prometheus: http://{host}:{exporter.port}/metrics{taken}")
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
            self._server = _Server(address, port)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ExporterError(
                f"metrics cannot be served at {address}:{port}: {error}; free the port, or name another"
            ) from None
        self._server.set_app(make_wsgi_app(registry))
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

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
        if kind == "running" and self._progress is not None:
            self._progress.start_clock(self._clock_s(), event.get("samples"))
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
