"""Dice of one mask a volume, in the form that the segmentation rounds' checkers parse."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from orchestrator.accuracy import AccuracyError, AccuracyScore, first_answers
from orchestrator.scorers.dice import confusion, overlap
from workers.library import Library
from workers.tasks.label_volumes import LabelVolumes


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """The mean Dice over the volumes; a mask that is empty in truth and answer counts as 1."""
    truths = LabelVolumes(library)
    found = np.zeros(expected_count)
    digest = hashlib.sha256()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        shape = truths.shape(qsl_idx)
        mask = np.frombuffer(data, np.uint8)
        if len(data) != math.prod(shape) or mask.max() > 1:
            wanted = f"a mask uint8 {shape} has {math.prod(shape)}, each 0 or 1"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        both, total = overlap(confusion(mask, truths.volume(qsl_idx), 2), [1])
        found[qsl_idx] = 2.0 * both / total if total else 1.0
    asked = range(expected_count) if only is None else sorted(only)
    value = float(found[asked].mean())
    line = f"Accuracy: mean = {value:.5f}"
    return AccuracyScore("DICE", value, "fraction", None, len(asked), line, digest.hexdigest())
