"""A `loadgrid run` on the first of the test hosts, watched from outside, and what can befall its workers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.paths import ACCURACY_LOG, DETAIL
from orchestrator.record import Record, read_record
from tests import two_hosts as lan
from tests.processes import PATIENCE, HarnessError, alive, command_line, eventually

LOADGRID = str(Path(sys.executable).parent / "loadgrid")
SAY_LIMIT_S = 40.0
END_LIMIT_S = 60.0

MANIFEST = """
name: {name}
round: v6.1
suite: edge
division: {division}
benchmark: resnet
scenarios: [{scenarios}]
runs: [{runs}]
task: {{name: "null", count: {count}, sample_bytes: 64}}
backend: {{engine: echo, service_time_us: {batch_us}, response_bytes: {response_bytes}}}
workers: {{where: ray, count: {workers}, placement: {placement}, max_batch: 8}}
dispatch: {{{dispatch}}}
loadgen:
  performance_sample_count_override: {count}
  min_duration: {duration_ms}
  min_query_count: 1
  Server: {{target_qps: {qps}, target_latency: 20000}}
  Offline: {{target_qps: {qps}}}
"""
USUAL: dict[str, Any] = {
    "division": "open",
    "scenarios": "Server",
    "runs": "performance",
    "count": 600,
    "batch_us": 2000,
    "response_bytes": 4,
    "workers": 1,
    "placement": "per_node",
    "dispatch": "",
    "qps": 300,
    "duration_ms": 2000,
}


def manifest(name: str, **wanted: Any) -> str:
    """A manifest of echo workers, by default one on each host and a Server test of two seconds."""
    return MANIFEST.format(name=name, **{**USUAL, **wanted})


class WatchedRun:
    """The program, each line that it prints and when, its processes on every host, its records."""

    def __init__(self, hosts: lan.Hosts, folder: Path, *manifests: str):
        self.hosts = hosts
        self.folder = folder / "runs"
        self.lines: list[tuple[float, str]] = []
        files = [folder / f"manifest-{number}.yaml" for number in range(len(manifests))]
        for file, text in zip(files, manifests, strict=True):
            file.write_text(text)
        where = ["--runs-dir", str(self.folder), "--address", hosts.ray_address]
        env = {"LOADGRID_CACHE": str(folder / "cache"), "COLUMNS": "250"}
        argv = [LOADGRID, "run", *map(str, files), *where]
        self.process = hosts.run_in(hosts.hosts[0], argv, env, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def said(self) -> str:
        """Everything printed so far."""
        return "\n".join(line for _, line in list(self.lines))

    def wait_said(self, *words: str, limit_s: float = SAY_LIMIT_S) -> float:
        """Wait for a line with all these words; when it was printed, as time.monotonic()."""

        def found() -> list[float]:
            return [at for at, line in list(self.lines) if all(word in line for word in words)]

        eventually(lambda: bool(found()) or not self._reader.is_alive(), limit_s, every_s=0.01)
        if not found():
            raise HarnessError(f"in {limit_s:g} s no line had {' and '.join(words)}:\n{self.said}")
        return found()[0]

    def wait_running(self, test: str) -> float:
        """Wait until LoadGen asks the first question of a test."""
        return self.wait_said(f"{test} (", ": running")

    def end(self, limit_s: float = END_LIMIT_S) -> int:
        """Wait for the program's end; its exit code."""
        try:
            code = self.process.wait(limit_s * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise HarnessError(f"the run did not end in {limit_s:g} s:\n{self.said}") from None
        self._reader.join(5.0)
        return code

    # Its processes

    @property
    def test_processes(self) -> list[int]:
        """The pid of the test that runs; none between tests."""
        return [pid for pid in self.hosts.hosts[0].pids if "orchestrator.testrun" in command_line(pid)]

    def workers_on(self, host: lan.Host) -> list[int]:
        return sorted(pid for pid in host.pids if command_line(pid).startswith("ray::RayWorker"))

    def processes(self) -> dict[int, str]:
        """What runs of it anywhere: the driver, the test, the workers."""
        ours = ("orchestrator.", LOADGRID, "ray::RayWorker")
        pids = [pid for host in self.hosts.hosts for pid in host.pids]
        lines = {pid: command_line(pid) for pid in pids if alive(pid)}
        return {pid: line for pid, line in lines.items() if any(words in line for words in ours)}

    def listening_ports(self, pid: int) -> list[str]:
        """ADDRESS:PORT of every socket on which a process of the head's host listens."""
        table = self.hosts.output_of(self.hosts.hosts[0], ["ss", "-Hltnp"])
        return [line.split()[3] for line in table.splitlines() if f"pid={pid}," in line]

    # Its evidence

    def record(self, run: str, test: str = "Server-performance") -> Record:
        return read_record(self.test_folder(run, test) / "record.json")

    def test_folder(self, run: str, test: str) -> Path:
        (folder,) = self.folder.glob(f"{run}-*")
        return folder / test

    def answers(self, run: str, test: str) -> Counter[tuple[int, bytes]]:
        """How often LoadGen's accuracy log has each sample with which bytes."""
        entries = json.loads((self.test_folder(run, test) / ACCURACY_LOG).read_text())
        return Counter((entry["qsl_idx"], bytes.fromhex(entry["data"])) for entry in entries)

    def logged(self, run: str, test: str, words: str) -> list[str]:
        """The lines of LoadGen's detail log with these words."""
        text = (self.test_folder(run, test) / DETAIL).read_text()
        return [line for line in text.splitlines() if words in line]


def all_once(count: int) -> Counter[tuple[int, bytes]]:
    """What `answers` is when every sample was answered once, with its own index."""
    return Counter((index, index.to_bytes(4, "little")) for index in range(count))


# A thread that hangs while the process's sockets go on answering

_SEIZE, _INTERRUPT, _DETACH, _WALL = 0x4206, 0x4207, 17, 0x40000000


def _ptrace(request: int, tid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, tid, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def python_stands_still(pid: int) -> Iterator[Callable[[], None]]:
    """Hold every thread of a process but ZeroMQ's own, as when Python spins; the value lets them go on."""
    held: list[int] = []

    def let_go() -> None:
        while held:
            with contextlib.suppress(ProcessLookupError):  # the process was killed meanwhile
                _ptrace(_DETACH, held.pop())

    try:
        for tid in map(int, os.listdir(f"/proc/{pid}/task")):
            if not Path(f"/proc/{pid}/task/{tid}/comm").read_text().startswith("ZMQbg"):
                _ptrace(_SEIZE, tid)
                held.append(tid)
                _ptrace(_INTERRUPT, tid)
                os.waitpid(tid, _WALL)
        yield let_go
    finally:
        let_go()
