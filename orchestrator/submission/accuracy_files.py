"""accuracy.txt and the accuracy log as they go into a tree: the hash of the whole, the ends of the log.

As truncate_accuracy_log.py of mlcommons/inference has it: a log of 10240 bytes or more becomes its first and
last 4096, with a line of dots between; the hash is of the log before. The original is kept beside the tree.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT
from orchestrator.submission.copying import read_plain
from orchestrator.submission.gather import Test, inside
from orchestrator.submission.layout import LONGEST_ACCURACY_LOG_BYTES
from orchestrator.submission.refusal import SubmitError
from orchestrator.submission.writer import TreeWriter

END_BYTES = 4096
SEPARATOR = b"\n\n...\n\n"
LARGEST_SCORE_BYTES = 1 << 20
_HASH = re.compile(rb"^hash=(\w+)$", re.MULTILINE)


def write_scored(tree: TreeWriter, test: Test, place: PurePosixPath) -> None:
    """The accuracy log and accuracy.txt of an accuracy test; SubmitError where they are of different logs."""
    digest = write_log(tree, test, place)
    path = inside(test, ACCURACY_TXT)
    if not path.is_file():
        raise SubmitError(f"{path} is missing: the accuracy test was not scored")
    if path.stat().st_size > LARGEST_SCORE_BYTES:
        raise SubmitError(f"{path} has {path.stat().st_size} bytes and so is no scorer's output")
    named = test.record.files.get(ACCURACY_TXT)
    if named is None:
        raise SubmitError(f"{path} is not among the files that its record names")
    told = read_plain(path, named, LARGEST_SCORE_BYTES)
    found = _HASH.search(told)
    if found and found[1].decode() != digest:
        raise SubmitError(f"{path} has the hash of another log than {ACCURACY_LOG} beside it")
    if not found:
        told = told.rstrip(b"\n") + f"\nhash={digest}\n".encode()
    tree.write(place / ACCURACY_TXT, told)


def write_log(tree: TreeWriter, test: Test, place: PurePosixPath) -> str:
    """The accuracy log of a test, truncated where it is large; returns the sha256 of the whole."""
    source = inside(test, ACCURACY_LOG)
    digest = test.record.files.get(ACCURACY_LOG)
    if digest is None or not source.is_file():
        raise SubmitError(f"{source} is missing")
    size_bytes = source.stat().st_size
    if size_bytes < LONGEST_ACCURACY_LOG_BYTES:
        tree.copy(source, place / ACCURACY_LOG, digest)
    else:
        kept = tree.keep_original(source, place / ACCURACY_LOG, digest)
        tree.write(place / ACCURACY_LOG, truncated(kept, kept.stat().st_size))
    return digest


def truncated(path: Path, size_bytes: int) -> bytes:
    """Both ends of a log."""
    with open(path, "rb") as file:
        start = file.read(END_BYTES)
        file.seek(size_bytes - END_BYTES, os.SEEK_SET)
        return start + SEPARATOR + file.read(END_BYTES)
