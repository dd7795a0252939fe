"""Benchmark tasks, one file each: data set, preprocessing, response bytes. No torch."""

from __future__ import annotations

import difflib
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from workers.library import Library
from workers.protocol import Responses

# Seeds every task's warm-up samples: workers warm up alike, and never on zeros, which some engines do faster.
WARM_UP_SEED = 20210406

# Above these a synthetic data set is a slip of the pen: its offsets, or one batch, would fill the memory.
MOST_SAMPLES = 1 << 24
MOST_SAMPLE_BYTES = 1 << 30
MOST_SEED = (1 << 64) - 1

_TASKS = {
    "brain-mask": ("workers.tasks.brain_mask", "BrainMaskTask"),
    "brats": ("workers.tasks.brats", "BratsTask"),
    "coco-1200": ("workers.tasks.coco", "Coco1200Task"),
    "coco-300": ("workers.tasks.coco", "Coco300Task"),
    "criteo": ("workers.tasks.criteo", "CriteoTask"),
    "imagenet": ("workers.tasks.imagenet", "ImagenetTask"),
    "imagenet-photos": ("workers.tasks.imagenet_photos", "ImagenetPhotos"),
    "kits": ("workers.tasks.kits", "KitsTask"),
    "librispeech": ("workers.tasks.librispeech", "LibrispeechTask"),
    "null": ("workers.tasks.null", "NullTask"),
    "squad": ("workers.tasks.squad", "SquadTask"),
    "tensor": ("workers.tasks.tensor", "TensorTask"),
}


# Where a module is not named as the distribution that pip installs.
_DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless"}


class TaskError(Exception):
    """A task's options or its data set are not usable; the text names the file or option, and the mend.

    `option` is the manifest's field below `task` that it is about, if it is one.
    """

    def __init__(self, text: str, option: str = "") -> None:
        super().__init__(text)
        self.option = option


class Task(Protocol):
    """What a benchmark's samples are, before and after the model.

    A ragged task's sample is a number of rows (tokens, pairs, audio samples), more or fewer of them.
    `stacked`: the model's input is the samples' bytes back to back and nothing else, and of a ragged task as
    many rows as they fill; so an engine may lay them out without `collate`.
    """

    name: str
    ragged: bool
    stacked: bool
    largest_batch: int  # most samples that one batch can hold; 0: any number

    def prepare(self, cache: Path) -> Library:
        """Preprocess once into a library below `cache`, later open it; untimed. TaskError names the file."""

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        """Sample bytes to one input array (n, ...): the first n rows of `out` if given and fitting.

        Of a ragged task: the rows of all samples, one sample after the other, (counts(samples).sum(), ...).
        """

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        """Model outputs (n, ...) to response bytes, the same in performance and accuracy tests.

        `indices` int64 (n,) are the samples' own in the data set. Of a ragged task, `outputs` are rows and
        `counts` int64 (n,) says how many of them are each sample's.
        """

    def warm_up_samples(self, count: int) -> list[memoryview]:
        """Seeded random samples of the true size, never zeros."""


class RaggedTask(Task, Protocol):
    """A task with `ragged` set."""

    def counts(self, samples: Sequence[memoryview]) -> np.ndarray:
        """Rows of each sample, int64 (n,)."""


def counts_of(task: Task, samples: Sequence[memoryview]) -> np.ndarray:
    """Rows of each sample, int64 (n,): of a task that is not ragged 1 each."""
    if not task.ragged:
        return np.ones(len(samples), np.int64)
    return np.ascontiguousarray(cast(RaggedTask, task).counts(samples), np.int64)


def open_task(name: str, options: dict[str, Any]) -> Task:
    """The task `name` with its options checked; TaskError gives the nearest name when there is none."""
    if name not in _TASKS:
        raise TaskError(
            f"there is no task {name!r}{nearest(name, _TASKS)}; tasks: {', '.join(sorted(_TASKS))}", "name"
        )
    module, kind = _TASKS[name]
    try:
        task: Task = getattr(importlib.import_module(module), kind)(options)
    except ImportError as error:
        missing = _DISTRIBUTIONS.get(error.name or "", error.name)
        raise TaskError(
            f"task {name!r} needs {missing}, which is not installed: pip install {missing}, or all that the "
            'benchmarks need: pip install -c constraints.txt -e ".[benchmarks]"'
        ) from None
    return task


def nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """' (did you mean X?)' or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_options(task: str, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`options` over `defaults`; TaskError: unknown key, wrong type, or missing and without a default.

    A default that is a type means: required, of this type.
    """
    for key in options:
        if key not in defaults:
            known = ", ".join(defaults)
            close = nearest(key, defaults)
            raise TaskError(f"task {task!r} has no option {key!r}{close}; options: {known}", key)
    checked = {}
    for key, default in defaults.items():
        kind = default if isinstance(default, type) else type(default)
        value = options.get(key)
        if value is None:
            if default is kind:
                raise TaskError(f"task {task!r} needs the option {key!r} ({kind.__name__})", key)
            value = default
        if type(value) is not kind:
            raise TaskError(f"task {task!r}: option {key!r} must be {kind.__name__}, not {value!r}", key)
        checked[key] = value
    return checked


def refuse_too_large(task: str, cache: Path, size_bytes: int) -> None:
    """TaskError if a library of `size_bytes` has no room on the disk of `cache`, which need not exist yet."""
    place = cache.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if size_bytes > free:
        raise TaskError(
            f"task {task!r}: its samples take {size_bytes / 1e9:,.1f} GB and {place} has "
            f"{free / 1e9:,.1f} GB free; lower the count or the size",
            "count",
        )


def random_samples(count: int, size: int) -> list[memoryview]:
    """`count` seeded random samples of `size` bytes."""
    data = np.random.default_rng(WARM_UP_SEED).integers(0, 256, (count, size), np.uint8)
    return [memoryview(row) for row in data]
