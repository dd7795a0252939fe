"""The onnx engine: the reference's ONNX file through onnxruntime, on a CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.backends import BackendError, read_options
from workers.backends.onnx_session import OnnxNetwork, OnnxOptions
from workers.backends.slots import Computed, Slot, SlotBackend, threads_of
from workers.tasks import Task

# A session may be run from several threads: on a GPU the copies of one batch overlap the compute of another.
SLOTS = {"cpu": 1, "cuda": 2}


class OnnxSlot:
    """One batch in flight through a session that all slots share."""

    def __init__(self, network: OnnxNetwork) -> None:
        self._network = network
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        """Nothing of its own."""

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        """See Slot."""
        return self._network.compute(samples)


def open_engine(options: Mapping[str, Any], task: Task, max_batch: int) -> SlotBackend:
    """An onnx backend with its options checked."""
    checked = read_options(OnnxOptions, options)
    if not checked.weights:
        raise BackendError("the onnx engine needs a file: set backend.weights")
    if min(checked.threads, checked.workers_on_host) < 0:
        raise BackendError("backend.threads must not be negative")
    if checked.device not in SLOTS:
        raise BackendError(f"backend.device cannot be {checked.device!r}; it is one of {', '.join(SLOTS)}")
    if not hasattr(task, "onnx_inputs"):
        raise BackendError(
            f"task {task.name!r} cannot feed an ONNX file: its reference has none; use engine torch"
        )

    def load() -> tuple[list[Slot], dict[str, Any]]:
        threads = threads_of(checked.threads, checked.workers_on_host)
        network = OnnxNetwork(checked, task, max_batch, threads)  # type: ignore[arg-type]
        return [OnnxSlot(network) for _ in range(SLOTS[checked.device])], network.facts

    return SlotBackend(f"{checked.weights} on {checked.device}", task, max_batch, load)
