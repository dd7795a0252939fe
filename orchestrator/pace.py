"""How fast a worker is expected to be: seconds for a batch, from warm-up and its own stage times since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# A worker written in Python cannot do better per sample; without a floor an empty model's credit would be
# boundless.
FLOOR_S = 1e-6
# Weight of a new batch in the moving average.
NEW_WEIGHT = 0.05


class Pace:
    """Expected seconds per batch of one worker.

    `warm_up` is [(batch size, seconds), ...]; sizes between are interpolated. What is measured later is a
    factor on that curve, so that a small batch at low load does not look like a slow worker. `slots` is how
    many batches its engine takes in at once.
    """

    def __init__(self, warm_up: Sequence[tuple[int, float]], max_batch: int, slots: int = 1) -> None:
        sizes, seconds = zip(*sorted(warm_up), strict=True)
        # Below the smallest measured size a batch costs what that size costs; above the largest, in
        # proportion.
        curve = np.interp(np.arange(max_batch + 1), sizes, seconds)
        if sizes[-1] < max_batch:
            beyond = np.arange(sizes[-1] + 1, max_batch + 1)
            curve[sizes[-1] + 1 :] = seconds[-1] * beyond / sizes[-1]
        floor = FLOOR_S * np.arange(max_batch + 1)
        self.expected_s: list[float] = np.maximum(curve, floor).tolist()
        self.max_batch = max_batch
        self.slots = slots
        self.factor = 1.0
        self._full_s = self.expected_s[max_batch] / max_batch

    @property
    def sample_s(self) -> float:
        """Seconds per sample in full batches."""
        return self._full_s * self.factor

    @property
    def batch_s(self) -> float:
        """Seconds per full batch."""
        return self._full_s * self.factor * self.max_batch

    @property
    def first_s(self) -> float:
        """Seconds for a batch of one."""
        return self.expected_s[1] * self.factor

    @property
    def slowest_batch_s(self) -> float:
        """Seconds of the slowest batch of the warm-up."""
        return max(self.expected_s)

    def observe(self, batch_size: int, compute_s: float) -> None:
        """Learn from one batch."""
        expected = self.expected_s[min(max(batch_size, 1), self.max_batch)]
        ratio = min(max(compute_s / expected, 0.02), 50.0)
        self.factor += NEW_WEIGHT * (ratio - self.factor)


def even_warm_ups(facts: Sequence[dict[str, Any]]) -> list[list[tuple[int, float]]]:
    """Each worker's warm-up, but of workers of one kind the fastest's for all.

    Workers warm up side by side, on machines that do other things too: one that measured five times the time
    of its twin was given nothing to do in a whole Server test (seen), so its pace was never corrected. That a
    twin is slow indeed shows in its first batches.
    """
    best: dict[tuple[str, int], float] = {}
    kinds = [
        str([fact.get(key) for key in ("device", "model_hash", "precision", "slowed")]) for fact in facts
    ]
    for kind, fact in zip(kinds, facts, strict=True):
        for size, seconds in fact["warm_up"]:
            best[kind, size] = min(seconds, best.get((kind, size), seconds))
    return [
        [(size, best[kind, size]) for size, _ in fact["warm_up"]]
        for kind, fact in zip(kinds, facts, strict=True)
    ]
