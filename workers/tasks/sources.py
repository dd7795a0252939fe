"""The files of a data set as a submitter has them: found, named when missing, and known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from workers.installed import LocateError, locate
from workers.tasks import TaskError


def source_folder(task: str, path: str, option: str = "path") -> Path:
    """The folder that a task's option names; TaskError if it is none."""
    try:
        folder = locate(path)
    except LocateError as error:
        raise TaskError(f"task {task!r}: {error}", option) from None
    if not folder.is_dir():
        raise TaskError(
            f"task {task!r}: {folder} is no folder; set task.{option} to that of the data set", option
        )
    return folder


def source_file(task: str, path: Path, what: str, option: str = "path") -> Path:
    """`path` if it is a file; else a TaskError that says `what` is missing."""
    if not path.is_file():
        raise TaskError(f"task {task!r}: {path} is missing: {what}", option)
    return path


def identity_of(task: str, entries: Sequence[str], option: str = "path") -> str:
    """sha256 over what names each sample, in order: a round may know that of its own data set.

    TaskError names one that stands twice, which would count double in the score.
    """
    if len(set(entries)) != len(entries):
        twice = next(entry for number, entry in enumerate(entries) if entry in entries[:number])
        raise TaskError(f"task {task!r}: {twice!r} stands twice in the data set's list", option)
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def listing_digest(parameters: str, files: Iterable[Path]) -> str:
    """sha256 over `parameters` and every file's name, size and time of change: a name, not a proof.

    Reading the contents of a data set for a name would take minutes at each start; what was prepared from
    them has the hash that is compared.
    """
    digest = hashlib.sha256(parameters.encode())
    for file in files:
        facts = file.stat()
        digest.update(f"\n{file.name}\t{facts.st_size}\t{facts.st_mtime_ns}".encode())
    return digest.hexdigest()
