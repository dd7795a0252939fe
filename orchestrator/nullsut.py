"""LoadGen against a null model inside one process: what LoadGen and Python alone can do, for `bench`.

Completions come from a second thread through the same response pool; there is no dispatcher, no link, no
worker.
Started as `python -m orchestrator.nullsut` with one JSON object on standard input; prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.dispatch import Completion
from orchestrator.loadgen import Callbacks, LoadGen
from orchestrator.query_samples import columns
from orchestrator.response_pool import ResponsePool
from workers.host import SWITCH_INTERVAL_S
from workers.protocol import Buffer

LOOK_EVERY_MS = 50


class NullSut:
    """Answers every sample with its index, four bytes."""

    def __init__(self, pool: ResponsePool, response_bytes: int) -> None:
        self._pool = pool
        self._response_bytes = max(response_bytes, 1)
        self._pending: deque[Buffer] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._asleep = False
        self._running = True
        self.completed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def issue(self, samples: Buffer) -> None:
        """LoadGen's issue callback."""
        self._pending.append(samples)
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """End the completing thread."""
        self._running = False
        os.eventfd_write(self._bell, 1)
        self._thread.join()

    def _run(self) -> None:
        heard = select.poll()
        heard.register(self._bell, select.POLLIN)
        while self._running:
            lumps = []
            while self._pending:
                lumps.append(self._pending.popleft())
            if lumps:
                self._complete(lumps)
                continue
            self._asleep = True
            if not self._pending and heard.poll(LOOK_EVERY_MS):
                os.eventfd_read(self._bell)
            self._asleep = False

    def _complete(self, lumps: list[Buffer]) -> None:
        ids, _ = columns(b"".join(lumps))
        blob = np.zeros((len(ids), self._response_bytes), np.uint8)
        self._pool.complete(Completion(ids, blob.reshape(-1), None, self._response_bytes))
        self.completed += len(ids)


def main() -> None:
    """Run one test as told on standard input."""
    order: dict[str, Any] = json.load(sys.stdin)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # LoadGen runs on this thread: Python's own handler would raise inside a callback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    loadgen = LoadGen(None)
    pool = ResponsePool(loadgen.module)
    sut = NullSut(pool, order["response_bytes"])
    out = Path(order["out_dir"])
    settings = loadgen.settings(
        order["conf_model"],
        order["scenario"],
        "performance",
        Path(order["conf_file"]),
        order["attributes"],
        {},
    )
    usage: dict[str, float] = {}

    def loaded(_indices: Any) -> None:
        gc.freeze()
        gc.disable()
        used = resource.getrusage(resource.RUSAGE_SELF)
        usage["cpu_s"] = used.ru_utime + used.ru_stime

    callbacks = Callbacks(sut.issue, loaded, lambda _: None)
    loadgen.run(settings, callbacks, order["count"], order["count"], out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - usage["cpu_s"]
    sut.stop()
    told = {
        "completed": sut.completed,
        "cpu_us_per_sample": cpu_s / max(sut.completed, 1) * 1e6,
        "max_rss_bytes": used.ru_maxrss * 1024,
    }
    print(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
