"""What is done before LoadGen's clock starts: memory that is asked for and given back is there already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TIME_BUDGET_S = 10
ROOT = Path(__file__).parent.parent
# In a process of its own: what malloc() is told here holds for all that follows.
COUNTED = """
import resource, sys, threading
import numpy as np
from orchestrator.room import room_for_query, share_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def test():
    room = room_for_query(500_000, copies=True) if wanted else None
    before = faults()
    integers = np.arange(1 << 40, (1 << 40) + 2 * 500_000).tolist()
    of_integers = faults() - before
    copies = [np.full(500_000, 1) for _ in range(8)]
    print(len(room.kept) if room else 0, of_integers, faults() - before - of_integers)

if wanted := sys.argv[1] == "wanted":
    share_memory()
thread = threading.Thread(target=test)
thread.start()
thread.join()
"""


def pages_touched(wanted: str) -> list[int]:
    """How many integers were kept; the pages that a query's integers cost afterwards, and its copies."""
    command = [sys.executable, "-c", COUNTED, wanted]
    return list(map(int, subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split()))


def test_a_query_finds_memory_that_is_there_already() -> None:
    kept, of_integers, of_copies = pages_touched("wanted")
    assert kept == 245 and of_integers < 500 and of_copies < 500


def test_without_it_every_page_is_asked_for_inside_the_clock() -> None:
    kept, of_integers, of_copies = pages_touched("not wanted")
    # Integers of 32 bytes, two a sample, and their list; copies of 8 bytes.
    assert kept == 0 and of_integers > 9000 and of_copies > 7000
