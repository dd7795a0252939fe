"""Dispatcher: decides where each sample is computed, and that each is answered exactly once.

No sockets, no clock of its own, no LoadGen and no knowledge of scenario, model or mode: events come in with the time as an
argument, frames to send come out. A seeded simulation can therefore drive it through slow, dying and duplicating workers.

Credit is time. A sample goes to the worker that is expected to finish it soonest, (outstanding + 1) x seconds per sample; a
worker holds at most two batches of the fastest worker's time. Measured in simulation (8 workers, Poisson): a window of two
batches holds Server at 0.96 to 0.995 of Offline's capacity, one batch 0.90, pull-when-idle 0.83. Counted in samples instead
of time, one worker ten times slower costs half of the cluster. The same rule bounds the idle tail of Offline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from orchestrator.pace import Pace
from workers.protocol import Answer, Segment

# What waits is split over workers only in pieces worth at least this: below it, one more frame costs more than it saves.
PIECE_S = 100e-6
WINDOW_BATCHES = 2
HANG_FLOOR_S = 5.0
HANG_BATCHES = 20

Ids = list[int] | np.ndarray


class PeerFault(Exception):
    """A worker sent what no worker may send; the test cannot be trusted any more."""


class NoWorkers(Exception):
    """Samples wait and no worker is left, or a loss ends the test by `on_loss: fail`."""


@dataclass(slots=True)
class Lump:
    """Samples of one issue callback, in order; `ids` are LoadGen's and stay in this process."""

    ids: Ids
    indices: Ids
    issued_ns: int


@dataclass(slots=True)
class Send:
    """A frame to send: `indices` uint32 (n,)."""

    worker: int
    frame: int
    indices: np.ndarray


@dataclass(slots=True)
class Loss:
    """A worker lost: `moved` samples went back to the queue."""

    worker: str
    at_ns: int
    reason: str
    moved: int


@dataclass(slots=True)
class Flight:
    """A frame under way: `ids` uint64 (n,), what is `left` to answer, and `open` (n,) once partly answered."""

    worker: int
    ids: np.ndarray
    indices: np.ndarray
    issued_ns: int
    sent_ns: int
    left: int
    batches_held: int
    open: np.ndarray | None = None


@dataclass(slots=True)
class Completion:
    """Samples to report to LoadGen: `ids` uint64 (n,), `offsets` and `sizes` int64 (n,) into `blob`."""

    ids: np.ndarray
    blob: np.ndarray
    offsets: np.ndarray | None  # None: equal sizes, in order
    sizes: np.ndarray | int


@dataclass(slots=True)
class Seat:
    """One worker's place at the table."""

    name: str
    pace: Pace
    alive: bool = True
    outstanding: int = 0
    wire_s: float = 0.0
    flights: dict[int, Flight] = field(default_factory=dict)


class Dispatcher:
    """Queue, credit, in-flight table and losses of one test."""

    def __init__(
        self,
        workers: Sequence[tuple[str, Pace]],
        *,
        on_loss: str = "reissue",
        one_sample_frames: bool = False,
    ) -> None:
        self.seats = [Seat(name, pace) for name, pace in workers]
        self.on_loss = on_loss
        self.one_sample_frames = one_sample_frames
        self.losses: list[Loss] = []
        self.waiting = 0
        self.issued = 0
        self.completed = 0
        self.late = 0
        # (worker, ns between issue and send, samples), for the timings; whoever reads them empties the list.
        self.queue_rows: list[tuple[int, int, int]] = []
        self._queue: deque[Lump] = deque()
        self._flights: dict[int, Flight] = {}
        self._next_frame = 1

    @property
    def outstanding(self) -> int:
        """Samples issued and not yet completed."""
        return self.issued - self.completed

    # -- events ----------------------------------------------------------------------------------------------------

    def issue(self, lump: Lump) -> None:
        """Take a lump of samples from LoadGen."""
        n = len(lump.ids)
        if n > 4096 and not isinstance(lump.ids, np.ndarray):
            # Large lumps are sliced many times: a view costs nothing, a slice of a list copies.
            lump = Lump(np.array(lump.ids, np.uint64), np.array(lump.indices, np.uint32), lump.issued_ns)
        self._queue.append(lump)
        self.waiting += n
        self.issued += n

    def sends(self, now_ns: int) -> list[Send]:
        """Deal what waits to the workers that have credit."""
        if not self.waiting:
            return []
        if not any(seat.alive for seat in self.seats):
            raise NoWorkers(f"no worker is left and {self.waiting} samples wait")
        shares = self._deal()
        if not self.one_sample_frames:
            return [self._frame(worker, n, now_ns) for worker, n in shares.items()]
        return [self._frame(worker, 1, now_ns) for worker, n in shares.items() for _ in range(n)]

    def answer(self, worker: int, answer: Answer, now_ns: int) -> Completion | None:
        """Book an answer; returns what to report to LoadGen, None if nothing in it was still open."""
        seat = self.seats[worker]
        ids: list[np.ndarray] = []
        keep: list[np.ndarray | None] = []
        dropped = 0
        for segment in answer.segments:
            found, mask = self._book(worker, segment)
            ids.append(found)
            keep.append(mask)
            dropped += segment.count - len(found)
        seat.pace.observe(answer.batch_size, (answer.computed_ns - answer.started_ns) * 1e-9)
        self.late += dropped
        count = sum(len(a) for a in ids)
        self.completed += count
        if not count:
            return None
        all_ids = ids[0] if len(ids) == 1 else np.concatenate(ids)
        return _completion(all_ids, answer, keep if dropped else None)

    def lose(self, worker: int, reason: str, now_ns: int) -> Loss | None:
        """A worker is gone: its samples go back to the front of the queue, under new frame numbers."""
        seat = self.seats[worker]
        if not seat.alive:
            return None
        seat.alive = False
        moved = 0
        for frame, flight in reversed(list(seat.flights.items())):
            del self._flights[frame]
            ids, indices = flight.ids, flight.indices
            if flight.open is not None:
                ids, indices = ids[flight.open], indices[flight.open]
            self._queue.appendleft(Lump(ids, indices, flight.issued_ns))
            moved += len(ids)
        seat.flights.clear()
        seat.outstanding = 0
        self.waiting += moved
        loss = Loss(seat.name, now_ns, reason, moved)
        self.losses.append(loss)
        if self.on_loss == "fail":
            raise NoWorkers(f"worker {seat.name} was lost ({reason}) and on_loss is 'fail'")
        if not any(s.alive for s in self.seats):
            raise NoWorkers(f"worker {seat.name} was lost ({reason}) and no worker is left")
        return loss

    def hung(self, now_ns: int) -> list[tuple[int, float]]:
        """Workers whose oldest frame is older than any honest batch could be, with its age in seconds.

        Heartbeats never see a hang: the transport answers them while Python spins.
        """
        found = []
        for number, seat in enumerate(self.seats):
            if not seat.alive or not seat.flights:
                continue
            oldest = next(iter(seat.flights.values()))
            age_s = (now_ns - oldest.sent_ns) * 1e-9
            slowest_s = seat.pace.slowest_batch_s * max(seat.pace.factor, 1.0)
            if age_s > max(HANG_FLOOR_S, HANG_BATCHES * slowest_s * oldest.batches_held):
                found.append((number, age_s))
        return found

    # -- inside ----------------------------------------------------------------------------------------------------

    def _deal(self) -> dict[int, int]:
        """How many of the waiting samples each worker gets now."""
        live = [(i, s) for i, s in enumerate(self.seats) if s.alive]
        window_s = WINDOW_BATCHES * min(s.pace.batch_s for _, s in live)
        # Per worker: seconds per sample, the smallest piece worth a frame, samples it may still take.
        table: list[list[float]] = []
        for i, s in live:
            sample_s = s.pace.sample_s
            room = max(int((window_s + s.wire_s) / sample_s), 1) - s.outstanding
            if room > 0:
                piece = min(max(int(PIECE_S / sample_s), 1), s.pace.max_batch)
                table.append([(s.outstanding + 1) * sample_s, i, sample_s, piece, room])
        if self.one_sample_frames:
            for row in table:
                row[3] = 1
        shares: dict[int, int] = {}
        waiting = self.waiting
        while waiting and table:
            row = min(table)
            n = int(min(row[3], row[4], waiting))
            worker = int(row[1])
            shares[worker] = shares.get(worker, 0) + n
            waiting -= n
            row[0] += n * row[2]
            row[4] -= n
            if row[4] <= 0:
                table.remove(row)
        return shares

    def _frame(self, worker: int, n: int, now_ns: int) -> Send:
        """Move `n` samples from the queue into a new frame."""
        oldest_ns = self._queue[0].issued_ns
        ids, indices = self._take(n, worker, now_ns)
        seat = self.seats[worker]
        frame = self._next_frame
        self._next_frame += 1
        seat.outstanding += n
        held = -(-seat.outstanding // seat.pace.max_batch)
        flight = Flight(worker, ids, indices, oldest_ns, now_ns, n, held)
        self._flights[frame] = seat.flights[frame] = flight
        return Send(worker, frame, indices)

    def _take(self, n: int, worker: int, now_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Take the oldest `n` samples for a worker: ids uint64 (n,), indices uint32 (n,)."""
        self.waiting -= n
        ids: list[Ids] = []
        indices: list[Ids] = []
        while n:
            lump = self._queue[0]
            size = len(lump.ids)
            if size <= n:
                self._queue.popleft()
                ids.append(lump.ids)
                indices.append(lump.indices)
            else:
                self._queue[0] = Lump(lump.ids[n:], lump.indices[n:], lump.issued_ns)
                ids.append(lump.ids[:n])
                indices.append(lump.indices[:n])
                size = n
            self.queue_rows.append((worker, now_ns - lump.issued_ns, size))
            n -= size
        return _joined(ids, np.uint64), _joined(indices, np.uint32)

    def _book(self, worker: int, segment: Segment) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids that this segment completes, and which of its samples those are (None: all)."""
        flight = self._flights.get(segment.frame)
        if flight is None:
            if segment.frame >= self._next_frame or segment.frame == 0:
                name = self.seats[worker].name
                raise PeerFault(f"worker {name} answered frame {segment.frame}, which was never issued")
            return np.empty(0, np.uint64), np.zeros(segment.count, bool)
        if flight.worker != worker:
            names = self.seats[worker].name, self.seats[flight.worker].name
            raise PeerFault(f"worker {names[0]} answered frame {segment.frame}, which went to {names[1]}")
        n = len(flight.ids)
        positions = segment.positions
        if positions is None and (segment.count != n or flight.open is not None):
            if segment.count != n:
                raise PeerFault(
                    f"worker {self.seats[worker].name} answered {segment.count} samples of frame {segment.frame}, "
                    f"which has {n}"
                )
            positions = np.arange(n, dtype=np.uint32)
        if positions is None:
            self._close(segment.frame, flight, n)
            return flight.ids, None
        return self._book_some(segment, flight, positions)

    def _book_some(
        self, segment: Segment, flight: Flight, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Book an answer to part of a frame; a position answered before completes nothing."""
        n = len(flight.ids)
        name = self.seats[flight.worker].name
        if int(positions.max()) >= n:
            raise PeerFault(
                f"worker {name} answered position {int(positions.max())} of frame {segment.frame}, which has {n} samples"
            )
        if flight.open is None:
            flight.open = np.ones(n, bool)
        fresh = flight.open[positions]
        flight.open[positions] = False
        if len(np.unique(positions)) != len(positions):
            raise PeerFault(f"worker {name} answered a position of frame {segment.frame} twice in one message")
        ids = flight.ids[positions]
        count = int(fresh.sum())
        self._close(segment.frame, flight, count)
        return (ids, None) if count == len(positions) else (ids[fresh], fresh)

    def _close(self, frame: int, flight: Flight, count: int) -> None:
        """Give back the credit of `count` samples of a frame."""
        seat = self.seats[flight.worker]
        seat.outstanding -= count
        flight.left -= count
        if not flight.left:
            del self._flights[frame]
            del seat.flights[frame]


def _joined(pieces: list[Ids], dtype: type) -> np.ndarray:
    """One array of all pieces; one conversion for many short lists is several times cheaper than one each."""
    if len(pieces) == 1:
        return np.asarray(pieces[0], dtype)
    if any(isinstance(p, np.ndarray) for p in pieces):
        return np.concatenate([np.asarray(p, dtype) for p in pieces])
    return np.array(list(chain.from_iterable(pieces)), dtype)


def _completion(ids: np.ndarray, answer: Answer, keep: list[np.ndarray | None] | None) -> Completion:
    """Join ids with where their responses lie; `keep` names, per segment, the samples that were still open."""
    r = answer.responses
    total = sum(s.count for s in answer.segments)
    if r.sizes is None:
        size = r.blob.size // total
        if keep is None:
            return Completion(ids, r.blob, None, size)
        sizes = np.full(total, size, np.int64)
    else:
        sizes = r.sizes
    offsets = np.cumsum(sizes) - sizes
    if keep is not None:
        kept = [
            np.ones(s.count, bool) if mask is None else mask
            for s, mask in zip(answer.segments, keep, strict=True)
        ]
        mask = np.concatenate(kept)
        offsets, sizes = offsets[mask], sizes[mask]
    return Completion(ids, r.blob, offsets, sizes)
