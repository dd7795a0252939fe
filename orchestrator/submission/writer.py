"""A tree while it is written: beside its place, with safe names only, and put there in one step."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from orchestrator.paths import write_atomically
from orchestrator.submission.layout import LARGEST_FILE_BYTES
from orchestrator.submission.refusal import SubmitError, safe_name

CHUNK_BYTES = 1 << 20
ORIGINALS_LIST = "sha256sums.txt"


class TreeWriter:
    """A context manager: leaves `out` whole after `finish`, nothing at all after an error."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.partial = self.out.with_name(f"{self.out.name}.partial")
        self.originals = self.out.with_name(f"{self.out.name}.originals")
        self._kept: dict[str, str] = {}
        self._fresh: list[Path] = []  # originals that were not there before

    def __enter__(self) -> TreeWriter:
        if self.out.is_symlink() or (self.out.exists() and not self.out.is_dir()):
            raise SubmitError(f"{self.out} is there and no folder; name another with --out")
        if self.out.is_dir() and any(self.out.iterdir()):
            raise SubmitError(f"{self.out} is not empty; a tree is written anew, so name another with --out")
        if self.partial.exists():
            raise SubmitError(f"{self.partial} is left of a try that was killed; remove it and try again")
        self.partial.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        for kept in self._fresh:
            kept.unlink(missing_ok=True)
        if self._fresh and not any(self.originals.iterdir()):
            self.originals.rmdir()

    def finish(self) -> None:
        """Put the tree in place; the list of originals lies beside them."""
        if self._kept:
            lines = [f"{digest}  {name}\n" for name, digest in sorted(self._kept.items())]
            write_atomically(self.originals / ORIGINALS_LIST, "".join(lines).encode())
        self.partial.rename(self.out)

    def write(self, place: PurePosixPath, content: bytes | str) -> None:
        """A new file of the tree."""
        data = content.encode() if isinstance(content, str) else content
        self._target(place, len(data)).write_bytes(data)

    def write_json(self, place: PurePosixPath, value: Any) -> None:
        """A new JSON file of the tree, for people too."""
        self.write(place, json.dumps(value, indent=4) + "\n")

    def copy(self, source: Path, place: PurePosixPath) -> None:
        """A copy of a plain file; links are refused."""
        if source.is_symlink() or not source.is_file():
            raise SubmitError(f"{source} is missing or no plain file; it belongs into the tree as {place}")
        target = self._target(place, source.stat().st_size, source)
        shutil.copyfile(source, target, follow_symlinks=False)

    def keep_original(self, source: Path, place: PurePosixPath, digest: str) -> None:
        """Keep beside the tree, under its sha256, a file of which the tree has a part: a link or a copy."""
        self._kept[str(place)] = digest
        kept = self.originals / f"{digest}{source.suffix}"
        if kept.exists():
            return
        self.originals.mkdir(parents=True, exist_ok=True)
        self._fresh.append(kept)
        try:
            os.link(source, kept, follow_symlinks=False)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, kept, follow_symlinks=False)

    @property
    def has_originals(self) -> bool:
        """Whether anything was kept beside the tree."""
        return bool(self._kept)

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
