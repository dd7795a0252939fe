"""Descriptors with numbers that select() cannot name, as a driver of a large cluster has."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
from collections.abc import Iterator

import pytest

FAR_FD = 1100


@contextlib.contextmanager
def many_allowed() -> Iterator[None]:
    """Numbers above FAR_FD may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= FAR_FD + 100:
        pytest.skip(f"the hard limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FAR_FD + 100), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def many_open() -> Iterator[None]:
    """All numbers below FAR_FD are taken: whatever is opened has a larger one."""
    with many_allowed():
        gc.collect()  # what is garbage now gives no number back later
        taken = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
        try:
            while taken[-1] < FAR_FD:
                taken.append(os.dup(taken[0]))
            yield
        finally:
            for fd in taken:
                os.close(fd)


def far(fd: int) -> int:
    """The same file under a number of FAR_FD or more."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FAR_FD)
    os.close(fd)
    return moved
