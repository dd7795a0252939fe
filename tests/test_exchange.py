"""The dispatcher thread over an in-process link: exactly once, losses, hangs, bad peers, and a good end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import dispatch, exchange
from orchestrator.dispatch import Completion
from orchestrator.exchange import ExchangeFailed
from tests.processes import eventually
from tests.puppets import EPOCH, Puppet, Table
from workers.protocol import (
    HEAD,
    Answer,
    Buffer,
    Kind,
    Responses,
    Segment,
    Work,
    control,
    decode_work,
    encode_answer,
    indices_body,
    read_head,
)
from workers.tasks.null import NullTask

TIME_BUDGET_S = 20


@pytest.fixture
def table() -> Iterator[Callable[..., Table]]:
    opened: list[Table] = []

    def make(workers: int, **options: Any) -> Table:
        opened.append(Table(workers, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


# Exactly once


def test_every_sample_is_answered_once_with_its_own_response(
    table: Callable[..., Table], rng: np.random.Generator
) -> None:
    t = table(3).live()
    ids: list[int] = []
    for count in rng.integers(1, 60, 150).tolist():
        ids += t.issue(count)
    t.all_answered(ids)
    assert t.dispatcher.outstanding == 0 and t.dispatcher.late == 0


def test_every_sample_is_answered_once_though_workers_are_lost_in_mid_run(
    table: Callable[..., Table], rng: np.random.Generator
) -> None:
    t = table(4).live(service_us=300)
    ids: list[int] = []
    for step, count in enumerate(rng.integers(1, 40, 120).tolist()):
        ids += t.issue(count)
        if step == 40:
            t.link.cut(1, "the cable was cut")
        if step == 80:
            t.exchange.lose("w3", "Ray says it is dead")
    t.all_answered(ids)
    assert [(loss.worker, loss.reason) for loss in t.losses] in (
        [("w1", "the cable was cut"), ("w3", "Ray says it is dead")],
        [("w3", "Ray says it is dead"), ("w1", "the cable was cut")],
    )
    t.exchange.stop()
    assert t.board.total("losses") == 2 and t.board.total("moved") == sum(x.moved for x in t.losses)
    assert t.board.counter(1, "alive") == 0 and t.board.counter(0, "alive") == 1


def test_an_answer_that_comes_after_its_worker_was_lost_completes_nothing(
    table: Callable[..., Table],
) -> None:
    t = table(2).attached()
    ids = t.issue(4)
    first, second = t.puppets
    late, other = first.work(), second.work()
    t.exchange.lose("w0", "taken for dead")
    moved = second.work()
    assert sorted(moved.indices.tolist()) == sorted(late.indices.tolist())
    first.answer(late)
    assert eventually(lambda: t.dispatcher.late == len(late.indices), 2, every_s=0.01)
    assert not t.answered
    second.answer(other)
    second.answer(moved)
    t.all_answered(ids)


def test_an_answer_given_twice_completes_once(table: Callable[..., Table]) -> None:
    t = table(1).attached()
    ids = t.issue(2)
    work = t.puppets[0].work()
    t.puppets[0].answer(work)
    t.puppets[0].answer(work)
    assert eventually(lambda: t.dispatcher.late == 2, 2, every_s=0.01)
    t.all_answered(ids)


def test_an_answer_of_another_test_is_dropped_and_counted(table: Callable[..., Table]) -> None:
    t = table(1).attached()
    ids = t.issue(2)
    work = t.puppets[0].work()
    t.puppets[0].answer(work, epoch=EPOCH - 1)
    assert eventually(lambda: t.exchange.foreign == 1, 2, every_s=0.01)
    assert not t.answered
    t.puppets[0].answer(work)
    t.all_answered(ids)


def test_the_bytes_of_value_mode_travel_with_the_indices(table: Callable[..., Table], tmp_path: Path) -> None:
    library = NullTask({"count": 1000, "sample_bytes": 24}).prepare(tmp_path)
    t = table(1, library=library).attached()
    t.exchange.load(range(1000))
    ids = t.issue(3)
    work = t.puppets[0].work()
    assert [bytes(s) for s in work.samples] == [bytes(s) for s in library.samples(work.indices)]
    t.puppets[0].answer(work)
    t.all_answered(ids)
    t.exchange.unload(range(1000))
    t.issue(1)
    assert "not loaded" in t.failure()


# Bad peers: the test fails within a second and names the worker


def malformed() -> list[tuple[str, list[Buffer]]]:
    now = time.monotonic_ns()
    good = encode_answer(EPOCH, Puppet.answer_to(1, np.arange(3)))
    head = HEAD.pack(b"LG", 1, Kind.ANSWER, EPOCH, 3, 1, 0)
    return [
        ("an empty message", [b""]),
        ("noise", [b"\x93NUMPY nothing of the kind, whatever the length may say"]),
        ("a version to come", [HEAD.pack(b"LG", 99, Kind.ANSWER, EPOCH, 3, 1, 0)]),
        ("a kind that is none", [HEAD.pack(b"LG", 1, 200, EPOCH, 0, 0, 0)]),
        ("an answer cut short", [bytes(good[0])[:-5]]),
        ("an answer without its body", [head]),
        ("an answer with a part too many", [*good, b"and more"]),
        ("a control message that lies about its length", [bytes(control(Kind.LOADED, EPOCH)[0]) + b"x"]),
        (
            "sizes that do not add up",
            encode_answer(
                EPOCH,
                Answer(
                    [Segment(1, now, 2)], now, now, now, 2, Responses(np.zeros(8, np.uint8), np.array([4, 5]))
                ),
            ),
        ),
    ]


@pytest.mark.parametrize(("what", "parts"), malformed())
def test_a_malformed_frame_ends_the_test_and_names_its_sender(
    table: Callable[..., Table], what: str, parts: list[Buffer]
) -> None:
    t = table(2).attached()
    t.issue(3)
    t.puppets[1].port.send(parts)
    assert "worker w1 sent a malformed frame" in t.failure()


def bad_answers() -> list[tuple[str, Callable[[Puppet, Work], Answer]]]:
    def part(work: Work, positions: list[int]) -> Answer:
        answer = Puppet.answer_to(work.frame, np.array(positions))
        answer.segments[0].positions = np.array(positions, np.uint32)
        return answer

    return [
        ("never issued", lambda p, w: p.answer_to(w.frame + 1000, w.indices)),
        ("never issued", lambda p, w: p.answer_to(0, w.indices)),
        ("samples", lambda p, w: p.answer_to(w.frame, np.arange(len(w.indices) + 1))),
        ("position", lambda p, w: part(w, [0, len(w.indices)])),
        ("twice", lambda p, w: part(w, [0, 0])),
    ]


@pytest.mark.parametrize(("told", "answer"), bad_answers())
def test_an_answer_to_what_was_never_asked_ends_the_test_and_names_the_worker(
    table: Callable[..., Table], told: str, answer: Callable[[Puppet, Work], Answer]
) -> None:
    t = table(1).attached()
    t.issue(4)
    t.puppets[0].send(answer(t.puppets[0], t.puppets[0].work()))
    failure = t.failure()
    assert told in failure and "w0" in failure
    assert not t.answered


def test_a_worker_that_answers_for_another_ends_the_test(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    t.issue(4)
    t.puppets[1].work()
    t.puppets[1].answer(t.puppets[0].work())
    failure = t.failure()
    assert "w1" in failure and "w0" in failure and not t.answered


def test_a_worker_that_fails_ends_the_test_with_its_own_words(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    t.puppets[1].reply(Kind.FAIL, b"BackendError: out of memory")
    assert t.failure() == "worker w1 failed: BackendError: out of memory"


def test_an_error_of_ours_ends_the_test_instead_of_hanging_it(table: Callable[..., Table]) -> None:
    t = table(1).attached()

    def full(completion: Completion) -> None:
        raise OSError("no space")

    t.exchange._complete = full
    t.issue(1)
    t.puppets[0].answer(t.puppets[0].work())
    assert "OSError in the dispatcher: no space" in t.failure()


# Losses


def test_with_on_loss_fail_the_first_loss_ends_the_test(table: Callable[..., Table]) -> None:
    t = table(3, on_loss="fail").attached()
    t.issue(6)
    t.puppets[2].port.close()
    failure = t.failure()
    assert "w2" in failure and "closed" in failure
    assert [loss.worker for loss in t.losses] == ["w2"]


def test_the_loss_of_the_last_worker_ends_the_test(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    t.issue(6)
    for puppet in t.puppets:
        puppet.port.close()
    assert "no worker is left" in t.failure()
    assert sorted(loss.worker for loss in t.losses) == ["w0", "w1"]


def test_a_worker_that_is_lost_twice_is_one_loss_and_an_unknown_one_none(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    t.exchange.lose("w1", "first")
    t.exchange.lose("w1", "again")
    t.exchange.lose("somebody", "unknown")
    t.link.cut(1, "and the link too")
    t.exchange._call(lambda: t.exchange._check(time.monotonic_ns()))
    assert eventually(lambda: bool(t.losses), 2, every_s=0.01)
    t.exchange.stop()
    assert [(loss.worker, loss.reason) for loss in t.losses] == [("w1", "first")]


def test_what_a_lost_worker_still_says_ends_nothing(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    t.exchange.lose("w1", "taken for dead")
    assert eventually(lambda: bool(t.losses), 2, every_s=0.01)
    t.puppets[1].reply(Kind.FAIL, b"CUDA error, which is why it hung")
    ids = t.issue(2)
    t.puppets[0].answer(t.puppets[0].work())
    t.all_answered(ids)


def test_loading_tells_who_stacks_after_all(table: Callable[..., Table]) -> None:
    t, told = table(1).attached(), dict[str, str]()
    loading = threading.Thread(target=lambda: told.update(t.exchange.load(range(4))))
    loading.start()
    t.puppets[0].take(Kind.LOAD)
    t.puppets[0].reply(Kind.LOADED, b"no\x1broom")
    loading.join(3)
    assert told == {"w0": "no room"}


def test_a_worker_that_hangs_is_lost_and_its_samples_move(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "HANG_FLOOR_S", 0.3)
    monkeypatch.setattr(exchange, "CHECK_EVERY_NS", 20_000_000)
    t = table(2).attached()
    loading = threading.Thread(target=t.exchange.load, args=(range(4),))
    loading.start()
    for puppet in t.puppets:
        puppet.take(Kind.LOAD)
        puppet.reply(Kind.LOADED)
    loading.join(3)
    ids = t.issue(8)
    works = [puppet.work() for puppet in t.puppets]
    t.puppets[0].answer(works[0])
    done = len(works[0].indices)
    while done < len(ids):
        work = t.puppets[0].work()
        t.puppets[0].answer(work)
        done += len(work.indices)
    t.all_answered(ids)
    assert [loss.worker for loss in t.losses] == ["w1"]
    assert "unanswered" in t.losses[0].reason and t.losses[0].moved == len(works[1].indices)


def test_what_this_process_left_unread_is_no_hang_of_a_worker(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "HANG_FLOOR_S", 0.2)
    monkeypatch.setattr(exchange, "STALL_NS", 100_000_000)
    monkeypatch.setattr(exchange, "CHECK_EVERY_NS", 20_000_000)
    t = table(2).attached()
    t.exchange._watch_hangs = True
    ids = t.issue(8)
    works = [puppet.work() for puppet in t.puppets]

    # The dispatcher stands still for longer than a hang, between its look at the messages and its check.
    def stand_still() -> None:
        for puppet, work in zip(t.puppets, works, strict=True):
            puppet.answer(work)
        time.sleep(0.4)

    t.exchange._call(stand_still)
    done = sum(len(w.indices) for w in works)
    while done < len(ids):
        for puppet in t.puppets:
            if (parts := puppet.port.recv()) is not None:
                work = decode_work(read_head(parts[0]), parts)
                puppet.answer(work)
                done += len(work.indices)
    t.all_answered(ids)
    assert t.losses == []


# Asking all


def test_loading_waits_for_every_worker(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    loading = threading.Thread(target=t.exchange.load, args=([5, 1, 9],))
    loading.start()
    for puppet in t.puppets:
        assert indices_body(puppet.take(Kind.LOAD)).tolist() == [5, 1, 9]
    t.puppets[0].reply(Kind.LOADED)
    loading.join(0.1)
    assert loading.is_alive()
    t.puppets[1].reply(Kind.LOADED)
    loading.join(3)
    assert not loading.is_alive()


@pytest.mark.parametrize("ask", ["load", "unload"])
def test_a_worker_that_fails_while_loading_is_named(table: Callable[..., Table], ask: str) -> None:
    t = table(2).attached()
    threading.Timer(0.05, lambda: t.puppets[1].reply(Kind.FAIL, b"LibraryError: gone")).start()
    with pytest.raises(ExchangeFailed, match="worker w1 failed: LibraryError: gone"):
        getattr(t.exchange, ask)([1, 2])


def test_loading_goes_on_without_a_worker_that_is_lost_meanwhile(table: Callable[..., Table]) -> None:
    t = table(2).attached()
    t.puppets[0].reply(Kind.LOADED)  # of an earlier set: does not count
    threading.Timer(0.05, lambda: t.link.cut(1, "gone")).start()
    threading.Timer(0.05, lambda: t.puppets[0].reply(Kind.LOADED)).start()
    t.exchange.load([1, 2])
    assert [loss.worker for loss in t.losses] == ["w1"]


def test_a_worker_that_never_attaches_is_named(table: Callable[..., Table]) -> None:
    t = table(2)
    t.puppets[0].hello()
    with pytest.raises(ExchangeFailed, match=r"after 0\.2 s worker w1 did not attach"):
        t.exchange.wait_attached(0.2)


def test_a_worker_in_the_place_of_another_ends_the_test(table: Callable[..., Table]) -> None:
    t = table(2)
    t.puppets[0].port.send(control(Kind.HELLO, EPOCH, body=b"w1"))
    assert "w1" in t.failure() and "in the place of worker w0" in t.failure()


def test_the_wire_is_measured_and_nodes_are_named_over_it(table: Callable[..., Table]) -> None:
    t = table(2).live()
    assert all(0 < seat.wire_s < 1 for seat in t.dispatcher.seats)
    assert t.exchange.node_names() == ["w0@here", "w1@here"]


def test_stop_says_goodbye_to_every_worker_that_is_left(table: Callable[..., Table]) -> None:
    t = table(3).live()
    t.link.cut(1, "gone")
    t.issue(5)
    assert eventually(lambda: len(t.losses) == 1 and len(t.answered) == 5, 3, every_s=0.01)
    t.exchange.stop()
    for _, thread in t.threads:
        thread.join(3)
    assert [worker.ended for worker, _ in t.threads] == ["bye", "gone", "bye"]
    assert t.board.total("completed") == t.board.total("issued") == 5
