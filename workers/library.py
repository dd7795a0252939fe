"""The sample libraries of data sets: written here, in parallel and resumable, and read by library_reader.

A library is written in a folder NAME.partial beside its own, which is renamed when complete:

    parameters.json   what is being made: format, task, meta, and by which code (made_by)
    samples.bin       the samples so far
    sizes.journal     for each of them its size (int64) and CRC-32 (uint32), little-endian

The journal is written after the bytes that it speaks of. So whenever the process dies, the samples that the
journal names, and whose bytes have its checksums, are whole and in order: a later prepare goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import struct
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from workers.library_reader import (
    ARRAY_NAME,
    CONTINUING,
    FORMAT,
    INDEX_FILE,
    OFFSETS_FILE,
    PREPARING,
    SAMPLES_FILE,
    WAITING,
    WRITTEN,
    Library,
    LibraryError,
    heard_by,
    sha256_of,
    tell,
)
from workers.limits import memory_bytes, usable_cpus
from workers.own_code import code_sha256

__all__ = ["Library", "LibraryError", "LibraryWriter", "heard_by", "prepare_library"]

PARAMETERS_FILE = "parameters.json"
JOURNAL_FILE = "sizes.journal"
_ENTRY = struct.Struct("<qI")
_READ_BYTES = 1 << 22
# What is lost at most when a prepare is killed: small samples are not worth a write of the journal each.
_JOURNAL_EVERY_S = 1.0
# Results may wait beyond those in work, so that one slow sample holds up no thread for long; and all of them
# together take at most an eighth of the memory: a volume of BraTS is 128 MB, and making it takes some more.
_WAITING_RESULTS = 2
_SHARE_OF_MEMORY = 8
# What making takes beside its result is bounded where a task tells it, to half of the memory.
_SHARE_FOR_MAKING = 2
# What a sample's bytes depend on besides the tasks' own code, by the names that pip knows.
_PREPROCESSING = ["numpy", "opencv-python-headless", "opencv-python", "scipy", "pillow", "tokenizers"]
_PREPROCESSING += ["soundfile", "nibabel"]

Job = TypeVar("Job")
Sample = bytes | bytearray | memoryview | np.ndarray


class LibraryWriter:
    """Collects samples in a folder of its own; `finish` puts it in place in one step.

    `resumable`: go on with what a killed writer of the same parameters left (nobody else may write this
    library meanwhile), and leave it when ended by an error. Only `add_all` goes on; `add` begins anew.
    """

    def __init__(
        self, folder: Path, task: str, meta: dict[str, Any] | None = None, resumable: bool = False
    ) -> None:
        self.folder = Path(folder)
        self._index: dict[str, Any] = {"format": FORMAT, "task": task, "meta": meta or {}}
        self._index["made_by"] = made_by()
        self._sizes = array("q")
        self._files: list[str] = [SAMPLES_FILE, OFFSETS_FILE]
        self._hash = hashlib.sha256()
        self._pending: list[
            bytes
        ] = []  # entries of the journal whose samples are not yet handed to the kernel
        self._next_journal_s = 0.0
        self._largest = 0
        self._unclaimed = 0  # samples of an earlier writer that no `add_all` has claimed yet
        self._resumable = resumable
        self._finished = False
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        whose = "" if resumable else f".{os.getpid()}"
        self._partial = self.folder.with_name(f"{self.folder.name}{whose}.partial")
        if not (resumable and self._take_over()):
            self._forget()
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir()
            (self._partial / PARAMETERS_FILE).write_text(self._parameters())
        # Closed by finish and __exit__.
        self._out = open(self._partial / SAMPLES_FILE, "ab", buffering=1 << 20)  # noqa: SIM115
        self._journal = open(self._partial / JOURNAL_FILE, "ab", buffering=0)  # noqa: SIM115

    def __enter__(self) -> LibraryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._finished:
            return
        for file in (self._out, self._journal):
            with contextlib.suppress(OSError):  # a full disk, which the error under way tells of
                file.close()
        if not (self._resumable and self._sizes):
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, sample: Sample) -> None:
        """Append one sample's bytes."""
        self._begin_anew()
        self._append(_bytes_of(sample))

    def add_rows(self, rows: np.ndarray) -> None:
        """Append each row of an array (n, ...) as a sample: many small ones at the price of one."""
        self._begin_anew()
        data = _bytes_of(rows)
        self._out.write(data)
        self._hash.update(data)
        each = data.nbytes // len(rows) if len(rows) else 0
        self._sizes.frombytes(np.full(len(rows), each, np.int64).tobytes())

    def add_all(
        self, jobs: Sequence[Job], make: Callable[[Job], Sample], peak_bytes: int | None = None
    ) -> None:
        """Append make(job) of every job, in order; `make` is called in as many threads as there are cores.

        `peak_bytes`: what one call of `make` may take at most, where that is far more than its result; then
        no more threads than fit into half of the memory. The first jobs may be those of an earlier writer,
        whose samples are kept. The error of the first job that fails is raised.
        """
        done = min(self._unclaimed, len(jobs))
        self._unclaimed -= done
        fitting = memory_bytes() // _SHARE_FOR_MAKING // peak_bytes if peak_bytes else len(jobs)
        threads = max(1, min(usable_cpus(), len(jobs) - done, fitting))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        waiting: deque[Future[Sample]] = deque()
        try:
            tell(PREPARING, done, len(jobs))
            for i in range(done, len(jobs)):
                while len(waiting) >= self._ahead(threads):
                    self._add_made(waiting.popleft().result())
                    tell(PREPARING, i - len(waiting), len(jobs))
                waiting.append(pool.submit(make, jobs[i]))
            while waiting:
                self._add_made(waiting.popleft().result())
                tell(PREPARING, len(jobs) - len(waiting), len(jobs))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._write_journal()

    def _ahead(self, threads: int) -> int:
        """How many samples may be in work or wait to be written: what the memory holds of the largest."""
        if not self._largest:
            return 2  # until the first says how large they are
        return max(2, min(threads + _WAITING_RESULTS, memory_bytes() // _SHARE_OF_MEMORY // self._largest))

    def add_array(self, name: str, values: np.ndarray) -> None:
        """Keep an array beside the samples, such as "labels"."""
        file = f"{name}.npy"
        if not ARRAY_NAME.fullmatch(name) or file in self._files:
            raise LibraryError(f"{name!r} cannot name an array of a library (lower-case letters, used once)")
        np.save(self._partial / file, values, allow_pickle=False)
        self._files.append(file)

    def finish(self) -> Library:
        """Complete the library; when another process was first, its library is opened instead."""
        self._refuse_unclaimed()
        if not self._sizes:
            raise LibraryError(f"{self.folder}: a library needs at least one sample")
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        sizes = np.frombuffer(self._sizes, np.int64)
        self._refuse_other_length(int(sizes.sum()))
        np.save(self._partial / OFFSETS_FILE, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))
        known = {SAMPLES_FILE: self._hash.hexdigest()}
        self._index |= {"count": len(self._sizes), "files": {}}
        for name in self._files:
            path = self._partial / name
            sha256 = known.get(name) or sha256_of(path)
            self._index["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256}
        (self._partial / INDEX_FILE).write_text(json.dumps(self._index, indent=1, sort_keys=True) + "\n")
        try:
            os.rename(self._partial, self.folder)
        except OSError as error:
            # Renaming onto a folder that is not empty fails: then another process has finished first.
            if not (self.folder / INDEX_FILE).exists():
                raise LibraryError(f"{self.folder} cannot be written ({error.strerror})") from None
            shutil.rmtree(self._partial, ignore_errors=True)
        self._finished = True
        self._journal.close()
        for name in (JOURNAL_FILE, PARAMETERS_FILE):
            (self.folder / name).unlink(missing_ok=True)
        tell(WRITTEN, len(self._sizes), len(self._sizes))
        return Library.open(self.folder, verify=False)

    # -- one sample ----------------------------------------------------------------------------------

    def _append(self, data: memoryview) -> None:
        self._out.write(data)
        self._hash.update(data)
        self._sizes.append(data.nbytes)
        self._largest = max(self._largest, data.nbytes)

    def _add_made(self, sample: Sample) -> None:
        """Append a sample of `add_all`, which a later writer need not make again."""
        data = _bytes_of(sample)
        self._append(data)
        if not self._resumable:
            return
        self._pending.append(_ENTRY.pack(data.nbytes, zlib.crc32(data)))
        if time.monotonic() >= self._next_journal_s:
            self._write_journal()

    def _write_journal(self) -> None:
        """Hand samples to the kernel, and then the journal's word for them."""
        if self._pending:
            self._out.flush()
            self._journal.write(b"".join(self._pending))
            self._pending.clear()
        self._next_journal_s = time.monotonic() + _JOURNAL_EVERY_S

    # -- what an earlier writer left -----------------------------------------------------------------

    def _parameters(self) -> str:
        return json.dumps(self._index, sort_keys=True)

    def _take_over(self) -> bool:
        """Keep the whole samples of an earlier writer of the same parameters; False if there are none."""
        samples, journal = self._partial / SAMPLES_FILE, self._partial / JOURNAL_FILE
        try:
            if (self._partial / PARAMETERS_FILE).read_text() != self._parameters():
                return False
            entries = journal.read_bytes()
            with open(samples, "rb") as file:
                for number in range(len(entries) // _ENTRY.size):
                    size, checksum = _ENTRY.unpack_from(entries, number * _ENTRY.size)
                    if not self._take_over_one(file, size, checksum):
                        break
                    tell(CONTINUING, number + 1, len(entries) // _ENTRY.size)
            os.truncate(samples, sum(self._sizes))
            os.truncate(journal, len(self._sizes) * _ENTRY.size)
            for extra in [*self._partial.glob("*.npy"), self._partial / INDEX_FILE]:
                extra.unlink(missing_ok=True)
        except (OSError, UnicodeDecodeError):
            return False
        self._unclaimed = len(self._sizes)
        return self._unclaimed > 0

    def _forget(self) -> None:
        """Keep nothing of what an earlier writer left, nor of an attempt to read it."""
        self._unclaimed, self._sizes, self._hash = 0, array("q"), hashlib.sha256()

    def _take_over_one(self, file: Any, size: int, checksum: int) -> bool:
        """Read on by one sample and keep it if it is what the journal says."""
        hashed, crc, left = self._hash.copy(), 0, size
        while left > 0:
            data = file.read(min(left, _READ_BYTES))
            if not data:
                return False
            hashed.update(data)
            crc, left = zlib.crc32(data, crc), left - len(data)
        if left or crc != checksum:
            return False
        self._hash = hashed
        self._sizes.append(size)
        return True

    def _begin_anew(self) -> None:
        """Before samples that nobody can know again: forget an earlier writer's, and keep no journal."""
        if self._unclaimed == len(self._sizes) > 0:
            self._out.close()
            self._out = open(self._partial / SAMPLES_FILE, "wb", buffering=1 << 20)  # noqa: SIM115
            self._forget()
        self._refuse_unclaimed()
        if self._resumable:
            self._resumable = False
            self._journal.close()
            (self._partial / JOURNAL_FILE).unlink(missing_ok=True)

    def _refuse_unclaimed(self) -> None:
        """An earlier writer made more samples of the same parameters: one of the two was wrong."""
        if self._unclaimed:
            self._resumable = False  # which lets __exit__ delete them
            raise LibraryError(
                f"{self._partial} held more samples than this data set has; it was deleted: prepare again"
            )

    def _refuse_other_length(self, total_bytes: int) -> None:
        """A library whose sizes do not fit its bytes must never get its name: it would be there for good."""
        found = (self._partial / SAMPLES_FILE).stat().st_size
        if found != total_bytes:
            self._resumable = False  # which lets __exit__ delete it
            raise LibraryError(
                f"{self._partial / SAMPLES_FILE} has {found} bytes instead of {total_bytes}; it was deleted: "
                "prepare again"
            )


@cache
def made_by() -> dict[str, str]:
    """What decides the bytes of samples: a hash of the tasks' code, and versions of what they call."""
    found = {"tasks_sha256": code_sha256(Path(__file__).parent / "tasks")}
    for name in _PREPROCESSING:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def prepare_library(
    folder: Path, task: str, build: Callable[[LibraryWriter], None], meta: dict[str, Any] | None = None
) -> Library:
    """Open the library in `folder`, or let `build` fill it first; of several processes one builds."""
    folder = Path(folder)
    if folder.exists():
        return Library.open(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return Library.open(folder)
        for left_over in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)  # whoever holds the lock is the only builder alive
        with LibraryWriter(folder, task, meta, resumable=True) as writer:
            build(writer)
            return writer.finish()


def _bytes_of(sample: Sample) -> memoryview:
    """The bytes of a sample, without a copy where they lie in one piece."""
    if isinstance(sample, np.ndarray):
        flat = np.ascontiguousarray(sample).reshape(-1)
        return flat.view(np.uint8).data if flat.nbytes else memoryview(b"")
    return memoryview(sample).cast("B")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the kernel drops when the process dies."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(WAITING, 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
