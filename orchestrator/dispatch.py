"""Dispatcher: decides where each sample is computed, and that each is answered exactly once.

No sockets, no clock of its own, no LoadGen and no knowledge of scenario, model or mode: events come in with
the time as an argument, frames to send come out. A seeded simulation can therefore drive it through slow,
dying and duplicating workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.credit import UNBOUNDED, Credit, Flight, Seat
from orchestrator.pace import Pace
from orchestrator.query_samples import SAMPLE_BYTES, columns, packed
from workers.protocol import Answer, Buffer, Segment

HANG_FLOOR_S = 5.0
HANG_BATCHES = 20
# In value mode a worker holds no more than this, whatever its pace: two batches of volumes are gigabytes.
BYTES_PER_WORKER = 256_000_000
# A worker computes what has arrived while the rest still travels, so a frame is not all that it may hold.
BYTES_PER_FRAME = 16_000_000
# The slowest link that is still considered honest.
SLOWEST_WIRE_BYTES_S = 50e6

NO_IDS = np.empty(0, np.uint64)


class PeerFault(Exception):
    """A worker sent what no worker may send; the test cannot be trusted any more."""


class NoWorkers(Exception):
    """Samples wait and no worker is left, or a loss ends the test by `on_loss: fail`."""


@dataclass(slots=True)
class Lump:
    """QuerySamples of one issue callback, in order; their ids are LoadGen's and stay in this process."""

    samples: Buffer
    issued_ns: int

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self.samples) // SAMPLE_BYTES


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
class Completion:
    """Samples to report: `ids` uint64 (n,), `offsets` int64 (n,) into `blob`, `sizes` int64 (n,) or one."""

    ids: np.ndarray
    blob: np.ndarray
    offsets: np.ndarray | None  # None: equal sizes, in order
    sizes: np.ndarray | int


class Dispatcher:
    """Queue, credit, in-flight table and losses of one test.

    `sample_bytes` is what a sample weighs on the wire, on average; 0 where only indices travel.
    """

    def __init__(
        self,
        workers: Sequence[tuple[str, Pace]],
        *,
        on_loss: str = "reissue",
        one_sample_frames: bool = False,
        sample_bytes: float = 0.0,
    ) -> None:
        self.seats = [Seat(name, pace) for name, pace in workers]
        self.on_loss = on_loss
        self.losses: list[Loss] = []
        self.waiting = 0
        self.issued = 0
        self.completed = 0
        self.late = 0
        self._queue: deque[Lump] = deque()
        self._flights: dict[int, Flight] = {}
        self._next_frame = 1
        self._live = len(self.seats)
        self._stuck = (0, 0)  # the next frame's number, and since when nothing moves
        self._sample_bytes = sample_bytes
        self._under_way = 0
        most = UNBOUNDED
        self._frame_most = 1 if one_sample_frames else 0  # samples; 0: no bound
        if sample_bytes:
            most = max(int(BYTES_PER_WORKER // sample_bytes), 1)
            self._frame_most = self._frame_most or max(int(BYTES_PER_FRAME // sample_bytes), 1)
        self._credit = Credit(self.seats, together=not one_sample_frames, most=most)

    @property
    def outstanding(self) -> int:
        """Samples issued and not yet completed."""
        return self.issued - self.completed

    # -- events ----------------------------------------------------------------------------------------------

    def issue(self, lump: Lump) -> None:
        """Take a lump of samples from LoadGen."""
        self._queue.append(lump)
        n = lump.count
        self.waiting += n
        self.issued += n

    def sends(self, now_ns: int) -> list[Send]:
        """Deal what waits to the workers that have credit."""
        if not self.waiting:
            return []
        if not self._live:
            last = self.losses[-1]
            raise NoWorkers(
                f"no worker is left (the last: {last.worker}, {last.reason}) and {self.waiting} samples wait"
            )
        shares = self._credit.deal(self.waiting)
        if not self._frame_most:
            return [self._frame(worker, n, now_ns) for worker, n in shares.items()]
        most = self._frame_most
        self._under_way = self.outstanding - self.waiting + sum(shares.values())
        return [
            self._frame(worker, min(n - at, most), now_ns)
            for worker, n in shares.items()
            for at in range(0, n, most)
        ]

    def answer(self, worker: int, answer: Answer, now_ns: int) -> Completion | None:
        """Book an answer; returns what to report to LoadGen, None if nothing in it was still open."""
        seat = self.seats[worker]
        ids: list[np.ndarray] = []
        keep: list[np.ndarray | bool] = []
        dropped = 0
        for segment in answer.segments:
            found, mask = self._book(worker, segment)
            ids.append(found)
            keep.append(mask)
            dropped += segment.count - len(found)
        seat.pace.observe(answer.batch_size, (answer.computed_ns - answer.started_ns) * 1e-9)
        self._credit.answered(worker)
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
        self._live -= 1
        self._credit.read_paces()
        moved = 0
        for frame, flight in reversed(list(seat.flights.items())):
            del self._flights[frame]
            ids, indices = flight.ids, flight.indices
            if flight.open is not None:
                ids, indices = ids[flight.open], indices[flight.open]
            self._queue.appendleft(Lump(packed(ids, indices), flight.issued_ns))
            moved += len(ids)
        seat.flights.clear()
        seat.outstanding = 0
        self.waiting += moved
        loss = Loss(seat.name, now_ns, reason, moved)
        self.losses.append(loss)
        if self.on_loss == "fail":
            raise NoWorkers(f"worker {seat.name} was lost ({reason}) and on_loss is 'fail'")
        if not self._live:
            raise NoWorkers(f"worker {seat.name} was lost ({reason}) and no worker is left")
        return loss

    def hung(self, now_ns: int) -> list[tuple[int, float]]:
        """Workers whose oldest frame is older than any honest batch could be, with its age in seconds.

        Heartbeats never see a hang: the transport answers them while Python spins.
        """
        found = []
        under_way = self.outstanding - self.waiting
        for number, seat in enumerate(self.seats):
            if not seat.alive or not seat.flights:
                continue
            oldest = next(iter(seat.flights.values()))
            age_s = (now_ns - oldest.sent_ns) * 1e-9
            slowest_s = seat.pace.slowest_batch_s * max(seat.pace.factor, 1.0)
            limit_s = max(HANG_FLOOR_S, HANG_BATCHES * slowest_s * oldest.batches_held)
            # One cable may carry the bytes of all workers, in any order.
            limit_s += max(oldest.under_way, under_way) * self._sample_bytes / SLOWEST_WIRE_BYTES_S
            if age_s > limit_s:
                found.append((number, age_s))
        return found

    def stuck_s(self, now_ns: int) -> float:
        """How long calls have seen samples wait, with nothing under way and nothing sent."""
        if not self.waiting or self._flights:
            self._stuck = (0, 0)
        elif self._stuck[0] != self._next_frame:
            self._stuck = (self._next_frame, now_ns)
        else:
            return (now_ns - self._stuck[1]) * 1e-9
        return 0.0

    # -- inside ----------------------------------------------------------------------------------------------

    def _frame(self, worker: int, n: int, now_ns: int) -> Send:
        """Move `n` samples from the queue into a new frame."""
        ids, indices, issued_ns = self._take(n)
        seat = self.seats[worker]
        frame = self._next_frame
        self._next_frame += 1
        held = -(-seat.outstanding // seat.pace.max_batch)
        flight = Flight(worker, ids, indices, issued_ns, now_ns, n, held)
        if self._under_way:
            flight.under_way = self._under_way
        self._flights[frame] = seat.flights[frame] = flight
        return Send(worker, frame, indices)

    def _take(self, n: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The oldest `n` samples: ids uint64 (n,), indices uint32 (n,), mean time of issue in ns."""
        queue, base_ns, issued, left = self._queue, self._queue[0].issued_ns, 0, n
        self.waiting -= n
        pieces: list[Buffer] = []
        while left:
            lump = queue[0]
            size = lump.count
            if size <= left:
                queue.popleft()
                pieces.append(lump.samples)
            else:
                samples, size = memoryview(lump.samples), left
                pieces.append(samples[: size * SAMPLE_BYTES])
                lump.samples = samples[size * SAMPLE_BYTES :]
            issued += (lump.issued_ns - base_ns) * size
            left -= size
        ids, indices = columns(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return ids, indices, base_ns + issued // n

    def _book(self, worker: int, segment: Segment) -> tuple[np.ndarray, np.ndarray | bool]:
        """Ids that this segment completes, and which of its samples: True all, False none, else a mask."""
        flight = self._flights.get(segment.frame)
        name = self.seats[worker].name
        if flight is None:
            if segment.frame >= self._next_frame or segment.frame == 0:
                raise PeerFault(f"worker {name} answered frame {segment.frame}, which was never issued")
            return NO_IDS, False
        if flight.worker != worker:
            other = self.seats[flight.worker].name
            raise PeerFault(f"worker {name} answered frame {segment.frame}, which went to {other}")
        n = len(flight.ids)
        positions = segment.positions
        if positions is None:
            if segment.count != n:
                raise PeerFault(
                    f"worker {name} answered {segment.count} samples of frame {segment.frame}, which has {n}"
                )
            if flight.open is None:
                self._close(segment.frame, flight, n)
                return flight.ids, True
            return self._book_some(segment, flight, slice(0, n))
        # A range is sliced, which is several times cheaper than fancy indexing; workers send nothing else.
        last = positions[-1] if isinstance(positions, range) else int(positions.max())
        if last >= n:
            raise PeerFault(
                f"worker {name} answered position {last} of frame {segment.frame}, which has {n} samples"
            )
        if isinstance(positions, range):
            return self._book_some(segment, flight, slice(positions.start, positions.stop))
        if len(np.unique(positions)) != len(positions):
            raise PeerFault(
                f"worker {name} answered a position of frame {segment.frame} twice in one message"
            )
        return self._book_some(segment, flight, positions)

    def _book_some(
        self, segment: Segment, flight: Flight, which: slice | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | bool]:
        """Book an answer to part of a frame; a position answered before completes nothing."""
        if flight.open is None:
            flight.open = np.ones(len(flight.ids), bool)
        fresh = flight.open[which].copy()
        flight.open[which] = False
        count = int(np.count_nonzero(fresh))
        if not count:
            return NO_IDS, False
        ids = flight.ids[which]
        self._close(segment.frame, flight, count)
        return (ids, True) if count == segment.count else (ids[fresh], fresh)

    def _close(self, frame: int, flight: Flight, count: int) -> None:
        """Give back the credit of `count` samples of a frame."""
        seat = self.seats[flight.worker]
        seat.outstanding -= count
        flight.left -= count
        if not flight.left:
            del self._flights[frame]
            del seat.flights[frame]


def _completion(ids: np.ndarray, answer: Answer, keep: list[np.ndarray | bool] | None) -> Completion:
    """Join ids with where their responses lie; `keep` names, per segment, what was still open."""
    r = answer.responses
    total = sum(s.count for s in answer.segments)
    if keep is None:
        if r.sizes is None:
            return Completion(ids, r.blob, None, r.blob.size // total)
        return Completion(ids, r.blob, np.cumsum(r.sizes) - r.sizes, r.sizes)
    # What is dropped may be a lie of any length: only what is kept is ever laid out.
    rows, at = [], 0
    for segment, kept in zip(answer.segments, keep, strict=True):
        if kept is True:
            rows.append(np.arange(at, at + segment.count))
        elif kept is not False:
            rows.append(at + np.flatnonzero(kept))
        at += segment.count
    row = np.concatenate(rows)
    if r.sizes is None:
        size = r.blob.size // total
        return Completion(ids, r.blob, row * size, size)
    return Completion(ids, r.blob, (np.cumsum(r.sizes) - r.sizes)[row], r.sizes[row])
