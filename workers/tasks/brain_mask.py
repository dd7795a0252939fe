"""Scans of heads whose brain is to be found: for the segmentation example, in the open division.

`path` is a folder of NIfTI files, `heads` names the scans and `masks`, in the same order, files of the same
geometry in which what is not 0 is brain. The defaults are those of Debian's package mricron-data: ch2 is one
head, averaged over 27 scans (Holmes et al. 1998), ch2bet its brain as FSL's BET extracted it.

A sample is the whole head in the orientation that nibabel calls closest to canonical, with its shape
(volume_samples.py); responses are masks, uint8 (1, 1, d, h, w), 1 for brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import WARM_UP_SEED, TaskError, check_options
from workers.tasks.label_volumes import keep_volumes
from workers.tasks.sources import listing_digest, source_file, source_folder
from workers.tasks.volume_samples import pack, unpack

_WARM_UP = (96, 112, 96)  # voxels


class BrainMaskTask:
    """One sample a head."""

    name = "brain-mask"
    ragged = False
    stacked = False
    largest_batch = 1

    def __init__(self, options: dict[str, Any]) -> None:
        known = {"path": str, "heads": ["ch2.nii.gz"], "masks": ["ch2bet.nii.gz"]}
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.heads: list[str] = checked["heads"]
        self.masks: list[str] = checked["masks"]
        names = [*self.heads, *self.masks]
        if len(self.heads) != len(self.masks) or not names or not all(isinstance(n, str) for n in names):
            raise TaskError(
                f"task {self.name!r}: heads and masks are names of files, one mask a head", "heads"
            )

    def prepare(self, cache: Path) -> Library:
        """Read every head and its mask."""
        folder = source_folder(self.name, self.path)
        why = "Debian's mricron-data installs ch2.nii.gz and ch2bet.nii.gz in /usr/share/mricron/templates"
        heads = [source_file(self.name, folder / name, why) for name in self.heads]
        masks = [source_file(self.name, folder / name, why, "masks") for name in self.masks]
        meta = {
            "source": self.path,
            "scorer": "mask",
            "input": {"dtype": "float32", "shape": [1, "d", "h", "w"]},
            "response": {"dtype": "uint8", "shape": [1, 1, "d", "h", "w"]},
        }

        def build(writer: LibraryWriter) -> None:
            writer.add_all(heads, lambda head: pack(self._voxels(head)))
            keep_volumes(writer, (self._mask(*pair) for pair in zip(heads, masks, strict=True)))

        digest = listing_digest("canonical", [*heads, *masks])
        return prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)

    def _voxels(self, file: Path) -> np.ndarray:
        """float32 (d, h, w), the axes from left to right, from back to front and upwards."""
        try:
            image: Any = nibabel.as_closest_canonical(nibabel.load(file))
            voxels: np.ndarray = image.get_fdata(dtype=np.float32)
        except Exception as error:
            # nibabel passes on what zlib and its own header checks raise for a damaged file.
            why = f"{file} is damaged or no NIfTI file ({error}); replace it"
            raise TaskError(f"task {self.name!r}: {why}", "path") from None
        if voxels.ndim != 3:
            raise TaskError(f"task {self.name!r}: {file} has {voxels.ndim} axes, not 3", "path")
        return np.nan_to_num(voxels)

    def _mask(self, head: Path, file: Path) -> np.ndarray:
        mask, shape = self._voxels(file) > 0, self._voxels(head).shape
        if mask.shape != shape:
            raise TaskError(
                f"task {self.name!r}: {file} has the shape {mask.shape}, its head {shape}", "masks"
            )
        return mask.astype(np.uint8)

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """float32 (1, 1, d, h, w) of the one sample."""
        return unpack(self.name, samples, out)

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The masks as uint8."""
        return Responses(np.ascontiguousarray(outputs, np.uint8).reshape(-1))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """A bright ball in noise: in mere noise no network finds a brain."""
        places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in _WARM_UP), indexing="ij"))
        ball = 100.0 * (np.sqrt((places**2).sum(0)) < 0.7)
        rng = np.random.default_rng(WARM_UP_SEED)
        return [memoryview(pack(ball + rng.uniform(0, 20, _WARM_UP)).tobytes()) for _ in range(count)]
