"""The torch engine's slot for CPUs, and what its CUDA slots share with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workers.backends import BackendError
from workers.backends.slots import Computed
from workers.backends.torch_network import Network
from workers.backends.torch_quantised import Given
from workers.tasks import Task, counts_of


def bucket_of(size: int, buckets: list[int]) -> int:
    """The smallest bucket that holds `size`."""
    return next(b for b in buckets if b >= size)


def refuse_other_total(rows: int, counts: np.ndarray) -> None:
    """BackendError unless there are as many rows as the counts say."""
    if rows != counts.sum():
        raise BackendError(f"{len(counts)} samples of {counts.sum()} rows came as {rows} rows")


def given(task: Task, samples: Sequence[memoryview]) -> Given:
    """The samples as a network takes them."""
    rows = torch.from_numpy(task.collate(samples))
    return (rows, torch.from_numpy(counts_of(task, samples))) if task.ragged else rows


class CpuSlot:
    """Computes in place: nothing to copy."""

    def __init__(self, network: Network, task: Task, buckets: list[int]) -> None:
        self._network = network
        self._task = task
        self._buckets = buckets
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        """Nothing to allocate."""

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """See Slot."""
        if self._task.ragged:
            return self._compute_ragged(samples)
        began = time.perf_counter()
        n = len(samples)
        rows = self._task.collate(samples)
        if self._network.padded and (extra := bucket_of(n, self._buckets) - n):
            rows = np.concatenate([rows, np.repeat(rows[-1:], extra, axis=0)])
        fed = time.perf_counter()
        outputs = self._network(torch.from_numpy(rows)).numpy()[:n]
        return Computed(outputs, None, fed - began, time.perf_counter() - fed)

    def _compute_ragged(self, samples: Sequence[memoryview]) -> Computed:
        began = time.perf_counter()
        counts = counts_of(self._task, samples)
        rows = self._task.collate(samples)
        refuse_other_total(len(rows), counts)
        fed = time.perf_counter()
        y, changed = self._network.rows(torch.from_numpy(rows), torch.from_numpy(counts))
        if changed is not None:
            counts = changed.numpy()
        outputs = y[: counts.sum()].numpy()
        refuse_other_total(len(outputs), counts)
        return Computed(outputs, counts, fed - began, time.perf_counter() - fed)
