"""Loaded samples fetched by the GPU: the same answers as stacked ones, and only what is loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.drive_backend import MAX_BATCH, PERCEPTRON, wait
from tests.made_ragged import HostLane, RunsTask, Sums, expected
from workers import models
from workers.arena import Arena, LoadedSamples
from workers.backends import BackendError, Batch, open_backend, torch_engine, torch_gather
from workers.backends.slots import Computed, Slot, SlotBackend
from workers.backends.torch_cuda import CudaSlot
from workers.backends.torch_gather import Gathering, gathering_of, trial
from workers.backends.torch_network import Network, load_network
from workers.backends.torch_ragged import RaggedSlot
from workers.host import WorkerHost, WorkerSpec
from workers.library import Library, prepare_library
from workers.tasks import Task, counts_of, open_task
from workers.tasks.null import NullTask
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 15
NO_BOUND = 1 << 40
CUDA = torch.cuda.is_available()
fixed = TensorTask({"count": 40})
ragged = RunsTask()


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


class Fetched:
    """What the kernel does, without a GPU; how many samples and words each launch had."""

    def __init__(self) -> None:
        self.launches: list[tuple[int, int]] = []

    def __call__(
        self, table: torch.Tensor, samples: int, most_words: int, out: torch.Tensor, aligned: bool
    ) -> None:
        places = table[:samples].tolist()
        self.launches.append((samples, sum(words for *_, words in places)))
        for source, to, words in places:
            assert source % 16 == 0 and words <= most_words and to + words <= len(out)
            assert not aligned or (to % 4 == 0 and words % 4 == 0)
            ctypes.memmove(out.data_ptr() + 4 * to, source, 4 * words)


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


@pytest.mark.parametrize("task", [fixed, ragged], ids=["fixed", "ragged"])
def test_fetched_samples_are_answered_as_stacked_ones(
    task: Any, tmp_path: Path, launch: Fetched, rng: np.random.Generator
) -> None:
    backend, library = opened(task, tmp_path)
    backend.warm_up()
    launch.launches.clear()
    for _ in range(30):
        indices = rng.integers(0, 40, rng.integers(1, MAX_BATCH + 1))
        fetched = given(backend, indices, library.batch(indices))
        assert launch.launches.pop() == (len(indices), library.sizes[indices].sum() // 4)
        assert fetched == given(backend, indices, library.samples(indices)) and not launch.launches
    backend.close()


@pytest.mark.parametrize("task", [fixed, ragged], ids=["fixed", "ragged"])
def test_bytes_that_came_with_the_work_are_never_fetched(task: Any, tmp_path: Path, launch: Fetched) -> None:
    backend, library = opened(task, tmp_path)
    launch.launches.clear()
    here, others = np.arange(4), np.arange(4) + 20
    theirs = library.samples(others)
    assert given(backend, here, theirs) == given(backend, others, library.batch(others))
    assert len(launch.launches) == 1
    backend.close()


@pytest.mark.parametrize("adopt", [True, False])
@pytest.mark.parametrize("task", [fixed, ragged], ids=["fixed", "ragged"])
def test_warm_up_goes_the_way_of_the_test(task: Any, adopt: bool, tmp_path: Path, launch: Fetched) -> None:
    backend, _ = opened(task, tmp_path, adopt)
    launch.launches.clear()
    backend.warm_up()
    assert {n for n, _ in launch.launches} == (set(backend.buckets) if adopt else set())
    backend.close()


def compute(slot: RaggedSlot, samples: Any) -> Computed:
    with torch.inference_mode():
        return slot.compute(samples)


@pytest.mark.parametrize("kind", ["sums", "halves", "eager"])
def test_samples_longer_than_any_seen_before_are_fetched_in_parts(kind: str, tmp_path: Path) -> None:
    launch = Fetched()
    network = Network(Sums(kind), torch.device("cpu"), torch.float32, {"model": "made"})
    network.cuda_graphs = network.padded = network.graphable
    slot = RaggedSlot(network, ragged, MAX_BATCH, HostLane(), launch)
    with torch.inference_mode():
        slot.open()
    longer = RunsTask(longest=400).made(MAX_BATCH, 17)

    def build(writer: Any) -> None:
        for sample in longer:
            writer.add(sample)

    library = prepare_library(tmp_path / "longer", "runs", build)
    library.keep_in(Arena(library.sizes, zeros, NO_BOUND))
    library.load(np.arange(MAX_BATCH))
    launch.launches.clear()
    made = compute(slot, library.batch(np.arange(MAX_BATCH)))
    assert made.counts is not None
    ends = np.cumsum(made.counts)
    found = [made.outputs[end - n : end].tobytes() for end, n in zip(ends, made.counts, strict=True)]
    assert found == [expected(kind, sample) for sample in longer]
    assert len(launch.launches) > 1 and sum(n for n, _ in launch.launches) == MAX_BATCH
    assert max(words for _, words in launch.launches) > 3 * slot.facts["most_rows"]


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


def test_a_kernel_that_does_not_run_or_reads_something_else_is_found_out_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch, cpu = Fetched(), torch.device("cpu")
    assert not trial(launch, cpu, zeros) and len(launch.launches) == 2

    def fails(*given: Any, **more: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    assert trial(fails, cpu, zeros) == "the kernel does not run: RuntimeError: Failed to find C compiler."
    monkeypatch.setattr(ctypes, "memmove", lambda *given: None)
    assert trial(launch, cpu, zeros) == "the GPU does not read pinned memory as the host wrote it"


# Which way, and what a record says of it


def test_a_way_is_chosen_by_what_there_is_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    def facts(gather: str, device: torch.device, task: Any) -> dict[str, Any]:
        found = gathering_of(gather, device, task, 1)
        found._pin = zeros
        before = found.facts
        assert found.launch is not None or found.adopt(task.prepare(tmp_path)) == before
        return found.adopt(task.prepare(tmp_path))

    launch: tuple[Any, str] = (None, "there is no Triton")
    monkeypatch.setattr(torch_gather, "_kernel", lambda device: launch)
    assert facts("auto", cpu, fixed) == {}
    assert facts("auto", gpu, fixed) == {"gather": "host", "gather_why": "there is no Triton"}
    launch = (Fetched(), "the samples come with the work")
    assert gathering_of("auto", gpu, fixed, 1).facts == {"gather": "host", "gather_why": launch[1]}
    assert facts("auto", gpu, fixed) == {"gather": "device", "gather_why": ""}
    assert facts("host", gpu, fixed) == {"gather": "host", "gather_why": "backend.gather is host"}
    odd = facts("auto", gpu, NullTask({"sample_bytes": 6}))
    assert odd == {"gather": "host", "gather_why": "the samples are no multiples of 4 bytes"}
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


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["auto", "host"])
@pytest.mark.parametrize("task", [fixed, ragged], ids=["fixed", "ragged"])
def test_on_cuda_both_ways_answer_alike(
    task: Any, way: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    options = {"engine": "torch", "model": "sums", "kind": "sums"} if task.ragged else PERCEPTRON
    backend = open_backend({**options, "device": "cuda", "gather": way}, task, MAX_BATCH)
    assert isinstance(backend, SlotBackend)
    library = task.prepare(tmp_path)
    facts = backend.load() | backend.adopt(library)
    assert facts["gather"] == ("device" if way == "auto" else "host")
    backend.warm_up()
    for turn in range(30):
        if turn % 10 == 0:  # other memory
            library.unload_all()
            library.load(rng.permutation(40))
        indices = rng.integers(0, 40, rng.integers(1, MAX_BATCH + 1))
        batch = library.batch(indices)
        assert isinstance(batch, LoadedSamples) is (way == "auto")
        assert given(backend, indices, batch) == given(backend, indices, library.samples(indices))
    backend.close()
