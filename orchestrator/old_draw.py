"""The samples that LoadGen v1.0.1 and r1.1 draw: std::shuffle and uniform_int_distribution. Pure.

The C++ standard fixes std::mt19937 and leaves these two to the library, so a LoadGen's compiler decides which
samples it draws. Ours are those of libstdc++ 11 (GCC 11, 2021) and later, which a LoadGen built today uses:
equal to the v1.0.1 module's. `scaled` gives those of older ones: equal to the loaded_qsl_set that NVIDIA
published in v1.0 (2,048 of 50,000 samples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORDS_AT_ONCE = 1 << 14
SPAN = 1 << 32  # of one word


class Mt19937:
    """std::mt19937's words in order, and whole numbers below a bound as libstdc++ makes them of words."""

    def __init__(self, seed: int, scaled: bool = False) -> None:
        # The engine has 32 bits and takes a longer seed modulo 2^32.
        self._random = np.random.RandomState(seed & 0xFFFFFFFF)
        self._scaled = scaled
        self._words = np.empty(0, np.uint64)
        self._at = 0

    def words(self, count: int) -> np.ndarray:
        """The next `count` words, uint64 (count,)."""
        if self._at + count > len(self._words):
            more = self._random.randint(0, SPAN, max(count, WORDS_AT_ONCE), np.uint32).astype(np.uint64)
            self._words = np.concatenate([self._words[self._at :], more])
            self._at = 0
        self._at += count
        return self._words[self._at - count : self._at]

    def below(self, bound: int) -> int:
        """A number in [0, bound)."""
        return int(self.numbers_below(bound, 1)[0])

    def numbers_below(self, bound: int, count: int) -> np.ndarray:
        """The next `count` numbers in [0, bound), int64 (count,)."""
        found = self._made(self.words(count), bound)
        while len(found) < count:
            # A word that would favour some numbers is passed over, and the next one counts.
            found = np.concatenate([found, self._made(self.words(count - len(found)), bound)])
        return found

    def _made(self, words: np.ndarray, bound: int) -> np.ndarray:
        if self._scaled:
            scaling = (SPAN - 1) // bound
            return (words[words < bound * scaling] // np.uint64(scaling)).astype(np.int64)
        product = words * np.uint64(bound)
        fair = (product & np.uint64(SPAN - 1)) >= SPAN % bound
        return (product[fair] >> np.uint64(32)).astype(np.int64)

    def shuffle(self, values: list[int]) -> None:
        """std::shuffle in place: for short lists one number gives two places at a time."""
        n, at = len(values), 1
        if n and (SPAN - 1) // n >= n:
            if n % 2 == 0:
                self._swap(values, at, self.below(2))
                at += 1
            while at < n:
                span = at + 1
                first, second = divmod(self.below(span * (span + 1)), span + 1)
                self._swap(values, at, first)
                self._swap(values, at + 1, second)
                at += 2
            return
        for at in range(1, n):
            self._swap(values, at, self.below(at + 1))

    @staticmethod
    def _swap(values: list[int], one: int, other: int) -> None:
        values[one], values[other] = values[other], values[one]


@dataclass(frozen=True)
class SampleSet:
    """Samples that are loaded together: `indices` int64, the first `count` drawn from, the rest padding.

    The padding repeats the set from its beginning, so that a query that starts near the end stays contiguous.
    """

    indices: np.ndarray
    count: int


def sample_sets(
    total: int, at_once: int, samples_per_query: int, seed: int, scaled: bool = False
) -> list[SampleSet]:
    """The data set in the order of the seed, cut into sets of `at_once` samples; the last may be shorter."""
    order = list(range(total))
    Mt19937(seed, scaled).shuffle(order)
    sets = []
    for first in range(0, total, at_once):
        part = np.array(order[first : first + at_once], np.int64)
        places = np.arange(len(part) + samples_per_query - 1) % len(part)
        sets.append(SampleSet(part[places], len(part)))
    return sets


def query_starts(
    drawn: SampleSet,
    samples_per_query: int,
    seed: int,
    queries: int,
    *,
    kind: str = "random",
    same: int = 0,
    scaled: bool = False,
) -> np.ndarray:
    """Where in the set each query begins, int64 (queries,).

    `kind` is "random" (performance), "accuracy" (every sample once), "unique" (as accuracy, in a performance
    test) or "same" (every query at `same`).
    """
    words = Mt19937(seed, scaled)
    strides = list(range(0, drawn.count, samples_per_query))
    if kind == "same":
        return np.full(queries, same, np.int64)
    # LoadGen shuffles this list in every mode, before it draws at random.
    words.shuffle(strides)
    if kind == "random":
        return words.numbers_below(drawn.count, queries)
    return np.array(strides[:queries], np.int64)
