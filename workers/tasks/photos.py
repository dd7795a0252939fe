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
# Beyond the photos of any camera, and of ImageNet and COCO by far; a file of a hundred bytes can ask for more
# than the memory, and a thin one comes to it when its shorter side is brought to 256.
_MOST_PIXELS = 100_000_000
_MOST_ASPECT = 50
_LONGEST_NAME_CHARS = 60  # that a message shows: a list may be none, and its lines nobody's business


def read_photo(path: Path) -> np.ndarray:
    """uint8 (height, width, 3), RGB: cv2.imread's pixels, whatever the file's own colours or orientation.

    TaskError names a file that is damaged, also one that is merely cut short: OpenCV fills what is missing of
    such a photo with grey and says nothing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror})", "path") from None
    _check(path, data, whole=not (data.startswith(_JPEG_START) and data.endswith(_JPEG_END)))
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise TaskError(f"{path} is damaged or not a picture ({error.err}); replace it", "path") from None
    if pixels is None:
        raise TaskError(f"{path} is damaged or not a picture; replace it", "path")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check(path: Path, data: bytes, whole: bool) -> None:
    """TaskError for a picture too large to be a photo, or a damaged one.

    `whole`: decode it too, with a decoder that objects to missing rows, as it does not end as a JPEG ends.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS or max(width, height) > _MOST_ASPECT * min(width, height):
                most = f"photos have up to {_MOST_PIXELS // 10**6} megapixels, and one side up to "
                most += f"{_MOST_ASPECT} times the other"
                raise TaskError(f"{path} is {width} x {height} pixels: {most}; replace it", "path")
            if whole:
                image.load()
    except TaskError:
        raise
    except Exception as error:
        # Pillow passes on what its decoders raise, and has a limit of its own: 179 megapixels.
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
        raise TaskError(f"task {task!r}: {name!r:.60} is listed, but lies outside of {folder}", "path")
    return folder / name


def refuse_missing(task: str, files: Sequence[Path], listed_in: str) -> None:
    """TaskError that counts the absent files and names the first. The reference passes over them, which would
    number all later samples anew."""
    missing = [file for file in files if not _is_file(file)]
    if missing:
        first = missing[0].parent / missing[0].name[:_LONGEST_NAME_CHARS]
        wrong = f"{len(missing)} of {len(files)} photos that {listed_in} lists are missing, first {first}"
        raise TaskError(f"task {task!r}: {wrong}", "path")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is longer than a disk takes
        return False


def random_pixels(number: int, size: int) -> np.ndarray:
    """uint8 (size,), the same for the same number."""
    return np.random.default_rng([WARM_UP_SEED, number]).integers(0, 256, size, np.uint8)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; TaskError if it is none."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read ({error})", "path") from None
