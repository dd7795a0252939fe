"""The torch engine on samples of unequal length: same answers alone and together, padded, split, on CUDA."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.drive_backend import MAX_BATCH, wait
from tests.made_ragged import HostLane, RunsTask, Sums, expected
from workers import models
from workers.backends import FAR, Backend, BackendError, Batch, Done, open_backend
from workers.backends.torch_cuda import CudaSlot
from workers.backends.torch_network import Network
from workers.backends.torch_ragged import (
    ROW_GROWTH,
    ROW_QUANTUM,
    RaggedSlot,
    full_buckets,
    row_buckets,
    split_rows,
)
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 40
TORCH = {"engine": "torch", "model": "sums", "threads": 1}
KINDS = ["sums", "halves", "eager", "hosted"]
WAYS: dict[str, dict[str, Any]] = {"cpu": {}}
if torch.cuda.is_available():
    WAYS |= {
        "cuda": {"device": "cuda"},
        "cuda, no graphs": {"device": "cuda", "cuda_graphs": False},
        "cuda, bf16": {"device": "cuda", "precision": "bf16"},
    }
task = RunsTask()


@pytest.fixture(autouse=True)
def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._MODELS, "sums", "tests.made_ragged")


def parts_of(done: Done) -> list[bytes]:
    blob, sizes = done.responses.blob, done.responses.sizes
    assert sizes is not None and sizes.sum() == blob.size
    ends = np.cumsum(sizes)
    return [blob[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]


# The contract


@pytest.fixture(params=[(way, kind) for way in WAYS for kind in KINDS], ids=lambda found: ", ".join(found))
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Backend, str]]:
    way, kind = request.param
    backend = open_backend({**TORCH, **WAYS[way], "kind": kind}, task, MAX_BATCH)
    backend.load()
    backend.warm_up()
    yield backend, kind
    backend.close()


def test_every_sample_has_its_own_answer_whatever_it_is_computed_with(
    opened: tuple[Backend, str], rng: np.random.Generator
) -> None:
    backend, kind = opened
    samples = task.made(60, 11)
    sent: dict[int, list[int]] = {}
    answered: dict[int, list[bytes]] = {}

    def take() -> None:
        for done in wait(backend):
            assert isinstance(done.batch.ticket, int)
            answered[done.batch.ticket] = parts_of(done)

    for ticket in range(40):
        while backend.free_at_ns(time.monotonic_ns()) >= FAR:
            take()
        sent[ticket] = rng.integers(0, 60, rng.integers(1, MAX_BATCH + 1)).tolist()
        indices = np.array(sent[ticket])
        backend.submit(Batch(indices, [samples[i] for i in sent[ticket]], ticket))
    while len(answered) < 40:
        take()
    for ticket, chosen in sent.items():
        assert answered[ticket] == [expected(kind, samples[i]) for i in chosen]


def test_warm_up_measures_several_sizes(opened: tuple[Backend, str]) -> None:
    times = dict(opened[0].warm_up())
    assert {1, 2, 4, MAX_BATCH} == set(times) and all(seconds > 0 for seconds in times.values())


def test_a_model_that_loses_rows_is_named() -> None:
    backend = open_backend({**TORCH, "kind": "rude"}, task, MAX_BATCH)
    backend.load()
    backend.submit(Batch(np.arange(1), task.made(1, 3), None))
    with pytest.raises(BackendError, match=r"must answer \d+ rows with \d+ rows, or with rows and counts"):
        wait(backend)
    backend.close()


def test_what_changes_its_shapes_is_not_compiled() -> None:
    backend = open_backend({**TORCH, "kind": "eager", "compile": True}, task, MAX_BATCH)
    with pytest.raises(BackendError, match=r"backend.compile cannot be used with model sums"):
        backend.load()


def test_a_batch_larger_than_the_task_s_is_refused() -> None:
    one = TensorTask({})
    one.largest_batch = 1
    options = {**TORCH, "model": "perceptron"}
    with pytest.raises(BackendError, match="workers.max_batch may be 1 at most, not 2"):
        open_backend(options, one, 2)
    open_backend(options, one, 1).close()


# CUDA's slots, on a lane without CUDA


def network(module: nn.Module, graphs: bool) -> Network:
    made = Network(module, torch.device("cpu"), torch.float32, {"model": "made"})
    made.cuda_graphs = made.padded = graphs and made.graphable
    return made


def ragged_slot(kind: str, graphs: bool = True, max_batch: int = MAX_BATCH) -> tuple[RaggedSlot, HostLane]:
    lane = HostLane()
    slot = RaggedSlot(network(Sums(kind), graphs), task, max_batch, lane)
    with torch.inference_mode():
        slot.open()
    return slot, lane


def answers_of(slot: RaggedSlot, samples: list[memoryview]) -> list[bytes]:
    with torch.inference_mode():
        made = slot.compute(samples)
    assert made.counts is not None and made.counts.sum() == len(made.outputs)
    ends = np.cumsum(made.counts)
    return [made.outputs[end - n : end].tobytes() for end, n in zip(ends, made.counts, strict=True)]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cuda_slot_answers_rows_of_real_samples_only(
    kind: str, graphs: bool, rng: np.random.Generator
) -> None:
    slot, lane = ragged_slot(kind, graphs)
    samples = task.made(50, 13)
    for _ in range(60):
        chosen = [samples[i] for i in rng.integers(0, 50, rng.integers(1, MAX_BATCH + 1))]
        assert answers_of(slot, chosen) == [expected(kind, sample) for sample in chosen]
    assert (len(lane.played) == 60) is (graphs and kind in ("sums", "halves"))


def test_the_smallest_graph_that_holds_the_rows_is_played() -> None:
    slot, lane = ragged_slot("sums")
    buckets = row_buckets(MAX_BATCH * 40)
    assert slot.facts["graphs"] == lane.captured == len(buckets) and slot.facts["most_rows"] == buckets[-1]
    for counts in ([1], [40, 24], [40, 25], [40] * MAX_BATCH):
        answers_of(slot, [memoryview(np.ones((n, 3), np.int32).tobytes()) for n in counts])
    played = [buckets[::-1][number] for number in lane.played]  # the largest was captured first
    assert played == [64, 64, 128, 240]


def test_graphs_end_where_full_batches_do_and_what_is_longer_needs_none(rng: np.random.Generator) -> None:
    """64 samples of 1 to 40 rows: 1312 rows give or take 92, while 64 of the longest are 2560."""
    slot, lane = ragged_slot("sums", max_batch=64)
    full = full_buckets(np.array(task.counts(task.made(128, 7))), 64)
    assert 2560 == slot.facts["most_rows"] > slot.facts["most_rows_in_a_graph"] == full[-1] > 1312 + 5 * 92
    assert slot.facts["graphs"] <= len({*row_buckets(full[-1]), *full})
    longest = [memoryview(np.full((40, 3), n, np.int32).tobytes()) for n in range(64)]
    assert answers_of(slot, longest) == [expected("sums", sample) for sample in longest] and not lane.played
    samples = task.made(64, 23)
    assert answers_of(slot, samples) == [expected("sums", sample) for sample in samples] and lane.played
    rows = int(task.counts(samples).sum())
    played = sorted({*row_buckets(full[-1]), *full}, reverse=True)[lane.played[0]]
    assert rows <= played < rows + 92 + ROW_QUANTUM


@pytest.mark.parametrize("kind", ["sums", "halves", "eager"])
def test_samples_longer_than_any_seen_before_are_answered_in_parts(kind: str) -> None:
    slot, _ = ragged_slot(kind)
    longer = RunsTask(longest=400).made(MAX_BATCH, 17)
    assert sum(task.counts(longer)) > slot.facts["most_rows"] < max(task.counts(longer))
    assert answers_of(slot, longer) == [expected(kind, sample) for sample in longer]


def test_the_pinned_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.backends.torch_ragged.MOST_STAGED_BYTES", 12 * 100)
    slot, _ = ragged_slot("sums")
    assert slot.facts["most_rows"] == 100
    samples = task.made(MAX_BATCH, 19)
    assert answers_of(slot, samples) == [expected("sums", sample) for sample in samples]


def test_volumes_of_their_own_sizes_need_no_graph() -> None:
    class Volumes(TensorTask):
        largest_batch = 1

        def collate(self, samples: Any, out: np.ndarray | None = None) -> np.ndarray:
            found = np.frombuffer(samples[0], np.float32).reshape(1, -1)
            if out is None or out.shape[1:] != found.shape[1:]:
                return found.copy()
            out[:] = found
            return out

    class Doubles(nn.Module):
        graphable = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    lane = HostLane()
    slot = CudaSlot(network(Doubles(), True), Volumes({}), [1], lane)
    with torch.inference_mode():
        slot.open()
        for size in (16, 5, 16, 100):
            volume = np.arange(size, dtype=np.float32)
            made = slot.compute([memoryview(volume.tobytes())])
            assert made.outputs.tolist() == [(2 * volume).tolist()] and made.counts is None
    assert slot.facts["graphs"] == 0


# Buckets and parts


@settings(max_examples=100, deadline=None)
@given(most=st.integers(1, 200_000), rows=st.integers(0, 200_000))
def test_row_buckets_hold_everything_with_little_padding(most: int, rows: int) -> None:
    buckets = row_buckets(most)
    rows = min(rows, most)
    assert buckets[-1] == most and sorted(set(buckets)) == buckets
    assert all(size % ROW_QUANTUM == 0 for size in buckets[:-1])
    padded = next(size for size in buckets if size >= rows)
    assert padded < max(rows * ROW_GROWTH, rows) + ROW_QUANTUM + 1
    assert len(buckets) <= 12 + 8 * max(0, np.log2(most / ROW_QUANTUM))


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=30), most=st.integers(1, 120))
def test_parts_are_whole_samples_in_order_and_hold_what_they_may(counts: list[int], most: int) -> None:
    found = np.array(counts)
    parts = split_rows(found, most)
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == len(counts)
    for start, stop in parts:
        total = found[start:stop].sum()
        assert stop > start and (total <= most or np.count_nonzero(found[start:stop]) == 1)
