"""What engines that compute in threads of their own share: slots, and the backend that feeds them.

A slot is a thread with its own buffers that takes a batch through collate, copy in, compute, copy out and
respond, so that on a GPU the copies of one batch overlap the compute of another (two slots). On a CPU the
cores themselves compute and one slot is all there is. Results reach the worker's loop through a deque and an
eventfd.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from workers.backends import FAR, BackendError, Batch, Done
from workers.library import Library
from workers.tasks import Task

WARM_UP_ROUNDS = 3
# A batch this slow is not repeated for a better estimate.
SLOW_BATCH_S = 2.0
# Weight of a new measurement in the estimate of a batch's time.
FRESH = 0.1
JOIN_TIMEOUT_S = 5.0
# Batches are padded to one of a few sizes where each size costs something, a CUDA graph say. With so few
# samples a GPU is not full yet, and a batch takes little longer than one sample.
SMALL_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
# Above them. With powers of two 65 images take what 128 take: in a simulation of ResNet50's Server at
# 18,000/s (29,500/s in full batches) p99 is 10 ms so and 4 ms with these.
MOST_PADDING = 0.15
MOST_SIZES = 24


@dataclass(slots=True)
class Computed:
    """What a batch came to: outputs (n, ...), which hold until the slot's next batch, and seconds.

    Of a ragged task the outputs are rows, and `counts` int64 (n,) says how many are each sample's.
    """

    outputs: np.ndarray
    counts: np.ndarray | None
    feed_s: float
    compute_s: float


class Slot(Protocol):
    """One batch in flight; `facts` are the engine's to tell once the slot is open."""

    facts: dict[str, Any]

    def open(self) -> None:
        """Allocate and capture; in the slot's thread."""

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """Take one batch the whole way."""


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


class SlotBackend:
    """Slots over one network on one device; see Backend for the methods.

    `load` gives the slots, not open yet, and the network's facts; `name` is the network's in messages;
    `around` is entered in each slot's thread. `buckets` are the batch sizes that warm-up measures; `padded`:
    every batch is padded to one of them; `side_by_side`: slots compute at once and do not wait for each
    other. An engine sets them in `load`, if not as they are.
    """

    needs_samples = True

    def __init__(
        self,
        name: str,
        task: Task,
        max_batch: int,
        load: Callable[[], tuple[list[Slot], dict[str, Any]]],
        around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.max_batch = max_batch
        self.answer_bytes = 0
        self.buckets = powers_of_two(max_batch)
        self.padded = False
        self.side_by_side = False
        self._name = name
        self._task = task
        self._load = load
        self._around = around
        self._estimates: dict[int, _Estimate] = {}
        self._results: deque[_Finished | _Ready | _Failed] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # BackendError for samples that the network cannot answer; an engine sets its own once it has loaded.
        self.check_library: Callable[[Library], None] = lambda library: None
        # Before warm-up, unless the samples come with the work: how the library's are gathered, as facts.
        self.adopt: Callable[[Library], dict[str, Any]] = lambda library: {}
        # Samples of warm-up as those of a test will lie.
        self.arranged: Callable[[list[memoryview]], Sequence[memoryview]] = lambda samples: samples
        self._slots: list[Slot] = []
        self._inboxes: list[queue.SimpleQueue[Batch | None]] = []
        self._threads: list[threading.Thread] = []
        self._idle: list[int] = []
        self._engine_free_ns = 0
        self._lead_ns = 0
        self._failure: _Failed | None = None  # the first
        self._failed = 0  # slots, whose threads have ended
        self._told_stuck = False

    def load(self) -> dict[str, Any]:
        """Load the network, then open the slots one after the other (CUDA captures must not overlap)."""
        self._slots, facts = self._load()
        for number, slot in enumerate(self._slots):
            inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._serve, args=(number, slot, inbox), name=f"slot-{number}", daemon=True
            )
            self._inboxes.append(inbox)
            self._threads.append(thread)
            thread.start()
            while number not in self._idle:
                self._wait()
                self._drain()
        return {**facts, **self._slots[-1].facts, "slots": len(self._slots)}

    def warm_up(self) -> list[tuple[int, float]]:
        """Every bucket through every slot, whole path; the best round counts."""
        for size in self.buckets:
            samples = self.arranged(self._task.warm_up_samples(size))
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
        if len(self._idle) == len(self._threads) or (self.side_by_side and self._idle):
            return now_ns
        return max(now_ns, self._engine_free_ns - self._lead_ns) if self._idle else FAR

    def next_done_ns(self) -> int:
        """The eventfd tells."""
        return FAR

    def fd(self) -> int | None:
        """The eventfd on which slots signal."""
        return self._fd if self._fd >= 0 else None

    def discard(self) -> int:
        """The slots that have not posted what their batch came to."""
        self._take_in()
        return len(self._threads) - len(self._idle) - self._failed

    def close(self) -> None:
        """End the slots' threads; one that does not end in time is told of, and dies with the process."""
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck and not self._told_stuck:
            self._told_stuck = True
            what = f"{self._name}: {', '.join(stuck)} did not end within {JOIN_TIMEOUT_S:g} s"
            print(f"{what}; it goes on until the process ends", file=sys.stderr, flush=True)
        if self._fd >= 0 and not stuck:
            os.close(self._fd)
            self._fd = -1

    def _drain(self) -> list[_Finished]:
        """Take in what the slots have posted; BackendError once one has failed."""
        finished = self._take_in()
        if self._failure is not None:
            # A new one each time: an exception that is kept keeps whatever it was raised through.
            raise BackendError(self._explain(self._failure)) from self._failure.error
        return finished

    def _take_in(self) -> list[_Finished]:
        # Read before the deque is drained: a slot appends first and signals then, so nothing is missed.
        if self._fd >= 0:  # not closed
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        finished: list[_Finished] = []
        while self._results:
            result = self._results.popleft()
            if isinstance(result, _Failed):
                self._failed += 1
                self._failure = self._failure or result
                continue
            self._idle.append(result.slot)
            if isinstance(result, _Finished):
                self._learn(result)
                finished.append(result)
        return finished

    def _serve(self, number: int, slot: Slot, inbox: queue.SimpleQueue[Batch | None]) -> None:
        """A slot's thread."""
        size, batch = 0, None
        try:
            with self._around():
                slot.open()
                self._post(_Ready(number))
                while (batch := inbox.get()) is not None:
                    size = len(batch.samples)
                    self._post(self._compute(number, slot, batch))
                    del batch  # or it would hold the memory of its samples, which may be unloaded meanwhile
        except BaseException as error:
            batch = None  # the failure stays, and its batch must not
            _forget_locals(error)
            # Out of memory, a device fault, a bad shape: the worker's loop must hear all of them.
            self._post(_Failed(error, size))

    def _compute(self, number: int, slot: Slot, batch: Batch) -> _Finished:
        started = time.monotonic_ns()
        made = slot.compute(batch.samples)
        responses = self._task.respond(made.outputs, batch.indices, made.counts)
        if np.may_share_memory(responses.blob, made.outputs):
            responses.blob = batch.keep(responses.blob)  # the slot's next batch overwrites its buffer
        self.answer_bytes = max(self.answer_bytes, responses.blob.size)
        done = Done(batch, responses, started, time.monotonic_ns())
        return _Finished(number, done, made.feed_s, made.compute_s)

    def _post(self, result: _Finished | _Ready | _Failed) -> None:
        self._results.append(result)
        os.eventfd_write(self._fd, 1)

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.poll()

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
        """Move the estimate of this batch's bucket towards what was measured, if it was computed as such."""
        estimate = self._estimate(len(result.done.batch.samples))
        if self.padded or len(result.done.batch.samples) in self.buckets:
            estimate.feed_s += FRESH * (result.feed_s - estimate.feed_s)
            estimate.compute_s += FRESH * (result.compute_s - estimate.compute_s)

    def _explain(self, failed: _Failed) -> str:
        """The failure in words: network, batch size, cause."""
        if isinstance(failed.error, BackendError):
            return str(failed.error)
        cause = (str(failed.error).strip().splitlines() or [""])[0]
        where = f"on a batch of {failed.batch_size}" if failed.batch_size else "before the first batch"
        what = type(failed.error).__name__
        hint = "; lower workers.max_batch" if what in ("OutOfMemoryError", "MemoryError") else ""
        return f"{self._name} failed {where}: {what}: {cause}{hint}"


def _forget_locals(error: BaseException) -> None:
    """Empty the frames that an exception and those behind it came through; their lines stay."""
    seen: list[BaseException] = []
    following: list[BaseException | None] = [error]
    while following:
        one = following.pop()
        if one is None or one in seen:
            continue
        traceback.clear_frames(one.__traceback__)
        seen.append(one)
        following += [one.__cause__, one.__context__]


def powers_of_two(max_batch: int) -> list[int]:
    """Powers of two up to `max_batch`, and `max_batch` itself."""
    sizes = [1 << i for i in range(max_batch.bit_length()) if 1 << i <= max_batch]
    return sizes if sizes[-1] == max_batch else [*sizes, max_batch]


def padded_sizes(max_batch: int) -> list[int]:
    """Sizes to pad batches to, `max_batch` the last: at most 24, each up to 15 % above those before it.

    Above 128, where 24 do not suffice for that, the steps are as much larger: 19 % at 256, 30 % at 1,024.
    """
    most = SMALL_SIZES[-1]
    if max_batch <= most:
        return [size for size in SMALL_SIZES if size < max_batch] + [max_batch]
    wanted = math.ceil(math.log(max_batch / most, 1 + MOST_PADDING))
    steps = min(wanted, MOST_SIZES - len(SMALL_SIZES))
    larger = [round(most * (max_batch / most) ** (step / steps)) for step in range(1, steps)]
    return sorted({*SMALL_SIZES, *larger, max_batch})


def threads_of(threads: int, workers_on_host: int) -> int:
    """CPU threads of a worker: as many as it was told, else its share of the host's cores."""
    return threads or max(1, len(os.sched_getaffinity(0)) // max(1, workers_on_host))
