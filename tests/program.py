"""The program `loadgrid` as a user starts it, watched from outside: what it says, runs and leaves behind."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.record import Record, read_record
from tests.processes import (
    PATIENCE,
    HarnessError,
    alive,
    all_pids,
    command_line,
    descendants,
    end_processes,
    eventually,
    has_open_below,
    short_folder,
)
from tests.ray_nodes import clean_environment

LOADGRID = str(Path(sys.executable).parent / "loadgrid")
RUN_MARK = "LOADGRID_TESTS_PROGRAM"
SAY_LIMIT_S = 40.0
_numbers = itertools.count()

MANIFEST = """
name: {name}
round: v6.1
suite: datacenter,edge
division: open
benchmark: resnet
scenarios: [{scenarios}]
runs: [{runs}]
task: {{name: "null", count: {count}}}
backend: {{engine: echo, service_time_us: {batch_us}, service_time_per_sample_us: {sample_us}}}
workers: {{where: {where}, count: {workers}, max_batch: {max_batch}}}
loadgen:
  performance_sample_count_override: {count}
  min_duration: {duration_ms}
  min_query_count: 1
  Server: {{target_qps: {qps}, target_latency: {limit_ms}}}
  Offline: {{target_qps: {qps}}}
"""
PHOTOS = """
name: photos
round: v6.1
suite: edge
division: open
benchmark: resnet
scenarios: [Offline]
runs: [performance]
task:
  name: imagenet-photos
  path: photos
backend:
  engine: torch
  model: efficientnet-lite0
  weights: weights.pth
workers:
  count: 1
loadgen:
  min_duration: 100
"""
USUAL: dict[str, Any] = {
    "name": "echoes",
    "scenarios": "Server",
    "runs": "performance",
    "count": 100,
    "batch_us": 0,
    "sample_us": 0,
    "where": "local",
    "workers": 2,
    "max_batch": 8,
    "duration_ms": 500,
    "qps": 2000,
    "limit_ms": 500,
}


def manifest(folder: Path, **wanted: Any) -> Path:
    """A file with a manifest of echo workers: by default a Server test of half a second in one process."""
    values = {**USUAL, **wanted}
    file = folder / f"{values['name']}.yaml"
    file.write_text(MANIFEST.format(**values))
    return file


class Program:
    """One `loadgrid ...`: the lines that it prints, its processes, the runs that it writes."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (LOADGRID,),
    ):
        self.runs = folder / "runs"
        self.ray_folder = short_folder()
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        own = {"LOADGRID_CACHE": str(folder / "cache"), "RAY_TMPDIR": str(self.ray_folder), "COLUMNS": "200"}
        clean = clean_environment() if env is None else dict(env)
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=folder, env={**clean, **own, RUN_MARK: self.mark}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of it outlives the test, however that ends."""
        left = {self.process.pid, *descendants(self.process.pid), *self.left()}
        end_processes(pid for pid in left if alive(pid))
        self.process.wait()
        self._reader.join(5.0)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def said(self) -> str:
        """Everything printed so far."""
        return "\n".join(list(self.lines))

    def wait_said(self, words: str, limit_s: float = SAY_LIMIT_S) -> None:
        """Wait until it has printed these words."""
        eventually(lambda: words in self.said or not self._reader.is_alive(), limit_s, every_s=0.01)
        if words not in self.said:
            raise HarnessError(f"in {limit_s:g} s it did not say {words!r}:\n{self.said}")

    def end(self, limit_s: float) -> int:
        """Wait for its end; its exit code."""
        try:
            code = self.process.wait(limit_s * PATIENCE)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"it did not end in {limit_s:g} s:\n{self.said}") from None
        self._reader.join(5.0)
        return code

    def signal(self, number: signal.Signals, group: bool = False) -> float:
        """Send a signal to the program alone or to its group of processes; the time at which it was sent."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return time.monotonic()

    def below(self, words: str) -> list[int]:
        """Its living descendants with these words in their command line."""
        return [pid for pid in descendants(self.process.pid) if words in command_line(pid)]

    def left(self) -> dict[int, str]:
        """What it started and still runs: by the mark, or by its Ray's logs, whose agents lose the mark."""
        mine = (pid for pid in all_pids() if self._is_mine(pid) and alive(pid))
        return {pid: command_line(pid) for pid in mine if pid != self.process.pid}

    def _is_mine(self, pid: int) -> bool:
        try:
            marked = f"{RUN_MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                b"\0"
            )
        except OSError:
            return False
        return marked or has_open_below(pid, self.ray_folder)

    def nothing_left_in(self, limit_s: float) -> None:
        assert eventually(lambda: not self.left(), limit_s), self.left()

    def test_folder(self, test: str, name: str = "echoes") -> Path:
        (folder,) = self.runs.glob(f"{name}-*")
        return folder / test

    def record(self, test: str, name: str = "echoes") -> Record:
        return read_record(self.test_folder(test, name) / "record.json")
