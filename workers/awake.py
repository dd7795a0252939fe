"""Processors that never sleep while a test runs, and how long loops look before they do: dispatch.keep_awake.

A processor without work halts. To wake it takes tens of microseconds in a virtual machine, a few elsewhere,
and on its way to a worker and back a sample wakes seven threads. So one process on each processor runs
whenever nothing else wants to. Run as a script, this file is the parent of these processes. No rights needed.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

# At 100,000 queries/s nearly every gap is shorter. The median answer of a fast engine is away for 250 us: to
# look that long would burn a processor for every thread.
POLL_NS = 50_000
# The scheduler shares out time among sessions first, and its idle class counts only within one. A session at
# this value weighs 15 where others weigh 1024; without it, two busy cores had a p99 of 120 ms instead of 8.
AUTOGROUP = Path("/proc/self/autogroup")
LEAST, MIDDLE = "19", "0"
# Without rights, the kernel takes one such write in a tenth of a second from the whole machine.
WEIGH_S = 3.0
DONE = "awake"
MEND = "Leave out dispatch.keep_awake, or run where nothing limits the CPUs."
SPINS = 20_000  # between two looks whether to go on: half a millisecond
START_S = 15.0
END_S = 5.0


class AwakeError(Exception):
    """Processors cannot be kept awake here; the text says why, and what to do."""

    def __init__(self, why: str) -> None:
        super().__init__(f"processors cannot be kept awake: {why}. {MEND}")


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
            raise AwakeError(why)
        self.processors = sorted(os.sched_getaffinity(0))
        # -I -S: nothing of ours or of others is loaded, so that a process takes a megabyte.
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), *map(str, self.processors)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            )
        except OSError as error:
            raise AwakeError(str(error.strerror)) from None
        said = self._first_words()
        if said != DONE:
            self.close()
            raise AwakeError(said)

    def _first_words(self) -> str:
        assert self._process.stdout is not None
        heard = select.poll()
        heard.register(self._process.stdout, select.POLLIN)
        if not heard.poll(START_S * 1000):
            return f"what does it did not start in {START_S:g} s"
        said = self._process.stdout.readline().decode(errors="replace").strip()
        return said or "the process that does it died"

    def count(self) -> int:
        """How many processors are kept awake: none any more if somebody ended what does it."""
        return len(self.processors) if self._process.poll() is None else 0

    def let_sleep(self) -> None:
        """Begin to end; waits for nothing."""
        self._process.terminate()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        """Let the processors sleep again."""
        self.let_sleep()
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


def _start(processors: list[int], children: list[int]) -> None:
    """A process of the idle class on each processor, all together of the least weight."""
    own = os.getpid()
    for processor in processors:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _spin(own)
        children.append(child)
        # From here and not by itself: who is told of a failure is this process.
        os.sched_setaffinity(child, {processor})
        os.sched_setscheduler(child, os.SCHED_IDLE, os.sched_param(0))
    until = time.monotonic() + WEIGH_S
    # Last, for what weighs so little is slow to start the others.
    while AUTOGROUP.exists():
        try:
            AUTOGROUP.write_text(LEAST)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.02, 0.2))


def _main() -> None:
    """Start them for the processors named; end them with the holder, when it says so, or when it lets go."""
    holder, children = int(sys.argv[1]), list[int]()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a child must never unwind into what follows
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        _start([int(word) for word in sys.argv[2:]], children)
        waited = select.poll()
        waited.register(0, select.POLLIN)
        # What the holder forked may hold the other end of stdin open for longer than it lives.
        waited.register(os.pidfd_open(holder), select.POLLIN)
        if os.getppid() == holder:
            print(DONE, flush=True)
            waited.poll()
    except OSError as error:
        print(f"{error.strerror} ({len(children)} of {len(sys.argv) - 2} started)", flush=True)
    finally:
        with contextlib.suppress(OSError):
            AUTOGROUP.write_text(MIDDLE)  # or what was told to end would hardly ever run, and so not end
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    _main()
