"""BraTS 2019, fold 1: preprocessed brain volumes of four modalities, four classes' logits back.

Reads what preprocess.py of the reference's vision/medical_imaging/3d-unet (v1.0.1) wrote: a folder with
preprocessed_files.pkl, the list of cases, and a pickle CASE.pkl for each: [float32 (4, 224, 224, 160),
nnU-Net's properties of the case]. Cropping, resampling, normalisation and padding are done there, untimed as
the rules allow, and what is kept here is its result unchanged; with `dtype: float16` it is converted to a
numerical format of the rules' list, which is untimed as well.

Responses are the logits, float16 (4, 224, 224, 160), as pytorch_SUT.py posts them and accuracy-brats.py reads
them by default. `truth` is the folder of Task043_BraTS2019 that the reference's Task043_BraTS_2019.py made
(or its labelsTr): the labels are needed to score, not to run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import (
    MOST_SAMPLES,
    WARM_UP_SEED,
    TaskError,
    check_options,
    refuse_too_large,
)
from workers.tasks.label_volumes import keep_volumes
from workers.tasks.reference_pickle import read_pickle
from workers.tasks.sources import identity_of, listing_digest, source_file, source_folder
from workers.tasks.stacking import stack

MODALITIES = 4
CLASSES = 4
SHAPE = [224, 224, 160]  # the patch size in the reference's plans, to which every volume is padded
DTYPES = ("float32", "float16")
LIST_FILE = "preprocessed_files.pkl"
LABELS_FOLDER = "labelsTr"
_LONGEST_SIDE = 4096


def _voxels(number: Any) -> int:
    """A side or place in a scan; OverflowError for one that no scan has."""
    if not 0 <= number <= _LONGEST_SIDE:
        raise OverflowError(f"a number beyond 0 to {_LONGEST_SIDE}")
    return int(number)


class BratsTask:
    """Volumes (4, *shape) of the cases in `path`, or `generated` random ones; `shape` is for tests."""

    name = "brats"
    ragged = False
    stacked = True
    largest_batch = 0

    def __init__(self, options: dict[str, Any]) -> None:
        known = {
            "path": "", "generated": 0, "truth": "", "count": 0, "dtype": "float32", "calibration": "",
            "shape": SHAPE,
        }  # fmt: skip
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.generated: int = checked["generated"]
        self.truth: str = checked["truth"]
        self.count: int = checked["count"]
        self.calibration: str = checked["calibration"]
        self._sides: list[int] = checked["shape"]
        if checked["dtype"] not in DTYPES:
            raise self._error(f"dtype is {' or '.join(DTYPES)}, not {checked['dtype']!r}", "dtype")
        if bool(self.path) == bool(self.generated):
            raise self._error("set either path, the preprocessed data, or generated, a number", "path")
        if not 0 <= self.generated <= MOST_SAMPLES or self.count < 0:
            raise self._error(f"generated and count are 0 to {MOST_SAMPLES}", "generated")
        if len(self._sides) != 3 or any(
            type(s) is not int or not 0 < s <= _LONGEST_SIDE for s in self._sides
        ):
            raise self._error(f"shape is three sides, such as {SHAPE}, not {self._sides}", "shape")
        self.dtype = np.dtype(checked["dtype"]).newbyteorder("<")
        self.shape = (MODALITIES, *self._sides)
        self.sample_bytes = math.prod(self.shape) * self.dtype.itemsize

    def _error(self, text: str, option: str = "path") -> TaskError:
        return TaskError(f"task {self.name!r}: {text}", option)

    def prepare(self, cache: Path) -> Library:
        """Read every pickle once, in the list's order."""
        meta = {
            "source": self.path,
            "input": {"dtype": self.dtype.name, "shape": list(self.shape)},
            "response": {"dtype": "float16", "shape": [CLASSES, *self._sides]},
        }
        parameters = f"{meta['input']} calibration={self.calibration}"
        if self.generated:
            return self._generate(cache, meta | {"generated": True})
        cases = self._cases()
        labels = self._labels([case.stem for case in cases])
        refuse_too_large(self.name, cache, len(cases) * self.sample_bytes)
        digest = listing_digest(parameters, [*cases, *labels])

        def build(writer: LibraryWriter) -> None:
            writer.add_all(cases, lambda case: self._volume(self._read(case)[0], case))
            if labels:
                facts = [self._geometry(self._read(case)[1], case) for case in cases]
                keep_volumes(writer, (self._truth(*one) for one in zip(labels, facts, strict=True)))
                writer.add_array("geometry", np.array([fact["geometry"] for fact in facts], np.int64))

        # Without labels as well: the scorer then says what is missing.
        names = [case.stem for case in cases]
        meta |= {"scorer": "brats", "cases": names, "identity": identity_of(self.name, sorted(names))}
        return prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)

    def _generate(self, cache: Path, meta: dict[str, Any]) -> Library:
        """Standard normal voxels: what the reference's normalisation makes of a brain, without the border."""
        sides = "x".join(map(str, self._sides))
        folder = cache / f"{self.name}-generated-{self.generated}-{sides}-{self.dtype.name}"
        if not folder.exists():
            refuse_too_large(self.name, cache, self.generated * self.sample_bytes)

        def build(writer: LibraryWriter) -> None:
            writer.add_all(range(self.generated), self._random)

        return prepare_library(folder, self.name, build, meta)

    def _random(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([WARM_UP_SEED, number])
        return rng.standard_normal(self.shape, np.float32).astype(self.dtype)

    def _cases(self) -> list[Path]:
        """The cases' pickles, in the order of the samples."""
        folder = source_folder(self.name, self.path)
        made = "the reference's `make preprocess_data` writes it"
        names = read_pickle(self.name, source_file(self.name, folder / LIST_FILE, made))
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise self._error(f"{folder / LIST_FILE} holds no list of case names")
        if self.calibration:
            names = self._calibrating(set(names))
        if bad := [name for name in names if Path(name).name != name or name in ("", ".", "..")]:
            raise self._error(f"{folder / LIST_FILE} names {bad[0]!r:.40}, which is no name of a case")
        if self.count and len(names) != self.count:
            raise self._error(f"{folder} has {len(names)} cases, task.count says {self.count}", "count")
        missing = f"a case of {LIST_FILE}; {made}"
        return [source_file(self.name, folder / f"{name}.pkl", missing) for name in names]

    def _calibrating(self, known: set[str]) -> list[str]:
        """The cases of the calibration list (calibration/BraTS/brats_cal_images_list.txt), in its order."""
        file = source_file(self.name, Path(self.calibration), "the calibration list", "calibration")
        try:
            names = file.read_text(errors="replace").split()
        except OSError as error:
            raise self._error(f"{file} cannot be read ({error.strerror})", "calibration") from None
        absent = [name for name in names if name not in known]
        if absent or not names:
            what = f"{absent[0]!r:.40}, which is not among the preprocessed cases" if absent else "no case"
            mend = "give preprocess.py this list as --validation_fold_file"
            raise self._error(f"{file} names {what}; {mend}", "calibration")
        return names

    def _labels(self, names: list[str]) -> list[Path]:
        """The cases' label files; none when `truth` is not set."""
        if not self.truth:
            return []
        folder = source_folder(self.name, self.truth, "truth")
        folder = folder / LABELS_FOLDER if (folder / LABELS_FOLDER).is_dir() else folder
        missing = "the labels of a case; the reference's Task043_BraTS_2019.py writes it"
        return [source_file(self.name, folder / f"{name}.nii.gz", missing, "truth") for name in names]

    def _read(self, case: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """A case's volume and properties."""
        held = read_pickle(self.name, case)
        if not isinstance(held, list | tuple) or len(held) != 2:
            raise self._error(f"{case} is no pair of volume and properties")
        volume, properties = held
        if not isinstance(volume, np.ndarray) or not isinstance(properties, Mapping):
            raise self._error(f"{case} is no pair of volume and properties")
        return volume, dict(properties)

    def _volume(self, volume: np.ndarray, case: Path) -> np.ndarray:
        if volume.shape != self.shape or volume.dtype.kind != "f" or not np.isfinite(volume).all():
            is_ = f"{volume.dtype} {volume.shape}"
            if volume.shape == self.shape and volume.dtype.kind == "f":
                is_ = "of voxels that are no numbers"
            raise self._error(f"{case} holds a volume {is_}, not finite float32 {self.shape}")
        return volume.astype(self.dtype)

    def _geometry(self, properties: dict[str, Any], case: Path) -> dict[str, Any]:
        """Where the volume lies in the scan: `geometry` is (size of the scan, first voxel, size cropped)."""
        try:
            scan = [_voxels(n) for n in properties["original_size_of_raw_data"]]
            first = [_voxels(low) for low, _ in properties["crop_bbox"]]
            cropped = [_voxels(n) for n in properties["size_after_cropping"]]
            resampled = [_voxels(n) for n in properties.get("size_after_resampling", cropped)]
        except KeyError as error:
            raise self._error(f"{case}: its properties lack {error}; preprocess it anew") from None
        except (TypeError, ValueError, OverflowError) as error:
            wrong = f"its sizes or its crop_bbox are damaged ({error!s:.80})"
            raise self._error(f"{case}: {wrong}; preprocess it anew") from None
        inside = all(f >= 0 and f + c <= s for s, f, c in zip(scan, first, cropped, strict=False))
        fits = all(0 < c <= side for c, side in zip(cropped, self._sides, strict=False))
        if not (len(scan) == len(first) == len(cropped) == 3 and inside and fits and resampled == cropped):
            raise self._error(f"{case}: crop {first} {cropped} of {scan} does not fit {self._sides}")
        return {"scan": tuple(scan), "geometry": [scan, first, cropped]}

    def _truth(self, file: Path, facts: dict[str, Any]) -> np.ndarray:
        """Labels uint8 in the order of nnU-Net's arrays (z, y, x); nibabel reads x first."""
        try:
            labels = np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
        except Exception as error:
            # nibabel passes on what zlib, its header checks and NumPy raise for a damaged file.
            raise self._error(f"{file} is damaged or no NIfTI file ({error}); replace it", "truth") from None
        labels = labels.transpose() if labels.ndim == 3 else labels
        if labels.shape != facts["scan"]:
            raise self._error(f"{file} has the shape {labels.shape}, its case {facts['scan']}", "truth")
        if not np.isin(np.unique(labels), np.arange(CLASSES)).all():
            mend = "convert them by the reference's Task043_BraTS_2019.py (BraTS' own label 4 becomes 3)"
            raise self._error(f"{file} holds other labels than 0 to {CLASSES - 1}: {mend}", "truth")
        return labels.astype(np.uint8)

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """(n, 4, 224, 224, 160) of `dtype`."""
        n = len(samples)
        rows = np.empty((n, *self.shape), self.dtype) if out is None else out[:n]
        stack(samples, rows)
        return rows

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The logits (n, 4, 224, 224, 160) as float16."""
        logits = np.ascontiguousarray(outputs, "<f2")
        return Responses(logits.reshape(-1).view(np.uint8))

    def onnx_inputs(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """As onnxruntime_SUT.py feeds 224_224_160.onnx (one volume a batch) and its dynamic sibling."""
        return {"input": rows.astype(np.float32, copy=False)}

    def onnx_outputs(
        self, outputs: dict[str, np.ndarray], counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The one of the file's five outputs that the reference answers."""
        return outputs["output"], None

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded standard normal volumes."""
        return [memoryview(self._random(MOST_SAMPLES + i).tobytes()) for i in range(count)]
