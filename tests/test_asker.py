"""What is done before LoadGen's clock starts."""

from __future__ import annotations

import resource

import numpy as np

from orchestrator.asker import KEPT_EVERY, room_for_integers

TIME_BUDGET_S = 5
INTEGERS = 1_000_000


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_integers_find_memory_that_is_there_already() -> None:
    kept = room_for_integers(INTEGERS)
    assert len(kept) == -(-INTEGERS // KEPT_EVERY)
    before = faults()
    made = np.arange(1 << 40, (1 << 40) + INTEGERS).tolist()
    # 32 bytes each would be 7,800 pages, and the list is 1,950.
    assert faults() - before < 4500 and len(made) == INTEGERS
