"""Dice of brain tumors, as accuracy-brats.py of the reference's 3d-unet (v1.0.1) computes and prints it.

The padding is cut off, the largest logit is the label, and the labels are put where nnU-Net cropped them from
the scan; outside of that they are background. Three regions of joined labels are compared with the truth
(nnU-Net's region_based_evaluation.py, get_brats_regions). A region that is empty in both is not counted. The
script averages what it has printed with four decimals, so the mean is one of rounded figures.
"""

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

CLASSES = 4
DTYPE = np.dtype("<f2")  # accuracy-brats.py: --output_dtype float16
REGIONS = {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """The mean of the three regions' mean Dice; one volume is in memory at a time."""
    if "truth.npy" not in library.files:
        mend = "set task.truth to the folder Task043_BraTS2019 and prepare it again"
        raise AccuracyError(f"the data set {library.folder} was prepared without its labels: {mend}")
    truths, geometry = LabelVolumes(library), library.array("geometry")
    sides = tuple(library.meta["response"]["shape"][1:])
    size = CLASSES * math.prod(sides) * DTYPE.itemsize
    cases: dict[int, list[float]] = {}
    digest = hashlib.sha256()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        if len(data) != size:
            wanted = f"logits {DTYPE.name} {(CLASSES, *sides)} have {size}"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        logits = np.frombuffer(data, DTYPE).reshape(CLASSES, *sides)
        if np.isnan(logits).any():  # argmax would take one for the largest
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} holds numbers that are none (nan)")
        cases[qsl_idx] = _case(logits, truths.volume(qsl_idx), geometry[qsl_idx])
    found = np.array([cases[i] for i in sorted(cases)])
    means = [_rounded_mean(column) for column in found.T]
    value = sum(means) / len(means)
    regions = ", ".join(f"{name} = {mean:.4f}" for name, mean in zip(REGIONS, means, strict=True))
    line = f"Accuracy: mean = {value:.5f}, {regions}"
    return AccuracyScore("DICE", value, "fraction", None, len(cases), line, digest.hexdigest())


def _case(logits: np.ndarray, truth: np.ndarray, geometry: np.ndarray) -> list[float]:
    """The Dice of each region; `geometry` is (size of the scan, first voxel of the crop, its size)."""
    scan, first, cropped = geometry.tolist()
    inside = [slice((p - c) // 2, (p - c) // 2 + c) for p, c in zip(logits.shape[1:], cropped, strict=True)]
    place = tuple(slice(f, f + c) for f, c in zip(first, cropped, strict=True))
    labels = np.zeros(scan, np.uint8)
    labels[place] = logits[:, *inside].argmax(0)
    table = confusion(labels, truth, CLASSES)
    both_and_sum = [overlap(table, region) for region in REGIONS.values()]
    return [2.0 * both / total if total else math.nan for both, total in both_and_sum]


def _rounded_mean(column: np.ndarray) -> float:
    """The mean over the cases that count, as the reference writes it to its summary; nan if none does."""
    counted = column[~np.isnan(column)]
    return float(f"{counted.mean():.4f}") if len(counted) else math.nan
