"""Was the driver late? LoadGen's Server schedule, recomputed after the test, against when it really issued.

LoadGen's binding hides the scheduled times, so a driver's own clock misses how long a coalesced query waited. For display
only, after the test: predicting arrivals while dispatching is forbidden by the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class IssueLog:
    """When each issue callback came and how many samples it brought; bounded memory, allocated once."""

    def __init__(self, capacity: int = 2_000_000) -> None:
        # Untouched pages cost nothing, so a short test does not pay for a long one.
        self._times = np.empty(capacity, np.int64)
        self._counts = np.empty(capacity, np.int32)
        self._n = 0

    def add(self, issued_ns: int, count: int) -> None:
        """Note one callback."""
        n = self._n
        if n < len(self._times):
            self._times[n] = issued_ns
            self._counts[n] = count
            self._n = n + 1

    @property
    def lumps(self) -> tuple[np.ndarray, np.ndarray]:
        """Times in ns and sample counts of the callbacks noted."""
        return self._times[: self._n], self._counts[: self._n]


@dataclass(frozen=True)
class Lateness:
    """How late queries were issued against LoadGen's schedule, in ms."""

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
    words = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, 2 * (count - 1), np.uint32)
    u = (words[0::2] + words[1::2] * 2.0**32) / 2.0**64
    gaps = np.floor(-np.log1p(-u) / target_qps * 1e9).astype(np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(gaps)])


def server_lateness(log: IssueLog, seed: int, target_qps: float) -> Lateness | None:
    """Lateness of the logged callbacks; None if there were none.

    The start of LoadGen's clock is not known; it is taken from the promptest issue, so that one is 0 late.
    """
    times, counts = log.lumps
    if not len(times):
        return None
    total = int(counts.sum())
    schedule = server_schedule_ns(seed, target_qps, total)
    late = np.repeat(times, counts) - schedule
    late -= late.min()
    p50, p99 = np.percentile(late, [50, 99]) / 1e6
    return Lateness(total, round(float(p50), 4), round(float(p99), 4), round(float(late.max()) / 1e6, 4))
