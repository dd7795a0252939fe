"""Workers that lie, stay silent or shout: none starves the test, hangs it or speaks through its errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from orchestrator import exchange
from orchestrator.exchange import ExchangeFailed
from orchestrator.link import LinkDown
from tests.processes import eventually
from tests.puppets import EPOCH, Puppet, Table
from tests.test_links import gone, open_ends
from workers import worker
from workers.backends.echo import EchoBackend, EchoOptions
from workers.batcher import Batcher
from workers.protocol import TEXT_BYTES, Kind, control, encode_work

TIME_BUDGET_S = 15

S = 10**9


@pytest.fixture
def table() -> Iterator[Callable[..., Table]]:
    opened: list[Table] = []

    def make(workers: int, **options: Any) -> Table:
        opened.append(Table(workers, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def caught_up(t: Table) -> None:
    """Wait until the dispatcher thread has read everything that was sent before."""
    for _ in range(2):
        looked = threading.Event()
        t.exchange._call(looked.set)
        assert looked.wait(3)


# Pongs


@pytest.mark.parametrize("number", [0, 1, 2**63, 2**64 - 1])
def test_a_pong_that_nobody_asked_for_changes_nothing(table: Callable[..., Table], number: int) -> None:
    t = table(1).live()
    before = t.dispatcher.seats[0].wire_s
    t.threads[0][0]._port.send(control(Kind.PONG, EPOCH, number))
    caught_up(t)
    assert t.dispatcher.seats[0].wire_s == before > 0
    t.all_answered(t.issue(100))


def test_only_the_ping_that_is_out_is_answered_by_a_pong_and_no_time_is_negative(
    table: Callable[..., Table],
) -> None:
    t = table(1).attached()
    t.exchange._ping_ns = time.monotonic_ns() + 3600 * S
    t.puppets[0].reply(Kind.PONG, number=t.exchange._ping_ns - 1)
    caught_up(t)
    assert Kind.PONG not in t.exchange._seen
    t.puppets[0].reply(Kind.PONG, number=t.exchange._ping_ns)
    assert eventually(lambda: Kind.PONG in t.exchange._seen, 2, every_s=0.01)
    assert t.dispatcher.seats[0].wire_s == 0.0


def test_samples_that_wait_while_nobody_has_credit_end_the_test(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "STUCK_S", 0.2)
    monkeypatch.setattr(exchange, "CHECK_EVERY_NS", 20_000_000)
    t = table(1).attached()
    t.dispatcher.seats[0].wire_s = -1e12
    t.issue(10)
    assert t.failure(3) == "samples wait and no worker has credit"


def test_what_waits_for_answers_under_way_or_has_just_been_sent_is_not_stuck(
    table: Callable[..., Table],
) -> None:
    t = table(1).attached()
    d = t.dispatcher
    assert d.stuck_s(0) == d.stuck_s(100 * S) == 0
    t.issue(1000)
    t.puppets[0].work()
    assert d.waiting and d.stuck_s(200 * S) == d.stuck_s(300 * S) == 0
    d._flights.clear()
    assert (d.stuck_s(300 * S), d.stuck_s(301 * S)) == (0, 1)
    d._next_frame += 1
    assert (d.stuck_s(400 * S), d.stuck_s(403 * S)) == (0, 3)


# Silence


@pytest.mark.parametrize("on_loss", ["reissue", "fail"])
def test_a_worker_that_is_asked_and_stays_silent_is_lost_and_on_loss_decides(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch, on_loss: str
) -> None:
    monkeypatch.setattr(exchange, "ASK_TIMEOUT_S", 0.3)
    t = table(2, on_loss=on_loss).attached()
    t.puppets[0].reply(Kind.NAMED, b"too early to count")
    caught_up(t)
    threading.Timer(0.1, lambda: t.puppets[0].reply(Kind.NAMED, b"w0@here")).start()
    if on_loss == "reissue":
        assert t.exchange.node_names() == ["w0@here"]
    else:
        with pytest.raises(ExchangeFailed, match=r"w1 was lost .*NAMED within 0\.3 s.* on_loss is 'fail'"):
            t.exchange.node_names()
    assert [(x.worker, x.reason) for x in t.losses] == [("w1", "it did not answer with NAMED within 0.3 s")]


def test_unloading_ends_without_a_worker_that_stays_silent(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "ASK_TIMEOUT_S", 0.3)
    t = table(2).attached()
    threading.Timer(0.1, lambda: t.puppets[0].reply(Kind.UNLOADED)).start()
    t.exchange.unload([1, 2])
    assert [loss.worker for loss in t.losses] == ["w1"] and t.failures == []


def test_loading_takes_longer_than_any_other_answer(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "ASK_TIMEOUT_S", 0.1)
    t = table(1).attached()
    threading.Timer(0.4, lambda: t.puppets[0].reply(Kind.LOADED)).start()
    t.exchange.load([1, 2])
    assert t.losses == []


def test_asking_when_the_dispatcher_has_ended_is_an_error_and_no_hang(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "ASK_TIMEOUT_S", 0.1)
    t = table(1).attached()
    t.exchange.stop()
    with pytest.raises(ExchangeFailed, match="NAMED is missing"):
        t.exchange.node_names()


# The lost


def test_whatever_a_lost_worker_sends_only_its_late_answers_count(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    ids = t.issue(4)
    lost, other = t.puppets
    work, kept = lost.work(), other.work()
    t.exchange.lose("w0", "Ray saw it die")
    moved = other.work()
    lost.port.send([b"garbage"])
    lost.port.send([bytes(control(Kind.LOADED, EPOCH)[0]) + b"x"])
    lost.send(Puppet.answer_to(moved.frame, moved.indices))
    lost.send(Puppet.answer_to(moved.frame + 1000, np.arange(1)))
    lost.reply(Kind.FAIL, b"CUDA error")
    lost.answer(work)
    assert eventually(lambda: t.dispatcher.late == len(work.indices), 2, every_s=0.01)
    for good in (kept, moved):
        other.answer(good)
    t.all_answered(ids)


# Words


WILD = b"no\x1b[2J\x07 \xff\nworker w1: all is well " + b"x" * 100_000


@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.HELLO])
def test_what_a_worker_says_is_cut_and_printable_before_it_is_shown(
    table: Callable[..., Table], kind: Kind
) -> None:
    t = table(1)
    t.puppets[0].reply(kind, WILD)
    failure = t.failure(3)
    assert "worker w0" in failure and "no [2J" in failure
    assert failure.isprintable() and len(failure) < TEXT_BYTES + 100


def test_a_worker_says_by_name_that_its_answer_is_too_large_for_a_message(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_MESSAGE_BYTES", 16)
    t = table(1)
    engine = EchoBackend(EchoOptions(response_bytes=4), 8)
    one = worker.Worker("w0", EPOCH, t.link.ports[0], engine, None, Batcher(8))
    t.link.send(0, encode_work(EPOCH, 1, np.arange(4, dtype=np.uint32)))
    t.link.send(0, encode_work(EPOCH, 2, np.arange(5, dtype=np.uint32)))
    one.run()
    assert one.ended is not None and "lower workers.max_batch" in one.ended
    assert "worker w0 failed: BackendError: " in t.failure(3) and "16 bytes" in t.failure()


class Accepts:
    """A socket that takes everything, as ZeroMQ's does for a moment after it told of a closed connection."""

    def send(self, *args: Any, **options: Any) -> None:
        pass


@pytest.mark.parametrize("kind", ["curve", "none"])
def test_who_was_told_lost_is_sent_nothing_even_where_zeromq_would_take_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = open_ends(kind)
    ends.greeted(0)
    ends.greeted(1).close()
    assert gone(ends.link)[0]
    with monkeypatch.context() as patched:
        patched.setattr(ends.link, "_socket", Accepts())
        ends.link.send(0, [b"you are there"])
        with pytest.raises(LinkDown):
            ends.link.send(1, [b"are you there"])
    ends.close()
