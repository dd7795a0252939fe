"""What a person sees while a campaign runs, and before it: log, live view, plan. Time is passed by hand."""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from orchestrator import planview
from orchestrator.console import Console, open_terminal
from orchestrator.course import HOPELESS, CourseWatch
from orchestrator.early_stopping import fewest_in_limit
from orchestrator.liveview import LEVELS
from orchestrator.manifest import Manifest
from orchestrator.progress import Progress
from tests.made_records import board, manifest, record, shown, spec, specs, words

TIME_BUDGET_S = 8

FOLDER = Path("runs") / "shown-1"


class Clock:
    """Seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Screen:
    """A Console that writes into memory: a log, or a terminal of some width and height."""

    def __init__(self, width: int = 80, height: int = 40, tty: bool = False) -> None:
        self.clock = Clock()
        self.file = io.StringIO()
        self.terminal = Terminal(
            file=self.file, width=width, height=height, force_terminal=tty, highlight=False, color_system=None
        )
        self.console = Console(self.terminal, self.clock, lambda: "12:00:00")

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    def view(self) -> str:
        """The live view as text."""
        return shown(self.console.view(), width=self.terminal.width, height=self.terminal.height)


def begin(screen: Screen, scenario: str = "Server", test: str = "performance") -> None:
    """A test that has just started to run."""
    screen.console.test_began(spec(scenario, test), ["worker-0", "worker-1"])
    for event in ("endpoint", "attached", "running"):
        screen.console.event({"event": event})


# A log


def test_a_log_gets_a_line_at_every_phase_and_one_about_every_ten_seconds() -> None:
    screen = Screen()
    begin(screen)
    assert [line.split(": ", 1)[1] for line in screen.lines] == [
        "starting the test process", "workers are attaching", "loading samples", "running",
    ]  # fmt: skip
    for _ in range(250):
        screen.clock.now_s += 0.1
        screen.console.tick(board([200, 100]))
    told = screen.lines[4:]
    assert len(told) == 2 and all(
        line.startswith("12:00:00 Server-performance: 300 of 3,001") for line in told
    )


def test_a_line_of_progress_tells_rate_estimate_limit_and_time_left() -> None:
    progress = Progress(spec("Server"), 0.0, running_since_s=0.0)
    for second in range(1, 11):
        progress.look(board([second * 60, second * 40]), float(second))
    line = progress.line()
    assert "1,000 of 3,001 samples, 100.0/s, 3 in flight" in line
    assert "so far (limit 15)" in line and "10 s gone, about 20 s left" in line


def test_a_line_of_progress_says_what_is_done_before_the_first_query_and_after_the_last() -> None:
    progress = Progress(spec("Server"), 0.0, running_since_s=0.0)

    def line(now_s: float, issued: int, completed: int) -> str:
        seen = board([completed])
        seen.set_total("issued", issued)
        progress.look(seen, now_s)
        return progress.line()

    assert line(20, 0, 0) == "0 of 3,001 samples, drawing the queries, 20 s gone"
    assert progress.issuing_s == 0 and progress.left_s == pytest.approx(30, abs=0.1)
    assert "1 in flight" in line(30, 3001, 3000) and progress.doing is None
    assert progress.issuing_s == 10 and progress.left_s == pytest.approx(20, abs=0.1)
    assert "0 in flight" in line(32, 3002, 3002)  # LoadGen may go on
    done = line(40, 3002, 3002)
    assert done.startswith("3,002 of 3,001 samples, working out the result") and done.endswith("40 s gone")


@pytest.mark.parametrize("tty", [False, True])
def test_the_course_says_how_many_queries_are_still_needed(tty: bool) -> None:
    screen = Screen(tty=tty)
    try:
        begin(screen)
        course = CourseWatch(spec("Server")).look(10.0, issued=1300, completed=1302, late=36)
        assert course is not None and course.word == "cannot pass"
        screen.console.judged(course)
        screen.console.tick(board([1, 1]))
        assert "needed   –" in screen.view() if tty else True
        course = CourseWatch(spec("Server")).look(10.0, issued=1010, completed=1000, late=3)
        assert course is not None and course.more_needed == 3 + fewest_in_limit(3) - 1000
        screen.console.judged(course)
        screen.clock.now_s += 11
        screen.console.tick(board([800, 200]))
        told = screen.view() if tty else screen.lines[-1]
    finally:
        screen.console.close()
    assert "on course: 3 late so far, 17 of 3,001 allowed" in told
    more = f"{course.more_needed:,} more"
    line = (
        f"needed   {more} within the limit until it could pass"
        if tty
        else f"; {more} within the limit are needed"
    )
    assert line in told, told


def test_a_log_has_no_escape_sequences_and_no_live_view() -> None:
    screen = Screen()
    screen.console.preparing("workers")
    begin(screen)
    screen.console.test_ended(record(), FOLDER)
    screen.console.ended([record()], FOLDER)
    assert "\x1b" not in screen.file.getvalue()


def test_a_brief_console_says_why_a_probe_was_ended_and_does_not_call_it_failed() -> None:
    screen = Screen(width=400)
    brief = Console(screen.terminal, screen.clock, lambda: "12:00:00", brief=True)
    why = "120 queries took longer than 15 ms; 88 of 27,034 may"
    ended = record("Server", status="failed", reason=f"{HOPELESS} (stop_when_hopeless): {why}")
    brief.test_ended(ended, FOLDER)
    early = f"ended early, for it could not pass any more: {why}; files in runs/shown-1"
    assert f"Server-performance: {early}" in words(screen.file.getvalue())
    brief.test_ended(record("Server", status="failed", reason="the test process died"), FOLDER)
    assert "Server-performance: FAILED, files in runs/shown-1" in words(screen.file.getvalue())


def test_a_loss_is_told_when_it_happens() -> None:
    screen = Screen()
    begin(screen)
    screen.console.event(
        {"event": "loss", "worker": "worker-1", "reason": "its link closed", "moved": 14, "at_ns": 1}
    )
    assert screen.lines[-1].endswith("lost worker-1: its link closed; 14 samples moved to others")


def test_an_event_that_is_not_known_or_comes_between_tests_is_passed_over() -> None:
    screen = Screen()
    screen.console.event({"event": "running"})
    begin(screen)
    count = len(screen.lines)
    screen.console.event({"event": "news of a later version"})
    assert len(screen.lines) == count


def test_a_worker_that_is_ready_says_where_it_is_and_how_fast_it_warmed_up() -> None:
    screen = Screen()
    facts = {"name": "worker-0", "device": "cuda:0", "node": "10.0.0.7", "warm_up": [[1, 0.002], [8, 0.0045]]}
    screen.console.worker_ready(facts)
    assert screen.lines[-1].endswith("worker-0 is ready: cuda:0 on 10.0.0.7, 4.50 ms for a batch of 8")


# The live view


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_view_shows_progress_latency_and_every_worker(width: int) -> None:
    screen = Screen(width, tty=True)
    try:
        begin(screen)
        for second in range(1, 4):
            screen.clock.now_s += 1
            screen.console.tick(board([second * 60, second * 40]))
        text = screen.view()
    finally:
        screen.console.close()
    assert all(len(line) <= width for line in text.splitlines())
    for part in ("Server-performance: running", "3 s of 30 s at least", "300 of 3,001", "about 27 s left"):
        assert part in words(text)
    assert "303 issued 300 completed 1 waiting here 2 with workers" in words(text)
    assert "(limit 15 ms)" in text and "LoadGen's verdict comes at the end" in text
    assert "worker-0 180" in words(text) and "worker-1 120" in words(text)


def test_a_lost_worker_stays_in_the_live_view_marked_as_lost() -> None:
    screen = Screen(tty=True)
    try:
        begin(screen)
        screen.clock.now_s += 3
        screen.console.tick(board([60, 40]))
        screen.console.event(
            {"event": "loss", "worker": "worker-1", "reason": "killed", "moved": 2, "at_ns": 1}
        )
        screen.console.tick(board([60, 40]))
        lines = screen.view().splitlines()
    finally:
        screen.console.close()
    assert next(line for line in lines if line.startswith("worker-1")).rstrip().endswith("lost")
    assert "lost     1 of 2 workers: worker-1 at 3 s: killed" in [line.rstrip() for line in lines]


def test_more_workers_than_lines_are_summed_up_in_one() -> None:
    screen = Screen(height=24, tty=True)
    names = [f"worker-{i}" for i in range(200)]
    try:
        screen.console.test_began(spec("Offline"), names)
        screen.console.event({"event": "running"})
        screen.console.event({"event": "loss", "worker": "worker-150", "reason": "x", "moved": 0, "at_ns": 1})
        screen.console.tick(board([i + 1 for i in range(200)]))
        lines = screen.view().splitlines()
    finally:
        screen.console.close()
    assert len(lines) <= 24
    assert any(line.startswith("worker-150") for line in lines)
    assert re.search(r"and 18\d workers more, up to 200 samples each", lines[-1])
    (strip,) = (at for at, line in enumerate(lines) if line.startswith("workers  "))
    cells = "".join(line[9:].strip() for line in lines[strip : strip + 2])
    assert len(cells) == 100 and cells[75] == "×" and set(cells) == {*LEVELS, "×"}


@pytest.mark.parametrize(("width", "height"), [(40, 10), (60, 16), (20, 4), (5, 2), (200, 60)])
def test_the_live_view_fits_any_terminal_and_keeps_its_height(width: int, height: int) -> None:
    screen = Screen(width, height, tty=True)
    seen = []
    try:
        screen.console.test_began(spec("Server"), [f"worker-{i}" for i in range(64)])
        screen.console.event({"event": "running"})
        for second in range(4):
            screen.console.tick(board([second * (i + 1) for i in range(64)]))
            seen.append(screen.view().splitlines())
            screen.clock.now_s += 1
    finally:
        screen.console.close()
    assert {len(lines) for lines in seen} == {len(seen[0])} and len(seen[0]) < max(height, 3)
    assert max(len(line) for lines in seen for line in lines) <= min(width, 100)
    if width >= 40:
        for part in (r"^time .* 10 % ", r"^samples .*207 % ", r"p99 9\.98 ", r"^workers  ▁.*[▆█]"):
            assert any(re.search(part, line) for line in seen[-1]), part


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen(tty=True)
    screen.console.preparing("workers")
    begin(screen)
    assert next(line.partition(" ")[2] for line in screen.lines) == "preparing workers"
    assert screen.lines[-1] == "12:00:00 Server-performance: running" and "\x1b" not in screen.file.getvalue()


def test_what_an_encoding_lacks_is_shown_by_what_resembles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    open_terminal()
    with codecs.getwriter("ascii")(io.BytesIO(), "loadgrid.resembling") as file:
        file.write("██▌ 5 … ≥ × 語")
        assert file.getvalue() == b"##- 5 ~ > x ?"
    assert out.errors == "loadgrid.resembling"


def test_a_live_view_gives_the_terminal_back() -> None:
    screen = Screen(tty=True)
    screen.console.preparing("Ray")
    screen.console.close()
    assert screen.file.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in screen.file.getvalue()
    screen.console.close()  # twice does no harm


def test_an_offline_test_shows_no_latency_and_an_accuracy_test_knows_its_end_from_the_test_process() -> None:
    progress = Progress(spec("Offline", "accuracy"), 0.0)
    assert progress.start_clock(0.0, 203) and not progress.start_clock(1.0, 7)
    assert (progress.samples, progress.latency_ms()) == (203, None)
    progress.look(board([60, 40]), 1.0)
    progress.look(board([120, 80]), 2.0)
    assert progress.samples == 203 and progress.latency_ms() is None
    assert progress.left_s == pytest.approx(0.03)


# The plan


def planned(made: Manifest, available: int = 10**12, width: int = 80) -> str:
    file = io.StringIO()
    planview.show_plan(made, specs(made), Terminal(file=file, width=width, highlight=False), available)
    return file.getvalue()


def test_a_plan_shows_tests_in_order_with_duration_and_settings() -> None:
    text = words(planned(manifest(), width=140))
    for part in (
        "1 SingleStream-performance 30 s",
        "5 Server-performance 30 s 100 queries/s offered; 99 % within 15 ms",
    ):
        assert part in text
    assert "one query of 33,000 samples (1,000 samples/s expected)" in text and "acc ≥ 75.6954 %" in text


@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_fits_the_terminal(width: int) -> None:
    text = planned(manifest(), width=width)
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text


def test_a_plan_names_broken_rules_once_with_why_and_source() -> None:
    text = words(planned(manifest(), width=140))
    assert (
        text.count("min_duration: the test may end after 30000 ms; the round asks for 600000 ms (v6.1") == 1
    )
    assert "marked unofficial" in text


def test_a_plan_says_when_loadgens_own_memory_will_not_fit() -> None:
    assert "IT WILL NOT FIT" in planned(manifest(), available=1000)
    assert "IT WILL NOT FIT" not in planned(manifest())


def test_a_plan_that_breaks_nothing_says_so() -> None:
    good = manifest(
        division=("division: open", "division: closed"),
        suite=("suite: datacenter,edge", "suite: edge"),
        scenarios=("[SingleStream, MultiStream, Server, Offline]", "[SingleStream, MultiStream, Offline]"),
        backend=("{engine: echo}", "{engine: torch, model: resnet50, weights: w.pth}"),
        task=("{name: 'null'}", "{name: imagenet}"),
        duration=("  min_duration: 30000\n", ""),
    )
    text = planned(good)
    assert "No rule broken." in text and "marked unofficial" not in text
    assert "Official results also need task.sha256.\n" in text
    assert "Official results also need backend.weights_sha256.\n" in text


def test_a_plan_that_is_unofficial_anyway_does_not_ask_for_hashes() -> None:
    assert "Official results" not in planned(manifest())
