"""The test's end of the data plane: one ZeroMQ ROUTER over TCP, its keys, and who is connected."""

from __future__ import annotations

import os
import secrets
import select
import time
from dataclasses import dataclass
from typing import Protocol

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from workers.port import content_of, harden, readable, send_parts
from workers.protocol import Buffer

ZAP_DOMAIN = "loadgrid"


# Messages dropped in one call: somebody who floods the link must not keep its owner from everything else.
DROPS_AT_MOST = 64
# How long a range without a free port is tried again: another test may just be counting them.
PORTS_S, LOOK_S = 1.0, 0.05
# How long the last messages (BYE) may take to leave when a link is closed.
CLOSE_LINGER_MS = 500


class LinkError(Exception):
    """The test cannot listen where it was told to; the text says where and the mend."""


CLOSED = "its connection closed"


class LinkDown(Exception):
    """A message could not be handed to a worker's link: the worker is lost."""


@dataclass(frozen=True)
class Peer:
    """A worker that may connect: its public CURVE key, empty with `security: none`."""

    name: str
    public_key: str = ""


class Link(Protocol):
    """Carries messages between the test and its workers, which are numbered from 0."""

    def send(self, worker: int, parts: list[Buffer]) -> None:
        """Send a message; LinkDown if the worker cannot be reached, always once lost() has told of it."""

    def recv(self) -> tuple[int, list[Buffer]] | None:
        """The next message and who sent it, None if there is none."""

    def lost(self) -> list[tuple[int, str]]:
        """Workers whose link broke since the last call, with the reason."""

    def wait(self, timeout_ms: int) -> None:
        """Sleep until there is something to receive, a link breaks, wake() is called, or the time is over."""

    def wake(self) -> None:
        """End a wait; safe from any thread."""

    def close(self) -> None:
        """Give everything back."""


def identity_of(worker: int) -> bytes:
    """The routing id of a worker; one that starts with a zero byte is reserved."""
    return b"W%d" % worker


class _KnownKeys:
    """The allow-list of the ZAP handler: CURVE alone authenticates nobody."""

    def __init__(self, peers: list[Peer]) -> None:
        self._keys = {p.public_key.encode() for p in peers}

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether this public key, as Z85 text, may connect."""
        return key in self._keys


def _bind(socket: zmq.Socket[bytes], address: str, order: list[int], count: int, threads: int) -> list[str]:
    """Bind to the first `count` free ports of `order` (0: any), each for its share of the I/O threads."""
    host = f"[{address}]" if ":" in address else address
    if ":" in address:
        socket.setsockopt(zmq.IPV6, 1)
    endpoints: list[str] = []
    for port in order:
        if len(endpoints) == count:
            break
        share = sum(1 << thread for thread in range(len(endpoints), threads, count))
        socket.setsockopt(zmq.AFFINITY, share - (share >> 63 << 64))  # 64 bits, but as a signed number
        try:
            socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                continue
            raise LinkError(f"cannot listen on {address}: {error.strerror}") from None
        endpoints.append(str(socket.getsockopt_string(zmq.LAST_ENDPOINT)))
    return endpoints


class RouterLink:
    """A ROUTER bound to one address, one key per worker, a fresh server key per test.

    It listens on a port for each I/O thread; `endpoints` says where each worker is to connect. `ports` (low,
    high) bounds them for firewalls, and one free port will do; None lets the system choose. LinkError: none
    is free.
    """

    def __init__(
        self,
        peers: list[Peer],
        address: str,
        *,
        ports: tuple[int, int] | None = None,
        security: str = "curve",
        io_threads: int = 1,
    ) -> None:
        self._peers = peers
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context(io_threads)
        self._context.setsockopt(zmq.MAX_SOCKETS, 4096)
        self._auth: ThreadAuthenticator | None = None
        self._socket = self._context.socket(zmq.ROUTER)
        harden(self._socket)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
        self.server_key: str | None = None
        self._secure = security != "none"
        if self._secure:
            self._use_keys()
        self._identities = [identity_of(i) for i in range(len(peers))]
        self._numbers = {identity: i for i, identity in enumerate(self._identities)}
        self._descriptors: dict[int, int] = {}  # of the connection -> worker
        self._admitted = [False] * len(peers)
        self._gone: set[int] = set()
        self._lost: list[tuple[int, str]] = []
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitor_fd = self._monitor.fileno()
        self._epoll = select.epoll()
        for fd in (self._socket.fileno(), self._monitor_fd, self._wake):
            self._epoll.register(fd, select.EPOLLIN)
        try:
            bound = self._listen(address, ports, io_threads)
        except LinkError:
            self.close()
            raise
        self.endpoints = [bound[worker % len(bound)] for worker in range(len(peers))]

    def _use_keys(self) -> None:
        self._auth = ThreadAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback(ZAP_DOMAIN, credentials_provider=_KnownKeys(self._peers))
        public, secret = zmq.curve_keypair()
        self._socket.curve_server = True
        self._socket.curve_secretkey = secret
        self._socket.curve_publickey = public
        self._socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self.server_key = public.decode()

    def _listen(self, address: str, ports: tuple[int, int] | None, threads: int) -> list[str]:
        """The endpoints: one for each I/O thread, fewer for fewer workers or free ports.

        ZeroMQ gives a connection to the thread with the least to do, but hears of that late: of four workers
        that came at once two often had the same one, which encrypts 0.8 GB/s, and others none.
        """
        count = min(threads, len(self._peers))
        order, which = [0] * count, ""
        if ports is not None:
            low, high = ports
            # The next test takes another port where it can: a straggler of this one knocks at a closed door.
            first = low + secrets.randbelow(high - low + 1)
            order, which = [*range(first, high + 1), *range(low, first)], f" of {low} to {high}"
            if count > 1:
                # Which threads are a port's depends on how many are free, and only binding tells that. No
                # more than half is taken: other tests may come into the same range.
                with zmq.Context() as context, context.socket(zmq.ROUTER) as trial:
                    free = len(_bind(trial, address, order, 2 * count, 1))
                count = max(min(count, free // 2), 1)
        until = time.monotonic() + PORTS_S
        while not (bound := _bind(self._socket, address, order, count, threads)):
            if time.monotonic() > until:
                taken = f"every port{which} on {address} is taken"
                raise LinkError(f"{taken}: end what listens there, or widen dispatch.ports")
            time.sleep(LOOK_S)
        return bound

    def send(self, worker: int, parts: list[Buffer]) -> None:
        """Send a message; LinkDown as above."""
        # ZeroMQ tells of a closed connection before it lets go of its pipe: until then it would take messages
        # that go nowhere, and afterwards somebody else could hold the identity.
        if worker in self._gone:
            raise LinkDown(CLOSED)
        try:
            self._socket.send(self._identities[worker], zmq.SNDMORE | zmq.DONTWAIT)
            send_parts(self._socket, parts)
        except zmq.ZMQError:
            # EHOSTUNREACH or EAGAIN: never ignored, it is a loss. ZeroMQ's "Host unreachable" would mislead:
            # it says that the connection is gone, also where the worker was killed on this very host.
            raise LinkDown(CLOSED) from None

    def recv(self) -> tuple[int, list[Buffer]] | None:
        """The next message of a known worker; a message of anybody else is dropped.

        None after many of these, though more may wait; the next wait() then ends at once.
        """
        for _ in range(DROPS_AT_MOST):
            try:
                identity = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return None
            first = self._socket.recv(zmq.DONTWAIT, copy=False)
            parts = [content_of(first)]
            frame = first
            while frame.more:
                frame = self._socket.recv(zmq.DONTWAIT, copy=False)
                parts.append(content_of(frame))
            worker = self._numbers.get(identity)
            # The key of every message (1 us): an identity is free again as soon as its connection breaks, and
            # any worker of this test could take it.
            if worker is None or (self._secure and first.get("User-Id") != self._peers[worker].public_key):
                continue
            if not self._admitted[worker]:
                self._admit(worker, first)
            return worker, parts
        return None

    def _admit(self, worker: int, frame: zmq.Frame) -> None:
        """On a worker's first message: remember its connection, to know whom a break concerns."""
        # The system gives descriptors out again: what closed before must not be taken for this one.
        self._collect()
        self._descriptors[int(frame.get(zmq.SRCFD))] = worker
        self._admitted[worker] = True

    def _collect(self) -> None:
        """Note which workers' connections have closed."""
        while readable(self._monitor):
            event = parse_monitor_message(self._monitor.recv_multipart())
            worker = self._descriptors.pop(int(event["value"]), None)
            if worker is not None:
                # A worker that lost its link never comes back into this test.
                self._numbers.pop(identity_of(worker), None)
                self._gone.add(worker)
                self._lost.append((worker, "its link to the test closed"))

    def lost(self) -> list[tuple[int, str]]:
        """Workers whose connection closed since the last call."""
        self._collect()
        found, self._lost = self._lost, []
        return found

    def wait(self, timeout_ms: int) -> None:
        """Sleep until something happens."""
        # The socket's descriptor only tells of changes: what arrived before must be asked for. A poll of
        # ZeroMQ's own costs three times as much.
        if readable(self._socket):
            return
        for fd, _ in self._epoll.poll(timeout_ms * 1e-3):
            if fd == self._wake:
                os.eventfd_read(self._wake)
            elif fd == self._monitor_fd:
                self._collect()

    def wake(self) -> None:
        """End a wait; safe from any thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the socket and give everything back."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(CLOSE_LINGER_MS)
        if self._auth is not None:
            self._auth.stop()
        self._context.term()
        self._epoll.close()
        os.close(self._wake)
