"""The test's side of the memory in which workers on its own host leave large answers.

That both see the same memory is found out by trying: the worker tells, over its own admitted link, where it
is and which random token lies in it. Where it cannot be opened (a container, another user, another host after
all) answers travel as messages, and nothing fails.
"""

from __future__ import annotations

import fcntl
import hmac
import mmap
import os
import stat
from collections.abc import Collection

import numpy as np

from workers.answer_memory import DATA_AT, MOST_BYTES, NAME, SEALS, TOKEN_BYTES
from workers.protocol import read_offer


class _Refused(Exception):
    """This memory is not read from; the text says why."""


class SharedAnswers:
    """What the workers numbered in `near` share with this test."""

    def __init__(self, near: Collection[int] = ()) -> None:
        self.answers = 0  # that lay in shared memory
        self.refused: dict[int, str] = {}  # worker -> why its memory is not used
        self._near = frozenset(near)
        self._seen: dict[int, np.ndarray] = {}

    def accept(self, worker: int, offer: bytes) -> bool:
        """Open what a worker offers; whether it is used. ProtocolError: that is no offer."""
        pid, descriptor, token = read_offer(offer)
        try:
            if worker not in self._near or worker in self._seen:
                raise _Refused("it is not this worker's to share")
            self._seen[worker] = _open(pid, descriptor, token)
        except _Refused as error:
            self.refused[worker] = str(error)
        except OSError as error:
            self.refused[worker] = f"it cannot be opened here: {error.strerror}"
        return worker not in self.refused

    def of(self, worker: int) -> np.ndarray | None:
        """The bytes uint8 that a worker shares, None if none."""
        return self._seen.get(worker)


def _open(pid: int, descriptor: int, token: bytes) -> np.ndarray:
    """The answers' part of another process's memory, to be read only; _Refused or OSError."""
    # First only a name for what is there: opening a device or a pipe would do something.
    name = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_PATH | os.O_CLOEXEC)
    try:
        again = f"/proc/self/fd/{name}"
        found = os.fstat(name)
        if not stat.S_ISREG(found.st_mode) or not os.readlink(again).startswith(f"/memfd:{NAME}"):
            raise _Refused("it is no memory for answers")
        file = os.open(again, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(name)
    try:
        return _mapped(file, token)
    finally:
        os.close(file)


def _mapped(file: int, token: bytes) -> np.ndarray:
    """The pages of a memfd, if it is whole, cannot shrink, and holds the token."""
    if fcntl.fcntl(file, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise _Refused("it could be truncated while it is read")
    found = os.fstat(file)
    if found.st_uid != os.geteuid():
        raise _Refused("it belongs to another user")
    # Sealed, so neither changes any more; pages that are not there yet would be made by reading them.
    if not DATA_AT < found.st_size <= MOST_BYTES or found.st_blocks * 512 < found.st_size:
        raise _Refused(f"{found.st_size} bytes of it cannot be held")
    pages = mmap.mmap(file, found.st_size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    if not hmac.compare_digest(pages[:TOKEN_BYTES], token):
        raise _Refused("it is another process's")
    return np.frombuffer(pages, np.uint8, -1, DATA_AT)
