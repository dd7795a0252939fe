"""The echo backend: answers every sample with its own index, at once or after a simulated service time.

It is a product: `bench` measures the path with it, and a cluster can be tried before there is a model. The
clock alone simulates service (next_done_ns), nothing sleeps: one server, in order, one batch may wait.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workers.backends import FAR, BackendError, Batch, Done, read_options
from workers.protocol import Responses
from workers.tasks import Task

# The batch in service and the one that waits, as in an engine with two sets of buffers.
SLOTS = 2
INDEX_BYTES = 4
DISTRIBUTIONS = ("fixed", "exponential")


@dataclass(frozen=True)
class EchoOptions:
    """Mean service time of a batch of n: service_time_us + n * service_time_per_sample_us."""

    service_time_us: float = 0.0
    service_time_per_sample_us: float = 0.0
    service_time_distribution: str = "fixed"
    response_bytes: int = INDEX_BYTES
    seed: int = 0


class EchoBackend:
    """`response_bytes` a sample, of which the first four are its index, little-endian; the rest is zero."""

    needs_samples = False

    def __init__(
        self, options: EchoOptions, max_batch: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.max_batch = max_batch
        self.answer_bytes = max_batch * options.response_bytes
        self._options = options
        self._clock = clock
        self._rng = np.random.default_rng(options.seed)
        self._immediate = options.service_time_us == 0 and options.service_time_per_sample_us == 0
        self._running: deque[Done] = deque()
        self._free_ns = 0

    def load(self) -> dict[str, Any]:
        """Nothing to load; the hash stands for the options, so that workers with other options differ."""
        described = repr(sorted(asdict(self._options).items()))
        return {
            "engine": "echo",
            "model": "echo",
            "model_hash": hashlib.sha256(described.encode()).hexdigest(),
            "weights": "none",
            "device": "none",
            "precision": "none",
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
        }

    def warm_up(self) -> list[tuple[int, float]]:
        """The mean service times; no time passes."""
        sizes = sorted({1, self.max_batch})
        return [(n, max(self._mean_ns(n), 1000) / 1e9) for n in sizes]

    def submit(self, batch: Batch) -> None:
        """Begin service when the server is free."""
        now = self._clock()
        responses = self._responses(batch.indices)
        if self._immediate:
            self._running.append(Done(batch, responses, now, self._clock()))
            return
        if len(self._running) >= SLOTS:
            raise BackendError(f"a batch of {len(batch.indices)} was submitted while every slot was taken")
        started = max(now, self._free_ns)
        self._free_ns = started + self._service_ns(len(batch.indices))
        self._running.append(Done(batch, responses, started, self._free_ns))

    def step(self) -> list[Done]:
        """The batches whose service is over by now."""
        if self._immediate:
            done = list(self._running)
            self._running.clear()
            return done
        done, now = [], self._clock()
        while self._running and self._running[0].computed_ns <= now:
            done.append(self._running.popleft())
        return done

    def free_at_ns(self, now_ns: int) -> int:
        """The end of service, FAR while another batch waits already."""
        if self._immediate or not self._running:
            return now_ns
        return max(now_ns, self._free_ns) if len(self._running) < SLOTS else FAR

    def next_done_ns(self) -> int:
        """The end of the first service."""
        return self._running[0].computed_ns if self._running else FAR

    def fd(self) -> int | None:
        """Only the clock tells."""
        return None

    def discard(self) -> int:
        """What is in service and what waits for it."""
        self.step()
        return len(self._running)

    def close(self) -> None:
        """Forget what runs."""
        self._running.clear()

    def _mean_ns(self, n: int) -> float:
        return (self._options.service_time_us + n * self._options.service_time_per_sample_us) * 1e3

    def _service_ns(self, n: int) -> int:
        """One service time; a sum of n exponential times is one gamma draw."""
        if self._options.service_time_distribution == "fixed":
            return int(self._mean_ns(n))
        batch = self._options.service_time_us * self._rng.standard_exponential()
        samples = self._options.service_time_per_sample_us * self._rng.standard_gamma(n)
        return int((batch + samples) * 1e3)

    def _responses(self, indices: np.ndarray) -> Responses:
        width = self._options.response_bytes
        if width == INDEX_BYTES:
            return Responses(indices.astype("<i4").view(np.uint8))
        blob = np.zeros((len(indices), width), np.uint8)
        shown = min(width, INDEX_BYTES)
        blob[:, :shown] = indices.astype("<i4").view(np.uint8).reshape(-1, INDEX_BYTES)[:, :shown]
        return Responses(blob.reshape(-1))


def open_engine(options: Mapping[str, Any], task: Task, max_batch: int) -> EchoBackend:
    """An echo backend; it needs nothing of the task."""
    checked = read_options(EchoOptions, options)
    chosen, known = checked.service_time_distribution, " or ".join(DISTRIBUTIONS)
    if chosen not in DISTRIBUTIONS:
        raise BackendError(f"backend.service_time_distribution is {known}, not {chosen!r}")
    times = checked.service_time_us, checked.service_time_per_sample_us
    if min(*times, checked.response_bytes, checked.seed) < 0 or not all(map(math.isfinite, times)):
        raise BackendError("service times, response_bytes and seed of echo must be finite and not negative")
    return EchoBackend(checked, max_batch)
