"""The in-process link: the same messages through queues.

For `workers: {where: local}`, for tests and for new users.
"""

from __future__ import annotations

import os
import select
from collections import deque

from orchestrator.link import LinkDown
from workers.protocol import Buffer
from workers.waiting import wait_readable


class _Bell:
    """An eventfd that ends a wait from any thread; closed with its last holder, never while one may ring."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def silence(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return  # it had not rung


class _TestEnd:
    """What workers fill and the test empties; ports hold this and not the link, so no cycle keeps them."""

    def __init__(self) -> None:
        self.bell = _Bell()
        self.inbox: deque[tuple[int, list[Buffer]]] = deque()
        self.lost: deque[tuple[int, str]] = deque()


def _flat(parts: list[Buffer]) -> list[Buffer]:
    """Views of foreign memory become bytes, as they would on a wire: a sender may reuse its buffer."""
    return [bytes(p) if isinstance(p, memoryview) else p for p in parts]


class LocalPort:
    """A worker's end of a LocalLink."""

    def __init__(self, test_end: _TestEnd, worker: int) -> None:
        self._test_end = test_end
        self._worker = worker
        self._bell = _Bell()
        self.inbox: deque[list[Buffer]] = deque()
        self.broken: str | None = None

    def deliver(self, parts: list[Buffer]) -> None:
        """Put a message into the inbox (called by the link)."""
        self.inbox.append(_flat(parts))
        self._bell.ring()

    def wait(self, timeout_ns: int, fd: int | None) -> None:
        """Sleep until a message is there, `fd` is readable, the link breaks, or the time is over."""
        if timeout_ns <= 0 or self.inbox:
            return
        fds = [self._bell.fd] if fd is None else [self._bell.fd, fd]
        if self._bell.fd in wait_readable(fds, timeout_ns):
            self._bell.silence()

    def recv(self) -> list[Buffer] | None:
        """The next message, None if there is none."""
        return self.inbox.popleft() if self.inbox else None

    def send(self, parts: list[Buffer]) -> None:
        """Send a message to the test."""
        if self.broken is None:
            self._test_end.inbox.append((self._worker, _flat(parts)))
            self._test_end.bell.ring()

    def lost(self) -> str | None:
        """Why the link is gone, None while it holds."""
        return self.broken

    def wake(self) -> None:
        """End a wait from another thread."""
        self._bell.ring()

    def cut(self, reason: str) -> None:
        """Break the link; both ends hear of it."""
        if self.broken is not None:
            return
        self.broken = reason
        self._test_end.lost.append((self._worker, reason))
        self._test_end.bell.ring()
        self._bell.ring()

    def close(self) -> None:
        """Break the link, as a socket that closes does."""
        self.cut("its link to the test closed")


class LocalLink:
    """Carries messages between the test and worker threads of the same process."""

    endpoint = "in-process"
    server_key: str | None = None

    def __init__(self, workers: int) -> None:
        self._end = _TestEnd()
        self._heard = select.poll()
        self._heard.register(self._end.bell.fd, select.POLLIN)
        self.ports = [LocalPort(self._end, i) for i in range(workers)]

    def cut(self, worker: int, reason: str) -> None:
        """Break the link to a worker."""
        self.ports[worker].cut(reason)

    def send(self, worker: int, parts: list[Buffer]) -> None:
        """Send a message; LinkDown if the link was cut."""
        port = self.ports[worker]
        if port.broken is not None:
            raise LinkDown(port.broken)
        port.deliver(parts)

    def recv(self) -> tuple[int, list[Buffer]] | None:
        """The next message and who sent it, None if there is none."""
        return self._end.inbox.popleft() if self._end.inbox else None

    def lost(self) -> list[tuple[int, str]]:
        """Workers whose link broke since the last call."""
        found = []
        while self._end.lost:
            found.append(self._end.lost.popleft())
        return found

    def wait(self, timeout_ms: int) -> None:
        """Sleep until something happens."""
        if self._end.inbox:
            return
        if self._heard.poll(timeout_ms):
            self._end.bell.silence()

    def wake(self) -> None:
        """End a wait; safe from any thread."""
        self._end.bell.ring()

    def close(self) -> None:
        """Cut every worker."""
        for port in self.ports:
            port.cut("the test is over")
