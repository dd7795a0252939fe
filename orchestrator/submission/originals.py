"""Whole files beside a tree that has a part of each: copies by their sha256, and lists of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from orchestrator.paths import sync, write_atomically
from orchestrator.submission.copying import copy_plain, sha256_of
from orchestrator.submission.refusal import SubmitError

SUMS = "sha256sums.txt"  # for `sha256sum -c` in the folder
PLACES = "places.txt"  # which file of the tree is a part of which original
READ_ONLY = 0o444


class Originals:
    """The folder of a tree's originals: what was there before is kept, what an ended try added is not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, str] = {}  # place in the tree -> name here
        self._fresh: list[Path] = []
        self._before: dict[Path, bytes | None] = {}  # the lists of an earlier tree

    def keep(self, source: Path, place: PurePosixPath, digest: str) -> Path:
        """A copy of `source`, never a link, so that no later write to the run's file changes it."""
        kept = self.folder / f"{digest}{source.suffix}"
        self.kept[str(place)] = kept.name
        if kept not in self._fresh:
            self._make_folder()
            there = os.path.lexists(kept)
            if not (there and self._is_right(kept, digest)):
                self._copy(source, kept, digest)
            if not there:
                self._fresh.append(kept)
        return kept

    def write_lists(self) -> None:
        """The hashes as sha256sum reads them, and the places in the tree."""
        if not self.kept:
            return
        sums = "".join(f"{name.partition('.')[0]}  {name}\n" for name in sorted(set(self.kept.values())))
        places = "".join(f"{name}  {place}\n" for place, name in sorted(self.kept.items()))
        for name, text in ((SUMS, sums), (PLACES, places)):
            path = self.folder / name
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise SubmitError(f"{path} is a link or no plain file; remove it and try again")
            self._before[path] = path.read_bytes() if path.exists() else None
            write_atomically(path, text.encode())

    def undo(self) -> None:
        """Take out what this try added."""
        for path, content in self._before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, content)
        for kept in self._fresh:
            kept.unlink(missing_ok=True)
        plain = self.folder.is_dir() and not self.folder.is_symlink()
        if self.kept and plain and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _make_folder(self) -> None:
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise SubmitError(f"{self.folder} is a link or no folder; originals are kept there: remove it")
        if not self.folder.exists():
            self.folder.mkdir()
            sync(self.folder.parent)

    def _is_right(self, kept: Path, digest: str) -> bool:
        """Whether what lies there is a whole file of its own; SubmitError for a link."""
        found = os.lstat(kept)
        if not stat.S_ISREG(found.st_mode):
            raise SubmitError(f"{kept} is a link or no plain file; remove it and try again")
        return found.st_nlink == 1 and sha256_of(kept) == digest

    def _copy(self, source: Path, kept: Path, digest: str) -> None:
        temporary = kept.with_name(f".{kept.name}.partial")
        temporary.unlink(missing_ok=True)  # of a killed try; only one try at a time writes here
        copy_plain(source, temporary, digest, READ_ONLY)
        sync(temporary)
        temporary.replace(kept)
        sync(self.folder)
