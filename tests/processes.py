"""The processes that the tests start: which they are, whether they run, and how exactly these are ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PREFIX = "loadgrid-"
MARK = "LOADGRID_TESTS_OWNER"  # in the environment of everything that the tests start


class HarnessError(RuntimeError):
    """The test hosts could not be made or did not answer: says which and why."""


# How much longer than on two quiet cores everything may take: what is promised, and what is waited for.
PATIENCE = float(os.environ.get("LOADGRID_TEST_PATIENCE", "1"))


def eventually(condition: Callable[[], bool], limit_s: float, every_s: float = 0.05) -> bool:
    """Whether the condition came true in time: for real processes only, whose time no one passes by hand."""
    end = time.monotonic() + limit_s * PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every_s)
    return True


def start_ticks(pid: int) -> str | None:
    """When a living process started, in the kernel's ticks: with the pid, a name that is never used twice."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def alive(pid: int) -> bool:
    """Whether the process runs: one that has ended and waits to be reaped does not count."""
    return start_ticks(pid) is not None


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(*roots: int) -> set[int]:
    """The living processes below these, the roots not among them."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        fields = _stat(pid)
        if fields is not None and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        below = [pid for pid in children.get(waiting.pop(), []) if pid not in found]
        found.update(below)
        waiting += below
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def mark_of(pid: int) -> str | None:
    """Which test run started the process, if one did and the process has not overwritten its environment."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(MARK.encode() + b"="):
                return entry.partition(b"=")[2].decode(errors="replace")
    return None


def has_open_below(pid: int, folder: Path) -> bool:
    """Whether the process holds a file open in the folder: whose it is when its environment is lost."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith(f"{folder}/"):
                    return True
    return False


def end_processes(pids: Iterable[int], limit_s: float = 10.0) -> None:
    """SIGKILL to exactly these, and wait until they are gone."""
    doomed = set(pids)
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not eventually(lambda: not any(alive(pid) for pid in doomed), limit_s):
        raise HarnessError(f"would not end: {[command_line(pid) for pid in doomed if alive(pid)]}")


def my_tag() -> str:
    return f"{os.getpid()}-{start_ticks(os.getpid())}"


def is_orphaned(tag: str) -> bool:
    """Whether the test run of this tag has ended (or never was one of ours)."""
    found = re.fullmatch(r"(\d+)-(\d+)", tag)
    return found is not None and start_ticks(int(found[1])) != found[2]


def tag_in(name: str) -> str:
    return "-".join(name.removeprefix(PREFIX).split("-")[:2])


def short_folder() -> Path:
    """A new folder with a path short enough for Ray's sockets below it: a socket's path has 107 bytes."""
    for number in itertools.count():
        folder = Path("/tmp") / f"{PREFIX}{my_tag()}-{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError("unreachable")


def orphaned_processes() -> set[int]:
    """What killed test runs of our own left running, and everything below it."""
    marked = {pid for pid in all_pids() if (tag := mark_of(pid)) is not None and is_orphaned(tag)}
    return marked | descendants(*marked)
