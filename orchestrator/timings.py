"""Where every sample's time went, per worker and stage, as histograms that can be merged by adding.

The arrays lie in shared memory, so that the driver reads them while the test runs, and still after it died, without touching
the measured loop. Rows are collected as plain tuples and folded in by NumPy a few times a second: never per sample in Python.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

# Sixteen buckets an octave from 2^10 ns (1 us) to 2^41 ns (36 minutes): 4.4 % resolution, 496 buckets.
PER_OCTAVE = 16
FIRST_OCTAVE = 10
BUCKETS = (41 - FIRST_OCTAVE) * PER_OCTAVE

# The path of a sample. `latency` is from the issue callback to completion, as the driver saw it.
STAGES = ("driver_queue", "wire", "worker_queue", "compute", "return", "latency")
COUNTERS = ("samples", "batches", "frames", "batch_samples", "busy_ns", "outstanding", "alive", "late")
TOTALS = ("first_issue_ns", "first_done_ns", "issued", "completed", "waiting", "phase", "late", "losses", "moved", "now_ns", "started_ns")


def bucket_of(ns: np.ndarray) -> np.ndarray:
    """Bucket numbers of durations in ns; outliers land in the first or last bucket."""
    scaled = np.log2(np.maximum(ns, 1).astype(np.float64)) - FIRST_OCTAVE
    return np.clip((scaled * PER_OCTAVE).astype(np.int64), 0, BUCKETS - 1)


def bucket_edges_ns() -> np.ndarray:
    """Upper edges in ns of the buckets, (BUCKETS,)."""
    return np.exp2(FIRST_OCTAVE + (np.arange(BUCKETS) + 1) / PER_OCTAVE)


def percentile_ns(histogram: np.ndarray, p: float) -> float:
    """The upper edge in ns of the bucket that holds quantile `p`; nan when the histogram is empty."""
    total = histogram.sum()
    if not total:
        return float("nan")
    # The rank, at least 1, so that empty buckets below the first never count; 0.07 * 100 must not become rank 8.
    rank = max(np.ceil(p * total * (1 - 1e-12)), 1)
    at = int(np.searchsorted(np.cumsum(histogram), rank, side="left"))
    return float(bucket_edges_ns()[min(at, BUCKETS - 1)])


def mean_ns(histogram: np.ndarray) -> float:
    """The mean in ns, from the buckets' geometric middles; nan when the histogram is empty."""
    total = histogram.sum()
    if not total:
        return float("nan")
    middles = bucket_edges_ns() * 2 ** (-0.5 / PER_OCTAVE)
    return float((histogram * middles).sum() / total)


class Board:
    """Counters and histograms of one test in memory that two processes share by file descriptor.

    One writer (the test), any number of readers. Every value is an int64 that only its writer changes, so a reader sees
    a value that was true a moment ago; it never sees half of one.
    """

    def __init__(self, workers: int, fd: int | None = None) -> None:
        self.workers = workers
        shapes = ((len(TOTALS),), (workers, len(COUNTERS)), (workers, len(STAGES), BUCKETS))
        size = 8 * sum(int(np.prod(s)) for s in shapes)
        if fd is None:
            fd = os.memfd_create("loadgrid-board", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.fd = fd
        values = np.frombuffer(mmap.mmap(fd, size), np.int64)
        views, at = [], 0
        for shape in shapes:
            n = int(np.prod(shape))
            views.append(values[at : at + n].reshape(shape))
            at += n
        self.totals, self.counters, self.histograms = views

    def total(self, name: str) -> int:
        """One of TOTALS."""
        return int(self.totals[TOTALS.index(name)])

    def set_total(self, name: str, value: int) -> None:
        """Write one of TOTALS."""
        self.totals[TOTALS.index(name)] = value

    def counter(self, worker: int, name: str) -> int:
        """One of COUNTERS of a worker."""
        return int(self.counters[worker, COUNTERS.index(name)])

    def stage(self, name: str, worker: int | None = None) -> np.ndarray:
        """A stage's histogram (BUCKETS,) of one worker, or merged over all."""
        at = STAGES.index(name)
        return self.histograms[:, at].sum(axis=0) if worker is None else self.histograms[worker, at].copy()


class Timings:
    """Collects rows and folds them into a Board."""

    # Columns of a row: one segment of one answer.
    ROW = 9  # worker, samples, issued, sent, worker received, started, computed, worker sent, received

    def __init__(self, board: Board) -> None:
        self.board = board
        self.rows: list[tuple[int, ...]] = []
        self.batches: list[tuple[int, int, int]] = []  # worker, batch size, compute ns

    def fold(self, queue_rows: Sequence[tuple[int, int, int]]) -> None:
        """Fold the rows collected since, and `queue_rows` (worker, driver queue ns, samples), into the board."""
        if queue_rows:
            rows = np.array(queue_rows, np.int64)
            self._add(0, rows[:, 0], rows[:, 1], rows[:, 2])
        if self.batches:
            rows = np.array(self.batches, np.int64)
            self.batches.clear()
            for name, weights in (("batches", None), ("batch_samples", rows[:, 1]), ("busy_ns", rows[:, 2])):
                self._count(name, rows[:, 0], weights)
        if self.rows:
            table = np.array(self.rows, np.int64)
            self.rows.clear()
            self._fold_answers(table)

    def _fold_answers(self, table: np.ndarray) -> None:
        """Split each answered segment's time into stages."""
        worker, samples, issued, sent, w_received, started, computed, w_sent, received = table.T
        self._count("frames", worker, None)
        self._count("samples", worker, samples)
        out = (w_received - sent).astype(np.float64)
        back = (received - w_sent).astype(np.float64)
        # Two clocks without a common zero: the answer with the quickest round trip in this window tells their offset
        # (as in NTP), so slow drift between hosts never adds up over a run.
        order = np.lexsort((out + back, worker))
        workers, first = np.unique(worker[order], return_index=True)
        quickest = order[first]
        offset = np.zeros(self.board.workers)
        offset[workers] = (out[quickest] - back[quickest]) / 2
        out -= offset[worker]
        back += offset[worker]
        self._add(1, worker, np.maximum(out, 0), samples)
        self._add(2, worker, started - w_received, samples)
        self._add(3, worker, computed - started, samples)
        self._add(4, worker, np.maximum(back, 0) + (w_sent - computed), samples)
        self._add(5, worker, received - issued, samples)

    def _add(self, stage: int, worker: np.ndarray, ns: np.ndarray, samples: np.ndarray) -> None:
        flat = worker * BUCKETS + bucket_of(ns)
        counts = np.bincount(flat, weights=samples, minlength=self.board.workers * BUCKETS)
        self.board.histograms[:, stage] += counts.astype(np.int64).reshape(-1, BUCKETS)

    def _count(self, name: str, worker: np.ndarray, weights: np.ndarray | None) -> None:
        counts = np.bincount(worker, weights=weights, minlength=self.board.workers)
        self.board.counters[:, COUNTERS.index(name)] += counts.astype(np.int64)


def stage_summary(histogram: np.ndarray) -> dict[str, Any]:
    """A stage in a record: mean and percentiles in ms, and the histogram itself, sparse, for merging."""
    filled = np.flatnonzero(histogram)
    values = {"mean": mean_ns(histogram)}
    values |= {f"p{p * 100:g}": percentile_ns(histogram, p) for p in (0.5, 0.9, 0.99)}
    summary: dict[str, Any] = {f"{k}_ms": round(v / 1e6, 4) if v == v else None for k, v in values.items()}
    summary["histogram"] = {str(int(b)): int(histogram[b]) for b in filled}
    return summary
