"""Engines that compute batches, one each, never one per model; they know neither LoadGen nor the link."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar, get_type_hints

import numpy as np

from workers.protocol import Responses
from workers.tasks import Task
from workers.waiting import wait_readable

# "Never": later than any time.monotonic_ns().
FAR = 2**62
# Longer than a batch of any benchmark; whoever waits for a worker waits for more (host.STOP_TIMEOUT_S).
SETTLE_NS = 60_000_000_000
_LOOK_NS = 10_000_000

_ENGINES = {
    "ctranslate2": "workers.backends.ctranslate2_engine",
    "echo": "workers.backends.echo",
    "onnx": "workers.backends.onnx_engine",
    "torch": "workers.backends.torch_engine",
}

Options = TypeVar("Options")


class BackendError(Exception):
    """A backend cannot be built or has failed; the text gives the cause and the batch size."""


@dataclass(slots=True)
class Batch:
    """Samples computed together: `indices` int64 (n,), their bytes, and a ticket, handed back as it came.

    `samples` alone says where the bytes are: LoadedSamples, from Library.batch, are those of the library; any
    other sequence holds the bytes themselves (in value mode those that came with the work), and they count.
    `keep` copies responses uint8 that lie in the engine's own buffers to where they may stay.
    """

    indices: np.ndarray
    samples: Sequence[memoryview]
    ticket: object
    keep: Callable[[np.ndarray], np.ndarray] = np.copy


@dataclass(slots=True)
class Done:
    """A computed batch; both times are time.monotonic_ns(): taken up by the engine, responses ready."""

    batch: Batch
    responses: Responses
    started_ns: int
    computed_ns: int


class Backend(Protocol):
    """One engine with one model on one device. One thread calls all methods."""

    max_batch: int
    needs_samples: bool  # False: Batch.samples may be empty
    answer_bytes: int  # the responses of the largest batch so far, of warm-up too

    def load(self) -> dict[str, Any]:
        """Build the model; returns model_hash, weights, device, precision and versions, for comparison."""

    def warm_up(self) -> list[tuple[int, float]]:
        """Compute random batches of several sizes, 1 and max_batch too: [(batch size, seconds)]. Untimed."""

    def submit(self, batch: Batch) -> None:
        """Start a batch; never blocks long. Only while free_at_ns() is not FAR."""

    def step(self) -> list[Done]:
        """What has finished since the last call; never blocks. BackendError once the engine has failed."""

    def free_at_ns(self, now_ns: int) -> int:
        """When another submit is useful: now if idle, near the running batch's end, FAR if none is open."""

    def next_done_ns(self) -> int:
        """When step() will have something, FAR if nothing runs or fd() tells."""

    def fd(self) -> int | None:
        """A file descriptor that is readable when step() has something; None if only next_done_ns tells."""

    def discard(self) -> int:
        """Drop what has finished: how many batches are still computed. Never blocks, never raises.

        Also once the engine has failed: one of its batches may have, while others go on.
        """

    def close(self) -> None:
        """Stop threads and free the device."""


def settle(backend: Backend, who: str, limit_ns: int = SETTLE_NS) -> int:
    """Wait until the engine reads and writes no batch's memory any more, whose answers nobody wants.

    How many it still computes when the time is over, which is then told.
    """
    until_ns = time.monotonic_ns() + limit_ns
    while (left := backend.discard()) and (left_ns := until_ns - time.monotonic_ns()) > 0:
        done_ns = max(backend.next_done_ns() - time.monotonic_ns(), 0)
        fd = backend.fd()
        wait_readable([] if fd is None else [fd], min(done_ns, left_ns, _LOOK_NS))
    if left:
        what = f"{left} of its batches {'is' if left == 1 else 'are'} still in the engine"
        told = f"{who}: {what} after {limit_ns / 1e9:g} s, and waited for no longer"
        with contextlib.suppress(OSError):  # nobody may read it; that they are there must be known
            print(told, file=sys.stderr, flush=True)
    return left


def open_backend(options: Mapping[str, Any], task: Task, max_batch: int) -> Backend:
    """The engine that `options["engine"]` names, not loaded yet; BackendError gives the nearest name."""
    name = options.get("engine")
    if name not in _ENGINES:
        close = difflib.get_close_matches(str(name), _ENGINES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise BackendError(f"there is no engine {name!r}{hint}; engines: {', '.join(sorted(_ENGINES))}")
    if max_batch < 1:
        raise BackendError(f"max_batch must be 1 or more, not {max_batch}")
    if 0 < task.largest_batch < max_batch:
        most = f"workers.max_batch may be {task.largest_batch} at most, not {max_batch}"
        raise BackendError(f"a batch of task {task.name} holds {task.largest_batch} samples: {most}")
    try:
        module = importlib.import_module(_ENGINES[name])
    except ImportError as error:
        raise BackendError(f"engine {name!r} needs {error.name or error}; pip install {error.name}") from None
    backend: Backend = module.open_engine(options, task, max_batch)
    return backend


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """The engine's own options out of the manifest's `backend` section; null means the default.

    Keys of other engines are passed over; the manifest reader refuses unknown ones. BackendError: wrong type.
    """
    types = get_type_hints(kind)
    chosen = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = options.get(field.name)
        if value is None:
            continue
        wanted = types[field.name]
        if isinstance(value, int) and not isinstance(value, bool) and wanted is float:
            value = float(value)
        if (isinstance(value, bool) and wanted is not bool) or not isinstance(value, wanted):
            raise BackendError(f"backend option {field.name!r} cannot be {value!r}")
        chosen[field.name] = value
    return kind(**chosen)
