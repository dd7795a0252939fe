"""Overlap of label volumes, as both segmentation references count it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def confusion(found: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): voxels by found and by true label; all labels are below `classes`."""
    pairs = found.reshape(-1).astype(np.intp) * classes + truth.reshape(-1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def overlap(table: np.ndarray, labels: Iterable[int]) -> tuple[int, int]:
    """(voxels that are found and true, voxels found plus voxels true) of the region of `labels`."""
    region = list(labels)
    both = table[np.ix_(region, region)].sum()
    return int(both), int(table[region].sum() + table[:, region].sum())
