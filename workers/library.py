"""The prepared samples of a data set, memory-mapped: NumPy only, and both sides of LoadGrid open it.

A library is a folder:

    library.json    format, task, count, the task's own meta, and the size and sha256 of every other file
    samples.bin     the samples' bytes, back to back
    offsets.npy     int64 (count + 1,): sample i is samples.bin[offsets[i]:offsets[i + 1]]
    NAME.npy        further arrays for scorers, such as labels.npy

Timed code calls `samples` only; everything else happens before LoadGen's clock starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

FORMAT = 1
INDEX_FILE = "library.json"
SAMPLES_FILE = "samples.bin"
OFFSETS_FILE = "offsets.npy"
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_HASH_CHUNK_BYTES = 1 << 22
# Up to this many samples Python's own integers are quicker than NumPy's fixed cost per call (measured).
_FEW = 16

Job = TypeVar("Job")


class LibraryError(Exception):
    """A sample library cannot be used as asked; the text names the file or index, and the mend."""


class Library:
    """A memory-mapped set of samples; `sizes` is int64 (count,), in bytes."""

    def __init__(self, folder: Path, index: dict[str, Any], offsets: np.ndarray, data: memoryview) -> None:
        self.folder = folder
        self.task: str = index["task"]
        self.count: int = index["count"]
        self.meta: dict[str, Any] = index["meta"]
        self.sizes: np.ndarray = np.diff(offsets)
        self.files: dict[str, dict[str, Any]] = index["files"]
        self._offsets = offsets
        self._data = data
        self._loaded = np.zeros(self.count, dtype=bool)

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Library:
        """Open `folder`; `verify` reads every file once for its sha256. LibraryError when damaged."""
        folder = Path(folder)
        index = _read_index(folder)
        for name, facts in index["files"].items():
            _check_file(folder / name, facts, verify or name == OFFSETS_FILE)
        offsets = _read_array(folder / OFFSETS_FILE)
        _check_offsets(folder / OFFSETS_FILE, offsets, index["count"], index["files"][SAMPLES_FILE]["bytes"])
        return cls(folder, index, offsets, _map(folder / SAMPLES_FILE))

    @property
    def digest(self) -> str:
        """One sha256 for the contents: over the task, the count and every file's own; meta does not count."""
        contents = {"task": self.task, "count": self.count, "files": self.files}
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    def load(self, indices: np.ndarray) -> None:
        """Bring samples into memory (LoadSamplesToRam): ask for their pages ahead, then touch each."""
        indices = self._checked(indices)
        whole = self._data.obj
        if isinstance(whole, mmap.mmap):
            bytes_ = np.frombuffer(self._data, np.uint8)
            for start, stop in _ranges(self._offsets, indices):
                first = start - start % mmap.PAGESIZE
                whole.madvise(mmap.MADV_WILLNEED, first, stop - first)
            for start, stop in _ranges(self._offsets, indices):
                int(bytes_[start : stop : mmap.PAGESIZE].max(initial=0)) + int(bytes_[stop - 1])
        self._loaded[indices] = True

    def unload(self, indices: np.ndarray) -> None:
        """Forget that samples are loaded; the kernel takes their pages back when it needs them."""
        self._loaded[self._checked(indices)] = False

    def samples(self, indices: np.ndarray) -> list[memoryview]:
        """The samples' bytes without a copy; LibraryError names an index out of range or not loaded."""
        data, offsets = self._data, self._offsets
        if len(indices) <= _FEW:
            found = []
            for i in indices.tolist():
                if not 0 <= i < self.count or not self._loaded[i]:
                    self._refuse(indices)
                found.append(data[offsets[i] : offsets[i + 1]])
            return found
        if indices.min() < 0 or indices.max() >= self.count or not self._loaded[indices].all():
            self._refuse(indices)
        starts, stops = offsets[indices].tolist(), offsets[indices + 1].tolist()
        return [data[a:b] for a, b in zip(starts, stops, strict=True)]

    def array(self, name: str) -> np.ndarray:
        """A further array of the library, such as "labels"; LibraryError when it has none of that name."""
        if f"{name}.npy" not in self.files:
            have = ", ".join(sorted(f[:-4] for f in self.files if f.endswith(".npy") and f != OFFSETS_FILE))
            raise LibraryError(f"{self.folder} holds no array {name!r}; it holds: {have or 'none'}")
        return _read_array(self.folder / f"{name}.npy")

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64).ravel()
        if len(indices) and (indices.min() < 0 or indices.max() >= self.count):
            self._refuse(indices, also_unloaded=False)
        return indices

    def _refuse(self, indices: np.ndarray, also_unloaded: bool = True) -> None:
        """Raise the LibraryError that names the first index which cannot be served."""
        outside = indices[(indices < 0) | (indices >= self.count)]
        if len(outside):
            raise LibraryError(f"sample {outside[0]} does not exist: {self.folder} has {self.count} samples")
        if also_unloaded:
            first = indices[~self._loaded[indices]][0]
            raise LibraryError(f"sample {first} was asked for but is not loaded: LoadGen must load it first")


class LibraryWriter:
    """Collects samples in a folder of its own; `finish` puts it in place in one step."""

    def __init__(self, folder: Path, task: str, meta: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self._index: dict[str, Any] = {"format": FORMAT, "task": task, "meta": meta or {}}
        self._sizes: list[int] = []
        self._files: list[str] = [SAMPLES_FILE, OFFSETS_FILE]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()
        self._out = open(self._partial / SAMPLES_FILE, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by finish and __exit__)
        self._hash = hashlib.sha256()

    def __enter__(self) -> LibraryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, sample: bytes | memoryview | np.ndarray) -> None:
        """Append one sample's bytes."""
        data = sample.tobytes() if isinstance(sample, np.ndarray) else bytes(sample)
        self._out.write(data)
        self._hash.update(data)
        self._sizes.append(len(data))

    def add_all(self, jobs: Sequence[Job], make: Callable[[Job], bytes | np.ndarray]) -> None:
        """Append make(job) of every job, in order."""
        for job in jobs:
            self.add(make(job))

    def add_array(self, name: str, array: np.ndarray) -> None:
        """Keep an array beside the samples, such as "labels"."""
        file = f"{name}.npy"
        if not _ARRAY_NAME.fullmatch(name) or file in self._files:
            raise LibraryError(f"{name!r} cannot name an array of a library (lower-case letters, used once)")
        np.save(self._partial / file, array, allow_pickle=False)
        self._files.append(file)

    def finish(self) -> Library:
        """Complete the library; when another process was first, its library is opened instead."""
        if not self._sizes:
            raise LibraryError(f"{self.folder}: a library needs at least one sample")
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        np.save(self._partial / OFFSETS_FILE, np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)]))
        known = {SAMPLES_FILE: self._hash.hexdigest()}
        self._index |= {"count": len(self._sizes), "files": {}}
        for name in self._files:
            path = self._partial / name
            sha256 = known.get(name) or _sha256(path)
            self._index["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256}
        (self._partial / INDEX_FILE).write_text(json.dumps(self._index, indent=1, sort_keys=True) + "\n")
        try:
            os.rename(self._partial, self.folder)
        except OSError as error:
            # Renaming onto a folder that is not empty fails: then another process has finished first.
            if not (self.folder / INDEX_FILE).exists():
                raise LibraryError(f"{self.folder} cannot be written ({error.strerror})") from None
        return Library.open(self.folder, verify=False)


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
        with LibraryWriter(folder, task, meta) as writer:
            build(writer)
            return writer.finish()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the kernel drops when the process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mend(folder: Path) -> str:
    return f"delete the folder {folder} and it is prepared anew"


def _read_index(folder: Path) -> dict[str, Any]:
    """Read and check library.json, down to every type that later code relies on."""
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise LibraryError(f"{path} is missing: {folder} is not a prepared sample library") from None
    except (OSError, ValueError) as error:
        raise LibraryError(f"{path} cannot be read ({error}); {_mend(folder)}") from None
    if not _index_is_sound(index):
        raise LibraryError(f"{path} is damaged; {_mend(folder)}")
    if index["format"] != FORMAT:
        made = f"{path} has format {index['format']}, this version reads {FORMAT}"
        raise LibraryError(f"{made}; {_mend(folder)}")
    return index


def _index_is_sound(index: object) -> bool:
    if not isinstance(index, dict) or not isinstance(index.get("files"), dict):
        return False
    files = index["files"]
    names_are_sound = all(n == SAMPLES_FILE or _ARRAY_NAME.fullmatch(n.removesuffix(".npy")) for n in files)
    facts_are_sound = all(
        isinstance(f, dict) and type(f.get("bytes")) is int and isinstance(f.get("sha256"), str)
        for f in files.values()
    )
    return (
        names_are_sound
        and facts_are_sound
        and {SAMPLES_FILE, OFFSETS_FILE} <= set(files)
        and type(index.get("format")) is int
        and type(index.get("count")) is int
        and index["count"] > 0
        and isinstance(index.get("task"), str)
        and isinstance(index.get("meta"), dict)
    )


def _check_file(path: Path, facts: dict[str, Any], verify: bool) -> None:
    """Compare a file with what library.json says about it."""
    try:
        size = path.stat().st_size
    except OSError:
        raise LibraryError(f"{path} is missing; {_mend(path.parent)}") from None
    if size != facts["bytes"]:
        raise LibraryError(f"{path} has {size} bytes instead of {facts['bytes']}; {_mend(path.parent)}")
    if verify and _sha256(path) != facts["sha256"]:
        raise LibraryError(f"{path} is damaged: its sha256 is not the recorded one; {_mend(path.parent)}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LibraryError(f"{path} cannot be read ({error}); {_mend(path.parent)}") from None


def _check_offsets(path: Path, offsets: np.ndarray, count: int, total_bytes: int) -> None:
    if offsets.dtype != np.int64 or offsets.shape != (count + 1,):
        raise LibraryError(f"{path} does not describe {count} samples; {_mend(path.parent)}")
    if offsets[0] != 0 or offsets[-1] != total_bytes or (np.diff(offsets) < 0).any():
        raise LibraryError(f"{path} does not fit {SAMPLES_FILE}; {_mend(path.parent)}")


def _map(path: Path) -> memoryview:
    """Map a file read-only; an empty file cannot be mapped and needs no map."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _ranges(offsets: np.ndarray, indices: np.ndarray) -> Iterator[tuple[int, int]]:
    """The byte ranges of samples, neighbours merged, empty ones left out."""
    ordered = np.unique(indices)
    if not len(ordered):
        return
    breaks = np.flatnonzero(np.diff(ordered) != 1)
    firsts = ordered[np.concatenate([[0], breaks + 1])]
    lasts = ordered[np.concatenate([breaks, [len(ordered) - 1]])]
    for start, stop in zip(offsets[firsts].tolist(), offsets[lasts + 1].tolist(), strict=True):
        if stop > start:
            yield start, stop
