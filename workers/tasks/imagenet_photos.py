"""A folder of labelled ImageNet photos, for networks of the EfficientNet-Lite family: 224x224, top-1 label.

The label is the number after the last underscore of a file's name (imagenet_00_243.jpg is class 243 of 0 to
999, the numbering of the official accuracy script). Preprocessing is that of the published evaluation
(github.com/tensorflow/tpu, efficientnet/lite): the centred square of 224/(224+32) of the shorter side,
bicubic to 224x224. The library keeps uint8 NHWC, a quarter of float32's bytes; the model begins with
(x - 127) / 128.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from workers.installed import LocateError, locate
from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import TaskError, check_options, random_samples
from workers.tasks.stacking import stack

SIDE = 224
CROP_PADDING = 32
CLASSES = 1000
SAMPLE_BYTES = SIDE * SIDE * 3
_LABEL = re.compile(r".*_(\d{1,4})")


class ImagenetPhotos:
    """Photos named NAME_LABEL.jpg in the folder `path`; `count`, when given, says how many there must be."""

    name = "imagenet-photos"
    ragged = False
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path": str, "pattern": "*.jpg", "count": 0}
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.pattern: str = checked["pattern"]
        self.count: int = checked["count"]
        if "/" in self.pattern or ".." in self.pattern or not self.pattern:
            raise TaskError(
                f"task {self.name!r}: pattern {self.pattern!r} must name files, not folders", "pattern"
            )
        if self.count < 0:
            raise TaskError(f"task {self.name!r}: count must be 0 (any) or more, not {self.count}", "count")

    def prepare(self, cache: Path) -> Library:
        """Decode, crop and resize every photo once; the library's name follows the photos' contents."""
        photos = self._photos()
        digest = hashlib.sha256(f"{SIDE} {CROP_PADDING} bicubic uint8".encode())
        for photo, _ in photos:
            digest.update(photo.name.encode() + b"\0" + hashlib.sha256(_read(photo)).digest())
        meta = {
            "label_dtype": "float32",
            "scorer": "top1",
            "layout": "uint8 NHWC",
            "shape": [SIDE, SIDE, 3],
            "source": self.path,
            "source_sha256": digest.hexdigest(),
        }

        def build(writer: LibraryWriter) -> None:
            writer.add_all([photo for photo, _ in photos], decode)
            writer.add_array("labels", np.array([label for _, label in photos], np.int64))

        return prepare_library(cache / f"{self.name}-{digest.hexdigest()[:16]}", self.name, build, meta)

    def _photos(self) -> list[tuple[Path, int]]:
        """The photos in order of name, each with its label."""
        try:
            folder = locate(self.path)
        except LocateError as error:
            raise TaskError(f"task {self.name!r}: {error}", "path") from None
        if not folder.is_dir():
            raise TaskError(
                f"task {self.name!r}: {folder} is no folder; set task.path to the photos' own", "path"
            )
        found = sorted(p for p in folder.glob(self.pattern) if p.is_file())
        if not found:
            raise TaskError(
                f"task {self.name!r}: {folder} holds no file that matches {self.pattern!r}", "path"
            )
        if self.count and len(found) != self.count:
            wrong = f"{folder} holds {len(found)} photos ({self.pattern}), the manifest says {self.count}"
            raise TaskError(
                f"task {self.name!r}: {wrong}; bring what is missing or correct task.count", "count"
            )
        return [(photo, self._label(photo)) for photo in found]

    def _label(self, photo: Path) -> int:
        match = _LABEL.fullmatch(photo.stem)
        if not match or int(match[1]) >= CLASSES:
            wanted = f"a name must end in _LABEL with a class of 0..{CLASSES - 1}"
            raise TaskError(f"task {self.name!r}: {photo} has no label in its name; {wanted}", "path")
        return int(match[1])

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (n, 224, 224, 3)."""
        rows = np.empty((len(samples), SIDE, SIDE, 3), np.uint8) if out is None else out[: len(samples)]
        stack(samples, rows)
        return rows

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The class label as float32, from labels (n,) or scores (n, classes)."""
        labels = outputs if outputs.ndim == 1 else outputs.argmax(axis=1)
        return Responses(labels.astype("<f4").view(np.uint8))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded random pixels."""
        return random_samples(count, SAMPLE_BYTES)


def decode(photo: Path) -> np.ndarray:
    """One photo as uint8 (224, 224, 3); TaskError names a damaged file."""
    try:
        with Image.open(photo) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise TaskError(f"{photo} is damaged or not a picture ({error}); replace it", "path") from None
    crop = min(picture.size) * SIDE // (SIDE + CROP_PADDING)
    left, top = (picture.width - crop + 1) // 2, (picture.height - crop + 1) // 2
    box = (left, top, left + crop, top + crop)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise TaskError(f"{photo} cannot be read ({error.strerror})", "path") from None
