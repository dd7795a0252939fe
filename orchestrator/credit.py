"""Credit: which worker gets how many of the samples that wait. Pure: no clock, no sockets, no samples.

Credit is time. A sample goes to the worker that is expected to finish it soonest: what it holds, at its pace,
and then a batch of one. A worker holds two batches, or one for each slot of its engine. One that is more
than twice as slow as the fastest holds only what it can finish while the fastest does two and all together do
what still waits, in whole batches of its own if it can be half of one.

Measured in simulation (tests/test_dispatch_simulation.py: 8 workers, batches of 8 in 8 ms, most of it
whatever the batch's size, 5 % spread): Offline reaches 0.99 and more of what the engines can do, and Server,
with Poisson arrivals at 0.95 of that, a p99 of 19 ms. Counted in the fastest worker's time instead of whole
batches, noise in the paces breaks batches up: 0.956 and 24 ms. A worker ten times slower beside seven others
costs 1.5 % of a three-second Offline test, only in its tail, which is at most two batches of the fastest and
one of the slowest; in Server it does not touch the others' p99.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from orchestrator.pace import Pace

# What waits is split over workers only in pieces worth at least this: below it, one more frame costs more
# than it saves.
PIECE_S = 100e-6
# At an engine of two slots one computes, one is fed, and a third waits, for no wire takes no time
# (`_full_credit`). With more slots it is a batch for each, or none would wait: a slot would stand still from
# its answer until the next frame.
WINDOW_BATCHES = 2
NO_CREDIT = float("inf")
UNBOUNDED = 2**62
PACES_GOOD_FOR = 16  # answers, at least


@dataclass(slots=True)
class Flight:
    """A frame under way: `ids` uint64 (n,), what is `left` to answer, `open` (n,) once partly answered.

    `under_way` counts the samples that all workers held when it was sent, where their bytes travel too.
    """

    worker: int
    ids: np.ndarray
    indices: np.ndarray
    issued_ns: int
    sent_ns: int
    left: int
    batches_held: int
    under_way: int = 0
    open: np.ndarray | None = None


@dataclass(slots=True)
class Seat:
    """One worker's place at the table."""

    name: str
    pace: Pace
    alive: bool = True
    outstanding: int = 0
    wire_s: float = 0.0
    flights: dict[int, Flight] = field(default_factory=dict)
    # Read from the pace once in a while: samples it may hold, seconds a sample, seconds a batch of one,
    # smallest piece.
    credit: int = 0
    sample_s: float = 0.0
    first_s: float = 0.0
    piece: int = 1

    @property
    def finish_s(self) -> float:
        """Seconds until one more sample is expected to be done here."""
        if self.outstanding >= self.credit:
            return NO_CREDIT
        return self.outstanding * self.sample_s + self.first_s


class Credit:
    """Deals to the workers of one test; `together` keeps small samples in one frame.

    `most` is what a worker may hold whatever its pace, in samples.
    """

    def __init__(self, seats: Sequence[Seat], *, together: bool = True, most: int = UNBOUNDED) -> None:
        self._seats = seats
        self._together = together
        self._most = most
        # One number a worker, so that finding the soonest is two C calls, with 64 workers too.
        self._finish: list[float] = [NO_CREDIT] * len(seats)
        self._slow: list[int] = []
        self._samples_per_s = 0.0
        self._fastest_batch_s = 0.0
        self._paces_good_for = 0  # answers

    def answered(self, worker: int) -> None:
        """A worker's `outstanding` or pace has changed."""
        self._paces_good_for -= 1
        self._finish[worker] = self._seats[worker].finish_s

    def deal(self, waiting: int) -> dict[int, int]:
        """How many of `waiting` samples each worker gets now; their credit is taken here."""
        if self._paces_good_for <= 0:
            self.read_paces()
        finish = self._finish
        for worker in self._slow:
            seat = self._seats[worker]
            seat.credit = self._slow_credit(seat, waiting)
            if seat.credit > self._most:
                seat.credit = self._most
            finish[worker] = seat.finish_s
        shares: dict[int, int] = {}
        while waiting:
            soonest = min(finish)
            if soonest == NO_CREDIT:
                break
            worker = finish.index(soonest)
            seat = self._seats[worker]
            n = min(seat.piece, seat.credit - seat.outstanding, waiting)
            seat.outstanding += n
            finish[worker] = seat.finish_s
            shares[worker] = shares.get(worker, 0) + n
            waiting -= n
        return shares

    def read_paces(self) -> None:
        """Set every worker's credit by what the paces say now.

        Once for as many answers as there are workers, or a few more: a pace moves by a few percent a batch,
        and the cost stays below that of one worker an answer.
        """
        self._paces_good_for = max(len(self._seats), PACES_GOOD_FOR)
        self._fastest_batch_s = min((s.pace.batch_s for s in self._seats if s.alive), default=0.0)
        self._samples_per_s = 0.0
        self._slow = []
        for i, seat in enumerate(self._seats):
            pace = seat.pace
            seat.sample_s, seat.first_s = pace.sample_s, pace.first_s
            seat.piece = 1
            if self._together:
                seat.piece = min(max(int(PIECE_S / seat.sample_s), 1), pace.max_batch)
            if not seat.alive:
                seat.credit = 0
            elif pace.batch_s >= WINDOW_BATCHES * self._fastest_batch_s:
                self._slow.append(i)
            else:
                seat.credit = _full_credit(seat)
                if seat.credit > self._most:
                    seat.credit = self._most
            self._samples_per_s += seat.alive / seat.sample_s
            self._finish[i] = seat.finish_s

    def _slow_credit(self, seat: Seat, waiting: int) -> int:
        """What a slow worker may hold, so that no sample waits for it longer than for a fast one."""
        horizon_s = WINDOW_BATCHES * self._fastest_batch_s + seat.wire_s + waiting / self._samples_per_s
        batches = horizon_s / seat.pace.batch_s
        if batches >= 0.5:
            return min(ceil(batches) * seat.pace.max_batch, _full_credit(seat))
        if seat.first_s > horizon_s:
            return 0  # the fastest always has credit, so what waits never waits for nobody
        return 1 + int((horizon_s - seat.first_s) / seat.sample_s)


def _full_credit(seat: Seat) -> int:
    """Samples in a batch for each slot, two at least, and in what the wire holds besides."""
    pace = seat.pace
    return ceil(max(WINDOW_BATCHES, pace.slots) + seat.wire_s / pace.batch_s) * pace.max_batch
