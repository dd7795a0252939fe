"""Ends a local Ray when its driver died without a word (kill -9).

Ray's own processes notice their driver's end, but two of its agents were measured to stay for about a
minute. This one
remembers every descendant of the driver; when the driver's end of a pipe closes, it ends those that still
run.
Started as `python -m orchestrator.reaper FD DRIVER_PID`; needs nothing but /proc.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_EVERY_S = 0.5
# Ray's processes end by themselves first, in order, if they can.
GRACE_S = 2.0
MARK = "LOADGRID_DRIVER"
ROOT = Path(__file__).resolve().parent.parent


def start() -> int:
    """Start a reaper for this process; returns the descriptor whose closing (or our death) sets it off."""
    os.environ[MARK] = str(os.getpid())  # for all that starts from now on
    ours, theirs = os.pipe()
    os.set_inheritable(ours, False)
    subprocess.Popen(
        [sys.executable, "-m", "orchestrator.reaper", str(ours), str(os.getpid())],
        pass_fds=(ours,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        start_new_session=True,
    )
    os.close(ours)
    return theirs


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time of a process, None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[19]))


def descendants(*roots: int) -> dict[int, int]:
    """Descendants of `roots`: pid -> start time, which together name a process for good."""
    stats = {int(p): s for p in os.listdir("/proc") if p.isdigit() and (s := _stat(int(p)))}
    found: dict[int, int] = {}
    frontier = set(roots)
    while frontier:
        frontier = {p for p, (parent, _) in stats.items() if parent in frontier and p not in found}
        found |= {p: stats[p][1] for p in frontier}
    return found


def _lives(pid: int, born: int) -> bool:
    """Whether the process still is who it was."""
    stat = _stat(pid)
    return stat is not None and stat[1] == born


def _below(known: dict[int, int]) -> dict[int, int]:
    """Descendants of those of `known` that still live."""
    return descendants(*(pid for pid, born in known.items() if _lives(pid, born)))


def _marked(driver: int) -> dict[int, int]:
    """Processes with the driver's mark: those whose parent is gone too."""
    entry = f"{MARK}={driver}".encode()
    found: dict[int, int] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            marked = entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marked and (stat := _stat(int(pid))):
            found[int(pid)] = stat[1]
    return found


def _end(known: dict[int, int], number: signal.Signals) -> bool:
    """Signal those of `known` that still are who they were; whether there were any."""
    left = [pid for pid, born in known.items() if _lives(pid, born)]
    for pid in left:
        try:
            os.kill(pid, number)
        except OSError:
            continue  # it ended meanwhile
    return bool(left)


def main() -> None:
    """Watch, then end what is left."""
    pipe, driver = int(sys.argv[1]), int(sys.argv[2])
    known: dict[int, int] = {}
    while True:
        # Before the wait and not after: an orphan is no descendant any more.
        known |= descendants(driver)
        ready, _, _ = select.select([pipe], (), (), LOOK_EVERY_S)
        if ready:
            break
    known |= _marked(driver) | _below(known)
    known.pop(os.getpid(), None)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and any(_lives(pid, born) for pid, born in known.items()):
        time.sleep(0.1)
        known |= _below(known)
    if _end(known, signal.SIGTERM):
        time.sleep(0.5)
        _end(known, signal.SIGKILL)


if __name__ == "__main__":
    main()
