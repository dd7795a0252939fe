"""How much memory this machine, or the container on it, still has."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
SYS = Path("/sys")


def read_text(path: Path) -> str | None:
    """A small file of the kernel's, stripped; None if it is not there or may not be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def available_memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int | None:
    """Memory to be had without swapping, within this container's limit; None if the kernel does not say."""
    free = None
    for line in (read_text(proc / "meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    group = sys / "fs/cgroup"
    limit, used = read_text(group / "memory.max"), read_text(group / "memory.current")
    if limit and used and limit.isdigit() and used.isdigit():
        left = max(int(limit) - int(used), 0)
        free = left if free is None else min(free, left)
    return free
