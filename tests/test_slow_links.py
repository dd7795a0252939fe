"""Large samples and slow cables: bytes are bounded, and what is only slow is no loss."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from orchestrator import dispatch
from orchestrator.dispatch import Dispatcher, Lump
from orchestrator.link import Peer, RouterLink
from orchestrator.pace import Pace
from orchestrator.query_samples import packed
from tests.processes import eventually
from workers.port import DealerPort, new_key_pair, readable

TIME_BUDGET_S = 15

S = 10**9
MAX_BATCH = 64


def paced(batch_s: float) -> Pace:
    return Pace([(1, batch_s), (MAX_BATCH, batch_s)], MAX_BATCH)


def dispatcher(sample_bytes: float, workers: int = 1, one_sample_frames: bool = False) -> Dispatcher:
    return Dispatcher(
        [(f"node/{i}", paced(0.01)) for i in range(workers)],
        one_sample_frames=one_sample_frames,
        sample_bytes=sample_bytes,
    )


def frames(d: Dispatcher, samples: int) -> list[tuple[int, int]]:
    """(worker, samples) of each frame that is sent when so many samples are issued at once."""
    d.issue(Lump(packed(range(samples), range(samples)), 0))
    return [(send.worker, len(send.indices)) for send in d.sends(0)]


# Bytes


def test_a_worker_holds_no_more_bytes_than_its_bound_however_fast_it_is() -> None:
    sent = frames(dispatcher(3_200_000.0, 2), 1000)
    for worker in (0, 1):
        assert sum(n for who, n in sent if who == worker) == dispatch.BYTES_PER_WORKER // 3_200_000 == 80
    assert max(n for _, n in sent) == dispatch.BYTES_PER_FRAME // 3_200_000 == 5


def test_a_slow_worker_is_bound_in_bytes_too() -> None:
    d = Dispatcher([("fast", paced(0.01)), ("slow", paced(0.05))], sample_bytes=8e6)
    assert sum(n for worker, n in frames(d, 10_000) if worker == 1) == 32


def test_a_sample_larger_than_every_bound_still_travels_alone() -> None:
    assert frames(dispatcher(1e9, 2), 10) == [(0, 1), (1, 1)]


def test_small_samples_and_indices_travel_as_before() -> None:
    assert frames(dispatcher(0.0), 1000) == frames(dispatcher(100.0), 1000) == [(0, 2 * MAX_BATCH)]


def test_the_network_division_has_one_large_sample_a_message() -> None:
    assert frames(dispatcher(16e6, one_sample_frames=True), 50) == [(0, 1)] * 16


def test_bytes_on_the_wire_of_all_workers_are_time_that_is_no_hang() -> None:
    d = dispatcher(3_200_000.0, 4)
    frames(d, 1000)
    on_the_wire_s = 4 * 80 * 3_200_000 / dispatch.SLOWEST_WIRE_BYTES_S
    assert on_the_wire_s > 20
    assert d.hung(int((dispatch.HANG_FLOOR_S + on_the_wire_s - 0.1) * S)) == []
    assert len(d.hung(int((dispatch.HANG_FLOOR_S + on_the_wire_s + 0.1) * S))) == 4
    # The others are gone, and what they held had the cable for as long as it was theirs.
    for worker in (1, 2, 3):
        d.lose(worker, "gone", S)
    assert d.hung(int((dispatch.HANG_FLOOR_S + on_the_wire_s - 0.1) * S)) == []


# Cables


@contextlib.contextmanager
def linked(address: str = "127.0.0.1") -> Iterator[tuple[RouterLink, tuple[str, str]]]:
    keys = new_key_pair()
    link = RouterLink([Peer("w0", keys[0])], address)
    yield link, keys
    link.close()


def received(link: RouterLink, limit_s: float = 10.0) -> list[int] | None:
    """The lengths of the next message's parts; None if the link breaks or nothing comes."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and not link.lost():
        if (got := link.recv()) is not None:
            return [len(part) for part in got[1]]
        link.wait(20)
    return None


def slow_cable(port: int, *, whole: int, pause_s: float) -> str:
    """An endpoint before `port` that takes all at once, passes `whole` bytes on and then pauses."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                sink.sendall(data[:left])
                if left < len(data):
                    time.sleep(pause_s)
                    sink.sendall(data[left:])
                    left = 1 << 40
                left -= len(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=pump, args=(far, near, 1 << 40), daemon=True).start()
        pump(near, far, whole)
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def test_a_part_that_takes_long_on_the_wire_is_no_loss() -> None:
    # Heartbeats wait behind it: with their former limit of 3 s the worker was lost here.
    with linked() as (link, keys):
        way = slow_cable(int(link.endpoints[0].rsplit(":", 1)[1]), whole=50_000, pause_s=4.5)
        port = DealerPort(way, b"W0", link.server_key, keys)
        port.send([b"hello"])
        assert received(link) == [5]
        begun = time.monotonic()
        port.send([b"answer", bytes(100_000)])
        assert received(link) == [6, 100_000]
        assert time.monotonic() - begun > 4 and port.lost() is None
        port.close()


def test_both_ends_let_tcp_see_a_cut_cable_within_seconds() -> None:
    with linked() as (link, keys):
        port = DealerPort(link.endpoints[0], b"W0", link.server_key, keys)
        for end in (link._socket, port._socket):
            assert end.getsockopt(zmq.TCP_MAXRT) == 3000
            assert end.getsockopt(zmq.TCP_KEEPALIVE) == end.getsockopt(zmq.TCP_KEEPALIVE_IDLE) == 1
            assert end.getsockopt(zmq.TCP_KEEPALIVE_INTVL) == 1 and end.getsockopt(zmq.TCP_KEEPALIVE_CNT) == 3
            assert end.getsockopt(zmq.HEARTBEAT_TIMEOUT) == end.getsockopt(zmq.HEARTBEAT_TTL) == 30_000
        port.close()


def test_a_worker_reaches_a_test_that_listens_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with linked("::1") as (link, keys):
        assert "[::1]" in link.endpoints[0]
        port = DealerPort(link.endpoints[0], b"W0", link.server_key, keys)
        port.send([b"hello"])
        assert received(link) == [5]
        port.close()


def test_a_flood_of_messages_to_drop_leaves_the_owner_free_and_the_worker_heard() -> None:
    with linked() as (link, keys):
        stranger = DealerPort(link.endpoints[0], b"nobody", link.server_key, keys)
        for _ in range(5000):
            stranger.send([b"drop me"])
        for _ in range(3):  # the owner is free again while messages still wait
            assert eventually(lambda: readable(link._socket), 5, every_s=0.01)
            assert link.recv() is None
        port = DealerPort(link.endpoints[0], b"W0", link.server_key, keys)
        port.send([b"hello"])
        end = time.monotonic() + 10
        while (got := link.recv()) is None and time.monotonic() < end:
            link.wait(20)
        assert got is not None and got[0] == 0
        stranger.close()
        port.close()
