"""The links between the test and its workers: one contract for all, then what keys and ports promise."""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from orchestrator.link import Link, LinkDown, Peer, RouterLink, identity_of
from orchestrator.local import LocalLink
from tests.processes import eventually
from workers.port import DealerPort, new_key_pair
from workers.protocol import Buffer

TIME_BUDGET_S = 25

SECOND_NS = 1_000_000_000
KINDS = ("curve", "none", "two threads", "local")


@dataclass
class Ends:
    """A link and the ports of its workers, each opened when asked for."""

    kind: str
    link: Any
    keys: list[tuple[str, str]]
    opened: list[Any] = field(default_factory=list)

    def port(self, worker: int) -> Any:
        if self.kind == "local":
            port = self.link.ports[worker]
        else:
            port = self.stranger(identity_of(worker), self.keys[worker], self.link.endpoints[worker])
        self.opened.append(port)
        return port

    def stranger(self, identity: bytes, keys: tuple[str, str], endpoint: str | None = None) -> DealerPort:
        port = DealerPort(endpoint or self.link.endpoints[0], identity, self.link.server_key, keys)
        self.opened.append(port)
        return port

    def greeted(self, worker: int) -> Any:
        """A port whose first message the link has received."""
        port = self.port(worker)
        port.send([b"hello"])
        assert receive(self.link, 1) == [(worker, [b"hello"])]
        return port

    def close(self) -> None:
        self.link.close()
        for port in {id(p): p for p in self.opened}.values():
            port.close()


def open_ends(kind: str, workers: int = 2, **options: Any) -> Ends:
    if kind == "local":
        return Ends(kind, LocalLink(workers), [])
    keys = [new_key_pair() for _ in range(workers)]
    peers = [Peer(f"worker-{i}", public) for i, (public, _) in enumerate(keys)]
    options |= {"io_threads": 2} if kind == "two threads" else {"security": kind}
    return Ends(kind, RouterLink(peers, "127.0.0.1", **options), keys)


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    found = open_ends(request.param)
    yield found
    found.close()


@pytest.fixture
def secured() -> Iterator[Ends]:
    found = open_ends("curve")
    yield found
    found.close()


def receive(link: Link, count: int, limit_s: float = 10.0) -> list[tuple[int, list[bytes]]]:
    """The next `count` messages, fewer if they do not come in time."""
    got: list[tuple[int, list[bytes]]] = []
    end = time.monotonic() + limit_s
    while len(got) < count and time.monotonic() < end:
        message = link.recv()
        if message is None:
            link.wait(50)
        else:
            got.append((message[0], as_bytes(message[1])))
    return got


def receive_busily(link: Link, count: int, limit_s: float = 10.0) -> list[tuple[int, list[bytes]]]:
    """As receive(), by a loop that never waits: one that is too busy to hear of broken links first."""
    got: list[tuple[int, list[bytes]]] = []
    end = time.monotonic() + limit_s
    while len(got) < count and time.monotonic() < end:
        if (message := link.recv()) is not None:
            got.append((message[0], as_bytes(message[1])))
    return got


def receive_at(port: Any, count: int, limit_s: float = 10.0) -> list[list[bytes]]:
    got: list[list[bytes]] = []
    end = time.monotonic() + limit_s
    while len(got) < count and time.monotonic() < end:
        parts = port.recv()
        if parts is None:
            port.wait(SECOND_NS // 20, None)
        else:
            got.append(as_bytes(parts))
    return got


def as_bytes(parts: list[Buffer]) -> list[bytes]:
    return [bytes(part) for part in parts]


def gone(link: Link, limit_s: float = 5.0) -> tuple[list[tuple[int, str]], float]:
    """What lost() tells first, and after how many seconds."""
    begun = time.monotonic()
    found: list[tuple[int, str]] = []
    while not found and time.monotonic() < begun + limit_s:
        link.wait(20)
        link.recv()
        found = link.lost()
    return found, time.monotonic() - begun


def seconds_of(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


# The contract


def test_messages_keep_their_order_and_their_sender_in_both_directions(ends: Ends) -> None:
    ports = [ends.greeted(0), ends.greeted(1)]
    for number in range(500):
        for port in ports:
            port.send([b"up %d" % number, b""])
        for worker in (0, 1):
            ends.link.send(worker, [b"down %d of %d" % (number, worker)])
    got = receive(ends.link, 1000)
    for worker in (0, 1):
        assert [parts for who, parts in got if who == worker] == [[b"up %d" % n, b""] for n in range(500)]
        wanted = [[b"down %d of %d" % (n, worker)] for n in range(500)]
        assert receive_at(ports[worker], 500) == wanted


def test_parts_of_several_megabytes_arrive_intact(ends: Ends, rng: np.random.Generator) -> None:
    port = ends.greeted(0)
    sizes = (3, 65_536, 65_537, 5_000_000, 0, 12_000_001)
    parts: list[Buffer] = [rng.integers(0, 256, size, np.uint8).data for size in sizes]
    parts[0] = bytes(parts[0])
    ends.link.send(0, parts)
    assert receive_at(port, 1) == [as_bytes(parts)]
    port.send(parts)
    assert receive(ends.link, 1) == [(0, as_bytes(parts))]


def test_many_small_messages_all_arrive_though_nobody_reads_at_first(ends: Ends) -> None:
    port = ends.greeted(0)
    count = 20_000
    for number in range(count):
        port.send([number.to_bytes(4, "little")])
        ends.link.send(0, [number.to_bytes(4, "little")])
    assert [int.from_bytes(p[0], "little") for _, p in receive(ends.link, count)] == list(range(count))
    assert [int.from_bytes(p[0], "little") for p in receive_at(port, count)] == list(range(count))


def test_a_message_ends_a_wait_at_either_end(ends: Ends) -> None:
    port = ends.greeted(0)
    threading.Timer(0.05, lambda: port.send([b"up"])).start()
    assert seconds_of(lambda: receive(ends.link, 1)) < 2
    threading.Timer(0.05, lambda: ends.link.send(0, [b"down"])).start()
    assert seconds_of(lambda: receive_at(port, 1)) < 2


def test_wake_ends_a_wait_even_when_it_comes_first(ends: Ends) -> None:
    port = ends.greeted(0)
    for wake, wait in (
        (ends.link.wake, lambda: ends.link.wait(10_000)),
        (port.wake, lambda: port.wait(10 * SECOND_NS, None)),
    ):
        threading.Timer(0.05, wake).start()
        assert seconds_of(wait) < 2
        wake()
        assert seconds_of(wait) < 2


def test_wake_ends_one_wait_and_not_the_next(ends: Ends) -> None:
    port = ends.greeted(0)
    waits: list[tuple[Callable[[], None], Callable[[int], None]]] = [
        (ends.link.wake, ends.link.wait),
        (port.wake, lambda ms: port.wait(ms * SECOND_NS // 1000, None)),
    ]
    for wake, wait in waits:
        wait(10)  # whatever the greeting left is taken
        wake()
        assert seconds_of(functools.partial(wait, 10_000)) < 2
        assert 0.04 < seconds_of(functools.partial(wait, 50)) < 2


def test_the_end_of_a_link_ends_a_wait(ends: Ends) -> None:
    ends.greeted(0)
    port = ends.greeted(1)
    ends.link.wait(10)
    threading.Timer(0.05, port.close).start()
    assert seconds_of(lambda: ends.link.wait(10_000)) < 2
    assert ends.opened[0].lost() is None
    threading.Timer(0.05, ends.link.close).start()
    assert seconds_of(lambda: ends.opened[0].wait(10 * SECOND_NS, None)) < 2


def test_a_wait_with_nothing_to_tell_lasts_its_time_and_no_longer(ends: Ends) -> None:
    port = ends.greeted(0)
    port.wait(SECOND_NS // 100, None)  # whatever the greeting left is taken
    assert 0.04 < seconds_of(lambda: port.wait(SECOND_NS // 20, None)) < 2
    ends.link.wait(1)
    assert 0.04 < seconds_of(lambda: ends.link.wait(50)) < 2


def test_a_descriptor_of_the_engine_ends_the_wait_of_a_port(ends: Ends) -> None:
    port = ends.greeted(0)
    event = os.eventfd(1)
    assert seconds_of(lambda: port.wait(10 * SECOND_NS, event)) < 2
    os.close(event)


def test_lost_names_the_worker_whose_end_closed_within_a_second(ends: Ends) -> None:
    ends.greeted(0)
    ends.greeted(1).close()
    found, seconds = gone(ends.link)
    assert [worker for worker, _ in found] == [1] and "closed" in found[0][1]
    assert seconds < 1
    assert ends.link.lost() == []
    ends.link.send(0, [b"the other one stays"])


def test_a_message_to_a_worker_that_is_gone_is_link_down(ends: Ends) -> None:
    ends.greeted(0)
    ends.greeted(1).close()
    gone(ends.link)
    with pytest.raises(LinkDown):
        ends.link.send(1, [b"are", b"you there"])
    ends.link.send(0, [b"but", b"you are"])
    assert receive_at(ends.opened[0], 1) == [[b"but", b"you are"]]


def test_a_worker_hears_within_a_second_that_the_test_is_over(ends: Ends) -> None:
    port = ends.greeted(0)
    assert port.lost() is None
    ends.link.send(0, [b"the last message still comes"])
    ends.link.close()
    assert receive_at(port, 1) == [[b"the last message still comes"]]
    assert eventually(lambda: port.lost() is not None, 1.0, every_s=0.01)
    port.send([b"into the void"])


@pytest.mark.parametrize("kind", KINDS)
def test_closing_leaves_neither_descriptors_nor_threads(kind: str) -> None:
    def use() -> None:
        ends = open_ends(kind)
        for worker in (0, 1):
            ends.greeted(worker).send([bytes(100_000)])
            assert len(receive(ends.link, 1)) == 1
        ends.close()

    use()  # ZeroMQ keeps a thread of its own for zero-copy parts from the first one on
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    tasks = len(os.listdir("/proc/self/task"))
    for _ in range(5):
        use()
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= fds, 2)
    assert eventually(lambda: len(os.listdir("/proc/self/task")) <= tasks, 2)
    assert threading.active_count() == threads


# Who gets in


def test_a_key_that_nobody_handed_out_never_gets_in(secured: Ends) -> None:
    port = secured.stranger(identity_of(0), new_key_pair())
    port.send([b"let me in"])
    assert eventually(lambda: port.lost() is not None, 3)
    assert "refused" in str(port.lost())
    assert receive(secured.link, 1, limit_s=0.2) == []
    secured.greeted(0)


def test_a_worker_with_the_wrong_server_key_never_gets_in(secured: Ends) -> None:
    wrong, _ = new_key_pair()
    port = DealerPort(secured.link.endpoints[0], identity_of(0), wrong, secured.keys[0])
    secured.opened.append(port)
    port.send([b"let me in"])
    assert receive(secured.link, 1, limit_s=0.3) == []
    secured.greeted(0)


def test_a_worker_without_any_key_never_gets_in(secured: Ends) -> None:
    port = DealerPort(secured.link.endpoints[0], identity_of(0), None, ("", ""))
    secured.opened.append(port)
    for _ in range(60):  # the link goes meanwhile, and nobody has asked for it yet
        port.send([b"let me in"])
        time.sleep(0.005)
    assert eventually(lambda: port.lost() is not None, 3)
    assert receive(secured.link, 1, limit_s=0.2) == []
    secured.greeted(0)


def test_a_worker_cannot_speak_as_another_with_its_own_key(secured: Ends) -> None:
    port = secured.stranger(identity_of(0), secured.keys[1])
    port.send([b"I am worker 0"])
    assert receive(secured.link, 1, limit_s=0.3) == []


def test_a_worker_cannot_take_the_place_of_one_that_is_gone(secured: Ends) -> None:
    secured.greeted(0).close()
    # Nobody has asked lost() yet: the identity is free, and its place looks taken.
    assert receive_busily(secured.link, 1, limit_s=0.1) == []
    port = secured.stranger(identity_of(0), secured.keys[1])
    port.send([b"I am worker 0"])
    assert receive_busily(secured.link, 1, limit_s=0.3) == []
    assert [worker for worker, _ in secured.link.lost()] == [0]


@pytest.mark.parametrize("kind", ["curve", "none"])
def test_messages_under_an_identity_of_nobody_are_dropped(kind: str) -> None:
    ends = open_ends(kind)
    ends.stranger(b"W7", ends.keys[0]).send([b"who am I"])
    ends.stranger(b"w0", ends.keys[0]).send([b"nobody"])
    assert receive(ends.link, 1, limit_s=0.3) == []
    ends.greeted(0)
    ends.close()


def test_strangers_that_come_and_go_cost_no_worker_its_place(secured: Ends) -> None:
    # Their connections had the descriptors that the workers' get now.
    for _ in range(3):
        with socket.create_connection(tuple_of(secured.link.endpoints[0])) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger = secured.stranger(identity_of(0), new_key_pair())
        assert eventually(functools.partial(is_lost, stranger), 3)
    ports = [secured.port(worker) for worker in (0, 1)]
    for port in ports:
        port.send([b"hello"])
    assert sorted(worker for worker, _ in receive_busily(secured.link, 2)) == [0, 1]
    assert gone(secured.link, limit_s=0.3)[0] == []
    ports[0].close()
    assert [worker for worker, _ in gone(secured.link)[0]] == [0]


def test_a_worker_that_leaves_as_another_comes_is_not_taken_for_it(secured: Ends) -> None:
    secured.greeted(0).close()
    assert receive_busily(secured.link, 1, limit_s=0.1) == []  # its end is at hand, and its descriptor free
    late = secured.port(1)
    late.send([b"hello"])
    assert receive_busily(secured.link, 1) == [(1, [b"hello"])]
    assert [worker for worker, _ in secured.link.lost()] == [0]


def is_lost(port: DealerPort) -> bool:
    return port.lost() is not None


def tuple_of(endpoint: str) -> tuple[str, int]:
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)
