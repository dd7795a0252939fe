"""A worker's turn: the engine is fed before answers are written, with batches that were made beforehand."""

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


class OneSlot:
    """An engine that computes one batch at a time and is done when it is told so."""

    max_batch = MAX_BATCH
    needs_samples = True
    answer_bytes = 16

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self._running: Batch | None = None
        self._done: list[Done] = []

    def submit(self, batch: Batch) -> None:
        assert self._running is None
        self._events.append(f"submit {batch.indices.tolist()}")
        self._running = batch

    def finish(self) -> None:
        assert self._running is not None
        blob = self._running.indices.astype("<i4").view(np.uint8)
        self._done.append(Done(self._running, Responses(blob), 1, 2))
        self._running = None

    def step(self) -> list[Done]:
        done, self._done = self._done, []
        return done

    def free_at_ns(self, now_ns: int) -> int:
        return now_ns if self._running is None else FAR

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

    def __init__(self, *moments: Callable[[Script], None]) -> None:
        self.events: list[str] = []
        self.engine = OneSlot(self.events)
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


def test_a_slot_has_its_next_batch_before_the_last_one_is_answered() -> None:
    script = Script(lambda s: s.work(1, 0, 1, 2, 3, 4, 5), finish, finish)
    order = [event for event in script.events if not event.startswith("fetch")]
    assert order == ["HELLO", "submit [0, 1, 2, 3]", "submit [4, 5]", "answer [0, 1, 2, 3]", "answer [4, 5]"]


def test_a_full_batch_is_fetched_while_the_engine_computes_and_a_part_of_one_waits_for_more() -> None:
    script = Script(
        lambda s: s.work(1, 0, 1, 2, 3, 4, 5, 6, 7, 8),
        lambda s: s.events.append("computing"),
        finish,
        lambda s: s.work(2, 9),
        finish,
        finish,
    )
    assert script.events == [
        "HELLO",
        "fetch [0, 1, 2, 3]",
        "submit [0, 1, 2, 3]",
        "fetch [4, 5, 6, 7]",
        "computing",
        "submit [4, 5, 6, 7]",
        "answer [0, 1, 2, 3]",
        "fetch [8, 9]",
        "submit [8, 9]",
        "answer [4, 5, 6, 7]",
        "answer [8, 9]",
    ]


def test_what_was_computed_is_answered_although_the_next_batch_cannot_be_made() -> None:
    script = Script(lambda s: s.work(1, 0, 1, 2, 3, 11), finish)
    assert script.events[-2:] == ["answer [0, 1, 2, 3]", "FAIL"]
    assert script.worker.ended == "LibraryError: sample 11 is not loaded"


def test_nothing_is_fetched_any_more_after_goodbye() -> None:
    def goodbye(script: Script) -> None:
        script.work(2, 10, 11, 12, 13)
        script.bye()

    script = Script(lambda s: s.work(1, 0, 1, 2, 3), goodbye)
    assert script.events == ["HELLO", "fetch [0, 1, 2, 3]", "submit [0, 1, 2, 3]"]
    assert script.worker.ended == "bye"
