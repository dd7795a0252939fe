"""A small KiTS 2019 in the layout of its repository, with the reference's list of cases beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.made_brats import blobs

WINDOW = 64  # the least that the network's five halvings leave something of to normalise
# Voxels and millimetres of the scans: too few of them, over and below half windows, and nothing to resample.
SCANS = (
    ((30, 110, 100), (3.0, 0.8, 0.8)),
    ((52, 150, 96), (2.0, 0.9, 0.9)),
    ((65, 97, 64), (1.6, 1.2, 1.2)),
)


def write(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """`count` cases below `folder`; returns the task's options."""
    rng = np.random.default_rng(seed)
    names = [f"case_{i:05}" for i in range(count)]
    for i, name in enumerate(names):
        shape, spacing = SCANS[i % len(SCANS)]
        case = folder / "data" / name
        case.mkdir(parents=True)
        labels = blobs(rng, shape, 3)
        scan = rng.normal(-60.0, 90.0, shape) + 120.0 * labels  # Hounsfield units
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        for file, voxels in (("imaging", scan.astype(np.float32)), ("segmentation", labels)):
            image = nibabel.Nifti1Image(voxels, affine)
            nibabel.save(image, case / f"{file}.nii.gz")
    cases = folder / "inference_cases.json"
    cases.write_text(json.dumps(names))
    return {"path": str(folder / "data"), "cases": str(cases), "window": WINDOW, "count": count}
