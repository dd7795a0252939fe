"""Dice of both segmentation benchmarks: counted by hand, and from logits to the line of the checkers."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from orchestrator.accuracy import AccuracyError
from orchestrator.rules import load_round
from orchestrator.scorers import score
from orchestrator.scorers.dice import confusion, overlap
from tests import made_brats, made_kits
from workers.library import Library
from workers.tasks import Task, open_task
from workers.tasks.label_volumes import LabelVolumes

TIME_BUDGET_S = 15


def write_log(path: Path, answers: list[tuple[int, bytes]]) -> Path:
    """As LoadGen writes it."""
    entries = [
        f'{{ "seq_id" : {i}, "qsl_idx" : {qsl_idx}, "data" : "{data.hex().upper()}" }}'
        for i, (qsl_idx, data) in enumerate(answers)
    ]
    path.write_text("[\n" + ",\n".join(entries) + "\n]\n")
    return path


def test_overlap_is_counted_by_hand() -> None:
    found = np.array([[0, 1, 2], [2, 1, 1]], np.uint8)
    truth = np.array([[0, 1, 1], [2, 2, 1]], np.uint8)
    table = confusion(found, truth, 3)
    assert table.tolist() == [[1, 0, 0], [0, 2, 1], [0, 1, 1]]
    assert overlap(table, [1]) == (2, 6) and overlap(table, [2]) == (1, 4)
    assert overlap(table, (1, 2)) == (5, 10)


def brats(folder: Path, count: int) -> tuple[Task, Library]:
    task = open_task("brats", made_brats.write(folder, count, 3))
    return task, task.prepare(folder / "cache")


def logits_of(library: Library, index: int, labels: np.ndarray) -> np.ndarray:
    """Logits (1, 4, ...) whose largest are `labels` (of the scan), where the case was cropped."""
    _, first, cropped = library.array("geometry")[index].tolist()
    part = labels[tuple(slice(f, f + c) for f, c in zip(first, cropped, strict=True))]
    logits = np.full((1, 4, *made_brats.SHAPE), -5.0, np.float32)
    inside = [slice((p - c) // 2, (p - c) // 2 + c) for p, c in zip(made_brats.SHAPE, cropped, strict=True)]
    logits[0][:, *inside] = part == np.arange(4)[:, None, None, None]
    return logits


def answer(task: Task, library: Library, index: int, labels: np.ndarray) -> tuple[int, bytes]:
    logits = logits_of(library, index, labels)
    return index, task.respond(logits, np.array([index])).blob.tobytes()


def test_brats_dice_from_answers_to_the_line(tmp_path: Path) -> None:
    task, library = brats(tmp_path, 3)
    truths = LabelVolumes(library)
    wrong = [truths.volume(i).copy() for i in range(3)]
    wrong[1][wrong[1] == 3] = 2  # the enhancing tumor of case 1 is taken for core
    log = write_log(tmp_path / "log.json", [answer(task, library, i, wrong[i]) for i in (2, 0, 1)])
    scored = score(log, library, 3)
    by_hand = np.zeros((3, 3))
    for i in range(3):
        _, first, cropped = library.array("geometry")[i].tolist()
        place = tuple(slice(f, f + c) for f, c in zip(first, cropped, strict=True))
        seen = np.zeros_like(wrong[i])
        seen[place] = wrong[i][place]  # what was cropped away counts as background
        for j, region in enumerate(((1, 2, 3), (2, 3), (3,))):
            a, b = np.isin(seen, region), np.isin(truths.volume(i), region)
            by_hand[i, j] = 2 * (a & b).sum() / (a.sum() + b.sum())
    whole, core, enhancing = (round(x, 4) for x in by_hand.mean(0))
    expected = f"mean = {(whole + core + enhancing) / 3:.5f}, whole tumor = {whole:.4f}, "
    assert scored.line == f"Accuracy: {expected}tumor core = {core:.4f}, enhancing tumor = {enhancing:.4f}"
    assert (scored.metric, scored.unit, scored.good, scored.total) == ("DICE", "fraction", None, 3)
    assert by_hand[1, 2] == 0 and scored.value == pytest.approx((whole + core + enhancing) / 3)


def test_a_region_that_is_empty_in_truth_and_answer_is_not_counted(tmp_path: Path) -> None:
    # region_based_evaluation.evaluate_case: nan, and the mean is one of what is not nan
    options = made_brats.write(tmp_path, 2, 3)
    blank = np.zeros(made_brats.SCAN, np.uint8)
    image = nibabel.Nifti1Image(blank.transpose(), np.eye(4))
    nibabel.save(image, min((Path(options["truth"]) / "labelsTr").iterdir()))
    task = open_task("brats", options)
    library = task.prepare(tmp_path / "cache")
    truth = LabelVolumes(library).volume(1)
    log = write_log(tmp_path / "log.json", [answer(task, library, 0, blank), answer(task, library, 1, truth)])
    _, first, cropped = library.array("geometry")[1].tolist()
    kept = truth[tuple(slice(f, f + c) for f, c in zip(first, cropped, strict=True))]
    whole = 2 * (kept > 0).sum() / ((kept > 0).sum() + (truth > 0).sum())
    assert f"whole tumor = {whole:.4f}, " in score(log, library, 2).line


def test_what_brats_cannot_score_is_explained(tmp_path: Path) -> None:
    task, library = brats(tmp_path, 2)
    truths = LabelVolumes(library)
    good = [answer(task, library, i, truths.volume(i)) for i in range(2)]

    def why(answers: list[tuple[int, bytes]], of: Library = library) -> str:
        with pytest.raises(AccuracyError) as caught:
            score(write_log(tmp_path / "log.json", answers), of, 2)
        return str(caught.value)

    assert "1 of 2 samples have no response: 1" in why(good[:1])
    assert "the response to sample 1 has 100 bytes, logits float16 (4, 64, 32, 32) have 524288" in why(
        [good[0], (1, good[1][1][:100])]
    )
    options = made_brats.write(tmp_path / "bare", 2, 3) | {"truth": ""}
    bare = open_task("brats", options).prepare(tmp_path / "bare" / "cache")
    assert "was prepared without its labels: set task.truth" in why(good, bare)


def kits(folder: Path, count: int) -> tuple[Task, Library]:
    task = open_task("kits", made_kits.write(folder, count, 3))
    return task, task.prepare(folder / "cache")


def test_kits_dice_from_answers_to_the_line(tmp_path: Path) -> None:
    task, library = kits(tmp_path, 3)
    truths = [LabelVolumes(library).volume(i) for i in range(3)]
    found = [truth.copy() for truth in truths]
    found[0][found[0] == 2] = 1
    found[2][:, :40] = 0
    answers = [(i, task.respond(found[i][None, None], np.array([i])).blob.tobytes()) for i in (1, 2, 0)]
    scored = score(write_log(tmp_path / "log.json", answers), library, 3)
    by_hand = np.zeros((3, 2))
    for i in range(3):
        for j in (1, 2):
            a, b = found[i] == j, truths[i] == j
            by_hand[i, j - 1] = (2 * (a & b).sum() + 1e-6) / (a.sum() + b.sum() + 1e-6)
    kidney, tumor = by_hand.mean(0)
    assert scored.line == f"Accuracy: mean = {by_hand.mean():.5f}, kidney = {kidney:.4f}, tumor = {tumor:.4f}"
    assert scored.value == pytest.approx(by_hand.mean()) and by_hand[1].tolist() == [1.0, 1.0]
    perfect = [(i, truths[i].tobytes()) for i in range(3)]
    line = score(write_log(tmp_path / "log.json", perfect), library, 3).line
    assert line == "Accuracy: mean = 1.00000, kidney = 1.0000, tumor = 1.0000"


def test_what_kits_cannot_score_is_explained(tmp_path: Path) -> None:
    _, library = kits(tmp_path, 2)
    truths = [LabelVolumes(library).volume(i).tobytes() for i in range(2)]

    def why(answers: list[tuple[int, bytes]]) -> str:
        with pytest.raises(AccuracyError) as caught:
            score(write_log(tmp_path / "log.json", answers), library, 2)
        return str(caught.value)

    assert "has 5 bytes, labels uint8 (64, 128, 64) have 524288" in why([(0, truths[0]), (1, truths[1][:5])])
    assert "sample 1 holds the label 7, over 2" in why([(0, truths[0]), (1, b"\x07" * len(truths[1]))])
    assert "2 samples" in why([(0, truths[0]), (5, truths[1])])


@pytest.mark.parametrize("version", ["v1.0", "v1.1", "v6.1"])
def test_the_lines_are_what_the_rounds_checkers_parse(version: str) -> None:
    accuracy = load_round(version).benchmark("3d-unet-99").accuracy
    for line in (
        "Accuracy: mean = 0.85300, whole tumor = 0.9141, tumor core = 0.8679, enhancing tumor = 0.7770",
        "Accuracy: mean = 0.86170, kidney = 0.9347, tumor = 0.7887",
    ):
        found = re.match(accuracy.pattern, line)
        assert found and 0.85 < float(found[1]) < 0.87
