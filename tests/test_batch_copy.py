"""A batch's samples copied in one call: as each CUDA runtime wants it, every byte, and nothing around it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.made_copies import NO_BOUND, Fetched, Placed, zeros
from tests.made_ragged import HostLane
from workers.arena import Arena
from workers.backends import BackendError
from workers.backends.batch_copy import batch_copy, loaded_runtime
from workers.backends.torch_cuda import ComputeTurn, CudaSlot, Lane
from workers.backends.torch_gather import TRIAL_SIZES, Fetcher, _pinned, trial
from workers.backends.torch_network import Network
from workers.tasks.null import NullTask

TIME_BUDGET_S = 10
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STREAM = 0x1234


class Foreign:
    """A function of a library, on which ctypes keeps the type of its result."""

    restype: Any = ctypes.c_int

    def __init__(self, does: Any) -> None:
        self.does = does

    def __call__(self, *given: Any) -> Any:
        return self.does(*given)


class Runtime:
    """libcudart of `version`, which copies at once or fails with `code`."""

    def __init__(self, version: int, code: int = 0) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.forgotten = 0
        self.cudaRuntimeGetVersion = Foreign(lambda at: setattr(at._obj, "value", version))
        self.cudaMemcpyBatchAsync = Foreign(self._copy)
        self.cudaGetErrorName = Foreign(lambda code: {1: b"cudaErrorInvalidValue"}[code])
        self.cudaGetLastError = Foreign(self._forget)
        self._code = code

    def _copy(self, *given: Any) -> int:
        destinations, sources, sizes, count, attributes, first, number, *failed, stream = given
        a = attributes._obj
        hints = [(at.type, at.id) for at in (a.source_hint, a.destination_hint)]
        assert (a.source_access_order, hints, a.flags) == (1, [(0, 0)] * 2, 1)
        assert ctypes.sizeof(a) == 24 and first._obj.value == 0 and number.value == 1
        assert stream.value == STREAM
        self.calls.append((count.value, len(failed)))
        if not self._code:
            arrays = [
                (ctypes.c_uint64 * count.value).from_address(at.value) for at in (destinations, sources)
            ]
            lengths = (ctypes.c_size_t * count.value).from_address(sizes.value)
            for to, source, size in zip(*arrays, lengths, strict=True):
                ctypes.memmove(to, source, size)
        return self._code

    def _forget(self) -> int:
        self.forgotten += 1
        return self._code


def copied(runtime: Runtime) -> bytes:
    given, out = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    places = [(0, 60, 3), (10, 5, 17)]  # to, from, bytes
    table = np.array(places, np.uint64).T.copy() + np.array(
        [[out.ctypes.data], [given.ctypes.data], [0]], np.uint64
    )
    batch_copy(runtime, lambda: STREAM)(*table)
    return out[[0, 2, 3, 9, 10, 26, 27]].tobytes()


@pytest.mark.parametrize(("version", "failed"), [(13000, 0), (13030, 0), (12080, 1), (12090, 1)])
def test_the_arguments_are_those_of_the_runtime_s_version(version: int, failed: int) -> None:
    runtime = Runtime(version)
    assert copied(runtime) == bytes([60, 62, 0, 0, 5, 21, 0])
    assert runtime.calls == [(2, failed)] and not runtime.forgotten


def test_an_error_has_its_name_and_is_not_left_in_the_runtime() -> None:
    runtime = Runtime(13000, code=1)
    with pytest.raises(BackendError, match=r"cudaMemcpyBatchAsync of 2 samples: cudaErrorInvalidValue \(1\)"):
        copied(runtime)
    assert runtime.forgotten == 1 and runtime.cudaGetErrorName.restype is ctypes.c_char_p


def test_an_older_runtime_or_none_is_told() -> None:
    with pytest.raises(BackendError, match="no cudaMemcpyBatchAsync, which came with CUDA 12.8"):
        batch_copy(object())
    runtime = Runtime(13000)
    runtime.cudaRuntimeGetVersion = Foreign(lambda at: 35)
    with pytest.raises(BackendError, match="does not tell its version"):
        batch_copy(runtime)


# A slot's batches


sizes_and_picks = st.lists(st.integers(0, 70), min_size=1, max_size=9).flatmap(
    lambda sizes: st.tuples(
        st.just(sizes),
        st.lists(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=8), min_size=1, max_size=4),
    )
)


@settings(max_examples=150, deadline=None)
@given(made=sizes_and_picks)
def test_every_byte_arrives_and_none_around_it_changes(made: tuple[list[int], list[list[int]]]) -> None:
    sizes, batches = made
    launch = Fetched()
    fetcher = Fetcher(launch, 8)
    for picks in batches:
        placed = Placed(sizes, picks, zeros)
        out = torch.full((len(placed.wanted) + 9,), 77, dtype=torch.uint8)
        fetcher.stage(placed.batch)
        fetcher.bring(out[1:])
        assert out.numpy().tobytes() == b"\x4d" + placed.wanted + b"\x4d" * 8
        if short := len(placed.wanted):
            with pytest.raises(BackendError, match=f"{short} bytes of samples do not fit into a buffer"):
                fetcher.bring(out[1:short])
        launched = sum(sizes[pick] > 0 for pick in picks)
        assert [n for n, _ in launch.launches] == [launched] * bool(launched)
        launch.launches.clear()


def test_what_does_not_copy_or_copies_something_else_is_found_out_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch, cpu = Fetched(), torch.device("cpu")
    assert not trial(launch, cpu, zeros)
    assert [n for n, _ in launch.launches] == [len(TRIAL_SIZES) - 1, 1, 4]  # one has no bytes

    def fails(*_: Any, **__: Any) -> None:
        raise BackendError("cudaErrorInvalidValue (1)\nsecond line")

    assert trial(fails, cpu, zeros) == "samples cannot be copied as a batch: cudaErrorInvalidValue (1)"

    def no_memory(size: int) -> np.ndarray:
        raise RuntimeError("CUDA error: out of memory")

    assert trial(launch, cpu, no_memory) == "pinned memory cannot be had: CUDA error: out of memory"
    monkeypatch.setattr(ctypes, "memmove", lambda *_: None)
    assert trial(launch, cpu, zeros) == "the GPU does not read pinned memory as the host wrote it"


class Slotted:
    """The slot of a task of 7-byte samples whose network answers them as they are, and the samples."""

    def __init__(self, device: str) -> None:
        cuda = device == "cuda"
        network = Network(nn.Identity(), torch.device(device), torch.float32, {"model": "identity"})
        network.cuda_graphs = network.padded = True
        lane = Lane(torch.device("cuda"), ComputeTurn()) if cuda else HostLane()
        launch = batch_copy(loaded_runtime()) if cuda else Fetched()
        self.slot = CudaSlot(network, NullTask({"sample_bytes": 7}), [1, 2, 6], lane, launch)
        self.data = np.random.default_rng(4).integers(0, 256, (40, 7), np.uint8)
        self.arena = Arena(np.full(40, 7), _pinned if cuda else zeros, NO_BOUND)
        with torch.inference_mode():
            self.slot.open()

    def check(self, indices: list[int], loaded: bool) -> None:
        """The bytes of `indices`, which come with the work unless they are loaded."""
        came = [memoryview(self.data[i].tobytes()) for i in indices]
        batch = self.arena.batch(np.array(indices), lambda: came)
        assert (batch is not None) is loaded
        with torch.inference_mode():
            computed = self.slot.compute(came if batch is None else batch)
        assert np.array_equal(computed.outputs, self.data[indices])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
def test_samples_of_an_odd_size_are_a_fixed_task_s_rows_from_load_to_load(device: str) -> None:
    made = Slotted(device)
    everything, data = np.arange(40), memoryview(made.data.tobytes())
    for turn in range(3):
        made.arena.load(everything[turn:], data, 7 * np.arange(41))
        for indices in ([39], [3, 3, 5, 38, 4, 20], [7, 9], [8]):
            made.check(indices, loaded=True)
        made.arena.unload(everything, any_left=False)
        made.check([1, 2, 3], loaded=False)


# On a GPU

CASES = {
    "photos": [150_528] * 3,
    "pairs": [156 * n for n in (270, 1, 700, 0, 33)],
    "one byte": [1],
    "odd": [1, 3, 4097, 0, 42_121, 7, 65_535],
    "a thousand": [1 + 37 * n % 3000 for n in range(1024)],
    "a large one": [40_000_001],
}


@on_cuda
@pytest.mark.parametrize("case", CASES)
def test_on_cuda_every_byte_arrives_and_none_around_it_changes(case: str) -> None:
    sizes = CASES[case]
    fetcher = Fetcher(batch_copy(loaded_runtime()), len(sizes))
    with torch.cuda.stream(torch.cuda.Stream()):
        for turn in range(3):
            picks = np.random.default_rng(turn).integers(0, len(sizes), 1 if turn == 1 else len(sizes))
            placed = Placed(sizes, picks.tolist(), _pinned)
            out = torch.full((len(placed.wanted) + 9,), 77, dtype=torch.uint8, device="cuda")
            fetcher.stage(placed.batch)
            fetcher.bring(out[1:])
            assert out.cpu().numpy().tobytes() == b"\x4d" + placed.wanted + b"\x4d" * 8


@on_cuda
def test_on_cuda_an_error_has_cuda_s_name_and_is_not_left_to_what_comes_next() -> None:
    placed = Placed([64], [0], _pinned)
    fetcher = Fetcher(batch_copy(loaded_runtime()), 1)
    fetcher.stage(placed.batch)
    out = torch.zeros(64, dtype=torch.uint8, device="cuda")
    # CUDA's documentation: the stream must not be the default one.
    with pytest.raises(BackendError, match=r"cudaMemcpyBatchAsync of 1 samples: cudaError\w+ \(\d+\)"):
        fetcher.bring(out)
    assert int((out + 1).sum()) == 64
