"""The torch engine: any module of workers.models on a CPU or on one CUDA device."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from workers.backends import BackendError, read_options
from workers.backends.slots import Slot, SlotBackend, padded_sizes, threads_of
from workers.backends.torch_cuda import CUDA_SLOTS, ComputeTurn, CudaSlot, Lane
from workers.backends.torch_gather import Gathering, gathering_of
from workers.backends.torch_network import Network, TorchOptions, load_network
from workers.backends.torch_quantised import Given
from workers.backends.torch_ragged import RAGGED_SLOTS, SIDE_BY_SIDE_SLOTS, RaggedSlot
from workers.backends.torch_slots import CpuSlot, given
from workers.tasks import Task


def open_engine(options: Mapping[str, Any], task: Task, max_batch: int) -> SlotBackend:
    """A torch backend with its options checked."""
    checked = read_options(TorchOptions, options)
    if not checked.model:
        raise BackendError("the torch engine needs a model: set backend.model")
    if min(checked.threads, checked.workers_on_host) < 0:
        raise BackendError("backend.threads must not be negative")

    def load() -> tuple[list[Slot], dict[str, Any]]:
        if checked.device == "cpu":
            torch.set_num_threads(threads_of(checked.threads, checked.workers_on_host))

        def samples(count: int) -> Given:
            return given(task, task.warm_up_samples(count))

        network = load_network(checked, options, len(backend.buckets), task.ragged, samples)
        backend.check_library = network.check_library
        backend.padded = network.padded and not task.ragged
        backend.side_by_side = network.side_by_side and network.device.type == "cuda"
        if backend.padded and not checked.compile:  # to compile for one size takes up to a minute
            backend.buckets = padded_sizes(max_batch)
        gathering = gathering_of(checked.gather, network.device, task, checked.workers_on_host)
        backend.adopt, backend.arranged = gathering.adopt, gathering.arranged
        return _make_slots(network, task, backend.buckets, gathering), _facts(network) | gathering.facts

    name = f"{checked.model} on {checked.device}"
    backend = SlotBackend(name, task, max_batch, load, around=torch.inference_mode)
    return backend


def _facts(network: Network) -> dict[str, Any]:
    facts = {"engine": "torch", "versions": _versions(network), "threads": torch.get_num_threads()}
    return {**network.facts, **facts}


def _make_slots(network: Network, task: Task, buckets: list[int], gathering: Gathering) -> list[Slot]:
    """The slots that fit the device: some overlap on a GPU, one is all of a CPU."""
    if network.device.type != "cuda":
        return [CpuSlot(network, task, buckets)]
    turn = ComputeTurn(network.side_by_side)
    ragged = SIDE_BY_SIDE_SLOTS if network.side_by_side else RAGGED_SLOTS
    lanes = [Lane(network.device, turn) for _ in range(ragged if task.ragged else CUDA_SLOTS)]
    if task.ragged:
        return [RaggedSlot(network, task, buckets[-1], lane, gathering.launch) for lane in lanes]
    return [CudaSlot(network, task, buckets, lane, gathering.launch) for lane in lanes]


def _versions(network: Network) -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    if network.device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions
