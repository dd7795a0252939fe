"""The AUC scorer: hand-computed cases, a round trip through the task, damaged logs, the checkers' pattern."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator import scorers
from orchestrator.accuracy import AccuracyError, AccuracyScore
from orchestrator.paths import ACCURACY_LOG
from orchestrator.rules import load_round
from tests import made_criteo
from tests.made_logs import accuracy_log
from workers.library import LibraryWriter
from workers.tasks import open_task

TIME_BUDGET_S = 10

TARGETS = np.array([1, 0, 0, 1, 0, 1], np.uint8)
BOUNDS = np.array([0, 2, 5, 6])


def log(folder: Path, answers: list[tuple[int, bytes]]) -> Path:
    return accuracy_log(folder / ACCURACY_LOG, answers)


def pairs(*predictions: float) -> bytes:
    return np.array(predictions, "<f4").tobytes()


def score(
    folder: Path, answers: list[tuple[int, bytes]], count: int = 3, targets: np.ndarray = TARGETS
) -> AccuracyScore:
    with LibraryWriter(folder / "library", "made", {"scorer": "auc"}) as writer:
        for _ in BOUNDS[1:]:
            writer.add(b"x")
        writer.add_array("targets", targets)
        writer.add_array("bounds", BOUNDS)
        library = writer.finish()
    return scorers.score(log(folder, answers), library, count)


def test_a_hand_computed_case(tmp_path: Path) -> None:
    # Clicked: .9, .4, .6. Others: .2, .5, .6. Of nine couples 6 are in order and one is even: 6.5 of 9.
    answers = [(2, pairs(0.6)), (0, pairs(0.9, 0.2)), (1, pairs(0.5, 0.4, 0.6)), (2, pairs(0.0))]
    scored = score(tmp_path, answers)
    assert scored.value == pytest.approx(100 * 6.5 / 9) and (scored.metric, scored.unit) == ("AUC", "percent")
    # Rounded to even, .5 is 0: right are .9, .2, .5 and the last .6.
    assert scored.line == "AUC=72.222%, accuracy=66.667%, good=4, total=6, queries=3"
    assert (scored.good, scored.total) == (4, 6)


def test_fewer_samples_than_the_library_holds_are_scored_by_themselves(tmp_path: Path) -> None:
    scored = score(tmp_path, [(1, pairs(0.1, 0.8, 0.2)), (0, pairs(0.7, 0.6))], count=2)
    assert scored.line == "AUC=100.000%, accuracy=80.000%, good=4, total=5, queries=2"


def test_every_rounds_checker_reads_the_line(tmp_path: Path) -> None:
    line = score(tmp_path, [(0, pairs(0.9, 0.2)), (1, pairs(0.5, 0.4, 0.6)), (2, pairs(0.6))]).line
    for name in ("v1.0", "v1.1"):
        for benchmark in ("dlrm-99", "dlrm-99.9"):
            rule = load_round(name).benchmarks[benchmark].accuracy
            found = re.match(rule.pattern, line)
            assert found is not None and float(found[1]) == 72.222


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(0, pairs(0.9, 0.2)), (1, pairs(0.5, 0.4)), (2, pairs(0.6))], "sample 1 has 8 bytes, 3 pairs"),
        (
            [(0, pairs(0.9, 0.2)), (1, pairs(0.5, float("nan"), 0.1)), (2, pairs(0.6))],
            "pair 1 of sample 1 is nan",
        ),
        (
            [(0, pairs(0.9, 0.2)), (1, pairs(0.5, 0.4, 0.1)), (2, pairs(float("inf")))],
            "pair 0 of sample 2 is inf",
        ),
        ([(0, pairs(0.9, 0.2)), (2, pairs(0.6))], "1"),
        ([(0, pairs(0.9, 0.2)), (7, pairs(0.6))], "7"),
    ],
)
def test_damaged_logs_are_explained(tmp_path: Path, answers: list[tuple[int, bytes]], message: str) -> None:
    with pytest.raises(AccuracyError, match=re.escape(message)):
        score(tmp_path, answers)


def test_a_data_set_without_a_click_has_no_auc(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match="all 0, and AUC needs clicked ones"):
        score(tmp_path, [], targets=np.zeros(6, np.uint8))


def test_known_predictions_come_through_task_log_and_score(tmp_path: Path) -> None:
    task = open_task("criteo", made_criteo.write(tmp_path / "data", 5, seed=3))
    library = task.prepare(tmp_path / "cache")
    bounds, targets = library.array("bounds"), library.array("targets")
    predictions = (0.8 * targets + 0.1).astype(np.float32)
    order = np.array([3, 0, 4, 1, 2])
    counts = np.diff(bounds)[order]
    outputs = np.concatenate([predictions[bounds[i] : bounds[i + 1]] for i in order])
    responses = task.respond(outputs, order, counts)
    assert responses.sizes is not None
    ends = np.cumsum(responses.sizes)
    cut = np.split(responses.blob, ends[:-1])
    path = log(tmp_path, [(int(i), part.tobytes()) for i, part in zip(order, cut, strict=True)])
    scored = scorers.score(path, library, 5)
    assert (
        scored.line
        == f"AUC=100.000%, accuracy=100.000%, good={len(targets)}, total={len(targets)}, queries=5"
    )
