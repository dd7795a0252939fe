"""Files that anybody may have put there: only regular ones are read, for pipes and devices have no end."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from io import BufferedReader
from pathlib import Path


def open_plain(path: Path, follow: bool = True) -> BufferedReader:
    """Open a regular file, or with `follow` the one that a link leads to; OSError for anything else."""
    return open(path, "rb", opener=partial(_regular, more=0 if follow else os.O_NOFOLLOW))


def read_plain(path: Path, most_bytes: int) -> bytes:
    """A regular file's contents; OSError for anything else, and for more than `most_bytes`."""
    with open_plain(path) as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise OSError(errno.EFBIG, f"more than {most_bytes:,} bytes", str(path))
    return raw


def _regular(path: str, flags: int, more: int) -> int:
    # Without O_NONBLOCK a pipe nobody writes to is waited for here already.
    opened = os.open(path, flags | more | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return opened
    os.close(opened)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)
