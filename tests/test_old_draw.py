"""The samples of the old LoadGens: pinned to what the real ones drew, and what every draw must keep."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.old_draw import Mt19937, SampleSet, query_starts, sample_sets

TIME_BUDGET_S = 15

QSL_SEED, SAMPLE_SEED = 7322528924094909334, 1570999273408051088  # of round v1.0


def digest(indices: np.ndarray) -> str:
    return hashlib.sha256(" ".join(map(str, indices.tolist())).encode()).hexdigest()[:16]


def test_the_words_are_those_of_the_standard_engine() -> None:
    # The C++ standard: the 10,000th word of a default std::mt19937 is 4123659995.
    assert Mt19937(5489).words(10_000)[-1] == 4123659995
    one, other = Mt19937(7), Mt19937(7 + 2**32)
    assert one.words(3).tolist() == other.words(3).tolist()


def test_numbers_below_a_bound_do_not_depend_on_how_many_are_taken_at_once() -> None:
    for bound in (1, 2, 7, 2**31 + 5):  # the last passes over almost half of the words
        together = Mt19937(3).numbers_below(bound, 500)
        words = Mt19937(3)
        assert [words.below(bound) for _ in range(500)] == together.tolist()
        assert together.min() >= 0 and together.max() < bound


def test_a_performance_test_draws_what_v1_0_1_drew() -> None:
    # LoadGen v1.0.1, compiled by GCC of today, 105 samples, 50 at once, 7 a query.
    sets = sample_sets(105, 50, 7, QSL_SEED)
    assert [s.count for s in sets] == [50, 50, 5]
    assert sets[0].indices[:10].tolist() == [95, 71, 0, 49, 99, 67, 36, 3, 77, 35]
    assert sets[2].indices.tolist() == [48, 21, 79, 88, 29, 48, 21, 79, 88, 29, 48]


def test_a_compiler_of_the_time_draws_what_was_published() -> None:
    # loaded_qsl_set of NVIDIA's resnet50 MultiStream result of v1.0: 2,048 of 50,000, 1,760 a query.
    drawn = sample_sets(50_000, 2048, 1760, QSL_SEED, scaled=True)[0].indices
    assert len(drawn) == 3807 and digest(drawn) == "e6bcc9cae18d0640"
    assert drawn[:5].tolist() == [31735, 41421, 23281, 29550, 6180]
    assert drawn[2048:].tolist() == drawn[:1759].tolist()


@given(
    total=st.integers(1, 300),
    at_once=st.integers(1, 120),
    n=st.integers(1, 130),
    seed=st.integers(0, 2**64 - 1),
    scaled=st.booleans(),
)
def test_an_accuracy_test_asks_for_every_sample_and_its_queries_are_contiguous(
    total: int, at_once: int, n: int, seed: int, scaled: bool
) -> None:
    sets = sample_sets(total, at_once, n, seed, scaled)
    assert sorted(i for s in sets for i in s.indices[: s.count].tolist()) == list(range(total))
    for drawn in sets:
        queries = len(drawn.indices) // n
        starts = query_starts(drawn, n, seed, queries, kind="accuracy", scaled=scaled)
        asked = [drawn.indices[start : start + n] for start in starts.tolist()]
        assert {i for query in asked for i in query.tolist()} == set(drawn.indices.tolist())
        assert all(len(query) == n for query in asked)


@given(n=st.integers(1, 40), count=st.integers(1, 100), seed=st.integers(0, 2**32))
def test_a_query_never_runs_over_the_end_of_the_loaded_set(n: int, count: int, seed: int) -> None:
    places = np.arange(count + n - 1) % count
    starts = query_starts(SampleSet(places, count), n, seed, 200)
    assert starts.min() >= 0 and starts.max() + n <= len(places)


def test_more_samples_per_query_keep_the_loaded_samples() -> None:
    few, many = sample_sets(1000, 64, 1, QSL_SEED)[0], sample_sets(1000, 64, 200, QSL_SEED)[0]
    assert many.indices[:64].tolist() == few.indices.tolist()


@pytest.mark.parametrize("same", [0, 3])
def test_an_audit_can_ask_for_one_sample_again_and_again(same: int) -> None:
    drawn = sample_sets(100, 10, 2, QSL_SEED)[0]
    assert query_starts(drawn, 2, SAMPLE_SEED, 4, kind="same", same=same).tolist() == [same] * 4
