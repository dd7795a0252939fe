"""The worker's loop: receive, feed the engine, answer. It knows neither the scenario nor LoadGen nor Ray.

A Worker lives for one test. The model and the library live in its WorkerHost (host.py) and outlive tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from workers.answer_memory import LARGE_BYTES, AnswerMemory
from workers.backends import FAR, SETTLE_NS, Backend, BackendError, Batch, Done, settle
from workers.batcher import Batcher, Taken
from workers.library import Library
from workers.protocol import (
    MAX_MESSAGE_BYTES,
    Answer,
    Buffer,
    Kind,
    ProtocolError,
    Responses,
    control,
    control_body,
    decode_work,
    encode_answer,
    indices_body,
    read_head,
)

# Even with nothing to do the loop looks up this often, so that stop() and a lost link are seen.
IDLE_WAIT_NS = 200_000_000
MOST_REASON_BYTES = 4000


class Port(Protocol):
    """The worker's end of a link."""

    def wait(self, timeout_ns: int, fd: int | None) -> None:
        """Sleep until a message may be there, `fd` is readable, the link is lost, or the time is over."""

    def recv(self) -> list[Buffer] | None:
        """The next message, None if there is none."""

    def send(self, parts: list[Buffer]) -> None:
        """Send a message; never blocks."""

    def lost(self) -> str | None:
        """Why the link is gone, None while it holds."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(slots=True)
class _Ticket:
    """Which test a batch in the engine belongs to, and where its answers go."""

    worker: Worker
    taken: Taken


class Worker:
    """Answers the samples of one test, epoch by epoch the same loop.

    `memory` is offered to the test: if it sees it too, large answers lie there and do not travel.
    """

    def __init__(
        self,
        name: str,
        epoch: int,
        port: Port,
        backend: Backend,
        library: Library | None,
        batcher: Batcher,
        node_name: str = "",
        clock: Callable[[], int] = time.monotonic_ns,
        memory: AnswerMemory | None = None,
    ) -> None:
        self.name = name
        self.node_name = node_name
        self.epoch = epoch
        self.samples = 0
        self.ended: str | None = None  # why the loop ended; "bye" is the good end
        self.left = 0  # batches that were still in the engine when the loop had ended
        self.refused = False  # the test does not see the memory that it was offered
        self.order: list[np.ndarray] | None = None  # a list collects the indices of every batch, for `bench`
        self._port = port
        self._backend = backend
        self._library = library
        self._batcher = batcher
        self._clock = clock
        self._memory = memory
        self._shared: AnswerMemory | None = None  # the memory, once the test sees it
        self._running = True
        self._welcome = False
        self._inside = 0  # batches in the engine
        self._following: Batch | None = None  # a full one, made while several are

    @property
    def welcome(self) -> bool:
        """Whether the test has let this worker in."""
        return self._welcome

    def run(self) -> None:
        """Serve until the test says BYE, the link is lost or the backend fails; then empty the engine."""
        try:
            self._port.send(control(Kind.HELLO, self.epoch, body=self.name.encode()))
            while self._running:
                self._port.wait(self._idle_ns(), self._backend.fd())
                self._receive()
                self._turn()
        except Exception as error:
            # Whatever it is, the test must hear it at once and by the worker's name, not by a silence.
            self.ended = f"{type(error).__name__}: {error}"
            reason = self.ended.encode()[:MOST_REASON_BYTES]
            self._port.send(control(Kind.FAIL, self.epoch, body=reason))
        finally:
            self._following = None
            # However the loop ended: the memory of its batches is given back next, and the engine is another
            # test's.
            self.left = settle(self._backend, self.name, SETTLE_NS)

    def stop(self) -> None:
        """Ask the loop to end; safe from any thread."""
        self.ended = self.ended or "stopped"
        self._running = False

    def _idle_ns(self) -> int:
        """How long there is nothing to do."""
        now = self._clock()
        due = min(self._due_ns(now), self._backend.next_done_ns())
        return min(max(due - now, 0), IDLE_WAIT_NS)

    def _receive(self) -> None:
        """Take every message that is there."""
        # Asked first: what had come before the link was lost is still taken.
        lost = self._port.lost()
        while (parts := self._port.recv()) is not None:
            head = read_head(parts[0])
            if head.epoch != self.epoch:
                continue  # a message of another test; nothing of it is ours
            if head.kind is Kind.WORK:
                self._batcher.add(decode_work(head, parts), self._clock())
            else:
                self._control(head.kind, head.number, parts)
        if self._running and lost:
            self.ended = lost
            self._running = False

    def _control(self, kind: Kind, number: int, parts: list[Buffer]) -> None:
        """Handle everything that is not work."""
        if kind is Kind.WELCOME:
            self._welcome = True
            # Ahead of the first PONG, so that it is open before the test begins.
            if self._memory is not None:
                self._port.send(control(Kind.SHARE, self.epoch, body=self._memory.offer()))
        elif kind is Kind.SHARED:
            self.refused = not number
            self._shared = self._memory if number else None
        elif kind is Kind.FREE and self._shared is not None:
            self._shared.free(number)
        elif kind is Kind.PING:
            body = np.array([self._clock()], "<i8").tobytes()
            self._port.send(control(Kind.PONG, self.epoch, number, body))
        elif kind is Kind.LOAD:
            refused = ""
            if self._library is not None:
                self._library.load(indices_body(parts))
                refused = self._library.refused
            self._port.send(control(Kind.LOADED, self.epoch, number, refused.encode()[:MOST_REASON_BYTES]))
        elif kind is Kind.UNLOAD:
            if self._library is not None:
                self._library.unload(indices_body(parts))
            self._port.send(control(Kind.UNLOADED, self.epoch, number))
        elif kind is Kind.NAME:
            self._port.send(control(Kind.NAMED, self.epoch, number, self.node_name.encode()))
        elif kind is Kind.BYE:
            self.ended = "bye"
            self._running = False
        else:
            raise ProtocolError(f"a worker cannot be sent {kind.name}: {len(control_body(parts))} bytes")

    def _turn(self) -> None:
        """Refill the engine if a batch lies ready, answer what it has finished, then give it what is due.

        A slot that is done stands still until it has another batch: one that lies ready spares it the time in
        which answers are written.
        """
        finished, now = self._finished(), self._clock()
        if self._running and self._following is not None and self._due_ns(now) <= now:
            self._submit(self._following)
        for done in finished:
            self._answer(done)
        self._feed()

    def _finished(self) -> list[Done]:
        """What the engine has finished, without an earlier test's: its frames mean other samples here."""
        done = self._backend.step()
        finished = [one for one in done if one.batch.ticket.worker is self]  # type: ignore[attr-defined]
        self._inside -= len(finished)
        return finished

    def _feed(self) -> None:
        """Give the engine its next batches, as late as it allows; answers what it has finished meanwhile."""
        now = self._clock()
        while self._running and self._due_ns(now) <= now:
            self._submit(self._following or self._next_batch())
            for done in self._finished():
                self._answer(done)
            now = self._clock()
        # Waiting would not make a full batch better. An engine of one slot stands still for its next batch in
        # any case, and would then fight the loop for the interpreter while the answers are written.
        full = self._batcher.samples >= self._batcher.max_batch
        if self._running and full and self._following is None and self._inside > 1:
            self._following = self._next_batch()

    def _submit(self, batch: Batch) -> None:
        self._following = None
        self._inside += 1
        if self.order is not None:
            self.order.append(batch.indices)
        self._backend.submit(batch)

    def _due_ns(self, now: int) -> int:
        """When the engine should be given a batch."""
        free_at_ns = self._backend.free_at_ns(now)
        if self._following is not None:
            return 0 if free_at_ns < FAR else FAR
        return self._batcher.due_ns(free_at_ns)

    def _next_batch(self) -> Batch:
        """What the engine computes next, of what waits now."""
        taken = self._batcher.take()
        # What came with the work is computed, whatever the library holds under these indices.
        samples: Sequence[memoryview] = taken.samples
        if not samples and self._backend.needs_samples:
            if self._library is None:
                raise ProtocolError("indices were sent to a worker that has no sample library")
            samples = self._library.batch(taken.indices)
        batch = Batch(taken.indices, samples, _Ticket(self, taken))
        if self._shared is not None:
            batch.keep = self._shared.copy
        return batch

    def _answer(self, done: Done) -> None:
        ticket = done.batch.ticket
        assert isinstance(ticket, _Ticket)
        taken = ticket.taken
        n = len(taken.indices)
        _check_counts(done.responses, n)
        self.samples += n
        shared_at = None if self._shared is None else self._place(self._shared, done.responses.blob)
        times = done.started_ns, done.computed_ns, self._clock()
        answer = Answer(taken.segments, *times, n, done.responses, shared_at)
        self._port.send(encode_answer(self.epoch, answer))

    def _place(self, memory: AnswerMemory, blob: np.ndarray) -> int | None:
        """Where the test finds an answer; None: it is small, or there is no room and it travels at once."""
        offset = memory.hand_over(blob)
        if offset is None and blob.size >= LARGE_BYTES:
            # What the test has given back may wait unread behind a row of finished batches.
            self._receive()
            offset = memory.hand_over(blob)
        return offset


def _check_counts(responses: Responses, n: int) -> None:
    """BackendError unless `responses` can be those of `n` samples and fit into a message."""
    total, sizes = responses.blob.size, responses.sizes
    if total > MAX_MESSAGE_BYTES:
        # The link would close without a word.
        raise BackendError(
            f"{total} response bytes of a batch of {n} samples are more than a message holds "
            f"({MAX_MESSAGE_BYTES} bytes): lower workers.max_batch"
        )
    if sizes is None and total % n:
        raise BackendError(f"{total} response bytes cannot be shared by a batch of {n} samples")
    if sizes is not None and len(sizes) != n:
        raise BackendError(f"{len(sizes)} responses came back for a batch of {n} samples")
    if sizes is not None and int(sizes.sum()) != total:
        raise BackendError(f"responses of {int(sizes.sum())} bytes in all came with {total} bytes")
