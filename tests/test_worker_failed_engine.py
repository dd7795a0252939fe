"""A worker whose engine has failed gets no other test; one that could not begin a test takes the next."""

from __future__ import annotations

import errno
import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from orchestrator.local import LocalLink
from tests.processes import eventually
from workers.backends import BackendError, Batch
from workers.backends.slots import Computed, SlotBackend
from workers.host import WorkerError, WorkerHost, WorkerSpec
from workers.protocol import encode_work
from workers.tasks.null import NullTask

TIME_BUDGET_S = 10


def loaded() -> WorkerHost:
    host = WorkerHost(WorkerSpec("w0", "null", {}, {"engine": "echo"}, 8, needs_library=False))
    host.load()
    return host


class Broken:
    """A slot whose device is gone."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        pass

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        raise RuntimeError("CUDA error")


def test_a_host_whose_engine_has_failed_takes_no_other_test() -> None:
    host, link = loaded(), LocalLink(1)
    task = NullTask({})
    host._backend = SlotBackend("m", task, 8, lambda: ([Broken(), Broken()], {}))
    host._backend.load()
    worker = host.serve(1, link.ports[0])
    link.send(0, encode_work(1, 1, np.array([1], np.uint32), task.warm_up_samples(1)))
    assert eventually(lambda: worker.ended is not None, 5)
    with pytest.raises(WorkerError, match="w0 cannot take another test: m failed .*: CUDA error"):
        host.detach()
    host.close()  # tells nothing twice


def test_a_host_whose_answers_were_refused_takes_another_test() -> None:
    host, link = loaded(), LocalLink(1)
    backend: Any = host._backend
    worker = host.serve(1, link.ports[0])

    def refused(batch: Batch) -> None:
        raise BackendError("2 responses came back for a batch of 1 samples")

    backend.submit = refused
    link.send(0, encode_work(1, 1, np.array([1], np.uint32)))
    assert eventually(lambda: worker.ended is not None, 5)
    del backend.submit
    assert "2 responses came back" in host.detach()["ended"]
    assert host.serve(2, LocalLink(1).ports[0]).epoch == 2
    host.close()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("workers.host.memory_for", OSError(errno.ENOSPC, "No space left on device")),
        ("threading.Thread.start", RuntimeError("can't start new thread")),
    ],
)
def test_a_host_that_could_not_serve_a_test_serves_the_next(
    monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    host, threads = loaded(), threading.active_count()
    with monkeypatch.context() as broken:
        broken.setattr(what, fails)
        with pytest.raises(type(error), match=str(error.args[-1])):
            host.serve(1, LocalLink(1).ports[0], near=True)
    assert gc.isenabled() and threading.active_count() == threads
    assert host.detach() == {"samples": 0, "ended": None}
    worker = host.serve(2, LocalLink(1).ports[0])
    assert not gc.isenabled() and eventually(lambda: threading.active_count() == threads + 1, 5)
    host.detach()
    assert worker.ended == "stopped" and gc.isenabled()
    host.close()
