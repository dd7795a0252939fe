"""The terminal: a live view, or plain lines in a log; tables at the end of every test and of the run."""

from __future__ import annotations

import atexit
import codecs
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.course import Course, why_hopeless
from orchestrator.liveview import Seen, test_view
from orchestrator.manifest import Manifest
from orchestrator.phrases import course_in_words, duration, loss_story, ms, plural, verdict
from orchestrator.plan import TestSpec
from orchestrator.planview import show_plan
from orchestrator.preparing import Preparing
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.tables import run_report, test_report
from orchestrator.timings import Board

# Rendering takes time from the test when both share two cores: twice a second is smooth enough.
REFRESH_PER_S = 2
LINE_EVERY_S = 10.0
PHASES = {
    "began": "starting the test process",
    "endpoint": "workers are attaching",
    "workers": "workers are attaching",
    "attached": "loading samples",
    "running": "running",
    "result": "reading LoadGen's logs",
}
RESEMBLING = {
    **dict.fromkeys("█▇▆", "#"), **dict.fromkeys("▅▄▉▊▋", "="), **dict.fromkeys("▃▂▁▌▍▎▏–", "-"),
    **dict.fromkeys("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏·", "*"), "…": "~", "×": "x", "≥": ">", "≤": "<", "µ": "u", "−": "-",
}  # fmt: skip


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


def _resembling(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what stands for characters that an encoding lacks, cell by cell."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(RESEMBLING.get(one, "?") for one in lacking), error.end


def open_terminal() -> Terminal:
    """Standard output; a character that it cannot show becomes one that resembles it, not an exception."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        codecs.register_error("loadgrid.resembling", _resembling)
        reconfigure(errors="loadgrid.resembling")
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
        # A terminal that cannot move its cursor gets lines, as a log does.
        self._moves = self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        self._clock_s = clock_s
        self._wall = wall
        self._live: Live | None = None
        self._name = ""
        self._on_loss = "reissue"
        self._planned: list[str] = []
        self._count = 0
        self._number = 0
        self._ready: list[str] = []
        self._doing: Preparing | None = None
        self._progress: Progress | None = None
        self._phase = ""
        self._workers: list[str] = []
        self._lost: dict[str, str] = {}
        self._board: Board | None = None
        self._course: Course | None = None
        self._next_line_s = 0.0

    # -- Watcher -----------------------------------------------------------------------------------

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""
        self._doing = Preparing(what, self._clock_s())
        self._next_line_s = self._clock_s() + LINE_EVERY_S
        if not self._moves:  # a terminal shows it moving
            self._say(f"preparing {what}")
        self._open()

    def progressed(self, step: str, done: int, total: int) -> None:
        """How far the preparation of a data set is."""
        doing, now = self._doing, self._clock_s()
        if doing is None:
            return
        worth_a_line = doing.heard(step, done, total, now) or now >= self._next_line_s
        if worth_a_line and not self._moves:
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
        self._planned = [spec.name for spec in specs]
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
        self._workers, self._lost, self._board, self._course = list(workers), {}, None, None
        self._doing = None
        self._enter("began")
        self._open()

    def event(self, event: dict[str, Any]) -> None:
        """The test process said something."""
        kind, progress = event["event"], self._progress
        if progress is None:
            return
        if kind == "running" and progress.start_clock(self._clock_s(), event.get("samples")):
            self._next_line_s = self._clock_s() + LINE_EVERY_S
        if kind == "loss":
            self._lost[event["worker"]] = f"at {duration(progress.elapsed_s)}: {event['reason']}"
            story = loss_story(event["reason"], event["moved"], self._on_loss)
            self._say(f"lost {event['worker']}: {story}", "bold yellow")
        elif kind == "stuck":
            self._say(
                f"{event['worker']} can take no other test; it was ended and is not used again", "yellow"
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
        if not self._moves and now >= self._next_line_s:
            self._next_line_s = now + LINE_EVERY_S
            course = self._course
            heading = f"; {course_in_words(course)}" if course else ""
            self._say(f"{progress.spec.name}: {progress.line()}{heading}")

    def judged(self, course: Course) -> None:
        """Where the test is heading."""
        self._course = course

    def test_ended(self, record: Record, folder: Path) -> None:
        """A test's record is written."""
        self._progress = self._board = None
        self.close()
        if self._brief:
            why = why_hopeless(record.status, record.reason)
            ended = f"ended early, for it could not pass any more: {why};" if why else None
            self._say(f"{record.test}: {ended or f'{verdict(record).word},'} files in {folder}")
        else:
            self._terminal.print(test_report(record, folder))

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """The run is over."""
        self.close()
        ran = {record.test for record in records}
        never_ran = [name for name in self._planned if name not in ran]
        self._terminal.print(run_report(self._name, records, folder, self._terminal, never_ran))

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
        if not self._moves and self._progress is not None:
            self._say(f"{self._title()}: {self._phase}")

    def _title(self) -> str:
        """The test that runs, and which of how many it is."""
        assert self._progress is not None
        where = f" ({self._number} of {self._count})" if self._count else ""
        return f"{self._progress.spec.name}{where}"

    def _say(self, text: str, style: str = "") -> None:
        """A line that stays: above the live view, or with the time of day in a log."""
        if self._moves:
            self._terminal.print(Text(text, style=style))
        else:
            self._terminal.print(Text(f"{self._wall()} {text}"), soft_wrap=True)

    # -- the live view -----------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._moves or self._live is not None:
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
            waited_s, lost = self._clock_s() - progress.began_s, dict(self._lost)
            told = (progress, self._title(), self._phase, waited_s, self._workers, lost)
            size = self._terminal.size
            return test_view(Seen(*told, self._board, self._course), size.width, size.height)
        if self._doing is None:
            return Text()
        ready = f", {len(self._ready)} ready" if self._ready and self._doing.what == "workers" else ""
        return self._doing.view(self._clock_s(), ready)
