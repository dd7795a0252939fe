"""A small Criteo day in the layout that the reference's preprocessing leaves (dlrm's data_utils.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.tasks.criteo import BIN_FILE, DAY_FILE, DENSE, QUANTILE_FILE, SPARSE, TABLE_ROWS, group_bounds

# Not the reference's: sizes of samples are drawn from these at random, with the same seed as there.
QUANTILES = (100, 150, 200, 200, 300, 700)
# The 26 tables, the large ones cut down: what the model option `rows` must be.
SMALL_TABLES = tuple(min(rows, 200) for rows in TABLE_ROWS)


def write(
    folder: Path, count: int, seed: int, binary: bool = True, tables: tuple[int, ...] = SMALL_TABLES
) -> dict[str, object]:
    """`count` samples for the test and one row less as the day's second half; the manifest's task options."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / QUANTILE_FILE).write_text(", ".join(map(str, QUANTILES)) + "\n")
    test_rows = int(group_bounds(np.array(QUANTILES), 1 << 20)[count]) - 7  # the last sample is cut short
    label, dense, sparse = day(2 * test_rows - 1, seed, tables)
    # As its writer has them: float64, rows in C order, compressed.
    np.savez_compressed(
        folder / DAY_FILE,
        X_cat=sparse.astype(np.float64),
        X_int=dense.astype(np.float64),
        y=label.astype(np.float64),
    )
    np.savez_compressed(folder / "day_fea_count.npz", counts=np.array(tables))
    np.savez_compressed(folder / "day_day_count.npz", total_per_file=np.array([1] * 23 + [len(label)]))
    if binary:
        rows = np.concatenate([label[:, None], dense, sparse], axis=1)[:test_rows]
        (folder / BIN_FILE).write_bytes(rows.astype("<i4").tobytes())
    return {"path": str(folder), "count": count}


def day(rows: int, seed: int, tables: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (rows,), counts (rows, 13) and indices (rows, 26): one pair in four is clicked."""
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.25).astype(np.int64)
    dense = np.floor(np.exp(rng.uniform(0, 8, (rows, DENSE)))).astype(np.int64) - 1
    sparse = rng.integers(0, tables, (rows, SPARSE))
    return label, dense, sparse
