"""Where the time went: histograms that merge by adding, and stages that no clock can falsify."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.timings import (
    BUCKETS,
    COLUMNS,
    COUNTERS,
    PER_OCTAVE,
    STAGES,
    TOTALS,
    Board,
    Folder,
    Timings,
    bucket_edges_ns,
    bucket_of,
    mean_ns,
    percentile_ns,
    stage_summary,
)

TIME_BUDGET_S = 10
US, MS, S = 10**3, 10**6, 10**9
HOUR = 3600 * S
RESOLUTION = 2 ** (1 / PER_OCTAVE)


def histogram_of(ns: np.ndarray) -> np.ndarray:
    return np.bincount(bucket_of(ns), minlength=BUCKETS)


@given(st.integers(2**10, 2**41 - 1))
def test_a_duration_lies_within_the_edges_of_its_bucket(ns: int) -> None:
    bucket = int(bucket_of(np.array([ns]))[0])
    upper = bucket_edges_ns()[bucket]
    assert upper / RESOLUTION * (1 - 1e-9) <= ns <= upper * (1 + 1e-9)


@pytest.mark.parametrize(
    ("ns", "bucket"), [(-(2**62), 0), (0, 0), (1, 0), (2**41, BUCKETS - 1), (2**62, BUCKETS - 1)]
)
def test_what_no_bucket_covers_lands_in_the_first_or_last(ns: int, bucket: int) -> None:
    assert bucket_of(np.array([ns])).tolist() == [bucket]


@pytest.mark.parametrize("spread", [0.01, 0.5, 2.0])
@pytest.mark.parametrize("count", [1, 2, 100, 5000])
def test_percentiles_are_those_of_numpy_within_a_buckets_width(
    rng: np.random.Generator, spread: float, count: int
) -> None:
    ns = (5 * MS * rng.lognormal(0, spread, count)).astype(np.int64)
    histogram = histogram_of(ns)
    for p in (0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = float(np.quantile(ns, p, method="inverted_cdf"))
        assert exact / RESOLUTION <= percentile_ns(histogram, p) <= exact * RESOLUTION * (1 + 1e-9)
    assert mean_ns(histogram) == pytest.approx(ns.mean(), rel=RESOLUTION - 1)


def test_the_seventh_of_a_hundred_is_the_seventh() -> None:
    # 0.07 * 100 is a little more than 7 in floating point.
    histogram = histogram_of(2 ** np.linspace(12, 30, 100))
    for rank in range(1, 101):
        assert histogram[bucket_of(np.array([percentile_ns(histogram, rank / 100) * 0.99]))[0]] > 0
        assert (
            histogram[: 1 + bucket_of(np.array([percentile_ns(histogram, rank / 100) * 0.99]))[0]].sum()
            == rank
        )


def test_an_empty_histogram_has_no_percentile_and_no_mean() -> None:
    empty = np.zeros(BUCKETS, np.int64)
    assert np.isnan(percentile_ns(empty, 0.5)) and np.isnan(mean_ns(empty))
    assert stage_summary(empty) == {
        "mean_ms": None,
        "p50_ms": None,
        "p90_ms": None,
        "p99_ms": None,
        "histogram": {},
    }


def test_merged_histograms_are_the_histogram_of_all(rng: np.random.Generator) -> None:
    parts = [(1e6 * rng.lognormal(0, 1, n)).astype(np.int64) for n in (10, 1000, 333)]
    assert np.array_equal(sum(histogram_of(p) for p in parts), histogram_of(np.concatenate(parts)))


def test_a_summary_holds_the_histogram_itself_for_merging(rng: np.random.Generator) -> None:
    histogram = histogram_of((1e6 * rng.lognormal(0, 1, 500)).astype(np.int64))
    summary = stage_summary(histogram)
    back = np.zeros(BUCKETS, np.int64)
    for bucket, count in summary["histogram"].items():
        back[int(bucket)] = count
    assert np.array_equal(back, histogram)
    assert summary["p99_ms"] == pytest.approx(percentile_ns(histogram, 0.99) / 1e6, abs=1e-4)


def answers(
    rng: np.random.Generator,
    worker: int,
    n: int,
    *,
    offset_ns: int = 0,
    drift: float = 0.0,
    from_ns: int = 0,
    wire_ns: int = 100 * US,
    jitter: float = 0.0,
) -> list[tuple[int, ...]]:
    """Rows of `n` frames, one a batch: 1 ms until sent, the wire, 2 ms of queue, 5 ms of engine, the wire."""
    rows = []
    for i in range(n):
        issued = from_ns + i * MS
        sent = issued + 1 * MS
        out, back = (int(wire_ns * (1 + jitter * rng.exponential())) for _ in range(2))
        arrived = sent + out
        there = [arrived, arrived + 2 * MS, arrived + 7 * MS, arrived + 7 * MS + 10 * US]
        clock = [int(t * (1 + drift)) + offset_ns for t in there]
        rows.append((worker, 8, issued, sent, *clock, there[-1] + back, 8))
    return rows


def folded(*rows: tuple[int, ...], workers: int = 1, ring_rows: int = 4096) -> Board:
    """A board after these rows were written and folded."""
    board = Board(workers, ring_rows=ring_rows)
    timings, folder = Timings(board), Folder(board)
    for row in rows:
        timings.add(*row)
    folder.fold(final=True)
    return board


def stage_ms(board: Board, name: str, worker: int = 0, p: float = 0.5) -> float:
    return percentile_ns(board.stage(name, worker), p) / 1e6


EXPECTED_MS = {
    "driver_queue": 1.0,
    "wire": 0.1,
    "worker_queue": 2.0,
    "compute": 5.0,
    "return": 0.11,
    "latency": 8.21,
}


@pytest.mark.parametrize("offset_ns", [0, 7 * US, -3 * MS, 5 * HOUR, -5 * HOUR, 90 * 24 * HOUR])
def test_the_offset_between_two_hosts_clocks_leaks_into_no_stage(
    rng: np.random.Generator, offset_ns: int
) -> None:
    rows = answers(rng, 0, 200) + answers(rng, 1, 200, offset_ns=offset_ns, from_ns=100 * 24 * HOUR)
    board = folded(*rows, workers=2)
    for worker in (0, 1):
        for name, want_ms in EXPECTED_MS.items():
            for p in (0.01, 0.5, 0.99):
                assert stage_ms(board, name, worker, p) == pytest.approx(want_ms, rel=0.05), (name, worker, p)


def test_jitter_on_the_wire_is_told_as_wire_and_not_as_a_clock(rng: np.random.Generator) -> None:
    board = folded(*answers(rng, 0, 2000, offset_ns=HOUR, jitter=3.0))
    assert 0.1 < stage_ms(board, "wire", p=0.05) < 0.16
    assert stage_ms(board, "wire", p=0.99) == pytest.approx(0.1 * (1 + 3 * np.log(100)), rel=0.25)
    assert stage_ms(board, "compute", p=0.99) == pytest.approx(5, rel=0.05)


def test_a_clock_that_drifts_for_ten_minutes_leaks_into_no_stage(rng: np.random.Generator) -> None:
    board = Board(1, ring_rows=256)
    timings, folder = Timings(board), Folder(board)
    for fold in range(60):  # one in ten seconds; 50 parts in a million are 30 ms by the end
        for row in answers(rng, 0, 100, offset_ns=-HOUR, drift=50e-6, from_ns=fold * 10 * S):
            timings.add(*row)
        folder.fold()
        folder.fold()
    for p in (0.01, 0.5, 0.99):
        assert stage_ms(board, "wire", p=p) == pytest.approx(0.1, rel=0.1)
        assert stage_ms(board, "return", p=p) == pytest.approx(0.11, rel=0.1)


def test_the_stages_of_a_sample_add_up_to_its_latency(rng: np.random.Generator) -> None:
    board = folded(*answers(rng, 0, 500, offset_ns=3 * HOUR, jitter=1.0))
    parts = sum(mean_ns(board.stage(name)) for name in STAGES if name != "latency")
    assert parts == pytest.approx(mean_ns(board.stage("latency")), rel=0.03)


def covered_ns(rows: list[tuple[int, ...]]) -> int:
    """How long at least one of these batches was in the engine, in whole milliseconds' thousandths."""
    started, computed = COLUMNS.index("started"), COLUMNS.index("computed")
    covered: set[int] = set()
    for row in rows:
        covered.update(range(row[started] // 1000, row[computed] // 1000))
    return len(covered) * 1000


def test_batches_that_overlap_in_the_engine_count_once_across_foldings() -> None:
    board = Board(1, ring_rows=16)
    timings, folder = Timings(board), Folder(board)
    # The last two began earlier than some that were done before them.
    for started, computed in ((0, 10), (4, 14), (21, 29), (20, 30), (35, 36), (33, 40), (12, 44)):
        ms = [MS * n for n in (0, 0, 0, started, computed, computed, computed)]
        timings.add(0, 8, *ms, 8)
        if computed % 3:
            folder.fold(final=True)
    folder.fold(final=True)
    assert board.counter(0, "busy_ns") == 44 * MS


def test_the_counters_count_samples_batches_and_busy_time_per_worker(rng: np.random.Generator) -> None:
    rows = answers(rng, 0, 5), answers(rng, 2, 7)
    board = folded(*rows[0], *rows[1], workers=3)
    assert [board.counter(i, "samples") for i in range(3)] == [40, 0, 56]
    assert [board.counter(i, "frames") for i in range(3)] == [5, 0, 7]
    assert [board.counter(i, "batches") for i in range(3)] == [5, 0, 7]
    assert [board.counter(i, "batch_samples") for i in range(3)] == [40, 0, 56]
    assert [board.counter(i, "busy_ns") for i in range(3)] == [covered_ns(rows[0]), 0, covered_ns(rows[1])]
    received = COLUMNS.index("received")
    assert board.counter(2, "answered_ns") == max(row[received] for row in rows[1])
    assert board.counter(1, "answered_ns") == 0
    assert board.stage("driver_queue").sum() == board.stage("latency").sum() == 96


def test_a_batch_of_several_frames_counts_once(rng: np.random.Generator) -> None:
    first, second, third = answers(rng, 0, 3)
    board = folded((*first[:-1], 24), (*second[:-1], 0), (*third[:-1], 0))
    assert (board.counter(0, "frames"), board.counter(0, "samples")) == (3, 24)
    assert (board.counter(0, "batches"), board.counter(0, "batch_samples")) == (1, 24)
    assert board.counter(0, "busy_ns") == 5 * MS


def test_folding_in_pieces_around_a_small_ring_gives_the_same_board_as_folding_at_once(
    rng: np.random.Generator,
) -> None:
    rows = answers(rng, 0, 50) + answers(rng, 1, 50)
    once, pieces = folded(*rows, workers=2), Board(2, ring_rows=16)
    timings, folder = Timings(pieces), Folder(pieces)
    for number, row in enumerate(rows):
        timings.add(*row)
        if number % 7 == 0:
            folder.fold()
            folder.fold()
            folder.fold()  # what was folded is not folded again
    folder.fold(final=True)
    assert np.array_equal(once.histograms, pieces.histograms)
    assert np.array_equal(once.counters, pieces.counters)
    assert pieces.total("rows_dropped") == 0


def test_a_row_is_folded_one_call_after_its_count_was_seen(rng: np.random.Generator) -> None:
    # On aarch64 the count may be seen before the row.
    first, second = answers(rng, 0, 2)
    board = Board(1, ring_rows=8)
    timings, folder = Timings(board), Folder(board)
    seen = []
    for row in (first, second, None, None):
        if row is not None:
            timings.add(*row)
        folder.fold()
        seen.append(board.counter(0, "frames"))
    timings.add(*first)
    folder.fold(final=True)
    assert [*seen, board.counter(0, "frames")] == [0, 1, 2, 2, 3]


def test_a_full_ring_drops_rows_and_counts_them_and_takes_new_ones_once_folded(
    rng: np.random.Generator,
) -> None:
    rows = answers(rng, 0, 30)
    board = Board(1, ring_rows=10)
    timings, folder = Timings(board), Folder(board)
    for row in rows:
        timings.add(*row)
    assert [board.total(n) for n in ("rows_written", "rows_dropped")] == [10, 20]
    folder.fold(final=True)
    timings.add(*rows[0])
    folder.fold(final=True)
    assert (board.counter(0, "frames"), board.total("rows_folded"), board.total("rows_dropped")) == (
        11,
        11,
        20,
    )


def test_a_row_has_the_columns_that_it_says() -> None:
    row = (0, 3, 10, 20, 30, 40, 50, 60, 70, 3)
    board = folded(row, ring_rows=2)
    assert dict(zip(COLUMNS, board.ring[0].tolist(), strict=True)) == {
        "worker": 0, "samples": 3, "issued": 10, "sent": 20, "w_received": 30,
        "started": 40, "computed": 50, "w_sent": 60, "received": 70, "batch": 3,
    }  # fmt: skip


READER = """
import sys
from orchestrator.timings import Board, Folder
board = Board(int(sys.argv[2]), int(sys.argv[1]))
Folder(board).fold(final=True)
print(board.total("issued"), board.counter(1, "samples"), int(board.stage("latency", 1).sum()))
"""


def test_one_process_writes_rows_and_another_folds_them_by_the_boards_file_descriptor(
    rng: np.random.Generator,
) -> None:
    board = Board(2)
    timings = Timings(board)
    for row in answers(rng, 1, 4):
        timings.add(*row)
    board.set_total("issued", 123_456_789_012)
    reader = [sys.executable, "-c", READER, str(board.fd), "2"]
    done = subprocess.run(reader, pass_fds=[board.fd], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["123456789012", "32", "32"]
    assert (board.total("rows_folded"), board.counter(1, "samples")) == (4, 32)


def test_a_board_outlives_the_process_that_wrote_it() -> None:
    board = Board(1)
    child = os.fork()
    if child == 0:
        board.set_total("completed", 42)
        os._exit(9)
    os.waitpid(child, 0)
    assert board.total("completed") == 42


def test_every_total_and_counter_has_a_place_of_its_own() -> None:
    board = Board(2)
    for number, name in enumerate(TOTALS):
        board.set_total(name, number + 1)
    board.counters[:] = 1000 + np.arange(2 * len(COUNTERS)).reshape(2, -1)
    assert [board.total(n) for n in TOTALS] == list(range(1, len(TOTALS) + 1))
    assert [board.counter(1, n) for n in COUNTERS] == [1000 + len(COUNTERS) + i for i in range(len(COUNTERS))]
    assert not board.histograms.any()
