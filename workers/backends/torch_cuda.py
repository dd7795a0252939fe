"""CUDA's side of the torch engine: a slot's own stream, its turn to compute, and the slot of fixed tasks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from workers.backends.batch_copy import Launch
from workers.backends.slots import Computed
from workers.backends.torch_gather import Fetcher
from workers.backends.torch_network import Network
from workers.backends.torch_slots import bucket_of
from workers.tasks import Task

CUDA_SLOTS = 2
# Passes before a capture: the first ones choose algorithms and allocate.
EAGER_PASSES = 3
# The largest has chosen algorithms and allocated; the others need a pass only for what is theirs.
EAGER_PASSES_OF_SMALLER = 1


class ComputeTurn:
    """Lets slots compute one after the other while their copies overlap.

    Two batches computed at once would only slow each other down and make the end of neither predictable.
    Not so where each leaves most of the device idle: then `side_by_side`, they all go at once.
    """

    def __init__(self, side_by_side: bool = False) -> None:
        self.side_by_side = side_by_side
        self.lock = threading.Lock()
        self.last: torch.cuda.Event | None = None
        self.pool: tuple[int, int] | None = None  # graphs never run at once: one scratch memory


class Lane:
    """A slot's stream, and the times of a batch by the device's clock: ours would count the turn."""

    def __init__(self, device: torch.device, turn: ComputeTurn) -> None:
        self.device = device
        self._turn = turn

    def open(self) -> None:
        """Make the stream and its events; in the slot's thread."""
        current = self.device.index if self.device.index is not None else torch.cuda.current_device()
        torch.cuda.set_device(current)
        self._stream = torch.cuda.Stream()
        # Both ends of the copy in and of the compute.
        self._arriving, self._arrived, self._begun, self._ended = (
            torch.cuda.Event(enable_timing=True) for _ in range(4)
        )
        # Blocking: a slot's thread that spins would take a core from the worker's loop.
        self._copied = torch.cuda.Event(blocking=True)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the device reads and writes by itself."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """The stream, and the device for this slot alone: captures must not overlap."""
        with self._turn.lock, torch.cuda.stream(self._stream):
            yield

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """The stream. A batch that fails in it leaves nothing there that still reads what it was made of."""
        with torch.cuda.stream(self._stream):
            try:
                yield
            except BaseException:
                # A device that has failed runs nothing any more, and says so again.
                with contextlib.suppress(RuntimeError):
                    self._stream.synchronize()
                raise

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        """Around the copies in."""
        self._arriving.record()
        yield
        self._arrived.record()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Around the compute: waits on the device for the turn."""
        if self._turn.side_by_side:
            self._begun.record()
            yield
            self._ended.record()
            return
        with self._turn.lock:
            if self._turn.last is not None:
                self._stream.wait_event(self._turn.last)
            self._begun.record()
            yield
            self._ended.record()
            self._turn.last = self._ended

    def land(self) -> None:
        """Wait until everything given to the stream so far is done."""
        self._copied.record()
        self._copied.synchronize()

    def seconds(self, collate_s: float) -> tuple[float, float]:
        """(to feed, to compute), once the stream has passed all four events."""
        fed_s = collate_s + self._arriving.elapsed_time(self._arrived) / 1e3
        return fed_s, self._begun.elapsed_time(self._ended) / 1e3

    def capture(self, work: Callable[[], None], eager_passes: int = EAGER_PASSES) -> Callable[[], None]:
        """Record `work`, which has static shapes and places; returns what plays it. Largest work first.

        The scratch memory of the first serves all others, so what a graph leaves must lie outside of it.
        """
        for _ in range(eager_passes):
            work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._turn.pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        self._turn.pool = graph.pool()
        play: Callable[[], None] = graph.replay
        return play


class CudaSlot:
    """A fixed task's: pinned host buffers, static device buffers and, for each bucket, a graph over them."""

    def __init__(
        self,
        network: Network,
        task: Task,
        buckets: list[int],
        lane: Lane,
        launch: Launch | None = None,
    ) -> None:
        self._network = network
        self._task = task
        self._buckets = buckets
        self._lane = lane
        self._graphs: dict[int, Callable[[], None]] = {}
        self._fetcher = None if launch is None else Fetcher(launch, buckets[-1])
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        """Allocate from the shapes of a warm-up batch of the largest size, then capture every bucket."""
        lane = self._lane
        lane.open()
        began = time.perf_counter()
        rows = torch.from_numpy(self._task.collate(self._task.warm_up_samples(self._buckets[-1])))
        with lane.opening():
            self._in_host = lane.pinned(rows.shape, rows.dtype)
            self._in_host.copy_(rows)
            self._rows = self._in_host.numpy()
            self._in = self._in_host.to(lane.device, copy=True)
            first = self._network(self._in)
            self._out = torch.empty_like(first)
            self._out_host = lane.pinned(first.shape, first.dtype)
            self._outputs = self._out_host.numpy()
            lane.land()
            if self._network.cuda_graphs:
                self._capture_all()
        seconds = round(time.perf_counter() - began, 3)
        self.facts = {"graphs": len(self._graphs), "open_s": seconds}

    def _capture_all(self) -> None:
        """Capture the largest first: its scratch memory serves the others."""
        passes = EAGER_PASSES
        for size in reversed(self._buckets):
            self._graphs[size] = self._lane.capture(lambda size=size: self._forward(size), passes)  # type: ignore[misc]
            passes = EAGER_PASSES_OF_SMALLER

    def _forward(self, size: int) -> None:
        """From the static input to the static output, which lies outside of the graphs' shared memory."""
        self._out[:size].copy_(self._network(self._in[:size]))

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """See Slot."""
        began = time.perf_counter()
        n, lane, fetcher = len(samples), self._lane, self._fetcher
        if fetcher is not None and fetcher.takes(samples, self._rows[0].nbytes, ragged=False):
            fetcher.stage(samples)
        else:
            fetcher = None
            rows = self._task.collate(samples, self._rows)
            if not np.may_share_memory(rows, self._rows):
                return self._compute_other_shape(rows, began)
        with lane.streaming():
            collated = time.perf_counter()
            with lane.arriving():
                if fetcher is not None:
                    fetcher.bring(self._in)
                else:
                    self._in[:n].copy_(self._in_host[:n], non_blocking=True)
            with lane.computing():
                if self._graphs:
                    self._graphs[bucket_of(n, self._buckets)]()
                else:
                    self._forward(bucket_of(n, self._buckets) if self._network.padded else n)
            self._out_host[:n].copy_(self._out[:n], non_blocking=True)
            lane.land()
        return Computed(self._outputs[:n], None, *lane.seconds(collated - began))

    def _compute_other_shape(self, rows: np.ndarray, began: float) -> Computed:
        """Compute a batch whose shape is not that of the static buffers (volumes of the patients' own sizes).

        torch keeps the pinned memory of earlier batches, so what is allocated here is seldom new.
        """
        lane = self._lane
        with lane.streaming():
            given = torch.from_numpy(rows)
            staged = lane.pinned(given.shape, given.dtype)
            staged.copy_(given)
            collated = time.perf_counter()
            with lane.arriving():
                x = staged.to(lane.device, non_blocking=True)
            with lane.computing():
                y = self._network(x)
            landed = lane.pinned(y.shape, y.dtype)
            landed.copy_(y, non_blocking=True)
            lane.land()
        return Computed(landed.numpy(), None, *lane.seconds(collated - began))
