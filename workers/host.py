"""What lives as long as a worker: its model, its sample library, and one Worker per test. No Ray in it."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from workers.answer_memory import AnswerMemory, memory_for
from workers.backends import Backend, BackendError, open_backend
from workers.backends.slowed import Slowed
from workers.bare import bare_loop
from workers.batcher import Batcher
from workers.library import Library
from workers.own_code import workers_sha256
from workers.port import DealerPort, new_key_pair
from workers.tasks import Task, open_task
from workers.worker import Port, Worker

# Python's default of 5 ms lets a busy engine thread keep the loop waiting: p99 8.5 ms instead of 0.9.
SWITCH_INTERVAL_S = 0.0005
ATTACH_TIMEOUT_S = 20.0
# Longer than the loop waits for the batches in its engine (backends.SETTLE_NS).
STOP_TIMEOUT_S = 65.0
VERSIONED = ("numpy", "torch", "pyzmq", "onnxruntime", "ray")


class WorkerError(Exception):
    """A worker cannot do what it is asked; the text names the worker and the mend."""


class WakablePort(Port, Protocol):
    """A port whose wait can be ended from another thread."""

    def wake(self) -> None:
        """End a wait."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is made of; plain values, because it travels through Ray."""

    name: str
    task: str
    task_options: dict[str, Any]
    backend: dict[str, Any]
    max_batch: int
    batch_deadline_ns: int = 0
    cache: str = ""
    needs_library: bool = True
    note_order: bool = False  # remember each test's samples, for `replay`
    slowed: tuple[str, float] | None = None  # the worker of this name is so many times slower, for trials


@dataclass(frozen=True)
class Ticket:
    """Admission to one test: where to connect, as whom, and the test's key (None: `security: none`)."""

    epoch: int
    endpoint: str
    identity: str
    server_key: str | None
    io_threads: int = 1
    near: bool = False  # the test runs on this host and may read large answers in this process's memory


@dataclass
class WorkerHost:
    """Loads the model once and serves test after test."""

    spec: WorkerSpec
    _backend: Backend | None = None
    _task: Task | None = None
    _library: Library | None = None
    _order: list[np.ndarray] = field(default_factory=list)
    _keys: tuple[str, str] = ("", "")
    _worker: Worker | None = None
    _port: WakablePort | None = None
    _memory: AnswerMemory | None = None
    _refused: bool = False  # a test could not see it; the next could not either
    _thread: threading.Thread | None = None
    _quit: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _detached: int = 0  # times that somebody asked for it

    def load(self) -> dict[str, Any]:
        """Open the library, load the model, warm up; returns what the driver records and compares."""
        task = self._task = open_task(self.spec.task, self.spec.task_options)
        backend = engine = open_backend(self.spec.backend, task, self.spec.max_batch)
        if self.spec.slowed and self.spec.slowed[0] == self.spec.name:
            backend = Slowed(engine, self.spec.slowed[1])
        self._backend = backend
        if self.spec.needs_library and backend.needs_samples:
            self._library = task.prepare(Path(self.spec.cache))
        facts = backend.load()
        check = getattr(engine, "check_library", None)
        if self._library is not None and check is not None:
            check(self._library)
        adopt = getattr(engine, "adopt", None)
        if self._library is not None and adopt is not None:
            facts |= adopt(self._library)
        warm_up = backend.warm_up()
        return {
            "name": self.spec.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "warm_up": [[int(n), float(s)] for n, s in warm_up],
            "max_batch": self.spec.max_batch,
            "library": self._library.digest if self._library else None,
            "code": workers_sha256(),
            **facts,
            "versions": _versions() | facts.get("versions", {}),
        }

    def key(self) -> str:
        """A fresh CURVE key pair for the next test; only the public half leaves this process."""
        self._keys = new_key_pair()
        return self._keys[0]

    def attach(self, ticket: Ticket) -> None:
        """Connect to a test and serve it in a thread; WorkerError if the test does not let this worker in."""
        detached = self._detached
        port = DealerPort(
            ticket.endpoint,
            ticket.identity.encode(),
            ticket.server_key,
            self._keys,
            ticket.io_threads,
        )
        try:
            worker = self.serve(ticket.epoch, port, detached, ticket.near)
        except BaseException:
            port.close()
            raise
        until = time.monotonic() + ATTACH_TIMEOUT_S
        while not worker.welcome:
            if worker.ended or time.monotonic() > until:
                reason = worker.ended or f"no answer from {ticket.endpoint} in {ATTACH_TIMEOUT_S:g} s"
                self.detach()
                raise WorkerError(f"worker {self.spec.name} could not attach to the test: {reason}")
            time.sleep(0.005)

    def serve(self, epoch: int, port: WakablePort, detached: int | None = None, near: bool = False) -> Worker:
        """Serve one test over `port` in a thread; WorkerError if told to detach since `detached` was read."""
        with self._lock:
            self._detach()
            if detached is not None and detached != self._detached:
                raise WorkerError(f"worker {self.spec.name} was told to leave the test before it had come")
            return self._serve(epoch, port, near)

    def _serve(self, epoch: int, port: WakablePort, near: bool) -> Worker:
        if self._backend is None:
            raise WorkerError(f"worker {self.spec.name} has no model: load() comes first")
        if near and not self._refused:
            self._memory = memory_for(self._backend.answer_bytes, self._memory)
        if self._library is not None:
            self._library.unload_all()
        batcher = Batcher(self.spec.max_batch, self.spec.batch_deadline_ns)
        worker = Worker(
            self.spec.name,
            epoch,
            port,
            self._backend,
            self._library,
            batcher,
            node_name=f"{self.spec.name}@{socket.gethostname()}",
            memory=self._memory if near else None,
        )
        if self.spec.note_order:
            self._order = worker.order = []
        thread = threading.Thread(target=worker.run, name=f"serve-{self.spec.name}", daemon=True)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        thread.start()
        # Nothing above has changed what detach() would have to give back, had it failed.
        self._port, self._worker, self._thread = port, worker, thread
        # A collection in mid-test is a latency of tens of milliseconds; a test makes no cycles worth one.
        gc.collect()
        gc.disable()
        return worker

    def detach(self) -> dict[str, Any]:
        """End the test's thread if it still runs; returns how many samples it answered and why it ended.

        WorkerError if this worker can take no other test: its engine holds it, or has failed.
        """
        # Ray may call this while attach() still waits in another thread, which then detaches too.
        with self._lock:
            left = self._leave()
            if left["ended"] and (why := self._engine_failure()):
                raise WorkerError(f"worker {self.spec.name} cannot take another test: {why}")
            return left

    def _leave(self) -> dict[str, Any]:
        self._detached += 1  # an attach() that still waits does not come in any more
        return self._detach()

    def _engine_failure(self) -> str | None:
        """Why the engine computes nothing any more, None if it does: it says so whenever it is asked."""
        try:
            if self._backend is not None:
                self._backend.step()  # of the test that is over nobody wants anything
        except BackendError as error:
            return str(error)
        return None

    def _detach(self) -> dict[str, Any]:
        if self._worker is None or self._port is None or self._thread is None:
            return {"samples": 0, "ended": None}
        worker, port, thread = self._worker, self._port, self._thread
        # The BYE is usually under way: give it a moment, then end the loop ourselves.
        thread.join(timeout=0.5)
        if thread.is_alive():
            worker.stop()
            port.wake()
            thread.join(timeout=STOP_TIMEOUT_S)
        stays = worker.left and self._backend is not None and self._backend.discard()
        if thread.is_alive() or stays:
            raise WorkerError(f"worker {self.spec.name} is stuck in its engine and cannot take another test")
        port.close()
        gc.enable()
        self._worker = self._port = self._thread = None
        if worker.refused:
            self._refused = True
            self._drop_memory()
        return {"samples": worker.samples, "ended": worker.ended}

    def replay(self) -> dict[str, Any]:
        """The last test's samples again, in full batches and a bare loop: what the backend does by itself.

        Returns samples, batches, seconds, and rows (of a ragged task, else None). Needs spec.note_order.
        """
        self.detach()
        if self._backend is None or self._task is None or not self._order:
            raise WorkerError(f"worker {self.spec.name} has no test to repeat")
        order = np.concatenate(self._order).astype(np.int64)
        if not self._backend.needs_samples:
            return bare_loop(self._backend, None, order, None)
        if self._library is None:  # in value mode the samples came with the work
            self._library = self._task.prepare(Path(self.spec.cache))
        return bare_loop(self._backend, self._library, order, self._task if self._task.ragged else None)

    def _drop_memory(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def watch(self) -> None:
        """Block until close(): a caller that waits on this hears at once when the process dies."""
        self._quit.wait()

    def close(self) -> None:
        """Give the model back, and only then what its batches write; WorkerError if one is stuck in it."""
        try:
            with self._lock:
                self._leave()
        finally:
            self._quit.set()
            if self._backend is not None:
                self._backend.close()
                self._backend = None
            self._drop_memory()


def _versions() -> dict[str, str]:
    """Versions of the libraries that decide what a worker computes, as far as they are installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
