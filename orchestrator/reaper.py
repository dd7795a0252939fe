"""Ends a local Ray when its driver died without a word (kill -9), and what an orderly end left of it.

Ray's own processes notice their driver's end, but two of its agents were measured to stay for about a
minute. The reaper remembers those of the driver's descendants that are Ray's; when the driver's end of a pipe
closes without a word, it ends those that still run. Nothing else is ever ended: a process is Ray's by a
random mark that only Ray inherits, by a command that lies in Ray's folder, or by a parent that is.
Started as `python -m orchestrator.reaper FD DRIVER_PID MARK RAY_FOLDER BEFORE`; needs nothing but /proc.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator import children

LOOK_EVERY_S = 2.0
# Ray's processes end by themselves first, in order, if they can.
GRACE_S = 2.0
# After SIGTERM; then SIGKILL.
TERM_S = 0.5
POLL_S = 0.05
MARK = "LOADGRID_RAY"
WORKER_TITLE = "ray::"  # what Ray's workers write over their command line


class Reaper:
    """The driver's side: one local Ray, from before it starts until nothing of it is left."""

    def __init__(self, ray_folder: Path) -> None:
        self._mark = secrets.token_hex(16)
        self._ray_folder = str(ray_folder)
        self._known: dict[int, int] = {}
        # What this process has started before, another Ray among it perhaps, is not of this Ray.
        self._before = descendants(os.getpid())
        theirs, self._pipe = os.pipe()
        before = ",".join(f"{pid}:{born}" for pid, born in self._before.items())
        arguments = (str(theirs), str(os.getpid()), self._mark, self._ray_folder, before)
        self._process = subprocess.Popen(
            children.command("orchestrator.reaper", *arguments),
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=children.environment(),
            start_new_session=True,
        )
        os.close(theirs)
        os.environ[MARK] = self._mark  # for what Ray starts from now on

    def unmark(self) -> None:
        """Ray has started: what this process starts from now on is not Ray's."""
        if os.environ.get(MARK) == self._mark:
            del os.environ[MARK]

    def note(self) -> None:
        """Remember Ray's processes, before Ray is told to end."""
        self._known |= _of_ray(os.getpid(), self._mark, self._ray_folder, self._before)

    def kill(self) -> None:
        """End those noted at once, and all below."""
        _signal(self._known | _below(self._known), signal.SIGKILL)

    def disarm(self) -> None:
        """End what Ray left of those noted, then the reaper; nothing is signalled after this returns."""
        self.unmark()
        _sweep(self._known | _marked(self._mark))
        with contextlib.suppress(OSError):  # somebody ended the reaper
            os.write(self._pipe, b"done")
        os.close(self._pipe)
        self._process.wait()


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


def _runs_ray(pid: int, ray_folder: str) -> bool:
    """Whether the process is a program or a script of Ray's, or one of its workers."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    scripts = (word for word in words[1:] if not word.startswith("-"))
    first = (words[0], next(scripts, ""))
    return words[0].startswith(WORKER_TITLE) or any(word.startswith(f"{ray_folder}/") for word in first)


def _of_ray(driver: int, mark: str, ray_folder: str, before: dict[int, int]) -> dict[int, int]:
    """Ray's processes: below the driver with a command of Ray's, or marked, and all below these.

    None of `before`, processes that were there when this Ray began, nor of what these have started since.
    """
    others = before | _below(before)
    below = {pid: born for pid, born in descendants(driver).items() if others.get(pid) != born}
    found = {pid: born for pid, born in below.items() if _runs_ray(pid, ray_folder)}
    found |= _marked(mark)
    return found | _below(found)


def _marked(mark: str) -> dict[int, int]:
    """Processes with this mark: those whose parent is gone too."""
    entry = f"{MARK}={mark}".encode()
    found: dict[int, int] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            marked = entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marked and (stat := _stat(int(pid))):
            found[int(pid)] = stat[1]
    found.pop(os.getpid(), None)  # whatever happens, not ourselves
    return found


def _sweep(known: dict[int, int]) -> None:
    """Wait until `known` and all below have ended; end who does not."""
    until = time.monotonic() + GRACE_S
    while _any_lives(known) and time.monotonic() < until:
        time.sleep(POLL_S)
        known |= _below(known)
    _signal(known, signal.SIGTERM)
    until = time.monotonic() + TERM_S
    while _any_lives(known) and time.monotonic() < until:
        time.sleep(POLL_S)
    _signal(known, signal.SIGKILL)


def _any_lives(known: dict[int, int]) -> bool:
    return any(_lives(pid, born) for pid, born in known.items())


def _signal(known: dict[int, int], number: signal.Signals) -> None:
    """Signal those of `known` that still are who they were."""
    for pid, born in known.items():
        if _lives(pid, born):
            with contextlib.suppress(OSError):  # it ended meanwhile
                os.kill(pid, number)


def main() -> None:
    """Watch, then end what is left, unless the driver says that it has done so."""
    pipe, driver = int(sys.argv[1]), int(sys.argv[2])
    mark, ray_folder = sys.argv[3:5]
    before = {int(pid): int(born) for pid, _, born in (p.partition(":") for p in sys.argv[5].split(",") if p)}
    known: dict[int, int] = {}
    heard = select.poll()  # not select(), which cannot name the pipe of a driver that has 1,024 files open
    heard.register(pipe, select.POLLIN)
    while True:
        # Before the wait and not after: an orphan is no descendant any more.
        known |= _of_ray(driver, mark, ray_folder, before)
        if heard.poll(LOOK_EVERY_S * 1000):
            break
    if os.read(pipe, 1):
        return
    known |= _marked(mark)
    _sweep(known | _below(known))


if __name__ == "__main__":
    main()
