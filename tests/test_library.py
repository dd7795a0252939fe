"""The sample library: what is written is read back, and nothing damaged is ever read."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.library import Library, LibraryError, LibraryWriter, prepare_library

TIME_BUDGET_S = 15

samples_of_any_size = st.lists(st.binary(max_size=9000), min_size=1, max_size=30)
few = settings(max_examples=40)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example of a property."""
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def write(path: Path, samples: list[bytes]) -> Library:
    with LibraryWriter(path, "test", {"note": "x"}) as writer:
        for sample in samples:
            writer.add(sample)
        writer.add_array("labels", np.arange(len(samples)))
        return writer.finish()


@few
@given(samples_of_any_size, st.randoms(use_true_random=False))
def test_samples_of_any_sizes_come_back_in_any_order(samples: list[bytes], rng: object) -> None:
    with folder() as root:
        write(root / "lib", samples)
        library = Library.open(root / "lib")
        order = np.random.default_rng(len(samples)).integers(0, len(samples), 40)
        library.load(order)
        assert [bytes(s) for s in library.samples(order)] == [samples[i] for i in order]
        assert [bytes(s) for s in library.samples(order[:3])] == [samples[i] for i in order[:3]]
        assert library.sizes.tolist() == [len(s) for s in samples]
        assert library.array("labels").tolist() == list(range(len(samples)))
        assert (library.count, library.task, library.meta) == (len(samples), "test", {"note": "x"})


@few
@given(samples_of_any_size, st.data())
def test_a_truncated_file_is_named(samples: list[bytes], data: st.DataObject) -> None:
    with folder() as root:
        write(root / "lib", samples)
        name = data.draw(st.sampled_from(["library.json", "samples.bin", "offsets.npy", "labels.npy"]))
        raw = (root / "lib" / name).read_bytes()
        if raw:
            # The last byte of library.json is a line end, without which it is still whole.
            kept = data.draw(st.integers(0, len(raw) - (2 if name == "library.json" else 1)))
            (root / "lib" / name).write_bytes(raw[:kept])
            with pytest.raises(LibraryError, match=name):
                Library.open(root / "lib")


@few
@given(samples_of_any_size, st.data())
def test_a_changed_byte_is_never_read(samples: list[bytes], data: st.DataObject) -> None:
    with folder() as root:
        write(root / "lib", samples)
        name = data.draw(st.sampled_from(["samples.bin", "offsets.npy", "labels.npy"]))
        raw = bytearray((root / "lib" / name).read_bytes())
        if raw:
            at = data.draw(st.integers(0, len(raw) - 1))
            raw[at] ^= data.draw(st.integers(1, 255))
            (root / "lib" / name).write_bytes(raw)
            with pytest.raises(LibraryError, match=name):
                Library.open(root / "lib")


@few
@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_an_index_of_any_other_content_is_refused(content: object) -> None:
    with folder() as root:
        write(root / "lib", [b"abc"])
        index = json.loads((root / "lib" / "library.json").read_text())
        for key in (None, "files", "count", "meta", "format", "made_by"):
            changed = content if key is None else {**index, key: content}
            if key in ("meta", "made_by") and isinstance(content, dict):
                continue
            if key == "count" and content == 1:
                continue
            if key == "format" and content == 1:
                continue
            (root / "lib" / "library.json").write_text(json.dumps(changed))
            with pytest.raises(LibraryError):
                Library.open(root / "lib")


@pytest.mark.parametrize("brackets", ["[", '{"meta":'])
def test_an_index_nested_too_deep_is_refused(brackets: str, tmp_path: Path) -> None:
    write(tmp_path / "lib", [b"abc"])
    (tmp_path / "lib" / "library.json").write_text(brackets * 200_000)
    with pytest.raises(LibraryError, match=r"library\.json cannot be read .* prepared anew"):
        Library.open(tmp_path / "lib")


def test_a_library_tells_what_made_it_and_one_of_an_earlier_version_opens(tmp_path: Path) -> None:
    made = write(tmp_path / "lib", [b"abc"])
    assert len(made.made_by["tasks_sha256"]) == 64 and made.made_by["numpy"] == np.__version__
    index = json.loads((tmp_path / "lib" / "library.json").read_text())
    assert index.pop("made_by") == made.made_by
    (tmp_path / "lib" / "library.json").write_text(json.dumps(index))
    again = Library.open(tmp_path / "lib")
    assert again.made_by == {} and again.digest == made.digest


def test_an_index_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "lib", [b"abc"])
    index = json.loads((tmp_path / "lib" / "library.json").read_text())
    index["files"]["../secret.npy"] = {"bytes": 1, "sha256": ""}
    (tmp_path / "lib" / "library.json").write_text(json.dumps(index))
    with pytest.raises(LibraryError, match="damaged"):
        Library.open(tmp_path / "lib")


def test_only_loaded_samples_are_served(tmp_path: Path) -> None:
    library = write(tmp_path / "lib", [bytes([i]) * 5000 for i in range(20)])
    library.load(np.array([3, 4, 19]))
    assert [s[0] for s in library.samples(np.array([19, 3, 3]))] == [19, 3, 3]
    for indices in ([5], [3, 5], [*[3] * 20, 5]):
        with pytest.raises(LibraryError, match="sample 5 .* not loaded"):
            library.samples(np.array(indices))
    library.unload(np.array([3]))
    with pytest.raises(LibraryError, match="sample 3 "):
        library.samples(np.array([4, 3]))


@pytest.mark.parametrize("wrong", [-1, 20, 2**40])
def test_an_index_out_of_range_is_named(tmp_path: Path, wrong: int) -> None:
    library = write(tmp_path / "lib", [b"x"] * 20)
    library.load(np.arange(20))
    for indices in ([wrong], [0] * 20 + [wrong]):
        with pytest.raises(LibraryError, match=f"sample {wrong} does not exist"):
            library.samples(np.array(indices))
    for call in (library.load, library.unload):
        with pytest.raises(LibraryError, match=f"sample {wrong} does not exist"):
            call(np.array([wrong]))


def test_a_library_without_samples_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="at least one"), LibraryWriter(tmp_path / "lib", "test") as writer:
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_library_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), LibraryWriter(tmp_path / "lib", "test") as writer:
        writer.add(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_and_a_missing_array_are_explained(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="not a prepared sample library"):
        Library.open(tmp_path / "nothing")
    with pytest.raises(LibraryError, match="no array 'label'; it holds: labels"):
        write(tmp_path / "lib", [b"x"]).array("label")


def test_the_digest_follows_the_contents_alone(tmp_path: Path) -> None:
    one, same, other = (write(tmp_path / n, s) for n, s in (("a", [b"x"]), ("b", [b"x"]), ("c", [b"y"])))
    assert one.digest == same.digest != other.digest


def _prepare(path: Path, started: object) -> None:
    def build(writer: LibraryWriter) -> None:
        (path.parent / f"built-{time.monotonic_ns()}").touch()
        time.sleep(0.2)  # long enough for the other process to arrive
        writer.add(b"one sample")

    started.wait()  # type: ignore[attr-defined]
    library = prepare_library(path, "test", build)
    library.load(np.array([0]))
    assert bytes(library.samples(np.array([0]))[0]) == b"one sample"


def test_of_two_processes_that_prepare_at_once_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Barrier(2)
    both = [context.Process(target=_prepare, args=(tmp_path / "lib", started)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(20)
    assert [p.exitcode for p in both] == [0, 0]
    assert len(list(tmp_path.glob("built-*"))) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_builder_left_is_cleared_away(tmp_path: Path) -> None:
    left_over = tmp_path / "lib.99999.partial"
    left_over.mkdir()
    (left_over / "samples.bin").write_bytes(b"half")
    prepare_library(tmp_path / "lib", "test", lambda writer: writer.add(b"x"))
    assert not left_over.exists()


def test_a_batch_of_samples_costs_microseconds(tmp_path: Path) -> None:
    library = write(tmp_path / "lib", [b"x" * 100] * 1024)
    library.load(np.arange(1024))
    indices = np.random.default_rng(1).integers(0, 1024, 256)
    best = min(_seconds(library, indices) for _ in range(20))
    assert best / 256 < 5e-6  # measured: 0.2 us a sample


def _seconds(library: Library, indices: np.ndarray) -> float:
    began = time.perf_counter()
    library.samples(indices)
    return time.perf_counter() - began
