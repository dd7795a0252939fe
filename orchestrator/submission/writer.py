"""A tree while it is written: beside its place, with safe names only, and put there in one step."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from orchestrator.paths import sync
from orchestrator.submission.copying import copy_plain
from orchestrator.submission.layout import LARGEST_FILE_BYTES
from orchestrator.submission.originals import Originals
from orchestrator.submission.refusal import SubmitError, safe_name


class TreeWriter:
    """A context manager: leaves `out` whole after `finish`, nothing at all after an error."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.partial = self.out.with_name(f"{self.out.name}.partial")
        self.originals = self.out.with_name(f"{self.out.name}.originals")
        self._originals = Originals(self.originals)
        self._lock = -1
        self._in_place = False

    def __enter__(self) -> TreeWriter:
        if self.out.is_symlink() or (self.out.exists() and not self.out.is_dir()):
            raise SubmitError(f"{self.out} is there and no folder; name another with --out")
        if self.out.is_dir() and any(self.out.iterdir()):
            raise SubmitError(f"{self.out} is not empty; a tree is written anew, so name another with --out")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir()
        except FileExistsError:
            raise SubmitError(self._why_there()) from None
        self._lock = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # some shared storage has no locks
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and not self._in_place:
                shutil.rmtree(self.partial, ignore_errors=True)
                self._originals.undo()
        finally:
            os.close(self._lock)

    def finish(self) -> None:
        """Put the tree in place, in one step, with all of it safe on the disk before."""
        self._originals.write_lists()
        for place, _, files in os.walk(self.partial, topdown=False):
            for name in files:
                sync(Path(place, name))
            sync(Path(place))
        self.partial.rename(self.out)
        self._in_place = True
        sync(self.out.parent)

    def write(self, place: PurePosixPath, content: bytes | str) -> None:
        """A new file of the tree."""
        data = content.encode() if isinstance(content, str) else content
        self._target(place, len(data)).write_bytes(data)

    def write_json(self, place: PurePosixPath, value: Any) -> None:
        """A new JSON file of the tree, for people too."""
        self.write(place, json.dumps(value, indent=4) + "\n")

    def copy(self, source: Path, place: PurePosixPath, digest: str | None = None) -> None:
        """A copy of a plain file, by `digest` the one that its record names; links are refused."""
        if source.is_symlink() or not source.is_file():
            raise SubmitError(f"{source} is missing or no plain file; it belongs into the tree as {place}")
        copy_plain(source, self._target(place, source.stat().st_size, source), digest)

    def keep_original(self, source: Path, place: PurePosixPath, digest: str) -> Path:
        """Keep beside the tree, under its sha256, a file of which the tree has a part; returns the copy."""
        return self._originals.keep(source, place, digest)

    @property
    def has_originals(self) -> bool:
        """Whether anything was kept beside the tree."""
        return bool(self._originals.kept)

    def _why_there(self) -> str:
        """Whose the folder is: of a try that lives (it holds the lock), or of one that was killed."""
        kept = f" ({self.originals} has whole files of it or of an earlier tree, and may stay)"
        killed = (
            f"{self.partial} is left of a try that was killed; remove it and try again"
            f"{kept if os.path.lexists(self.originals) else ''}"
        )
        try:
            probe = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return f"{self.partial} is there and no folder that can be read; remove it and try again"
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return (
                f"another loadgrid submit writes {self.out} now; wait for its end, or name another with --out"
            )
        except OSError:
            return f"{killed}, unless another loadgrid submit writes it now (the disk has no locks to tell)"
        finally:
            os.close(probe)
        return killed

    def _target(self, place: PurePosixPath, size_bytes: int, source: Path | None = None) -> Path:
        for part in place.parts:
            safe_name(f"{place}: the name", part)
        if size_bytes >= LARGEST_FILE_BYTES:
            raise SubmitError(
                f"{source or place} has {size_bytes} bytes; the results repositories take files below "
                f"{LARGEST_FILE_BYTES} only"
            )
        target = self.partial / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise SubmitError(f"{place} would stand in the tree twice; two names of the submission are alike")
        return target
