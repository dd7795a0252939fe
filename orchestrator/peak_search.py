"""The largest value that holds, of Server's rate or MultiStream's samples a query: which to try next. Pure.

A value is bracketed by the largest that held and the smallest that did not. Where in the bracket to look
tells the room that a probe had: as a queue fills, the logarithm of the share of late queries, and the inverse
of a high percentile, fall about linearly with the rate, to nothing at what the workers can do at all. So the
line through two probes meets the limit near the edge, and the bracket guards what the line guesses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

RESOLUTION = 0.01
# Shared machines stall for tens of milliseconds now and then: one INVALID proves nothing, so the value that
# the edge is set by is tried again.
TRIES = 2
RISE, FALL = 4.0, 16.0  # at most by so much from one probe to the next, while there is no bracket
BELOW_CAPACITY = 0.9  # where the edge may be, when all that is known is what overloaded workers deliver
EDGE = 1.0  # the room of a test that just passes
NEAR = 0.6  # with less room a test was too far beyond the edge for a line through it
# A value aims beyond the guessed edge by this share of the bracket, so that the wide side gives way.
BEYOND, BEYOND_WHOLE = 0.15, 0.03  # in MultiStream the line is nearly straight
DOUBT = 0.1  # an edge that seems so far above what did not hold
CONFIRMATIONS = 4  # of full length, ten minutes each by the rules
# With less room, or where a test failed no further above, one more test of full length must say the same: the
# room of 1.05 is a share of late queries of four fifths of what LoadGen lets pass.
LITTLE_ROOM = 1.05
STEP_DOWN = 1.5  # resolutions, from a test of full length that was far over
NEAR_ABOVE = 0.05


@dataclass(frozen=True)
class Seen:
    """A test: its value, whether it held, how much room it had (1: just held; 0: at the workers' capacity).

    `capacity` is what overloaded workers delivered, None for a test that did not overload them.
    """

    value: float
    held: bool
    room: float | None = None
    capacity: float | None = None


@dataclass
class PeakSearch:
    """Asks for value after value: `next()`, then `add()` what came of it, until `next()` is None.

    `whole`: values are whole numbers, and the bracket closes to neighbours; else to `resolution`. `hint`:
    what the workers may be able to do at all; `rise`: how far to go up where nothing tells.
    """

    start: float
    most: float = math.inf
    whole: bool = False
    resolution: float = RESOLUTION
    hint: float | None = None
    rise: float = RISE
    seen: list[Seen] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """What came of a probe."""
        self.seen.append(seen)

    @property
    def low(self) -> float:
        """The largest value that held; 0.0: none did."""
        return bracket(self.seen)[0]

    @property
    def high(self) -> float:
        """The smallest above `low` that did not hold; infinite: all did."""
        return bracket(self.seen)[1]

    @property
    def closed(self) -> bool:
        """Whether the edge lies near above `low`, also where the search was cut short."""
        return self.high <= (1 + DOUBT) * self.low

    def next(self) -> float | None:
        """The value to try next; None: the search is over."""
        low, high = self.low, self.high
        if not self.seen:
            return min(self.start, self.most)
        if low >= self.most:
            return None
        if self._is_doubtful(low, high):
            return high
        if self._is_narrow(low, high):
            tries = sum(seen.value == high for seen in self.seen)
            return high if tries < TRIES and high <= self.most else None
        slow = self._is_slow()
        if low and (delivered := capacity_of(self.seen)):  # nothing holds far above what workers deliver
            high = min(high, (1 + DOUBT) * max(delivered, low))
        guess = guessed_edge(self.seen, self.hint, rise=self.rise, straight=self.whole)
        return self._placed((low + high) / 2 if slow else guess, low, high)

    def _is_narrow(self, low: float, high: float) -> bool:
        if self.whole:
            return high - low <= 1
        return high - low <= self.resolution * low * (1 + 1e-9) or high < self.start / FALL**4

    def _is_doubtful(self, low: float, high: float) -> bool:
        """Whether what held just below had far more room than the line to the workers' capacity leaves.

        Then the machine stalled in the one or the other, and it is cheaper to ask again than to close in.
        """
        room, delivered = _room_at(self.seen, low), capacity_of(self.seen) or 0.0
        tries = sum(seen.value == high for seen in self.seen)
        if not low or not room or self.whole or tries > TRIES:
            return False
        capacity = max(delivered, self.hint or 0.0) if tries < TRIES else delivered
        return capacity - (capacity - low) / max(room, EDGE) > (1 + DOUBT) * high

    def _is_slow(self) -> bool:
        """Whether the last two probes together did not halve the bracket."""
        low, high = bracket(self.seen[:-2])
        return low > 0 and high < math.inf and self.high - self.low > (high - low) / 2

    def _placed(self, guess: float, low: float, high: float) -> float:
        """Where to look for an edge that is guessed to be here, within what is open."""
        least, beyond = self.resolution * low, BEYOND_WHOLE if self.whole else BEYOND
        if high == math.inf:
            value = min(max(guess + beyond * (guess - low), low + 2 * least), RISE**2 * low, self.most)
        elif low == 0.0:
            value = min(max(guess, high / FALL), (1 - 2 * self.resolution) * high)
        else:
            aside = max(beyond * (high - low), 0.4 * least)
            value = guess - aside if guess - low > high - guess else guess + aside
            margin = min(0.4 * least, (high - low) / 2)
            value = min(max(value, low + margin), high - margin)
        if self.whole:
            return min(max(round(value), int(low) + 1), math.ceil(min(high - 1, self.most)))
        return rounded(value)


@dataclass
class Confirmation:
    """Asks for test after test of full length, until a value is confirmed and none further up would be.

    A value counts while every test of it was VALID. Once is enough where there was room and nothing failed
    near above; else it is tested once more, while a test is left, and if that is INVALID, the search goes
    down. The last of the `most` tests never goes up. A test of full length knows its share of late queries
    far better than a probe, so the line through it says well how far the edge still is. `capacity` is what
    the workers deliver, as the probes or the warm-up say; `failed` the value at which no probe passed;
    without `up` nothing above a value that is VALID is tried.
    """

    start: float
    capacity: float | None = None
    whole: bool = False
    up: bool = True
    resolution: float = RESOLUTION
    most: int = CONFIRMATIONS
    failed: float = math.inf
    seen: list[Seen] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """What came of a test."""
        self.seen.append(seen)

    @property
    def low(self) -> float:
        """The largest value that was VALID and never INVALID; 0.0: none was."""
        return bracket(uncontradicted(self.seen))[0]

    def next(self) -> float | None:
        """The value to test next; None: it is confirmed, or will not be in so many tests."""
        left = self.most - len(self.seen)
        if left <= 0:
            return None
        seen = uncontradicted(self.seen)
        low, high = bracket(seen)
        if (1 + self.resolution) * low < self.start < high:
            return self.start
        if low == 0.0:
            return self._below(seen, high)
        above = self._above(seen, low, high) if left > 1 else None
        return above or (low if self._is_doubtful(low, high) else None)

    def _is_doubtful(self, low: float, high: float) -> bool:
        """Whether one VALID test of a value is too little."""
        room = _room_at(self.seen, low)
        once = sum(one.value == low for one in self.seen) == 1
        # Probes that failed further down, at what a test of full length held, had been stalled.
        near = any(low < value <= (1 + NEAR_ABOVE) * low for value in (high, self.failed))
        return once and (near or room is None or room < LITTLE_ROOM)

    def _below(self, seen: Sequence[Seen], high: float) -> float | None:
        """Where none was VALID: as far down as the lowest was over."""
        if self.whole:
            return high - 1 if high > 1 else None
        room, line = _room_at(seen, high) or 0.0, _edge_below(seen)
        edge = line or guessed_edge(seen, None, self.capacity)
        if room < NEAR:
            least = 1 - STEP_DOWN * self.resolution
        else:  # without a line a step as small as can be told apart
            has_line = line is not None or (capacity_of(seen) or self.capacity or 0.0) > high
            least = BELOW_CAPACITY if has_line else 1 - self.resolution
        below = 1 - self.resolution / 2
        return rounded(min(max(edge * below, least * high), (1 - self.resolution) * high))

    def _above(self, seen: Sequence[Seen], low: float, high: float) -> float | None:
        """A value further up that may be VALID, if it is worth a test."""
        if self.whole or (high == math.inf and not self.up):
            return None
        edge = guessed_edge(seen, None, self.capacity, apart=self.resolution)
        if high == math.inf:
            edge = min(edge, (1 + 4 * self.resolution) * low)
        value = rounded(edge * (1 - self.resolution / 2) if edge < high else (low + high) / 2)
        return value if value > (1 + self.resolution) * low else None


def rounded(value: float) -> float:
    """Five digits, which people can read and write down."""
    return float(f"{value:.5g}")


def bracket(seen: Sequence[Seen]) -> tuple[float, float]:
    """The largest value that held (0.0: none), and the smallest above it that did not (infinite: none)."""
    low = max((one.value for one in seen if one.held), default=0.0)
    return low, min((one.value for one in seen if not one.held and one.value > low), default=math.inf)


def uncontradicted(seen: Sequence[Seen]) -> list[Seen]:
    """Without what was VALID at a value that was INVALID in another test."""
    failed = {one.value for one in seen if not one.held}
    return [one for one in seen if not (one.held and one.value in failed)]


def capacity_of(seen: Sequence[Seen]) -> float | None:
    """The most that overloaded workers delivered, for a stall only takes away; None: they never were."""
    return max((one.capacity for one in seen if one.capacity is not None), default=None)


def guessed_edge(
    seen: Sequence[Seen],
    hint: float | None = None,
    capacity: float | None = None,
    rise: float = RISE,
    straight: bool = False,
    apart: float = DOUBT,
) -> float:
    """Where the line through two tests, or one and the workers' capacity, has the room of one that passes.

    `straight`: it is a line however far from the edge, from a room of 2 at nothing. `apart`: how far
    from each other two tests that held must be for a line through them.
    """
    low, high = bracket(seen)
    capacity = capacity_of(seen) or capacity or 0.0
    left, right = _room_at(seen, low), _room_at(seen, high)
    near = right is not None and (right >= NEAR or straight)
    if low == 0.0 and straight and right is not None:
        return high / (2 - right)
    if low == 0.0:
        if near and capacity > high:
            return capacity - (capacity - high) / (right or EDGE)
        if capacity and len(seen) > TRIES:  # what overloaded workers deliver says little of so tight a limit
            return high / 2
        return BELOW_CAPACITY * (min(capacity, high) or high / RISE)
    if left is not None and right is not None and near and left > right:
        return low + (high - low) * (left - EDGE) / (left - right)
    if left is not None and left > 0 and capacity > low:
        return capacity - (capacity - low) / left
    if high < math.inf:
        return (low + high) / 2
    before = max((one.value for one in seen if one.value < (1 - apart) * low), default=0.0)
    earlier = _room_at(seen, before)
    if left is not None and earlier is not None and earlier > left:
        return low + (low - before) * (left - EDGE) / (earlier - left)
    return hint - (hint - low) / left if left is not None and hint and hint > low else rise * low


def _edge_below(seen: Sequence[Seen]) -> float | None:
    """Where the line through the two lowest tests, which both did not hold, has room again; None: no line."""
    values = sorted({one.value for one in seen})[:2]
    rooms = [_room_at(seen, value) or 0.0 for value in values]
    if len(values) < 2 or rooms[0] <= rooms[1] or rooms[0] < NEAR:
        return None
    return values[0] - (EDGE - rooms[0]) * (values[1] - values[0]) / (rooms[0] - rooms[1])


def _room_at(seen: Sequence[Seen], value: float) -> float | None:
    """The most that was seen at a value: what takes room away is the machine's other work."""
    return max((one.room for one in seen if one.value == value and one.room is not None), default=None)
