"""When LoadGen's host stood still: a process that only sleeps notes every time that it is woken late.

A virtual machine that is not run delays LoadGen, driver and workers alike, and a test's own times do not tell
that from slow code. A thread could not tell either: it waits for the interpreter's lock.

Started as `python -m orchestrator.pauses`; when its standard input ends it prints what it saw.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

from orchestrator import children

# By so much a pause may look shorter than it was, and one of PAUSE_MS be missed.
PERIOD_MS = 4
# Where processors are only busy it is woken sooner (16 workers on two: once in 15 s it was not).
PAUSE_MS = 10.0
MOST = 10_000
END_S = 2.0

# Since when (ns, monotonic), for how long (ns).
Pause = tuple[int, int]


class PauseMeter:
    """Watches this host until it is asked."""

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

    def end(self) -> list[Pause] | None:
        """End the watch; every pause since its beginning, None if nobody watched."""
        if self._process is None:
            return None
        try:
            said, _ = self._process.communicate(timeout=END_S)
            return [(since, long) for since, long in json.loads(said)]
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()
            return None


def pauses_between(pauses: Iterable[Pause], begin_ns: int, end_ns: int) -> dict[str, Any]:
    """How many pauses reach into a time, and the longest and the sum of what of them lies in it, in ms."""
    parts = [min(since + long, end_ns) - max(since, begin_ns) for since, long in pauses]
    inside = [part for part in parts if part > 0]
    longest, whole = max(inside, default=0), sum(inside)
    return {"count": len(inside), "longest_ms": round(longest / 1e6, 1), "sum_ms": round(whole / 1e6, 1)}


def watch(until: int) -> list[Pause]:
    """The pauses of PAUSE_MS or more, until the descriptor `until` has something to read, or its end."""
    poller = select.poll()
    poller.register(until, select.POLLIN)
    period_ns, pause_ns = PERIOD_MS * 1_000_000, int(PAUSE_MS * 1_000_000)
    pauses: list[Pause] = []
    last_ns = time.monotonic_ns()
    while not poller.poll(PERIOD_MS):
        now_ns = time.monotonic_ns()
        late_ns = now_ns - last_ns - period_ns
        if late_ns >= pause_ns and len(pauses) < MOST:
            pauses.append((now_ns - late_ns, late_ns))
        last_ns = now_ns
    return pauses


if __name__ == "__main__":
    print(json.dumps(watch(sys.stdin.fileno())))
