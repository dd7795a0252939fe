"""When LoadGen's host stood still or had no processor free: what is noted, recorded and said."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import pauses
from orchestrator.evidence import _driver
from orchestrator.journey import driver_was_the_limit, pauses_in_words
from orchestrator.pauses import (
    MOST,
    NO_PROCESSOR,
    PAUSE_MS,
    PERIOD_MS,
    STOOD_STILL,
    PauseMeter,
    pauses_between,
    watch,
)
from orchestrator.supervise import Hooks
from orchestrator.timings import Board
from tests import made_records
from tests.processes import command_line, descendants, eventually
from tests.real_loadgen import finished, order_of

TIME_BUDGET_S = 20
STOPPED_S = 0.1
MS = 1_000_000


# What a meter notes


class Host:
    """A host whose clock goes on by so much in each sleep, of which the process waits so long to be run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sleeps_ms: Sequence[tuple[float, float]]) -> None:
        self.now_ns, self.waited_ns, self.sleeps_ms = 1000 * MS, 0, list(sleeps_ms)
        self.asked_ms: list[float] = []
        monkeypatch.setattr(pauses.time, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(pauses, "_waited_ns", lambda _: self.waited_ns)
        monkeypatch.setattr(pauses.select, "poll", lambda: self)

    def register(self, *_: object) -> None:
        """See select.poll."""

    def poll(self, timeout_ms: float) -> list[int]:
        """Sleep; the last time there is something to read."""
        self.asked_ms.append(timeout_ms)
        slept_ms, waited_ms = self.sleeps_ms.pop(0)
        self.now_ns += int(slept_ms * MS)
        self.waited_ns += int(waited_ms * MS)
        return [] if self.sleeps_ms else [1]


def test_what_is_woken_late_is_noted_from_when_for_how_long_and_what_it_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_time, late = PERIOD_MS + PAUSE_MS - 0.001, PERIOD_MS + PAUSE_MS
    host = Host(monkeypatch, [(PERIOD_MS, 0), (late, 3), (on_time, 9), (100 + PERIOD_MS, 100), (1, 0)])
    seen = watch(0, host.now_ns)
    begin = 1000 + 2 * PERIOD_MS
    last = begin + PAUSE_MS + on_time + PERIOD_MS
    assert seen["since"] == 1000 * MS
    assert seen["pauses"] == [
        (begin * MS, PAUSE_MS * MS, 3 * MS),
        (pytest.approx(last * MS, abs=2), 100 * MS, 100 * MS),
    ]
    assert set(host.asked_ms) == {PERIOD_MS}


def test_a_pause_that_the_end_cuts_off_is_noted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, [(PERIOD_MS, 0), (50 + PERIOD_MS, 0)])
    assert [long for _, long, _ in watch(0, host.now_ns)["pauses"]] == [50 * MS]


def test_of_too_many_pauses_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, [(PERIOD_MS + 20 + i, 0) for i in range(MOST + 5)])
    kept = watch(0, host.now_ns)["pauses"]
    assert len(kept) == MOST and kept[-1][1] == (20 + MOST + 4) * MS


# What of it lies in a test


def told(count: int, longest_ms: float, sum_ms: float) -> dict[str, float]:
    return {"count": count, "longest_ms": longest_ms, "sum_ms": sum_ms}


def seen_ms(*noted: tuple[int, int, int], since: int = 0) -> dict[str, Any]:
    return {"since": since * MS, "pauses": [tuple(part * MS for part in pause) for pause in noted]}


def test_what_reaches_into_the_time_counts_for_what_of_it_lies_inside() -> None:
    seen = seen_ms((0, 20, 0), (50, 15, 0), (95, 40, 0), (200, 30, 0))
    assert pauses_between(seen, 10 * MS, 100 * MS) == {
        STOOD_STILL: told(3, 15.0, 30.0),
        NO_PROCESSOR: told(0, 0.0, 0.0),
    }
    assert pauses_between(seen, 20 * MS, 50 * MS) == made_records.pauses()


@pytest.mark.parametrize(("waited", "kind"), [(0, STOOD_STILL), (20, STOOD_STILL), (21, NO_PROCESSOR)])
def test_a_host_stood_still_only_for_what_the_process_did_not_wait_for_a_processor(
    waited: int, kind: str
) -> None:
    seen = pauses_between(seen_ms((0, 30, waited)), 0, 100 * MS)
    assert seen is not None
    assert {name: of_kind["count"] for name, of_kind in seen.items() if of_kind["count"]} == {kind: 1}


def test_who_began_to_watch_after_the_first_issue_says_nothing() -> None:
    assert pauses_between(seen_ms(since=10), 9 * MS, 100 * MS) is None
    assert pauses_between(seen_ms(since=10), 10 * MS, 100 * MS) == made_records.pauses()


# Real processes


def meters() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if "orchestrator.pauses" in command_line(pid)]


def stop_a_while(pid: int) -> None:
    """As a machine does that stands still, for this process alone."""
    with contextlib.suppress(ProcessLookupError):  # the test has just ended
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)


def process_of(meter: PauseMeter) -> subprocess.Popen[str]:
    assert meter._process is not None
    return meter._process


def test_a_test_tells_that_its_host_stood_still(tmp_path: Path) -> None:
    stopped: set[int] = set()

    def tick(board: Board) -> None:
        if board.total("completed"):
            stopped.update(meters())
            stop_a_while(*stopped)

    order = order_of(tmp_path, "Server", words={"min_duration": 1000})
    outcome = finished(order, hooks=Hooks(on_tick=tick))
    assert stopped and not meters()
    recorded = _driver(outcome)
    seen = recorded["pauses"][STOOD_STILL]
    assert seen["count"] >= 1
    assert 1e3 * STOPPED_S - 2 * PERIOD_MS <= seen["longest_ms"] <= seen["sum_ms"]
    assert seen["sum_ms"] <= 1e3 * recorded["answering_s"]


def test_pauses_before_the_first_issue_are_none_of_the_tests(tmp_path: Path) -> None:
    outcome = finished(order_of(tmp_path, "Server"))
    first_ns = outcome.board.total("first_issue_ns")
    outcome.result["pauses"] = {
        "since": first_ns - 1000 * MS,
        "pauses": [(first_ns - 900 * MS, 800 * MS, 0)],
    }
    assert _driver(outcome)["pauses"] == made_records.pauses()


def test_a_meter_that_is_gone_or_hangs_tells_nothing_and_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "END_S", 0.1)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        meter = PauseMeter()
        os.kill(process_of(meter).pid, number)
        assert meter.end() is None
        assert process_of(meter).returncode is not None


@pytest.mark.parametrize("answer", ["", "null", "5", "[1]", "{}", '{"since": 1, "pauses": [[1, 2]]}'])
def test_what_is_no_answer_of_a_meter_costs_no_result(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    command = [sys.executable, "-c", f"print({answer!r})"]
    monkeypatch.setattr(pauses.children, "command", lambda *_: command)
    assert PauseMeter().end() is None


def test_where_no_process_can_be_started_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(pauses.subprocess, "Popen", refuse)
    meter = PauseMeter()
    meter.kill()
    assert meter.end() is None


def test_who_waits_for_a_meter_is_watched_from_then_on() -> None:
    meter = PauseMeter()
    meter.wait()
    now_ns = time.monotonic_ns()
    seen = meter.end()
    assert seen is not None and seen["since"] < now_ns


def test_a_meter_that_does_not_begin_is_waited_for_no_longer_than_its_end_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pauses, "END_S", 0.05)
    monkeypatch.setattr(pauses.children, "command", lambda *_: ["sleep", "60"])
    meter = PauseMeter()
    meter.wait()
    assert meter.end() is None


def test_a_meter_ends_with_whoever_started_it() -> None:
    process = process_of(PauseMeter())
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()  # as the system does when a process ends
    assert eventually(lambda: process.poll() == 0, 5.0)
    process.stdout.close()


# What people are told


@pytest.mark.parametrize("none", [None, made_records.pauses()])
def test_a_host_without_pauses_is_not_spoken_of(none: dict[str, Any] | None) -> None:
    made = made_records.record(driver=made_records.driver(pauses=none))
    assert driver_was_the_limit(made) == driver_was_the_limit(made_records.record())
    assert pauses_in_words(none) == ""


def test_pauses_are_told_beside_whether_the_driver_was_the_limit() -> None:
    both = {STOOD_STILL: told(3, 61.2, 120.4), NO_PROCESSOR: told(1, 12.0, 12.0)}
    answer = driver_was_the_limit(made_records.record(driver=made_records.driver(pauses=both)))
    assert answer is not None and answer.word == "no"
    assert answer.sentence.endswith(
        "LoadGen's host stood still for 10 ms or more at least 3 times: 120 ms in all, 61.2 the longest. "
        "LoadGen's host had no processor free for 10 ms or more at least 1 time: "
        "12.0 ms in all, 12.0 the longest."
    )


@pytest.mark.parametrize(
    ("still", "crowded", "word"), [(299, 0, "yes"), (301, 0, "perhaps"), (0, 999, "yes")]
)
def test_what_was_issued_late_while_the_host_stood_still_is_not_the_drivers_for_sure(
    still: float, crowded: float, word: str
) -> None:
    late = {"queries": 3000, "p50_ms": 0.1, "p99_ms": 30.0, "max_ms": 60.0}
    known = made_records.driver(pauses=made_records.pauses(still, crowded), issue_lateness=late)
    answer = driver_was_the_limit(made_records.record(driver=known))
    assert answer is not None and answer.word == word
    assert answer.sentence.startswith(f"{word.capitalize()}: 1 % of the queries were issued 30.0 ms or more")
