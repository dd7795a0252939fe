"""Large answers in shared memory on their way through worker, Exchange and LoadGen."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.accuracy import read_accuracy_log
from orchestrator.local import LocalLink
from orchestrator.paths import ACCURACY_LOG, TEST_LOG
from orchestrator.supervise import Hooks
from tests.drive_backend import wait
from tests.processes import eventually
from tests.puppets import EPOCH, MAX_BATCH, Puppet, Table
from tests.real_loadgen import ThreadFleet, finished, order_of
from workers.answer_memory import LARGE_BYTES, AnswerMemory
from workers.backends import Batch
from workers.backends.echo import EchoBackend, EchoOptions
from workers.backends.slots import Computed, SlotBackend
from workers.batcher import Batcher
from workers.protocol import (
    OFFER,
    PLACE,
    Answer,
    Kind,
    ProtocolError,
    Responses,
    Segment,
    control,
    decode_answer,
    encode_answer,
    encode_work,
    read_head,
)
from workers.worker import Worker

TIME_BUDGET_S = 40

MB3 = 3_000_000


# The frame


def answer_in(blob: np.ndarray, at: int | None, count: int = 4, sizes: np.ndarray | None = None) -> Answer:
    return Answer([Segment(1, 5, count)], 1, 2, 3, count, Responses(blob, sizes), at)


U64 = st.integers(0, 2**64 - 1)


@given(st.integers(0, 100), st.integers(1, 100) | U64, st.integers(0, 100) | U64)
def test_a_place_in_shared_memory_is_read_as_told_or_refused(held: int, size: int, offset: int) -> None:
    memory = np.arange(held, dtype=np.uint8)
    (message,) = encode_answer(EPOCH, answer_in(np.empty(8, np.uint8), 0, count=1))
    message = bytes(message[: -PLACE.size]) + PLACE.pack(offset, size)
    if offset + size <= held:
        got = decode_answer(read_head(message), [message], memory)
        assert got.shared_at == offset
        assert got.responses.blob.tobytes() == memory[offset : offset + size].tobytes()
    else:
        with pytest.raises(ProtocolError, match=f"names bytes {offset} to {offset + size} of {held} bytes"):
            decode_answer(read_head(message), [message], memory)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_sizes_are_those_of_the_shared_bytes(sizes: list[int]) -> None:
    memory, total = np.arange(200, dtype=np.uint8), sum(sizes)
    wanted = answer_in(memory[9 : 9 + total], 9, len(sizes), np.array(sizes))
    parts = encode_answer(EPOCH, wanted)
    assert len(parts) == 1
    got = decode_answer(read_head(parts[0]), parts, memory)
    assert got.responses.sizes is not None and got.responses.sizes.tolist() == sizes
    assert got.responses.blob.tobytes() == wanted.responses.blob.tobytes()
    longer = encode_answer(EPOCH, answer_in(memory[9 : 10 + total], 9, len(sizes), np.array(sizes)))
    with pytest.raises(ProtocolError, match="do not add up"):
        decode_answer(read_head(longer[0]), longer, memory)


@given(st.data())
def test_a_damaged_message_is_refused_or_read_and_never_anything_else(data: st.DataObject) -> None:
    memory = np.arange(64, dtype=np.uint8)
    (good,) = encode_answer(EPOCH, answer_in(memory[:32], 0))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    parts = [bytes(bad[: data.draw(st.integers(0, len(bad)))])] + [b"x"] * data.draw(st.integers(0, 1))
    try:
        got = decode_answer(read_head(parts[0]), parts, memory)
    except ProtocolError:
        return
    assert got.responses.blob.size <= 64


def test_a_place_without_memory_is_refused() -> None:
    parts = encode_answer(EPOCH, answer_in(np.empty(8, np.uint8), 0))
    with pytest.raises(ProtocolError, match="shares none with this test"):
        decode_answer(read_head(parts[0]), parts)


# The worker


@pytest.fixture
def memory() -> Iterator[AnswerMemory]:
    made = AnswerMemory(LARGE_BYTES)
    yield made
    made.close()


def test_an_answer_without_room_travels_and_the_next_is_shared_again(memory: AnswerMemory) -> None:
    link = LocalLink(1)
    engine = EchoBackend(EchoOptions(response_bytes=LARGE_BYTES), 1)
    worker = Worker("w0", EPOCH, link.ports[0], engine, None, Batcher(1), memory=memory)
    thread = threading.Thread(target=worker.run)
    thread.start()

    def next_of(kind: Kind) -> list[Any]:
        got: list[list[Any]] = []

        def came() -> bool:
            link.wait(100)
            while message := link.recv():
                got.append(message[1])
            return any(read_head(parts[0]).kind is kind for parts in got)

        assert eventually(came, 5, every_s=0)
        return next(parts for parts in got if read_head(parts[0]).kind is kind)

    def answered(index: int) -> int | None:
        link.send(0, encode_work(EPOCH, 1 + index, np.array([index], np.uint32)))
        parts = next_of(Kind.ANSWER)
        seen = np.frombuffer(memory._map, np.uint8, memory.size, 4096)
        got = decode_answer(read_head(parts[0]), parts, seen)
        assert got.responses.blob.size == LARGE_BYTES and got.responses.blob[:4].tolist() == [index, 0, 0, 0]
        return got.shared_at

    link.send(0, control(Kind.WELCOME, EPOCH))
    next_of(Kind.SHARE)
    assert answered(1) is None  # the test has not said that it sees the memory
    link.send(0, control(Kind.SHARED, EPOCH, 1))
    assert [answered(2), answered(3)] == [0, None]
    link.send(0, control(Kind.FREE, EPOCH, 0))
    assert answered(4) == 0
    link.send(0, control(Kind.FREE, EPOCH, 12345))
    assert b"gives back an answer at 12345" in bytes(next_of(Kind.FAIL)[0])
    thread.join(5)


class ReusedBuffer:
    """A slot that computes into the same buffer again and again, as those of a GPU do."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.buffer = np.zeros((1, LARGE_BYTES), np.uint8)

    def open(self) -> None:
        """Nothing to allocate."""

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        self.buffer[:] = samples[0][0]
        return Computed(self.buffer, None, 0.0, 0.0)


def test_an_engine_copies_once_from_its_buffer_into_the_shared_memory(memory: AnswerMemory) -> None:
    task: Any = SimpleNamespace(respond=lambda outputs, indices, counts: Responses(outputs.reshape(-1)))
    engine = SlotBackend("reused", task, 1, lambda: ([ReusedBuffer()], {}))
    engine.load()
    blobs = []
    for value in (7, 8):
        engine.submit(Batch(np.zeros(1, np.int64), [memoryview(bytes([value]))], None, memory.copy))
        blobs.append(wait(engine)[0].responses.blob)
    engine.close()
    assert engine.answer_bytes == LARGE_BYTES
    # The second found no room in memory for one answer, and is safe from the next batch all the same.
    assert [blob.tobytes() for blob in blobs] == [bytes([value]) * LARGE_BYTES for value in (7, 8)]
    assert memory.hand_over(blobs[0]) == 0 and memory.hand_over(blobs[1]) is None


# The test's loop


@pytest.fixture
def table(memory: AnswerMemory) -> Iterator[Table]:
    made = Table(2).attached()
    made.puppets[0].reply(Kind.SHARE, memory.offer())
    assert read_head(made.puppets[0].take(Kind.SHARED)[0]).number == 1
    yield made
    made.close()


def shared(memory: AnswerMemory, frame: int, indices: np.ndarray) -> Answer:
    """An answer that lies in the puppet's memory, as small as it may be."""
    plain = Puppet.answer_to(frame, indices)
    at = memory.hand_over(np.resize(plain.responses.blob, LARGE_BYTES))
    assert at is not None
    return dataclasses.replace(plain, shared_at=at)


def test_an_answer_is_given_back_once_it_is_reported_late_or_not(memory: AnswerMemory, table: Table) -> None:
    ids = table.issue(4)
    puppet, other = table.puppets
    work = puppet.work()
    good = shared(memory, work.frame, work.indices)
    for _ in range(2):
        puppet.send(good)
        assert read_head(puppet.take(Kind.FREE)[0]).number == good.shared_at
    if len(work.indices) < len(ids):
        other.answer(other.work())  # two workers, two frames
    table.all_answered(ids)
    assert table.dispatcher.late == len(work.indices) and table.shared.answers == 2


LIES: list[Callable[[AnswerMemory, Answer], Answer]] = [
    lambda memory, good: dataclasses.replace(good, shared_at=memory.size),
    lambda memory, good: dataclasses.replace(good, shared_at=2**64 - 8),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_about_its_memory_fails_the_test_by_its_name(
    memory: AnswerMemory, table: Table, lie: Callable[[AnswerMemory, Answer], Answer]
) -> None:
    table.issue(1)
    work = table.puppets[0].work()
    table.puppets[0].send(lie(memory, shared(memory, work.frame, work.indices)))
    assert "worker w0 sent a malformed frame: an ANSWER names bytes" in table.failure(3)


def test_a_worker_that_shares_nothing_cannot_name_a_place(memory: AnswerMemory, table: Table) -> None:
    table.puppets[1].send(shared(memory, 1, np.arange(1)))
    assert "worker w1 sent a malformed frame" in table.failure(3) and "shares none" in table.failure()


def test_a_lost_workers_late_answer_is_dropped(memory: AnswerMemory, table: Table) -> None:
    ids = table.issue(2)
    lost, other = table.puppets
    work = lost.work()
    table.exchange.lose("w0", "Ray saw it die")
    # The loss is told to another thread, which might read the answer first.
    assert eventually(lambda: not table.dispatcher.seats[0].alive, 2, every_s=0.01)
    lost.send(shared(memory, work.frame, work.indices))
    answered = 0
    while answered < len(ids):
        kept = other.work()
        other.answer(kept)
        answered += len(kept.indices)
    table.all_answered(ids)
    assert eventually(lambda: table.dispatcher.late == len(work.indices), 2, every_s=0.01)


def test_memory_is_not_opened_once_samples_are_under_way(table: Table) -> None:
    ids = table.issue(1)
    table.puppets[0].answer(table.puppets[0].work())
    table.all_answered(ids)
    late = AnswerMemory(LARGE_BYTES)
    table.puppets[1].reply(Kind.SHARE, late.offer())
    assert read_head(table.puppets[1].take(Kind.SHARED)[0]).number == 0
    late.close()


@pytest.mark.parametrize("body", [b"", b"x" * 47, b"x" * 49])
def test_what_is_no_offer_fails_the_test(table: Table, body: bytes) -> None:
    table.puppets[1].reply(Kind.SHARE, body)
    assert "worker w1 sent a malformed frame: a SHARE message has" in table.failure(3)


# Through LoadGen, between two processes


class Patterned(EchoBackend):
    """3 MB a sample, every byte of which tells the sample."""

    def submit(self, batch: Batch) -> None:
        super().submit(batch)
        n = len(batch.indices)
        self._running[-1].responses.blob = np.repeat(pattern(batch.indices), MB3 // 4, axis=0).reshape(-1)
        assert self._running[-1].responses.blob.size == n * MB3


def pattern(indices: np.ndarray) -> np.ndarray:
    """(n, 4) bytes of each index; repeated, they fill an answer."""
    return (indices.astype("<u4") * np.uint32(2_654_435_761)).view(np.uint8).reshape(-1, 4)


def large_fleet(workers: int, per_sample_us: float = 300.0) -> ThreadFleet:
    fleet = ThreadFleet(workers)
    options = EchoOptions(response_bytes=MB3, service_time_per_sample_us=per_sample_us)
    for host in fleet.hosts:
        host._backend = Patterned(options, MAX_BATCH)
    return fleet


def large_order(folder: Path, fleet: ThreadFleet, near: bool, samples: int = 24, **changes: Any) -> Any:
    """An accuracy test, by default of 72 MB of answers."""
    folder.mkdir()
    seats = [seat.model_copy(update={"near": near}) for seat in fleet.seats()]
    few = {"sample_count": samples, "performance_count": samples}
    return order_of(folder, "Offline", "accuracy", workers=seats, local=None, **few, **changes)


def all_bytes_are_right(folder: Path, samples: int = 24) -> None:
    seen = {logged.qsl_idx: logged.data for logged in read_accuracy_log(folder / "out" / ACCURACY_LOG)}
    assert sorted(seen) == list(range(samples))
    for index, data in seen.items():
        assert data == pattern(np.array([index])).tobytes() * (MB3 // 4)


def test_loadgen_logs_the_bytes_that_a_worker_left_in_shared_memory(tmp_path: Path) -> None:
    fleet = large_fleet(2)
    for near, folder in ((True, tmp_path / "a"), (False, tmp_path / "b"), (True, tmp_path / "c")):
        result = finished(large_order(folder, fleet, near), fleet).result
        assert result["response_path"] == ("shared-memory" if near else "messages")
        assert (result["shared_answers"] > 0) is near
        all_bytes_are_right(folder)
    for host in fleet.hosts:
        host.close()


def test_a_worker_lost_with_answers_in_its_memory_costs_no_sample(tmp_path: Path) -> None:
    fleet = large_fleet(3, per_sample_us=60_000.0)
    kills = iter([1])

    def on_tick(board: Any) -> None:
        if board.total("completed"):
            for worker in kills:
                fleet.kill(worker)
                fleet._lost.append((f"w{worker}", "its process died"))

    # Two batches for each: the lost one is at its second, or the test would be over before its loss is known.
    order = large_order(tmp_path / "a", fleet, True, samples=48, on_loss="reissue")
    outcome = finished(order, fleet, Hooks(on_tick=on_tick))
    assert [loss["worker"] for loss in outcome.losses] == ["w1"]
    assert outcome.result["response_path"] == "shared-memory"
    all_bytes_are_right(tmp_path / "a", 48)


def test_memory_that_the_test_cannot_open_means_messages_and_is_not_offered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnswerMemory, "offer", lambda memory: OFFER.pack(2**40, 9, b"t" * 32))
    fleet = large_fleet(1)
    order = large_order(tmp_path / "a", fleet, True)
    assert finished(order, fleet).result["response_path"] == "messages"
    all_bytes_are_right(tmp_path / "a")
    said = (tmp_path / "a" / "out" / TEST_LOG).read_text()
    assert "the memory of w0 is not shared: it cannot be opened here" in said
    assert fleet.hosts[0]._memory is None and fleet.hosts[0]._refused
