"""The CUDA slot of ragged tasks: the rows of a batch back to back, and a graph for each size of stack."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from workers.arena import LoadedSamples
from workers.backends.batch_copy import Launch
from workers.backends.slots import Computed
from workers.backends.torch_cuda import EAGER_PASSES, EAGER_PASSES_OF_SMALLER, Lane
from workers.backends.torch_gather import Fetcher
from workers.backends.torch_network import Network
from workers.backends.torch_slots import bucket_of, refuse_other_total
from workers.tasks import Task, counts_of

# The call for the 1,024 copies of DLRM's batch takes 0.55 ms in a loop of its own and 2.2 ms in a slot, be
# they two or five; why is not known. The network takes 1.7. On an H100 the bare loop gave 320,000 samples/s
# with two slots, 450,000 to 500,000 with three, 535,000 with four and with five.
RAGGED_SLOTS = 4
# Of a network whose batches are computed at once: each needs memory of the device for itself.
SIDE_BY_SIDE_SLOTS = 3
# A stack of rows is padded to the next of these steps. Eight of them double it, so 4 % of the work is padding
# on average; with four it would be 9 %.
ROW_QUANTUM = 64
ROW_GROWTH = 2**0.125
# The longest of so many warm-up samples, times max_batch, is what the buffers hold.
SAMPLES_LOOKED_AT = 128
# A full batch has the mean of its samples' rows, give or take. A graph at each of so many standard deviations
# pads it by 1 % (DLRM, batches of 1,024 samples; 3 % without these), and beyond them there is none: a batch
# of more rows, one of a billion if the samples are like those of warm-up, is computed without a graph.
FULL_DEVIATIONS = (-2, -1, 0, 1, 2, 3, 6)
MOST_STAGED_BYTES = 1 << 31

# Where on the device the rows of a batch belong, and what brings them there from pinned memory.
Staged = tuple[torch.Tensor, Callable[[], object]]
Stage = Callable[[Any, int], Staged]


def row_buckets(most: int) -> list[int]:
    """Numbers of rows up to `most`: multiples of ROW_QUANTUM, each about ROW_GROWTH times the last."""
    found = []
    rows = ROW_QUANTUM
    while rows < most:
        found.append(rows)
        rows = max(rows + ROW_QUANTUM, -(-int(rows * ROW_GROWTH) // ROW_QUANTUM) * ROW_QUANTUM)
    return [*found, most]


def full_buckets(counts: np.ndarray, samples: int) -> list[int]:
    """Numbers of rows that batches of so many samples come to, where samples have such `counts`."""
    mean, deviation = samples * counts.mean(), counts.std() * samples**0.5
    steps = [math.ceil((mean + n * deviation) / ROW_QUANTUM) * ROW_QUANTUM for n in FULL_DEVIATIONS]
    return [step for step in steps if step > 0]


def split_rows(counts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Neighbouring samples of `most` rows at most, as (first, last + 1); a longer sample stands alone."""
    if counts.sum() <= most:
        return [(0, len(counts))]
    parts, start, held = [], 0, 0
    for place, count in enumerate(counts.tolist()):
        if held and held + count > most:
            parts.append((start, place))
            start, held = place, 0
        held += count
    return [*parts, (start, len(counts))]


class RaggedSlot:
    """Pinned host buffers for the rows of a full batch of the longest samples, and the same on the device.

    A longer batch is computed in parts, so nothing is captured while the clock runs, and memory is allocated
    only for a single sample longer than the buffers, or for a batch beyond the graphs.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        max_batch: int,
        lane: Lane,
        launch: Launch | None = None,
    ) -> None:
        self._network = network
        self._task = task
        self._max_batch = max_batch
        self._lane = lane
        self._graphs: dict[int, Callable[[], None]] = {}
        self._buckets: list[int] = []
        self._fetcher = None if launch is None else Fetcher(launch, max_batch)
        self._out_host: torch.Tensor | None = None
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        """Allocate for the longest of the warm-up samples, then capture a graph for every bucket of rows."""
        lane = self._lane
        lane.open()
        began = time.perf_counter()
        samples = self._task.warm_up_samples(max(self._max_batch, SAMPLES_LOOKED_AT))
        counts = counts_of(self._task, samples)
        rows = self._task.collate(samples)
        refuse_other_total(len(rows), counts)
        longest = max(int(counts.max()), 1)
        affordable = MOST_STAGED_BYTES // max(rows[:1].nbytes, 1)
        self._capacity = max(min(longest * self._max_batch, affordable), longest)
        with lane.opening():
            # True rows everywhere: padding is what lay here before, and the model must be able to read it.
            given = torch.from_numpy(np.resize(rows, (self._capacity, *rows.shape[1:])))
            self._in_host = lane.pinned(given.shape, given.dtype)
            self._in_host.copy_(given)
            self._rows = self._in_host.numpy()
            self._in = self._in_host.to(lane.device, copy=True)
            self._row_bytes = self._rows[0].nbytes
            self._counts_host = lane.pinned((self._max_batch,), torch.int64)
            self._counts_host.zero_()
            self._counts = self._counts_host.to(lane.device, copy=True)
            if self._network.cuda_graphs:
                full = full_buckets(counts, self._max_batch)
                most = min(full[-1], self._capacity)
                self._buckets = sorted({*row_buckets(most), *(rows for rows in full if rows < most)})
                self._capture_all(longest)
            lane.land()
        seconds = round(time.perf_counter() - began, 3)
        self.facts = {"graphs": len(self._graphs), "most_rows": self._capacity, "open_s": seconds}
        if self._buckets:
            self.facts["most_rows_in_a_graph"] = self._buckets[-1]

    def _capture_all(self, longest: int) -> None:
        """Capture the largest first: its output's shape and its scratch memory serve the others."""
        passes = EAGER_PASSES
        for size in reversed(self._buckets):
            # As many of the longest samples as `size` rows hold, and what is left.
            left = size - longest * np.arange(self._max_batch)
            self._counts.copy_(torch.from_numpy(np.clip(left, 0, longest)))
            if not self._graphs:
                y, changed = self._network.rows(self._in[:size], self._counts)
                self._out = torch.empty_like(y)
                self._out_counts = None if changed is None else torch.empty_like(changed)
                self._out_host = self._lane.pinned(y.shape, y.dtype)
            self._graphs[size] = self._lane.capture(lambda size=size: self._forward(size), passes)  # type: ignore[misc]
            passes = EAGER_PASSES_OF_SMALLER

    def _forward(self, size: int) -> None:
        """From the static rows to the static output, which lies outside of the graphs' shared memory."""
        y, changed = self._network.rows(self._in[:size], self._counts)
        self._out[: len(y)].copy_(y)
        if changed is not None and self._out_counts is not None:
            self._out_counts.copy_(changed)

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """See Slot."""
        stage: Stage
        if self._fetcher is not None and self._fetcher.takes(samples, self._row_bytes, ragged=True):
            counts, stage = samples.sizes // self._row_bytes, partial(self._stage_fetched, self._fetcher)
        else:
            counts, stage = counts_of(self._task, samples), self._stage_stacked
        parts = split_rows(counts, self._capacity)
        if len(parts) == 1:
            return self._compute_part(samples, counts, stage)
        done = []
        for start, stop in parts:
            part = self._compute_part(samples[start:stop], counts[start:stop], stage)
            part.outputs = part.outputs.copy()  # the next part comes home to the same place
            done.append(part)
        return Computed(
            np.concatenate([part.outputs for part in done]),
            np.concatenate([part.counts for part in done if part.counts is not None]),
            sum(part.feed_s for part in done),
            sum(part.compute_s for part in done),
        )

    def _compute_part(self, samples: Sequence[memoryview], counts: np.ndarray, stage: Stage) -> Computed:
        """Compute samples that fit into the buffers, or a single one."""
        lane = self._lane
        began = time.perf_counter()
        n, total = len(samples), int(counts.sum())
        with lane.streaming():
            rows, bring = stage(samples, total)
            self._counts_host[:n] = torch.from_numpy(counts)
            self._counts_host[n:] = 0
            collated = time.perf_counter()
            with lane.arriving():
                bring()
                self._counts.copy_(self._counts_host, non_blocking=True)
            with lane.computing():
                y, changed = self._run(rows, n, total)
            if changed is not None:
                home = lane.pinned(changed.shape, changed.dtype)
                home.copy_(changed, non_blocking=True)
                lane.land()  # how many rows there are to copy is known only now
                counts = home[:n].numpy()
            outputs = self._bring_home(y, counts)
        return Computed(outputs, counts, *lane.seconds(collated - began))

    def _place(self, total: int) -> torch.Tensor:
        """Where on the device so many rows belong."""
        if total <= self._capacity:
            return self._in
        shape = (total, *self._rows.shape[1:])
        return torch.empty(shape, dtype=self._in.dtype, device=self._lane.device)

    def _stage_fetched(self, fetcher: Fetcher, samples: LoadedSamples, total: int) -> Staged:
        """The samples' rows lie where the device reads them."""
        fetcher.stage(samples)
        rows = self._place(total)
        return rows, partial(fetcher.bring, rows)

    def _stage_stacked(self, samples: Sequence[memoryview], total: int) -> Staged:
        """The samples' rows are laid side by side in pinned memory."""
        rows, host, place = self._place(total), self._in_host, self._rows
        if total > self._capacity:
            host = self._lane.pinned((total, *self._rows.shape[1:]), self._in_host.dtype)
            place = host.numpy()
        given = self._task.collate(samples, place)
        if len(given) != total:
            refuse_other_total(len(given), counts_of(self._task, samples))
        if not np.may_share_memory(given, place):
            place[:total] = given
        return rows, lambda: rows[:total].copy_(host[:total], non_blocking=True)

    def _run(self, rows: torch.Tensor, n: int, total: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Play the bucket's graph, or compute exactly the rows that there are."""
        if self._graphs and total <= self._buckets[-1]:
            self._graphs[bucket_of(total, self._buckets)]()
            return self._out, self._out_counts
        counts = self._counts_host if self._network.host_counts else self._counts
        return self._network.rows(rows[:total], counts[:n])

    def _bring_home(self, y: torch.Tensor, counts: np.ndarray) -> np.ndarray:
        """Copy the rows of real samples to the host; they hold until the next batch."""
        total = int(counts.sum())
        refuse_other_total(len(y[:total]), counts)
        host = self._out_host
        if host is None or len(host) < total or host.shape[1:] != y.shape[1:] or host.dtype != y.dtype:
            host = self._out_host = self._lane.pinned((max(total, self._capacity), *y.shape[1:]), y.dtype)
        host[:total].copy_(y[:total], non_blocking=True)
        self._lane.land()
        return host[:total].numpy()
