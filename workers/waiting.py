"""Waiting for descriptors of any number, by the microsecond. No ZeroMQ in it, so both sides' links use it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Sequence

# glibc's FD_SETSIZE: select() can name no descriptor from here on, and Python refuses it.
SELECTABLE = 1024
_POLLIN = select.POLLIN


class _Waited(ctypes.Structure):
    """struct pollfd."""

    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("found", ctypes.c_short)]


class _Timeout(ctypes.Structure):
    """struct timespec."""

    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]


_libc = ctypes.CDLL(None, use_errno=True)


def wait_readable(fds: Sequence[int], timeout_ns: int) -> list[int]:
    """Those of `fds` that are readable or broken, as soon as one is; none once the time is over.

    Not by poll(), whose milliseconds are too coarse for forming a batch just before the engine is free.
    select() costs 1 us here and ppoll(), which Python does not have, 4 to 6.
    """
    if max(fds, default=0) < SELECTABLE:
        return select.select(fds, (), (), timeout_ns * 1e-9)[0]
    return _ppoll(fds, timeout_ns)


def _ppoll(fds: Sequence[int], timeout_ns: int) -> list[int]:
    waited = (_Waited * len(fds))(*(_Waited(fd, _POLLIN) for fd in fds))
    timeout = _Timeout(*divmod(timeout_ns, 1_000_000_000))
    if _libc.ppoll(waited, ctypes.c_ulong(len(fds)), ctypes.byref(timeout), None) < 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            return []  # a signal: whoever waits looks up now and then anyway
        raise OSError(code, os.strerror(code))
    if any(one.found & select.POLLNVAL for one in waited):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as select()
    return [one.fd for one in waited if one.found]
