"""One contract for every backend, then what is the echo backend's own."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.drive_backend import MAX_BATCH, PERCEPTRON, answers, wait
from tests.processes import eventually
from workers.backends import FAR, Backend, BackendError, Batch, Done, open_backend, settle, slots
from workers.backends.echo import EchoBackend, EchoOptions
from workers.backends.slots import Computed
from workers.backends.slowed import Slowed
from workers.tasks import open_task
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 45
ENGINES: dict[str, dict[str, Any]] = {
    "echo": {"engine": "echo"},
    "echo, fixed service": {"engine": "echo", "service_time_us": 900, "service_time_per_sample_us": 50},
    "echo, random service": {
        "engine": "echo",
        "service_time_us": 500,
        "service_time_distribution": "exponential",
        "seed": 3,
    },
    "echo, slowed": {"engine": "echo", "service_time_us": 500},
    "torch": PERCEPTRON,
    "torch, slowed": PERCEPTRON,
    "torch, bf16": {**PERCEPTRON, "precision": "bf16"},
}
if torch.cuda.is_available():
    ENGINES |= {
        "torch, cuda": {**PERCEPTRON, "device": "cuda"},
        "torch, cuda, no graphs": {**PERCEPTRON, "device": "cuda", "cuda_graphs": False},
        "torch, cuda, fp16": {**PERCEPTRON, "device": "cuda", "precision": "fp16"},
        "torch, cuda, compiled": {**PERCEPTRON, "device": "cuda", "compile": True},
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
    if request.param.endswith("slowed"):
        opened = Slowed(opened, 3.0)
    opened.load()
    opened.warm_up()
    yield opened
    opened.close()


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


def test_what_nobody_wants_any_more_is_dropped_and_the_engine_is_free_again(
    backend: Backend, samples: Callable[[np.ndarray], list[memoryview]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert backend.discard() == 0
    submitted = 0
    while submitted < 2 and backend.free_at_ns(time.monotonic_ns()) < FAR:
        backend.submit(Batch(np.arange(2), samples(np.arange(2)), submitted))
        submitted += 1
    assert 0 <= backend.discard() <= submitted
    assert settle(backend, "w0") == 0 and not capfd.readouterr().err
    now = time.monotonic_ns()
    assert backend.step() == [] and backend.free_at_ns(now) == now
    backend.submit(Batch(np.arange(2), samples(np.arange(2)), "next"))
    assert [done.batch.ticket for done in wait(backend)] == ["next"]


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


class Stuck:
    """A slot that does not come out of its batch before it is let go."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.let_go = threading.Event()

    def open(self) -> None:
        pass

    def compute(self, samples: Sequence[memoryview]) -> Computed:
        self.let_go.wait(TIME_BUDGET_S)
        raise BackendError("let go")


def test_a_slot_that_does_not_end_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slots, "JOIN_TIMEOUT_S", 0.05)
    slot = Stuck()
    backend = slots.SlotBackend("net", open_task("null", {"count": 1}), 1, lambda: ([slot], {}))
    backend.load()
    backend.submit(Batch(np.zeros(1, np.int64), [memoryview(b"a")], None))
    for _ in range(2):
        backend.close()
    told = capfd.readouterr().err
    assert told == "net: slot-0 did not end within 0.05 s; it goes on until the process ends\n"
    slot.let_go.set()
    monkeypatch.setattr(slots, "JOIN_TIMEOUT_S", 5.0)
    backend.close()
    assert backend.fd() is None and not capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ehco"}, "did you mean 'echo'"),
        ({"engine": None}, "engines: ctranslate2, echo, onnx, torch"),
        ({"engine": "echo", "service_time_us": -1}, "not negative"),
        ({"engine": "echo", "service_time_us": float("nan")}, "finite"),
        ({"engine": "echo", "service_time_us": "1"}, "service_time_us' cannot be '1'"),
        ({"engine": "echo", "service_time_distribution": "normal"}, "fixed or exponential"),
        ({"engine": "torch"}, "set backend.model"),
        ({**PERCEPTRON, "model": "perceptrom"}, "did you mean 'perceptron'"),
        ({**PERCEPTRON, "hiden": 4}, "no option 'hiden'; options: input_shape, hidden"),
        ({**PERCEPTRON, "precision": "fp4"}, "one of fp32, fp16, bf16"),
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


# What is slowed


def test_a_slowed_backend_takes_so_many_times_as_long_back_to_back_too() -> None:
    clock = [0]
    echo = EchoBackend(EchoOptions(service_time_us=100), 4, lambda: clock[0])
    slowed = Slowed(echo, 10.0, lambda: clock[0])
    assert slowed.load()["slowed"] == 10.0
    assert dict(slowed.warm_up()) == pytest.approx({1: 1e-3, 4: 1e-3})
    done: list[Done] = []
    left = 5
    while len(done) < 5:
        if left and slowed.free_at_ns(clock[0]) <= clock[0]:
            slowed.submit(Batch(np.arange(4), [], left))
            left -= 1
        done += slowed.step()
        clock[0] += 10_000
    took_ns = [d.computed_ns - d.started_ns for d in done]
    assert took_ns == [1_000_000] * 5 and [d.batch.ticket for d in done] == [5, 4, 3, 2, 1]
    # Between two batches it stands still for as long as the loop takes to see that it is free.
    assert 5_000_000 <= done[-1].computed_ns - done[0].started_ns <= 5_200_000
    assert slowed.free_at_ns(clock[0]) <= clock[0] and slowed.next_done_ns() == FAR


def test_a_backend_that_waits_holds_nothing_of_its_last_batch(backend: Backend) -> None:
    class Loaded(list[memoryview]):
        """Samples of which we hear when nobody holds them any more."""

    samples = Loaded(task.warm_up_samples(3))
    held = weakref.ref(samples)
    backend.submit(Batch(np.arange(3), samples, None))
    del samples
    wait(backend)
    assert eventually(lambda: gc.collect() >= 0 and held() is None, 10)
