"""Processors that never sleep while a test runs, and how long loops look before they do: dispatch.keep_awake.

A processor without work halts. To wake it takes tens of microseconds in a virtual machine, a few elsewhere,
and on its way to a worker and back a sample wakes seven threads. So one process on each processor runs
whenever nothing else wants to. Run as a script, this file is the parent of these processes. No rights needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

# At 100,000 queries/s nearly every gap is shorter. The median answer of a fast engine is away for 250 us: to
# look that long would burn a processor for every thread.
POLL_NS = 50_000
# The scheduler shares out time among sessions first, and its idle class counts only within one. A session at
# this value weighs 15 where others weigh 1024; without it, two busy cores had a p99 of 120 ms instead of 8.
AUTOGROUP = Path("/proc/self/autogroup")
LEAST = "19"
DONE = "awake"
MEND = "Set dispatch.keep_awake: false, or run where nothing limits the CPUs."
SPINS = 100_000
END_S = 5.0


class AwakeError(Exception):
    """Processors cannot be kept awake here; the text says why, and what to do."""


def why_not() -> str | None:
    """Why this process may not keep its processors awake, None if it may."""
    from workers.limits import cpu_quota  # not in the script, which finds nothing of ours

    if not hasattr(os, "SCHED_IDLE"):
        return "only Linux has a scheduling class for processors that would be idle"
    paid, reachable = cpu_quota(), len(os.sched_getaffinity(0))
    if paid < reachable:
        return (
            f"the CPU limit of this container or control group pays for {paid:g} of {reachable} processors, "
            "and what keeps them awake would use it up"
        )
    return None


class Awake:
    """Keeps the processors of this process awake until close(), or until this process ends, however it ends.

    `processors` are their numbers. AwakeError: it cannot be done here.
    """

    def __init__(self) -> None:
        if why := why_not():
            raise AwakeError(f"processors cannot be kept awake: {why}. {MEND}")
        self.processors = sorted(os.sched_getaffinity(0))
        self._process = subprocess.Popen(
            # -I -S: nothing of ours or of others is loaded, so that a process takes a megabyte.
            [sys.executable, "-I", "-S", __file__, *map(str, self.processors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().decode(errors="replace").strip()
        if said != DONE:
            self.close()
            raise AwakeError(f"processors cannot be kept awake: {said or 'the process that does it died'}")

    def count(self) -> int:
        """How many processors are kept awake: none any more if somebody ended what does it."""
        return len(self.processors) if self._process.poll() is None else 0

    def close(self) -> None:
        """Let the processors sleep again."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children see that it is gone
            self._process.wait()


def _spin(parent: int) -> NoReturn:
    while os.getppid() == parent:
        for _ in range(SPINS):
            pass
    os._exit(0)


def _main() -> None:
    """Start a process for each processor named; end them once nobody holds the other end of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a child must never unwind into what follows
    own, children = os.getpid(), []
    if AUTOGROUP.exists():
        AUTOGROUP.write_text(LEAST)
    try:
        for processor in map(int, sys.argv[1:]):
            child = os.fork()
            if not child:
                _spin(own)
            children.append(child)
            # From here and not by itself: who is told of a failure is this process.
            os.sched_setaffinity(child, {processor})
            os.sched_setscheduler(child, os.SCHED_IDLE, os.sched_param(0))
        print(DONE, flush=True)
        sys.stdin.buffer.read()
    except OSError as error:
        print(f"process {len(children)} of {len(sys.argv) - 1}: {error.strerror}", flush=True)
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    _main()
