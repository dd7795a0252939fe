"""The worker's loop over an in-process link: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.local import LocalLink
from tests.processes import eventually
from workers.backends import FAR, Batch, Done
from workers.backends.echo import EchoBackend, EchoOptions
from workers.batcher import Batcher
from workers.host import Ticket, WorkerError, WorkerHost, WorkerSpec
from workers.library import Library, LibraryError
from workers.protocol import (
    Answer,
    Kind,
    Responses,
    control,
    control_body,
    decode_answer,
    encode_work,
    indices_message,
    read_head,
)
from workers.tasks.null import NullTask
from workers.worker import Worker

TIME_BUDGET_S = 15

EPOCH = 7
MAX_BATCH = 4


class Engine(EchoBackend):
    """Echo with a will of its own: `spoil` changes or refuses each batch's responses, `held` keeps them."""

    def __init__(
        self, spoil: Callable[[Responses], Responses] = lambda r: r, needs_samples: bool = False
    ) -> None:
        super().__init__(EchoOptions(), MAX_BATCH)
        self.needs_samples = needs_samples
        self.spoil = spoil
        self.held = False
        self.batches: list[Batch] = []

    def submit(self, batch: Batch) -> None:
        self.batches.append(batch)
        super().submit(batch)

    def step(self) -> list[Done]:
        if self.held:
            return []
        done = super().step()
        for one in done:
            one.responses = self.spoil(one.responses)
        return done

    def next_done_ns(self) -> int:
        return FAR if self.held else super().next_done_ns()


@dataclass
class Served:
    """A worker in a thread, and the test's end of its link."""

    backend: Any
    library: Library | None = None
    epoch: int = EPOCH
    link: LocalLink = field(default_factory=lambda: LocalLink(1))

    def __post_init__(self) -> None:
        self.worker = Worker(
            "w0", self.epoch, self.link.ports[0], self.backend, self.library, Batcher(MAX_BATCH), "w0@here"
        )
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()
        assert self.control(Kind.HELLO)[1] == b"w0"

    def message(self, limit_s: float = 3.0) -> list[Any]:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            got = self.link.recv()
            if got is not None:
                return got[1]
            self.link.wait(20)
        raise AssertionError(f"no message of the worker within {limit_s} s; it ended: {self.worker.ended}")

    def control(self, kind: Kind) -> tuple[int, bytes]:
        parts = self.message()
        head = read_head(parts[0])
        assert head.kind is kind and head.epoch == self.epoch, (head, parts)
        return head.number, control_body(parts)

    def answer(self) -> Answer:
        parts = self.message()
        head = read_head(parts[0])
        assert head.kind is Kind.ANSWER and head.epoch == self.epoch, (head, parts)
        return decode_answer(head, parts)

    def work(self, frame: int, indices: Sequence[int], samples: Sequence[memoryview] = ()) -> None:
        self.link.send(0, encode_work(self.epoch, frame, np.array(indices, np.uint32), samples))

    def send(self, kind: Kind, number: int = 0, body: bytes = b"", epoch: int | None = None) -> None:
        self.link.send(0, control(kind, self.epoch if epoch is None else epoch, number, body))

    def end(self) -> str | None:
        self.thread.join(3)
        assert not self.thread.is_alive()
        return self.worker.ended


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served(Engine())
    yield found
    found.worker.stop()
    found.link.ports[0].wake()
    found.thread.join(3)


def indices_of(answer: Answer) -> list[int]:
    return answer.responses.blob.view("<i4").tolist()


def library_of(folder: Path, **options: Any) -> Library:
    return NullTask({"count": 8, "sample_bytes": 16, **options}).prepare(folder)


# Answers


def test_each_sample_of_a_frame_is_answered_with_its_own_index(served: Served) -> None:
    served.work(1, [5, 3, 9])
    answer = served.answer()
    assert indices_of(answer) == [5, 3, 9]
    assert [(s.frame, s.count, s.positions) for s in answer.segments] == [(1, 3, None)]
    segment = answer.segments[0]
    assert segment.received_ns <= answer.started_ns <= answer.computed_ns <= answer.sent_ns


def test_a_frame_larger_than_a_batch_is_answered_in_parts_that_name_their_positions(served: Served) -> None:
    served.work(1, range(100, 110))
    seen: dict[int, int] = {}
    while len(seen) < 10:
        answer = served.answer()
        (segment,) = answer.segments
        assert segment.positions is not None and answer.batch_size <= MAX_BATCH
        seen |= dict(zip(list(segment.positions), indices_of(answer), strict=True))
    assert seen == {position: 100 + position for position in range(10)}
    assert served.worker.samples == 10


def test_frames_that_wait_together_are_computed_together(served: Served) -> None:
    served.backend.held = True
    port = served.link.ports[0]
    port.inbox.extend([encode_work(EPOCH, frame, np.array([frame], np.uint32)) for frame in (1, 2, 3)])
    served.backend.held = False
    port.wake()
    answer = served.answer()
    assert [s.frame for s in answer.segments] == [1, 2, 3] and indices_of(answer) == [1, 2, 3]


def test_the_bytes_of_value_mode_reach_the_engine() -> None:
    served = Served(Engine(needs_samples=True))
    served.work(1, [0, 1], [memoryview(b"first"), memoryview(b"second one")])
    assert indices_of(served.answer()) == [0, 1]
    assert [bytes(s) for s in served.backend.batches[0].samples] == [b"first", b"second one"]
    served.link.close()


def test_indices_become_the_bytes_of_the_loaded_library(tmp_path: Path) -> None:
    library = library_of(tmp_path)
    served = Served(Engine(needs_samples=True), library)
    served.link.send(0, indices_message(Kind.LOAD, EPOCH, np.array([2, 6])))
    served.control(Kind.LOADED)
    served.work(1, [6, 2])
    served.answer()
    wanted = [bytes(s) for s in library.samples(np.array([6, 2]))]
    assert [bytes(s) for s in served.backend.batches[0].samples] == wanted
    served.link.close()


def test_ping_name_load_and_unload_are_answered(served: Served) -> None:
    served.send(Kind.WELCOME)
    served.send(Kind.PING, number=123)
    number, body = served.control(Kind.PONG)
    assert number == 123 and 0 < int.from_bytes(body, "little") <= time.monotonic_ns()
    assert served.worker.welcome
    served.send(Kind.NAME)
    assert served.control(Kind.NAMED)[1] == b"w0@here"
    for ask, reply in ((Kind.LOAD, Kind.LOADED), (Kind.UNLOAD, Kind.UNLOADED)):
        served.link.send(0, indices_message(ask, EPOCH, np.arange(5)))
        served.control(reply)


# Ends


def test_bye_ends_the_loop_well(served: Served) -> None:
    served.send(Kind.BYE)
    assert served.end() == "bye"


def test_a_broken_link_ends_the_loop_with_its_reason(served: Served) -> None:
    served.link.cut(0, "somebody pulled the plug")
    assert served.end() == "somebody pulled the plug"


def test_stop_ends_the_loop(served: Served) -> None:
    served.worker.stop()
    assert served.end() == "stopped"


def test_messages_of_another_test_are_not_obeyed(served: Served) -> None:
    served.send(Kind.BYE, epoch=EPOCH + 1)
    served.link.send(0, encode_work(EPOCH + 1, 1, np.array([8], np.uint32)))
    served.work(1, [4])
    assert indices_of(served.answer()) == [4]
    assert served.worker.ended is None


def fails_with(served: Served) -> str:
    _, text = served.control(Kind.FAIL)
    assert served.end() == text.decode()
    return text.decode()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda r: Responses(r.blob[:-1]), "11 response bytes cannot be shared by a batch of 3"),
        (lambda r: Responses(r.blob, np.array([6, 6])), "2 responses came back for a batch of 3"),
        (lambda r: Responses(r.blob, np.array([4, 4, 5])), "13 bytes in all came with 12"),
        (lambda r: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_an_engine_that_fails_or_miscounts_is_told_by_name(spoil: Any, told: str) -> None:
    served = Served(Engine(spoil))
    served.work(1, [0, 1, 2])
    assert told in fails_with(served)


def test_a_sample_that_was_not_loaded_is_told(tmp_path: Path) -> None:
    served = Served(Engine(needs_samples=True), library_of(tmp_path))
    served.work(1, [3])
    assert "sample 3" in fails_with(served)


def test_indices_without_a_library_are_told() -> None:
    served = Served(Engine(needs_samples=True))
    served.work(1, [3])
    assert "no sample library" in fails_with(served)


def test_a_malformed_frame_and_a_message_that_no_worker_takes_are_told() -> None:
    wrong: list[tuple[list[Any], str]] = [
        ([encode_work(EPOCH, 1, np.arange(3, dtype=np.uint32))[0][:-2]], "WORK"),
        ([b"no frame at all, by far, not even its first bytes"], "starts with"),
        (control(Kind.LOADED, EPOCH), "LOADED"),
    ]
    for parts, told in wrong:
        served = Served(Engine())
        served.link.send(0, parts)
        assert told in fails_with(served)


def test_what_the_engine_still_computes_at_the_end_is_waited_for(served: Served) -> None:
    served.backend.held = True
    served.work(1, [1, 2])
    assert eventually(lambda: bool(served.backend.batches), 2, every_s=0.01)
    served.send(Kind.BYE)
    served.thread.join(0.1)
    assert served.thread.is_alive()
    served.backend.held = False
    assert served.end() == "bye"


def test_what_an_earlier_test_left_in_the_engine_is_never_answered_in_the_next() -> None:
    engine = Engine()
    engine.held = True
    first = Served(engine)
    first.work(1, [11])
    assert eventually(lambda: bool(engine.batches), 2, every_s=0.01)
    # An engine that ran for longer than anybody waits still holds its batch.
    second = Served(engine, epoch=EPOCH + 1)
    engine.held = False
    second.work(1, [22])
    assert indices_of(second.answer()) == [22]
    second.send(Kind.BYE)
    assert second.end() == "bye" and second.worker.samples == 1
    first.link.close()


# The host


def host_of(**changes: Any) -> WorkerHost:
    made = {"name": "w0", "task": "null", "task_options": {}, "backend": {"engine": "echo"}, "max_batch": 8}
    return WorkerHost(WorkerSpec(**{**made, "needs_library": False, **changes}))


def host_samples(host: WorkerHost) -> int:
    return host._worker.samples if host._worker else 0


def test_a_host_serves_test_after_test_with_one_model() -> None:
    host = host_of()
    facts = host.load()
    assert facts["name"] == "w0" and facts["max_batch"] == 8
    assert [size for size, _ in facts["warm_up"]] == [1, 8]
    for epoch in (1, 2):
        link = LocalLink(1)
        host.serve(epoch, link.ports[0])
        link.send(0, encode_work(epoch, 1, np.array([epoch], np.uint32)))
        while link.recv() is None or not host_samples(host):
            link.wait(20)
        link.send(0, control(Kind.BYE, epoch))
        assert host.detach() == {"samples": 1, "ended": "bye"}
    assert host.detach() == {"samples": 0, "ended": None}
    host.close()


def test_a_host_without_a_model_serves_nothing() -> None:
    with pytest.raises(WorkerError, match="w0 has no model"):
        host_of().serve(1, LocalLink(1).ports[0])


def test_a_host_says_where_it_could_not_attach() -> None:
    host = host_of()
    host.load()
    with pytest.raises(WorkerError, match="w0 could not attach to the test: .*closed"):
        host.attach(Ticket(1, "tcp://127.0.0.1:1", "W0", None))
    host.close()


def test_a_host_told_to_leave_while_it_still_connects_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of()
    host.load()

    def slow_port(*_: object) -> object:
        assert host.detach() == {"samples": 0, "ended": None}
        return LocalLink(1).ports[0]

    monkeypatch.setattr("workers.host.DealerPort", slow_port)
    with pytest.raises(WorkerError, match="w0 was told to leave the test before it had come"):
        host.attach(Ticket(1, "tcp://127.0.0.1:1", "W0", None))
    assert host._thread is None
    host.close()


def test_a_host_leaves_a_test_that_never_says_goodbye() -> None:
    host = host_of()
    host.load()
    host.serve(1, LocalLink(1).ports[0])
    assert host.detach()["ended"] == "stopped"
    host.close()


def test_a_stuck_engine_cannot_take_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.host.STOP_TIMEOUT_S", 0.1)
    release = threading.Event()
    host = host_of()
    host.load()
    link = LocalLink(1)
    backend: Any = host._backend
    backend.submit = lambda batch: release.wait(10)
    host.serve(1, link.ports[0])
    link.send(0, encode_work(1, 1, np.array([1], np.uint32)))
    with pytest.raises(WorkerError, match="w0 is stuck in its engine"):
        host.detach()
    release.set()
    del backend.submit
    host.close()


def test_a_damaged_library_is_refused_when_the_worker_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EchoBackend, "needs_samples", True)
    library = library_of(tmp_path)
    with open(library.folder / "samples.bin", "r+b") as file:
        file.write(b"\xff" * 4)
    options = {"count": 8, "sample_bytes": 16}
    with pytest.raises(LibraryError, match="samples.bin"):
        host_of(task_options=options, cache=str(tmp_path), needs_library=True).load()
