"""KiTS 2019: scans of kidneys of different sizes, one label a voxel back.

`path` is either the data set as its repository has it (case_00NNN/imaging.nii.gz and segmentation.nii.gz),
which is then preprocessed as the reference does (kits_volumes.py; untimed by the rules), or a folder that the
reference's preprocess.py filled (preprocessed_files.pkl and CASE.pkl: [image, labels]). `cases` is the
reference's meta/inference_cases.json; preprocessed data bring their own list. The sliding window, the sum of
its scores and the choice of a class are the model's, inside of the clock.

A sample is a volume with its shape (volume_samples.py). Responses are the labels, uint8
(1, 1, d, h, w), as base_SUT.py posts them and accuracy_kits.py reads them by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.library import Library, LibraryWriter, prepare_library
from workers.protocol import Responses
from workers.tasks import MOST_SAMPLES, WARM_UP_SEED, TaskError, check_options, refuse_too_large
from workers.tasks.kits_volumes import IMAGE_FILE, LABELS_FILE, check_labels, image_of, labels_of, peak_bytes
from workers.tasks.label_volumes import keep_volumes
from workers.tasks.reference_pickle import read_pickle
from workers.tasks.sources import identity_of, listing_digest, read_json, source_file, source_folder
from workers.tasks.volume_samples import VOXEL, pack, unpack

WINDOW = 128  # global_vars.py: ROI_SHAPE
LIST_FILE = "preprocessed_files.pkl"
# Sides of generated volumes in half windows, (depth), (height and width): what fields of view of about 380 mm
# and scans of 200 to 600 mm come to at 1.6 x 1.2 x 1.2 mm: a likeness, not the data set's own shapes.
_DEPTHS = (2, 3, 3, 4, 4, 5, 6)
_WIDTHS = (4, 5, 5, 5, 6)
# 3 x 3 x 7 windows, so that a warm-up sees whole batches of up to 32 of them and every power of two below.
_WARM_UP = (4, 4, 8)

Read = Callable[[Path], np.ndarray]


class KitsTask:
    """The cases in `path`, or `generated` random volumes; `window` is for tests."""

    name = "kits"
    ragged = False
    stacked = False
    largest_batch = 1

    def __init__(self, options: dict[str, Any]) -> None:
        known = {
            "path": "", "generated": 0, "cases": "", "count": 0, "calibration": "", "window": WINDOW,
        }  # fmt: skip
        checked = check_options(self.name, options, known)
        self.path: str = checked["path"]
        self.generated: int = checked["generated"]
        self.cases: str = checked["cases"]
        self.count: int = checked["count"]
        self.calibration: str = checked["calibration"]
        self.window: int = checked["window"]
        if bool(self.path) == bool(self.generated):
            raise self._error("set either path, the data set, or generated, a number", "path")
        if not 0 <= self.generated <= MOST_SAMPLES or self.count < 0:
            raise self._error(f"generated and count are 0 to {MOST_SAMPLES}", "generated")
        if not 4 <= self.window <= 1024 or self.window % 4:
            raise self._error(f"window is 4 to 1024 voxels, a multiple of 4, not {self.window}", "window")

    def _error(self, text: str, option: str = "path") -> TaskError:
        return TaskError(f"task {self.name!r}: {text}", option)

    def prepare(self, cache: Path) -> Library:
        """Preprocess every case once, in the list's order."""
        meta: dict[str, Any] = {
            "source": self.path,
            "input": {"dtype": "float32", "shape": [1, "d", "h", "w"]},
            "response": {"dtype": "uint8", "shape": [1, 1, "d", "h", "w"]},
        }
        if self.generated:
            return self._generate(cache, meta | {"generated": True})
        folder = source_folder(self.name, self.path)
        ready = (folder / LIST_FILE).is_file()
        if ready:
            cases = self._preprocessed(folder)
            files, image, labels = cases, self._pickled_image, self._pickled_labels
        else:
            cases = self._raw(folder)
            files = [case / file for case in cases for file in (IMAGE_FILE, LABELS_FILE)]
            image, labels = self._image, self._labels
        for file in files:
            source_file(self.name, file, self._hint(file))
        names = [case.stem for case in cases]
        digest = listing_digest(f"window={self.window} {' '.join(names)}", files)

        def build(writer: LibraryWriter) -> None:
            most = None if ready else max(peak_bytes(case, self.window) for case in cases)
            writer.add_all(cases, lambda case: pack(image(case)), peak_bytes=most)
            keep_volumes(writer, map(labels, cases))

        meta |= {"scorer": "kits", "cases": names, "identity": identity_of(self.name, sorted(names))}
        return prepare_library(cache / f"{self.name}-{digest[:16]}", self.name, build, meta)

    def _generate(self, cache: Path, meta: dict[str, Any]) -> Library:
        folder = cache / f"{self.name}-generated-{self.generated}-{self.window}"
        if not folder.exists():
            most = max(_DEPTHS) * max(_WIDTHS) ** 2 * (self.window // 2) ** 3 * VOXEL.itemsize
            refuse_too_large(self.name, cache, self.generated * most)

        def build(writer: LibraryWriter) -> None:
            writer.add_all(range(self.generated), self._random)

        return prepare_library(folder, self.name, build, meta)

    def _random(self, number: int, sides: tuple[int, ...] | None = None) -> np.ndarray:
        """A sample of standard normal voxels, of `sides` half windows or of sides by chance."""
        rng = np.random.default_rng([WARM_UP_SEED, number])
        depth, width = rng.choice(_DEPTHS), rng.choice(_WIDTHS)
        shape = np.array(sides or (depth, width, width)) * (self.window // 2)
        return pack(rng.standard_normal(tuple(shape.tolist()), np.float32))

    def _raw(self, folder: Path) -> list[Path]:
        """The cases' folders."""
        if not (self.cases or self.calibration):
            raise self._error("set cases to the reference's meta/inference_cases.json", "cases")
        return [folder / name for name in self._listed()]

    def _preprocessed(self, folder: Path) -> list[Path]:
        """The cases' pickles; its own list unless another one is given."""
        held = read_pickle(self.name, folder / LIST_FILE)
        names = held.get("file_list") if isinstance(held, dict) else None
        if self.cases or self.calibration:
            names = self._listed()
        self._check_names(names, folder / LIST_FILE, "path")
        return [folder / f"{name}.pkl" for name in names or ()]

    def _listed(self) -> list[str]:
        """The names in the list of cases or, for calibration, in that one."""
        option = "calibration" if self.calibration else "cases"
        file = source_file(self.name, Path(self.calibration or self.cases), "a JSON list of cases", option)
        names = read_json(self.name, file, option)
        self._check_names(names, file, option)
        return list(names)

    def _check_names(self, names: Any, file: Path, option: str) -> None:
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise self._error(f"{file} holds no list of case names", option)
        if bad := [name for name in names if Path(name).name != name or name in ("", ".", "..")]:
            raise self._error(f"{file} names {bad[0]!r:.40}, which is no name of a case", option)
        if self.count and len(names) != self.count:
            raise self._error(f"{file} has {len(names)} cases, task.count says {self.count}", "count")

    def _hint(self, file: Path) -> str:
        if file.stem == "case_00400" or file.parent.name == "case_00400":
            return "case_00400 is a copy of case_00185 that the reference's Makefile makes"
        return "a case of the list; bring the whole data set"

    def _image(self, case: Path) -> np.ndarray:
        return image_of(case, self.window)

    def _labels(self, case: Path) -> np.ndarray:
        return labels_of(case, self.window)

    def _pickled_image(self, case: Path) -> np.ndarray:
        image = self._pickled(case)[0]
        if image.dtype != np.float32 or not np.isfinite(image).all():
            raise self._error(f"{case} holds an image of {image.dtype}, not of finite float32")
        return image

    def _pickled_labels(self, case: Path) -> np.ndarray:
        labels = self._pickled(case)[1]
        check_labels(labels, case)
        return labels

    def _pickled(self, case: Path) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels (d, h, w), their shapes checked."""
        held = read_pickle(self.name, case)
        pair = held if isinstance(held, list | tuple) and len(held) == 2 else ()
        if len(pair) != 2 or not all(isinstance(one, np.ndarray) for one in pair):
            raise self._error(f"{case} is no pair of image and labels")
        image, labels = pair
        half, sides = self.window // 2, image.shape[1:]
        whole = len(sides) == 3 and all(s >= self.window and s % half == 0 for s in sides)
        if not whole or image.shape[0] != 1 or labels.shape != image.shape:
            wanted = f"two of one shape (1, d, h, w), multiples of {half}"
            raise self._error(f"{case} holds arrays {image.shape} and {labels.shape}, not {wanted}")
        return image[0], labels[0]

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """float32 (1, 1, d, h, w) of the one sample, in `out` if that has its shape."""
        return unpack(self.name, samples, out)

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """The labels (1, 1, d, h, w) as uint8."""
        return Responses(np.ascontiguousarray(outputs, np.uint8).reshape(-1))

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded volumes of 63 windows."""
        return [memoryview(self._random((1 << 32) + i, _WARM_UP).tobytes()) for i in range(count)]
