"""The dispatcher thread: drains answers, takes what LoadGen issued, sends, then sleeps in one wait.

This is the hottest loop of the program. LoadGen's thread appends a lump, and may rest then; everything else
happens here, one frame at a time, so that messages grow exactly when the system is busy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.dispatch import Completion, Dispatcher, Loss, Lump, NoWorkers, PeerFault
from orchestrator.lateness import IssueLog
from orchestrator.link import Link, LinkDown
from orchestrator.shared_answers import SharedAnswers
from orchestrator.timings import Timings
from workers.library import Library
from workers.protocol import (
    Answer,
    Buffer,
    Kind,
    ProtocolError,
    control,
    control_body,
    decode_answer,
    encode_work,
    indices_message,
    read_head,
    text_of,
)

# Messages drained before what waits is sent: bounds how long an issue can wait behind answers.
DRAIN_AT_MOST = 64
CHECK_EVERY_NS = 100_000_000
STALL_NS = 1_000_000_000
IDLE_WAIT_MS = 50
# Where LoadGen merges overdue queries, its thread rests after an issue that found the dispatcher at work, or
# it is back for the interpreter's lock every 30 to 75 us and takes it from the loop that answers. On 16 cores
# 1,000,000/s had a p99 of 3.0 ms, 1.7 with the rest; 100,000/s gained none, but took a third less CPU.
REST_S = 100e-6
PINGS = 8
LOAD_TIMEOUT_S = 600.0
ASK_TIMEOUT_S = 10.0  # for what a worker does at once
STUCK_S = 2.0


class ExchangeFailed(Exception):
    """The test cannot go on; the text names the worker and the cause."""


class Exchange:
    """Carries samples between LoadGen's callbacks and the workers.

    `complete` reports a lump to LoadGen. `library` is given in value mode: its bytes travel with the indices.
    `shared` knows whose large answers need not travel. `coalesced`: LoadGen merges queries that are overdue.
    `on_event` hears of losses and of the failure that ends the test; it must return at once.
    """

    def __init__(
        self,
        link: Link,
        dispatcher: Dispatcher,
        timings: Timings,
        complete: Callable[[Completion], None],
        *,
        epoch: int,
        library: Library | None = None,
        shared: SharedAnswers | None = None,
        coalesced: bool = False,
        issue_log: IssueLog | None = None,
        on_loss: Callable[[Loss], None] = lambda loss: None,
        on_failure: Callable[[str], None] = lambda reason: None,
        on_check: Callable[[int, int], None] = lambda completed, issued: None,
    ) -> None:
        self._link = link
        self._dispatcher = dispatcher
        self._timings = timings
        self._complete = complete
        self._epoch = epoch
        self._library = library
        self._shared = shared or SharedAnswers()
        self.rest_s = REST_S if coalesced else 0.0
        self._issue_log = issue_log or IssueLog(0)
        self._on_loss = on_loss
        self._on_failure = on_failure
        self._on_check = on_check
        self.failure: str | None = None
        self.foreign = 0  # answers of another epoch, dropped
        self._pending: deque[Lump] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._asleep = False
        self._running = True
        self._watch_hangs = False
        self._seen: dict[Kind, dict[int, bytes]] = {}
        self._changed = threading.Condition()
        self._checked_ns = 0
        self._ping_ns = 0  # the number of the ping that is out
        self._behind = False  # messages may wait that no drain has seen
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    # -- called from LoadGen's threads -----------------------------------------------------------------------

    def issue(self, samples: Buffer) -> None:
        """LoadGen's issue callback: note the QuerySamples and return."""
        self._pending.append(Lump(samples, time.monotonic_ns()))
        if self._asleep:
            self._asleep = False
            self._link.wake()
        elif self.rest_s:
            time.sleep(self.rest_s)

    def load(self, indices: Sequence[int]) -> dict[str, str]:
        """LoadGen's LoadSamplesToRam, here or (index mode) in the workers; who stacks after all, and why."""
        array, said = np.asarray(indices, np.int64), {}
        if self._library is not None:
            self._library.load(array)
        else:
            said = self._ask_all(Kind.LOADED, indices_message(Kind.LOAD, self._epoch, array), LOAD_TIMEOUT_S)
        self._watch_hangs = True
        return {self._dispatcher.seats[i].name: text_of(why) for i, why in said.items() if why}

    def unload(self, indices: Sequence[int]) -> None:
        """LoadGen's UnloadSamplesFromRam."""
        self._watch_hangs = False
        array = np.asarray(indices, np.int64)
        if self._library is not None:
            self._library.unload(array)
        else:
            self._ask_all(Kind.UNLOADED, indices_message(Kind.UNLOAD, self._epoch, array))

    def node_names(self) -> list[str]:
        """Every node's name over a real round trip, in the workers' order (Network division)."""
        named = self._ask_all(Kind.NAMED, control(Kind.NAME, self._epoch))
        return [text_of(named[i]) for i in sorted(named)]

    # -- called from the main thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the dispatcher thread."""
        self._thread.start()

    def wait_attached(self, timeout_s: float) -> None:
        """Wait for every worker's HELLO, then measure each idle wire; ExchangeFailed names who is missing."""
        if missing := self._missing_after(timeout_s, Kind.HELLO):
            names = ", ".join(self._dispatcher.seats[i].name for i in missing)
            raise ExchangeFailed(f"after {timeout_s:g} s worker {names} did not attach")
        for _ in range(PINGS):
            self._ping_ns = time.monotonic_ns()
            self._ask_all(Kind.PONG, control(Kind.PING, self._epoch, self._ping_ns))
        self._ping_ns = 0

    def lose(self, name: str, reason: str) -> None:
        """Somebody else (Ray) saw that a worker died."""
        names = [seat.name for seat in self._dispatcher.seats]
        if name in names:
            self._call(lambda: self._lose(names.index(name), reason))

    def stop(self) -> None:
        """Tell the workers that the test is over, end the thread."""
        self._call(self._say_bye)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    # -- the loop --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._running:
                busy = self._drain()
                busy |= self._take()
                busy |= self._send()
                now = time.monotonic_ns()
                if now - self._checked_ns >= CHECK_EVERY_NS:
                    self._check(now)
                if not busy:
                    self._sleep()
        except (PeerFault, NoWorkers, ExchangeFailed) as error:
            self._fail(str(error))
        except Exception as error:  # a bug of ours must end the test as a failure, not hang it
            self._fail(f"{type(error).__name__} in the dispatcher: {error}")

    def _sleep(self) -> None:
        self._asleep = True
        # An issue between the last look and the line above did not see us asleep.
        if not self._pending and not self._commands:
            self._link.wait(IDLE_WAIT_MS)
        self._asleep = False

    def _drain(self) -> bool:
        """Book what the workers sent."""
        for count in range(DRAIN_AT_MOST):
            got = self._link.recv()
            if got is None:
                self._behind = False
                return count > 0
            self._handle(*got)
        self._behind = True
        return True

    def _take(self) -> bool:
        """Hand what LoadGen issued to the Dispatcher."""
        pending, busy = self._pending, bool(self._pending)
        while pending:
            lump = pending.popleft()
            self._issue_log.add(lump.issued_ns, lump.count)
            if not self._dispatcher.issued:
                self._timings.board.set_total("first_issue_ns", lump.issued_ns)
            self._dispatcher.issue(lump)
        while self._commands:
            self._commands.popleft()()
        return busy

    def _send(self) -> bool:
        """Send the frames that the Dispatcher deals."""
        sends = self._dispatcher.sends(time.monotonic_ns())
        for send in sends:
            samples = () if self._library is None else self._library.samples(send.indices)
            self._tell(send.worker, encode_work(self._epoch, send.frame, send.indices, samples))
        return bool(sends)

    def _tell(self, worker: int, parts: list[Buffer]) -> None:
        """Send a message; a worker that cannot be reached is lost."""
        try:
            self._link.send(worker, parts)
        except LinkDown as error:
            self._lose(worker, str(error))

    def _check(self, now_ns: int) -> None:
        """A few times a second: broken links, hangs, and the counters that others read."""
        stalled = now_ns - self._checked_ns > STALL_NS
        self._checked_ns = now_ns
        if self._dispatcher.stuck_s(now_ns) > STUCK_S:
            raise ExchangeFailed("samples wait and no worker has credit")
        for worker, reason in self._link.lost():
            self._lose(worker, reason)
        # What waits here unread, or came while this process stood still, is not the worker's hang.
        if self._watch_hangs and not (self._behind or stalled):
            for worker, age_s in self._dispatcher.hung(now_ns):
                self._lose(worker, f"it holds a frame unanswered for {age_s:.1f} s")
        self._publish(now_ns)

    # -- messages --------------------------------------------------------------------------------------------

    def _handle(self, worker: int, parts: list[Buffer]) -> None:
        seat = self._dispatcher.seats[worker]
        try:
            head = read_head(parts[0])
            if head.epoch != self._epoch:
                self.foreign += 1
                return
            if head.kind is Kind.ANSWER:
                self._answer(worker, decode_answer(head, parts, self._shared.of(worker)))
                return
            body = control_body(parts)
            if head.kind is Kind.SHARE and seat.alive:
                used = not self._dispatcher.issued and self._shared.accept(worker, body)
                self._tell(worker, control(Kind.SHARED, self._epoch, int(used)))
                return
        except (ProtocolError, PeerFault) as error:
            if not seat.alive:
                return
            if isinstance(error, PeerFault):
                raise
            raise ExchangeFailed(f"worker {seat.name} sent a malformed frame: {error}") from None
        if not seat.alive:
            return  # its loss is booked, and what held it up may well end in an error
        if head.kind is Kind.FAIL:
            raise ExchangeFailed(f"worker {seat.name} failed: {text_of(body)}")
        if head.kind is Kind.PONG:
            if head.number != self._ping_ns:
                return
            rtt_s = max(time.monotonic_ns() - head.number, 0) * 1e-9
            seat.wire_s = min(seat.wire_s or rtt_s, rtt_s)
        if head.kind is Kind.HELLO:
            if body != seat.name.encode():
                who = text_of(body)
                raise ExchangeFailed(f"worker '{who}' connected in the place of worker {seat.name}")
            self._tell(worker, control(Kind.WELCOME, self._epoch))
        with self._changed:
            self._seen.setdefault(head.kind, {})[worker] = body
            self._changed.notify_all()

    def _answer(self, worker: int, answer: Answer) -> None:
        """Book one answer, report it to LoadGen, remember its times."""
        now, batch = time.monotonic_ns(), answer.batch_size
        flights = self._dispatcher.seats[worker].flights
        for segment in answer.segments:
            flight = flights.get(segment.frame)
            if flight is not None:
                sent = (worker, segment.count, flight.issued_ns, flight.sent_ns)
                times = answer.started_ns, answer.computed_ns, answer.sent_ns, now
                self._timings.add(*sent, segment.received_ns, *times, batch)
                batch = 0
        completion = self._dispatcher.answer(worker, answer, now)
        if completion is not None:
            if self._dispatcher.completed == len(completion.ids):
                self._timings.board.set_total("first_done_ns", now)
            self._complete(completion)
        if answer.shared_at is not None:
            # LoadGen has read what it wants of it: QuerySamplesComplete has returned.
            self._shared.answers += 1
            if self._dispatcher.seats[worker].alive:
                self._tell(worker, control(Kind.FREE, self._epoch, answer.shared_at))

    def _lose(self, worker: int, reason: str) -> None:
        """Book a loss; the samples move, or the test ends."""
        before = len(self._dispatcher.losses)
        try:
            self._dispatcher.lose(worker, reason, time.monotonic_ns())
        finally:
            for loss in self._dispatcher.losses[before:]:
                self._on_loss(loss)
            with self._changed:
                self._changed.notify_all()

    # -- asking all workers ----------------------------------------------------------------------------------

    def _ask_all(
        self, reply: Kind, message: list[Buffer], timeout_s: float | None = None
    ) -> dict[int, bytes]:
        """Send a message to every live worker and wait for all replies; who gives none is lost."""
        timeout_s = timeout_s or ASK_TIMEOUT_S
        with self._changed:
            self._seen[reply] = {}

        def send() -> None:
            for i, seat in enumerate(self._dispatcher.seats):
                if seat.alive:
                    self._tell(i, message)

        self._call(send)
        if missing := self._missing_after(timeout_s, reply):

            def lose() -> None:
                for i in missing:
                    self._lose(i, f"it did not answer with {reply.name} within {timeout_s:g} s")

            self._call(lose)
            if self._missing_after(ASK_TIMEOUT_S, reply):
                raise ExchangeFailed(f"the dispatcher does not run, and {reply.name} is missing")
        with self._changed:
            return dict(self._seen[reply])

    def _missing_after(self, timeout_s: float, kind: Kind) -> list[int]:
        """Wait for a message of every live worker; who has sent none when the time is over."""
        until = time.monotonic() + timeout_s
        seats = self._dispatcher.seats
        with self._changed:
            while True:
                seen = self._seen.get(kind, {})
                missing = [i for i, seat in enumerate(seats) if seat.alive and i not in seen]
                if self.failure:
                    raise ExchangeFailed(self.failure)
                left_s = until - time.monotonic()
                if not missing or left_s <= 0:
                    return missing
                self._changed.wait(min(left_s, 1.0))

    def _call(self, command: Callable[[], None]) -> None:
        """Run something on the dispatcher thread."""
        self._commands.append(command)
        self._asleep = False
        self._link.wake()

    # -- the end ---------------------------------------------------------------------------------------------

    def _say_bye(self) -> None:
        for i, seat in enumerate(self._dispatcher.seats):
            if seat.alive:
                # It may have gone just before the end; every sample is answered.
                with contextlib.suppress(LinkDown):
                    self._link.send(i, control(Kind.BYE, self._epoch))
        self._publish(time.monotonic_ns())
        self._running = False

    def _fail(self, reason: str) -> None:
        self.failure = reason
        with contextlib.suppress(Exception):  # whatever is wrong with the counters, the failure must be heard
            self._publish(time.monotonic_ns())
        with self._changed:
            self._changed.notify_all()
        self._on_failure(reason)

    def _publish(self, now_ns: int) -> None:
        """Write the counters that the driver shows."""
        d, board = self._dispatcher, self._timings.board
        self._on_check(d.completed, d.issued)
        totals = {"issued": d.issued, "completed": d.completed, "waiting": d.waiting, "late": d.late}
        totals |= {"losses": len(d.losses), "moved": sum(x.moved for x in d.losses), "now_ns": now_ns}
        totals["cpu_ns"] = time.process_time_ns()
        for name, value in totals.items():
            board.set_total(name, value)
        for i, seat in enumerate(d.seats):
            board.set_counter(i, "outstanding", seat.outstanding)
            board.set_counter(i, "alive", seat.alive)
