"""Workers whose every move a test makes, and an Exchange to sit them at."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from orchestrator.dispatch import Completion, Dispatcher, Loss
from orchestrator.exchange import Exchange
from orchestrator.local import LocalLink, LocalPort
from orchestrator.pace import Pace
from orchestrator.query_samples import packed
from orchestrator.shared_answers import SharedAnswers
from orchestrator.timings import Board, Timings
from tests.processes import eventually
from workers.backends.echo import EchoBackend, EchoOptions
from workers.batcher import Batcher
from workers.library import Library
from workers.protocol import (
    Answer,
    Buffer,
    Kind,
    Responses,
    Segment,
    Work,
    control,
    decode_work,
    encode_answer,
    read_head,
)
from workers.worker import Worker

EPOCH = 77
MAX_BATCH = 8


@dataclass
class Puppet:
    """A worker whose every move the test makes."""

    name: str
    port: LocalPort

    def hello(self) -> None:
        self.port.send(control(Kind.HELLO, EPOCH, body=self.name.encode()))

    def take(self, kind: Kind, limit_s: float = 3.0) -> list[Buffer]:
        """The next message of this kind; what else comes before it is skipped."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            parts = self.port.recv()
            if parts is None:
                self.port.wait(20_000_000, None)
            elif read_head(parts[0]).kind is kind:
                return parts
        raise AssertionError(f"{self.name} was sent no {kind.name} within {limit_s} s")

    def work(self) -> Work:
        parts = self.take(Kind.WORK)
        return decode_work(read_head(parts[0]), parts)

    def reply(self, kind: Kind, body: bytes = b"", number: int = 0) -> None:
        self.port.send(control(kind, EPOCH, number, body))

    def answer(self, work: Work, epoch: int = EPOCH) -> None:
        self.send(self.answer_to(work.frame, work.indices), epoch)

    def send(self, answer: Answer, epoch: int = EPOCH) -> None:
        self.port.send(encode_answer(epoch, answer))

    @staticmethod
    def answer_to(frame: int, indices: np.ndarray) -> Answer:
        now = time.monotonic_ns()
        blob = indices.astype("<i4").view(np.uint8)
        return Answer([Segment(frame, now, len(indices))], now, now, now, len(indices), Responses(blob))


@dataclass
class Table:
    """An Exchange, what it told, and its workers: live ones in threads, or puppets."""

    workers: int
    on_loss: str = "reissue"
    library: Library | None = None
    coalesced: bool = False
    answered: Counter[int] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    next_id: int = 1 << 40  # LoadGen's are addresses

    def __post_init__(self) -> None:
        self.link = LocalLink(self.workers)
        self.names = [f"w{i}" for i in range(self.workers)]
        self.board = Board(self.workers)
        seats = [(name, Pace([(1, 1e-4), (MAX_BATCH, 4e-4)], MAX_BATCH)) for name in self.names]
        self.dispatcher = Dispatcher(seats, on_loss=self.on_loss)
        self.shared = SharedAnswers(range(self.workers))
        self.exchange = Exchange(
            self.link,
            self.dispatcher,
            Timings(self.board),
            self.complete,
            epoch=EPOCH,
            library=self.library,
            shared=self.shared,
            coalesced=self.coalesced,
            on_loss=self.losses.append,
            on_failure=self.failures.append,
        )
        self.exchange.start()
        self.puppets = [Puppet(name, port) for name, port in zip(self.names, self.link.ports, strict=True)]
        self.threads: list[tuple[Worker, threading.Thread]] = []

    def complete(self, completion: Completion) -> None:
        """As the response pool: where each id's response lies is what counts."""
        ids = completion.ids.tolist()
        indices = completion.blob.view("<i4")
        if completion.offsets is not None:
            indices = indices[completion.offsets // 4]
        self.wrong += [i for i, index in zip(ids, indices.tolist(), strict=True) if i % 1000 != index]
        self.answered.update(ids)

    def live(self, service_us: float = 0.0) -> Table:
        for i, name in enumerate(self.names):
            engine = EchoBackend(EchoOptions(service_time_us=service_us), MAX_BATCH)
            worker = Worker(name, EPOCH, self.link.ports[i], engine, None, Batcher(MAX_BATCH), f"{name}@here")
            self.threads.append((worker, threading.Thread(target=worker.run, daemon=True)))
            self.threads[-1][1].start()
        self.exchange.wait_attached(5)
        return self

    def attached(self) -> Table:
        for puppet in self.puppets:
            puppet.hello()
            puppet.take(Kind.WELCOME)
        return self

    def issue(self, count: int) -> list[int]:
        """Issue samples whose index can be told from their id."""
        ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        self.exchange.issue(packed(ids, [i % 1000 for i in ids]))
        return ids

    def all_answered(self, ids: list[int], limit_s: float = 10.0) -> None:
        assert eventually(
            lambda: len(self.answered) >= len(ids) or bool(self.failures), limit_s, every_s=0.01
        )
        assert self.failures == []
        assert sorted(self.answered.elements()) == sorted(ids)
        assert self.wrong == []

    def failure(self, limit_s: float = 1.0) -> str:
        assert eventually(lambda: bool(self.failures), limit_s, every_s=0.005)
        assert self.exchange.failure == self.failures[0]
        return self.failures[0]

    def close(self) -> None:
        self.exchange.stop()
        self.link.close()
        for _, thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()
        self.exchange._thread.join(5)
