"""The in-process link: the same messages through queues. For `workers: {where: local}`, tests and new users."""

from __future__ import annotations

import os
import select
from collections import deque

from orchestrator.link import LinkDown
from workers.protocol import Buffer


class _Bell:
    """An eventfd that ends a wait from any thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def silence(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return  # it had not rung


def _flat(parts: list[Buffer]) -> list[Buffer]:
    """Views of foreign memory become bytes, as they would on a wire: a sender may reuse its buffer."""
    return [bytes(p) if isinstance(p, memoryview) else p for p in parts]


class LocalPort:
    """A worker's end of a LocalLink."""

    def __init__(self, link: LocalLink, worker: int) -> None:
        self._link = link
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
        ready, _, _ = select.select(fds, (), (), timeout_ns * 1e-9)
        if self._bell.fd in ready:
            self._bell.silence()

    def recv(self) -> list[Buffer] | None:
        """The next message, None if there is none."""
        return self.inbox.popleft() if self.inbox else None

    def send(self, parts: list[Buffer]) -> None:
        """Send a message to the test."""
        if self.broken is None:
            self._link.post(self._worker, _flat(parts))

    def lost(self) -> str | None:
        """Why the link is gone, None while it holds."""
        return self.broken

    def wake(self) -> None:
        """End a wait from another thread."""
        self._bell.ring()

    def close(self) -> None:
        """Break the link, as a socket that closes does."""
        if self.broken is None:
            self._link.cut(self._worker, "its link to the test closed")


class LocalLink:
    """Carries messages between the test and worker threads of the same process."""

    endpoint = "in-process"
    server_key: str | None = None

    def __init__(self, workers: int) -> None:
        self._bell = _Bell()
        self._inbox: deque[tuple[int, list[Buffer]]] = deque()
        self._lost: deque[tuple[int, str]] = deque()
        self.ports = [LocalPort(self, i) for i in range(workers)]

    def post(self, worker: int, parts: list[Buffer]) -> None:
        """Put a worker's message into the test's inbox (called by a port)."""
        self._inbox.append((worker, parts))
        self._bell.ring()

    def cut(self, worker: int, reason: str) -> None:
        """Break the link to a worker."""
        self.ports[worker].broken = reason
        self._lost.append((worker, reason))
        self.ports[worker].wake()
        self._bell.ring()

    def send(self, worker: int, parts: list[Buffer]) -> None:
        """Send a message; LinkDown if the link was cut."""
        port = self.ports[worker]
        if port.broken is not None:
            raise LinkDown(port.broken)
        port.deliver(parts)

    def recv(self) -> tuple[int, list[Buffer]] | None:
        """The next message and who sent it, None if there is none."""
        return self._inbox.popleft() if self._inbox else None

    def lost(self) -> list[tuple[int, str]]:
        """Workers whose link broke since the last call."""
        found = []
        while self._lost:
            found.append(self._lost.popleft())
        return found

    def wait(self, timeout_ms: int) -> None:
        """Sleep until something happens."""
        if self._inbox:
            return
        ready, _, _ = select.select([self._bell.fd], (), (), timeout_ms * 1e-3)
        if ready:
            self._bell.silence()

    def wake(self) -> None:
        """End a wait; safe from any thread."""
        self._bell.ring()

    def close(self) -> None:
        """Cut every worker."""
        for worker, port in enumerate(self.ports):
            if port.broken is None:
                self.cut(worker, "the test is over")
