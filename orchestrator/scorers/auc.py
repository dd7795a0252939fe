"""Area under the ROC curve of recommendation, as the reference's accuracy-dlrm.py prints it.

The response to a sample is a float32 prediction for each of its pairs (the script's form with --day-23-file);
what was clicked lies in the library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from orchestrator.accuracy import AccuracyError, AccuracyScore, first_answers
from workers.library import Library


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """AUC over the pairs of the first `expected_count` samples, or of `only`, and the share that is right.

    Arrays of the library: `targets` (pairs,) of 0 and 1, and `bounds` (samples + 1,): which pairs are whose.
    """
    bounds = library.array("bounds")
    asked = range(expected_count) if only is None else sorted(only)
    mine = np.zeros(bounds[expected_count], bool)  # the pairs of the samples asked
    for sample in asked:
        mine[bounds[sample] : bounds[sample + 1]] = True
    targets = library.array("targets")[: bounds[expected_count]][mine]
    if targets.min() == targets.max():
        same = f"the {len(targets)} pairs of {len(asked)} samples are all {targets[0]}"
        raise AccuracyError(f"{library.folder}: {same}, and AUC needs clicked ones and others")
    predictions, digest = np.zeros(len(mine), np.float32), hashlib.sha256()
    firsts, ends = bounds[:-1].tolist(), bounds[1:].tolist()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        first, end = firsts[qsl_idx], ends[qsl_idx]
        if len(data) != 4 * (end - first):
            wanted = f"{end - first} pairs of float32 have {4 * (end - first)}"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        predictions[first:end] = np.frombuffer(data, "<f4")
    _refuse_endless(path, predictions, bounds)
    predictions = predictions[mine]
    value = 100.0 * float(roc_auc_score(targets, predictions))
    good, total = int((np.rint(predictions) == targets).sum()), len(targets)
    line = f"AUC={value:.3f}%, accuracy={100.0 * good / total:.3f}%, good={good}, total={total}"
    line += f", queries={len(asked)}"
    return AccuracyScore("AUC", value, "percent", good, total, line, digest.hexdigest())


def _refuse_endless(path: Path, predictions: np.ndarray, bounds: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(predictions))
    if len(wrong):
        sample = int(np.searchsorted(bounds, wrong[0], side="right")) - 1
        found = f"pair {wrong[0] - bounds[sample]} of sample {sample} is {predictions[wrong[0]]}"
        raise AccuracyError(f"{path}: the prediction for {found}, which ranks nowhere")
