"""The torch engine: any module of workers.models on a CPU or on one CUDA device.

Each slot is a thread with its own buffers that takes a batch through collate, copy in, compute, copy out and
respond, so that on a GPU the copies of one batch overlap the compute of another (two slots). On a CPU the
cores themselves compute and one slot is all there is. Results reach the worker's loop through a deque and an
eventfd.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workers.backends import FAR, BackendError, Batch, Done, read_options
from workers.backends.torch_cuda import CUDA_SLOTS, ComputeTurn, CudaSlot, Lane
from workers.backends.torch_network import Network, TorchOptions, load_network
from workers.backends.torch_ragged import RaggedSlot
from workers.backends.torch_slots import CpuSlot, Slot
from workers.tasks import Task

WARM_UP_ROUNDS = 3
# A batch this slow is not repeated for a better estimate.
SLOW_BATCH_S = 2.0
# Weight of a new measurement in the estimate of a batch's time.
FRESH = 0.1
JOIN_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Estimate:
    """Seconds of a batch size: before the engine computes it, while it does, and in all."""

    feed_s: float
    compute_s: float
    total_s: float


@dataclass(slots=True)
class _Finished:
    slot: int
    done: Done
    feed_s: float
    compute_s: float


@dataclass(slots=True)
class _Ready:
    slot: int


@dataclass(slots=True)
class _Failed:
    error: BaseException
    batch_size: int


class TorchBackend:
    """One network on one device; see Backend for the methods."""

    needs_samples = True

    def __init__(self, options: TorchOptions, raw: Mapping[str, Any], task: Task, max_batch: int) -> None:
        self.max_batch = max_batch
        self.buckets = bucket_sizes(max_batch)
        self._options = options
        self._raw = raw
        self._task = task
        self._estimates: dict[int, _Estimate] = {}
        self._results: deque[_Finished | _Ready | _Failed] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inboxes: list[queue.SimpleQueue[Batch | None]] = []
        self._slots: list[Slot] = []
        self._threads: list[threading.Thread] = []
        self._idle: list[int] = []
        self._engine_free_ns = 0
        self._lead_ns = 0
        self._failure: BackendError | None = None

    def load(self) -> dict[str, Any]:
        """Build the network, then open the slots one after the other (CUDA captures must not overlap)."""
        if self._options.device == "cpu":
            torch.set_num_threads(self._thread_count())
        network = load_network(self._options, self._raw, len(self.buckets), self._task.ragged)
        self._slots = _make_slots(network, self._task, self.buckets)
        for number, slot in enumerate(self._slots):
            inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
            name = f"torch-slot-{number}"
            thread = threading.Thread(target=self._serve, args=(number, slot, inbox), name=name, daemon=True)
            self._inboxes.append(inbox)
            self._threads.append(thread)
            thread.start()
            while number not in self._idle:
                self._wait()
                self._drain()
        return {
            **network.facts,
            **self._slots[-1].facts,
            "engine": "torch",
            "versions": _versions(network),
            "threads": torch.get_num_threads(),
        }

    def warm_up(self) -> list[tuple[int, float]]:
        """Every bucket through every slot, whole path; the best round counts."""
        for size in self.buckets:
            samples = self._task.warm_up_samples(size)
            for number in range(len(self._threads)):
                for turn in range(WARM_UP_ROUNDS):
                    seconds = self._try_batch(number, Batch(np.zeros(size, np.int64), samples, None))
                    if turn and seconds > SLOW_BATCH_S:  # the first round may have compiled
                        break
        return [(size, self._estimates[size].total_s) for size in self.buckets]

    def submit(self, batch: Batch) -> None:
        """Hand the batch to an idle slot."""
        size = len(batch.samples)
        if not self._idle or not 0 < size <= self.max_batch:
            why = f"{len(self._idle)} idle slots, max_batch {self.max_batch}"
            raise BackendError(f"a batch of {size} samples cannot be submitted now ({why})")
        now = time.monotonic_ns()
        estimate = self._estimate(size)
        self._lead_ns = int(estimate.feed_s * 1e9)
        starts = max(now + self._lead_ns, self._engine_free_ns)
        self._engine_free_ns = starts + int(estimate.compute_s * 1e9)
        self._inboxes[self._idle.pop()].put(batch)

    def step(self) -> list[Done]:
        """What the slots have finished."""
        return [result.done for result in self._drain()]

    def free_at_ns(self, now_ns: int) -> int:
        """While one slot computes and one is idle: the estimated end less the time to feed the next batch."""
        if len(self._idle) == len(self._threads):
            return now_ns
        return max(now_ns, self._engine_free_ns - self._lead_ns) if self._idle else FAR

    def next_done_ns(self) -> int:
        """The eventfd tells."""
        return FAR

    def fd(self) -> int | None:
        """The eventfd on which slots signal."""
        return self._fd

    def close(self) -> None:
        """End the slots' threads; one that does not end in time is a daemon and dies with the process."""
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        if self._fd >= 0 and not any(t.is_alive() for t in self._threads):
            os.close(self._fd)
            self._fd = -1

    def _drain(self) -> list[_Finished]:
        """Take in what the slots have posted; BackendError once one has failed."""
        if self._failure:
            raise self._failure
        # Read before the deque is drained: a slot appends first and signals then, so nothing is missed.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        finished: list[_Finished] = []
        while self._results:
            result = self._results.popleft()
            if isinstance(result, _Failed):
                self._failure = _explain(result, self._options)
                raise self._failure from result.error
            self._idle.append(result.slot)
            if isinstance(result, _Finished):
                self._learn(result)
                finished.append(result)
        return finished

    def _serve(self, number: int, slot: Slot, inbox: queue.SimpleQueue[Batch | None]) -> None:
        """A slot's thread."""
        size = 0
        try:
            with torch.inference_mode():
                slot.open()
                self._post(_Ready(number))
                while (batch := inbox.get()) is not None:
                    size = len(batch.samples)
                    self._post(self._compute(number, slot, batch))
        except BaseException as error:
            # Out of memory, a device fault, a bad shape: the worker's loop must hear all of them.
            self._post(_Failed(error, size))

    def _compute(self, number: int, slot: Slot, batch: Batch) -> _Finished:
        started = time.monotonic_ns()
        made = slot.compute(batch.samples)
        responses = self._task.respond(made.outputs, batch.indices, made.counts)
        if np.may_share_memory(responses.blob, made.outputs):
            responses.blob = responses.blob.copy()  # the slot's buffer is overwritten by its next batch
        done = Done(batch, responses, started, time.monotonic_ns())
        return _Finished(number, done, made.feed_s, made.compute_s)

    def _post(self, result: _Finished | _Ready | _Failed) -> None:
        self._results.append(result)
        os.eventfd_write(self._fd, 1)

    def _wait(self) -> None:
        select.select([self._fd], [], [])

    def _try_batch(self, number: int, batch: Batch) -> float:
        """Take one batch through one slot; returns the seconds and keeps the best as the estimate."""
        self._idle.remove(number)
        began = time.monotonic_ns()
        self._inboxes[number].put(batch)
        finished: list[_Finished] = []
        while not finished:
            self._wait()
            finished = self._drain()
        total_s = (finished[0].done.computed_ns - began) / 1e9
        size = len(batch.samples)
        known = self._estimates.get(size)
        if known is None or total_s < known.total_s:
            self._estimates[size] = _Estimate(finished[0].feed_s, finished[0].compute_s, total_s)
        return total_s

    def _estimate(self, size: int) -> _Estimate:
        """The estimate of the bucket that holds `size`; nothing is known before warm-up."""
        bucket = next(b for b in self.buckets if b >= size)
        return self._estimates.get(bucket) or _Estimate(0.0, 0.0, 0.0)

    def _learn(self, result: _Finished) -> None:
        """Move the estimate of this batch size towards what was measured."""
        estimate = self._estimate(len(result.done.batch.samples))
        if len(result.done.batch.samples) in self.buckets:
            estimate.feed_s += FRESH * (result.feed_s - estimate.feed_s)
            estimate.compute_s += FRESH * (result.compute_s - estimate.compute_s)

    def _thread_count(self) -> int:
        if self._options.threads:
            return self._options.threads
        return max(1, len(os.sched_getaffinity(0)) // max(1, self._options.workers_on_host))


def _make_slots(network: Network, task: Task, buckets: list[int]) -> list[Slot]:
    """The slots that fit the device: two overlap on a GPU, one is all of a CPU."""
    if network.device.type != "cuda":
        return [CpuSlot(network, task, buckets)]
    turn = ComputeTurn()
    lanes = [Lane(network.device, turn) for _ in range(CUDA_SLOTS)]
    if task.ragged:
        return [RaggedSlot(network, task, buckets[-1], lane) for lane in lanes]
    return [CudaSlot(network, task, buckets, lane) for lane in lanes]


def bucket_sizes(max_batch: int) -> list[int]:
    """Powers of two up to `max_batch`, and `max_batch` itself."""
    sizes = [1 << i for i in range(max_batch.bit_length()) if 1 << i <= max_batch]
    return sizes if sizes[-1] == max_batch else [*sizes, max_batch]


def _explain(failed: _Failed, options: TorchOptions) -> BackendError:
    """The failure in words: model, device, batch size, cause."""
    if isinstance(failed.error, BackendError):
        return failed.error
    cause = str(failed.error).strip().splitlines() or [""]
    where = f"on a batch of {failed.batch_size}" if failed.batch_size else "before the first batch"
    what = f"{type(failed.error).__name__}: {cause[0]}"
    hint = "; lower workers.max_batch" if isinstance(failed.error, torch.OutOfMemoryError) else ""
    return BackendError(f"{options.model} on {options.device} failed {where}: {what}{hint}")


def _versions(network: Network) -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    if network.device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def open_engine(options: Mapping[str, Any], task: Task, max_batch: int) -> TorchBackend:
    """A torch backend with its options checked."""
    checked = read_options(TorchOptions, options)
    if not checked.model:
        raise BackendError("the torch engine needs a model: set backend.model")
    if min(checked.threads, checked.workers_on_host) < 0:
        raise BackendError("backend.threads must not be negative")
    if 0 < task.largest_batch < max_batch:
        most = f"workers.max_batch may be {task.largest_batch} at most, not {max_batch}"
        raise BackendError(f"a batch of task {task.name} holds {task.largest_batch} samples: {most}")
    return TorchBackend(checked, options, task, max_batch)
