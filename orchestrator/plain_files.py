"""Files that anybody may have put there: only regular ones are read, for pipes and devices have no end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file, or the one that a link leads to; OSError for anything else."""
    return open(path, "rb", opener=_regular)


def read_plain(path: Path, most_bytes: int) -> bytes:
    """A regular file's contents; OSError for anything else, and for more than `most_bytes`."""
    with open_plain(path) as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise OSError(errno.EFBIG, f"more than {most_bytes:,} bytes", str(path))
    return raw


def _regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe nobody writes to is waited for here already.
    opened = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(opened).st_mode
    if stat.S_ISREG(mode):
        return opened
    os.close(opened)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)
