"""A worker ends when its engine is empty, however it ends: no batch reads or writes what is given back."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.local import LocalLink
from tests.made_copies import NO_BOUND, zeros
from tests.processes import eventually
from tests.test_worker import EPOCH, MAX_BATCH, Served
from workers import host, worker
from workers.answer_memory import LARGE_BYTES
from workers.arena import Arena, LoadedSamples
from workers.backends import BackendError, Batch, settle, slots
from workers.backends.slots import Computed, SlotBackend
from workers.bare import bare_loop
from workers.host import WorkerError, WorkerHost, WorkerSpec
from workers.library import Library
from workers.protocol import Kind, Responses, control, encode_work, indices_message
from workers.tasks.null import NullTask

TIME_BUDGET_S = 20
SLOTS = 2
NULL = {"count": 8, "sample_bytes": 16}


@dataclass
class Plan:
    """What batches do, by their number of samples: wait to be let go, fail, answer a byte too few."""

    slow: int = 1
    fails: int = 2
    odd: int = 3
    entered: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    read: list[bytes] = field(default_factory=list)  # what the slow batch found in memory at its very end


def shows_the_first_sign(samples: Sequence[memoryview]) -> None:
    """An exception whose frame has the samples."""
    raise ValueError(f"the first sign, in {len(samples)} samples")


class PlannedSlot:
    """Answers each sample with its first byte, LARGE_BYTES times."""

    def __init__(self, plan: Plan) -> None:
        self.facts: dict[str, Any] = {}
        self._plan = plan
        self._buffer = np.zeros(MAX_BATCH * LARGE_BYTES, np.uint8)

    def open(self) -> None:
        pass

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        plan, n = self._plan, len(samples)
        if n == plan.fails:
            try:
                shows_the_first_sign(samples)
            except ValueError:
                raise RuntimeError("device fault") from OSError("its cause")
        if n == plan.slow:
            plan.entered.set()
            plan.let_go.wait(TIME_BUDGET_S)
            plan.read += [bytes(sample) for sample in samples]
        out = self._buffer[: n * LARGE_BYTES - (n == plan.odd)]
        out[:] = samples[0][0]
        return Computed(out, None, 0.0, 0.0)


def backend_of(plan: Plan) -> SlotBackend:
    task: Any = SimpleNamespace(respond=lambda outputs, indices, counts: Responses(outputs))
    made = SlotBackend("planned", task, MAX_BATCH, lambda: ([PlannedSlot(plan) for _ in range(SLOTS)], {}))
    made.answer_bytes = LARGE_BYTES  # as warm-up would have found
    return made


@pytest.fixture
def plan() -> Iterator[Plan]:
    made = Plan()
    yield made
    made.let_go.set()


@pytest.fixture
def backend(plan: Plan) -> Iterator[SlotBackend]:
    made = backend_of(plan)
    made.load()
    yield made
    plan.let_go.set()
    made.close()
    assert made.fd() is None  # every slot has ended


def given(value: int, count: int) -> list[memoryview]:
    return [memoryview(bytes([value]))] * count


# The loop


def hangs_up(served: Served) -> None:
    """The link takes nothing any more, not even that the worker failed."""

    def send(parts: Any) -> None:
        raise OSError("nothing can be sent")

    served.link.ports[0].send = send  # type: ignore[method-assign]
    served.send(Kind.PING)


def stops(served: Served) -> None:
    served.worker.stop()
    served.link.ports[0].wake()


ENDS: dict[str, tuple[Callable[[Served], object], str]] = {
    "bye": (lambda served: served.send(Kind.BYE), "bye"),
    "stopped": (stops, "stopped"),
    "the link is cut": (lambda served: served.link.cut(0, "cut"), "cut"),
    "a message that no worker takes": (lambda served: served.send(Kind.LOADED), "cannot be sent LOADED"),
    "indices without a library": (lambda served: served.work(2, [0] * 4), "no sample library"),
    "a slot fails": (lambda served: served.work(2, [0, 0], given(0, 2)), "device fault"),
    "an answer is too short": (lambda served: served.work(2, [0] * 3, given(0, 3)), "cannot be shared"),
    "nothing can be sent": (hangs_up, "nothing can be sent"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("end", ENDS)
def test_the_loop_ends_when_the_slow_batch_of_another_slot_has(
    plan: Plan, backend: SlotBackend, end: str
) -> None:
    ending, reason = ENDS[end]
    served = Served(backend)
    served.work(1, [0], given(7, 1))
    assert plan.entered.wait(5)
    ending(served)
    assert eventually(lambda: bool(served.worker.ended), 3, every_s=0.01)
    assert reason in str(served.worker.ended)
    if str(served.worker.ended).split(":")[0].endswith("Error") and end != "nothing can be sent":
        assert served.control(Kind.FAIL)  # at once, not when the engine is empty
    served.thread.join(0.1)
    assert served.thread.is_alive() and not plan.read
    plan.let_go.set()
    served.end()
    assert plan.read == [bytes([7])] and served.worker.left == 0 and backend.discard() == 0


def test_a_batch_that_does_not_end_is_told_of_and_the_loop_ends_without_it(
    plan: Plan, backend: SlotBackend, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "SETTLE_NS", 50_000_000)
    served = Served(backend)
    served.work(1, [0], given(7, 1))
    assert plan.entered.wait(5)
    served.send(Kind.LOADED)
    assert "LOADED" in str(served.end()) and served.worker.left == 1
    told = "w0: 1 of its batches is still in the engine after 0.05 s, and waited for no longer\n"
    assert capfd.readouterr().err == told


def test_a_batch_that_does_not_end_counts_also_where_nobody_can_be_told(
    plan: Plan, backend: SlotBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.submit(Batch(np.zeros(1, np.int64), given(1, 1), None))
    assert plan.entered.wait(5)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        assert settle(backend, "w0", 1_000_000) == 1
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_an_engine_that_failed_is_waited_for_and_fails_the_next_test_too(
    plan: Plan, backend: SlotBackend
) -> None:
    for size in (plan.slow, plan.fails):
        backend.submit(Batch(np.zeros(size, np.int64), given(1, size), None))
    for _ in range(2):  # the second time the first has been taken in
        assert eventually(lambda: backend.discard() == 1, 5, every_s=0.01)
        with pytest.raises(BackendError, match=r"planned failed on a batch of 2: RuntimeError: device fault"):
            backend.step()
    began = time.monotonic()
    threading.Timer(0.05, plan.let_go.set).start()
    assert settle(backend, "w0") == 0 and plan.read and time.monotonic() - began < 5
    with pytest.raises(BackendError, match="device fault") as caught:
        backend.step()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_engine_that_failed_holds_nothing_of_its_batches(plan: Plan, backend: SlotBackend) -> None:
    class Loaded(list[memoryview]):
        """Samples of which we hear when nobody holds them any more."""

    samples, plan.slow = Loaded(given(1, plan.fails)), 0
    held = weakref.ref(samples)
    backend.submit(Batch(np.zeros(plan.fails, np.int64), samples, None))
    del samples
    assert settle(backend, "w0") == 0
    for _ in range(2):
        with pytest.raises(BackendError, match="planned failed on a batch of 2: RuntimeError: device fault"):
            backend.step()
    assert eventually(lambda: gc.collect() >= 0 and held() is None, 5)


# The host


@pytest.fixture
def opened(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerHost]:
    """A host whose library lies in an arena, and whose answers go to shared memory."""
    engine = backend_of(plan)
    monkeypatch.setattr(engine, "warm_up", lambda: [(1, 1e-3)])
    monkeypatch.setattr(host, "open_backend", lambda *given: engine)

    def adopt(library: Library) -> dict[str, Any]:
        library.keep_in(Arena(library.sizes, zeros, NO_BOUND))
        return {}

    engine.adopt = adopt
    made = WorkerHost(WorkerSpec("w0", "null", NULL, {}, MAX_BATCH, cache=str(tmp_path)))
    made.load()
    yield made
    plan.let_go.set()
    made.close()


def served_slowly(opened: WorkerHost, plan: Plan) -> LocalLink:
    """The host serves a test whose first batch, of sample 5, is in a slot."""
    link = LocalLink(1)
    opened.serve(EPOCH, link.ports[0], near=True)
    for parts in (
        control(Kind.WELCOME, EPOCH),
        control(Kind.SHARED, EPOCH, 1),
        indices_message(Kind.LOAD, EPOCH, np.arange(8)),
        encode_work(EPOCH, 1, np.array([5], np.uint32)),
    ):
        link.send(0, parts)
    assert plan.entered.wait(5)
    return link


def test_a_host_gives_nothing_back_before_the_batch_has_ended(
    opened: WorkerHost, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SETTLE_NS", 50_000_000)
    library, engine = opened._library, opened._backend
    assert library is not None and library._arena is not None and engine is not None
    served_slowly(opened, plan).send(0, control(Kind.LOADED, EPOCH))
    for ask in (opened.detach, lambda: opened.serve(EPOCH + 1, LocalLink(1).ports[0])):
        with pytest.raises(WorkerError, match="w0 is stuck in its engine and cannot take another test"):
            ask()
        assert library._arena.held_bytes and opened._memory is not None and opened._memory._open
    plan.let_go.set()
    assert eventually(lambda: engine.discard() == 0, 5, every_s=0.01)
    assert "LOADED" in opened.detach()["ended"]
    assert plan.read == [library.samples(np.array([5]))[0].tobytes()]
    opened.serve(EPOCH + 1, LocalLink(1).ports[0])
    assert not library._arena.held_bytes


def test_a_host_that_closes_waits_for_the_batch_first(opened: WorkerHost, plan: Plan) -> None:
    memory_was_open: list[bool] = []
    link = served_slowly(opened, plan)
    memory, engine = opened._memory, opened._backend
    assert memory is not None and isinstance(engine, SlotBackend)
    close = engine.close

    def closes() -> None:
        memory_was_open.append(memory._open)
        assert plan.read
        close()

    engine.close = closes  # type: ignore[method-assign]
    link.send(0, control(Kind.LOADED, EPOCH))
    threading.Timer(0.7, plan.let_go.set).start()
    opened.close()
    assert memory_was_open == [True] and not memory._open and engine.fd() is None


def test_a_host_closes_although_a_batch_does_not_end_and_says_so(
    opened: WorkerHost, plan: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "SETTLE_NS", 50_000_000)
    monkeypatch.setattr(slots, "JOIN_TIMEOUT_S", 0.05)
    served_slowly(opened, plan)
    memory, engine, library = opened._memory, opened._backend, opened._library
    assert memory is not None and isinstance(engine, SlotBackend) and library is not None
    with pytest.raises(WorkerError, match="w0 is stuck in its engine"):
        opened.close()
    assert not memory._open and opened._quit.is_set()
    told = capfd.readouterr().err
    assert "w0: 1 of its batches is still in the engine after 0.05 s" in told
    assert "did not end within 0.05 s; it goes on until the process ends" in told
    # What it reads still lies there, and its answer is written elsewhere.
    plan.let_go.set()
    assert eventually(lambda: bool(engine._results), 5, every_s=0.01)
    (done,) = engine.step()
    (sample,) = library.samples(np.array([5]))
    assert plan.read == [sample.tobytes()] and isinstance(done.batch.samples, LoadedSamples)
    assert done.responses.blob.tobytes() == bytes([sample[0]]) * LARGE_BYTES
    monkeypatch.setattr(slots, "JOIN_TIMEOUT_S", 5.0)
    engine.close()


# The bare loop


def test_a_bare_loop_that_fails_unloads_nothing_before_the_batch_of_another_slot_has_ended(
    plan: Plan, backend: SlotBackend, tmp_path: Path
) -> None:
    plan.slow, plan.fails = MAX_BATCH, 1
    library = NullTask(NULL).prepare(tmp_path)
    arena = Arena(library.sizes, zeros, NO_BOUND)
    library.keep_in(arena)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            bare_loop(backend, library, np.arange(MAX_BATCH + 1), None)
        except BackendError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert plan.entered.wait(5)
    thread.join(0.2)
    assert thread.is_alive() and arena.held_bytes and not failed
    plan.let_go.set()
    thread.join(5)
    assert len(plan.read) == MAX_BATCH and not arena.held_bytes and "device fault" in str(failed)
