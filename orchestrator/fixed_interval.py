"""MultiStream of rounds v1.0 and v1.1, which LoadGen 2.0 dropped: N samples at a fixed interval. Pure.

The rules of that LoadGen (v1.0.1, issue_query_controller.cc and loadgen.cc): ticks are at k/target_qps from
the start, k = 1, 2, ...; a query goes out when fewer than max_async_queries are outstanding, at the first
tick that is not in the past. A query is late when it makes the next one skip a tick; the test is VALID when
the number of ticks at place int(n * 0.99) of the sorted list is below 2, so exactly 1 % of late queries is
INVALID. Latencies count from the tick, so that issuing late counts against the system.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from orchestrator.old_draw import SPAN, Mt19937

OWN_FILE = "orchestrator/fixed_interval.py"  # where a record names LoadGen's module
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
# LoadGen makes queries for twice the duration (kind "random" only) before the clock starts.
GENERATED_OVER_DURATION = 2
LOGGED_PERCENTILES = (0.50, 0.90, 0.95, 0.97, 0.99, 0.999)
MOST_INTERVALS = 2  # at the target percentile; this many are one too many
DEFAULT_MT19937_SEED = 5489  # of the generator that chooses which samples a performance test logs


@dataclass(frozen=True)
class Settings:
    """What the generator obeys, under the names of LoadGen's TestSettings."""

    samples_per_query: int
    target_qps: float
    target_latency_percentile: float
    max_async_queries: int
    min_duration_ms: int
    max_duration_ms: int
    min_query_count: int
    max_query_count: int
    performance_sample_count_override: int
    qsl_rng_seed: int
    sample_index_rng_seed: int
    schedule_rng_seed: int
    accuracy_log_rng_seed: int = 0
    accuracy_log_probability: float = 0.0
    accuracy_log_sampling_target: int = 0
    print_timestamps: bool = False
    performance_issue_unique: bool = False
    performance_issue_same: bool = False
    performance_issue_same_index: int = 0
    accuracy: bool = False  # else performance

    @classmethod
    def of(cls, shown: Mapping[str, Any], *, accuracy: bool) -> Settings:
        """From the settings of a plan; words of later LoadGens are left out."""
        names = cls.__dataclass_fields__
        own = {name.removeprefix("multi_stream_"): value for name, value in shown.items()}
        return cls(**{name: own[name] for name in own if name in names}, accuracy=accuracy)

    @property
    def target_latency_ns(self) -> int:
        """The time that max_async_queries may take; LoadGen shows it and judges by ticks."""
        return int(self.max_async_queries / self.target_qps * NS_PER_S)

    @property
    def kind(self) -> Literal["random", "accuracy", "unique", "same"]:
        """How query_starts chooses."""
        if self.accuracy:
            return "accuracy"
        if self.performance_issue_unique:
            return "unique"
        return "same" if self.performance_issue_same else "random"

    def generated_queries(self, loaded: int) -> int:
        """How many queries there are at most; `loaded` counts the samples of the set, padding included."""
        if self.kind != "random":
            return loaded // self.samples_per_query
        wanted_ns = GENERATED_OVER_DURATION * self.min_duration_ms * NS_PER_MS
        by_time = -(-wanted_ns // self.period_ns) + 1 if wanted_ns else 0
        return max(self.min_query_count, by_time)

    @property
    def period_ns(self) -> int:
        """The interval, in whole ns, of which the generated schedule is made."""
        return max(int(1 / self.target_qps * NS_PER_S), 1)

    def logged_share(self) -> float:
        """The share of samples whose answers a performance test logs (TEST01)."""
        if not self.accuracy_log_sampling_target:
            return self.accuracy_log_probability
        by_time = int(self.target_qps * self.min_duration_ms / 1000)
        expected = max(by_time, self.min_query_count) * self.samples_per_query
        return self.accuracy_log_sampling_target / expected


@dataclass(frozen=True)
class Stop:
    """Why no more queries are asked; an error is what LoadGen logs as one."""

    why: str
    error: bool = False


NATURAL = Stop("Ending naturally: the fewest queries and the shortest duration are reached.")
RAN_OUT = Stop(
    "Ending early: there are no more queries, and the fewest queries or the shortest duration are not "
    "reached. The settings expect fewer.",
    error=True,
)


class Schedule:
    """The book of one sample set: ticks, what is outstanding, when it came back. Times are ns of one clock.

    Sample `position` of query `q` has the number q * N + position. The issuing thread calls begin, next_tick,
    issue and stop; any other thread may call complete.
    """

    def __init__(self, settings: Settings, generated: int) -> None:
        self.settings = settings
        self.generated = generated
        self.start_ns = self.last_done_ns = 0
        self.issued = 0
        self.completed_samples = 0
        self.tick_ns = np.zeros(generated, np.int64)
        self.issued_ns = np.zeros(generated, np.int64)
        self.done_ns = np.zeros(generated, np.int64)
        self.intervals = np.zeros(generated, np.int64)
        self._left = np.full(generated, settings.samples_per_query, np.int64)
        # A latency of every answer that came, and of how many samples.
        self._latency_ns = array("q")
        self._count = array("q")
        self._periods = 0

    def begin(self, now_ns: int) -> None:
        """The clock starts."""
        self.start_ns = self.last_done_ns = now_ns

    def blocker(self) -> int | None:
        """The query that must be answered before the next one may go out."""
        query = self.issued - self.settings.max_async_queries
        return query if query >= 0 and self._left[query] else None

    def next_tick(self, now_ns: int) -> int:
        """The first tick not in the past, for the next query; it counts how many it passed over."""
        before, qps = self._periods, self.settings.target_qps
        while True:
            self._periods += 1
            tick_ns = self.start_ns + int(self._periods / qps * NS_PER_S)
            if tick_ns >= now_ns:
                break
        self.intervals[self.issued] = self._periods - before
        self.tick_ns[self.issued] = tick_ns
        return tick_ns

    def issue(self, now_ns: int) -> int:
        """The next query goes out now; its number."""
        query = self.issued
        self.issued_ns[query] = now_ns
        self.issued = query + 1
        return query

    def stop(self, now_ns: int) -> Stop | None:
        """Whether the query issued at `now_ns` was the last, and why."""
        s, duration_ns = self.settings, now_ns - self.start_ns
        if not s.accuracy:
            if self.issued >= s.min_query_count and duration_ns >= s.min_duration_ms * NS_PER_MS:
                return NATURAL
            if s.max_query_count and self.issued >= s.max_query_count:
                return Stop(f"Ending early: max_query_count reached, after {self.issued} queries.", True)
            if s.max_duration_ms and duration_ns > s.max_duration_ms * NS_PER_MS:
                return Stop(f"Ending early: max_duration reached, after {duration_ns} ns.", True)
        if self.issued < self.generated:
            return None
        return NATURAL if s.accuracy else RAN_OUT

    def complete(self, samples: np.ndarray, now_ns: int) -> list[int]:
        """Book answers to sample numbers; the queries that they complete. ValueError for a wrong number."""
        n = self.settings.samples_per_query
        queries, counts = np.unique(np.asarray(samples, np.int64) // n, return_counts=True)
        finished = []
        for query, count in zip(queries.tolist(), counts.tolist(), strict=True):
            if query >= self.issued or count > self._left[query]:
                raise ValueError(f"query {query} was answered more often than asked")
            self._left[query] -= count
            self._latency_ns.append(now_ns - int(self.tick_ns[query]))
            self._count.append(count)
            if not self._left[query]:
                self.done_ns[query] = now_ns
                finished.append(query)
        self.completed_samples += len(samples)
        self.last_done_ns = max(self.last_done_ns, now_ns)
        return finished

    @property
    def outstanding(self) -> int:
        """Samples asked and not answered."""
        return self.issued * self.settings.samples_per_query - self.completed_samples

    def result(self) -> Result:
        """The verdict; all that was asked must be answered."""
        latency_ns = np.frombuffer(self._latency_ns, np.int64)
        return judge(
            self.settings,
            start_ns=self.start_ns,
            tick_ns=self.tick_ns[: self.issued],
            issued_ns=self.issued_ns[: self.issued],
            done_ns=self.done_ns[: self.issued],
            intervals=self.intervals[: self.issued],
            sample_latency_ns=latency_ns,
            sample_counts=np.frombuffer(self._count, np.int64),
        )


@dataclass(frozen=True)
class Result:
    """What LoadGen reports of a performance test; percentiles in the order of LOGGED_PERCENTILES."""

    queries: int
    samples: int
    min_duration_met: bool
    min_queries_met: bool
    perf_constraints_met: bool
    late_queries: int  # those that made another skip a tick
    intervals: list[int]
    query_latency_ns: list[int]
    sample_latency_ns: list[int]
    min_latency_ns: int
    max_latency_ns: int
    mean_latency_ns: int

    @property
    def valid(self) -> bool:
        """All constraints together."""
        return self.min_duration_met and self.min_queries_met and self.perf_constraints_met


def judge(
    settings: Settings,
    *,
    start_ns: int,
    tick_ns: np.ndarray,
    issued_ns: np.ndarray,
    done_ns: np.ndarray,
    intervals: np.ndarray,
    sample_latency_ns: np.ndarray,
    sample_counts: np.ndarray,
) -> Result:
    """The result of queries; `sample_counts` says how many samples have each of `sample_latency_ns`."""
    n = len(tick_ns)
    latencies = done_ns - tick_ns
    passed = skipped_intervals(settings, intervals, latencies)
    in_order = np.argsort(sample_latency_ns, kind="stable")
    upto = np.cumsum(sample_counts[in_order])
    samples = int(upto[-1])

    def sample_at(percentile: float) -> int:
        place = int(np.searchsorted(upto, int(samples * percentile), side="right"))
        return int(sample_latency_ns[in_order[place]])

    by_ticks, by_latency = np.sort(passed), np.sort(latencies)
    at_target = int(by_ticks[int(n * settings.target_latency_percentile)])
    enough = samples >= settings.min_query_count * settings.samples_per_query
    return Result(
        queries=n,
        samples=samples,
        min_duration_met=(int(issued_ns[-1]) - start_ns) / 1e9 >= settings.min_duration_ms / 1e3,
        min_queries_met=n >= settings.min_query_count and enough,
        perf_constraints_met=at_target < MOST_INTERVALS,
        late_queries=int(np.count_nonzero(passed >= MOST_INTERVALS)),
        intervals=[int(by_ticks[int(n * p)]) for p in LOGGED_PERCENTILES],
        query_latency_ns=[int(by_latency[int(n * p)]) for p in LOGGED_PERCENTILES],
        sample_latency_ns=[sample_at(p) for p in LOGGED_PERCENTILES],
        min_latency_ns=int(sample_latency_ns[in_order[0]]),
        max_latency_ns=int(sample_latency_ns[in_order[-1]]),
        mean_latency_ns=_total_ns(sample_latency_ns, sample_counts) // samples,
    )


def _total_ns(latency_ns: np.ndarray, counts: np.ndarray) -> int:
    """The sum over all samples; in two halves, because hundreds of millions of seconds do not fit in one."""
    high, low = latency_ns >> 32, latency_ns & (SPAN - 1)
    return (int((high * counts).sum()) << 32) + int((low * counts).sum())


def skipped_intervals(settings: Settings, intervals: np.ndarray, latencies_ns: np.ndarray) -> np.ndarray:
    """How many ticks each query took: those that the query after it (by max_async_queries) had to wait.

    Nothing comes after the last max_async_queries, so their latencies say how many they would have taken.
    """
    n, ahead = len(intervals), min(settings.max_async_queries, len(intervals))
    found = np.empty(n, np.int64)
    found[: n - ahead] = intervals[ahead:]
    for query in range(n - ahead, n):
        found[query] = math.ceil(settings.target_qps * (int(latencies_ns[query]) / 1e9))
    return found


class LoggedSamples:
    """Which answers a performance test logs: each with the probability of the settings (TEST01)."""

    def __init__(self, settings: Settings) -> None:
        self._share = settings.logged_share()
        self._n = settings.samples_per_query
        self._offset = float(_uniform(Mt19937(settings.accuracy_log_rng_seed), 1)[0])
        self._words = Mt19937(DEFAULT_MT19937_SEED)

    def of_next_query(self) -> np.ndarray:
        """Which samples of the next query, in the order in which queries are made: bool (N,)."""
        values = _uniform(self._words, self._n) + self._offset
        return np.where(values < 1.0, values, values - 1.0) <= self._share


def _uniform(words: Mt19937, count: int) -> np.ndarray:
    """std::uniform_real_distribution<double>(0, 1): two words a number, as libstdc++ takes them."""
    pairs = words.words(2 * count)
    found = (pairs[0::2] + pairs[1::2] * float(SPAN)) / float(SPAN) ** 2
    return np.minimum(found, np.nextafter(1.0, 0.0))
