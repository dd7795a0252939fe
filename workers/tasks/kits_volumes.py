"""KiTS 2019's scans as the reference preprocesses them: one spacing, one range of values, whole windows.

Source: vision/medical_imaging/3d-unet-kits19 of the reference, preprocess.py and global_vars.py, whose every
step is done here at its type and in its order: the same SciPy gives the same bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

from workers.tasks import TaskError

IMAGE_FILE = "imaging.nii.gz"
LABELS_FILE = "segmentation.nii.gz"
CLASSES = 3  # background, kidney, tumor
SPACING_MM = [1.6, 1.2, 1.2]
LOWEST, HIGHEST = -79.0, 304.0  # Hounsfield units that are kept
MEAN, DEVIATION = 101.0, 76.9
PADDING = -2.2  # of the normalised image
_TASK = "task 'kits'"
_MOST_VOXELS = 1 << 30  # of a scan, before and after: 1.7 m of a body at 0.8 mm are half of them
# What image_of takes at most: of the scan float64 and float32 at once, of what it becomes four of float32.
_SCAN_BYTES, _IMAGE_BYTES = 12, 16


def image_of(case: Path, window: int) -> np.ndarray:
    """The case's scan as float32 (d, h, w), normalised, its sides multiples of half a window."""
    scan = _load(case / IMAGE_FILE)
    voxels = _voxels(scan, case / IMAGE_FILE).astype(np.float32, copy=False)
    voxels = _resample(voxels, _spacing_mm(scan, case), order=1)
    voxels = (np.clip(voxels, LOWEST, HIGHEST) - MEAN) / DEVIATION
    return fit(voxels, window, PADDING).astype(np.float32)


def peak_bytes(case: Path, window: int) -> int:
    """What image_of takes of the memory while it works, from the scan's header."""
    scan = _load(case / IMAGE_FILE)
    spacing = zip(scan.shape, _spacing_mm(scan, case), SPACING_MM, strict=True)
    after = math.prod(n * s / to + window for n, s, to in spacing)
    return max(_SCAN_BYTES * math.prod(scan.shape), int(_IMAGE_BYTES * after))


def labels_of(case: Path, window: int) -> np.ndarray:
    """The case's labels as uint8 (d, h, w), where image_of puts their voxels."""
    scan, file = _load(case / IMAGE_FILE), case / LABELS_FILE
    labels = _voxels(_load(file), file)
    if labels.shape != scan.shape:
        raise TaskError(f"{_TASK}: {file} has the shape {labels.shape}, its scan {scan.shape}", "path")
    check_labels(labels, file)
    labels = _resample(labels.astype(np.uint8, copy=False), _spacing_mm(scan, case), order=0)
    return fit(labels, window, 0).astype(np.uint8)


def check_labels(labels: np.ndarray, file: Path) -> None:
    """TaskError for a label that is none of the data set's."""
    if not np.isin(np.unique(labels), np.arange(CLASSES)).all():
        raise TaskError(f"{_TASK}: {file} holds other labels than 0 to {CLASSES - 1}; replace it", "path")


def fit(voxels: np.ndarray, window: int, padding: float) -> np.ndarray:
    """Pad to a window at least, by the border's values; then cut or pad each side to half windows.

    What is over a multiple of half a window is cut if it is less than a quarter of a window, else filled up
    with `padding`; half of either at each end, the larger half at the far one.
    """
    half = window // 2
    voxels = np.pad(voxels, [_split(max(0, window - side)) for side in voxels.shape], mode="edge")
    over = [side % half if side % half < half // 2 else 0 for side in voxels.shape]
    cuts = [_split(n) for n in over]
    voxels = voxels[tuple(slice(a, side - b) for (a, b), side in zip(cuts, voxels.shape, strict=True))]
    lacking = [-side % half for side in voxels.shape]
    lacking = [n if side + n >= window else n + half for n, side in zip(lacking, voxels.shape, strict=True)]
    return np.pad(voxels, [_split(n) for n in lacking], mode="constant", constant_values=padding)


def _split(n: int) -> tuple[int, int]:
    return n // 2, n - n // 2


def _resample(voxels: np.ndarray, spacing_mm: list[float], order: int) -> np.ndarray:
    """To SPACING_MM; what lies outside counts as the lowest value."""
    if spacing_mm == SPACING_MM:
        return voxels
    factors = np.array(spacing_mm) / np.array(SPACING_MM)
    low = voxels.min()
    found: np.ndarray = ndimage.zoom(voxels, factors, order=order, mode="constant", cval=low, grid_mode=False)
    return found


def _load(file: Path) -> Any:
    """A NIfTI file, its voxels not yet read."""
    if not file.is_file():
        hint = "the data set's starter code downloads the scans"
        if file.parent.name == "case_00400":  # the reference's Makefile: duplicate_kits19_case_00185
            hint = "case_00400 is a copy of case_00185 that the reference's Makefile makes"
        raise TaskError(f"{_TASK}: {file} is missing: {hint}", "path")
    try:
        scan: Any = nibabel.load(file)
    except Exception as error:
        # nibabel passes on what zlib and its own header checks raise for a damaged file.
        raise TaskError(
            f"{_TASK}: {file} is damaged or no NIfTI file ({error}); replace it", "path"
        ) from None
    if len(scan.shape) != 3 or 0 in scan.shape or math.prod(scan.shape) > _MOST_VOXELS:
        raise TaskError(
            f"{_TASK}: {file} has the shape {scan.shape}, not three sides of a scan; replace it", "path"
        )
    return scan


def _voxels(scan: Any, file: Path) -> np.ndarray:
    """In the file's own type, or float64 where it scales them: the values of get_fdata.

    That makes float64 of all and keeps it: 8 bytes a voxel where a scan has 2.
    """
    try:
        voxels = np.asanyarray(scan.dataobj)
    except Exception as error:
        why = str(error) or type(error).__name__
        raise TaskError(f"{_TASK}: {file} is damaged ({why}); replace it", "path") from None
    if voxels.dtype.kind not in "iuf":
        raise TaskError(f"{_TASK}: {file} holds {voxels.dtype} instead of numbers; replace it", "path")
    if not np.isfinite(voxels).all():
        raise TaskError(f"{_TASK}: {file} holds voxels that are no numbers; replace it", "path")
    return voxels


def _spacing_mm(scan: Any, case: Path) -> list[float]:
    """The distances of voxels; TaskError for such as leave no voxel, or more than the memory holds."""
    spacing: list[float] = scan.header["pixdim"][1:4].tolist()
    sides = [0.0]
    if all(0 < s < np.inf for s in spacing):
        sides = [n * s / to for n, s, to in zip(scan.shape, spacing, SPACING_MM, strict=True)]
    if min(sides) < 1 or math.prod(sides) > _MOST_VOXELS:
        wrong = f"names the spacing {spacing} mm for {scan.shape} voxels"
        raise TaskError(f"{_TASK}: {case / IMAGE_FILE} {wrong}; replace it", "path")
    return spacing
