"""A tree while it is written: what is copied is what was checked, originals stay whole, one try at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from orchestrator.paths import ACCURACY_LOG, DETAIL
from orchestrator.submission import build as building
from orchestrator.submission.build import Built, SubmitError, Wishes, submit
from orchestrator.submission.documents import own_files
from orchestrator.submission.gather import Test, check_files
from orchestrator.submission.writer import TreeWriter
from tests.made_runs import made_run, made_system

TIME_BUDGET_S = 20

LOG = b"whole" * 10
DIGEST = hashlib.sha256(LOG).hexdigest()
PLACE = PurePosixPath("closed", ACCURACY_LOG)


def build(folder: Path, run: Path) -> Built:
    return submit([run], made_system(folder), folder / "tree", Wishes())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_bytes(LOG)
    return path


def keep(tmp_path: Path, source: Path) -> Path:
    with TreeWriter(tmp_path / "tree") as tree:
        kept = tree.keep_original(source, PLACE, DIGEST)
        tree.finish()
    return kept


# Originals


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the system has no sha256sum")
def test_sha256sum_finds_every_original_as_listed(tmp_path: Path) -> None:
    built = build(tmp_path, made_run(tmp_path / "runs", entries=400))
    assert built.originals is not None
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "sha256sums.txt"],
        cwd=built.originals, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0 and ".json: OK" in done.stdout, done.stderr


def test_an_original_does_not_change_with_the_runs_file(tmp_path: Path, source: Path) -> None:
    kept = keep(tmp_path, source)
    with open(source, "r+b") as file:
        file.write(b"other")
    assert kept.read_bytes() == LOG
    assert (kept.stat().st_mode & 0o777, kept.stat().st_nlink) == (0o444, 1)


@pytest.mark.parametrize("there", ["half", "hard link"])
def test_what_lies_there_already_is_replaced_unless_it_is_a_whole_copy(
    tmp_path: Path, source: Path, there: str
) -> None:
    folder = tmp_path / "tree.originals"
    folder.mkdir()
    kept = folder / f"{DIGEST}.json"
    if there == "half":
        kept.write_bytes(LOG[:7])
    else:
        kept.hardlink_to(source)
    assert keep(tmp_path, source) == kept
    assert (kept.read_bytes(), kept.stat().st_nlink) == (LOG, 1)


def test_an_original_of_an_earlier_tree_stays_as_it_is(tmp_path: Path, source: Path) -> None:
    before = keep(tmp_path, source).stat()
    shutil.rmtree(tmp_path / "tree")
    assert keep(tmp_path, source).stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "name", [f"tree.originals/{DIGEST}.json", "tree.originals", "tree.originals/places.txt"]
)
def test_a_link_in_an_originals_place_is_refused_and_not_followed(
    tmp_path: Path, source: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(outside)
    with pytest.raises(SubmitError, match="is a link"):
        keep(tmp_path, source)
    assert not outside.exists() and not (tmp_path / "tree").exists() and (tmp_path / name).is_symlink()


def test_a_fault_after_the_lists_leaves_originals_as_they_were(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, source)
    (tmp_path / "tree").rename(tmp_path / "first")
    before = {path: path.read_bytes() for path in (tmp_path / "tree.originals").iterdir()}
    other = tmp_path / "other.json"
    other.write_bytes(b"other")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"), TreeWriter(tmp_path / "tree") as tree:
        tree.keep_original(other, PLACE, hashlib.sha256(b"other").hexdigest())
        tree.finish()
    assert {path: path.read_bytes() for path in (tmp_path / "tree.originals").iterdir()} == before


# What is copied is what was checked


@pytest.mark.parametrize("name", [DETAIL, ACCURACY_LOG, "accuracy.txt"])
@pytest.mark.parametrize("entries", [10, 400])
def test_a_file_that_changes_after_it_was_checked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, entries: int
) -> None:
    run = made_run(tmp_path / "runs", entries=entries)

    def check_then_change(test: Test) -> None:
        check_files(test)
        if test.kind == "accuracy":
            path = test.folder / name
            path.write_bytes(path.read_bytes().replace(b"1", b"7"))
            path.write_bytes(path.read_bytes() + b" ")

    monkeypatch.setattr(building, "check_files", check_then_change)
    with pytest.raises(SubmitError, match=f"{name} changed while the tree was made"):
        build(tmp_path, run)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "sys-1.json"}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_only_plain_files_are_copied(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    odd = tmp_path / "odd"
    {
        "link": lambda: odd.symlink_to(source), "pipe": lambda: os.mkfifo(odd), "folder": odd.mkdir,
        "nothing": lambda: None,
    }[kind]()  # fmt: skip
    with (
        pytest.raises(SubmitError, match="odd is (missing or )?no plain file"),
        TreeWriter(tmp_path / "t") as tree,
    ):
        tree.copy(odd, PLACE)
    # The same where it takes a file's place only after the first look.
    with (
        pytest.raises(SubmitError, match="odd is (missing or )?no plain file"),
        TreeWriter(tmp_path / "t") as tree,
    ):
        tree.keep_original(odd, PLACE, DIGEST)
    assert not (tmp_path / "t").exists() and not (tmp_path / "t.originals").exists()


def test_every_file_and_folder_is_synced_before_the_tree_is_in_place(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def seen(opened: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{opened}"))
        real(opened)

    monkeypatch.setattr(os, "fsync", seen)
    with TreeWriter(tmp_path / "tree") as tree:
        tree.copy(source, PLACE)
        tree.write(PurePosixPath("closed/deep/note.txt"), "x")
        tree.finish()
    parts = (f"closed/{ACCURACY_LOG}", "closed/deep/note.txt", "closed/deep", "closed")
    wanted = {str(tmp_path / "tree.partial" / part) for part in parts} | {str(tmp_path / "tree.partial")}
    assert set(synced) == wanted | {str(tmp_path)} and synced[-1] == str(tmp_path)


# One try at a time


def test_a_second_submit_to_one_place_is_told_that_the_first_is_alive(tmp_path: Path, source: Path) -> None:
    with TreeWriter(tmp_path / "tree") as tree:
        tree.copy(source, PLACE)
        with pytest.raises(SubmitError, match="another loadgrid submit writes .*/tree now"):
            TreeWriter(tmp_path / "tree").__enter__()
        tree.finish()
    assert (tmp_path / "tree" / PLACE).read_bytes() == LOG


def test_after_a_killed_try_the_originals_are_named_too(tmp_path: Path) -> None:
    for name in ("tree.partial", "tree.originals"):
        (tmp_path / name).mkdir()
    with pytest.raises(SubmitError, match=r"tree.partial is left of a try .* \(\S+tree.originals has"):
        TreeWriter(tmp_path / "tree").__enter__()


# --code


@pytest.mark.parametrize("name", ["id_rsa", "tls.PEM", "a.key", "credentials.json"])
def test_code_with_a_keys_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(SubmitError, match=f"{name} has a key's name"):
        own_files(tmp_path)


def test_code_with_keys_or_hard_links_or_pipes_in_it_is_refused_with_all_names(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    words = " ".join(("-----BEGIN RSA PRIVATE", "KEY-----"))
    # Across the border of two chunks.
    (own / "note.txt").write_bytes(b"x" * ((1 << 20) - 20) + words.encode())
    (own / "good.py").write_text("key = 1")
    (tmp_path / "secret").write_text("x")
    (own / "linked.py").hardlink_to(tmp_path / "secret")
    os.mkfifo(own / "pipe")
    with pytest.raises(SubmitError) as error:
        own_files(own)
    for told in (
        'note.txt has the words "PRIVATE KEY"',
        "linked.py has another name",
        "pipe is no plain file",
    ):
        assert told in str(error.value)
    assert "good.py" not in str(error.value)
