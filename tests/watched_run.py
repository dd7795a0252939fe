"""A `loadgrid run` on the first of the test hosts, watched from outside, and what can be done to its workers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.paths import ACCURACY_LOG, DETAIL
from orchestrator.record import Record, read_record
from tests import two_hosts as lan
from tests.processes import HarnessError, alive, command_line, eventually

LOADGRID = str(Path(sys.executable).parent / "loadgrid")
START_LIMIT_S = 40.0
END_LIMIT_S = 60.0

MANIFEST = """
name: {name}
round: v6.1
suite: edge
division: {division}
benchmark: resnet
scenarios: [{scenarios}]
runs: [{runs}]
task: {{name: "null", count: {count}, sample_bytes: 512}}
backend: {{engine: echo, service_time_us: 4000}}
workers: {{where: ray, count: {per_node}, placement: per_node, max_batch: 8}}
dispatch: {{payload: index{dispatch}}}
loadgen:
  performance_sample_count_override: {count}
  Server: {{target_qps: {qps}, target_latency: 20000, min_duration: {duration_ms}, min_query_count: 1}}
  Offline: {{target_qps: 1000, min_duration: {duration_ms}, min_query_count: 1}}
"""
DEFAULTS: dict[str, Any] = {
    "division": "open",
    "scenarios": "Server",
    "runs": "performance",
    "count": 600,
    "per_node": 1,
    "qps": 300,
    "duration_ms": 2000,
    "dispatch": "",
}


def manifest(name: str, **wanted: Any) -> str:
    """A manifest for both hosts, with echo workers that take 4 ms a batch."""
    return MANIFEST.format(name=name, **{**DEFAULTS, **wanted})


class WatchedRun:
    """The program, what it prints (with the time at which it did), its processes on all hosts, its records."""

    def __init__(self, hosts: lan.Hosts, folder: Path, *manifests: str):
        self.hosts = hosts
        self.runs = folder / "runs"
        self.lines: list[tuple[float, str]] = []
        files = []
        for number, text in enumerate(manifests):
            files.append(folder / f"manifest-{number}.yaml")
            files[-1].write_text(text)
        head = hosts.hosts[0]
        argv = [LOADGRID, "run", *map(str, files), "--runs-dir", str(self.runs), "--address", hosts.ray_address]
        env = {"LOADGRID_CACHE": str(folder / "cache"), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        self.process = hosts.run_in(head, argv, env, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def said(self) -> str:
        return "\n".join(line for _, line in list(self.lines))

    def wait_until_said(self, text: str, limit_s: float = START_LIMIT_S) -> float:
        """When the program printed the text, as time.monotonic(); fails if it has not in time, or ended."""

        def found() -> float | None:
            return next((at for at, line in list(self.lines) if text in line), None)

        eventually(lambda: found() is not None or not self._reader.is_alive(), limit_s, every_s=0.01)
        at = found()
        if at is None:
            raise HarnessError(f"it never said {text!r}, but:\n{self.said}")
        return at

    def wait_until_running(self, test: str) -> float:
        """Until LoadGen asks the first questions of this test."""
        at = self.wait_until_said(f"{test} (")
        for number, (_, line) in enumerate(list(self.lines)):
            if f"{test} (" in line and line.endswith("running"):
                return self.lines[number][0]
        at = self._wait_for_line(test)
        return at

    def _wait_for_line(self, test: str) -> float:
        def found() -> float | None:
            each = list(self.lines)
            return next((at for at, x in each if f"{test} (" in x and x.endswith("running")), None)

        eventually(lambda: found() is not None or not self._reader.is_alive(), START_LIMIT_S, every_s=0.01)
        at = found()
        if at is None:
            raise HarnessError(f"{test} never ran:\n{self.said}")
        return at

    def end(self, limit_s: float = END_LIMIT_S) -> int:
        """Wait for the program's end; its exit code."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise HarnessError(f"the run did not end in {limit_s:g} s:\n{self.said}") from None
        self._reader.join(5.0)
        return code
