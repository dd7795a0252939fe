"""A small BraTS data set as the reference leaves it: preprocessed pickles and nnU-Net's folder of labels."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = [64, 32, 32]  # the smallest that five halvings leave something of to normalise
SCAN = (70, 45, 40)


def write(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """`count` cases below `folder`; returns the task's options."""
    rng = np.random.default_rng(seed)
    preprocessed = folder / "build" / "preprocessed_data"
    raw = folder / "build" / "raw_data" / "nnUNet_raw_data" / "Task043_BraTS2019"
    preprocessed.mkdir(parents=True)
    (raw / "labelsTr").mkdir(parents=True)
    names = [f"HGG__BraTS19_MADE_{i:03}_1" for i in range(count)]
    for name in names:
        cropped = [int(rng.integers(side // 2, side)) for side in SHAPE]
        first = [int(rng.integers(0, s - c + 1)) for s, c in zip(SCAN, cropped, strict=True)]
        labels = blobs(rng, SCAN, 4)
        # SimpleITK and nnU-Net count (z, y, x), a NIfTI file and nibabel (x, y, z).
        image = nibabel.Nifti1Image(labels.transpose().astype(np.uint8), np.eye(4))
        nibabel.save(image, raw / "labelsTr" / f"{name}.nii.gz")
        with open(preprocessed / f"{name}.pkl", "wb") as file:
            pickle.dump([padded(rng, cropped), properties(name, first, cropped)], file)
    with open(preprocessed / "preprocessed_files.pkl", "wb") as file:
        pickle.dump(names, file)
    return {"path": str(preprocessed), "truth": str(raw), "shape": SHAPE, "count": count}


def padded(rng: np.random.Generator, cropped: list[int]) -> np.ndarray:
    """A normalised volume with the border of zeros that pad_nd_image adds."""
    volume = np.zeros((4, *SHAPE), np.float32)
    inside = [slice((p - c) // 2, (p - c) // 2 + c) for p, c in zip(SHAPE, cropped, strict=True)]
    volume[:, *inside] = rng.standard_normal((4, *cropped), np.float32)
    return volume


def properties(name: str, first: list[int], cropped: list[int]) -> OrderedDict[str, Any]:
    """What nnU-Net's cropping and resampling note down, in their types."""
    return OrderedDict(
        original_size_of_raw_data=np.array(SCAN),
        original_spacing=np.array([1.0, 1.0, 1.0]),
        list_of_data_files=[f"imagesTr/{name}_{i:04}.nii.gz" for i in range(4)],
        seg_file=None,
        itk_origin=(-0.0, -239.0, 0.0),
        itk_spacing=(1.0, 1.0, 1.0),
        itk_direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        crop_bbox=[[f, f + c] for f, c in zip(first, cropped, strict=True)],
        classes=np.array([-1, 0]),
        size_after_cropping=tuple(cropped),
        size_after_resampling=tuple(cropped),
        spacing_after_resampling=np.array([1.0, 1.0, 1.0]),
    )


def blobs(rng: np.random.Generator, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """uint8 labels: a ball of each class above 0, each inside of the one before."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    centre = rng.uniform(-0.2, 0.2, (3, 1, 1, 1))
    distance = np.sqrt(((places - centre) ** 2).sum(0))
    labels = np.zeros(shape, np.uint8)
    for label in range(1, classes):
        labels[distance < rng.uniform(0.6, 0.8) / label] = label
    return labels
