"""How CUDA slots get a batch's loaded samples: copied one by one from pinned memory, or stacked by the host.

On a machine with an H100 one thread of the host stacked 5.7 GB/s and four 8.3 GB/s, which int8 ResNet-50 and
DLRM outrun. The GPU's copy engines brought 128 samples of 150,528 bytes in one call with 54.4 GB/s (54.6 is
what one copy of a ready batch makes) and 1,024 of 42,120 bytes with 54.0; beside a matmul, which kept 99.5
and 98.4 % of its speed, with 54.0 and 46.7. The calls took 136 and 494 us of the host, Python not locked.
A kernel of 32 programs that read the same memory had 48.5 and 46.7 alone, 12.0 and 26.6 beside the matmul.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch

from workers.arena import Arena, LoadedSamples
from workers.backends import BackendError
from workers.backends.batch_copy import Launch, batch_copy, loaded_runtime
from workers.library import Library
from workers.limits import memory_bytes
from workers.tasks import Task

GATHERS = ("auto", "host")
# The samples also lie in the page cache, and the networks in the same memory: half is left to them.
SHARE_OF_MEMORY = 2
# Odd ones, one of several bursts of PCIe, one of a photo and one of no bytes at all.
TRIAL_SIZES = (1, 4097, 0, 150_528, 3, 64, 42_121)


class Fetcher:
    """A slot's: where each sample of a batch lies, how long it is and where it belongs."""

    def __init__(self, launch: Launch, max_batch: int) -> None:
        self._launch = launch
        self._table = np.zeros((4, max_batch), np.uint64)
        self._copies = self._bytes = 0

    def takes(self, samples: Sequence[memoryview], row_bytes: int, ragged: bool) -> TypeGuard[LoadedSamples]:
        """Whether they can be fetched: each is one row of a fixed task, or whole rows of a ragged one."""
        if not isinstance(samples, LoadedSamples):
            return False
        rest = samples.sizes % row_bytes if ragged else samples.sizes - row_bytes
        return not rest.any()

    def stage(self, samples: LoadedSamples) -> None:
        """Write down the next batch, whose samples go back to back; one of 0 bytes is no copy.

        CUDA says nothing of copies of 0 bytes here, and forbids them in the same call for volumes.
        """
        addresses, sizes = samples.addresses, samples.sizes
        if not sizes.all():
            addresses, sizes = addresses[sizes > 0], sizes[sizes > 0]
        ends = np.cumsum(sizes)
        n = self._copies = len(sizes)
        self._bytes = int(ends[-1]) if n else 0
        self._table[0, :n], self._table[1, :n], self._table[2, :n] = addresses, sizes, ends - sizes

    def bring(self, out: torch.Tensor) -> None:
        """Have it copied to the start of `out`, of any type and contiguous; does not wait."""
        place, n = out.view(-1), self._copies
        if self._bytes > place.nbytes:
            raise BackendError(f"{self._bytes} bytes of samples do not fit into a buffer of {place.nbytes}")
        if n:
            sources, sizes, starts, destinations = self._table[:, :n]
            np.add(starts, place.data_ptr(), out=destinations)
            self._launch(destinations, sources, sizes)


class Gathering:
    """The way that an engine gathers loaded samples; if the host stacks, `launch` is None and `why` tells."""

    def __init__(
        self, launch: Launch | None, why: str, most_bytes: int, pin: Callable[[int], np.ndarray]
    ) -> None:
        self.launch = launch
        self.facts: dict[str, Any] = {"gather": "host", "gather_why": why} if why else {}
        self._most_bytes = most_bytes
        self._pin = pin
        self._adopted = False

    def adopt(self, library: Library) -> dict[str, Any]:
        """Keep the samples of `library` that are loaded in pinned memory, if they are fetched; facts."""
        if self.launch is not None:
            library.keep_in(Arena(library.sizes, self._pin, self._most_bytes))
            self.facts = {"gather": "device", "gather_why": ""}
            self._adopted = True
        return self.facts

    def arranged(self, samples: list[memoryview]) -> Sequence[memoryview]:
        """Samples of warm-up as those of a test will lie."""
        if not self._adopted:
            return samples
        offsets = np.cumsum([0, *(sample.nbytes for sample in samples)])
        arena = Arena(np.diff(offsets), self._pin, self._most_bytes)
        everything = np.arange(len(samples))
        arena.load(everything, memoryview(b"".join(samples)), offsets)
        return arena.batch(everything, lambda: samples) or samples


def gathering_of(gather: str, device: torch.device, task: Task, workers_on_host: int) -> Gathering:
    """What `backend.gather` comes to here; BackendError if it is neither of GATHERS."""
    if gather not in GATHERS:
        raise BackendError(f"backend.gather cannot be {gather!r}; it is one of {', '.join(GATHERS)}")
    most_bytes = memory_bytes() // SHARE_OF_MEMORY // max(workers_on_host, 1)
    launch, why = None, ""
    if device.type != "cuda":
        pass
    elif gather == "host":
        why = "backend.gather is host"
    elif not task.stacked:
        why = f"task {task.name} lays its samples out itself"
    else:
        launch, why = _copies(device)
    return Gathering(launch, why, most_bytes, _pinned)


def _copies(device: torch.device) -> tuple[Launch | None, str]:
    """What copies a batch, or why nothing does."""
    try:
        launch = batch_copy(loaded_runtime())
    except (BackendError, OSError) as error:
        return None, str(error)
    why = trial(launch, device, _pinned)
    return (None, why) if why else (launch, "the samples come with the work")


def trial(launch: Launch, device: torch.device, pin: Callable[[int], np.ndarray]) -> str:
    """Fetch a few samples in batches of several sizes: why `launch` cannot be used, empty if it can."""
    offsets = np.cumsum([0, *TRIAL_SIZES])
    data = np.random.default_rng(1).integers(0, 256, offsets[-1], np.uint8)
    arena = Arena(np.array(TRIAL_SIZES), pin, int(2 * offsets[-1]))
    arena.load(np.arange(len(TRIAL_SIZES)), memoryview(data), offsets)
    fetcher = Fetcher(launch, len(TRIAL_SIZES))
    try:
        with _side_stream(device):
            for count in (len(TRIAL_SIZES), 1, 4):
                indices = np.arange(len(TRIAL_SIZES))[::-1][:count]
                samples = arena.batch(indices, list)
                if samples is None:
                    return f"pinned memory cannot be had: {arena.refused}"
                wanted = np.concatenate([data[offsets[i] : offsets[i + 1]] for i in indices])
                found = torch.zeros(len(data) + 1, dtype=torch.uint8, device=device)
                fetcher.stage(samples)
                fetcher.bring(found)
                came = found.cpu().numpy()
                if not np.array_equal(came[: len(wanted)], wanted) or came[len(wanted) :].any():
                    return "the GPU does not read pinned memory as the host wrote it"
    except (BackendError, RuntimeError) as error:  # torch's and CUDA's own are RuntimeErrors
        return f"samples cannot be copied as a batch: {(str(error).splitlines() or [''])[0]}"
    return ""


def _side_stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    stream: contextlib.AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream(device))
    return stream


def _pinned(size: int) -> np.ndarray:
    memory: np.ndarray = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory
