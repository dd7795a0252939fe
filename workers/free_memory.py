"""How much memory this machine, or the container on it, still has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
SYS = Path("/sys")


def read_text(path: Path) -> str | None:
    """A small file of the kernel's, stripped; None if it is not there or may not be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def groups(controller: str, proc: Path, sys: Path) -> Iterator[Path]:
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


def available_memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int | None:
    """Memory to be had without swapping, within this process's limits; None if the kernel does not say."""
    free = None
    for line in (read_text(proc / "meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for group in groups("memory", proc, sys):
        for most, now in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = read_text(group / most) or "", read_text(group / now) or ""
            if limit.isdigit() and used.isdigit():
                left = max(int(limit) - int(used), 0)
                free = left if free is None else min(free, left)
    return free
