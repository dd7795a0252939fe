"""Was the driver late? LoadGen's Server schedule, recomputed after the test, against when it really issued.

LoadGen's binding hides the scheduled times, so a driver's own clock misses how long a coalesced query waited.
For display only, after the test: predicting arrivals while dispatching is forbidden by the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# More are not looked at: the first ones tell, and a schedule of 20 million took 930 MB and 6 s.
MOST_QUERIES = 5_000_000
# Queries whose gaps are drawn at once.
CHUNK = 1 << 18


class IssueLog:
    """When each issue callback came and how many samples it brought; bounded memory, allocated once."""

    def __init__(self, capacity: int = 2_000_000) -> None:
        # Untouched pages cost nothing, so a short test does not pay for a long one.
        self._times = np.empty(capacity, np.int64)
        self._counts = np.empty(capacity, np.int32)
        self._n = 0
        self._starts = [0]

    def add(self, issued_ns: int, count: int) -> None:
        """Note one callback."""
        n = self._n
        if n < len(self._times):
            self._times[n] = issued_ns
            self._counts[n] = count
            self._n = n + 1

    def start_set(self) -> None:
        """A sample set was loaded: LoadGen begins its schedule anew with each (accuracy has several)."""
        if self._starts[-1] != self._n:
            self._starts.append(self._n)

    @property
    def lumps(self) -> tuple[np.ndarray, np.ndarray]:
        """Times in ns and sample counts of the callbacks noted."""
        return self._times[: self._n], self._counts[: self._n]

    @property
    def sets(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same, one pair per sample set that brought any."""
        ends = [*self._starts[1:], self._n]
        return [
            (self._times[a:b], self._counts[a:b]) for a, b in zip(self._starts, ends, strict=True) if b > a
        ]


@dataclass(frozen=True)
class Lateness:
    """How late the first `queries` were issued against LoadGen's schedule, in ms."""

    queries: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def server_schedule_ns(seed: int, target_qps: float, count: int) -> np.ndarray:
    """Scheduled arrival times in ns, (count,): exponential gaps from mt19937(seed), the first query at 0.

    Matched against 1,036 issues of LoadGen 6.0.17.
    """
    if count < 1:
        return np.zeros(0, np.int64)
    schedule = np.zeros(count, np.int64)
    random = np.random.RandomState(seed & 0xFFFFFFFF)
    for first in range(1, count, CHUNK):
        part = schedule[first : first + CHUNK]
        words = random.randint(0, 2**32, 2 * len(part), np.uint32)
        # Rounding can make 1.0 of the largest pairs; like LoadGen's generator, take the number below it.
        u = np.minimum((words[0::2] + words[1::2] * 2.0**32) / 2.0**64, np.nextafter(1.0, 0.0))
        part[:] = np.floor(-np.log1p(-u) / target_qps * 1e9)
    return np.cumsum(schedule, out=schedule)


def server_lateness(log: IssueLog, seed: int, target_qps: float, most: int = MOST_QUERIES) -> Lateness | None:
    """Lateness of the first `most` queries of the logged callbacks; None if there were none.

    The start of LoadGen's clock is not known; it is taken from the promptest issue of each set, so that one
    is 0 late.
    """
    pieces: list[np.ndarray] = []
    left = most
    for times, counts in log.sets:
        # A callback brings at least one query, so the first `left` callbacks are enough.
        ends = np.minimum(np.cumsum(counts[:left], dtype=np.int64), left)
        late = np.repeat(times[:left], np.diff(ends, prepend=0))
        if not late.size:
            break
        late -= server_schedule_ns(seed, target_qps, len(late))
        late -= late.min()
        pieces.append(late)
        left -= len(late)
    if not pieces:
        return None
    late = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    p50, p99 = np.percentile(late, [50, 99]) / 1e6
    return Lateness(len(late), round(float(p50), 4), round(float(p99), 4), round(float(late.max()) / 1e6, 4))
