"""Loaded samples fetched by the GPU's copy engines: answered as stacked ones, and only what is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.drive_backend import MAX_BATCH, PERCEPTRON, wait
from tests.made_copies import NO_BOUND, Fetched, zeros
from tests.made_ragged import WIDTH, HostLane, RunsTask, Sums, expected
from workers import models
from workers.arena import Arena, LoadedSamples
from workers.backends import BackendError, Batch, open_backend, torch_engine, torch_gather
from workers.backends.slots import Computed, Slot, SlotBackend
from workers.backends.torch_cuda import ComputeTurn, CudaSlot, Lane
from workers.backends.torch_gather import Fetcher, Gathering, gathering_of
from workers.backends.torch_network import Network, load_network
from workers.backends.torch_ragged import RaggedSlot
from workers.host import WorkerHost, WorkerSpec
from workers.library import Library, LibraryWriter, prepare_library
from workers.tasks import Task, counts_of, open_task
from workers.tasks.null import NullTask
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 15
CUDA = torch.cuda.is_available()


class OddTask(RunsTask):
    """Rows of WIDTH bytes."""

    name = "odd"

    def prepare(self, cache: Path) -> Library:
        return library_of(cache / "odd", self.made(self.count, 5))

    def made(self, count: int, seed: int) -> list[memoryview]:
        wide = super().made(count, seed)
        return [memoryview(np.frombuffer(sample, np.int32).astype(np.uint8).tobytes()) for sample in wide]

    def collate(self, samples: Sequence[memoryview], out: np.ndarray | None = None) -> np.ndarray:
        rows = np.frombuffer(b"".join(samples), np.uint8).reshape(-1, WIDTH)
        if out is None:
            return rows
        out[: len(rows)] = rows
        return out[: len(rows)]

    def counts(self, samples: Sequence[memoryview]) -> np.ndarray:
        return np.array([len(sample) // WIDTH for sample in samples], np.int64)


fixed = TensorTask({"count": 40})
ragged = RunsTask()
odd = OddTask()
every_task = pytest.mark.parametrize("task", [fixed, ragged, odd], ids=["fixed", "ragged", "odd"])


def library_of(folder: Path, samples: list[memoryview]) -> Library:
    def build(writer: LibraryWriter) -> None:
        for sample in samples:
            writer.add(sample)

    return prepare_library(folder, "made", build)


@pytest.fixture(autouse=True)
def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._MODELS, "sums", "tests.made_ragged")


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """The torch engine has one slot as on a GPU, which fetches."""
    found = Fetched()
    gathering = Gathering(found, "the samples come with the work", NO_BOUND, zeros)

    def load(*given: Any) -> Network:
        network = load_network(*given)
        network.cuda_graphs = network.padded = True
        return network

    def slots(network: Network, task: Task, buckets: list[int], gathering: Gathering) -> list[Slot]:
        kind = RaggedSlot if task.ragged else CudaSlot
        most: Any = buckets[-1] if task.ragged else buckets
        return [kind(network, task, most, HostLane(), gathering.launch)]

    monkeypatch.setattr(torch_engine, "load_network", load)
    monkeypatch.setattr(torch_engine, "_make_slots", slots)
    monkeypatch.setattr(torch_engine, "gathering_of", lambda *given: gathering)
    return found


def opened(task: Any, tmp_path: Path, adopt: bool = True) -> tuple[SlotBackend, Library]:
    options = {"engine": "torch", "model": "sums", "kind": "sums"} if task.ragged else PERCEPTRON
    backend = open_backend({**options, "threads": 1}, task, MAX_BATCH)
    assert isinstance(backend, SlotBackend)
    backend.load()
    library = task.prepare(tmp_path)
    if adopt:
        backend.adopt(library)
    library.load(np.arange(40))
    return backend, library


def given(backend: SlotBackend, indices: np.ndarray, samples: Any) -> bytes:
    backend.submit(Batch(indices, samples, None))
    return wait(backend)[0].responses.blob.tobytes()


@every_task
def test_fetched_samples_are_answered_as_stacked_ones(
    task: Any, tmp_path: Path, launch: Fetched, rng: np.random.Generator
) -> None:
    backend, library = opened(task, tmp_path)
    backend.warm_up()
    launch.launches.clear()
    for _ in range(30):
        indices = rng.integers(0, 40, rng.integers(1, MAX_BATCH + 1))
        fetched = given(backend, indices, library.batch(indices))
        assert launch.launches.pop() == (len(indices), library.sizes[indices].sum())
        assert fetched == given(backend, indices, library.samples(indices)) and not launch.launches
    backend.close()


@every_task
def test_bytes_that_came_with_the_work_are_never_fetched(task: Any, tmp_path: Path, launch: Fetched) -> None:
    backend, library = opened(task, tmp_path)
    launch.launches.clear()
    here, others = np.arange(4), np.arange(4) + 20
    theirs = library.samples(others)
    assert given(backend, here, theirs) == given(backend, others, library.batch(others))
    assert len(launch.launches) == 1
    backend.close()


@pytest.mark.parametrize("adopt", [True, False])
@every_task
def test_warm_up_goes_the_way_of_the_test(task: Any, adopt: bool, tmp_path: Path, launch: Fetched) -> None:
    backend, _ = opened(task, tmp_path, adopt)
    launch.launches.clear()
    backend.warm_up()
    assert {n for n, _ in launch.launches} == (set(backend.buckets) if adopt else set())
    backend.close()


def ragged_slot(kind: str, launch: Fetched) -> RaggedSlot:
    network = Network(Sums(kind), torch.device("cpu"), torch.float32, {"model": "made"})
    network.cuda_graphs = network.padded = network.graphable
    slot = RaggedSlot(network, ragged, MAX_BATCH, HostLane(), launch)
    with torch.inference_mode():
        slot.open()
    launch.launches.clear()
    return slot


def pinned(folder: Path, samples: list[memoryview]) -> Library:
    library = library_of(folder / "pinned", samples)
    library.keep_in(Arena(library.sizes, zeros, NO_BOUND))
    library.load(np.arange(len(samples)))
    return library


def compute(slot: RaggedSlot, samples: Any) -> Computed:
    with torch.inference_mode():
        return slot.compute(samples)


@pytest.mark.parametrize("kind", ["sums", "halves", "eager"])
def test_samples_longer_than_any_seen_before_are_fetched_in_parts(kind: str, tmp_path: Path) -> None:
    launch = Fetched()
    slot = ragged_slot(kind, launch)
    longer = RunsTask(longest=400).made(MAX_BATCH, 17)
    library = pinned(tmp_path, longer)
    made = compute(slot, library.batch(np.arange(MAX_BATCH)))
    assert made.counts is not None
    ends = np.cumsum(made.counts)
    found = [made.outputs[end - n : end].tobytes() for end, n in zip(ends, made.counts, strict=True)]
    assert found == [expected(kind, sample) for sample in longer]
    assert len(launch.launches) > 1 and sum(n for n, _ in launch.launches) == MAX_BATCH
    assert max(size for _, size in launch.launches) > 4 * WIDTH * slot.facts["most_rows"]


@pytest.mark.parametrize("longest", [40, 400])
def test_a_batch_is_asked_once_whether_it_can_be_fetched(
    longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    takes = Fetcher.takes

    def counted(self: Fetcher, samples: Any, row_bytes: int, ragged: bool) -> bool:
        asked.append(len(samples))
        return takes(self, samples, row_bytes, ragged)

    monkeypatch.setattr(Fetcher, "takes", counted)
    launch = Fetched()
    slot = ragged_slot("sums", launch)
    library = pinned(tmp_path, RunsTask(longest=longest).made(MAX_BATCH, 17))
    for samples in (library.batch(np.arange(MAX_BATCH)), library.samples(np.arange(MAX_BATCH))):
        compute(slot, samples)
    assert asked == [MAX_BATCH] * 2 and (len(launch.launches) > 1) is (longest == 400)


def test_samples_of_another_size_than_a_row_are_the_host_s_to_refuse(tmp_path: Path, launch: Fetched) -> None:
    backend, _ = opened(fixed, tmp_path)
    launch.launches.clear()
    memory = zeros(64)
    samples = LoadedSamples(
        np.array([memory.ctypes.data]), np.array([32]), lambda: [memoryview(bytes(32))], (memory,)
    )
    with pytest.raises(BackendError, match="failed on a batch of 1: ValueError"):
        given(backend, np.arange(1), samples)
    assert not launch.launches
    backend.close()


class Stream:
    """A stream of CUDA, which somebody may wait for in vain."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("broken", [False, True])
def test_a_batch_that_fails_waits_for_the_copies_that_it_has_launched(
    monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    lane = Lane(torch.device("cpu"), ComputeTurn())
    stream: Any = Stream(broken)
    lane._stream = stream
    with lane.streaming():
        pass
    assert stream.waited == 0  # land() has waited already
    with pytest.raises(BackendError, match="its own reason"), lane.streaming():
        raise BackendError("its own reason")
    assert stream.waited == 1


# Which way, and what a record says of it


def test_a_way_is_chosen_by_what_there_is_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    def facts(gather: str, device: torch.device, task: Any) -> dict[str, Any]:
        found = gathering_of(gather, device, task, 1)
        found._pin = zeros
        before = found.facts
        assert found.launch is not None or found.adopt(task.prepare(tmp_path)) == before
        return found.adopt(task.prepare(tmp_path))

    launch: tuple[Any, str] = (None, "no such copies")
    monkeypatch.setattr(torch_gather, "_copies", lambda device: launch)
    assert facts("auto", cpu, fixed) == {}
    assert facts("auto", gpu, fixed) == {"gather": "host", "gather_why": "no such copies"}
    launch = (Fetched(), "the samples come with the work")
    assert gathering_of("auto", gpu, fixed, 1).facts == {"gather": "host", "gather_why": launch[1]}
    assert facts("auto", gpu, fixed) == {"gather": "device", "gather_why": ""}
    assert facts("host", gpu, fixed) == {"gather": "host", "gather_why": "backend.gather is host"}
    assert facts("auto", gpu, NullTask({"sample_bytes": 7})) == {"gather": "device", "gather_why": ""}
    itself = RunsTask()
    itself.stacked = False
    assert facts("auto", gpu, itself)["gather_why"] == "task runs lays its samples out itself"
    with pytest.raises(BackendError, match=r"backend.gather cannot be 'gpu'; it is one of auto, host"):
        gathering_of("gpu", gpu, fixed, 1)


@pytest.mark.parametrize("needs_library", [True, False])
def test_a_worker_s_facts_say_how_it_gathers(tmp_path: Path, launch: Fetched, needs_library: bool) -> None:
    spec = WorkerSpec(
        "w0", "tensor", {"count": 40}, PERCEPTRON, MAX_BATCH, cache=str(tmp_path), needs_library=needs_library
    )
    host = WorkerHost(spec)
    facts = host.load()
    host.close()
    came = {"gather": "host", "gather_why": "the samples come with the work"}
    assert facts.items() >= ({"gather": "device", "gather_why": ""} if needs_library else came).items()


TASKS: dict[str, dict[str, Any]] = {
    "coco-300": {"generated": 3},
    "criteo": {"generated": 3},
    "imagenet": {"generated": 3},
    "librispeech": {"generated": 3},
    "brats": {"generated": 3, "shape": [16, 16, 16]},
    "null": {"sample_bytes": 12},
    "squad": {"generated": 3},
    "tensor": {},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_says_so_stacks_its_samples_bytes_and_nothing_else(name: str) -> None:
    task = open_task(name, TASKS[name])
    samples = task.warm_up_samples(2)
    rows = task.collate(samples)
    assert (rows.tobytes() == b"".join(samples)) is task.stacked
    if task.stacked and task.ragged:
        counts = [sample.nbytes // rows[:1].nbytes for sample in samples]
        assert counts_of(task, samples).tolist() == counts


# On a GPU

on_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


@on_cuda
@pytest.mark.parametrize("way", ["auto", "host"])
@every_task
def test_on_cuda_both_ways_answer_alike(
    task: Any, way: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    options = {"engine": "torch", "model": "sums", "kind": "sums"} if task.ragged else PERCEPTRON
    backend = open_backend({**options, "device": "cuda", "gather": way}, task, MAX_BATCH)
    assert isinstance(backend, SlotBackend)
    library = task.prepare(tmp_path)
    facts = backend.load() | backend.adopt(library)
    assert facts["gather"] == ("device" if way == "auto" else "host"), facts["gather_why"]
    backend.warm_up()
    for turn in range(30):
        if turn % 10 == 0:  # other memory
            library.unload_all()
            library.load(rng.permutation(40))
        n = {0: 1, 1: MAX_BATCH, 2: 1}.get(turn % 10, int(rng.integers(1, MAX_BATCH + 1)))
        indices, others = rng.integers(0, 40, n), rng.integers(0, 40, n)
        batch, theirs = library.batch(indices), library.samples(others)
        assert isinstance(batch, LoadedSamples) is (way == "auto")
        assert given(backend, indices, batch) == given(backend, indices, library.samples(indices))
        # What came with the work is computed, whatever is loaded under its indices.
        assert given(backend, indices, theirs) == given(backend, others, library.batch(others))
    backend.close()
