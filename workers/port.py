"""The worker's end of the data plane: one ZeroMQ DEALER over TCP, for one test."""

from __future__ import annotations

import os
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from workers.protocol import MAX_MESSAGE_BYTES, Buffer
from workers.waiting import wait_readable

# A cut cable closes no socket. TCP finds it: what is sent and not acknowledged for this long ends the
# connection, and so do keepalives without an answer where nothing is sent.
TCP_SILENCE_MS = 3000
KEEPALIVE_S = 1
KEEPALIVES = 3
# A heartbeat of libzmq waits behind the part that is on the wire: with a timeout of 3 s, 100 MB in one part
# at 20 MB/s lost an honest worker. It is only the second net. Neither finds a hang: libzmq and the system
# answer by themselves.
HEARTBEAT_MS = 5000
HEARTBEAT_TIMEOUT_MS = 30_000
# What encryption adds to a part, with room to spare.
CURVE_BYTES = 1024
# Parts above this are received without a copy.
NO_COPY_BYTES = 65536
# A silent reconnect lost 4 answers of 20: a link that broke stays broken, and the loss is told. Not by -1:
# libzmq then takes the connection's pipe away with all that had come in it. On two busy cores the last
# message before a close was lost 90 times of 600, and this way never. libzmq takes 24 days at most.
NEVER_MS = 2**31 - 1
# A system call costs about as much as this.
MIN_SLEEP_NS = 20_000
HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)


def new_key_pair() -> tuple[str, str]:
    """A fresh CURVE key pair (public, secret), as Z85 text."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def harden(socket: zmq.Socket[bytes]) -> None:
    """Options that both ends share, each of which was seen to bite.

    With default high-water marks 6,000 frames of 150 KB to a slow reader lost 4,500 without an error: credit
    is the bound here, so the marks are off.
    """
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES + CURVE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_MAXRT, TCP_SILENCE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVES)


def receive_parts(socket: zmq.Socket[bytes]) -> list[Buffer] | None:
    """One whole multipart message, None if there is none; large parts come as views, not copies."""
    try:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
    parts = [content_of(frame)]
    while frame.more:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
        parts.append(content_of(frame))
    return parts


def readable(socket: Any) -> bool:
    """Whether a message waits; a poll would cost several times as much, and the loop asks every time."""
    return bool(socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)


def send_parts(socket: zmq.Socket[bytes], parts: list[Buffer]) -> None:
    """Send a message without waiting; large parts are not copied, so they must not change any more."""
    for part in parts[:-1]:
        socket.send(part, zmq.SNDMORE | zmq.DONTWAIT, copy=len(part) <= NO_COPY_BYTES)
    socket.send(parts[-1], zmq.DONTWAIT, copy=len(parts[-1]) <= NO_COPY_BYTES)


def content_of(frame: Any) -> Buffer:
    """A part: bytes if it is small, else a view of the frame."""
    return frame.bytes if len(frame) <= NO_COPY_BYTES else frame.buffer


class PortError(Exception):
    """The test's address cannot be connected to."""


class DealerPort:
    """A DEALER connected to the test's ROUTER; `server_key` None means `security: none`."""

    def __init__(
        self,
        endpoint: str,
        identity: bytes,
        server_key: str | None,
        keys: tuple[str, str],
        io_threads: int = 1,
    ) -> None:
        self._lost: str | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context(io_threads)
        self._socket = self._context.socket(zmq.DEALER)
        harden(self._socket)
        self._socket.setsockopt(zmq.ROUTING_ID, identity)
        self._socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, 10_000)
        if "[" in endpoint:
            self._socket.setsockopt(zmq.IPV6, 1)
        if server_key is not None:
            self._socket.curve_serverkey = server_key.encode()
            self._socket.curve_publickey = keys[0].encode()
            self._socket.curve_secretkey = keys[1].encode()
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | sum(HANDSHAKE_FAILURES)
        )
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise PortError(f"cannot connect to {endpoint}: {error.strerror}") from None
        self._descriptors = [self._socket.fileno(), self._monitor.fileno(), self._wake]

    def wait(self, timeout_ns: int, fd: int | None) -> None:
        """Sleep until there is a message, `fd` is readable, the link is lost, or `timeout_ns` is over."""
        if timeout_ns < MIN_SLEEP_NS:
            return
        # The socket's descriptor only tells of changes: what arrived before must be asked for.
        if readable(self._socket):
            return
        waits = self._descriptors if fd is None else [*self._descriptors, fd]
        if self._wake in wait_readable(waits, timeout_ns):
            os.eventfd_read(self._wake)

    def recv(self) -> list[Buffer] | None:
        """The next message, None if there is none."""
        return receive_parts(self._socket)

    def send(self, parts: list[Buffer]) -> None:
        """Send a message; never blocks, because the high-water mark is off. Nothing leaves by a lost link."""
        if self._lost is None:
            try:
                send_parts(self._socket, parts)
            except zmq.Again:
                # The link is gone, which the monitor tells a moment later: lost() knows why.
                pass

    def lost(self) -> str | None:
        """Why the link is gone, None while it holds."""
        while self._lost is None and readable(self._monitor):
            event = parse_monitor_message(self._monitor.recv_multipart())
            if event["event"] in HANDSHAKE_FAILURES:
                self._lost = "the test refused this worker's key, or the handshake failed"
            else:
                self._lost = "the link to the test is closed"
        return self._lost

    def wake(self) -> None:
        """End a wait from another thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the socket and give everything back."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()
        os.close(self._wake)
