"""Where every sample's time went, per worker and stage, as histograms that can be merged by adding.

Everything lies in shared memory: the test writes one row per answered frame, the driver folds rows into
histograms while the test runs, and still after it died, without touching the measured loop.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import numpy as np

# Sixteen buckets an octave from 2^10 ns (1 us) to 2^41 ns (36 minutes): 4.4 % resolution, 496 buckets.
PER_OCTAVE = 16
FIRST_OCTAVE = 10
BUCKETS = (41 - FIRST_OCTAVE) * PER_OCTAVE

# The path of a sample. `latency` is from the issue callback to completion, as the driver saw it.
STAGES = ("driver_queue", "wire", "worker_queue", "compute", "return", "latency")
COUNTERS = (
    "samples",
    "batches",
    "frames",
    "batch_samples",
    "busy_ns",  # with at least one batch in the engine: several at once count once
    "answered_ns",  # by the test's clock: when its last answer came
    "outstanding",
    "alive",
    "late",
)
BUSY, ANSWERED = COUNTERS.index("busy_ns"), COUNTERS.index("answered_ns")
TOTALS = (
    "first_issue_ns",
    "first_done_ns",
    "issued",
    "completed",
    "waiting",
    "phase",
    "late",
    "losses",
    "moved",
    "now_ns",
    "started_ns",
    "rows_written",
    "rows_folded",
    "rows_dropped",
    "over_limit",
    "within_limit",
    "cpu_ns",
)

# A row: one frame's segment in one answer; times in ns, the worker's by its own clock, `batch` only in an
# answer's first.
COLUMNS = (
    "worker",
    "samples",
    "issued",
    "sent",
    "w_received",
    "started",
    "computed",
    "w_sent",
    "received",
    "batch",
)
ROW = struct.Struct(f"={len(COLUMNS)}q")
# Seconds of answers at the highest rates; pages of it that are never written cost nothing.
RING_ROWS = 1 << 18

NO_SPANS = np.empty((0, 2), np.int64)
# A batch is compared with the last of them only: an engine holds a handful of batches at once.
KEPT_SPANS = 64

# Spans are an eighth of a second until there would be more than 600; then two become one, again and again: a
# test of a minute has 480 of 125 ms, one of a day 338 of 256 s.
FIRST_SPAN_NS = 125_000_000
MOST_SPANS = 600
SPAN_PERCENTILES = {"p50_ms": 0.5, "p99_ms": 0.99}


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
    # The rank, at least 1, so that empty buckets below the first never count; 0.07 * 100 must not become rank
    # 8.
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


class Series:
    """What was issued and answered in each span since the clock's start, in memory of a fixed size.

    Only the driver has it: it is filled from the rows that are folded outside of the measured loop.
    """

    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self.span_ns = FIRST_SPAN_NS
        self._counts = {
            name: np.zeros(MOST_SPANS, np.int64) for name in ("issued", "completed", "over_limit")
        }
        self._latency = np.zeros((MOST_SPANS, BUCKETS), np.int64)
        self._used = 0

    def add(self, issued: np.ndarray, received: np.ndarray, samples: np.ndarray, late: np.ndarray) -> None:
        """Count segments: when asked and answered (ns, driver's clock), samples, whether beyond the limit."""
        if not len(samples):
            return
        while (int(received.max()) - self.began_ns) // self.span_ns >= MOST_SPANS:
            self._halve()
        asked, answered = self._spans(issued), self._spans(received)
        self._used = max(self._used, int(answered.max()) + 1)
        for name, at, weights in (
            ("issued", asked, samples),
            ("completed", answered, samples),
            ("over_limit", answered, samples * late),
        ):
            self._counts[name] += np.bincount(at, weights, MOST_SPANS).astype(np.int64)
        # Answers of one folding lie close together: histograms of these few spans only.
        first, last = int(answered.min()), int(answered.max())
        flat = (answered - first) * BUCKETS + bucket_of(received - issued)
        counts = np.bincount(flat, samples, (last - first + 1) * BUCKETS).astype(np.int64)
        self._latency[first : last + 1] += counts.reshape(-1, BUCKETS)

    def _spans(self, ns: np.ndarray) -> np.ndarray:
        return np.clip((ns - self.began_ns) // self.span_ns, 0, MOST_SPANS - 1)

    def _halve(self) -> None:
        """Half as many spans, each twice as long; counts and histograms merge by adding."""
        self.span_ns *= 2
        self._used = -(-self._used // 2)
        half = MOST_SPANS // 2
        for values in (*self._counts.values(), self._latency):
            values[:half] = values[0::2] + values[1::2]
            values[half:] = 0

    def summary(self) -> dict[str, object] | None:
        """The record's `series`, lists of one value a span; None where nothing was answered.

        `in_flight` is at the end of each span, of samples that were answered at last.
        """
        if not self._used:
            return None
        shown = {name: values[: self._used] for name, values in self._counts.items()}
        in_flight = np.cumsum(shown["issued"] - shown["completed"])
        lists: dict[str, object] = {name: values.tolist() for name, values in shown.items()}
        for name, p in SPAN_PERCENTILES.items():
            found = (percentile_ns(histogram, p) for histogram in self._latency[: self._used])
            lists[name] = [round(ns / 1e6, 4) if ns == ns else None for ns in found]
        return {"span_s": self.span_ns / 1e9, **lists, "in_flight": in_flight.tolist()}


class Board:
    """Counters, histograms and raw timing rows of one test, shared by two processes by file descriptor.

    The test writes the counters and the rows, the driver folds the rows into the histograms. Every value is
    an int64 with one writer, so a reader sees a value that was true a moment ago; it never sees half of one.
    """

    def __init__(self, workers: int, fd: int | None = None, ring_rows: int = RING_ROWS) -> None:
        self.workers = workers
        shapes = (
            (len(TOTALS),),
            (workers, len(COUNTERS)),
            (workers, len(STAGES), BUCKETS),
            (ring_rows, len(COLUMNS)),
        )
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
        self.totals, self.counters, self.histograms, self.ring = views
        self.series: Series | None = None  # the driver's alone, not shared

    def total(self, name: str) -> int:
        """One of TOTALS."""
        return int(self.totals[TOTALS.index(name)])

    def set_total(self, name: str, value: int) -> None:
        """Write one of TOTALS."""
        self.totals[TOTALS.index(name)] = value

    def counter(self, worker: int, name: str) -> int:
        """One of COUNTERS of a worker."""
        return int(self.counters[worker, COUNTERS.index(name)])

    def set_counter(self, worker: int, name: str, value: int) -> None:
        """Write one of COUNTERS of a worker."""
        self.counters[worker, COUNTERS.index(name)] = value

    def stage(self, name: str, worker: int | None = None) -> np.ndarray:
        """A stage's histogram (BUCKETS,) of one worker, or merged over all."""
        at = STAGES.index(name)
        return self.histograms[:, at].sum(axis=0) if worker is None else self.histograms[worker, at].copy()


class Timings:
    """The test's pen: one row per answered frame into the board's ring.

    Folding 4,096 rows takes milliseconds. Done in the measured loop it was the p99 of the whole path (10.9 ms
    of driver queue at 100,000 queries/s), so the loop only writes, and the driver folds on another core.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._ring = board.ring.data.cast("B")
        self._rows = len(board.ring)
        self._written = 0
        self._cursor = board.totals.data
        self._at = TOTALS.index("rows_written"), TOTALS.index("rows_folded"), TOTALS.index("rows_dropped")

    def add(self, *row: int) -> None:
        """Note a segment of an answer; `row` is COLUMNS in order. A full ring drops the row and counts it."""
        written, folded, dropped = self._at
        if self._written - self._cursor[folded] >= self._rows:
            self._cursor[dropped] += 1
            return
        ROW.pack_into(self._ring, self._written % self._rows * ROW.size, *row)
        self._written += 1
        self._cursor[written] = self._written


class Folder:
    """The driver's side: folds new rows into the board's histograms and counters.

    With a limit it counts the samples whose latency, issue to completion, is beyond it.
    """

    def __init__(self, board: Board, limit_ns: int | None = None) -> None:
        self.board = board
        self._limit_ns = limit_ns
        self._folded = 0
        self._seen = 0
        self._covered: dict[int, np.ndarray] = {}  # worker -> the last spans (n, 2) that counted as busy

    def fold(self, final: bool = False) -> None:
        """Fold what was written until the call before; all of it if `final`, once the writer has ended.

        Where stores may be seen out of order (aarch64), the count may be there before the row is.
        """
        written, size = self.board.total("rows_written"), len(self.board.ring)
        until, self._seen = written if final else self._seen, written
        while self._folded < until:
            first = self._folded % size
            n = min(until - self._folded, size - first)
            self._fold(self.board.ring[first : first + n])
            self._folded += n
            self.board.set_total("rows_folded", self._folded)

    def _fold(self, table: np.ndarray) -> None:
        """Split each answered segment's time into stages."""
        worker, samples, issued, sent, w_received, started, computed, w_sent, received, batch = table.T
        self._count("frames", worker, None)
        self._count("samples", worker, samples)
        # Only the first segment of an answer carries its batch, so each batch counts once.
        self._count("batches", worker, batch > 0)
        self._count("batch_samples", worker, batch)
        for number in np.unique(worker).tolist():
            its = worker == number
            first = its & (batch > 0)
            self._busy(number, started[first], computed[first])
            self.board.counters[number, ANSWERED] = received[its].max()
        out, back = self._without_clock_offset(worker, w_received - sent, received - w_sent)
        self._add("driver_queue", worker, sent - issued, samples)
        self._add("wire", worker, np.maximum(out, 0), samples)
        self._add("worker_queue", worker, started - w_received, samples)
        self._add("compute", worker, computed - started, samples)
        self._add("return", worker, np.maximum(back, 0) + (w_sent - computed), samples)
        self._add("latency", worker, received - issued, samples)
        late = np.zeros(len(table), bool)
        if self._limit_ns is not None:
            late = received - issued > self._limit_ns
            # Both, so that a reader in mid-fold sees two counts that never fall, not a difference that may.
            for name, counted in (("over_limit", late), ("within_limit", ~late)):
                self.board.set_total(name, self.board.total(name) + int(samples[counted].sum()))
        if self.board.series is None:
            self.board.series = Series(self.board.total("started_ns") or int(issued.min()))
        self.board.series.add(issued, received, samples, late)

    def _without_clock_offset(
        self, worker: np.ndarray, out: np.ndarray, back: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ways there and back in ns, between two clocks without a common zero.

        The answer with the quickest round trip in this window tells the clocks' offset (as in NTP), so slow
        drift between hosts never adds up over a run.
        """
        order = np.lexsort((out + back, worker))
        workers, first = np.unique(worker[order], return_index=True)
        quickest = order[first]
        offset = np.zeros(self.board.workers, np.int64)
        offset[workers] = (out[quickest] - back[quickest]) // 2
        return out - offset[worker], back + offset[worker]

    def _add(self, stage: str, worker: np.ndarray, ns: np.ndarray, samples: np.ndarray) -> None:
        flat = worker * BUCKETS + bucket_of(ns)
        counts = np.bincount(flat, weights=samples, minlength=self.board.workers * BUCKETS)
        self.board.histograms[:, STAGES.index(stage)] += counts.astype(np.int64).reshape(-1, BUCKETS)

    def _busy(self, worker: int, started: np.ndarray, computed: np.ndarray) -> None:
        """Add the time in which a worker had batches in its engine; they are done in any order."""
        before = self._covered.get(worker, NO_SPANS)
        after = _joined(np.concatenate([before, np.stack([started, np.maximum(computed, started)], axis=1)]))
        self.board.counters[worker, BUSY] += np.diff(after).sum() - np.diff(before).sum()
        self._covered[worker] = after[-KEPT_SPANS:]

    def _count(self, name: str, worker: np.ndarray, weights: np.ndarray | None) -> None:
        counts = np.bincount(worker, weights=weights, minlength=self.board.workers)
        self.board.counters[:, COUNTERS.index(name)] += counts.astype(np.int64)


def _joined(spans: np.ndarray) -> np.ndarray:
    """The spans (n, 2) as ones that do not touch, in order."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0])]
    reached = np.maximum.accumulate(spans[:, 1])
    first = np.append(True, spans[1:, 0] > reached[:-1])
    return np.stack([spans[first, 0], reached[np.append(first[1:], True)]], axis=1)


def stage_summary(histogram: np.ndarray) -> dict[str, Any]:
    """A stage in a record: mean and percentiles in ms, and the histogram itself, sparse, for merging."""
    filled = np.flatnonzero(histogram)
    values = {"mean": mean_ns(histogram)}
    values |= {f"p{p * 100:g}": percentile_ns(histogram, p) for p in (0.5, 0.9, 0.99)}
    summary: dict[str, Any] = {f"{k}_ms": round(v / 1e6, 4) if v == v else None for k, v in values.items()}
    summary["histogram"] = {str(int(b)): int(histogram[b]) for b in filled}
    return summary
