"""How CUDA slots get a batch's loaded samples: the GPU fetches them from pinned memory or the host stacks.

One thread of the host stacked 5.7 GB/s on a machine with an H100 and four 8.3 GB/s, which int8 ResNet-50 and
DLRM outrun; the GPU fetched 42.5 GB/s from the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch

from workers.arena import ALIGNED_BYTES, Arena, LoadedSamples
from workers.backends import BackendError
from workers.library import Library
from workers.limits import memory_bytes
from workers.tasks import Task

GATHERS = ("auto", "host")
# The samples also lie in the page cache, and the networks in the same memory: half is left to them.
SHARE_OF_MEMORY = 2
WORD_BYTES = 4
WIDE_WORDS = ALIGNED_BYTES // WORD_BYTES
TRIAL_WORDS = 20_001


class Launch(Protocol):
    """See fetch_kernel.launch."""

    def __call__(
        self, table: torch.Tensor, samples: int, most_words: int, out: torch.Tensor, aligned: bool
    ) -> None: ...


class _Lane(Protocol):
    @property
    def device(self) -> torch.device: ...
    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor: ...


class Fetcher:
    """A slot's: where each sample of a batch lies, how long it is and where it belongs, told to the GPU."""

    def __init__(self, lane: _Lane, launch: Launch, max_batch: int) -> None:
        self._lane = lane
        self._launch = launch
        self._max_batch = max_batch
        self._samples = self._most_words = self._words = 0
        self._aligned = False

    def open(self) -> None:
        """Allocate; in the slot's stream."""
        self._table_host = self._lane.pinned((self._max_batch, 3), torch.int64)
        self._places = self._table_host.numpy()
        self._table = torch.zeros((self._max_batch, 3), dtype=torch.int64, device=self._lane.device)

    def takes(self, samples: Sequence[memoryview], row_bytes: int, ragged: bool) -> TypeGuard[LoadedSamples]:
        """Whether they can be fetched: each is one row of a fixed task, or whole rows of a ragged one."""
        if not isinstance(samples, LoadedSamples):
            return False
        rest = samples.sizes % row_bytes if ragged else samples.sizes - row_bytes
        return row_bytes % WORD_BYTES == 0 and not rest.any()

    def stage(self, samples: LoadedSamples) -> None:
        """Write down the next batch, whose samples go back to back."""
        n, words = len(samples), samples.sizes // WORD_BYTES
        ends = np.cumsum(words)
        self._places[:n, 0] = samples.addresses
        self._places[:n, 1] = ends - words
        self._places[:n, 2] = words
        self._samples, self._words, self._most_words = n, int(ends[-1]), int(words.max())
        self._aligned = not (words % WIDE_WORDS).any()

    def bring(self, out: torch.Tensor) -> None:
        """Let the GPU fetch it to the start of `out`, of any type and contiguous; does not wait."""
        words = out.view(-1).view(torch.uint8).view(torch.int32)
        if self._words > len(words):
            raise BackendError(f"{self._words} words of samples do not fit into a buffer of {len(words)}")
        n = self._samples
        self._table[:n].copy_(self._table_host[:n], non_blocking=True)
        self._launch(self._table, n, self._most_words, words, self._aligned)


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
        """Keep the samples of `library` that are loaded in pinned memory, if they can be fetched; facts."""
        if self.launch is not None and (library.sizes % WORD_BYTES).any():
            self.facts["gather_why"] = f"the samples are no multiples of {WORD_BYTES} bytes"
        elif self.launch is not None:
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
        launch, why = _kernel(device)
    return Gathering(launch, why, most_bytes, _pinned)


def _kernel(device: torch.device) -> tuple[Launch | None, str]:
    """The kernel's launch, or why there is none."""
    try:
        from workers.backends import fetch_kernel
    except ImportError:
        return None, "there is no Triton"
    why = trial(fetch_kernel.launch, device, _pinned)
    return (None, why) if why else (fetch_kernel.launch, "the samples come with the work")


def trial(launch: Launch, device: torch.device, pin: Callable[[int], np.ndarray]) -> str:
    """Compile `launch` in both of its ways and try it: why it cannot be used here, empty if it can."""
    try:
        given = torch.from_numpy(pin(TRIAL_WORDS * WORD_BYTES)).view(torch.int32)
        given.copy_(torch.arange(TRIAL_WORDS) * 7919)
        for words in (TRIAL_WORDS - 1, TRIAL_WORDS):
            table = torch.tensor([[given.data_ptr(), 0, words]]).to(device)
            found = torch.zeros_like(given, device=device)
            launch(table, 1, words, found, words % WIDE_WORDS == 0)
            if not torch.equal(found[:words].cpu(), given[:words]) or found[words:].any():
                return "the GPU does not read pinned memory as the host wrote it"
    except Exception as error:
        # Without a C compiler, say, Triton cannot make its launcher; what it raises is not documented.
        return f"the kernel does not run: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _pinned(size: int) -> np.ndarray:
    memory: np.ndarray = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory
