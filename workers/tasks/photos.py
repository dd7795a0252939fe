"""Data sets of photographs: listed, found, and decoded by OpenCV as the reference reads ImageNet and COCO."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image

from workers.tasks import MOST_SAMPLES, WARM_UP_SEED, TaskError
from workers.tasks.sources import source_file

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def read_photo(path: Path) -> np.ndarray:
    """uint8 (height, width, 3), RGB: cv2.imread's pixels, whatever the file's own colours or orientation.

    TaskError names a file that is damaged, also one that is merely cut short: OpenCV fills what is missing of
    such a photo with grey and says nothing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror})", "path") from None
    if not (data.startswith(_JPEG_START) and data.endswith(_JPEG_END)):
        _check_whole(path, data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise TaskError(f"{path} is damaged or not a picture ({error.err}); replace it", "path") from None
    if pixels is None:
        raise TaskError(f"{path} is damaged or not a picture; replace it", "path")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check_whole(path: Path, data: bytes) -> None:
    """Decode a file that does not end as a JPEG ends with a decoder that objects to missing rows."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise TaskError(f"{path} is damaged or not a picture ({error}); replace it", "path") from None


def check_source(task: str, path: str, generated: int, count: int, calibration: str) -> None:
    """TaskError unless exactly one of a data set and a number of generated samples is asked for."""
    if bool(path) == bool(generated):
        wanted = "set task.path to the data set, or task.generated to a number of random samples instead"
        raise TaskError(f"task {task!r}: {wanted}{' (not both)' if path else ''}", "path")
    for key, value in (("generated", generated), ("count", count)):
        if not 0 <= value <= MOST_SAMPLES:
            raise TaskError(f"task {task!r}: {key} must be 0 to {MOST_SAMPLES}, not {value}", key)
    for key, given in (("count", count), ("calibration", calibration)):
        if given and generated:
            raise TaskError(f"task {task!r}: {key} is about a data set, and generated samples are none", key)
    if calibration and count:
        raise TaskError(f"task {task!r}: a calibration list has its own count; leave task.count out", "count")


def calibration_names(task: str, path: str) -> tuple[Path, list[str]]:
    """The list itself and its names: the first word of each line, as the reference's lists have them."""
    listing = source_file(task, Path(path).expanduser(), "it lists the calibration samples", "calibration")
    names = [words[0] for line in lines_of(listing) if (words := line.split())]
    if not names:
        raise TaskError(f"task {task!r}: {listing} names no sample", "calibration")
    return listing, names


def inside(task: str, folder: Path, name: str) -> Path:
    """The file `name` below `folder`; TaskError if it would lie elsewhere."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise TaskError(f"task {task!r}: {name!r} is listed, but lies outside of {folder}", "path")
    return folder / name


def refuse_missing(task: str, files: Sequence[Path], listed_in: str) -> None:
    """TaskError that counts the absent files and names the first. The reference passes over them, which would
    number all later samples anew."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        wrong = (
            f"{len(missing)} of {len(files)} photos that {listed_in} lists are missing, first {missing[0]}"
        )
        raise TaskError(f"task {task!r}: {wrong}", "path")


def random_pixels(number: int, size: int) -> np.ndarray:
    """uint8 (size,), the same for the same number."""
    return np.random.default_rng([WARM_UP_SEED, number]).integers(0, 256, size, np.uint8)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; TaskError if it is none."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read ({error})", "path") from None
