"""Where a running Server test is heading: its late queries against those that LoadGen lets pass. Pure.

The count is the driver's own: from issue to completion, by its clock, in samples. LoadGen counts from the
scheduled time, so a query that was issued late may be late there and not here; the word "cannot" leaves room
for none of that, "at risk" is a forecast.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import StatisticsError, linear_regression
from typing import Literal

from orchestrator.early_stopping import (
    fewest_by_percentile,
    fewest_in_limit,
    most_late,
    most_late_by_percentile,
)
from orchestrator.expectation import expected_samples
from orchestrator.plan import TestSpec

Word = Literal["on course", "at risk", "cannot pass"]
WORDS: tuple[Word, ...] = ("on course", "at risk", "cannot pass")
HOPELESS = "it was ended because it cannot pass any more"  # how such a test's reason begins

# The trend is that of the last seconds, it says nothing before, and nothing beyond so many seconds more.
TREND_WINDOW_S = 10.0
# A queue swings: a rise counts when it is so many times what the points lie beside their line (root mean
# square). Simulated for 30 minutes at 38 to 95 % load, that called a risk for one second; at 102 % in 6 s.
CLEAR_RISE = 4.0
# Fewer a second are no piling up: in a window that is one batch more or less.
LEAST_GROWTH_PER_S = 1.0
# LoadGen's arrivals are random: by so many roots of their number a test may have more queries than expected.
MOST_DEVIATIONS = 6.0
# Looking costs milliseconds when many were late, and the driver has other things to do.
LOOK_EVERY_S = 1.0
# A forecast from fewer would be noise: at the 99th percentile one late query weighs as much as a hundred.
FEWEST_FOR_FORECAST = 459


def reason_of_hopeless(why: str) -> str:
    """The reason that the record of such a test has."""
    return f"{HOPELESS} (stop_when_hopeless): {why}"


def why_hopeless(status: str, reason: str) -> str | None:
    """Why a test was ended before its end, of what its record has; None where another thing ended it."""
    hopeless = status == "failed" and reason.startswith(HOPELESS)
    return reason.partition(": ")[2] if hopeless else None


@dataclass(frozen=True)
class Course:
    """A live verdict. `more_needed`: further queries within the limit until it could pass; None: it cannot.

    `allowed_late` is the bound at the test's expected end; None where the test is too short for any.
    """

    word: Word
    why: str
    late: int
    completed: int
    expected: int
    more_needed: int | None
    allowed_late: int | None
    outstanding_per_s: float | None


@dataclass
class CourseWatch:
    """Follows one test; only Server's performance and compliance tests have a bound to follow.

    `early_stopping`: not in the LoadGens of v1.0 and v1.1, which a manifest may name for these rounds.
    """

    spec: TestSpec
    early_stopping: bool = True
    last: Course | None = None
    _next_s: float = -math.inf
    _points: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        judged = self.spec.scenario == "Server" and self.spec.mode == "performance"
        self._limit_ns = self.spec.limit_ns if judged else None
        self._expected = (expected_samples(self.spec) or 0) if judged else 0
        self._percentile = float(self.spec.settings.get("server_target_latency_percentile", 0.99))
        most = math.ceil(self._expected + MOST_DEVIATIONS * math.sqrt(self._expected))
        self._allowed, self._hopeless_above = (
            self._most_late(count) if self._limit_ns else None for count in (self._expected, most)
        )

    def too_few(self) -> str | None:
        """Why the test has too few queries for any result, which is known before it begins; else None."""
        if not self._limit_ns or not self._expected or self._hopeless_above is not None:
            return None
        return f"a test of {self._expected:,} queries proves nothing: {self._the_fewest()}"

    def look(
        self, now_s: float, issued: int, completed: int, late: int, at_once: bool = True
    ) -> Course | None:
        """The verdict now, `last` from then on; None for a test that has none, and before any answer.

        Not `at_once`: the last verdict, if it is younger than LOOK_EVERY_S.
        """
        if not self._limit_ns or not self._expected or not completed:
            return None
        self._follow(now_s, issued - completed)
        if now_s < self._next_s and not at_once:
            return self.last
        self._next_s = now_s + LOOK_EVERY_S
        growth, clear = self._growth() or (None, False)
        word, why = self._judge(issued, completed, late, growth if clear else None)
        self.last = Course(
            word=word,
            why=why,
            late=late,
            completed=completed,
            expected=self._expected,
            more_needed=None if word == "cannot pass" else max(self._fewest(late) - completed, 0),
            allowed_late=self._allowed,
            outstanding_per_s=growth,
        )
        return self.last

    def _most_late(self, queries: int) -> int | None:
        rule = most_late if self.early_stopping else most_late_by_percentile
        return rule(queries, self._percentile)

    def _fewest(self, late: int) -> int:
        if self.early_stopping:
            return late + fewest_in_limit(late, self._percentile)
        return fewest_by_percentile(late, self._percentile)

    def _the_fewest(self) -> str:
        return f"{fewest_in_limit(0, self._percentile):,} are the fewest"

    def _follow(self, now_s: float, outstanding: int) -> None:
        points = self._points
        points.append((now_s, outstanding))
        while len(points) > 2 and points[1][0] <= now_s - TREND_WINDOW_S:
            points.popleft()

    def _growth(self) -> tuple[float, bool] | None:
        """By how many samples a second the outstanding ones grow, and whether that is more than noise."""
        points = list(self._points)
        if not points or points[-1][0] - points[0][0] < TREND_WINDOW_S / 2:
            return None
        at_s, outstanding = [t for t, _ in points], [float(n) for _, n in points]
        try:
            slope, start = linear_regression(at_s, outstanding)
        except StatisticsError:
            return None
        beside = [n - start - slope * t for t, n in zip(at_s, outstanding, strict=True)]
        noise = math.sqrt(sum(one * one for one in beside) / len(beside))
        return slope, slope * (at_s[-1] - at_s[0]) > CLEAR_RISE * noise

    def _judge(self, issued: int, completed: int, late: int, growth: float | None) -> tuple[Word, str]:
        """`growth` is a clear one, None where there is none."""
        limit_ms = (self._limit_ns or 0) / 1e6
        if self._allowed is None or self._hopeless_above is None:
            if why := self.too_few():
                return "cannot pass", why
            # How many there will be is chance: LoadGen asks for a time, at random moments.
            about = f"a test of about {self._expected:,} queries"
            return "at risk", f"{about} may prove nothing: {self._the_fewest()}"
        allowed = f"{self._allowed:,} of {self._expected:,}"
        if late > self._hopeless_above:
            return "cannot pass", f"{late:,} queries took longer than {limit_ms:g} ms; {allowed} may"
        if late > self._allowed:
            return "at risk", f"{late:,} of {completed:,} were late, {allowed} may be"
        if completed >= FEWEST_FOR_FORECAST and late * self._expected > self._allowed * completed:
            return "at risk", f"{late:,} of {completed:,} late; at this rate over {allowed} will be"
        if growth is not None and (queue := self._too_long(growth, issued, completed)):
            now = issued - completed
            why = f"queries pile up: {now:,} now, {growth:,.0f} more each second"
            return "at risk", f"{why}; {queue:,.0f} take {limit_ms:g} ms"
        return "on course", f"{late:,} late so far, {allowed} allowed"

    def _too_long(self, growth: float, issued: int, completed: int) -> float | None:
        """The queue that takes the whole limit, if what is outstanding soon grows beyond it; else None."""
        qps = float(self.spec.settings.get("server_target_qps", 0))
        if qps <= 0 or growth < LEAST_GROWTH_PER_S:
            return None
        left_s = min(max(self._expected - issued, 0) / qps, TREND_WINDOW_S)
        # A queue that lasts is as long as the queries of its mean waiting time are many (Little's law).
        queue = qps * (self._limit_ns or 0) / 1e9
        return queue if issued - completed + growth * left_s > queue else None
