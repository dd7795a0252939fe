"""How many late queries LoadGen lets pass: since 2.0 by early stopping, before by the percentile. Pure.

By early stopping a test passes when, had just the allowed share of all queries been late, so few late ones
would have been seen with a chance below 1 - confidence (loadgen/early_stopping.cc, EarlyStopping() in
results.cc).
"""

from __future__ import annotations

import math
from functools import lru_cache

CONFIDENCE = 0.99  # results.cc: PerformanceSummary::EarlyStopping
# A term this much smaller than the sum is beyond a double's digits.
NEGLIGIBLE = 1e-17


@lru_cache(maxsize=4096)
def fewest_in_limit(late: int, percentile: float = 0.99, confidence: float = CONFIDENCE) -> int:
    """Queries within the limit that a test with `late` ones needs to pass: 459 for none at the 99th."""
    low = math.floor(late * percentile / (1 - percentile))  # here the allowed share is just met: not enough
    high = low + 1
    step = 1024
    while not _passes(high, late, percentile, confidence):
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if _passes(middle, late, percentile, confidence):
            high = middle
        else:
            low = middle
    return high


def most_late(queries: int, percentile: float = 0.99, confidence: float = CONFIDENCE) -> int | None:
    """Late ones of so many queries with which the test still passes: 2583 of 270336; None: not even 0."""
    if queries < fewest_in_limit(0, percentile, confidence):
        return None
    low, high = 0, queries
    while high - low > 1:
        middle = (low + high) // 2
        if _passes(queries - middle, middle, percentile, confidence):
            low = middle
        else:
            high = middle
    return low


def most_late_by_percentile(queries: int, percentile: float = 0.99) -> int:
    """Late ones of so many queries that LoadGen before 2.0 lets pass: of the sorted, it looks at one."""
    return max(queries - math.floor(queries * percentile) - 1, 0)


def fewest_by_percentile(late: int, percentile: float = 0.99) -> int:
    """Queries of a test with so many late ones that LoadGen before 2.0 lets pass."""
    queries = max(math.floor(late / (1 - percentile)) - 2, late + 1)
    while most_late_by_percentile(queries, percentile) < late:
        queries += 1
    return queries


def _passes(in_limit: int, late: int, percentile: float, confidence: float) -> bool:
    return _chance_of_so_few(in_limit + late, late, 1 - percentile) < 1 - confidence


def _chance_of_so_few(queries: int, late: int, share: float) -> float:
    """The chance of at most `late` late queries, if each is late with the chance `share` (binomial)."""
    if late >= queries * share:
        return 1.0  # at or above the mean: about a half or more, which is all that matters
    logs = math.lgamma(queries + 1) - math.lgamma(late + 1) - math.lgamma(queries - late + 1)
    term = math.exp(logs + late * math.log(share) + (queries - late) * math.log1p(-share))
    total = 0.0
    if term == 0.0:
        return 0.0  # far below the mean
    for k in range(late, -1, -1):
        total += term
        # Below the mean of the binomial each further term is the smaller.
        term *= k * (1 - share) / ((queries - k + 1) * share)
        if term < NEGLIGIBLE * total:
            break
    return total
