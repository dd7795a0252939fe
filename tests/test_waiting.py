"""Waiting for descriptors: of any number, to the microsecond, and in every place where a worker waits."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.link import Peer, RouterLink, identity_of
from orchestrator.local import LocalLink
from tests.drive_backend import PERCEPTRON
from tests.far_descriptors import FAR_FD, far, many_allowed, many_open
from tests.processes import PATIENCE
from workers import waiting
from workers.backends import open_backend
from workers.bare import bare_loop
from workers.port import DealerPort
from workers.tasks.tensor import TensorTask
from workers.waiting import wait_readable

TIME_BUDGET_S = 15
SECOND_NS = 1_000_000_000


@pytest.fixture(params=["near", "far"])
def bells(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """Three eventfds, below or beyond what select() can name."""
    with many_allowed():
        made = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)]
        made = [far(fd) for fd in made] if request.param == "far" else made
        assert (min(made) >= FAR_FD) is (request.param == "far")
        yield made
        for fd in made:
            os.close(fd)


def timed(fds: Sequence[int], timeout_ns: int) -> tuple[list[int], int]:
    began_ns = time.monotonic_ns()
    return wait_readable(fds, timeout_ns), time.monotonic_ns() - began_ns


def test_who_rings_is_named_and_nobody_else(bells: list[int]) -> None:
    assert wait_readable(bells, 0) == []
    os.eventfd_write(bells[1], 1)
    assert wait_readable(bells, SECOND_NS) == [bells[1]]
    os.eventfd_write(bells[2], 1)
    assert wait_readable(bells, SECOND_NS) == bells[1:]


def test_a_closed_descriptor_is_an_error_and_not_readable(bells: list[int]) -> None:
    closed = bells.pop()
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wait_readable([*bells, closed], SECOND_NS)


def test_a_wait_ends_with_its_time_and_not_with_the_next_millisecond(bells: list[int]) -> None:
    waits = [timed(bells, 200_000) for _ in range(200)]
    assert all(found == [] and took_ns >= 200_000 for found, took_ns in waits)
    assert min(took_ns for _, took_ns in waits) < 600_000 * PATIENCE


def test_a_wait_ends_when_it_rings(bells: list[int]) -> None:
    threading.Timer(0.05, os.eventfd_write, (bells[0], 1)).start()
    found, took_ns = timed(bells, 10 * SECOND_NS)
    assert found == [bells[0]] and took_ns < 5 * SECOND_NS


@pytest.mark.parametrize("move", [lambda fd: fd, far], ids=["near", "far"])
def test_the_end_of_a_pipe_ends_a_wait(move: Callable[[int], int]) -> None:
    with many_allowed():
        source, sink = os.pipe()
        source = move(source)
        os.close(sink)
        assert wait_readable([source], SECOND_NS) == [source]
        os.close(source)


def test_a_signal_ends_no_wait_with_an_error(bells: list[int]) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    timer = threading.Timer(0.02, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    try:
        timer.start()
        assert wait_readable(bells, SECOND_NS // 10) == []
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_what_the_kernel_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def ppoll(self, *_: object) -> int:
            ctypes.set_errno(errno.ENOMEM)
            return -1

    monkeypatch.setattr(waiting, "_libc", Refuses())
    with pytest.raises(OSError, match="Cannot allocate memory"):
        wait_readable([FAR_FD], 0)


# Where a worker waits, in a process that has more than 1,024 files open


def heard(port: Any, send: Callable[[], None]) -> None:
    """What is sent while the port waits ends its wait."""
    until = time.monotonic() + 10
    threading.Timer(0.05, send).start()
    while (parts := port.recv()) is None:
        assert time.monotonic() < until and port.lost() is None
        port.wait(SECOND_NS, None)
    assert [bytes(part) for part in parts] == [b"work"]
    began = time.monotonic()
    threading.Timer(0.05, port.wake).start()
    port.wait(20 * SECOND_NS, None)
    assert time.monotonic() - began < 10


def test_a_port_in_this_process_waits_for_any_descriptor() -> None:
    with many_open():
        link = LocalLink(1)
        assert link.ports[0]._bell.fd >= FAR_FD
        engine = os.eventfd(1)
        link.ports[0].wait(10 * SECOND_NS, engine)
        heard(link.ports[0], lambda: link.send(0, [b"work"]))
        os.close(engine)
        link.close()


def test_a_port_over_tcp_waits_for_any_descriptor() -> None:
    with many_open():
        link = RouterLink([Peer("worker-0")], "127.0.0.1", security="none")
        port = DealerPort(link.endpoints[0], identity_of(0), None, ("", ""))
        assert min(port._descriptors) >= FAR_FD
        port.send([b"hello"])
        while link.recv() is None:
            link.wait(50)
        heard(port, lambda: link.send(0, [b"work"]))
        port.close()
        link.close()


def test_a_bare_loop_waits_for_any_descriptor(tmp_path: Path) -> None:
    task = TensorTask({"count": 4})
    library = task.prepare(tmp_path)
    open_backend(PERCEPTRON, task, 2).close()  # what it imports is there
    with many_open():
        backend = open_backend(PERCEPTRON, task, 2)
        backend.load()
        assert (backend.fd() or 0) >= FAR_FD
        found = bare_loop(backend, library, np.arange(4), None)
        backend.close()
    assert found["samples"] == 4 and found["batches"] == 2
