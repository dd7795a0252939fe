"""Writing a library in parallel: in order, in bounded memory, and going on after a kill at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import library as writing
from workers.library import Library, LibraryError, LibraryWriter, heard_by, prepare_library

TIME_BUDGET_S = 20

ROOT = Path(__file__).resolve().parent.parent
few = settings(max_examples=60, deadline=None)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example of a property."""
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def sample(job: int) -> bytes:
    """A job's sample: 0 to 4,999 bytes, by its number alone."""
    rng = random.Random(job)
    return rng.randbytes(rng.randrange(5000))


class Making:
    """A data set of `count` jobs that counts how often each is made; job `fails_at` raises."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at = count, fails_at
        self.made: list[int] = []

    def make(self, job: int) -> bytes:
        if job == self.fails_at:
            raise ValueError(f"job {job}")
        self.made.append(job)
        return sample(job)

    def build(self, writer: LibraryWriter) -> None:
        writer.add_all(range(self.count), self.make)
        writer.add_array("labels", np.arange(self.count))

    def prepare(self, path: Path, meta: dict[str, int] | None = None) -> Library:
        return prepare_library(path, "test", self.build, meta)


def contents(library: Library) -> list[bytes]:
    every = np.arange(library.count)
    library.load(every)
    return [bytes(s) for s in library.samples(every)]


def interrupted(root: Path, count: int, at: int, monkeypatch: pytest.MonkeyPatch | None = None) -> Path:
    """The partial folder of a prepare of `count` samples that failed at job `at`; every sample is in it."""
    with pytest.raises(ValueError, match=f"job {at}"):
        Making(count, fails_at=at).prepare(root / "lib")
    assert not (root / "lib").exists()
    return root / "lib.partial"


def test_samples_made_in_any_order_are_written_in_order(tmp_path: Path) -> None:
    def make(job: int) -> bytes:
        time.sleep(random.Random(job).random() * 0.01)
        return sample(job)

    library = prepare_library(tmp_path / "lib", "test", lambda writer: writer.add_all(range(60), make))
    assert contents(library) == [sample(i) for i in range(60)]
    assert Library.open(tmp_path / "lib").digest == library.digest
    names = sorted(path.name for path in (tmp_path / "lib").iterdir())
    assert names == ["library.json", "offsets.npy", "samples.bin"]


def test_every_core_makes_samples_and_few_results_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "usable_cpus", lambda: 4)
    lock, threads, begun, written = threading.Lock(), set(), 0, 0
    most = 0

    def make(job: int) -> bytes:
        nonlocal begun, most
        with lock:
            threads.add(threading.get_ident())
            begun += 1
            most = max(most, begun - written)
        time.sleep(0.002)
        return b"x"

    def listen(step: str, done: int, total: int) -> None:
        nonlocal written
        written = done

    with heard_by(listen):
        prepare_library(tmp_path / "lib", "test", lambda writer: writer.add_all(range(100), make))
    assert len(threads) == 4
    assert most <= 4 + 2 + 1  # the listener hears of a sample just after it is written


def test_large_samples_are_made_fewer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "memory_bytes", lambda: 8 * 3000)  # an eighth of it holds three samples
    with LibraryWriter(tmp_path / "lib", "test") as writer:
        assert writer._ahead(16) == 2
        writer.add(b"x" * 1000)
        assert writer._ahead(16) == 3
        writer.add(b"x" * 100_000)
        assert writer._ahead(16) == 2


@pytest.mark.parametrize(("peak_bytes", "at_once"), [(None, 4), (1000, 3), (10_000, 1)])
def test_what_takes_much_memory_in_the_making_is_made_in_fewer_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak_bytes: int | None, at_once: int
) -> None:
    monkeypatch.setattr(writing, "usable_cpus", lambda: 4)
    monkeypatch.setattr(writing, "memory_bytes", lambda: 2 * 3500)  # half of it for the making
    threads: set[int] = set()

    def make(job: int) -> bytes:
        threads.add(threading.get_ident())
        time.sleep(0.005)
        return b"x"

    with LibraryWriter(tmp_path / "lib", "test") as writer:
        writer.add_all(range(40), make, peak_bytes=peak_bytes)
    assert len(threads) == at_once


@few
@given(st.integers(1, 40), st.data())
def test_a_prepare_that_failed_goes_on_where_it_stopped(count: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, count - 1))
    with folder() as root:
        interrupted(root, count, at)
        again = Making(count)
        library = again.prepare(root / "lib")
        assert contents(library) == [sample(i) for i in range(count)]
        assert sorted(again.made) == list(range(at, count))
        assert library.digest == Making(count).prepare(root / "other").digest
        assert not list(root.glob("*.partial"))


@few
@given(st.data())
def test_a_partial_cut_or_damaged_anywhere_gives_the_same_library(data: st.DataObject) -> None:
    with folder() as root:
        partial = interrupted(root, 12, 9)
        for name in data.draw(st.sets(st.sampled_from(["samples.bin", "sizes.journal", "parameters.json"]))):
            raw = bytearray((partial / name).read_bytes())
            at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
            if data.draw(st.booleans()):
                del raw[at:]
            elif raw:
                raw[at] ^= data.draw(st.integers(1, 255))
            (partial / name).write_bytes(raw + data.draw(st.binary(max_size=30)))
        library = Making(12).prepare(root / "lib")
        assert contents(library) == [sample(i) for i in range(12)]
        assert Library.open(root / "lib").digest == library.digest


def test_a_partial_of_other_parameters_is_begun_anew(tmp_path: Path) -> None:
    interrupted(tmp_path, 12, 9)
    again = Making(12)
    library = again.prepare(tmp_path / "lib", {"side": 224})
    assert sorted(again.made) == list(range(12))
    assert library.meta == {"side": 224}


def test_a_partial_of_other_code_is_begun_anew_and_the_library_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = writing.made_by()
    with monkeypatch.context() as patched:
        patched.setattr(writing, "made_by", lambda: {**now, "pillow": "0.1"})
        interrupted(tmp_path, 12, 9)
        other = Making(12).prepare(tmp_path / "other")
    again = Making(12)
    library = again.prepare(tmp_path / "lib")
    assert sorted(again.made) == list(range(12))
    assert (library.made_by, other.made_by["pillow"]) == (now, "0.1")
    assert library.digest == other.digest  # of the contents


def test_a_disk_that_fails_in_mid_takeover_gives_a_whole_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, 12, 9)
    read, calls = LibraryWriter._take_over_one, 0

    def flaky(*arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(5, "Input/output error")
        return read(*arguments)

    monkeypatch.setattr(LibraryWriter, "_take_over_one", flaky)
    again = Making(12)
    assert contents(again.prepare(tmp_path / "lib")) == [sample(i) for i in range(12)]
    assert sorted(again.made) == list(range(12))
    assert Library.open(tmp_path / "lib").count == 12


def test_sizes_that_do_not_fit_the_bytes_are_never_published(tmp_path: Path) -> None:
    def build(writer: LibraryWriter) -> None:
        writer.add_all(range(5), sample)
        writer._sizes[2] += 1

    with pytest.raises(LibraryError, match=r"samples\.bin has \d+ bytes instead of .* prepare again"):
        prepare_library(tmp_path / "lib", "test", build)
    assert not (tmp_path / "lib").exists() and not list(tmp_path.glob("*.partial"))


def test_a_partial_of_more_samples_than_there_are_is_refused_and_deleted(tmp_path: Path) -> None:
    partial = interrupted(tmp_path, 12, 9)
    with pytest.raises(LibraryError, match="more samples than this data set has"):
        Making(5).prepare(tmp_path / "lib")
    assert not partial.exists()
    assert contents(Making(5).prepare(tmp_path / "lib")) == [sample(i) for i in range(5)]


def test_two_lists_of_jobs_are_continued_one_after_the_other(tmp_path: Path) -> None:
    failing = True

    def make(job: int) -> bytes:
        if failing and job == 13:
            raise ValueError
        assert failing or job >= 13
        return sample(job)

    def build(writer: LibraryWriter) -> None:
        writer.add_all(range(10), make)
        writer.add_all(range(10, 20), make)

    with pytest.raises(ValueError):
        prepare_library(tmp_path / "lib", "test", build)
    failing = False
    assert contents(prepare_library(tmp_path / "lib", "test", build)) == [sample(i) for i in range(20)]


def test_samples_added_one_by_one_are_never_continued(tmp_path: Path) -> None:
    def build(writer: LibraryWriter) -> None:
        writer.add(b"first")
        writer.add_all([1, 2], lambda job: b"%d" % job)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare_library(tmp_path / "lib", "test", build)
    assert not list(tmp_path.glob("*.partial"))
    interrupted(tmp_path, 12, 9)
    library = prepare_library(tmp_path / "lib", "test", lambda writer: writer.add(b"alone"))
    assert contents(library) == [b"alone"]


@few
@given(st.integers(0, 7), st.integers(0, 9), st.integers(1, 3))
def test_rows_are_samples(count: int, width: int, chunks: int) -> None:
    rows = np.random.default_rng(count).integers(0, 2**16, (count, width), np.uint16)
    with folder() as root, LibraryWriter(root / "lib", "test") as writer:
        writer.add(b"")
        for _ in range(chunks):
            writer.add_rows(rows)
        assert contents(writer.finish()) == [b""] + [row.tobytes() for row in rows] * chunks


def test_the_error_of_the_first_job_that_fails_is_the_one_raised(tmp_path: Path) -> None:
    def make(job: int) -> bytes:
        time.sleep(0.05 if job == 3 else 0)
        if job >= 3:
            raise ValueError(f"job {job}")
        return b"x"

    with pytest.raises(ValueError, match="job 3"):
        prepare_library(tmp_path / "lib", "test", lambda writer: writer.add_all(range(50), make))


def test_who_listens_hears_of_every_step(tmp_path: Path) -> None:
    interrupted(tmp_path, 6, 4)
    heard: list[tuple[str, int, int]] = []
    with heard_by(lambda *step: heard.append(step)):
        library = Making(6).prepare(tmp_path / "lib")
        Making(6).prepare(tmp_path / "lib")
    total = sum(facts["bytes"] for facts in library.files.values())
    assert heard[:4] == [("continuing", i, 4) for i in range(1, 5)]
    assert heard[4] == ("preparing", 4, 6)
    assert ("preparing", 6, 6) in heard
    assert heard[-1] == ("checking", total, total)
    assert [done for step, done, _ in heard if step == "checking"] == sorted(
        done for step, done, _ in heard if step == "checking"
    )


def test_who_waits_for_another_process_hears_of_it(tmp_path: Path) -> None:
    heard: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def build(writer: LibraryWriter) -> None:
        inside.set()
        go_on.wait(10)
        writer.add(b"x")

    def listen(step: str, done: int, total: int) -> None:
        heard.append(step)
        go_on.set()

    other = threading.Thread(target=prepare_library, args=(tmp_path / "lib", "test", build))
    other.start()
    inside.wait(10)
    with heard_by(listen):
        prepare_library(tmp_path / "lib", "test", build)
    other.join()
    assert heard[0] == "waiting"


BUILDER = """
import sys, time
from pathlib import Path
from tests.test_library_writer import sample
from workers import library

library._JOURNAL_EVERY_S = 0.0

def make(job):
    time.sleep(0.001)
    with open(sys.argv[2], "a") as made:
        print(job, file=made, flush=True)
    return sample(job)

library.prepare_library(Path(sys.argv[1]), "test", lambda writer: writer.add_all(range(400), make))
print("done")
"""


def test_a_prepare_killed_again_and_again_comes_to_its_end(tmp_path: Path) -> None:
    rng, kills, journal = random.Random(1), 0, tmp_path / "lib.partial" / "sizes.journal"
    while not (tmp_path / "lib").exists():
        before = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path / "lib"), str(tmp_path / "made")], cwd=ROOT
        )
        # Killed some way into its own work, wherever that is in the writer's loop.
        while process.poll() is None and (journal.stat().st_size if journal.exists() else 0) <= before:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert kills < 50
    assert kills >= 2
    assert contents(Library.open(tmp_path / "lib")) == [sample(i) for i in range(400)]
    made = [int(line) for line in (tmp_path / "made").read_text().split()]
    # At each kill, samples in work or waiting to be written are lost, and no others.
    assert len(made) <= 400 + kills * (len(os.sched_getaffinity(0)) + 3)
    assert json.loads((tmp_path / "lib" / "library.json").read_text())["count"] == 400
