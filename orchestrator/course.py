"""Where a running Server test is heading: its late queries against those that LoadGen lets pass. Pure.

The count is the driver's own: from issue to completion, by its clock, in samples. LoadGen counts from the
scheduled time, so a query that was issued late may be late there and not here; the word "cannot" leaves room
for none of that, "at risk" is a forecast.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
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

# The trend is that of the last seconds, and says nothing before.
TREND_WINDOW_S = 10.0
# LoadGen's arrivals are random: by so many roots of their number a test may have more queries than expected.
MOST_DEVIATIONS = 6.0
# Looking costs milliseconds when many were late, and the driver has other things to do.
LOOK_EVERY_S = 1.0
# A forecast from fewer would be noise: at the 99th percentile one late query weighs as much as a hundred.
FEWEST_FOR_FORECAST = 459


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

    def look(
        self, now_s: float, issued: int, completed: int, late: int, at_once: bool = True
    ) -> Course | None:
        """The verdict now, `last` from then on; None for a test that has none, and before any answer.

        Not `at_once`: the last verdict, if it is younger than LOOK_EVERY_S.
        """
        if now_s < self._next_s and not at_once:
            return self.last
        self._follow(now_s, issued - completed)
        if not self._limit_ns or not self._expected or not completed:
            return None
        self._next_s = now_s + LOOK_EVERY_S
        growth = self._growth()
        word, why = self._judge(issued, completed, late, growth)
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

    def _follow(self, now_s: float, outstanding: int) -> None:
        points = self._points
        points.append((now_s, outstanding))
        while len(points) > 2 and points[1][0] <= now_s - TREND_WINDOW_S:
            points.popleft()

    def _growth(self) -> float | None:
        """By how many samples a second the outstanding ones grow: halves of the window, mean against mean."""
        points = list(self._points)
        if not points or points[-1][0] - points[0][0] < TREND_WINDOW_S / 2:
            return None
        half = len(points) // 2
        early, recent = points[:half], points[half:]
        apart_s = _mean([t for t, _ in recent]) - _mean([t for t, _ in early])
        return (_mean([n for _, n in recent]) - _mean([n for _, n in early])) / apart_s

    def _judge(self, issued: int, completed: int, late: int, growth: float | None) -> tuple[Word, str]:
        limit_ms = (self._limit_ns or 0) / 1e6
        if self._allowed is None or self._hopeless_above is None:
            least = fewest_in_limit(0, self._percentile)
            why = f"a test of {self._expected:,} queries proves nothing: {least:,} are the fewest"
            return "cannot pass", why
        if late > self._hopeless_above:
            most = f"{self._allowed:,} of {self._expected:,} may"
            return "cannot pass", f"{late:,} queries took longer than {limit_ms:g} ms; {most}"
        if completed >= FEWEST_FOR_FORECAST and late * self._expected > self._allowed * completed:
            why = f"{late:,} of {completed:,} were late; at this rate more than {self._allowed:,} will be"
            return "at risk", why
        if growth is not None and self._grows_over(growth, issued, completed):
            return "at risk", f"queries pile up: {growth:,.0f} more outstanding each second"
        return "on course", f"{late:,} late so far, {self._allowed:,} of {self._expected:,} allowed"

    def _grows_over(self, growth: float, issued: int, completed: int) -> bool:
        """Whether what is outstanding at the end, at this growth, would wait longer than the limit."""
        qps = float(self.spec.settings.get("server_target_qps", 0))
        if qps <= 0 or growth <= 0:
            return False
        left_s = max(self._expected - issued, 0) / qps
        at_end = issued - completed + growth * left_s
        return at_end / qps > (self._limit_ns or 0) / 1e9


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values)
