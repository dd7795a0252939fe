"""The ctranslate2 engine: a Whisper network in CTranslate2's form, for the librispeech task alone.

One thread computes one batch at a time; results reach the worker's loop through a deque and an eventfd.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from workers.backends import FAR, BackendError, Batch, Done, read_options
from workers.backends.whisper import COMPUTE_TYPES, TOKENIZER_FILE, Whisper
from workers.installed import LocateError, locate
from workers.tasks import Task

TASK = "librispeech"
WEIGHTS_FILE = "model.bin"
JOIN_TIMEOUT_S = 5.0


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


class Ctranslate2Backend:
    """One network on one device; see Backend for the methods."""

    needs_samples = True

    def __init__(self, options: Ctranslate2Options, task: Task, max_batch: int) -> None:
        self.max_batch = max_batch
        self._options = options
        self._task = task
        self._whisper: Whisper | None = None
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._results: deque[Done | BackendError] = deque()
        self._busy = False
        self._failure: BackendError | None = None
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="ctranslate2", daemon=True)

    def load(self) -> dict[str, Any]:
        """Hash and load the folder's weights, then start the thread."""
        options = self._options
        folder = _folder(options.weights)
        sha256 = _sha256(folder / WEIGHTS_FILE)
        if options.weights_sha256 not in ("", sha256):
            raise BackendError(
                f"backend.weights: {folder / WEIGHTS_FILE} has sha256 {sha256}, not backend.weights_sha256"
            )
        threads = options.threads or max(1, len(os.sched_getaffinity(0)) // max(1, options.workers_on_host))
        try:
            self._whisper = Whisper(folder, options.device.partition(":")[0], options.precision, threads)
        except Exception as error:
            # CTranslate2 and tokenizers raise what their C++ and Rust name it; all of it is about the folder.
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(f"backend.weights: {folder} holds no Whisper network ({first})") from None
        self._thread.start()
        return {
            "engine": "ctranslate2",
            "model": options.model or folder.name,
            "model_hash": sha256,
            "weights": folder.name,
            "weights_sha256": sha256,
            "device": options.device,
            "precision": options.precision,
            "threads": threads,
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "ctranslate2": metadata.version("ctranslate2"),
            },
        }

    def warm_up(self) -> list[tuple[int, float]]:
        """One batch of one sample and one of max_batch, after one that only loads what is loaded late."""
        times = []
        for size in (1, *sorted({1, self.max_batch})):
            samples = self._task.warm_up_samples(size)
            began = time.monotonic_ns()
            self.submit(Batch(np.zeros(size, np.int64), samples, None))
            while not (done := self.step()):
                select.select([self._fd], [], [])
            times.append((size, (done[0].computed_ns - began) / 1e9))
        return times[1:]

    def submit(self, batch: Batch) -> None:
        """Hand the batch to the thread."""
        size = len(batch.samples)
        if self._busy or not 0 < size <= self.max_batch:
            raise BackendError(
                f"a batch of {size} samples cannot be submitted now (max_batch {self.max_batch})"
            )
        self._busy = True
        self._inbox.put(batch)

    def step(self) -> list[Done]:
        """What the thread has finished; BackendError once it has failed."""
        if self._failure:
            raise self._failure
        # Read before the deque: the thread appends first and signals then, so nothing is missed.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        done: list[Done] = []
        while self._results:
            result = self._results.popleft()
            if isinstance(result, BackendError):
                self._failure = result
                raise result
            self._busy = False
            done.append(result)
        return done

    def free_at_ns(self, now_ns: int) -> int:
        """Now, unless a batch is computed: its end depends on how much is said in it."""
        return FAR if self._busy else now_ns

    def next_done_ns(self) -> int:
        """The eventfd tells."""
        return FAR

    def fd(self) -> int | None:
        """The eventfd on which the thread signals."""
        return self._fd

    def close(self) -> None:
        """End the thread; one that does not end in time is a daemon and dies with the process."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT_S)
        if self._fd >= 0 and not self._thread.is_alive():
            os.close(self._fd)
            self._fd = -1

    def _serve(self) -> None:
        """The thread: batch after batch, until None."""
        while (batch := self._inbox.get()) is not None:
            result: Done | BackendError
            try:
                result = self._compute(batch)
            except Exception as error:
                # Whatever the engine raises, the worker's loop must hear of it.
                what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                result = BackendError(f"ctranslate2 failed on a batch of {len(batch.samples)}: {what}")
            self._results.append(result)
            os.eventfd_write(self._fd, 1)

    def _compute(self, batch: Batch) -> Done:
        assert self._whisper is not None, "load() comes first"
        started = time.monotonic_ns()
        rows = self._task.collate(batch.samples)
        waveforms = np.split(rows, np.cumsum(self._task.counts(batch.samples))[:-1])
        tokens, counts = self._whisper.transcribe(waveforms)
        responses = self._task.respond(tokens, batch.indices, counts)
        return Done(batch, responses, started, time.monotonic_ns())


def _folder(path: str) -> Path:
    try:
        folder = locate(path)
    except LocateError as error:
        raise BackendError(f"backend.weights: {error}") from None
    for name in (WEIGHTS_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise BackendError(f"backend.weights: {folder} holds no {name}; it must be a CTranslate2 folder")
    return folder


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BackendError(f"backend.weights: {file} cannot be read ({error.strerror})") from None


def open_engine(options: Mapping[str, Any], task: Task, max_batch: int) -> Ctranslate2Backend:
    """A ctranslate2 backend with its options checked."""
    checked = read_options(Ctranslate2Options, options)
    if not checked.weights:
        raise BackendError("the ctranslate2 engine needs a network: set backend.weights to its folder")
    if checked.precision not in COMPUTE_TYPES:
        known = ", ".join(COMPUTE_TYPES)
        raise BackendError(f"backend.precision of ctranslate2 is one of {known}, not {checked.precision!r}")
    if checked.threads < 0:
        raise BackendError("backend.threads must not be negative")
    if task.name != TASK:
        raise BackendError(f"the ctranslate2 engine transcribes speech: task {TASK!r}, not {task.name!r}")
    return Ctranslate2Backend(checked, task, max_batch)
