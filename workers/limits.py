"""The memory and the CPUs that this process may use: the machine's, or its container's if those are fewer."""

from __future__ import annotations

import math
import os
from pathlib import Path

from workers.free_memory import PROC, SYS, groups, read_text


def memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int:
    """Memory of this machine, or the limit of this process's control groups if that is lower."""
    least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in groups("memory", proc, sys):
        # Without a limit, version 2 says "max" and version 1 a number beyond any memory.
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_text(group / name) or ""
            least = min(least, int(limit)) if limit.isdigit() else least
    return least


def usable_cpus(proc: Path = PROC, sys: Path = SYS) -> int:
    """CPUs that this process may run on, or those that its control groups' quota pays for if fewer."""
    return math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota(proc, sys)))


def cpu_quota(proc: Path = PROC, sys: Path = SYS) -> float:
    """How many CPUs' time this process's control groups pay for; infinite where they set no quota."""
    fewest = math.inf
    for group in groups("cpu", proc, sys):
        both = (read_text(group / "cpu.max") or "").split()
        if not both:
            both = [read_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        # No quota is "max" in version 2 and -1 in version 1.
        if len(both) == 2 and all(number.isdigit() and int(number) for number in both):
            fewest = min(fewest, int(both[0]) / int(both[1]))
    return fewest
