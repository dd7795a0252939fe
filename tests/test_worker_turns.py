"""A worker's turn: no slot of an engine waits for answers to be written, no answer for further batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workers.backends import FAR, Batch, Done
from workers.batcher import Batcher
from workers.library import LibraryError
from workers.protocol import Kind, Responses, control, decode_answer, encode_work, read_head
from workers.worker import Worker

TIME_BUDGET_S = 2

EPOCH = 3
MAX_BATCH = 4


class Slots:
    """An engine that computes `count` batches at a time, the oldest of which is done when it is told so."""

    max_batch = MAX_BATCH
    needs_samples = True
    answer_bytes = 16

    def __init__(self, count: int, events: list[str]) -> None:
        self._count, self._events = count, events
        self._running: deque[Batch] = deque()
        self._done: list[Done] = []

    def submit(self, batch: Batch) -> None:
        assert len(self._running) < self._count
        self._events.append(f"submit {batch.indices.tolist()}")
        self._running.append(batch)

    def finish(self) -> None:
        batch = self._running.popleft()
        self._done.append(Done(batch, Responses(batch.indices.astype("<i4").view(np.uint8)), 1, 2))

    def step(self) -> list[Done]:
        done, self._done = self._done, []
        return done

    def free_at_ns(self, now_ns: int) -> int:
        return now_ns if len(self._running) < self._count else FAR

    def next_done_ns(self) -> int:
        return FAR

    def fd(self) -> None:
        return None

    def discard(self) -> int:
        return 0


class Samples:
    """A library with ten samples loaded, that tells which are fetched."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def batch(self, indices: np.ndarray) -> Sequence[memoryview]:
        if indices.max() >= 10:
            raise LibraryError(f"sample {indices.max()} is not loaded")
        self._events.append(f"fetch {indices.tolist()}")
        return [memoryview(b"x")] * len(indices)


class Script:
    """A port whose every wait is the next of `moments`, and the last of which ends the loop."""

    def __init__(self, slots: int, *moments: Callable[[Script], None]) -> None:
        self.events: list[str] = []
        self.engine = Slots(slots, self.events)
        self._moments = deque(moments)
        self._inbox: deque[list[Any]] = deque()
        engine: Any = self.engine
        library: Any = Samples(self.events)
        self.worker = Worker("w0", EPOCH, self, engine, library, Batcher(MAX_BATCH), clock=lambda: 1000)
        self.worker.run()

    def work(self, frame: int, *indices: int) -> None:
        self._inbox.append(encode_work(EPOCH, frame, np.array(indices, np.uint32), ()))

    def bye(self) -> None:
        self._inbox.append(control(Kind.BYE, EPOCH))

    def wait(self, timeout_ns: int, fd: int | None) -> None:
        if self._moments:
            self._moments.popleft()(self)
        else:
            self.worker.stop()

    def recv(self) -> list[Any] | None:
        return self._inbox.popleft() if self._inbox else None

    def send(self, parts: list[Any]) -> None:
        head = read_head(parts[0])
        if head.kind is Kind.ANSWER:
            answered = decode_answer(head, parts).responses.blob.view("<i4").tolist()
            self.events.append(f"answer {answered}")
        else:
            self.events.append(head.kind.name)

    def lost(self) -> str | None:
        return None

    def close(self) -> None:
        pass


def finish(script: Script) -> None:
    script.engine.finish()


def without_fetches(script: Script) -> list[str]:
    return [event for event in script.events if not event.startswith(("fetch", "HELLO"))]


def test_a_slot_has_its_next_batch_before_the_last_one_is_answered() -> None:
    script = Script(2, lambda s: s.work(1, *range(10)), finish, finish)
    assert without_fetches(script) == [
        "submit [0, 1, 2, 3]",
        "submit [4, 5, 6, 7]",
        "answer [0, 1, 2, 3]",
        "submit [8, 9]",  # not full, so more might have come
        "answer [4, 5, 6, 7]",
    ]
    script = Script(2, lambda s: s.work(1, *range(10), 0, 1), finish, finish)
    assert without_fetches(script) == [
        "submit [0, 1, 2, 3]",
        "submit [4, 5, 6, 7]",
        "submit [8, 9, 0, 1]",
        "answer [0, 1, 2, 3]",
        "answer [4, 5, 6, 7]",
    ]


def test_a_full_batch_is_fetched_while_several_are_computed_and_a_part_of_one_waits_for_more() -> None:
    script = Script(
        2,
        lambda s: s.work(1, *range(9), 0, 1, 2, 3),
        lambda s: s.events.append("computing"),
        finish,
        lambda s: s.work(2, 9),
        finish,
    )
    assert script.events == [
        "HELLO",
        "fetch [0, 1, 2, 3]",
        "submit [0, 1, 2, 3]",
        "fetch [4, 5, 6, 7]",
        "submit [4, 5, 6, 7]",
        "fetch [8, 0, 1, 2]",
        "computing",
        "submit [8, 0, 1, 2]",
        "answer [0, 1, 2, 3]",
        "answer [4, 5, 6, 7]",
        "fetch [3, 9]",
        "submit [3, 9]",
    ]


def test_an_engine_of_one_slot_is_answered_for_first() -> None:
    script = Script(1, lambda s: s.work(1, *range(8)), finish, finish)
    assert script.events == [
        "HELLO",
        "fetch [0, 1, 2, 3]",
        "submit [0, 1, 2, 3]",
        "answer [0, 1, 2, 3]",
        "fetch [4, 5, 6, 7]",
        "submit [4, 5, 6, 7]",
        "answer [4, 5, 6, 7]",
    ]


def test_an_engine_that_takes_no_time_has_each_batch_answered_before_the_next() -> None:
    def instant(script: Script) -> None:
        submit = script.engine.submit

        def at_once(batch: Batch) -> None:
            submit(batch)
            script.engine.finish()

        script.engine.submit = at_once  # type: ignore[method-assign]
        script.work(1, *range(10))

    script = Script(4, instant)
    kinds = [event.split()[0] for event in without_fetches(script)]
    assert kinds == ["submit", "answer"] * 3


def test_what_was_computed_is_answered_although_the_next_batch_cannot_be_made() -> None:
    script = Script(1, lambda s: s.work(1, 0, 1, 2, 3, 11), finish)
    assert script.events[-2:] == ["answer [0, 1, 2, 3]", "FAIL"]
    assert script.worker.ended == "LibraryError: sample 11 is not loaded"


def test_nothing_is_fetched_any_more_after_goodbye() -> None:
    def goodbye(script: Script) -> None:
        script.work(2, 10, 11, 12, 13)
        script.bye()

    script = Script(2, lambda s: s.work(1, *range(8)), goodbye)
    assert script.events[-1] == "submit [4, 5, 6, 7]"
    assert script.worker.ended == "bye"
