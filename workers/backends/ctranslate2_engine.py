"""The ctranslate2 engine: a Whisper network in CTranslate2's form, for the librispeech task alone."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workers.backends import BackendError, read_options
from workers.backends.slots import Computed, Slot, SlotBackend, threads_of
from workers.backends.weight_files import sha256_of, sha256_of_all
from workers.backends.whisper import COMPUTE_TYPES, TOKENIZER_FILE, VERSION, Whisper
from workers.installed import LocateError, locate
from workers.tasks import Task, counts_of

TASK = "librispeech"
WEIGHTS_FILE = "model.bin"
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Ctranslate2Options:
    """The manifest's `backend` section, and two facts from the driver: `device` and `workers_on_host`."""

    weights: str = ""
    weights_sha256: str = ""
    model: str = ""
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 0
    workers_on_host: int = 1


class WhisperSlot:
    """One batch in flight; CTranslate2 has the device to itself meanwhile, so there is one slot."""

    def __init__(self, whisper: Whisper, task: Task) -> None:
        self._whisper = whisper
        self._task = task
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        """Nothing of its own."""

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """See Slot."""
        began = time.perf_counter()
        rows = self._task.collate(samples)
        waveforms = np.split(rows, np.cumsum(counts_of(self._task, samples))[:-1])
        fed = time.perf_counter()
        tokens, counts = self._whisper.transcribe(waveforms)
        return Computed(tokens, counts, fed - began, time.perf_counter() - fed)


def _load(options: Ctranslate2Options) -> tuple[Whisper, dict[str, Any]]:
    """The folder's network, hashed before it is read, and its facts."""
    folder = _folder(options.weights)
    sha256 = sha256_of(folder / WEIGHTS_FILE)
    if options.weights_sha256 not in ("", sha256):
        raise BackendError(
            f"backend.weights: {folder / WEIGHTS_FILE} has sha256 {sha256}, not backend.weights_sha256"
        )
    threads = threads_of(options.threads, options.workers_on_host)
    try:
        whisper = Whisper(folder, options.device, options.precision, threads)
    except Exception as error:
        # CTranslate2 and tokenizers raise what their C++ and Rust name it; all of it is about the folder.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(f"backend.weights: {folder} holds no Whisper network ({first})") from None
    versions = {"python": platform.python_version(), "numpy": np.__version__, "ctranslate2": VERSION}
    return whisper, {
        "engine": "ctranslate2",
        "model": options.model or folder.name,
        "model_hash": sha256_of_all(_files(folder)),
        "weights": folder.name,
        "weights_sha256": sha256,
        "device": options.device,
        "precision": options.precision,
        "threads": threads,
        "versions": versions,
    }


def _folder(path: str) -> Path:
    try:
        folder = locate(path)
    except LocateError as error:
        raise BackendError(f"backend.weights: {error}") from None
    for name in (WEIGHTS_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise BackendError(f"backend.weights: {folder} holds no {name}; it must be a CTranslate2 folder")
    return folder


def _files(folder: Path) -> dict[str, Path]:
    """The network's: its layers' sizes, its words and how it counts them lie beside the weights.

    CTranslate2 reads no folders in the folder, and no hidden files: what a download leaves there is no part.
    """
    return {file.name: file for file in folder.iterdir() if file.is_file() and file.name[0] != "."}


def open_engine(options: Mapping[str, Any], task: Task, max_batch: int) -> SlotBackend:
    """A ctranslate2 backend with its options checked."""
    checked = read_options(Ctranslate2Options, options)
    if not checked.weights:
        raise BackendError("the ctranslate2 engine needs a network: set backend.weights to its folder")
    if checked.precision not in COMPUTE_TYPES:
        known = ", ".join(COMPUTE_TYPES)
        raise BackendError(f"backend.precision of ctranslate2 is one of {known}, not {checked.precision!r}")
    if checked.device not in DEVICES:
        raise BackendError(f"backend.device is one of {', '.join(DEVICES)}, not {checked.device!r}")
    if min(checked.threads, checked.workers_on_host) < 0:
        raise BackendError("backend.threads must not be negative")
    if task.name != TASK:
        raise BackendError(f"the ctranslate2 engine transcribes speech: task {TASK!r}, not {task.name!r}")

    def load() -> tuple[list[Slot], dict[str, Any]]:
        whisper, facts = _load(checked)
        return [WhisperSlot(whisper, task)], facts

    return SlotBackend(f"{checked.weights} on {checked.device}", task, max_batch, load)
