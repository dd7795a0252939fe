"""Runs made by hand, for tests of the report: folders with records, no LoadGen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.paths import RECORD
from orchestrator.record import Record, series_record
from orchestrator.timings import COLUMNS, STAGES, Board, Folder, Timings, bucket_of, stage_summary
from tests.made_records import record

MS = 10**6
BEGAN_NS = 5_000 * MS


def timed_board(seconds: float, per_s: int = 200, limit_ms: int = 15, seed: int = 7) -> Board:
    """A board that folded a test of two workers; worker 1 computes twice as long."""
    rng = np.random.default_rng(seed)
    board = Board(2, ring_rows=1 << 16)
    board.set_total("started_ns", BEGAN_NS)
    pen, folder = Timings(board), Folder(board, limit_ms * MS)
    for n in range(int(seconds * per_s)):
        asked = BEGAN_NS + n * 10**9 // per_s
        times = np.cumsum(rng.lognormal(0, 0.5, 7) * [0.1, 0.2, 1.0, 4.0 + 4 * (n % 2), 0.1, 0.3, 0]) * MS
        stamps = (int(asked + t) for t in (times[0], times[1], times[2], times[3], times[4], times[5]))
        row = dict(zip(COLUMNS, (n % 2, 1, asked, *stamps, 1), strict=True))
        pen.add(*(row[name] for name in COLUMNS))
    folder.fold(final=True)
    return board


def timed(scenario: str = "Server", seconds: float = 8, seed: int = 7, **changed: Any) -> Record:
    """A record with everything over time, and with histograms of the same samples."""
    board = timed_board(seconds, seed=seed)
    made = record(scenario, samples=[1, 1], **changed)
    workers = [
        one.model_copy(
            update={
                "samples": board.counter(i, "samples"),
                "stages": {stage: stage_summary(board.stage(stage, i)) for stage in STAGES},
            }
        )
        for i, one in enumerate(made.workers)
    ]
    return made.model_copy(update={"workers": workers, "series": series_record(board)})


def run_folder(root: Path, *records: Record) -> Path:
    """A run's folder with these records."""
    for made in records:
        folder = root / made.test
        folder.mkdir(parents=True)
        (folder / RECORD).write_bytes(made.to_json())
    return root


def spread_histogram(ms: float) -> dict[str, int]:
    """A sparse histogram of one bucket."""
    return {str(int(bucket_of(np.array([int(ms * MS)]))[0])): 100}
