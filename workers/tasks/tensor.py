"""Synthetic float32 tensors, answered with the index of the largest output: tries engines without data."""

from __future__ import annotations

import math
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
    WARM_UP_SEED,
    TaskError,
    check_options,
    refuse_too_large,
)
from workers.tasks.stacking import stack

MOST_DIMENSIONS = 8
_CHUNK_BYTES = 1 << 24


class TensorTask:
    """`count` standard normal tensors of `shape`."""

    name = "tensor"
    ragged = False
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        checked = check_options(self.name, options, {"count": 64, "shape": [16], "seed": 0})
        self.count: int = checked["count"]
        self.seed: int = checked["seed"]
        if not all(type(n) is int and n > 0 for n in checked["shape"]) or self.count < 1 or self.seed < 0:
            raise TaskError("task 'tensor': count and every number of shape must be positive, seed 0 or more")
        self.shape: tuple[int, ...] = tuple(checked["shape"])
        self.sample_bytes = 4 * math.prod(self.shape)
        for key, value, most in (
            ("count", self.count, MOST_SAMPLES),
            ("seed", self.seed, MOST_SEED),
            ("shape", len(self.shape), MOST_DIMENSIONS),
            ("shape", self.sample_bytes, MOST_SAMPLE_BYTES),
        ):
            if value > most:
                unit = "" if key != "shape" else " dimensions" if most == MOST_DIMENSIONS else " bytes"
                raise TaskError(f"task 'tensor': option {key!r} may come to {most}{unit}, not {value}", key)

    def prepare(self, cache: Path) -> Library:
        """Write the tensors once."""
        shape = "x".join(map(str, self.shape))
        folder = cache / f"tensor-{self.count}x{shape}-{self.seed}"
        if not folder.exists():
            refuse_too_large(self.name, cache, self.count * self.sample_bytes)
        return prepare_library(folder, self.name, self._build, {})

    def _build(self, writer: LibraryWriter) -> None:
        rng = np.random.default_rng(self.seed)
        rows = max(1, _CHUNK_BYTES // self.sample_bytes)
        for start in range(0, self.count, rows):
            writer.add_rows(rng.standard_normal((min(rows, self.count - start), *self.shape), np.float32))

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """float32 (n, *shape)."""
        rows = np.empty((len(samples), *self.shape), np.float32) if out is None else out[: len(samples)]
        stack(samples, rows)
        return rows

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The index of the largest output as float32."""
        labels = outputs.reshape(len(outputs), -1).argmax(axis=1).astype("<f4")
        return Responses(labels.view(np.uint8))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded standard normal tensors."""
        rows = np.random.default_rng(WARM_UP_SEED).standard_normal((count, math.prod(self.shape)), np.float32)
        return [memoryview(row.tobytes()) for row in rows]
