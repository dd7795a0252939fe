"""The memory and the CPUs that this process may use: the machine's, or its container's if those are fewer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workers.free_memory import PROC, SYS, read_text


def memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int:
    """Memory of this machine, or the limit of this process's control groups if that is lower."""
    least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group in _groups("memory", proc, sys):
        # Without a limit, version 2 says "max" and version 1 a number beyond any memory.
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_text(group / name) or ""
            least = min(least, int(limit)) if limit.isdigit() else least
    return least


def usable_cpus(proc: Path = PROC, sys: Path = SYS) -> int:
    """CPUs that this process may run on, or those that its control groups' quota pays for if fewer."""
    fewest = len(os.sched_getaffinity(0))
    for group in _groups("cpu", proc, sys):
        both = (read_text(group / "cpu.max") or "").split()
        if not both:
            both = [read_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        # No quota is "max" in version 2 and -1 in version 1.
        if len(both) == 2 and all(number.isdigit() and int(number) for number in both):
            fewest = min(fewest, math.ceil(int(both[0]) / int(both[1])))
    return fewest


def _groups(controller: str, proc: Path, sys: Path) -> Iterator[Path]:
    """The folders of this process's control groups, each with those above it, whose limits hold too.

    A container often sees its own group as the root, under a path that only the host has: such are not there.
    """
    for line in (read_text(proc / "self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        roots = {sys / "fs/cgroup" / controllers, sys / "fs/cgroup" / (controller if controllers else "")}
        for root in sorted(roots):
            yield from (root / above for above in (group, *group.parents) if ".." not in above.parts)
