"""Loaded samples in an arena: an address has its sample's bytes, and what came with the work has none."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.evidence import _gathered
from orchestrator.supervise import Outcome
from orchestrator.timings import Board
from tests.test_worker import EPOCH, Engine, Served
from workers import arena as arenas
from workers.arena import ALIGNED_BYTES, Arena, LoadedSamples
from workers.bare import bare_loop
from workers.library import Library, LibraryError, LibraryWriter
from workers.protocol import Kind, indices_message

TIME_BUDGET_S = 10
NO_BOUND = 1 << 40


def zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


def read(samples: LoadedSamples) -> list[bytes]:
    """What a device would read."""
    places = zip(samples.addresses.tolist(), samples.sizes.tolist(), strict=True)
    return [ctypes.string_at(address, size) for address, size in places]


def library_of(folder: Path, samples: list[bytes]) -> Library:
    with LibraryWriter(folder / "lib", "test") as writer:
        for sample in samples:
            writer.add(sample)
        return writer.finish()


steps = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 11), max_size=8)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(0, 200), min_size=12, max_size=12), steps=steps, seed=st.integers(0, 99))
def test_an_arena_holds_what_a_dict_would(
    sizes: list[int], steps: list[tuple[bool, list[int]]], seed: int
) -> None:
    data = np.random.default_rng(seed).bytes(sum(sizes))
    offsets = np.cumsum([0, *sizes])
    arena = Arena(np.array(sizes), zeros, NO_BOUND)
    whole, arenas.CHUNK_BYTES = arenas.CHUNK_BYTES, 256
    held: dict[int, bytes] = {}
    under_way: list[tuple[LoadedSamples, list[bytes]]] = []
    try:
        for loads, some in steps:
            indices = np.array(some, np.int64)
            if loads:
                arena.load(indices, memoryview(data), offsets)
                held |= {i: data[offsets[i] : offsets[i + 1]] for i in some}
            else:
                held = {i: sample for i, sample in held.items() if i not in some}
                arena.unload(indices, any_left=bool(held))
            for i in range(12):
                assert (arena.batch(np.array([i]), list) is not None) is (i in held)
            batch = arena.batch(np.array(list(held), np.int64), list)
            assert batch is not None and not (batch.addresses % ALIGNED_BYTES).any()
            assert read(batch) == list(held.values())
            under_way.append((batch, list(held.values())))
        arena.unload(np.arange(12), any_left=False)
    finally:
        arenas.CHUNK_BYTES = whole
    assert arena.held_bytes == 0
    # What is still computed when its samples are unloaded reads them all the same.
    assert all(read(batch) == samples for batch, samples in under_way)


def test_samples_begin_at_multiples_of_16_bytes() -> None:
    sizes = np.array([1, 15, 16, 17, 4000])
    offsets, data = np.cumsum([0, *sizes]), memoryview(bytes(int(sizes.sum())))
    arena = Arena(sizes, zeros, NO_BOUND)
    arena.load(np.arange(5), data, offsets)
    batch = arena.batch(np.arange(5), list)
    assert batch is not None and not (batch.addresses % ALIGNED_BYTES).any()
    assert np.diff(batch.addresses).tolist() == [16, 16, 16, 32]


def test_memory_is_asked_for_in_powers_of_two_and_given_back() -> None:
    asked: list[int] = []

    def pin(size: int) -> np.ndarray:
        asked.append(size)
        return zeros(size)

    sizes = np.full(10, 1 << 20)
    offsets, data = np.cumsum([0, *sizes]), memoryview(bytes(10 << 20))
    arena = Arena(sizes, pin, NO_BOUND)
    arena.load(np.array([1, 2, 2, 3]), data, offsets)
    arena.load(np.array([3, 1]), data, offsets)
    assert asked == [4 << 20] and arena.held_bytes == 4 << 20
    arena.load(np.array([4, 5]), data, offsets)
    arena.unload(np.array([1, 2, 3]), any_left=True)
    assert arena.held_bytes == sum(asked) == 5 << 20  # sample 4 filled the first up
    arena.unload(np.array([4]), any_left=True)
    assert arena.held_bytes == 1 << 20
    arena.load(np.array([1]), data, offsets)
    assert arena.batch(np.array([1, 5, 1]), list) is not None and arena.batch(np.array([4]), list) is None


def test_a_set_beyond_the_bound_or_without_memory_is_left_to_the_host_until_it_is_unloaded(
    tmp_path: Path,
) -> None:
    library = library_of(tmp_path, [bytes([i]) * 1000 for i in range(10)])
    arena = Arena(library.sizes, zeros, 5000)
    library.keep_in(arena)
    library.load(np.arange(3))
    assert isinstance(library.batch(np.arange(3)), LoadedSamples)
    library.load(np.arange(10))
    assert "more than the 0.0 GB that may be pinned" in library.refused and arena.held_bytes == 0
    batch = library.batch(np.arange(3))
    assert not isinstance(batch, LoadedSamples) and [sample[0] for sample in batch] == [0, 1, 2]
    library.unload(np.arange(3, 10))
    assert library.refused and not isinstance(library.batch(np.arange(3)), LoadedSamples)
    library.unload_all()
    library.load(np.arange(2))
    assert not library.refused and isinstance(library.batch(np.arange(2)), LoadedSamples)

    def fails(size: int) -> np.ndarray:
        raise RuntimeError("CUDA error: out of memory\nCompile with so and so")

    failing = library_of(tmp_path / "failing", [bytes(8)] * 2)
    failing.keep_in(Arena(failing.sizes, fails, NO_BOUND))
    failing.load(np.arange(2))
    assert failing.refused == "CUDA error: out of memory"
    assert not isinstance(failing.batch(np.arange(2)), LoadedSamples)


def test_a_sample_that_is_not_loaded_has_no_address(tmp_path: Path) -> None:
    library = library_of(tmp_path, [bytes([i]) * 8 for i in range(40)])
    library.keep_in(Arena(library.sizes, zeros, NO_BOUND))
    library.load(np.arange(30))
    for indices in ([3, 30], [30, *range(20)]):
        with pytest.raises(LibraryError, match="sample 30 was asked for but is not loaded"):
            library.batch(np.array(indices))
    for wrong in (-1, 40):
        for more in (range(0), range(20)):
            with pytest.raises(LibraryError, match=f"sample {wrong} does not exist"):
                library.batch(np.array([wrong, *more]))
    library.unload(np.array([7]))
    with pytest.raises(LibraryError, match="sample 7 was asked for but is not loaded"):
        library.batch(np.array([6, 7]))


@pytest.mark.parametrize("bound", [NO_BOUND, 10, None], ids=["held", "refused", "no arena"])
@pytest.mark.parametrize("count", [3, 20])
def test_a_batch_is_checked_once_for_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, bound: int | None
) -> None:
    library = library_of(tmp_path, [bytes([i]) * 8 for i in range(40)])
    if bound is not None:
        library.keep_in(Arena(library.sizes, zeros, bound))
    library.load(np.arange(30))
    checked: list[int] = []
    check = Library._check_loaded

    def counted(self: Library, indices: np.ndarray) -> None:
        checked.append(len(indices))
        check(self, indices)

    monkeypatch.setattr(Library, "_check_loaded", counted)
    indices = np.arange(count, dtype=np.uint32)
    batch = library.batch(indices)
    assert checked == [count] and isinstance(batch, LoadedSamples) is (bound == NO_BOUND)
    with pytest.raises(LibraryError, match="sample 35 was asked for but is not loaded"):
        library.batch(np.append(indices, 35))
    with pytest.raises(LibraryError, match="sample 40 does not exist"):
        library.batch(np.append(indices, 40))
    library.unload(np.arange(30))
    assert [bytes(sample) for sample in batch] == [bytes([i]) * 8 for i in range(count)]
    for ask in (library.batch, library.samples):
        with pytest.raises(LibraryError, match="sample 0 was asked for but is not loaded"):
            ask(indices)


def test_a_batch_s_bytes_can_be_had_and_parts_of_it_are_such_batches(tmp_path: Path) -> None:
    samples = [bytes([i]) * (i + 1) for i in range(30)]
    library = library_of(tmp_path, samples)
    library.load(np.arange(5))  # before there is an arena
    library.keep_in(Arena(library.sizes, zeros, NO_BOUND))
    library.load(np.arange(30))
    chosen = np.array([4, 20, 4, 29], np.uint32)
    batch = library.batch(chosen)
    assert isinstance(batch, LoadedSamples)
    chosen[:] = 0
    wanted = [samples[i] for i in (4, 20, 4, 29)]
    part = batch[1:3]
    assert [bytes(sample) for sample in batch] == read(batch) == wanted and bytes(batch[3]) == wanted[3]
    assert [bytes(sample) for sample in part] == read(part) == wanted[1:3] and len(part) == 2


def test_bytes_that_came_with_the_work_are_computed_whatever_the_library_holds(tmp_path: Path) -> None:
    library = library_of(tmp_path, [bytes([i]) * 8 for i in range(10)])
    library.keep_in(Arena(library.sizes, zeros, NO_BOUND))
    served = Served(Engine(needs_samples=True), library)
    served.link.send(0, indices_message(Kind.LOAD, EPOCH, np.arange(10)))
    assert served.control(Kind.LOADED)[1] == b""
    served.work(1, [3, 4])
    served.answer()
    served.work(2, [3, 4], [memoryview(b"these"), memoryview(b"and those")])
    served.answer()
    served.link.close()
    loaded, came = (batch.samples for batch in served.backend.batches)
    assert isinstance(loaded, LoadedSamples) and read(loaded) == [bytes([3]) * 8, bytes([4]) * 8]
    assert not isinstance(came, LoadedSamples) and [bytes(one) for one in came] == [b"these", b"and those"]


def test_a_worker_says_why_samples_are_not_in_its_arena(tmp_path: Path) -> None:
    library = library_of(tmp_path, [bytes(8)] * 10)
    library.keep_in(Arena(library.sizes, zeros, 10))
    served = Served(Engine(needs_samples=True), library)
    served.link.send(0, indices_message(Kind.LOAD, EPOCH, np.arange(10)))
    assert b"may be pinned" in served.control(Kind.LOADED)[1]
    served.link.close()


def test_the_bare_loop_goes_the_way_of_a_test_and_leaves_nothing_loaded(tmp_path: Path) -> None:
    library = library_of(tmp_path, [bytes([i]) * 8 for i in range(10)])
    arena = Arena(library.sizes, zeros, NO_BOUND)
    library.keep_in(arena)
    engine = Engine(needs_samples=True)
    for _ in range(2):
        bare_loop(engine, library, np.array([3, 1, 3, 9, 2, 7]), None)
        assert arena.held_bytes == 0
    assert all(isinstance(batch.samples, LoadedSamples) for batch in engine.batches)


def test_the_record_of_a_test_says_who_stacked_after_all_and_why() -> None:
    facts = [{"name": name, "gather": "device", "gather_why": ""} for name in ("w0", "w1")]
    outcome = Outcome("finished", Board(2))
    assert _gathered(facts, outcome) == facts
    outcome.result = {"stacked": {"w1": "no room"}}
    stacked = {"name": "w1", "gather": "host", "gather_why": "no room"}
    assert _gathered(facts, outcome) == [facts[0], stacked] and facts[1]["gather"] == "device"
