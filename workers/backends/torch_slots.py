"""Slots of the torch engine: one takes one batch at a time through collate, copy in, compute and copy out.

A slot is opened and used in its own thread. CUDA lives in CudaSlot alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from workers.backends.torch_network import Network
from workers.tasks import Task

CUDA_SLOTS = 2
# Passes before a capture: the first ones choose algorithms and allocate.
EAGER_PASSES = 3


class Slot(Protocol):
    """One batch in flight."""

    def open(self) -> None:
        """Allocate and capture; in the slot's thread."""

    def compute(self, samples: Sequence[memoryview]) -> tuple[np.ndarray, float, float]:
        """(outputs (n, ...), seconds to feed, seconds to compute); outputs hold until the next call."""


def open_slots(network: Network, task: Task, buckets: list[int]) -> list[Slot]:
    """The slots that fit the device: two overlap on a GPU, one is all of a CPU."""
    if network.device.type != "cuda":
        return [CpuSlot(network, task, buckets)]
    turn = ComputeTurn()
    return [CudaSlot(network, task, buckets, turn) for _ in range(CUDA_SLOTS)]


def bucket_of(size: int, buckets: list[int]) -> int:
    """The smallest bucket that holds `size` samples."""
    return next(b for b in buckets if b >= size)


class CpuSlot:
    """Computes in place: nothing to copy."""

    def __init__(self, network: Network, task: Task, buckets: list[int]) -> None:
        self._network = network
        self._task = task
        self._buckets = buckets

    def open(self) -> None:
        """Nothing to allocate."""

    def compute(self, samples: Sequence[memoryview]) -> tuple[np.ndarray, float, float]:
        """See Slot."""
        began = time.perf_counter()
        n = len(samples)
        rows = self._task.collate(samples)
        if self._network.padded and (extra := bucket_of(n, self._buckets) - n):
            rows = np.concatenate([rows, np.repeat(rows[-1:], extra, axis=0)])
        fed = time.perf_counter()
        outputs = self._network(torch.from_numpy(rows)).numpy()[:n]
        return outputs, fed - began, time.perf_counter() - fed


class ComputeTurn:
    """Lets slots compute one after the other while their copies overlap.

    Two batches computed at once would only slow each other down and make the end of neither predictable.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last: torch.cuda.Event | None = None
        self.pool: tuple[int, int] | None = None  # graphs never run at once: one scratch memory


class CudaSlot:
    """Own stream, pinned host buffers, static device buffers and, for each bucket, a graph over them."""

    def __init__(self, network: Network, task: Task, buckets: list[int], turn: ComputeTurn) -> None:
        self._network = network
        self._task = task
        self._buckets = buckets
        self._turn = turn
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def open(self) -> None:
        """Allocate from the shapes of a warm-up batch of the largest size, then capture every bucket."""
        device = self._network.device
        torch.cuda.set_device(device if device.index is not None else torch.cuda.current_device())
        self._stream = torch.cuda.Stream()
        # Both ends of the copy in and of the compute, by the device's clock: ours would count the turn.
        self._arriving, self._arrived, self._begun, self._ended = (
            torch.cuda.Event(enable_timing=True) for _ in range(4)
        )
        # Blocking: a slot's thread that spins would take a core from the worker's loop.
        self._copied = torch.cuda.Event(blocking=True)
        rows = torch.from_numpy(self._task.collate(self._task.warm_up_samples(self._buckets[-1])))
        with self._turn.lock, torch.cuda.stream(self._stream):
            self._in_host = rows.pin_memory()
            self._rows = self._in_host.numpy()
            self._in = self._in_host.to(device)
            first = self._network(self._in)
            self._out = torch.empty_like(first)
            self._out_host = torch.empty(first.shape, dtype=first.dtype, pin_memory=True)
            self._outputs = self._out_host.numpy()
            self._stream.synchronize()
            if self._network.cuda_graphs:
                for size in reversed(self._buckets):
                    self._capture(size)

    def _capture(self, size: int) -> None:
        """Record the compute of one bucket; the largest is first, its scratch memory serves the others."""
        for _ in range(EAGER_PASSES):
            self._forward(size)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._turn.pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            self._forward(size)
        self._turn.pool = graph.pool()
        self._graphs[size] = graph

    def _forward(self, size: int) -> None:
        """From the static input to the static output, which lies outside of the graphs' shared memory."""
        self._out[:size].copy_(self._network(self._in[:size]))

    def compute(self, samples: Sequence[memoryview]) -> tuple[np.ndarray, float, float]:
        """See Slot."""
        began = time.perf_counter()
        n = len(samples)
        rows = self._task.collate(samples, self._rows)
        if not np.may_share_memory(rows, self._rows):
            return self._compute_other_shape(rows, began)
        with torch.cuda.stream(self._stream):
            collated = time.perf_counter()
            self._arriving.record()
            self._in[:n].copy_(self._in_host[:n], non_blocking=True)
            self._arrived.record()
            with self._turn.lock:
                self._begin_turn()
                if self._graphs:
                    self._graphs[bucket_of(n, self._buckets)].replay()
                else:
                    self._forward(bucket_of(n, self._buckets) if self._network.padded else n)
                self._end_turn()
            self._out_host[:n].copy_(self._out[:n], non_blocking=True)
            self._copied.record()
        self._copied.synchronize()
        return self._outputs[:n], *self._seconds(collated - began)

    def _compute_other_shape(self, rows: np.ndarray, began: float) -> tuple[np.ndarray, float, float]:
        """Compute a batch whose shape is not that of the static buffers (tasks of variable length)."""
        with torch.cuda.stream(self._stream):
            pinned = torch.from_numpy(rows).pin_memory()
            collated = time.perf_counter()
            self._arriving.record()
            x = pinned.to(self._network.device, non_blocking=True)
            self._arrived.record()
            with self._turn.lock:
                self._begin_turn()
                y = self._network(x)
                self._end_turn()
            outputs = y.cpu().numpy()
        return outputs, *self._seconds(collated - began)

    def _seconds(self, collate_s: float) -> tuple[float, float]:
        """(to feed, to compute), once the stream has passed all four events."""
        fed_s = collate_s + self._arriving.elapsed_time(self._arrived) / 1e3
        return fed_s, self._begun.elapsed_time(self._ended) / 1e3

    def _begin_turn(self) -> None:
        if self._turn.last is not None:
            self._stream.wait_event(self._turn.last)
        self._begun.record()

    def _end_turn(self) -> None:
        self._ended.record()
        self._turn.last = self._ended
