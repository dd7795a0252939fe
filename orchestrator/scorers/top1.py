"""Top-1 accuracy of image classification, as the reference's accuracy-imagenet.py prints it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from orchestrator.accuracy import AccuracyError, AccuracyScore, first_answers
from workers.library import Library

# What the official script offers as --dtype; float32 is its default.
LABEL_DTYPES = ("float32", "int32", "int64")


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """The share of samples whose label (of the library's `label_dtype`) is the true one (array "labels")."""
    labels, dtype = library.array("labels"), library.meta.get("label_dtype")
    if dtype not in LABEL_DTYPES:
        raise AccuracyError(f"responses of type {dtype!r} are none of {', '.join(LABEL_DTYPES)}")
    kind = np.dtype(dtype).newbyteorder("<")
    good, digest = 0, hashlib.sha256()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        if len(data) != kind.itemsize:
            wanted = f"one {dtype} label has {kind.itemsize}"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        found = np.frombuffer(data, kind)[0]
        if not np.isfinite(found):
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} is {found}, which is no label")
        good += int(found) == int(labels[qsl_idx])
    total = expected_count if only is None else len(only)
    value = 100.0 * good / total
    line = f"accuracy={value:.3f}%, good={good}, total={total}"
    return AccuracyScore("acc", value, "percent", good, total, line, digest.hexdigest())
