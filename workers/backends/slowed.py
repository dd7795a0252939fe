"""Another backend as if its device were so many times slower: for trying a cluster of unequal workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workers.backends import FAR, Backend, Batch, Done

# The batch in service and the one that waits, as in an engine with two sets of buffers.
SLOTS = 2


class Slowed:
    """Computes by `inner`, one batch at a time, and holds each back until `factor` times its time is over.

    An engine that overlaps the copies of one batch with the compute of another is slowed by more than that.
    """

    def __init__(self, inner: Backend, factor: float, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.max_batch, self.needs_samples = inner.max_batch, inner.needs_samples
        self.answer_bytes = inner.answer_bytes
        self._inner, self._factor, self._clock = inner, factor, clock
        self._inside = 0
        self._held: deque[Done] = deque()
        self._busy_until_ns = 0

    def load(self) -> dict[str, Any]:
        """The backend's facts, and by how much it is slowed."""
        return {**self._inner.load(), "slowed": self._factor}

    def warm_up(self) -> list[tuple[int, float]]:
        """The backend's times, slowed."""
        seconds = self._inner.warm_up()
        self.answer_bytes = self._inner.answer_bytes
        return [(n, once * self._factor) for n, once in seconds]

    def submit(self, batch: Batch) -> None:
        """Start a batch."""
        self._inside += 1
        self._inner.submit(batch)

    def step(self) -> list[Done]:
        """The batches whose slowed time is over."""
        for done in self._inner.step():
            self._inside -= 1
            own_ns = done.computed_ns - done.started_ns
            started_ns = max(done.started_ns, self._busy_until_ns)
            self._busy_until_ns = started_ns + int(own_ns * self._factor)
            self._held.append(replace(done, started_ns=started_ns, computed_ns=self._busy_until_ns))
        self.answer_bytes = self._inner.answer_bytes
        finished, now_ns = [], self._clock()
        while self._held and self._held[0].computed_ns <= now_ns:
            finished.append(self._held.popleft())
        return finished

    def free_at_ns(self, now_ns: int) -> int:
        """The end of service, FAR while another batch waits already."""
        if self._inside or len(self._held) >= SLOTS:
            return FAR
        return max(self._inner.free_at_ns(now_ns), self._busy_until_ns if self._held else now_ns)

    def next_done_ns(self) -> int:
        """The end of the first service, or the backend's own."""
        own_ns = self._held[0].computed_ns if self._held else FAR
        return min(own_ns, self._inner.next_done_ns())

    def fd(self) -> int | None:
        """The backend's own."""
        return self._inner.fd()

    def discard(self) -> int:
        """The backend's own: what is held back has been computed."""
        self._held.clear()
        self._inside = self._inner.discard()
        return self._inside

    def close(self) -> None:
        """Forget what is held back."""
        self._held.clear()
        self._inner.close()
