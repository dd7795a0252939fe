"""The driver's side of a test whose process, or whose workers, do not end as they should."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import children, cluster
from orchestrator.order import Channel
from orchestrator.stop import Interrupted
from orchestrator.supervise import Hooks, run_test
from orchestrator.testrun import TestProcess
from tests.far_descriptors import FAR_FD, far, many_allowed
from tests.processes import PATIENCE, alive, command_line, descendants
from tests.real_loadgen import order_of, running_tests
from workers.host import WorkerError

TIME_BUDGET_S = 15
# A process that dies while one that it forked holds the channel open.
FORKS = """
import os, socket, sys, time
channel = socket.socket(fileno=int(sys.argv[1]))
channel.sendall(b'{"event": "loss", "worker": "w0", "reason": "said before the end"}\\n')
if os.fork() == 0:
    time.sleep(60)
print("what it said", flush=True)
os.abort()
"""


def test_a_process_that_dies_while_another_holds_its_channel_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "command", lambda module, *fds: [sys.executable, "-c", FORKS, *fds])
    began = time.monotonic()
    outcome = run_test(order_of(tmp_path, "Server"), None, Hooks())
    assert time.monotonic() - began < 5 * PATIENCE
    assert (outcome.status, outcome.reason) == (
        "failed",
        "the test process died (signal SIGABRT): what it said",
    )
    assert outcome.losses == [{"worker": "w0", "reason": "said before the end"}]


def test_a_process_that_died_by_itself_has_failed_also_when_we_are_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = "import os, sys; print('its last words', flush=True); os.abort()"
    monkeypatch.setattr(children, "command", lambda module, *fds: [sys.executable, "-c", dies, *fds])

    def stop() -> str | None:
        living = [pid for pid in descendants(os.getpid()) if dies in command_line(pid) and alive(pid)]
        return None if living else "SIGTERM received"

    outcome = run_test(order_of(tmp_path, "Server"), None, Hooks(stop=stop))
    assert outcome.status == "failed" and "signal SIGABRT): its last words" in outcome.reason


def test_a_sigterm_to_all_processes_is_left_to_the_driver_from_the_first_moment_on(tmp_path: Path) -> None:
    signalled: list[int] = []

    def sender() -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            for pid in running_tests():
                os.kill(pid, signal.SIGTERM)
                signalled.append(pid)
            time.sleep(0.002)

    thread = threading.Thread(target=sender)
    thread.start()
    outcome = run_test(order_of(tmp_path, "Server"), None, Hooks())
    thread.join()
    assert (outcome.status, outcome.reason) == ("finished", "") and len(signalled) > 10


def test_the_test_process_may_open_as_many_files_as_the_hard_limit_allows() -> None:
    lowered = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512)); "
    raised = "from orchestrator.testrun import _allow_files; _allow_files(); "
    shown = "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    command = [sys.executable, "-c", lowered + raised + shown]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "(512, 512)"


class SlowRay:
    """Stands for ray where no worker answers: each wait takes its whole slice of a clock passed by hand."""

    exceptions = cluster.ray.exceptions

    def __init__(self, answering: Collection[str] = ()) -> None:
        self.now_s = 0.0
        self.killed: list[Any] = []
        self._answering = answering

    def wait(self, refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        self.now_s += timeout
        return [r for r in refs if r in self._answering], [r for r in refs if r not in self._answering]

    def get(self, ref: str, timeout: float) -> str:
        if ref not in self._answering:
            raise TimeoutError("no answer")
        return f"key of {ref}"

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


def fleet_of(ray: SlowRay, monkeypatch: pytest.MonkeyPatch, *names: str) -> cluster.RayFleet:
    monkeypatch.setattr(cluster, "ray", ray)
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: ray.now_s))
    fleet = object.__new__(cluster.RayFleet)
    fleet._dead, fleet._watches, fleet._attaching = {}, {}, {}
    remotes = {name: SimpleNamespace(remote=lambda name=name: name) for name in names}
    fleet._actors = {name: SimpleNamespace(key=r, detach=r) for name, r in remotes.items()}
    return fleet


def test_a_wish_to_stop_ends_the_wait_for_keys_and_for_leaving_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = SlowRay()
    fleet = fleet_of(ray, monkeypatch, "w0", "w1")

    def stop() -> str | None:
        return "SIGINT received" if ray.now_s >= 1 else None

    with pytest.raises(Interrupted, match="SIGINT received"):
        fleet.keys(stop)
    assert ray.now_s == pytest.approx(1.0) and not ray.killed
    assert fleet.detach(["w0"], stop) == []
    assert ray.now_s == pytest.approx(1.0) and fleet.names == ["w0", "w1"]


def test_who_does_not_answer_in_time_is_killed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SlowRay({"w1"})
    fleet = fleet_of(ray, monkeypatch, "w0", "w1")
    assert fleet.keys() == {"w1": "key of w1"}
    assert ray.now_s == pytest.approx(cluster.KEY_TIMEOUT_S)
    assert len(ray.killed) == 1 and fleet.names == ["w1"]


def test_who_is_interrupted_in_a_test_waits_for_no_worker(tmp_path: Path) -> None:
    left: list[Any] = []

    def detach(*asked: Any) -> list[str]:
        left.append(asked)
        return []

    fleet: Any = SimpleNamespace(detach=detach, keys=dict, lost=list)

    def interrupt(_event: Any) -> None:
        raise Interrupted("SIGTERM received")

    with pytest.raises(Interrupted, match="SIGTERM received"):
        run_test(order_of(tmp_path, "Server"), fleet, Hooks(on_event=interrupt))
    assert left == []


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Descriptors above 1,023 are allowed."""
    with many_allowed():
        yield


@pytest.mark.parametrize(("ending", "code"), [("abort", 3), ("gone", 4), ("finished", 2)])
def test_a_test_process_hears_its_driver_over_any_descriptor(
    many_descriptors: None, monkeypatch: pytest.MonkeyPatch, ending: str, code: int
) -> None:
    ours, theirs = socket.socketpair()
    test = object.__new__(TestProcess)  # nothing but what the waiting needs
    test.channel = Channel(socket.socket(fileno=far(theirs.detach())))
    test.finished, test.failure = far(os.eventfd(0, os.EFD_CLOEXEC)), "a reason"
    assert min(test.channel.fileno(), test.finished) >= FAR_FD
    monkeypatch.setattr(TestProcess, "_leave", lambda self, number: sys.exit(number))
    driver = Channel(ours)
    if ending == "abort":
        driver.send(event="abort")
    elif ending == "gone":
        ours.close()
    else:
        os.eventfd_write(test.finished, 1)
    with pytest.raises(SystemExit) as left:
        test.serve()
    assert left.value.code == code
    os.close(test.finished)
    test.channel.sock.close()
    ours.close()


def test_a_worker_in_the_test_process_that_is_stuck_takes_no_result_away(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stuck() -> None:
        raise WorkerError("worker w0 is stuck in its engine")

    ours, theirs = socket.socketpair()
    test = object.__new__(TestProcess)  # nothing but what its end needs
    test.channel, test.failure, test._done = Channel(theirs), None, True
    test.finished = os.eventfd(1, os.EFD_CLOEXEC)
    nothing: Any = SimpleNamespace(stop=lambda: None, close=lambda: None)
    worker: Any = SimpleNamespace(spec=SimpleNamespace(note_order=False), close=stuck)
    test.exchange, test.link, test.hosts = nothing, nothing, [worker]
    monkeypatch.setattr(TestProcess, "_leave", lambda self, number: sys.exit(number))
    monkeypatch.setattr(TestProcess, "_phase", lambda self, name: None)
    monkeypatch.setattr(TestProcess, "_result", lambda self: {"samples": 7})
    with pytest.raises(SystemExit) as left:
        test.serve()
    assert left.value.code == 0 and "w0 is stuck" in capfd.readouterr().err
    assert Channel(ours).receive() == [{"event": "result", "samples": 7}]
    os.close(test.finished)
    theirs.close()
    ours.close()
