"""Scales of a network's weights from prepared samples: post-training quantisation, as the rules allow it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from workers.backends import BackendError, read_options
from workers.backends.slots import threads_of
from workers.backends.torch_network import TorchOptions, load_folded
from workers.backends.torch_quantised import Given, quantised, refuse_eight_bits
from workers.backends.torch_slots import given
from workers.library import Library
from workers.models import ModelError, calibration_methods
from workers.models.quantise import agreement
from workers.models.scales import METHODS, Method, Origin, Scales, first_fault
from workers.tasks import Task

BATCH = 16


@dataclass(frozen=True)
class Samples:
    """Samples of a prepared data set, by their indices."""

    library: Library
    indices: np.ndarray

    def batches(self, task: Task, device: torch.device) -> list[Given]:
        """The samples as the network takes them, BATCH at a time."""
        found = []
        for start in range(0, len(self.indices), BATCH):
            some = self.indices[start : start + BATCH]
            self.library.load(some)
            found.append(_moved(given(task, self.library.samples(some)), device))
            self.library.unload(some)
        return found


def calibrate(
    options: Mapping[str, Any],
    task: Task,
    samples: Samples,
    others: Samples | None,
    method: Method,
    about: Mapping[str, Any],
    heard: Callable[[int, int], None] = lambda done, total: None,
) -> Scales:
    """The scales of the weights that `options`, those of `backend`, name; BackendError if they have none.

    `about` says what the samples are, in Origin's words; on `others` 8 bits are held against fp32. `heard` is
    told how many steps are done, of how many.
    """
    with _in_fp32(options) as (network, facts, device):
        batches = samples.batches(task, device)
        try:
            parts = network.calibrated(batches, method, True, heard)
            made = Scales(
                model=facts["model"],
                model_hash=facts["model_hash"],
                weights=facts["weights"],
                weights_sha256=facts.get("weights_sha256"),
                method=method,
                samples=Origin(**about, count=len(samples.indices), **_versions(device)),
                **parts,
            )
        except ValidationError as error:
            raise BackendError(
                f"no worker could use the scales of these weights ({first_fault(error)}); look whether the "
                "weights and the samples are sound"
            ) from None
        if others is None:
            return made
        try:
            in_eight_bits = network.quantised(made, device)
        except ModelError as error:
            raise BackendError(str(error)) from None
        told = _agreement(network, in_eight_bits, others.batches(task, device))
    return made.model_copy(update={"agreement": told})


def compare(options: Mapping[str, Any], task: Task, others: Samples) -> dict[str, float]:
    """8 bits by the file of scales that `options` name, held against fp32 on `others`.

    BackendError if it is not a file of scales of these weights.
    """
    with _in_fp32(options) as (network, facts, device):
        file = (options["scales"], options.get("scales_sha256") or "")
        in_eight_bits, _ = quantised(network, facts, file, device, None)
        return _agreement(network, in_eight_bits, others.batches(task, device))


@contextlib.contextmanager
def _in_fp32(options: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any], torch.device]]:
    """The folded network that `options` name on its device, and what is known of its weights."""
    checked = read_options(TorchOptions, options)
    refuse_eight_bits(checked.model, checked.precision, checked.channels_last, checked.compile)
    device = torch.device(checked.device)
    torch.set_num_threads(threads_of(checked.threads, 1))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode(), _memory_told(checked.device):
        module, facts = load_folded(checked, options, device, torch.float32)
        yield module.to(device), facts, device


@contextlib.contextmanager
def _memory_told(device: str) -> Iterator[None]:
    """BackendError where the memory does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of the host's memory torch has no error of its own, only a text that names the allocator.
        out = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
        if not out:
            raise
        raise BackendError(
            f"the memory of the {device} device does not suffice for both precisions"
        ) from None


def method_of(model: str, precision: str, asked: Method | None) -> Method:
    """What was asked for, or the network's first; BackendError if it does not have it. Loads no weights."""
    methods = calibration_methods(model) or METHODS
    if asked is not None and asked not in methods:
        what = f"{model} in {precision}"
        raise BackendError(f"scales of {what} are found by method {' or '.join(methods)}, not by {asked}")
    return asked or methods[0]


def _moved(batch: Given, device: torch.device) -> Given:
    """On the device, and a copy: the samples may be unloaded. Counts stay on the host."""
    if isinstance(batch, tuple):
        rows, counts = batch
        return rows.clone().to(device), counts.clone()
    return batch.clone().to(device)


def _agreement(network: Any, in_eight_bits: Any, batches: Sequence[Given]) -> dict[str, float]:
    exact = torch.cat([network.scores(batch).float().cpu() for batch in batches])
    found = torch.cat([in_eight_bits.scores(batch).float().cpu() for batch in batches])
    told = getattr(network, "agreement", agreement)(found, exact)
    if not all(map(math.isfinite, told.values())):
        raise BackendError("in 8 bits the network answers with what is no number")
    return {name: round(value, 6) for name, value in told.items()}


def _versions(device: torch.device) -> dict[str, Any]:
    """What computed the scales; they may differ in the last digits elsewhere."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": name, "torch": str(torch.__version__), "threads": torch.get_num_threads()}


def unlike(library: Library, known: Samples | None, count: int) -> Samples:
    """Up to `count` samples of `library` that are not among `known`, from all over it.

    They are told apart by their bytes: a calibration list names samples of the very data set.
    """
    used = set(_hashes(known.library, known.indices)) if known is not None else set()
    found: list[int] = []
    for index in np.random.default_rng(0).permutation(library.count):
        if len(found) == count:
            break
        if not used.intersection(_hashes(library, np.array([index]))):
            found.append(int(index))
    return Samples(library, np.array(sorted(found), np.int64))


def _hashes(library: Library, indices: np.ndarray) -> list[bytes]:
    library.load(indices)
    return [hashlib.sha256(sample).digest() for sample in library.samples(indices)]


def has_cuda() -> bool:
    """Whether this host has a GPU that torch finds."""
    return torch.cuda.is_available()
