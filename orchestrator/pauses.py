"""When LoadGen's host stood still, or had no processor free: noted by a process that only sleeps.

A virtual machine that is not run delays LoadGen, driver and workers alike, and a test's own times do not tell
that from slow code; nor could a thread, which waits for the interpreter's lock. Of what it is late the kernel
says how long it could have run and no processor was free (/proc/self/schedstat): in the rest nothing was run
that should have been.

Started as `python -m orchestrator.pauses`; it prints an empty line when it begins, and at a line or the end
of its input what it saw.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import IO, Any, cast

from orchestrator import children

# By so much a pause may look shorter than it was, and one of little more than PAUSE_MS be missed.
PERIOD_MS = 4
PAUSE_MS = 10.0
MOST = 10_000  # of more, the last
END_S = 5.0
STOOD_STILL, NO_PROCESSOR = "stood_still", "no_processor_free"
SCHEDSTAT = Path("/proc/self/schedstat")

# Late from when (monotonic), for how long, and how long of it for want of a processor; all ns.
Pause = tuple[int, int, int]


class PauseMeter:
    """Watches this host until its end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):  # a test is none the worse without it
            self._process = subprocess.Popen(
                children.command("orchestrator.pauses"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=children.environment(),
            )

    def wait(self) -> None:
        """Until it watches; no test waits longer than END_S for that."""
        if self._process is not None:
            begun = select.poll()
            begun.register(cast(IO[str], self._process.stdout), select.POLLIN)
            if not begun.poll(END_S * 1000):
                self.kill()  # it could only say that it came too late

    def end(self) -> dict[str, Any] | None:
        """End the watch: `since` when (ns, monotonic) it lasted and all `pauses`; None if nobody watched."""
        if self._process is None:
            return None
        try:
            # A line, for whoever was forked from this process holds the pipe's end open, too.
            said, _ = self._process.communicate("\n", timeout=END_S)
            told = json.loads(said)
            pauses = [(int(late), int(long), int(waited)) for late, long, waited in told["pauses"]]
            return {"since": int(told["since"]), "pauses": pauses}
        except (subprocess.TimeoutExpired, OSError, ValueError, TypeError, KeyError):
            self.kill()
            return None

    def kill(self) -> None:
        """End it without a word, if it has not ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def pauses_between(seen: dict[str, Any] | None, begin_ns: int, end_ns: int) -> dict[str, Any] | None:
    """Of each kind: how many reach into this time, the longest, and the sum of what lies in it, in ms.

    `seen` is what the meter told; None if it did not watch all this time.
    """
    if seen is None or seen["since"] > begin_ns:
        return None
    inside: dict[str, list[int]] = {STOOD_STILL: [], NO_PROCESSOR: []}
    for late, long, waited in seen["pauses"]:
        part = min(late + long, end_ns) - max(late, begin_ns)
        if part > 0:
            still = (long - waited) / 1e6 >= PAUSE_MS
            inside[STOOD_STILL if still else NO_PROCESSOR].append(part)
    return {
        kind: {
            "count": len(parts),
            "longest_ms": round(max(parts, default=0) / 1e6, 1),
            "sum_ms": round(sum(parts) / 1e6, 1),
        }
        for kind, parts in inside.items()
    }


def watch(until: int, since_ns: int) -> dict[str, Any]:
    """What PauseMeter.end tells, when the descriptor `until` has something to read or is at its end.

    OSError where the kernel does not tell how long a process waited for a processor.
    """
    poller = select.poll()
    poller.register(until, select.POLLIN)
    stat = os.open(SCHEDSTAT, os.O_RDONLY)
    period_ns, pause_ns = PERIOD_MS * 1_000_000, int(PAUSE_MS * 1_000_000)
    pauses: deque[Pause] = deque(maxlen=MOST)
    last_ns = since_ns
    last_waited_ns, over = _waited_ns(stat), False
    while not over:
        over = bool(poller.poll(PERIOD_MS))
        now_ns, waited_ns = time.monotonic_ns(), _waited_ns(stat)
        late_ns = now_ns - last_ns - period_ns
        if late_ns >= pause_ns:
            pauses.append((now_ns - late_ns, late_ns, waited_ns - last_waited_ns))
        last_ns, last_waited_ns = now_ns, waited_ns
    return {"since": since_ns, "pauses": list(pauses)}


def _waited_ns(stat: int) -> int:
    """For how long this process could have run and no processor was free."""
    return int(os.pread(stat, 100, 0).split()[1])


if __name__ == "__main__":
    began_ns = time.monotonic_ns()
    print(flush=True)
    print(json.dumps(watch(sys.stdin.fileno(), began_ns)))
