"""Scorers of accuracy tests, one file per metric: a log and a library's ground truth in, one figure out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from pathlib import Path

from orchestrator.accuracy import AccuracyError, AccuracyScore
from workers.library import Library

# What a task writes into its library as meta["scorer"], and the module whose score() it means.
_SCORERS = {
    "auc": "orchestrator.scorers.auc",
    "brats": "orchestrator.scorers.brats",
    "coco": "orchestrator.scorers.coco",
    "kits": "orchestrator.scorers.kits",
    "mask": "orchestrator.scorers.mask",
    "squad": "orchestrator.scorers.squad",
    "top1": "orchestrator.scorers.top1",
    "wer": "orchestrator.scorers.wer",
}
# Where a module is not named as the distribution that pip installs.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def score(
    accuracy_log: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """Score an accuracy log by the scorer that the library names; AccuracyError says what cannot be scored.

    Every index below `expected_count` must occur; of several answers to one, the first counts. `only`: a log
    of these samples alone, scored as the reference's script scores one.
    """
    name = library.meta.get("scorer")
    if name not in _SCORERS:
        raise AccuracyError(
            f"the data set {library.folder} holds no ground truth, so there is nothing to score against"
        )
    if library.count < expected_count:
        raise AccuracyError(
            f"{expected_count} samples are to be scored, but the data set holds {library.count}"
        )
    try:
        scorer: Callable[..., AccuracyScore] = importlib.import_module(_SCORERS[name]).score
    except ImportError as error:
        missing = _DISTRIBUTIONS.get(error.name or "", error.name)
        raise AccuracyError(
            f"scoring needs {missing}, which is not installed: pip install {missing}"
        ) from None
    return scorer(Path(accuracy_log), library, expected_count, only)
