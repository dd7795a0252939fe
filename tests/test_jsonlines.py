"""`loadgrid run --json`: lines for machines, in order, and nothing else on standard output."""

from __future__ import annotations

import io
import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign_files import Ended
from orchestrator.course import CourseWatch
from orchestrator.jsonlines import JsonLines
from tests import made_records as made
from tests.program import LOADGRID, manifest
from tests.ray_nodes import clean_environment

TIME_BUDGET_S = 20
FOLDER = Path("runs/shown-1")


class Machine:
    """A JsonLines with a clock that is moved by hand, and what it wrote."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.written: list[bytes] = []
        self.notes = io.StringIO()
        self.lines = JsonLines(self.written.append, self.notes, lambda: self.now_s, lambda: 1000 + self.now_s)

    def said(self) -> list[dict[str, Any]]:
        """The objects since the last call."""
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in self.written)
        found, self.written[:] = [json.loads(line) for line in self.written], []
        return found


def began(machine: Machine, scenario: str = "Server") -> None:
    spec = made.spec(scenario)
    machine.lines.planned(made.manifest(), [spec], FOLDER)
    machine.lines.test_began(spec, ["worker-0", "worker-1"])
    machine.lines.event({"event": "attached"})
    machine.lines.event({"event": "running"})


def test_a_test_is_told_from_its_plan_to_its_end() -> None:
    machine = Machine()
    began(machine)
    planned, test, running = machine.said()
    assert planned["tests"] == ["Server-performance"] and planned["folder"] == str(FOLDER)
    assert "min_duration" in planned["broken_rules"]
    assert {key: test[key] for key in ("scenario", "mode", "limit_ms", "workers")} == {
        "scenario": "Server",
        "mode": "performance",
        "limit_ms": 15.0,
        "workers": ["worker-0", "worker-1"],
    }
    assert (running["event"], running["test"], running["time"]) == ("running", "Server-performance", 1000)
    machine.lines.test_ended(made.record(losses=[made.loss()]), FOLDER / "Server-performance")
    machine.lines.test_ended(made.record(kind="accuracy"), FOLDER / "Server-accuracy")
    machine.lines.test_ended(made.record(result=made.invalid(["too slow"])), FOLDER)
    valid, scored, invalid = machine.said()
    kept = ("verdict", "good", "value", "unit", "official", "reasons")
    assert [valid[key] for key in kept] == ["VALID", True, 99.5, "queries/s", False, []]
    assert [scored[key] for key in kept] == ["REACHED", True, 90.0, "percent", False, []]
    assert [invalid[key] for key in kept] == ["INVALID", False, 90.0, "queries/s", False, ["too slow"]]
    assert valid["folder"] == str(FOLDER / "Server-performance")
    machine.lines.test_ended(made.record(official=True, unofficial_because=[]), FOLDER)
    (official,) = machine.said()
    assert valid["unofficial_because"] == ["model: the echo backend computes nothing"]
    assert official["official"] and official["unofficial_because"] == []


def test_progress_comes_once_a_second_with_the_course() -> None:
    machine = Machine()
    began(machine)
    machine.said()
    board, watch = made.board([200, 100]), CourseWatch(made.spec("Server"))
    for tick in range(1, 32):
        machine.now_s = tick / 10
        board.set_total("completed", 300 + tick)
        course = watch.look(machine.now_s, 303 + tick, 300 + tick, 0)
        assert course is not None
        machine.lines.judged(course)
        machine.lines.tick(board)
    lines = machine.said()
    assert [line["elapsed_s"] for line in lines] == [1.0, 2.0, 3.0]
    last = lines[-1]
    assert (last["completed"], last["over_limit"], last["rate_per_s"]) == (330, 0, pytest.approx(10))
    assert last["p50_ms"] == pytest.approx(9.6, rel=0.05) and last["left_s"] > 20
    assert last["course"]["word"] == watch.last.word and "outstanding_per_s" not in last["course"]  # type: ignore[union-attr]


def test_the_late_ones_of_a_line_are_those_of_its_course() -> None:
    machine = Machine()
    began(machine)
    machine.said()
    board = made.board([200, 100])
    course = CourseWatch(made.spec("Server")).look(0.5, 303, 300, 2)
    assert course is not None
    machine.lines.judged(course)
    board.set_total("over_limit", 36)  # since then
    machine.now_s = 1.0
    machine.lines.tick(board)
    (line,) = machine.said()
    assert line["over_limit"] == line["course"]["late"] == 2


def test_what_is_not_known_is_null() -> None:
    machine = Machine()
    began(machine, "Offline")
    machine.now_s = 1.0
    machine.lines.tick(made.board([0, 0]))
    line = machine.said()[-1]
    unknown = ("over_limit", "rate_per_s", "p50_ms", "p99_ms", "course")
    assert [line[key] for key in unknown] == [None] * len(unknown)


def test_losses_workers_and_preparation_are_told_and_notes_go_elsewhere() -> None:
    machine = Machine()
    machine.lines.preparing("data set imagenet")
    for tick in range(31):
        machine.now_s = tick / 10
        machine.lines.progressed("preparing", tick, 50)
    machine.lines.worker_ready({"name": "worker-0", "node": "n", "device": "cpu", "pid": 7})
    machine.lines.tick(made.board([1]))  # of no test
    machine.lines.event({"event": "loss", "worker": "w", "reason": "gone", "moved": 3})
    assert [line["event"] for line in machine.said()] == ["preparing", *["prepared"] * 3, "worker_ready"]
    began(machine)
    machine.said()
    machine.lines.event({"event": "loss", "worker": "worker-1", "reason": "gone", "moved": 3, "at_ns": 5})
    machine.lines.event({"event": "stuck", "worker": "worker-1"})
    loss, stuck = machine.said()
    told = {"test": "Server-performance", "worker": "worker-1"}
    assert loss == {"event": "loss", "time": 1003, "manifest": "shown", **told, "reason": "gone", "moved": 3}
    assert stuck == {"event": "stuck", "time": 1003, "manifest": "shown", **told}
    machine.lines.warned("two words")
    assert machine.notes.getvalue() == "note: two words\n" and not machine.written


def test_the_end_names_what_was_done_before_and_what_was_not_run() -> None:
    machine = Machine()
    records = [made.record(), made.record(kind="accuracy", accuracy=made.score(2))]
    machine.lines.ended(records, FOLDER)
    ended = Ended("shown", FOLDER, records, frozenset({"Server-performance"}), ["Offline-performance"])
    machine.lines.campaign_ended([ended], 1)
    run, campaign = machine.said()
    assert (run["tests"], run["good"], run["official"]) == (2, 1, 0)
    assert campaign["exit_code"] == 1
    assert [(t["test"], t["done_before"], t["verdict"], t["good"]) for t in campaign["tests"]] == [
        ("Server-performance", True, "VALID", True),
        ("Server-accuracy", False, "MISSED", False),
        ("Offline-performance", False, None, None),
    ]


def test_a_reader_that_leaves_ends_nothing() -> None:
    def gone(line: bytes) -> None:
        raise BrokenPipeError

    lines = JsonLines(gone, io.StringIO())
    lines.preparing("this")
    lines.preparing("that")
    closed = io.StringIO()
    closed.close()
    JsonLines(gone, closed).warned("nobody hears")


def test_a_real_run_tells_its_story_in_order_and_nothing_else(tmp_path: Path) -> None:
    file = manifest(tmp_path, duration_ms=1300, qps=500)
    file.write_text(f"metrics: {{port: 0}}\n{file.read_text()}")
    done = subprocess.run(
        [LOADGRID, "run", file.name, "--json"],
        cwd=tmp_path,
        env={**clean_environment(), "LOADGRID_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    events = [line["event"] for line in lines]
    assert done.returncode == 0, done.stderr
    progress = [line for line in lines if line["event"] == "progress"]
    assert len(progress) in (1, 2)
    assert progress[-1]["issued"] > 0 and progress[-1]["course"]["word"] == "on course"
    assert [event for event in events if event != "progress"] == [
        "preparing",
        "planned",
        "test_began",
        "running",
        "test_ended",
        "ended",
        "campaign_ended",
    ]
    assert all(first["time"] <= then["time"] for first, then in pairwise(lines))
    ended = [line for line in lines if line["event"] == "test_ended"]
    assert [(line["verdict"], line["good"]) for line in ended] == [("VALID", True)]
    assert all(os.path.isdir(tmp_path / line["folder"]) for line in ended)
    assert b"note: metrics for Prometheus" in done.stderr and b"Traceback" not in done.stderr
