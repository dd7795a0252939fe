"""Mean average precision of detection, as the reference's accuracy-coco.py (v1.0.1) prints it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from orchestrator.accuracy import AccuracyError, AccuracyScore, first_answers
from workers.library import Library

# A row of a response, float32: index, ymin, xmin, ymax, xmax (parts of the photo), score, class.
ROW_NUMBERS = 7
ROW_BYTES = 4 * ROW_NUMBERS


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """COCO's mAP over IoU .50 to .95 of the samples that the log holds (array "truth").

    The class of a row is a category_id or, where the library says `use_inv_map`, the how-manieth category.
    """
    truth = json.loads(library.array("truth").tobytes())
    images = truth["images"]
    # accuracy-coco.py --use-inv-map: class 0, the background, is category 0, which nothing has.
    categories = [0, *(one["id"] for one in truth["categories"])] if library.meta.get("use_inv_map") else []
    found: list[dict[str, Any]] = []
    image_ids: list[int] = []
    digest = hashlib.sha256()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        image = images[qsl_idx]
        image_ids.append(image["id"])
        rows = _rows(path, qsl_idx, data)
        found += _detections(path, qsl_idx, rows, image, categories)
    value = 100.0 * _mean_average_precision(truth, found, image_ids)
    return AccuracyScore(
        "mAP", value, "percent", None, len(image_ids), f"mAP={value:.3f}%", digest.hexdigest()
    )


def _rows(path: Path, qsl_idx: int, data: bytes) -> np.ndarray:
    """float32 (k, 7) of one response, checked."""
    if len(data) % ROW_BYTES:
        wanted = f"a detection has {ROW_BYTES} (7 float32)"
        raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
    rows = np.frombuffer(data, "<f4").reshape(-1, ROW_NUMBERS)
    if not np.isfinite(rows).all():
        raise AccuracyError(f"{path}: the response to sample {qsl_idx} holds a number that is not finite")
    other = rows[rows[:, 0] != qsl_idx, 0]
    if len(other):
        wrong = f"calls itself sample {other[0]:g}: the first number of each row is the sample's own index"
        raise AccuracyError(f"{path}: the response to sample {qsl_idx} {wrong}")
    return rows


def _detections(
    path: Path, qsl_idx: int, rows: np.ndarray, image: dict[str, int], categories: list[int]
) -> Iterator[dict[str, Any]]:
    """The rows as pycocotools wants them: boxes in pixels as left, top, width, height.

    The products stay float32, as in the script, and become doubles at the end only.
    """
    height, width = np.float32(image["height"]), np.float32(image["width"])
    ymin, xmin, ymax, xmax = rows[:, 1] * height, rows[:, 2] * width, rows[:, 3] * height, rows[:, 4] * width
    boxes = np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=1).tolist()
    for box, confidence, number in zip(boxes, rows[:, 5].tolist(), rows[:, 6].tolist(), strict=True):
        label = int(number)
        if categories:
            if not 0 <= label < len(categories):
                known = f"the data set has categories 1 to {len(categories) - 1}"
                raise AccuracyError(f"{path}: the response to sample {qsl_idx} has class {label}; {known}")
            label = categories[label]
        yield {"image_id": image["id"], "category_id": label, "bbox": box, "score": confidence}


def _mean_average_precision(
    truth: dict[str, Any], found: list[dict[str, Any]], image_ids: list[int]
) -> float:
    """0 to 1, by pycocotools, whose prints are kept off the terminal."""
    scored = set(image_ids)
    if not any(box["image_id"] in scored and not box["iscrowd"] for box in truth["annotations"]):
        raise AccuracyError("no scored photo has an annotated box, so there is no average precision")
    if not found:  # pycocotools looks at the first detection before it asks whether there is one
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        evaluation = COCOeval(expected, expected.loadRes(found), iouType="bbox")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
