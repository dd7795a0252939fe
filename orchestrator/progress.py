"""How far a running test is: from the board's counters and a clock that is handed in. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.expectation import expected_samples, shortest_s
from orchestrator.phrases import duration, ms, rate
from orchestrator.plan import TestSpec
from orchestrator.timings import Board, percentile_ns

# The rate shown is that of the last seconds: long enough to be calm, short enough to follow.
RATE_WINDOW_S = 5.0


@dataclass
class Progress:
    """One running test. `look` is called with the time in seconds, as often as one likes."""

    spec: TestSpec
    began_s: float
    running_since_s: float | None = None
    drawing_until_s: float = 0.0  # LoadGen draws all queries of a test first: 390 million took 291 s
    now_s: float = 0.0
    issued: int = 0
    completed: int = 0
    waiting: int = 0
    asked: int | None = None  # samples of an accuracy test, as the test process says
    _board: Board | None = None
    _points: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.now_s = self.began_s

    def start_clock(self, now_s: float, asked: int | None = None) -> bool:
        """The clock of the test starts; False if it runs already: every sample set of a test says so.

        `asked`: how many samples the test will have in all, where that is the data set's to say.
        """
        if self.running_since_s is not None:
            return False
        self.running_since_s, self.asked = now_s, asked
        return True

    def look(self, board: Board, now_s: float) -> None:
        """Read the counters."""
        self.now_s = now_s
        self.issued, self.completed = board.total("issued"), board.total("completed")
        self.waiting = board.total("waiting")
        if not self.issued:
            self.drawing_until_s = now_s
        self._board = board
        points = self._points
        points.append((now_s, self.completed))
        while len(points) > 2 and points[1][0] <= now_s - RATE_WINDOW_S:
            points.popleft()

    def latency_ms(self) -> tuple[float, float] | None:
        """p50 and p99 so far, as the driver sees them; None before an answer, and where they mean nothing."""
        latency = self._board.stage("latency") if self._board is not None and self.has_latency else None
        if latency is None or not latency.any():
            return None
        return percentile_ns(latency, 0.5) / 1e6, percentile_ns(latency, 0.99) / 1e6

    @property
    def has_latency(self) -> bool:
        """Whether a latency means anything in this test."""
        return self.spec.scenario != "Offline" and self.spec.mode == "performance"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock of the test started; 0 before."""
        return 0.0 if self.running_since_s is None else max(self.now_s - self.running_since_s, 0.0)

    @property
    def issuing_s(self) -> float:
        """Seconds since the first query, as far as that was seen; 0 before."""
        return min(self.elapsed_s, max(self.now_s - self.drawing_until_s, 0.0)) if self.issued else 0.0

    @property
    def doing(self) -> str | None:
        """What the test is about while no query is under way: before the first, and after the last."""
        if not self.issued:
            return "drawing the queries"
        over = self.samples is not None and self.completed >= max(self.samples, self.issued)
        return "working out the result" if over and self.rate is None else None

    @property
    def rate(self) -> float | None:
        """Samples a second in the last seconds; None while that cannot be told."""
        (t0, n0), (t1, n1) = (self._points[0], self._points[-1]) if self._points else ((0.0, 0), (0.0, 0))
        return (n1 - n0) / (t1 - t0) if t1 > t0 and n1 > n0 else None

    @property
    def samples(self) -> int | None:
        """How many samples the test will have; None while nothing tells."""
        return expected_samples(self.spec) or self.asked

    @property
    def seconds(self) -> float | None:
        """How long LoadGen will go on issuing at least: known but for Offline and accuracy tests."""
        if self.spec.test == "accuracy" or self.spec.scenario == "Offline":
            return None
        return shortest_s(self.spec)

    @property
    def left_s(self) -> float | None:
        """About how many seconds are left; None while nothing tells."""
        waits = [] if self.seconds is None else [self.seconds - self.issuing_s]
        pace = self.rate
        if self.samples is not None and self.spec.scenario == "Server" and self.spec.mode == "performance":
            # LoadGen's own pace, not ours: it decides when the last query comes.
            pace = float(self.spec.settings["server_target_qps"])
        fewest = self.samples if self.samples is not None else self._fewest()
        if fewest and pace:
            waits.append((fewest - self.completed) / pace)
        return max(max(waits), 0.0) if waits else None

    def _fewest(self) -> int | None:
        """Samples of the fewest queries of a stream."""
        settings = self.spec.settings
        if self.spec.test == "accuracy" or self.spec.scenario not in ("SingleStream", "MultiStream"):
            return None
        each = (
            int(settings.get("multi_stream_samples_per_query", 1))
            if self.spec.scenario != "SingleStream"
            else 1
        )
        return int(settings["min_query_count"]) * each

    def line(self) -> str:
        """Everything in one line, for a log."""
        done = f"{self.completed:,}" + (f" of {self.samples:,}" if self.samples else "")
        parts = [f"{done} samples"]
        if self.rate:
            parts.append(f"{rate(self.rate)}/s")
        parts.append(self.doing or f"{self.issued - self.completed:,} in flight")
        if (latency := self.latency_ms()) is not None:
            limit = "" if self.spec.limit_ns is None else f" (limit {self.spec.limit_ns / 1e6:,g})"
            parts.append(f"p50 {ms(latency[0])} p99 {ms(latency[1])} ms so far{limit}")
        parts.append(f"{duration(self.elapsed_s)} gone")
        if self.left_s is not None and self.doing is None:
            parts.append(f"about {duration(self.left_s)} left")
        return ", ".join(parts)
