"""A small made COCO 2017 in the layout of the real one: val2017/ and annotations/instances_val2017.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.made_imagenet import picture

SIZES = ((160, 120), (121, 163), (200, 90), (64, 64))
# The 80 categories' own numbers: 1 to 90 with gaps.
CATEGORY_IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def write(folder: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """`count` photos, not in order of id, all but the second with boxes; returns the task's options."""
    (folder / "val2017").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(100, 100 + 7 * count, 7)).tolist()
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for i, image_id in enumerate(ids):
        width, height = SIZES[i % len(SIZES)]
        file_name = f"{image_id:012d}.jpg"
        picture(rng, (width, height)).save(folder / "val2017" / file_name, quality=90)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for _ in range(0 if i == 1 else int(rng.integers(1, 5))):
            boxes.append(_box(rng, len(boxes) + 1, images[-1]))
    categories = [{"id": n, "name": f"thing {n}", "supercategory": "things"} for n in CATEGORY_IDS]
    rng.shuffle(boxes)  # the real file's are in no order either
    whole = {"info": {}, "licenses": [], "images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(whole))
    return {"path": str(folder)}


def _box(rng: np.random.Generator, number: int, image: dict[str, Any]) -> dict[str, Any]:
    width = round(float(rng.uniform(0.2, 0.6)) * image["width"], 2)
    height = round(float(rng.uniform(0.2, 0.6)) * image["height"], 2)
    left = round(float(rng.uniform(0, image["width"] - width)), 2)
    top = round(float(rng.uniform(0, image["height"] - height)), 2)
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": int(rng.choice(CATEGORY_IDS[:6])),
        "bbox": [left, top, width, height],
        "area": round(0.7 * width * height, 2),
        "iscrowd": int(number % 9 == 0),
        "segmentation": [],
    }
