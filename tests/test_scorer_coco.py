"""mAP as accuracy-coco.py prints it: by hand, from known detections to a score, and on damaged logs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.accuracy import AccuracyError, AccuracyScore
from orchestrator.rules import load_round
from orchestrator.scorers import score
from tests.made_coco import CATEGORY_IDS, write
from workers.library import Library
from workers.tasks import open_task

TIME_BUDGET_S = 20

COUNT = 12


@pytest.fixture(scope="module", params=["coco-300", "coco-1200"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Library]:
    folder = tmp_path_factory.mktemp("coco")
    task = open_task(request.param, write(folder / "data", COUNT, seed=4))
    return task, task.prepare(folder / "cache")


def truth_of(library: Library) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(library.array("truth").tobytes())
    return found


def detections(library: Library) -> np.ndarray:
    """float32 (COUNT, 8, 6): every annotated box, found exactly and with full score; crowds are left out."""
    truth = truth_of(library)
    outputs = np.full((COUNT, 8, 6), -1, np.float32)
    for i, image in enumerate(truth["images"]):
        boxes = [one for one in truth["annotations"] if one["image_id"] == image["id"] and not one["iscrowd"]]
        for k, one in enumerate(boxes):
            left, top, width, height = one["bbox"]
            box = np.array([top, left, top + height, left + width])
            label = one["category_id"]
            if library.meta["use_inv_map"]:
                label = 1 + CATEGORY_IDS.index(label)
            outputs[i, k] = [*box / np.tile([image["height"], image["width"]], 2), 1, label]
    return outputs


def log_of(path: Path, task: Any, outputs: np.ndarray, again: int | None = None) -> Path:
    """An accuracy log of all samples in another order than their own, one perhaps twice."""
    order = np.random.default_rng(1).permutation(len(outputs))
    answered = task.respond(outputs[order], order)
    ends = np.cumsum(answered.sizes)
    data = [answered.blob[end - n : end].tobytes() for end, n in zip(ends, answered.sizes, strict=True)]
    entries = [entry(i, sample, data[i]) for i, sample in enumerate(order.tolist())]
    if again is not None:
        entries.append(entry(COUNT, again, b""))
    path.write_text(json.dumps(entries))
    return path


def entry(number: int, qsl_idx: int, data: bytes) -> dict[str, Any]:
    return {"seq_id": number, "qsl_idx": qsl_idx, "data": data.hex().upper()}


def test_what_is_found_exactly_scores_100_percent(prepared: tuple[Any, Library], tmp_path: Path) -> None:
    task, library = prepared
    scored = score(log_of(tmp_path / "log.json", task, detections(library)), library, COUNT)
    assert scored.line == "mAP=100.000%" and scored.value == pytest.approx(100)
    assert (scored.metric, scored.unit, scored.good, scored.total) == ("mAP", "percent", None, COUNT)


def test_only_the_first_answer_to_a_sample_counts(prepared: tuple[Any, Library], tmp_path: Path) -> None:
    task, library = prepared
    log = log_of(tmp_path / "log.json", task, detections(library), again=0)
    assert score(log, library, COUNT).line == "mAP=100.000%"


def test_boxes_are_scored_against_the_category_that_the_class_means(
    prepared: tuple[Any, Library], tmp_path: Path
) -> None:
    """The other benchmark's numbers for the same things are wrong here, from category 13 on."""
    task, library = prepared
    outputs = detections(library)
    outputs[:, :, 5] += 1
    assert score(log_of(tmp_path / "log.json", task, outputs), library, COUNT).value < 20


def test_nothing_found_scores_nothing(prepared: tuple[Any, Library], tmp_path: Path) -> None:
    task, library = prepared
    log = log_of(tmp_path / "log.json", task, np.full((COUNT, 1, 6), -1, np.float32))
    assert score(log, library, COUNT).line == "mAP=0.000%"


def one_box_each(tmp_path: Path, overlap: list[float], scores: list[float]) -> AccuracyScore:
    """A score of one photo with one box each of one category, which detections overlap by so much."""
    folder = tmp_path / "data"
    options = write(folder, len(overlap))
    listing = folder / "annotations" / "instances_val2017.json"
    whole = json.loads(listing.read_text())
    whole["annotations"] = [
        {
            "id": i + 1,
            "image_id": image["id"],
            "category_id": 1,
            "bbox": [0, 0, 50, 40],
            "area": 2000,
            "iscrowd": 0,
        }
        for i, image in enumerate(whole["images"])
    ]
    listing.write_text(json.dumps(whole))
    task = open_task("coco-300", options)
    outputs = np.full((len(overlap), 1, 6), -1, np.float32)
    for i, image in enumerate(whole["images"]):
        if scores[i]:
            right, bottom = 50 * overlap[i] / image["width"], 40 / image["height"]
            outputs[i, 0] = [0, 0, bottom, right, scores[i], 1]
    return score(log_of(tmp_path / "log.json", task, outputs), task.prepare(tmp_path / "cache"), len(overlap))


def test_a_box_counts_at_the_overlaps_that_it_reaches(tmp_path: Path) -> None:
    """0.72 of the union passes 0.50 to 0.70: five of the ten thresholds."""
    assert one_box_each(tmp_path, [0.72], [0.9]).line == "mAP=50.000%"


def test_precision_is_taken_at_101_recalls(tmp_path: Path) -> None:
    """Found are two of three boxes: recalls 0 to 0.66 of 0 to 1 are reached, all of them precise."""
    assert one_box_each(tmp_path, [1, 1, 1], [0.9, 0, 0.8]).value == pytest.approx(100 * 67 / 101)


def test_a_false_box_before_a_true_one_halves_its_precision(tmp_path: Path) -> None:
    """Recall 0 to 0.5 of two boxes is reached at precision 1/2: the false one scores higher."""
    assert one_box_each(tmp_path, [0.2, 1], [0.9, 0.8]).value == pytest.approx(50 * 51 / 101)


def test_the_line_is_what_the_official_checkers_look_for(
    prepared: tuple[Any, Library], tmp_path: Path
) -> None:
    task, library = prepared
    line = score(log_of(tmp_path / "log.json", task, detections(library)), library, COUNT).line
    for name in ("v1.0", "v1.1"):
        for benchmark in ("ssd-large", "ssd-small"):
            accuracy = load_round(name).benchmarks[benchmark].accuracy
            match = re.match(accuracy.pattern, line)
            assert match and float(match[1]) == 100.0 and accuracy.metric == "mAP"


def test_damaged_responses_are_named(prepared: tuple[Any, Library], tmp_path: Path) -> None:
    _, library = prepared
    log = tmp_path / "log.json"
    row = np.array([0, 0, 0, 1, 1, 0.5, 1], "<f4")

    def why(first: bytes) -> str:
        log.write_text(json.dumps([entry(i, i, b"" if i else first) for i in range(COUNT)]))
        with pytest.raises(AccuracyError) as caught:
            score(log, library, COUNT)
        assert str(log) in str(caught.value) and "sample 0" in str(caught.value)
        return str(caught.value)

    assert "has 27 bytes, a detection has 28" in why(row.tobytes()[:-1])
    assert "calls itself sample 3" in why((row + np.eye(7, dtype="<f4")[0] * 3).tobytes())
    assert "a number that is not finite" in why((row * np.float32("nan")).tobytes())
    if library.meta["use_inv_map"]:
        assert "has class 81" in why((row + np.eye(7, dtype="<f4")[6] * 80).tobytes())


def test_classes_that_no_category_has_are_passed_over(prepared: tuple[Any, Library], tmp_path: Path) -> None:
    """SSD-MobileNet has 90 classes, ten of them COCO's gaps; to SSD-ResNet34 class 0 is the background."""
    task, library = prepared
    outputs = detections(library)
    outputs[:, 7] = [0, 0, 1, 1, 1, 0 if library.meta["use_inv_map"] else 12]
    assert score(log_of(tmp_path / "log.json", task, outputs), library, COUNT).line == "mAP=100.000%"


def test_a_sample_without_an_answer_is_named(prepared: tuple[Any, Library], tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    log.write_text(json.dumps([entry(i, i, b"") for i in range(COUNT - 1)]))
    with pytest.raises(AccuracyError, match=f"1 of {COUNT} samples have no response: {COUNT - 1}"):
        score(log, prepared[1], COUNT)
