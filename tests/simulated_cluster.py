"""A cluster under a hand-held clock: real Dispatcher, Batcher and frames; simulated wires and engines.

Nothing sleeps and nothing is random but `rng`, so a case is its seed. LoadGen is played too: its ids are
pointers that it uses again as soon as a sample is answered, and a response tells whose it is.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from orchestrator.dispatch import Completion, Dispatcher, Lump, NoWorkers, PeerFault
from orchestrator.pace import Pace
from orchestrator.query_samples import packed
from workers.batcher import Batcher, Taken
from workers.protocol import (
    FAR_NS,
    Answer,
    Buffer,
    ProtocolError,
    Responses,
    Segment,
    decode_answer,
    decode_work,
    encode_answer,
    encode_work,
    read_head,
)

EPOCH = 7
SLOTS = 2  # the batch that runs and the one that waits for it
US, MS, S = 10**3, 10**6, 10**9
FIRST_ID = 0x7F3A_0000_0000  # where a heap would lie: no such number may appear on a wire
CHECK_EVERY_NS = 500 * MS

Failure = (NoWorkers, PeerFault)


@dataclass
class Engine:
    """What a worker can do: a batch of n takes `per_batch_ns + n * per_sample_ns`, times a random factor."""

    per_batch_ns: int
    per_sample_ns: int
    max_batch: int = 8
    slower: float = 1.0
    spread: Callable[[], float] = lambda: 1.0

    def mean_ns(self, n: int) -> float:
        return (self.per_batch_ns + n * self.per_sample_ns) * self.slower

    @property
    def capacity(self) -> float:
        """Samples a second in full batches."""
        return self.max_batch / self.mean_ns(self.max_batch) * 1e9

    def pace(self) -> Pace:
        sizes = sorted({1, self.max_batch})
        return Pace([(n, self.mean_ns(n) / 1e9) for n in sizes], self.max_batch)


@dataclass
class Worker:
    """One simulated worker; its faults are switched by the case."""

    number: int
    engine: Engine
    batcher: Batcher
    clock_ns: int = 0  # its host's clock minus the test's
    running: deque[tuple[int, int, Taken]] = field(default_factory=deque)
    wake_ns: int = FAR_NS
    dead: bool = False
    hung_until_ns: int = 0
    cut: bool = False
    busy_ns: int = 0
    finished_ns: int = 0


class Cluster:
    """Dispatcher, wires and workers of one case; `run()` plays it to its end."""

    def __init__(
        self,
        engines: list[Engine],
        rng: np.random.Generator,
        *,
        delay_ns: Callable[[], int] = lambda: 50 * US,
        on_loss: str = "reissue",
        one_sample_frames: bool = False,
        dispatcher: type[Dispatcher] = Dispatcher,
        batch_deadline_ns: int = 0,
    ) -> None:
        self.rng = rng
        self.delay_ns = delay_ns
        self.workers = [Worker(i, e, Batcher(e.max_batch, batch_deadline_ns)) for i, e in enumerate(engines)]
        self.dispatcher = dispatcher(
            [(f"node/{i}", w.engine.pace()) for i, w in enumerate(self.workers)],
            on_loss=on_loss,
            one_sample_frames=one_sample_frames,
        )
        self.now_ns = 0
        self.failure: Exception | None = None
        self.answers_of: Callable[[Worker, Answer], list[Answer]] = lambda worker, answer: [answer]
        self.on_wire: Callable[[list[Buffer]], None] = lambda parts: None
        self.expected: dict[int, tuple[int, int]] = {}  # LoadGen's open ids -> (index, issued)
        self.latencies_ns: list[int] = []
        self.asked = 0
        self.frames = 0
        self._free_ids: list[int] = []
        self._next_index = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    # -- time ------------------------------------------------------------------------------------------------

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Do something at a time; equal times keep their order."""
        self._order += 1
        heapq.heappush(self._events, (max(time_ns, self.now_ns), self._order, action))

    def run(self, until_ns: int = 2000 * S) -> None:
        """Play until every sample is answered or the test has failed."""
        self.at(CHECK_EVERY_NS, self._check)
        while self._events and self.failure is None:
            self.now_ns, _, action = heapq.heappop(self._events)
            try:
                action()
            except Failure as failure:
                self.failure = failure
            assert self.now_ns < until_ns, f"not finished: {self.dispatcher.outstanding} samples outstanding"

    def _check(self) -> None:
        for number, age_s in self.dispatcher.hung(self.now_ns):
            self.lose(number, f"hung for {age_s:.1f} s")
        if self._events or self.expected:
            self.at(self.now_ns + CHECK_EVERY_NS, self._check)

    # -- LoadGen ---------------------------------------------------------------------------------------------

    def issue(self, count: int) -> None:
        """One issue callback with `count` samples."""
        ids: list[int] = []
        for _ in range(count):
            # The last one freed first, as a heap does: the worst for whoever keeps stale ids.
            ids.append(
                self._free_ids.pop() if self._free_ids else FIRST_ID + 64 * len(self.expected) + len(ids)
            )
            while ids[-1] in self.expected:
                ids[-1] += 64
            self.expected[ids[-1]] = (self._next_index, self.now_ns)
            self._next_index += 1
        indices = list(range(self._next_index - count, self._next_index))
        self.asked += count
        self.dispatcher.issue(Lump(packed(ids, indices), self.now_ns))
        self.send()

    def _complete(self, done: Completion) -> None:
        n = len(done.ids)
        sizes = np.broadcast_to(done.sizes, n)
        offsets = np.cumsum(sizes) - sizes if done.offsets is None else done.offsets
        for id_, at, size in zip(done.ids.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            assert id_ in self.expected, "LoadGen heard of a sample that it did not ask, or twice of one"
            index, issued_ns = self.expected.pop(id_)
            response = bytes(done.blob[at : at + size])
            assert response == response_of(index), f"sample {index} was given {response!r}"
            self.latencies_ns.append(self.now_ns - issued_ns)
            self._free_ids.append(id_)

    # -- the test process ------------------------------------------------------------------------------------

    def send(self) -> None:
        """What the dispatcher's loop does after every event."""
        for send in self.dispatcher.sends(self.now_ns):
            self.frames += 1
            parts = encode_work(EPOCH, send.frame, send.indices)
            self.on_wire(parts)
            worker = self.workers[send.worker]
            if not (worker.cut or worker.dead):
                self._carry(partial(self._receive, worker, parts))

    def deliver(self, number: int, parts: list[Buffer]) -> None:
        """A message of a worker arrives at the test."""
        try:
            answer = decode_answer(read_head(parts[0]), parts)
        except ProtocolError as error:
            raise PeerFault(
                f"worker {self.dispatcher.seats[number].name} sent a malformed frame: {error}"
            ) from None
        completion = self.dispatcher.answer(number, answer, self.now_ns)
        if completion is not None:
            self._complete(completion)
        self.send()

    def lose(self, number: int, reason: str) -> None:
        """The test hears that a worker is gone."""
        self.dispatcher.lose(number, reason, self.now_ns)
        self.send()

    def _carry(self, arrive: Callable[[], None]) -> None:
        self.at(self.now_ns + self.delay_ns(), arrive)

    # -- the workers -----------------------------------------------------------------------------------------

    def _receive(self, worker: Worker, parts: list[Buffer]) -> None:
        if not (worker.dead or worker.cut):
            worker.batcher.add(decode_work(read_head(parts[0]), parts), self.now_ns + worker.clock_ns)
            self._turn(worker)

    def _turn(self, worker: Worker) -> None:
        """One turn of a worker's loop: answer what is done, give the engine what it takes."""
        if worker.dead:
            return
        if self.now_ns < worker.hung_until_ns:
            self._wake(worker, worker.hung_until_ns)
            return
        running = worker.running
        while running and running[0][1] <= self.now_ns:
            self._answer(worker, *running.popleft())
        while worker.batcher.due_ns(self._free_at(worker) + worker.clock_ns) <= self.now_ns + worker.clock_ns:
            taken = worker.batcher.take()
            start = max(self.now_ns, running[-1][1] if running else 0)
            took = max(int(worker.engine.mean_ns(len(taken.indices)) * worker.engine.spread()), 1)
            running.append((start, start + took, taken))
            worker.busy_ns += took
        due = worker.batcher.due_ns(self._free_at(worker) + worker.clock_ns) - worker.clock_ns
        self._wake(worker, min(due, running[0][1] if running else FAR_NS))

    def _free_at(self, worker: Worker) -> int:
        if not worker.running:
            return self.now_ns
        return worker.running[-1][1] if len(worker.running) < SLOTS else FAR_NS

    def _wake(self, worker: Worker, at_ns: int) -> None:
        if at_ns < FAR_NS // 2 and not self.now_ns < worker.wake_ns <= at_ns:
            worker.wake_ns = at_ns
            self.at(at_ns, lambda: self._turn(worker))

    def _answer(self, worker: Worker, started_ns: int, computed_ns: int, taken: Taken) -> None:
        n = len(taken.indices)
        worker.finished_ns = self.now_ns
        offset = worker.clock_ns
        whole = Answer(
            taken.segments,
            started_ns + offset,
            computed_ns + offset,
            self.now_ns + offset,
            n,
            responses(taken.indices),
        )
        for answer in self.answers_of(worker, whole):
            parts = encode_answer(EPOCH, answer)
            if not worker.cut:
                self._carry(partial(self.deliver, worker.number, parts))


def response_of(index: int) -> bytes:
    """The bytes that answer a sample; their number varies too."""
    return int(index).to_bytes(4, "little") + b"x" * (index % 3)


def responses(indices: np.ndarray) -> Responses:
    """Responses of different sizes to `indices`; of one size if they happen to agree, or there is one."""
    pieces = [response_of(i) for i in indices.tolist()]
    sizes = np.array([len(p) for p in pieces], np.int64)
    blob = np.frombuffer(b"".join(pieces), np.uint8)
    return Responses(blob, None if len(set(sizes.tolist())) == 1 else sizes)


def piece(answer: Answer, rows: np.ndarray, segments: list[Segment]) -> Answer:
    """The samples `rows` of an answer, said to be those of `segments`."""
    r = answer.responses
    n = sum(s.count for s in answer.segments)
    sizes = np.full(n, r.blob.size // n) if r.sizes is None else r.sizes
    starts = np.cumsum(sizes) - sizes
    blob = np.concatenate([r.blob[a : a + s] for a, s in zip(starts[rows], sizes[rows], strict=True)])
    times = answer.started_ns, answer.computed_ns, answer.sent_ns, answer.batch_size
    return Answer(segments, *times, Responses(blob, sizes[rows]))
