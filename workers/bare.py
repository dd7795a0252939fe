"""A backend in a bare loop: batch after batch as fast as it takes them, without LoadGen, link or network."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from workers.backends import FAR, Backend, Batch, settle
from workers.library import Library
from workers.tasks import Task, counts_of
from workers.waiting import wait_readable

LONGEST_WAIT_NS = 200_000_000


def bare_loop(
    backend: Backend, library: Library | None, order: np.ndarray, ragged: Task | None
) -> dict[str, Any]:
    """Compute the samples `order` int64 (n,) in batches of max_batch; samples, batches, seconds and rows.

    The clock runs from the first submit to the last answer, as LoadGen's does in Offline. `library` None: the
    backend needs no samples. `ragged` None: samples have no rows to count.
    """
    rows = None
    if library is not None:
        drawn, times = np.unique(order, return_counts=True)
        library.load(drawn)
        if ragged is not None:
            rows = int(counts_of(ragged, library.samples(drawn)) @ times)
    batches = _batches(library, order, backend.max_batch)
    gc.collect()
    gc.disable()  # as in a test
    try:
        count, seconds = _run(backend, batches)
    finally:
        settle(backend, "the bare loop")  # holds nothing, unless the engine has failed
        gc.enable()
        if library is not None:
            library.unload_all()
    return {"samples": len(order), "batches": count, "seconds": seconds, "rows": rows}


def _batches(library: Library | None, order: np.ndarray, max_batch: int) -> Iterator[Batch]:
    for start in range(0, len(order), max_batch):
        indices = order[start : start + max_batch]
        yield Batch(indices, [] if library is None else library.batch(indices), None)


def _run(backend: Backend, batches: Iterator[Batch]) -> tuple[int, float]:
    """(batches, seconds); the next batch is made ready while the engine computes the last."""
    following = next(batches, None)
    count = running = 0
    began_ns = ended_ns = time.monotonic_ns()
    while following is not None or running:
        submitted = following is not None and backend.free_at_ns(time.monotonic_ns()) < FAR
        if submitted and following is not None:
            backend.submit(following)
            count, running = count + 1, running + 1
            following = next(batches, None)
        done = backend.step()
        if done:
            running -= len(done)
            ended_ns = time.monotonic_ns()
        elif not submitted:
            _wait(backend)
    return count, (ended_ns - began_ns) / 1e9


def _wait(backend: Backend) -> None:
    """Sleep until the backend has something."""
    left_ns = backend.next_done_ns() - time.monotonic_ns()
    fd = backend.fd()
    wait_readable([] if fd is None else [fd], min(max(left_ns, 0), LONGEST_WAIT_NS))
