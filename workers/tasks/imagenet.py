"""ImageNet 2012 validation for ResNet50, as the reference's imagenet.py and dataset.py (v1.0.1) read it.

The folder holds the photos and val_map.txt, a line "NAME LABEL" each, labels 0 to 999; the n-th line is
sample n, on which accuracy-imagenet.py relies. The library keeps uint8 NHWC RGB after resize and crop, a
quarter of float32's bytes; subtracting the mean is left to the model, inside the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import TaskError, check_options, nearest, random_samples, refuse_too_large
from workers.tasks.photos import (
    calibration_names,
    check_source,
    inside,
    lines_of,
    random_pixels,
    read_photo,
    refuse_missing,
)
from workers.tasks.sources import identity_of, listing_digest, source_file, source_folder
from workers.tasks.stacking import stack

SIDE = 224
SHORT_SIDE = 256  # 100 * 224 / 87.5 (dataset.py, resize_with_aspectratio)
CLASSES = 1000
_MOST_DIGITS = 9  # of a class in a list
SAMPLE_BYTES = SIDE * SIDE * 3
VAL_MAP = "val_map.txt"
# accuracy-imagenet.py --dtype, in its order; the first is its default.
RESPONSES = ("float32", "int32", "int64")
# dataset.py, pre_process_vgg: the means of R, G and B that the ONNX file of the reference wants subtracted.
VGG_MEAN = np.array([123.68, 116.78, 103.94], np.float32)
# dataset.py, pre_process_imagenet_pytorch: of pixels in 0 to 1.


class ImagenetTask:
    """ImageNet photos of `path`, or `generated` random ones; `preprocess` is that of the reference's profile.

    pytorch (profile resnet50-pytorch of today's reference, dataset imagenet_pytorch) shrinks by Pillow's
    bilinear filter, vgg (profiles resnet50-tf and -onnxruntime) by cv2's INTER_AREA.
    """

    name = "imagenet"
    ragged = False
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        known = {
            "path": "",
            "generated": 0,
            "count": 0,
            "calibration": "",
            "preprocess": "pytorch",
            "response": RESPONSES[0],
        }
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.generated: int = checked["generated"]
        self.count: int = checked["count"]
        self.calibration: str = checked["calibration"]
        self.preprocess: str = checked["preprocess"]
        self.response: str = checked["response"]
        check_source(self.name, self.path, self.generated, self.count, self.calibration)
        for key, value, choices in (
            ("preprocess", self.preprocess, list(PREPROCESS)),
            ("response", self.response, list(RESPONSES)),
        ):
            if value not in choices:
                hint = f"{key} is one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}"
                raise TaskError(f"task {self.name!r}: {hint}", key)

    def prepare(self, cache: Path) -> Library:
        """Decode, resize and crop every photo once."""
        meta = {
            "source": self.path,
            "label_dtype": self.response,
            "response": {"dtype": self.response, "shape": [1], "meaning": "class 0 to 999"},
            "input": {"dtype": "uint8", "layout": "NHWC", "shape": [SIDE, SIDE, 3], "colours": "RGB"},
        }
        if self.generated:
            return self._generate(cache, meta)
        photos, files = self._listed() if self.calibration else self._mapped()
        digest = listing_digest(f"imagenet {self.preprocess} {self.response}", files)
        meta |= {"preprocess": self.preprocess}
        meta |= {"calibration": self.calibration} if self.calibration else {"scorer": "top1"}
        shrink = PREPROCESS[self.preprocess]

        def build(writer: LibraryWriter) -> None:
            cv2.setNumThreads(1)  # the photos themselves are shared out over the cores
            writer.add_all([photo for photo, _ in photos], lambda photo: shrink(read_photo(photo)))
            if not self.calibration:
                writer.add_array("labels", np.array([label for _, label in photos], np.int64))

        return prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)

    def _generate(self, cache: Path, meta: dict[str, Any]) -> Library:
        folder = cache / f"{self.name}-generated-{self.generated}-{self.response}"
        if not folder.exists():
            refuse_too_large(self.name, cache, self.generated * SAMPLE_BYTES)

        def build(writer: LibraryWriter) -> None:
            writer.add_all(range(self.generated), lambda i: random_pixels(i, SAMPLE_BYTES))

        return prepare_library(folder, self.name, build, meta | {"generated": True})

    def _mapped(self) -> tuple[list[tuple[Path, int]], list[Path]]:
        """Photos and labels in val_map.txt's order, and every file that the library depends on."""
        folder = source_folder(self.name, self.path)
        val_map = source_file(
            self.name, folder / VAL_MAP, "it gives each photo's class, one 'NAME LABEL' a line"
        )
        photos = []
        for number, line in enumerate(lines_of(val_map), 1):
            words = line.split()
            if len(words) != 2 or not words[1].isascii() or not words[1].isdigit():
                wrong = f"{val_map}, line {number} is no 'NAME LABEL': {line[:80]!r}"
                raise TaskError(f"task {self.name!r}: {wrong}", "path")
            # A number of thousands of digits is none to Python.
            if len(words[1]) > _MOST_DIGITS or int(words[1]) >= CLASSES:
                wrong = f"{val_map}, line {number} has class {words[1]:.20}, beyond 0 to {CLASSES - 1}"
                raise TaskError(f"task {self.name!r}: {wrong}", "path")
            photos.append((inside(self.name, folder, words[0]), int(words[1])))
        if not photos:
            raise TaskError(f"task {self.name!r}: {val_map} is empty", "path")
        if self.count and len(photos) != self.count:
            wrong = f"{val_map} lists {len(photos)} photos, the manifest says {self.count}"
            raise TaskError(
                f"task {self.name!r}: {wrong}; bring what is missing or correct task.count", "count"
            )
        files = [photo for photo, _ in photos]
        identity_of(self.name, [str(file) for file in files])
        refuse_missing(self.name, files, str(val_map))
        return photos, [val_map, *files]

    def _listed(self) -> tuple[list[tuple[Path, int]], list[Path]]:
        """The photos of the calibration list in its order, without labels (-1): nothing is scored on them."""
        folder = source_folder(self.name, self.path)
        listing, names = calibration_names(self.name, self.calibration)
        files = [inside(self.name, folder, name) for name in names]
        refuse_missing(self.name, files, str(listing))
        return [(file, -1) for file in files], [listing, *files]

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, 224, 224, 3)."""
        rows = np.empty((len(samples), SIDE, SIDE, 3), np.uint8) if out is None else out[: len(samples)]
        stack(samples, rows)
        return rows

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The class in the `response` type, from classes (n,) or scores (n, 1000)."""
        labels = outputs if outputs.ndim == 1 else outputs.argmax(axis=1)
        return Responses(labels.astype(np.dtype(self.response).newbyteorder("<")).view(np.uint8))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded random pixels."""
        return random_samples(count, SAMPLE_BYTES)

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """What resnet50_v1.onnx takes: float32 NCHW, the mean subtracted."""
        if self.preprocess != "vgg":
            raise TaskError(
                f"task {self.name!r}: the reference's ONNX file takes photos prepared as vgg; "
                "set task.preprocess: vgg",
                "preprocess",
            )
        x = rows.astype(np.float32) - VGG_MEAN
        return {"input_tensor:0": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Classes 0 to 999 from ArgMax:0, else from the scores.

        A network that comes from TensorFlow counts 1001 classes, 0 the background, hence the reference's
        PostProcessCommon(offset=-1).
        """
        if "ArgMax:0" in outputs:
            return outputs["ArgMax:0"].reshape(-1).astype(np.int64) - 1, None
        scores = next(iter(outputs.values()))
        return scores.argmax(axis=1) - (scores.shape[1] - CLASSES), None


def shrink_vgg(photo: np.ndarray) -> np.ndarray:
    """pre_process_vgg up to the crop: shorter side 256 by INTER_AREA, centre 224; uint8 (224, 224, 3)."""
    height, width = photo.shape[:2]
    if height > width:
        wide, high = SHORT_SIDE, int(SHORT_SIDE * height / width)
    else:
        wide, high = int(SHORT_SIDE * width / height), SHORT_SIDE
    shrunk = cv2.resize(photo, (wide, high), interpolation=cv2.INTER_AREA)
    left, top = (wide - SIDE) // 2, (high - SIDE) // 2
    return np.ascontiguousarray(shrunk[top : top + SIDE, left : left + SIDE])


def shrink_pytorch(photo: np.ndarray) -> np.ndarray:
    """pre_process_imagenet_pytorch up to the crop: torchvision's resize and center_crop of a Pillow image.

    torchvision cuts the longer side down to a whole number and rounds the crop's corner half to even.
    """
    height, width = photo.shape[:2]
    if width <= height:
        wide, high = SHORT_SIDE, int(SHORT_SIDE * height / width)
    else:
        wide, high = int(SHORT_SIDE * width / height), SHORT_SIDE
    picture = Image.fromarray(photo)
    if (wide, high) != (width, height):
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - SIDE) / 2), round((high - SIDE) / 2)
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))


PREPROCESS = {"vgg": shrink_vgg, "pytorch": shrink_pytorch}
