"""COCO 2017 validation for the two SSD networks, as the reference's coco.py and dataset.py (v1.0.1) read it.

The folder holds val2017/ and annotations/instances_val2017.json. Sample n is the n-th entry of the file's
"images", on which accuracy-coco.py relies; all 5,000 are kept (the reference's own ssd-resnet34-pytorch
profile leaves out the 48 without a box and then disagrees with the script:
github.com/mlcommons/inference/issues/788).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import WARM_UP_SEED, TaskError, check_options, nearest, refuse_too_large
from workers.tasks.photos import (
    calibration_names,
    check_source,
    inside,
    random_pixels,
    read_photo,
    refuse_missing,
)
from workers.tasks.sources import listing_digest, read_json, source_file, source_folder
from workers.tasks.stacking import stack

ANNOTATIONS = "annotations/instances_val2017.json"
PHOTOS = "val2017"
# calibration/COCO/coco_cal_images_list.txt names photos of the training set.
CALIBRATION_PHOTOS = "train2017"
# A response's row, float32 (accuracy-coco.py): the sample's own index, a box relative to the photo, ...
ROW = ("index", "ymin", "xmin", "ymax", "xmax", "score", "class")
# dataset.py, pre_process_coco_resnet34: of pixels in 0 to 1.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
# coco.py: PostProcessCocoPt of ssd-resnet34 drops what scores less.
SCORE_THRESHOLD = 0.05
NO_DETECTION = -1.0
_LARGEST = 1 << 53  # of the file's whole numbers: as far as float64 counts


class CocoTask:
    """What the two tasks share: `side` pixels square, detections (n, K, 6) in, rows of 7 out."""

    name: str
    ragged = False
    stacked = True
    largest_batch = 0
    # Whether class k of a response is the k-th category instead of category_id k: --use-inv-map.
    use_inv_map: bool

    def __init__(self, options: dict[str, Any], own: dict[str, Any], side: int) -> None:
        known = {"path": "", "generated": 0, "count": 0, "calibration": "", **own}
        self.options = check_options(self.name, options, known)
        self.path: str = self.options["path"]
        self.generated: int = self.options["generated"]
        self.count: int = self.options["count"]
        self.calibration: str = self.options["calibration"]
        check_source(self.name, self.path, self.generated, self.count, self.calibration)
        self.side: int = self.options.get("image_size", side)
        if not 1 <= self.side <= side:
            wrong = f"image_size must be 1 to {side} pixels, not {self.side}; {side} is the benchmark's"
            raise TaskError(f"task {self.name!r}: {wrong}", "image_size")
        self.dtype = np.dtype(self.options.get("dtype", "uint8"))
        floats = self.dtype == np.float32
        self.shape = (3, self.side, self.side) if floats else (self.side, self.side, 3)
        self.sample_bytes = self.side * self.side * 3 * self.dtype.itemsize

    def prepared(self, photo: np.ndarray) -> np.ndarray:
        """An RGB photo of any size as one sample."""
        raise NotImplementedError

    def prepare(self, cache: Path) -> Library:
        """Decode and resize every photo once; keep what the scorer needs of the annotations."""
        layout = "NCHW" if self.dtype == np.float32 else "NHWC"
        meta = {
            "source": self.path,
            "use_inv_map": self.use_inv_map,
            "response": {"dtype": "float32", "rows_of": list(ROW)},
            "input": {
                "dtype": self.dtype.name,
                "layout": layout,
                "shape": list(self.shape),
                "colours": "RGB",
            },
        }
        if self.generated:
            return self._generate(cache, meta)
        folder = source_folder(self.name, self.path)
        truth: dict[str, Any] = {}
        if self.calibration:
            listed, names = calibration_names(self.name, self.calibration)
            photos = [inside(self.name, folder / CALIBRATION_PHOTOS, name) for name in names]
            meta |= {"calibration": self.calibration}
        else:
            listed = source_file(self.name, folder / ANNOTATIONS, "it lists the photos and their boxes")
            truth, names = read_annotations(self.name, listed, self.count)
            photos = [inside(self.name, folder / PHOTOS, name) for name in names]
            meta |= {"scorer": "coco"}
        refuse_missing(self.name, photos, str(listed))
        digest = listing_digest(f"{self.name} {self.side} {self.dtype.name}", [listed, *photos])

        def build(writer: LibraryWriter) -> None:
            cv2.setNumThreads(1)  # the photos themselves are shared out over the cores
            writer.add_all(photos, lambda photo: self.prepared(read_photo(photo)))
            if truth:
                writer.add_array("truth", np.frombuffer(json.dumps(truth).encode(), np.uint8))

        return prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)

    def _generate(self, cache: Path, meta: dict[str, Any]) -> Library:
        folder = cache / f"{self.name}-generated-{self.generated}-{self.side}-{self.dtype.name}"
        if not folder.exists():
            refuse_too_large(self.name, cache, self.generated * self.sample_bytes)

        def build(writer: LibraryWriter) -> None:
            writer.add_all(range(self.generated), self._random)

        return prepare_library(folder, self.name, build, meta | {"generated": True})

    def _random(self, number: int) -> np.ndarray:
        pixels = random_pixels(number, self.side * self.side * 3).reshape(self.side, self.side, 3)
        return normalise(pixels.astype(np.float32)) if self.dtype == np.float32 else pixels

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, side, side, 3) or float32 (n, 3, side, side)."""
        n = len(samples)
        rows = np.empty((n, *self.shape), self.dtype) if out is None else out[:n]
        stack(samples, rows)
        return rows

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """Rows of ROW from detections (n, K, 6) without the index; a score below 0 marks a row as unused.

        A photo on which nothing was found is answered with no byte at all, as the reference's PostProcessCoco
        answers it and accuracy-coco.py expects it.
        """
        used = outputs[:, :, 4] >= 0
        each = used.sum(axis=1)
        rows = np.empty((int(each.sum()), len(ROW)), "<f4")
        rows[:, 0] = np.repeat(indices, each)
        rows[:, 1:] = outputs[used]
        return Responses(rows.reshape(-1).view(np.uint8), each.astype(np.int64) * rows.itemsize * len(ROW))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded random pixels."""
        return [memoryview(self._random(WARM_UP_SEED + i).tobytes()) for i in range(count)]


class Coco1200Task(CocoTask):
    """1200x1200 for SSD-ResNet34, whose class k is the k-th of the 80 categories.

    `dtype` uint8 holds the pixels that the reference's tools/upscale_coco writes (8 bits, bilinear), NHWC;
    the model normalises them inside the clock. float32 holds what pre_process_coco_resnet34 makes, to the
    bit, normalised NCHW: there a resized pixel keeps its fraction, at most 0.8 of 255 away (measured).
    uint8 is the default because float32 takes 17.3 MB a photo, 86 GB for the accuracy set instead of 22.
    A smaller `image_size` is for trying things out.
    """

    name = "coco-1200"
    use_inv_map = True

    def __init__(self, options: dict[str, Any]) -> None:
        dtype, known = options.get("dtype", "uint8"), ["uint8", "float32"]
        if isinstance(dtype, str) and dtype not in known:
            wrong = f"dtype is one of {', '.join(known)}, not {dtype!r}{nearest(dtype, known)}"
            raise TaskError(f"task {self.name!r}: {wrong}", "dtype")
        super().__init__(options, {"dtype": "uint8", "image_size": 1200}, side=1200)

    def prepared(self, photo: np.ndarray) -> np.ndarray:
        """See the class."""
        if self.dtype == np.float32:
            return normalise(_resized(photo.astype(np.float32), self.side))
        return _resized(photo, self.side)

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """What resnet34-ssd1200.onnx takes, one photo at a time: float32 NCHW, normalised."""
        if rows.dtype != np.float32:
            rows = np.stack([normalise(row.astype(np.float32)) for row in rows])
        return {"image": rows}

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Detections (n, K, 6) from bboxes (n, K, 4: left, top, right, bottom), labels and scores (n, K).

        Kept is what scores 0.05, as in the reference's PyTorch and TensorFlow profiles of the same network;
        its ONNX profile alone drops all below 0.5, which can only lower the mAP.
        """
        boxes = outputs["bboxes"][:, :, [1, 0, 3, 2]]
        return _detections(boxes, outputs["scores"], outputs["labels"], SCORE_THRESHOLD), None


class Coco300Task(CocoTask):
    """300x300 for SSD-MobileNet-v1, whose class is the category_id itself: uint8 NHWC.

    The pixels are those of pre_process_coco_mobilenet to the bit (profiles -tf and -onnxruntime): resized as
    float32, then cut down to whole numbers.
    """

    name = "coco-300"
    use_inv_map = False

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options, {}, side=300)

    def prepared(self, photo: np.ndarray) -> np.ndarray:
        """See the class."""
        return _resized(photo.astype(np.float32), self.side).astype(np.uint8)

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """What ssd_mobilenet_v1_coco_2018_01_28.onnx takes: uint8 NHWC; it normalises by itself."""
        return {"image_tensor:0": rows}

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Detections (n, K, 6): the first num_detections rows of boxes, scores and classes are used."""
        scores = outputs["detection_scores:0"]
        found = outputs["num_detections:0"].reshape(-1, 1).astype(np.int64)
        scores = np.where(np.arange(scores.shape[1]) < found, scores, NO_DETECTION)
        boxes, classes = outputs["detection_boxes:0"], outputs["detection_classes:0"]
        return _detections(boxes, scores, classes, 0.0), None


def normalise(photo: np.ndarray) -> np.ndarray:
    """float32 (height, width, 3) of 0 to 255 -> (3, height, width) about 0, in the reference's steps."""
    photo = photo / np.float32(255.0) - MEAN
    return np.ascontiguousarray((photo / STD).transpose(2, 0, 1))


def _resized(photo: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(photo, (side, side), interpolation=cv2.INTER_LINEAR)


def _detections(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """float32 (n, K, 6) from boxes (n, K, 4: ymin, xmin, ymax, xmax), scores and classes (n, K)."""
    scores = np.where(scores >= threshold, scores, NO_DETECTION)
    return np.concatenate([boxes, scores[:, :, None], classes[:, :, None]], axis=2, dtype=np.float32)


def read_annotations(task: str, path: Path, count: int) -> tuple[dict[str, Any], list[str]]:
    """What scoring needs of instances_val2017.json, and the photos' file names, both in the file's order."""

    def refuse(wrong: str, option: str = "path") -> TaskError:
        return TaskError(f"task {task!r}: {path}: {wrong}", option)

    coco = read_json(task, path)
    try:
        images = [_image(one) for one in _each(coco, "images", refuse)]
        names = [_name(one) for one in coco["images"]]
        categories = [{"id": _whole(one, "id"), "name": str(one["name"])} for one in coco["categories"]]
        known = {one["id"] for one in images}
        boxes = [_box(one) for one in _each(coco, "annotations", refuse) if one["image_id"] in known]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise refuse(f"an entry is damaged ({why:.120}); bring the file anew") from None
    if len(known) != len(images):
        raise refuse("two photos have the same id")
    if count and len(images) != count:
        wrong = f"it lists {len(images)} photos, the manifest says {count}"
        raise refuse(f"{wrong}; bring what is missing or correct task.count", "count")
    return {"images": images, "categories": categories, "annotations": boxes}, names


def _each(coco: dict[str, Any], key: str, refuse: Callable[[str], TaskError]) -> list[dict[str, Any]]:
    if not coco[key]:
        raise refuse(f"its list {key!r} is empty")
    return coco[key]


def _image(entry: dict[str, Any]) -> dict[str, int]:
    return {key: _whole(entry, key) for key in ("id", "height", "width")}


def _name(entry: dict[str, Any]) -> str:
    if not isinstance(entry["file_name"], str):
        raise TypeError("a file_name is no text")
    return entry["file_name"]


def _whole(entry: dict[str, Any], key: str) -> int:
    number = _finite(entry[key], key)
    if abs(number) > _LARGEST:
        raise ValueError(f"{key} is {number:g}")
    return int(entry[key])


def _finite(value: Any, key: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf  # a whole number of hundreds of digits
    if not math.isfinite(number):
        raise ValueError(f"{key} is no finite number")
    return number


def _box(entry: dict[str, Any]) -> dict[str, Any]:
    left, top, width, height = (_finite(number, "bbox") for number in entry["bbox"])
    whole = {key: _whole(entry, key) for key in ("id", "image_id", "category_id", "iscrowd")}
    return whole | {"bbox": [left, top, width, height], "area": _finite(entry["area"], "area")}
