"""Recommendation on Criteo's terabyte of clicks: a sample is 100 to 700 user-item pairs of day 23.

The data folder is what the preprocessing of the reference leaves (v1.0.1, recommendation/dlrm/pytorch):

    terabyte_processed_test.bin   of --mlperf-bin-loader: int32 rows [clicked, 13 counts, 26 indices]; or else
    day_23_reordered.npz          y, X_int, X_cat of the whole day; its first half is the test set
    dist_quantile.txt             the sizes of samples; it lies in the reference's tools/
    day_fea_count.npz             rows of the 26 tables; when there, every index is compared with it

A row of the model's input is int32 (39,): 13 counts, then 26 indices. The logarithm that the network takes of
the counts is not on the rules' list of untimed preprocessing (inference_rules.adoc, "Sample-independent
pre-processing"), so the model takes it, inside the clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import MOST_SAMPLES, WARM_UP_SEED, TaskError, check_options, refuse_too_large
from workers.tasks.criteo_rows import BIN_WORDS, half_of_day, map_rows, read_table_counts, table_counts
from workers.tasks.sources import listing_digest, source_file, source_folder
from workers.tasks.stacking import stack

DENSE = 13
SPARSE = 26
ROW_WORDS = DENSE + SPARSE
ROW_BYTES = 4 * ROW_WORDS
# Rows of the 26 embedding tables with indices below 40,000,000 (main.py, get_backend).
TABLE_ROWS: tuple[int, ...] = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip

BIN_FILE = "terabyte_processed_test.bin"
DAY_FILE = "day_23_reordered.npz"
QUANTILE_FILE = "dist_quantile.txt"
WHERE_QUANTILES = "recommendation/dlrm/pytorch/tools/dist_quantile.txt of the reference (v1.0.1)"
# --numpy-rand-seed of main.py, whose first draws are the sizes of samples.
GROUP_SEED = 123
# The test set's rows (calibration/CriteoTerabyte/README.md: the second half begins at row 89137319, from 0)
# and the md5 of its trace of samples (README.md, "Verifying aggregation trace").
TEST_ROWS = 89137319
TRACE_MD5 = "3db90209564316f2506c99cc994ad0b2"
# The first 128000 rows of the second half of day 23 (the same README).
CALIBRATION_ROWS = 128000
# Sizes of synthetic samples: multiples of 100 from 100 to 700 with these shares, 274 pairs on average; the
# true mean is 89137319 / 330067 = 270.
GENERATED_SHARES = (0.2, 0.35, 0.2, 0.1, 0.08, 0.05, 0.02)
_SURVEY_ROWS = 1 << 18
_SURVEY_THREADS = 8


class CriteoTask:
    """Groups of user-item pairs, each pair answered with the probability of a click."""

    name = "criteo"
    ragged = True
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path": "", "generated": 0, "quantiles": "", "max_ind_range": 40000000}
        checked = check_options(self.name, options, known | {"count": 0, "calibration": ""})
        self.path: str = checked["path"]
        self.generated: int = checked["generated"]
        self.quantiles: str = checked["quantiles"]
        self.max_ind_range: int = checked["max_ind_range"]
        self.count: int = checked["count"]
        self.calibration: str = checked["calibration"]
        if bool(self.path) == bool(self.generated):
            raise TaskError(f"task {self.name!r} needs either path (the data) or generated (a count)", "path")
        for key, value in (("generated", self.generated), ("count", self.count)):
            if not 0 <= value <= MOST_SAMPLES:
                raise TaskError(
                    f"task {self.name!r}: {key} must be between 0 and {MOST_SAMPLES}, not {value}", key
                )
        if self.generated and self.calibration:
            why = "calibration goes with path, not with generated"
            raise TaskError(f"task {self.name!r}: {why}", "calibration")
        if not 1 <= self.max_ind_range < 1 << 31:
            raise TaskError(
                f"task {self.name!r}: max_ind_range must be between 1 and 2^31 - 1", "max_ind_range"
            )

    def prepare(self, cache: Path) -> Library:
        """Cut the test set into its samples."""
        if self.generated:
            return self._generate(cache)
        folder = source_folder(self.name, self.path)
        quantiles = self._read_quantiles(folder)
        rows_file, first_half = self._rows_file(folder)
        counts = table_counts(folder)
        files = [rows_file] + ([counts] if counts else [])
        known = read_table_counts(counts, SPARSE) if counts else None
        parameters = (
            f"{quantiles.tolist()} {self.max_ind_range} {first_half} {GROUP_SEED} int32 13+26 largest"
        )
        library = cache / f"{self.name}-{listing_digest(parameters, files)[:16]}"
        meta: dict[str, Any] = {
            "source": self.path,
            "response": {"dtype": "float32", "layout": "a prediction for each pair, no targets"},
            "input": {"dtype": "int32", "row": f"{DENSE} counts, {SPARSE} indices", "rows": "100 to 700"},
        } | ({"scorer": "auc"} if first_half else {"calibration": True})

        def build(writer: LibraryWriter) -> None:
            spare = library.with_name(f"{library.name}.rows")
            rows, limit = rows_file, CALIBRATION_ROWS
            if rows_file.suffix == ".npz":
                rows = half_of_day(rows_file, spare, first_half, None if first_half else limit)
            try:
                self._build(writer, map_rows(rows), rows_file, quantiles, known)
            finally:
                spare.unlink(missing_ok=True)  # that of a killed prepare stays, and is gone on with

        prepared = prepare_library(library, self.name, build, meta)
        self._check_count(rows_file, prepared.count)
        return prepared

    def _check_count(self, file: Path, count: int) -> None:
        """TaskError unless there are as many samples as the manifest says."""
        if self.count and count != self.count:
            wrong = f"{file} and the quantiles give {count} samples, the manifest says {self.count}"
            raise TaskError(f"task {self.name!r}: {wrong}; bring the right files or correct it", "count")

    def _rows_file(self, folder: Path) -> tuple[Path, bool]:
        """The file to read, and whether it is for its test half or for its calibration half."""
        if self.calibration:
            what = (
                f"task.calibration must name the reference's {DAY_FILE}: the set is cut from its second half"
            )
            day = source_file(self.name, Path(self.calibration).expanduser(), what, "calibration")
            if day.suffix != ".npz":
                raise TaskError(f"task {self.name!r}: {day}: {what}", "calibration")
            return day, False
        if (folder / BIN_FILE).is_file():
            return folder / BIN_FILE, True
        what = f"{folder} holds neither {BIN_FILE} nor this; run the reference's preprocessing of day 23"
        return source_file(self.name, folder / DAY_FILE, what), True

    def _read_quantiles(self, folder: Path) -> np.ndarray:
        path = Path(self.quantiles).expanduser() if self.quantiles else folder / QUANTILE_FILE
        what = f"copy {WHERE_QUANTILES} there, or name it in task.quantiles"
        source_file(self.name, path, what, "quantiles")
        try:
            # As the reference reads it: the first line counts.
            words = path.read_text().splitlines()[0].split(",")
            found = np.array([int(word) for word in words], np.int64)
        except (OSError, ValueError, IndexError, OverflowError):
            raise TaskError(f"{path} is not {WHERE_QUANTILES}: one line of numbers", "quantiles") from None
        if (found < 1).any() or (found > 1 << 20).any():
            raise TaskError(f"{path} holds a size of samples that is none: {found.tolist()}", "quantiles")
        return found

    def _build(
        self,
        writer: LibraryWriter,
        rows: np.ndarray,
        file: Path,
        quantiles: np.ndarray,
        known: np.ndarray | None,
    ) -> None:
        """Write the samples, labels, bounds and largest indices of `rows`, which came from `file`."""
        bounds = group_bounds(quantiles, len(rows))
        self._check_count(file, len(bounds) - 1)
        if len(rows) == TEST_ROWS and trace_md5(bounds) != TRACE_MD5:
            wrong = (
                f"the quantiles do not give the reference's samples (md5 of the trace {trace_md5(bounds)})"
            )
            raise TaskError(f"task {self.name!r}: {wrong}; take {WHERE_QUANTILES}", "quantiles")
        targets, largest = survey(rows, file)
        wraps = int(largest.max()) >= self.max_ind_range
        largest = np.minimum(largest, self.max_ind_range - 1)
        if known is not None:
            _compare_with_tables(file, largest, known)

        def make(group: tuple[int, int]) -> np.ndarray:
            found = np.ascontiguousarray(rows[group[0] : group[1], 1:])
            if wraps:
                found[:, DENSE:] %= self.max_ind_range
            return found

        writer.add_all(list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)), make)
        writer.add_array("targets", targets)
        writer.add_array("bounds", bounds)
        # For the model's check_library: an index beyond a table is answered as if it were the table's last.
        writer.add_array("largest", largest)

    def _generate(self, cache: Path) -> Library:
        library = cache / f"{self.name}-generated-{self.generated}"
        if not library.exists():
            refuse_too_large(self.name, cache, self.generated * 274 * ROW_BYTES)
        rng = np.random.default_rng(GROUP_SEED)
        sizes = 100 * rng.choice(np.arange(1, 8), self.generated, p=GENERATED_SHARES)
        jobs = list(enumerate(sizes.tolist()))

        def build(writer: LibraryWriter) -> None:
            writer.add_all(jobs, lambda job: random_rows(np.random.default_rng([GROUP_SEED, job[0]]), job[1]))

        return prepare_library(library, self.name, build, {"generated": True})

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """int32 (pairs of all samples, 39)."""
        total = int(self.counts(samples).sum())
        rows = np.empty((total, ROW_WORDS), np.int32) if out is None else out[:total]
        stack(samples, rows)
        return rows

    def counts(self, samples: Sequence[memoryview]) -> np.ndarray:
        """Pairs of each sample, int64 (n,)."""
        sizes = np.fromiter((sample.nbytes for sample in samples), np.int64, len(samples))
        return sizes // ROW_BYTES

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The predictions as float32, as accuracy-dlrm.py takes them with --day-23-file."""
        assert counts is not None
        predictions = np.ascontiguousarray(outputs.reshape(-1), "<f4")
        return Responses(predictions.view(np.uint8), 4 * counts.astype(np.int64))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded random pairs within the true tables, 100 to 700 a sample."""
        rng = np.random.default_rng(WARM_UP_SEED)
        sizes = 100 * rng.choice(np.arange(1, 8), count, p=GENERATED_SHARES)
        return [memoryview(random_rows(rng, size).tobytes()) for size in sizes]

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of the published file: as backend_onnxruntime.py gives them, one index to a bag."""
        offsets = np.broadcast_to(np.arange(len(rows), dtype=np.int64), (SPARSE, len(rows)))
        return {
            "dense_x": np.log(rows[:, :DENSE].astype(np.float32) + np.float32(1)),
            "offsets": np.ascontiguousarray(offsets),
            "indices": np.ascontiguousarray(rows[:, DENSE:].T, np.int64),
        }

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The file's only output, a prediction for each pair, whatever its name."""
        (predictions,) = outputs.values()
        return predictions.reshape(-1), counts


def _compare_with_tables(file: Path, largest: np.ndarray, known: np.ndarray) -> None:
    """TaskError if an index lies outside its table, which shows files of two different preprocessings."""
    for feature in np.flatnonzero(largest >= known):
        outside = f"index {largest[feature]} of feature {feature} is not below {known[feature]:g}"
        anew = f"{file} and the table sizes beside it do not belong together; prepare both anew"
        raise TaskError(f"{anew}: {outside}", "path")


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """int32 (count, 39): counts of at least 1 and indices that fill the true tables."""
    rows = np.empty((count, ROW_WORDS), np.int32)
    # Counts of Criteo reach from 0 to thousands: about as many of each order of magnitude.
    rows[:, :DENSE] = np.exp(rng.uniform(0, 9, (count, DENSE)))
    rows[:, DENSE:] = rng.integers(0, TABLE_ROWS, (count, SPARSE))
    return rows


def group_bounds(quantiles: np.ndarray, rows: int) -> np.ndarray:
    """int64 (samples + 1,): sample i is rows bounds[i] to bounds[i + 1], as criteo.py draws their sizes.

    All at once the draws are the same as one by one: v1.0.1's quantiles and 89137319 rows give 330067
    samples, whose trace has the published md5.
    """
    draws = rows // int(quantiles.min()) + 1
    picks = np.random.RandomState(GROUP_SEED).randint(0, len(quantiles), draws)
    ends = np.cumsum(quantiles[picks])
    last = int(np.searchsorted(ends, rows))
    return np.concatenate([[0], ends[:last], [rows]])


def trace_md5(bounds: np.ndarray) -> str:
    """md5 of dlrm_trace_of_aggregated_samples.txt as the reference writes it: first, end, size."""
    firsts, ends = bounds[:-1].tolist(), bounds[1:].tolist()
    text = "".join(f"{a}, {b}, {b - a}\n" for a, b in zip(firsts, ends, strict=True))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def survey(rows: np.ndarray, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The labels uint8 (n,) and each feature's largest index; TaskError names the first row that is wrong."""
    targets = np.empty(len(rows), np.uint8)
    largest = np.zeros((-(-len(rows) // _SURVEY_ROWS), SPARSE), np.int64)

    def look(number: int) -> None:
        start = number * _SURVEY_ROWS
        block = np.asarray(rows[start : start + _SURVEY_ROWS])
        wrong = (block < 0).any(axis=1) | (block[:, 0] > 1)
        if wrong.any():
            row = start + int(wrong.argmax())
            raise TaskError(
                f"{file} is damaged: row {row} (from 0) is not a label of 0 or 1, {DENSE} counts and "
                f"{SPARSE} indices of 0 or more; write it anew with the reference's preprocessing",
                "path",
            )
        targets[start : start + len(block)] = block[:, 0]
        largest[number] = block[:, BIN_WORDS - SPARSE :].max(axis=0)

    with ThreadPoolExecutor(_SURVEY_THREADS) as threads:
        for _ in threads.map(look, range(len(largest))):
            pass
    return targets, largest.max(axis=0)
