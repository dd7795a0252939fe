"""The files of a data set as a submitter has them: found, named when missing, and known again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
    try:
        found = path.is_file()
    except OSError:  # a name that is longer than a disk takes
        found = False
    if not found:
        raise TaskError(f"task {task!r}: {path} is missing: {what}", option)
    return path


def read_json(task: str, path: Path, option: str = "path") -> Any:
    """What a JSON file of a data set holds; TaskError names the file that is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        why = error.strerror or str(error)
    except RecursionError:
        why = "its brackets are nested too deep"
    # ValueError: no JSON, no UTF-8, or an integer of thousands of digits.
    except (ValueError, OverflowError) as error:
        why = str(error)
    mend = f"if it is damaged, bring it again, or correct task.{option}"
    raise TaskError(f"task {task!r}: {path} cannot be read as JSON: {why}; {mend}", option)


def identity_of(task: str, entries: Sequence[str], option: str = "path") -> str:
    """sha256 over what names each sample, in order: a round may know that of its own data set.

    TaskError names one that stands twice, which would count double in the score.
    """
    if len(set(entries)) != len(entries):
        twice = next(entry for number, entry in enumerate(entries) if entry in entries[:number])
        raise TaskError(f"task {task!r}: {twice!r} stands twice in the data set's list", option)
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def listing_digest(parameters: str, files: Iterable[Path]) -> str:
    """sha256 over `parameters` and every file's path, number, size and times: a name, not a proof.

    Reading the contents of a data set for a name would take minutes at each start; what was prepared from
    them has the hash that is compared. Nobody sets the time of change (ctime) of a file, as unpacking sets
    that of its writing: two data sets of one listing never share a name. The price is that the same data set
    is prepared again where it was copied or moved to.
    """
    digest = hashlib.sha256(parameters.encode())
    folders: dict[Path, bytes] = {}
    for file in files:
        folder = folders.get(file.parent)
        if folder is None:
            folder = folders[file.parent] = os.fsencode(file.parent.resolve())
        facts = file.stat()
        numbers = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        digest.update(b"\n%b/%b\t" % (folder, os.fsencode(file.name)) + b"%d %d %d %d" % numbers)
    return digest.hexdigest()
