"""Where a link listens: one port for each I/O thread, within the range it is given, and who gets which."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import link
from orchestrator.link import LinkError, Peer, RouterLink
from tests.processes import eventually
from tests.real_loadgen import ThreadFleet, finished, order_of
from tests.test_links import Ends, open_ends, receive, receive_at, tuple_of
from workers.host import Ticket
from workers.port import DealerPort, PortError, new_key_pair

TIME_BUDGET_S = 20

TASKS = Path("/proc/self/task")


def ports_of(ends: Ends) -> list[int]:
    """Where each worker is to connect."""
    return [tuple_of(endpoint)[1] for endpoint in ends.link.endpoints]


def io_threads() -> set[str]:
    """ZeroMQ's I/O threads in this process, of all contexts, by thread id."""
    found = set()
    for task in TASKS.iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("ZMQbg/IO"):
                found.add(task.name)
    return found


def run_ns(threads: set[str]) -> dict[str, int]:
    """How long each of them has run, ns of a CPU."""
    return {thread: int((TASKS / thread / "schedstat").read_text().split()[0]) for thread in threads}


@contextlib.contextmanager
def opened(workers: int, *, threads: int = 4, **options: Any) -> Iterator[tuple[Ends, set[str]]]:
    """A link with its workers' keys, and its own I/O threads."""
    before = io_threads()
    ends = open_ends("curve", workers, io_threads=threads, **options)
    try:
        # A thread gives itself its name when it first runs, on a busy machine later than the link is open.
        assert eventually(lambda: len(io_threads() - before) == threads, 10)
        yield ends, io_threads() - before
    finally:
        ends.close()


def connect_at_once(ends: Ends, workers: int) -> list[DealerPort]:
    """The workers' ports, all of which connected at the same moment and have been heard."""
    ports: dict[int, DealerPort] = {}
    start = threading.Barrier(workers)

    def connect(worker: int) -> None:
        start.wait()
        ports[worker] = ends.port(worker)
        ports[worker].send([b"hello"])

    threads = [threading.Thread(target=connect, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(worker for worker, _ in receive(ends.link, workers)) == list(range(workers))
    return [ports[worker] for worker in range(workers)]


def thread_that_serves(ends: Ends, worker: int, port: DealerPort, threads: set[str]) -> str:
    """The I/O thread that encrypts what is sent to a worker: it ran, and the others had nothing to do."""
    before = run_ns(threads)
    # A thread's time is told late: what the one before did must not be taken for this one's.
    time.sleep(0.02)
    while before != (before := run_ns(threads)):
        time.sleep(0.02)
    for _ in range(4):
        ends.link.send(worker, [bytes(10_000_000)])
    assert [len(parts[0]) for parts in receive_at(port, 4)] == [10_000_000] * 4
    ran = {thread: now - before[thread] for thread, now in run_ns(threads).items()}
    return max(ran, key=ran.__getitem__)


# Which thread serves whom


def test_eight_workers_that_connect_at_once_are_two_on_each_of_four_threads() -> None:
    with opened(8) as (ends, threads):
        assert len(set(ports_of(ends))) == 4
        ports = connect_at_once(ends, 8)
        served = [thread_that_serves(ends, worker, port, threads) for worker, port in enumerate(ports)]
        assert Counter(Counter(served).values()) == {2: 4}
        assert served[:4] == served[4:]


@pytest.mark.parametrize(("threads", "workers", "ports"), [(1, 8, 1), (4, 1, 1), (4, 3, 3), (64, 70, 64)])
def test_a_link_listens_once_for_each_thread_and_not_more_often_than_there_are_workers(
    threads: int, workers: int, ports: int
) -> None:
    with opened(workers, threads=threads) as (ends, _):
        told = ports_of(ends)
        assert len(told) == workers and len(set(told)) == ports
        assert told == [told[worker % ports] for worker in range(workers)]
        connect_at_once(ends, min(workers, 3))


def test_each_worker_is_told_the_port_of_its_thread(tmp_path: Path) -> None:
    told: dict[str, Ticket] = {}

    class Told(ThreadFleet):
        def attach(self, tickets: dict[str, Ticket]) -> None:
            told.update(tickets)
            super().attach(tickets)

    fleet = Told(3)
    finished(order_of(tmp_path, "Server", workers=fleet.seats(), local=None, io_threads=2), fleet)
    first, second, third = (told[host.spec.name].endpoint for host in fleet.hosts)
    assert first == third != second


# Ranges


def free_ports(count: int) -> list[int]:
    """The first of `count` neighbouring ports that are free now."""
    for low in range(20_000 + os.getpid() % 9_000, 32_000, count):
        socks = []
        try:
            for port in range(low, low + count):
                socks.append(socket.socket())
                socks[-1].bind(("127.0.0.1", port))
            return list(range(low, low + count))
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    pytest.fail("no free ports on this machine")


def test_the_range_of_ports_is_honoured_until_every_port_is_taken() -> None:
    ports = free_ports(3)
    links = [open_ends("none", ports=(ports[0], ports[-1])) for _ in ports]
    assert sorted(ports_of(ends)[0] for ends in links) == ports
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LinkError, match=f"every port of {ports[0]} to {ports[-1]} .*dispatch.ports"):
        open_ends("curve", ports=(ports[0], ports[-1]))
    assert len(os.listdir("/proc/self/fd")) == fds
    for ends in links:
        ends.close()


@pytest.mark.parametrize(("free", "taken"), [(1, 1), (3, 1), (5, 2), (8, 4)])
def test_four_threads_share_half_of_the_ports_that_a_range_has_left_and_none_is_idle(
    free: int, taken: int
) -> None:
    ports = free_ports(9)
    with contextlib.ExitStack() as others:
        for port in ports[free:]:
            others.enter_context(socket.create_server(("127.0.0.1", port)))
        ends, threads = others.enter_context(opened(8, ports=(ports[0], ports[-1])))
        assert set(ports_of(ends)) <= set(ports[:free]) and len(set(ports_of(ends))) == taken
        # One by one, so that ZeroMQ knows the loads when it chooses among the threads of a port.
        served = [thread_that_serves(ends, i, ends.greeted(i), threads) for i in range(8)]
        assert set(served) == threads
        of_port: dict[str, set[int]] = {thread: set() for thread in threads}
        for thread, port in zip(served, ports_of(ends), strict=True):
            of_port[thread].add(port)
        assert all(len(found) == 1 for found in of_port.values())


def test_a_test_leaves_ports_of_the_range_to_others() -> None:
    ports = free_ports(4)
    with contextlib.ExitStack() as tests:
        for taken in (2, 1, 1):
            ends, _ = tests.enter_context(opened(8, ports=(ports[0], ports[-1])))
            assert len(set(ports_of(ends))) == taken


def test_a_port_that_is_free_a_moment_later_is_waited_for() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)) as other:
        threading.Timer(0.2, other.close).start()
        ends = open_ends("none", 8, io_threads=4, ports=(port, port))
    assert set(ports_of(ends)) == {port}
    ends.close()


def test_a_range_without_a_free_port_is_an_error_for_many_threads_too() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        fds = len(os.listdir("/proc/self/fd"))
        with pytest.raises(LinkError, match=f"every port of {port} to {port} on 127.0.0.1 is taken"):
            open_ends("curve", 8, io_threads=4, ports=(port, port))
        assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize("seen", [0, 4])
def test_ports_that_come_and_go_after_they_were_counted_fail_nothing(
    monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    def counted(sock: Any, address: str, order: list[int], count: int, threads: int) -> list[str]:
        return [""] * seen if threads == 1 else bind(sock, address, order, count, threads)

    bind = link._bind
    monkeypatch.setattr(link, "_bind", counted)
    ports = free_ports(5)
    with contextlib.ExitStack() as others:
        for port in ports[1:]:
            others.enter_context(socket.create_server(("127.0.0.1", port)))
        ends, _ = others.enter_context(opened(4, ports=(ports[0], ports[-1])))
        assert set(ports_of(ends)) == {ports[0]}
        connect_at_once(ends, 4)


def test_several_threads_listen_on_ipv6_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    keys = [new_key_pair() for _ in range(2)]
    ports = free_ports(4)
    peers = [Peer(f"worker-{i}", public) for i, (public, _) in enumerate(keys)]
    ends = Ends("curve", RouterLink(peers, "::1", ports=(ports[0], ports[-1]), io_threads=2), keys)
    assert set(ends.link.endpoints) < {f"tcp://[::1]:{port}" for port in ports}
    assert len(set(ends.link.endpoints)) == 2
    connect_at_once(ends, 2)
    ends.close()


@pytest.mark.parametrize("ports", [None, (20_000, 20_003)])
def test_an_address_of_another_machine_is_an_error_that_names_it(ports: tuple[int, int] | None) -> None:
    peers = [Peer("worker-0"), Peer("worker-1")]
    with pytest.raises(LinkError, match=r"cannot listen on 192\.0\.2\.1"):
        RouterLink(peers, "192.0.2.1", security="none", ports=ports, io_threads=2)


def test_an_endpoint_that_is_none_is_an_error_that_names_it() -> None:
    with pytest.raises(PortError, match="tcp://nowhere"):
        DealerPort("tcp://nowhere", b"W0", None, ("", ""))


def test_a_port_hears_that_nobody_listens() -> None:
    (port,) = free_ports(1)
    dealer = DealerPort(f"tcp://127.0.0.1:{port}", b"W0", None, ("", ""))
    assert eventually(lambda: dealer.lost() is not None, 3)
    dealer.close()
