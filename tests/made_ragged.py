"""A ragged task, models for it, and a lane without CUDA: what tests of the torch engine are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.backends.torch_cuda import ComputeTurn, Lane
from workers.library import Library, LibraryWriter, prepare_library
from workers.models import ModelError
from workers.protocol import Responses

WIDTH = 3
LONGEST = 40
OPTIONS = {"kind": "sums"}
GRAPHABLE = {"sums": True, "halves": True, "eager": False, "hosted": False, "rude": True}


class RunsTask:
    """Samples of 1 to LONGEST rows of WIDTH small integers; answered with the model's rows, float32."""

    name = "runs"
    ragged = True
    stacked = True
    largest_batch = 0

    def __init__(self, count: int = 40, longest: int = LONGEST) -> None:
        self.count = count
        self.longest = longest

    def prepare(self, cache: Path) -> Library:
        def build(writer: LibraryWriter) -> None:
            for sample in self.made(self.count, 5):
                writer.add(sample)

        return prepare_library(cache / "runs", self.name, build)

    def made(self, count: int, seed: int) -> list[memoryview]:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, self.longest + 1, count)
        return [memoryview(rng.integers(1, 100, (n, WIDTH), np.int32).tobytes()) for n in lengths]

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        rows = np.concatenate([np.frombuffer(sample, np.int32).reshape(-1, WIDTH) for sample in samples])
        if out is None:
            return rows
        out[: len(rows)] = rows
        return out[: len(rows)]

    def counts(self, samples: Sequence[memoryview]) -> np.ndarray:
        return np.array([len(sample) // (4 * WIDTH) for sample in samples], np.int64)

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        assert counts is not None and len(counts) == len(indices) and counts.sum() == len(outputs)
        return Responses(outputs.astype("<f4").reshape(-1).view(np.uint8), 4 * counts)

    def warm_up_samples(self, count: int) -> list[memoryview]:
        return self.made(count, 7)


class Sums(nn.Module):
    """Each row's weighted sum plus its sample's: whoever mixes up rows, samples or padding answers wrongly.

    Small integers, so float32 is exact. "halves" answers every second row of a sample only.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.graphable = GRAPHABLE[kind]
        self.host_counts = kind == "hosted"
        self.weight = nn.Parameter(torch.arange(1.0, WIDTH + 1))

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> Any:
        assert counts.device.type == ("cpu" if self.host_counts else rows.device.type)
        counts = counts.to(rows.device)
        if self.kind == "rude":
            return rows[1:].sum(1)
        places = torch.arange(len(rows), device=rows.device)
        ends = counts.cumsum(0)
        owner = torch.searchsorted(ends, places, right=True)
        own = (rows.float() * self.weight.float()).sum(1)
        totals = torch.zeros(len(counts) + 1, device=rows.device).index_add(0, owner, own)
        y = own + totals[owner]
        if self.kind != "halves":
            return y
        starts = torch.cat([ends - counts, ends[-1:]])
        kept = ((places - starts[owner]) % 2 == 0) & (owner < len(counts))
        to = torch.where(kept, kept.long().cumsum(0) - 1, len(rows))
        return torch.zeros(len(rows) + 1, device=rows.device).scatter(0, to, y)[:-1], (counts + 1) // 2


def expected(kind: str, sample: memoryview) -> bytes:
    """What the model of a kind must answer to a sample."""
    rows = np.frombuffer(sample, np.int32).reshape(-1, WIDTH)
    own = rows @ np.arange(1, WIDTH + 1)
    y = (own + own.sum()).astype("<f4")
    return bytes(y[::2].tobytes() if kind == "halves" else y.tobytes())


def build(options: Mapping[str, Any], channels_last: bool) -> nn.Module:
    if options["kind"] not in GRAPHABLE:
        raise ModelError(f"no kind {options['kind']}")
    return Sums(options["kind"])


class HostLane(Lane):
    """A lane on the CPU that runs at once what CUDA would put into a stream or a graph."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), ComputeTurn())
        self.played: list[int] = []
        self.captured = 0

    def open(self) -> None:
        pass

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        yield

    def land(self) -> None:
        pass

    def seconds(self, collate_s: float) -> tuple[float, float]:
        return collate_s, 0.0

    def capture(self, work: Callable[[], None], eager_passes: int = 1) -> Callable[[], None]:
        work()
        number, self.captured = self.captured, self.captured + 1

        def play() -> None:
            self.played.append(number)
            work()

        return play
