"""Synthetic samples of seeded random bytes: for the echo backend, `bench` and tests of the path itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import (
    MOST_SAMPLE_BYTES,
    MOST_SAMPLES,
    MOST_SEED,
    TaskError,
    check_options,
    random_samples,
    refuse_too_large,
)

BYTES_BESIDE = 16  # a sample's offset and label
_CHUNK_BYTES = 1 << 24


class NullTask:
    """`count` samples of `sample_bytes` bytes; the label is the index, which the echo backend answers."""

    name = "null"
    ragged = False
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        checked = check_options(self.name, options, {"count": 1024, "sample_bytes": 4, "seed": 0})
        self.count: int = checked["count"]
        self.sample_bytes: int = checked["sample_bytes"]
        self.seed: int = checked["seed"]
        for key, low, high in (
            ("count", 1, MOST_SAMPLES),
            ("sample_bytes", 0, MOST_SAMPLE_BYTES),
            ("seed", 0, MOST_SEED),
        ):
            if not low <= checked[key] <= high:
                raise TaskError(
                    f"task 'null': option {key!r} must be {low} to {high}, not {checked[key]}", key
                )

    def prepare(self, cache: Path) -> Library:
        """Write the samples once."""
        folder = cache / f"null-{self.count}x{self.sample_bytes}-{self.seed}"
        if not folder.exists():
            refuse_too_large(self.name, cache, self.count * (self.sample_bytes + BYTES_BESIDE))
        meta = {"label_dtype": "int32", "scorer": "top1", "seed": self.seed}
        return prepare_library(folder, self.name, self._build, meta)

    def _build(self, writer: LibraryWriter) -> None:
        rng = np.random.default_rng(self.seed)
        rows = max(1, _CHUNK_BYTES // max(1, self.sample_bytes))
        for start in range(0, self.count, rows):
            shape = (min(rows, self.count - start), self.sample_bytes)
            writer.add_rows(rng.integers(0, 256, shape, np.uint8))
        writer.add_array("labels", np.arange(self.count, dtype=np.int64))

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, sample_bytes)."""
        rows = np.empty((len(samples), self.sample_bytes), np.uint8) if out is None else out[: len(samples)]
        for row, sample in zip(rows, samples, strict=True):
            row[:] = np.frombuffer(sample, np.uint8)
        return rows

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The outputs' own bytes."""
        return Responses(np.frombuffer(outputs.tobytes(), np.uint8))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded random bytes."""
        return random_samples(count, self.sample_bytes)
