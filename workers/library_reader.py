"""Prepared samples, memory-mapped, as both sides of LoadGrid open them; library.py writes them. NumPy only.

A library is a folder:

    library.json    format, task, count, the task's own meta, what code made it (made_by), and the size and
                    sha256 of every other file
    samples.bin     the samples' bytes, back to back
    offsets.npy     int64 (count + 1,): sample i is samples.bin[offsets[i]:offsets[i + 1]]
    NAME.npy        further arrays for scorers, such as labels.npy

Timed code calls `samples` and `batch` only; everything else happens before LoadGen's clock starts.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from workers.arena import Arena

FORMAT = 1
INDEX_FILE = "library.json"
SAMPLES_FILE = "samples.bin"
OFFSETS_FILE = "offsets.npy"
ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_HASH_CHUNK_BYTES = 1 << 22
# Up to this many samples Python's own integers are quicker than NumPy's fixed cost per call (measured).
_FEW = 16

# Who is told how far a slow and untimed step is: the step, how much is done, of how much (0: not known).
Listener = Callable[[str, int, int], None]
CHECKING, PREPARING, CONTINUING, WAITING = "checking", "preparing", "continuing", "waiting"
WRITTEN = "written"
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class LibraryError(Exception):
    """A sample library cannot be used as asked; the text names the file or index, and the mend."""


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell `listener` what libraries of this thread do: bytes when CHECKING, else samples."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(step: str, done: int, total: int) -> None:
    """Tell whoever listens how far a step is."""
    listener = _listener.get()
    if listener is not None:
        listener(step, done, total)


class Library:
    """A memory-mapped set of samples; `sizes` is int64 (count,), in bytes."""

    def __init__(self, folder: Path, index: dict[str, Any], offsets: np.ndarray, data: memoryview) -> None:
        self.folder = folder
        self.task: str = index["task"]
        self.count: int = index["count"]
        self.meta: dict[str, Any] = index["meta"]
        # sha256 of the code that prepared it, and versions of the libraries; empty if not recorded.
        self.made_by: dict[str, str] = index.get("made_by", {})
        self.sizes: np.ndarray = np.diff(offsets)
        self.files: dict[str, dict[str, Any]] = index["files"]
        self._offsets = offsets
        self._data = data
        self._loaded = np.zeros(self.count, dtype=bool)
        self._arena: Arena | None = None

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Library:
        """Open `folder`; `verify` reads every file once for its sha256. LibraryError when damaged."""
        folder = Path(folder)
        index = _read_index(folder)
        checked_bytes, total_bytes = 0, sum(facts["bytes"] for facts in index["files"].values())
        for name, facts in index["files"].items():
            _check_file(folder / name, facts)
            if verify or name == OFFSETS_FILE:
                _check_contents(folder / name, facts, checked_bytes, total_bytes if verify else 0)
            checked_bytes += facts["bytes"]
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
        if self._arena is not None:
            self._arena.load(indices, self._data, self._offsets)

    def unload(self, indices: np.ndarray) -> None:
        """Forget that samples are loaded; the kernel takes their pages back when it needs them."""
        indices = self._checked(indices)
        self._loaded[indices] = False
        if self._arena is not None:
            self._arena.unload(indices, any_left=bool(self._loaded.any()))

    def unload_all(self) -> None:
        """Forget all that is loaded: a test that was broken off unloads nothing."""
        self.unload(np.flatnonzero(self._loaded))

    def keep_in(self, arena: Arena) -> None:
        """Copy into `arena` what is loaded, from now on."""
        self._arena = arena
        arena.load(np.flatnonzero(self._loaded), self._data, self._offsets)

    @property
    def refused(self) -> str:
        """Why the loaded samples do not lie in the arena; empty if they do, or there is none."""
        return "" if self._arena is None else self._arena.refused

    def batch(self, indices: np.ndarray) -> Sequence[memoryview]:
        """The samples for a backend: LoadedSamples while an arena holds them, else their bytes.

        LibraryError as of samples(); a batch that was made has its bytes, whatever is unloaded meanwhile.
        """
        self._check_loaded(indices)
        if self._arena is not None and not self._arena.refused:
            indices = indices.astype(np.int64)  # a caller may change its own
            found = self._arena.batch(indices, lambda: self._bytes(indices))
            if found is not None:
                return found
        return self._bytes(indices)

    def samples(self, indices: np.ndarray) -> list[memoryview]:
        """The samples' bytes without a copy; LibraryError names an index out of range or not loaded."""
        self._check_loaded(indices)
        return self._bytes(indices)

    def _bytes(self, indices: np.ndarray) -> list[memoryview]:
        """Of samples that were checked."""
        data, offsets = self._data, self._offsets
        if len(indices) <= _FEW:
            return [data[offsets[i] : offsets[i + 1]] for i in indices.tolist()]
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

    def _check_loaded(self, indices: np.ndarray) -> None:
        """LibraryError if one of them is out of range or not loaded."""
        if len(indices) <= _FEW:
            if not all(0 <= i < self.count and self._loaded[i] for i in indices.tolist()):
                self._refuse(indices)
        elif indices.min() < 0 or indices.max() >= self.count or not self._loaded[indices].all():
            self._refuse(indices)

    def _refuse(self, indices: np.ndarray, also_unloaded: bool = True) -> None:
        """Raise the LibraryError that names the first index which cannot be served."""
        outside = indices[(indices < 0) | (indices >= self.count)]
        if len(outside):
            raise LibraryError(f"sample {outside[0]} does not exist: {self.folder} has {self.count} samples")
        if also_unloaded:
            first = indices[~self._loaded[indices]][0]
            raise LibraryError(f"sample {first} was asked for but is not loaded: LoadGen must load it first")


def _mend(folder: Path) -> str:
    return f"delete the folder {folder} and it is prepared anew"


def _read_index(folder: Path) -> dict[str, Any]:
    """Read and check library.json, down to every type that later code relies on."""
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise LibraryError(f"{path} is missing: {folder} is not a prepared sample library") from None
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets nested too deep
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
    names_are_sound = all(n == SAMPLES_FILE or ARRAY_NAME.fullmatch(n.removesuffix(".npy")) for n in files)
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
        and isinstance(index.get("made_by", {}), dict)
    )


def _check_file(path: Path, facts: dict[str, Any]) -> None:
    """Compare a file's size with what library.json says about it."""
    try:
        size = path.stat().st_size
    except OSError:
        raise LibraryError(f"{path} is missing; {_mend(path.parent)}") from None
    if size != facts["bytes"]:
        raise LibraryError(f"{path} has {size} bytes instead of {facts['bytes']}; {_mend(path.parent)}")


def _check_contents(path: Path, facts: dict[str, Any], before: int, total: int) -> None:
    """Compare a file's sha256; of `total` bytes in all, `before` were checked before it."""
    if sha256_of(path, before, total) != facts["sha256"]:
        raise LibraryError(f"{path} is damaged: its sha256 is not the recorded one; {_mend(path.parent)}")


def sha256_of(path: Path, before: int = 0, total: int = 0) -> str:
    """The sha256 of a file; told as CHECKING where it is a part of `total` bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            before += len(chunk)
            if total:
                tell(CHECKING, before, total)
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
