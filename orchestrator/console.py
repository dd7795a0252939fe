"""The terminal: a live view, or plain lines in a log; tables at the end of every test and of the run."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.course import Course
from orchestrator.manifest import Manifest
from orchestrator.phrases import bar, clock, duration, loss_story, ms, plural, rate, verdict
from orchestrator.plan import TestSpec
from orchestrator.planview import show_plan
from orchestrator.preparing import Preparing
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.tables import facts_grid, plain_table, run_report, test_report
from orchestrator.timings import Board

# Rendering takes time from the test when both share two cores: twice a second is smooth enough.
REFRESH_PER_S = 2
LINE_EVERY_S = 10.0
LIVE_FRAME_LINES = 12  # of the live view, without its workers
FEWEST_WORKERS_SHOWN = 3
PHASES = {
    "began": "starting the test process",
    "endpoint": "workers are attaching",
    "workers": "workers are attaching",
    "attached": "loading samples",
    "running": "running",
    "result": "reading LoadGen's logs",
}
ESTIMATE = "the driver's own estimate; LoadGen's verdict comes at the end"


def print_plan(manifest: Manifest, specs: Sequence[TestSpec]) -> None:
    """Print what a manifest would run."""
    show_plan(manifest, specs, open_terminal())


class PatientTerminal(Terminal):
    """A terminal whose reader may leave (`loadgrid run ... | head`): the run goes on to its record."""

    def on_broken_pipe(self) -> None:
        """Say the rest to nobody; rich would end the program here, in the middle of a test."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def open_terminal() -> Terminal:
    """Standard output; a character that it cannot show becomes a question mark, not an exception."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return PatientTerminal(highlight=False)


class Console:
    """Watches a campaign and tells it. `clock_s` counts seconds, `wall` gives the time of day for a log.

    With `brief` a test that ended is one line and not a report.
    """

    def __init__(
        self,
        terminal: Terminal | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        wall: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
        brief: bool = False,
    ) -> None:
        self._brief = brief
        self._terminal = terminal or open_terminal()
        self._clock_s = clock_s
        self._wall = wall
        self._live: Live | None = None
        self._name = ""
        self._on_loss = "reissue"
        self._count = 0
        self._number = 0
        self._ready: list[str] = []
        self._doing: Preparing | None = None
        self._progress: Progress | None = None
        self._phase = ""
        self._workers: list[str] = []
        self._lost: set[str] = set()
        self._board: Board | None = None
        self._course: Course | None = None
        self._next_line_s = 0.0

    # -- Watcher -----------------------------------------------------------------------------------

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""
        self._doing = Preparing(what, self._clock_s())
        self._next_line_s = self._clock_s() + LINE_EVERY_S
        if not self._terminal.is_terminal:  # a terminal shows it moving
            self._say(f"preparing {what}")
        self._open()

    def progressed(self, step: str, done: int, total: int) -> None:
        """How far the preparation of a data set is."""
        doing, now = self._doing, self._clock_s()
        if doing is None:
            return
        worth_a_line = doing.heard(step, done, total, now) or now >= self._next_line_s
        if worth_a_line and not self._terminal.is_terminal:
            self._next_line_s = now + LINE_EVERY_S
            self._say(f"{doing.what}: {doing.words(now)}")

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """A worker has loaded its model."""
        self._ready.append(str(facts["name"]))
        where = facts.get("node", facts.get("host", "?"))
        warm_up = facts.get("warm_up") or []
        pace = f", {ms(1e3 * warm_up[-1][1])} ms for a batch of {warm_up[-1][0]}" if warm_up else ""
        self._say(f"{facts['name']} is ready: {facts.get('device', '?')} on {where}{pace}")

    def warned(self, text: str) -> None:
        """Something worth knowing that stops nothing."""
        self._say(f"note: {text}", "yellow")

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """The run begins."""
        self._name, self._count, self._number = manifest.name, len(specs), 0
        self._on_loss = manifest.on_loss
        self._doing = None
        self._say(f"{manifest.name}: {plural(len(specs), 'test')}, files in {folder}", "bold")
        broken = {finding.rule for spec in specs for finding in spec.broken_rules if finding.scope == "test"}
        if broken:
            self._say(f"unofficial, rules broken: {', '.join(sorted(broken))}", "yellow")
        for note in dict.fromkeys(note for spec in specs for note in spec.notes):
            self._say(f"note: {note}", "cyan")

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """A test begins."""
        self._number += 1
        self._progress = Progress(spec, self._clock_s())
        self._workers, self._lost, self._board, self._course = list(workers), set(), None, None
        self._doing = None
        self._enter("began")
        self._open()

    def event(self, event: dict[str, Any]) -> None:
        """The test process said something."""
        kind, progress = event["event"], self._progress
        if progress is None:
            return
        if kind == "running" and progress.start_clock(self._clock_s()):
            self._next_line_s = self._clock_s() + LINE_EVERY_S
        if kind == "loss":
            self._lost.add(event["worker"])
            story = loss_story(event["reason"], event["moved"], self._on_loss)
            self._say(f"lost {event['worker']}: {story}", "bold yellow")
        elif kind == "stuck":
            self._say(
                f"{event['worker']} did not leave the test; it was ended and is not used again", "yellow"
            )
        elif kind in PHASES:
            self._enter(kind)

    def tick(self, board: Board) -> None:
        """Some time has passed."""
        progress, now = self._progress, self._clock_s()
        self._board = board
        if progress is None or progress.running_since_s is None:
            return
        progress.look(board, now)
        if not self._terminal.is_terminal and now >= self._next_line_s:
            self._next_line_s = now + LINE_EVERY_S
            heading = f"; {self._course.word}: {self._course.why}" if self._course else ""
            self._say(f"{progress.spec.name}: {progress.line()}{heading}")

    def judged(self, course: Course) -> None:
        """Where the test is heading."""
        self._course = course

    def test_ended(self, record: Record, folder: Path) -> None:
        """A test's record is written."""
        self._progress = self._board = None
        self.close()
        if self._brief:
            self._say(f"{record.test}: {verdict(record).word}, files in {folder}")
        else:
            self._terminal.print(test_report(record, folder))

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """The run is over."""
        self.close()
        self._terminal.print(run_report(self._name, records, folder, self._terminal))

    def close(self) -> None:
        """Give the terminal back."""
        self._doing = None
        if self._live is not None:
            live, self._live = self._live, None
            atexit.unregister(self.close)
            live.stop()

    # -- lines -------------------------------------------------------------------------------------

    def _enter(self, phase: str) -> None:
        """Note the phase; in a log, say it once."""
        if PHASES[phase] == self._phase:
            return
        self._phase = PHASES[phase]
        if not self._terminal.is_terminal and self._progress is not None:
            where = f" ({self._number} of {self._count})" if self._count else ""
            self._say(f"{self._progress.spec.name}{where}: {self._phase}")

    def _say(self, text: str, style: str = "") -> None:
        """A line that stays: above the live view, or with the time of day in a log."""
        if self._terminal.is_terminal:
            self._terminal.print(Text(text, style=style))
        else:
            self._terminal.print(Text(f"{self._wall()} {text}"), soft_wrap=True)

    # -- the live view -----------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._terminal.is_terminal or self._live is not None:
            return
        self._live = Live(
            console=self._terminal,
            get_renderable=self.view,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            # Ray prints what it thinks of a lost worker; outside of the view it would tear it.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        # Whatever ends the program, the terminal gets its cursor back.
        atexit.register(self.close)
        self._live.start()

    def view(self) -> RenderableType:
        """What the live view shows now."""
        progress = self._progress
        if progress is not None:
            return Group(*self._test_view(progress))
        if self._doing is None:
            return Text()
        ready = f", {len(self._ready)} ready" if self._ready and self._doing.what == "workers" else ""
        return self._doing.view(self._clock_s(), ready)

    def _test_view(self, progress: Progress) -> list[RenderableType]:
        where = f" ({self._number} of {self._count})" if self._count else ""
        title = Text.assemble((f"{progress.spec.name}{where}", "bold"), f": {self._phase}")
        parts: list[RenderableType] = [Rule(title, style="dim")]
        if progress.running_since_s is None:
            since = self._clock_s() - progress.began_s
            return [*parts, Spinner("dots", Text(f"{self._phase}  {clock(since)}"))]
        width = max(min(self._terminal.width - 50, 60), 10)
        parts.append(facts_grid([*_bars(progress, width), *_heading(self._course)]))
        if self._board is not None:
            parts += [Text(), self._workers_view(self._board)]
        return parts

    def _workers_view(self, board: Board) -> RenderableType:
        """A line a worker; when they do not fit, the lost and those with the least done."""
        samples = [board.counter(i, "samples") for i in range(len(self._workers))]
        most, order = max([*samples, 1]), list(range(len(self._workers)))
        room = max(self._terminal.height - LIVE_FRAME_LINES, FEWEST_WORKERS_SHOWN)
        if len(order) > room:
            order.sort(key=lambda i: (self._workers[i] not in self._lost, samples[i]))
        table = plain_table()
        table.add_column("worker", no_wrap=True)
        table.add_column("samples", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("mean batch", justify="right", no_wrap=True)
        table.add_column("in flight", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for i in order[:room]:
            self._add_worker(table, board, i, bar(samples[i] / most, max(self._terminal.width // 5, 10)))
        if len(order) <= room:
            return table
        rest = f"and {plural(len(order) - room, 'worker')} more, up to {plural(most, 'sample')} each"
        return Group(table, Text(rest, style="dim"))

    def _add_worker(self, table: Table, board: Board, number: int, done: str) -> None:
        name = self._workers[number]
        batches = board.counter(number, "batches")
        batch = f"{board.counter(number, 'batch_samples') / batches:.1f}" if batches else "–"
        lost = name in self._lost
        table.add_row(
            name,
            f"{board.counter(number, 'samples'):,}",
            Text(done, style="red" if lost else "green"),
            batch,
            f"{board.counter(number, 'outstanding'):,}",
            Text("lost" if lost else "", style="bold red"),
        )


def _bars(progress: Progress, width: int) -> list[tuple[str, RenderableType]]:
    """Time, samples, counts, rate and latency of a running test."""
    lines: list[tuple[str, RenderableType]] = []
    if progress.seconds:
        share = progress.elapsed_s / progress.seconds
        gone = f" {duration(progress.elapsed_s)} of {duration(progress.seconds)} at least"
        lines.append(("time", _bar(share, width, gone)))
    else:
        lines.append(("time", Text(clock(progress.elapsed_s))))
    if progress.samples:
        share = progress.completed / progress.samples
        lines.append(("samples", _bar(share, width, f" {progress.completed:,} of {progress.samples:,}")))
    flow = f"{progress.issued:,} issued  {progress.completed:,} completed"
    held = progress.issued - progress.completed - progress.waiting
    lines.append(("", Text(f"{flow}  {progress.waiting:,} waiting here  {max(held, 0):,} with workers")))
    pace = f"{rate(progress.rate)} samples/s" if progress.rate else "–"
    left = f"   about {duration(progress.left_s)} left" if progress.left_s is not None else ""
    lines.append(("rate", Text(f"{pace}{left}")))
    if (latency := progress.latency_ms()) is not None:
        lines.append(("latency", _latency(*latency, progress.spec.limit_ns)))
    return lines


def _heading(course: Course | None) -> list[tuple[str, RenderableType]]:
    """The live verdict, with its reason and what is still needed."""
    if course is None:
        return []
    style = {"on course": "green", "at risk": "yellow", "cannot pass": "bold red"}[course.word]
    needed = f"   {course.more_needed:,} more within the limit needed" if course.more_needed else ""
    return [("course", Text.assemble((course.word, style), f": {course.why}{needed}"))]


def _bar(share: float, width: int, words: str) -> Text:
    return Text.assemble((bar(share, width), "cyan on grey23"), words)


def _latency(p50: float, p99: float, limit_ns: int | None) -> RenderableType:
    over = limit_ns is not None and p99 > limit_ns / 1e6
    text = Text(f"p50 {ms(p50)} ms  p99 ")
    text.append(f"{ms(p99)} ms", style="red" if over else "")
    if limit_ns is not None:
        text.append(f" (limit {limit_ns / 1e6:,g} ms)")
    return Group(text, Text(f"so far: {ESTIMATE}", style="dim"))
