"""When LoadGen's host stood still: what is noted, what a test tells of it, what it says to people."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from orchestrator.evidence import _driver
from orchestrator.journey import driver_was_the_limit, stood_still
from orchestrator.pauses import PERIOD_MS, PauseMeter, pauses_between
from orchestrator.supervise import Hooks
from orchestrator.timings import Board
from tests import made_records
from tests.processes import alive, command_line, descendants, eventually
from tests.real_loadgen import finished, order_of

TIME_BUDGET_S = 10
STOPPED_S = 0.1
MS = 1_000_000


def meters() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if "orchestrator.pauses" in command_line(pid)]


def stop_a_while(pid: int) -> None:
    """As a machine does that stands still, for this process alone."""
    with contextlib.suppress(ProcessLookupError):  # the test has just ended
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)


def test_what_reaches_into_the_time_counts_for_what_of_it_lies_inside() -> None:
    pauses = [(0, 20 * MS), (50 * MS, 15 * MS), (95 * MS, 40 * MS), (200 * MS, 30 * MS)]
    seen = pauses_between(pauses, 10 * MS, 100 * MS)
    assert seen == {"count": 3, "longest_ms": 15.0, "sum_ms": 30.0}
    assert pauses_between(pauses, 20 * MS, 50 * MS) == {"count": 0, "longest_ms": 0.0, "sum_ms": 0.0}


def test_a_test_tells_that_its_host_stood_still(tmp_path: Path) -> None:
    stopped: set[int] = set()

    def tick(board: Board) -> None:
        if board.total("completed"):
            stopped.update(meters())
            stop_a_while(*stopped)

    order = order_of(tmp_path, "Server", words={"min_duration": 1000})
    outcome = finished(order, hooks=Hooks(on_tick=tick))
    seen = _driver(outcome)["pauses"]
    assert not any(alive(pid) for pid in stopped)
    assert seen["count"] >= 1
    assert 1e3 * STOPPED_S - 2 * PERIOD_MS <= seen["longest_ms"] <= seen["sum_ms"]


def test_a_meter_that_is_gone_tells_nothing_and_costs_no_result() -> None:
    meter = PauseMeter()
    (pid,) = meters()
    os.kill(pid, signal.SIGKILL)
    assert meter.end() is None
    assert not alive(pid)


def test_a_meter_ends_with_whoever_started_it() -> None:
    process = PauseMeter()._process
    assert process is not None and process.stdin is not None
    process.stdin.close()  # as the system does when a process ends
    assert eventually(lambda: process.poll() == 0, 5.0)


@pytest.mark.parametrize("pauses", [None, {"count": 0, "longest_ms": 0.0, "sum_ms": 0.0}])
def test_a_host_that_did_not_stand_still_is_not_spoken_of(pauses: dict[str, float] | None) -> None:
    made = made_records.record(driver=made_records.driver(pauses=pauses))
    answer = driver_was_the_limit(made)
    assert answer == driver_was_the_limit(made_records.record())
    assert answer is not None and "stood still" not in answer.sentence


def test_how_long_the_host_stood_still_is_said_beside_whether_the_driver_was_the_limit() -> None:
    pauses = {"count": 3, "longest_ms": 61.2, "sum_ms": 120.4}
    answer = driver_was_the_limit(made_records.record(driver=made_records.driver(pauses=pauses)))
    assert answer is not None and answer.word == "no"
    assert answer.sentence.endswith(stood_still(pauses))
    assert "10 ms or more at least 3 times: 120 ms in all, 61.2 the longest." in stood_still(pauses)


@pytest.mark.parametrize(("still_ms", "word"), [(0.0, "yes"), (299.0, "yes"), (301.0, "perhaps")])
def test_what_was_issued_late_while_the_host_stood_still_is_not_the_drivers_for_sure(
    still_ms: float, word: str
) -> None:
    pauses = {"count": 1, "longest_ms": still_ms, "sum_ms": still_ms}
    late = {"queries": 3000, "p50_ms": 0.1, "p99_ms": 30.0, "max_ms": 60.0}
    made = made_records.record(driver=made_records.driver(pauses=pauses, issue_lateness=late))
    answer = driver_was_the_limit(made)
    assert answer is not None and answer.word == word
    assert answer.sentence.startswith(f"{word.capitalize()}: 1 % of the queries were issued 30.0 ms or more")
