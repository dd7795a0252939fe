"""What a person sees: lines in a log, the live view, the tables at the end, the plan; all by hand-made records."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal
from rich.console import RenderableType

from orchestrator import planview
from orchestrator.console import Console
from orchestrator.journey import driver_was_the_limit, rows
from orchestrator.phrases import bar, duration, ms, plural, size, verdict
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.tables import run_report, test_report
from tests.made_records import board, driver, invalid, loss, manifest, record, score, spec, specs

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
        return shown(self.console.view(), self.terminal.width, self.terminal.height)


def shown(*parts: RenderableType, width: int = 80, height: int = 40) -> str:
    file = io.StringIO()
    terminal = Terminal(file=file, width=width, height=height, highlight=False)
    for part in parts:
        terminal.print(part)
    return file.getvalue()


def words(text: str) -> str:
    """Text with its line breaks and runs of blanks gone, so that wrapping does not matter."""
    return " ".join(text.split())


def report(*records: Record, width: int = 80) -> str:
    terminal = Terminal(file=io.StringIO(), width=width)
    return words(shown(run_report("shown", records, FOLDER, terminal), width=width))


def test_block(made: Record, width: int = 80) -> str:
    return words(shown(test_report(made, FOLDER / made.test), width=width))


test_block.__test__ = False  # type: ignore[attr-defined]


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


def test_a_log_has_no_escape_sequences_and_no_live_view() -> None:
    screen = Screen()
    screen.console.preparing("workers")
    begin(screen)
    screen.console.test_ended(record(), FOLDER)
    screen.console.ended([record()], FOLDER)
    assert "\x1b" not in screen.file.getvalue()


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
        screen.console.event(
            {"event": "loss", "worker": "worker-1", "reason": "killed", "moved": 2, "at_ns": 1}
        )
        screen.console.tick(board([60, 40]))
        line = next(line for line in screen.view().splitlines() if line.startswith("worker-1"))
    finally:
        screen.console.close()
    assert line.rstrip().endswith("lost")


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
    assert "and 188 workers more, up to 200 samples each" in lines[-1]


def test_a_live_view_gives_the_terminal_back() -> None:
    screen = Screen(tty=True)
    screen.console.preparing("Ray")
    screen.console.close()
    assert screen.file.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in screen.file.getvalue()
    screen.console.close()  # twice does no harm


def test_an_offline_test_shows_no_latency_and_an_accuracy_test_knows_its_end_when_all_is_issued() -> None:
    progress = Progress(spec("Offline", "accuracy"), 0.0, running_since_s=0.0)
    assert progress.samples is None
    progress.look(board([60, 40]), 1.0)
    progress.look(board([120, 80]), 2.0)
    assert progress.samples == 203 and progress.latency_ms() is None
    assert progress.left_s == pytest.approx(0.03)


# The tables


CASES: dict[str, Callable[[], Record]] = {
    "valid": record,
    "stream": lambda: record("SingleStream"),
    "many": lambda: record("MultiStream", samples=[10] * 64),
    "offline": lambda: record("Offline"),
    "accuracy": lambda: record("MultiStream", "accuracy"),
    "invalid": lambda: record(result=invalid(["too many queries took longer than the limit" * 4])),
    "failed": lambda: record(status="failed", reason="worker worker-1 failed: " + "CUDA error " * 20),
    "nothing ran": lambda: record(status="interrupted", reason="SIGINT received", samples=[0, 0], driver={}),
    "lost": lambda: record(
        losses=[loss()], late_answers=3, worker_differences=["workers differ in device: a; b"]
    ),
    "official": lambda: record(official=True, unofficial_because=[]),
}


@pytest.mark.parametrize("width", [80, 140])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut_off(width: int) -> None:
    records = [case() for case in CASES.values()]
    terminal = Terminal(file=io.StringIO(), width=width)
    blocks = [test_report(made, FOLDER / made.test) for made in records]
    text = shown(*blocks, run_report("shown", records, FOLDER, terminal), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_a_valid_server_test_says_what_was_demanded_and_how_much_of_the_limit_is_used() -> None:
    text = test_block(record())
    assert (
        "VALID LoadGen accepts this result" in text
        and "99 % of the queries are answered within 15 ms" in text
    )
    assert "99.50 queries/s completed, 100.00 offered" in text
    assert "p50 9.40 p90 10.2 p99 12.6 ms; limit 15 ms at p99, 84 % used" in text


def test_an_invalid_test_gives_every_reason_once() -> None:
    text = test_block(
        record(result=invalid(["Reduce target QPS to improve latency. ", "too late", "too late"]))
    )
    assert "INVALID LoadGen does not accept this result" in text
    assert text.count("too late") == 1 and "8.0 times the limit" in text


@pytest.mark.parametrize(
    ("changed", "word", "sentence"),
    [
        (
            {"status": "failed", "reason": "worker-1 failed: no memory"},
            "FAILED",
            "no result: worker-1 failed: no memory",
        ),
        (
            {"status": "interrupted", "reason": "SIGINT received"},
            "INTERRUPTED",
            "before its end: SIGINT received",
        ),
        ({"kind": "accuracy", "accuracy": score(18)}, "REACHED", "18 of 20 right = 90 %; the target is 90 %"),
        ({"kind": "accuracy", "accuracy": score(17)}, "MISSED", "17 of 20 right = 85 %; the target is 90 %"),
        ({"kind": "accuracy", "accuracy": None}, "NOT SCORED", "no score"),
    ],
)
def test_other_outcomes_are_said_plainly(changed: dict[str, Any], word: str, sentence: str) -> None:
    found = verdict(record().model_copy(update=changed))
    assert found.word == word and sentence in found.sentence


def test_a_stream_reports_loadgens_own_percentile() -> None:
    assert "99.5 ms: p90 of a query, as LoadGen's estimate on the safe side" in test_block(
        record("SingleStream")
    )
    assert "p99 of a query of 8 samples" in test_block(record("MultiStream"))


def test_offline_latencies_are_not_shown_as_if_they_were_judged() -> None:
    assert "not judged in Offline" in test_block(record("Offline"))


def test_what_looks_like_markup_in_a_reason_is_shown_as_it_is() -> None:
    assert "[red]boom[/red] [/]" in test_block(record(status="failed", reason="[red]boom[/red] [/]"))


def test_reasons_against_an_official_result_stand_once_with_their_tests() -> None:
    one = record(unofficial_because=["model: none", "min_duration: too short"])
    other = record("Offline", unofficial_because=["model: none"])
    text = report(one, other)
    assert text.count("model: none") == 1 and "min_duration: too short [Server-performance]" in text
    assert "0 official" not in text and "none official" in text


def test_losses_are_told_by_name_at_the_end_of_the_run() -> None:
    text = report(record(losses=[loss("worker-7")]))
    assert (
        "Server-performance: worker-7 12 s after the start: its link to the test closed; 14 samples moved"
        in text
    )


def test_a_run_without_tests_is_said_to_have_none() -> None:
    assert "no test was run" in report()


def test_a_test_that_answered_nothing_has_no_table_of_times() -> None:
    text = report(record(status="failed", reason="no worker attached", samples=[0, 0]))
    assert "Where did the latency go" not in text and "no worker attached" in text


# Where the latency went


def test_workers_are_merged_by_adding_histograms_not_by_averaging_percentiles() -> None:
    slow = {"latency": 100.0, "compute": 100.0}
    quick = {"latency": 10.0, "compute": 10.0}
    merged = rows(record(samples=[995, 5], stage_ms=[quick, slow]))[-1]
    assert merged.p99_ms["latency"] == pytest.approx(10.0, rel=0.05)
    merged = rows(record(samples=[980, 20], stage_ms=[quick, slow]))[-1]
    assert merged.p99_ms["latency"] == pytest.approx(100.0, rel=0.05)


def test_shares_of_the_stages_add_up_to_one() -> None:
    merged = rows(record())[-1]
    assert sum(merged.share.values()) == pytest.approx(1.0)
    assert merged.share["compute"] == pytest.approx(7.0 / 9.6, rel=0.05)


def late(p99_ms: float) -> dict[str, float]:
    return {"queries": 3000, "p50_ms": 0.1, "p99_ms": p99_ms, "max_ms": 2 * p99_ms}


WAITING = [
    {"driver_queue": 50.0, "wire": 0.1, "worker_queue": 1.0, "compute": 7.0, "return": 0.1, "latency": 58.0}
] * 2
ON_THE_WAY = [
    {"driver_queue": 0.5, "wire": 1.0, "worker_queue": 0.1, "compute": 1.0, "return": 1.0, "latency": 3.6}
] * 2
# CPU microseconds a sample and CPU share give the time of the test: 3,000 samples of 7 ms on two workers are 10.5 s
# of computing each, in a test of 11 s or of 30 s.
FULL = {"cpu_us_per_sample": 11 / 3000 * 1e6 * 0.05, "cpu_share": 0.05}
IDLE = {"cpu_us_per_sample": 30 / 3000 * 1e6 * 0.05, "cpu_share": 0.05}
FULL_CPU = {"cpu_us_per_sample": 30 / 3000 * 1e6 * 0.97, "cpu_share": 0.97}


@pytest.mark.parametrize(
    ("made", "word", "why"),
    [
        (record(), "no", "within 0.30 ms of LoadGen's schedule (2 % of the limit)"),
        (record(driver=driver(issue_lateness=late(3.0))), "yes", "only 99 % of the queries were issued within 3.00 ms"),
        (record(driver=driver(cpu_share=0.95)), "perhaps", "used 95 % of a core"),
        (record(driver=driver(cpu_share=0.95), security="in-process"), "no", "with its workers used 95 %"),
        (record(driver=driver(issue_lateness=None)), "unknown", "Cannot tell"),
        (record(stage_ms=WAITING, driver=driver(**FULL)), "no", "the workers computed 95 % of the time"),
        (record(stage_ms=WAITING, driver=driver(**IDLE), result=invalid([])), "perhaps", "computed 35 % of the time only"),
        (record("Offline", driver=driver(**FULL)), "no", "so they were the limit"),
        (record("Offline", driver=driver(**IDLE)), "perhaps", "35 % of the time only"),
        (record("Offline", driver=driver(**FULL_CPU)), "yes", "used 97 % of a core"),
        (record("Offline", driver=driver(cpu_share=None)), "unknown", "too short a test"),
        (record("SingleStream"), "no", "arose on the way (driver queue, wire, return)"),
        (record("SingleStream", stage_ms=ON_THE_WAY), "yes", "2.5"),
        (record("MultiStream", stage_ms=WAITING), "no", "arose on the way (wire, return)"),
    ],
)  # fmt: skip
def test_whether_the_driver_was_the_limit_follows_the_stated_rule(made: Record, word: str, why: str) -> None:
    answer = driver_was_the_limit(made)
    assert answer is not None and answer.word == word and why in answer.sentence
    assert "yes when" in answer.rule


@pytest.mark.parametrize(
    "made", [record("Server", "accuracy"), record(status="failed", reason="x"), record(samples=[0])]
)
def test_the_question_is_not_asked_where_nothing_was_measured(made: Record) -> None:
    assert driver_was_the_limit(made) is None


# The plan


def planned(text_of: Any, available: int = 10**12, width: int = 80) -> str:
    file = io.StringIO()
    planview.show_plan(text_of, specs(text_of), Terminal(file=file, width=width, highlight=False), available)
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
        suite=("suite: datacenter,edge", "suite: datacenter"),
        scenarios=("[SingleStream, MultiStream, Server, Offline]", "[Server, Offline]"),
        backend=("{engine: echo}", "{engine: torch, model: resnet50, weights: w.pth}"),
        duration=("  min_duration: 30000\n", ""),
    )
    text = planned(good)
    assert "No rule broken." in text and "marked unofficial" not in text


# Numbers


def test_numbers_keep_three_digits_and_their_unit() -> None:
    assert [ms(v) for v in (0.034, 9.876, 61.23, 1234.5, None, float("nan"))] == [
        "0.03", "9.88", "61.2", "1,234", "–", "–",
    ]  # fmt: skip
    assert [duration(v) for v in (0.4, 3, 48.2, 125, 600, 7500)] == [
        "0.4 s", "3 s", "48 s", "2 min 5 s", "10 min", "2 h 5 min",
    ]  # fmt: skip
    assert [size(v) for v in (512, 9_800, 66_000_000, 2.5e12)] == ["512 B", "9.8 kB", "66 MB", "2.5 TB"]
    assert [plural(1, "query"), plural(2, "query"), plural(1024, "sample")] == [
        "1 query",
        "2 queries",
        "1,024 samples",
    ]


def test_a_bar_fills_in_eighths_and_never_overflows() -> None:
    assert bar(0.0, 4) == "    " and bar(0.001, 4) == "▏   " and bar(0.5, 4) == "██  "
    assert bar(7.0, 4) == "████" == bar(1.0, 4) and len(bar(0.33, 9)) == 9
