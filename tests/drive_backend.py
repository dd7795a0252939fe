"""What the tests of backends share: drive one as a worker does, and read its answers."""

from __future__ import annotations

import select
import time

import numpy as np

from workers.backends import Backend, Done

MAX_BATCH = 6
PERCEPTRON = {"engine": "torch", "model": "perceptron", "threads": 1}


def wait(backend: Backend, deadline_s: float = 20.0) -> list[Done]:
    """What the backend finishes next, waiting as a worker does."""
    until = time.monotonic() + deadline_s
    while not (done := backend.step()):
        assert time.monotonic() < until, "the backend finished nothing"
        left_ns = backend.next_done_ns() - time.monotonic_ns()
        seconds = min(max(left_ns / 1e9, 0), 0.5)
        fd = backend.fd()
        select.select([] if fd is None else [fd], [], [], seconds)
    return done


def answers(done: Done) -> list[bytes]:
    n = len(done.batch.indices)
    blob = done.responses.blob
    assert blob.dtype == np.uint8 and blob.ndim == 1 and blob.flags.c_contiguous
    assert done.responses.sizes is None and blob.size % n == 0
    return [row.tobytes() for row in blob.reshape(n, -1)]
