"""Dice of kidneys and tumors, as the reference's accuracy_kits.py computes and prints it."""

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

CLASSES = 3
KIDNEY, TUMOR = 1, 2
SMOOTH = 1e-6  # get_dice_score: smooth_nr and smooth_dr, so that what is empty in both counts as 1


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """The mean over the cases of the mean of both Dice; one volume is in memory at a time."""
    truths = LabelVolumes(library)
    cases: dict[int, tuple[float, float]] = {}
    digest = hashlib.sha256()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        shape = truths.shape(qsl_idx)
        if len(data) != math.prod(shape):
            wanted = f"labels uint8 {shape} have {math.prod(shape)}"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        labels = np.frombuffer(data, np.uint8)
        if labels.max() >= CLASSES:
            raise AccuracyError(
                f"{path}: the response to sample {qsl_idx} holds the label {labels.max()}, over {CLASSES - 1}"
            )
        table = confusion(labels, truths.volume(qsl_idx), CLASSES)
        cases[qsl_idx] = _dice(table, KIDNEY), _dice(table, TUMOR)
    found = np.array([cases[i] for i in sorted(cases)])
    value = float(found.mean(axis=1).mean())
    kidney, tumor = found.mean(axis=0).tolist()
    line = f"Accuracy: mean = {value:.5f}, kidney = {kidney:.4f}, tumor = {tumor:.4f}"
    return AccuracyScore("DICE", value, "fraction", None, len(cases), line, digest.hexdigest())


def _dice(table: np.ndarray, label: int) -> float:
    both, total = overlap(table, [label])
    return (2.0 * both + SMOOTH) / (total + SMOOTH)
