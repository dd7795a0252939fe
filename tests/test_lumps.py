"""Lumps: what came at once keeps its order, its pairs and its mean time, joined or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.lumps import ARRAY_FROM, JOIN_FROM, Issued, lumps_of

TIME_BUDGET_S = 10

FIRST_ID = 2**63 + 5  # LoadGen's ids are addresses: any 64 bits
NOW_NS = 86_400 * 365 * 10**9


def issued(sizes: list[int], times: list[int]) -> list[Issued]:
    """Callbacks of so many samples, ids in order, every third one as arrays."""
    found: list[Issued] = []
    at = 0
    for number, (size, ns) in enumerate(zip(sizes, times, strict=True)):
        ids, indices = list(range(FIRST_ID + at, FIRST_ID + at + size)), list(range(at, at + size))
        if number % 3 == 2:
            found.append((np.array(ids, np.uint64), np.array(indices, np.uint32), ns))
        else:
            found.append((ids, indices, ns))
        at += size
    return found


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10**9)), min_size=1, max_size=40),
    st.booleans(),
)
def test_no_sample_is_lost_doubled_or_paired_anew_and_the_mean_time_stays(
    callbacks: list[tuple[int, int]], one_each: bool
) -> None:
    sizes = [1 if one_each else size for size, _ in callbacks]
    times = [NOW_NS + ns for _, ns in callbacks]
    lumps = lumps_of(issued(sizes, times))
    ids = [int(one) for lump in lumps for one in lump.ids]
    assert ids == list(range(FIRST_ID, FIRST_ID + sum(sizes)))
    assert [int(one) for lump in lumps for one in lump.indices] == list(range(sum(sizes)))
    meant = sum(size * (ns - NOW_NS) for size, ns in zip(sizes, times, strict=True))
    kept = sum(len(lump.ids) * (lump.issued_ns - NOW_NS) for lump in lumps)
    assert 0 <= meant - kept < sum(sizes)
    assert len(lumps) == (1 if len(callbacks) >= JOIN_FROM else len(callbacks))


@pytest.mark.parametrize("large", [0, JOIN_FROM // 2, JOIN_FROM])
def test_a_large_lump_is_never_copied_into_another(large: int) -> None:
    sizes = [1] * (JOIN_FROM + 1)
    sizes[large] = ARRAY_FROM + 1
    given_lumps = issued(sizes, [NOW_NS] * len(sizes))
    found = lumps_of(given_lumps)
    assert [lump.ids for lump in found] == [ids for ids, _, _ in given_lumps]
    assert found[large].indices is given_lumps[large][1]
