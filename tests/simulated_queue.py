"""A Server test of workers of known capacity, simulated query by query, with LoadGen's own bound as verdict.

Arrivals are one sequence of random gaps, scaled by the rate, as LoadGen's are for a schedule seed.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

from orchestrator.early_stopping import most_late
from orchestrator.peak import PROBES
from orchestrator.peak_probe import FEWEST_LATE, OVERLOADED
from orchestrator.peak_search import Confirmation, PeakSearch, Seen, capacity_of

FULL_QUERIES = 270_336  # round v6.1, Server
PROBE_QUERIES = FULL_QUERIES // 10
LIMITS = 200  # a probe lasts so many latency limits at least


@dataclass
class Played:
    """What came of one test."""

    queries: int
    late: int
    p99_s: float
    delivered: float
    hopeless: bool = False

    @property
    def valid(self) -> bool:
        """LoadGen's verdict."""
        return not self.hopeless and self.late <= (most_late(self.queries) or 0)


@dataclass
class Queue:
    """`workers` that serve batches of up to `max_batch` in `batch_s` and `sample_s` for each of a batch.

    `random`: service times are exponential (batches of one, one worker). `stalls`: the chance that a test
    sees the machine stop for four limits.
    """

    rng: np.random.Generator
    limit_s: float
    sample_s: float
    batch_s: float = 0.0
    max_batch: int = 1
    workers: int = 1
    random: bool = False
    stalls: float = 0.0
    _arrivals: np.ndarray = field(init=False)
    _draws: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        gaps = self.rng.exponential(size=FULL_QUERIES)
        gaps[0] = 0.0
        self._arrivals = np.cumsum(gaps)
        self._draws = self.rng.exponential(size=FULL_QUERIES) if self.random else np.ones(FULL_QUERIES)

    @property
    def capacity(self) -> float:
        """Queries a second in full batches."""
        return self.workers * self.max_batch / (self.batch_s + self.max_batch * self.sample_s)

    def full(self, qps: float) -> Played:
        """A test of full length."""
        return self._play(qps, FULL_QUERIES, False)

    def probe(self, qps: float) -> Played:
        """A tenth of it, which ends when it cannot pass any more, and may see a stall."""
        queries = max(PROBE_QUERIES, math.ceil(LIMITS * self.limit_s * qps))
        return self._play(qps, min(queries, FULL_QUERIES), True)

    def peak(self) -> float:
        """The highest rate that is VALID at full length, to 0.3 %."""
        low, high = 0.2 * self.capacity, 1.2 * self.capacity
        while high - low > 0.003 * low:
            middle = (low + high) / 2
            low, high = (middle, high) if self.full(middle).valid else (low, middle)
        return low

    def seen(self, qps: float, played: Played) -> Seen:
        """As orchestrator.peak_probe has it from a record."""
        share, room = played.late / played.queries, self.limit_s / played.p99_s
        if played.late >= FEWEST_LATE:
            allowed = (most_late(played.queries) or 1) / played.queries
            by_share = math.log(share) / math.log(allowed) if share < 1 else 0.0
            room = max(by_share, room) if played.valid else by_share
        return Seen(qps, played.valid, room, played.delivered if share > OVERLOADED else None)

    def _play(self, qps: float, queries: int, short: bool) -> Played:
        arrivals = self._arrivals[:queries] / qps
        done = self._served(arrivals)
        if short and self.rng.random() < self.stalls:
            at = self.rng.uniform(0, arrivals[-1])
            done = np.where((done > at) & (done < at + 4 * self.limit_s), at + 4 * self.limit_s, done)
        latency = done - arrivals
        late = latency > self.limit_s
        most = most_late(math.ceil(queries + 6 * math.sqrt(queries))) or 0
        if not short or int(late.sum()) <= most:
            p99 = float(np.quantile(latency, 0.99))
            return Played(queries, int(late.sum()), p99, queries / float(done.max()))
        # Looked at ten times in every limit: ended at the first look with too many late.
        order = np.argsort(done)
        too_many = done[order][np.searchsorted(np.cumsum(late[order]), most + 1)]
        end = min((math.floor(10 * too_many / self.limit_s) + 1) * self.limit_s / 10, float(done.max()))
        seen = done <= end
        p99 = float(np.quantile(latency[seen], 0.99))
        return Played(int(seen.sum()), int(late[seen].sum()), p99, seen.sum() / end, hopeless=True)

    def _served(self, arrivals: np.ndarray) -> np.ndarray:
        """When each query is answered."""
        if self.max_batch == self.workers == 1:
            service = (self.batch_s + self.sample_s) * self._draws[: len(arrivals)]
            ends = np.cumsum(service)
            return ends + np.maximum.accumulate(arrivals - (ends - service))
        at, done, first = arrivals.tolist(), np.empty(len(arrivals)), 0
        free = [0.0] * self.workers
        while first < len(at):
            begin = max(heapq.heappop(free), at[first])
            after = first + 1
            while after < len(at) and after - first < self.max_batch and at[after] <= begin:
                after += 1
            end = begin + self.batch_s + (after - first) * self.sample_s
            done[first:after] = end
            heapq.heappush(free, end)
            first = after
        return done


def found_by(queue: Queue, start: float, hint: float | None = None) -> tuple[PeakSearch, Confirmation]:
    """A search and its confirmation over a simulated system, as orchestrator.peak plays them."""
    search = PeakSearch(start)
    while len(search.seen) < PROBES and (value := search.next()) is not None:
        search.add(queue.seen(value, queue.probe(value)))
        search.hint = hint
    capacity = capacity_of(search.seen) or hint
    confirmation = Confirmation(search.low, capacity, up=search.closed, failed=search.high)
    while search.low and (value := confirmation.next()) is not None:
        confirmation.add(queue.seen(value, queue.full(value)))
    return search, confirmation
