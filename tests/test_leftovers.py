"""What a killed writer left beside a file goes when the file is written again; nothing else does."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.paths import write_atomically, write_new

TIME_BUDGET_S = 15

LEFT = ".file.loadgrid-0123abcd"
KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.paths import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    signal.pause()
"""


def aged(path: Path, days: float = 2.0) -> None:
    """Make a file that was last written so many days ago."""
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then), follow_symlinks=False)


@pytest.mark.parametrize("write", [write_atomically, write_new])
def test_what_a_killed_writer_left_goes_when_the_file_is_written_again_and_a_day_has_passed(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"writing\n"
            (left,) = tmp_path.iterdir()
            aged(left)  # a writer that stands still for days lives all the same
            write(tmp_path / "file", b"data")
            assert left.read_bytes() == b"half"
        finally:
            process.kill()
    (tmp_path / "file").unlink()
    aged(left, days=0.9)
    write(tmp_path / "file", b"data")
    assert left.read_bytes() == b"half", "of another host it may be, whose locks are not seen here"
    (tmp_path / "file").unlink()
    aged(left)
    write(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"data"


@pytest.mark.parametrize(
    "name",
    [
        ".file.0123abcd",
        ".file.loadgrid-0123abc",
        ".file.loadgrid-0123abcde",
        ".file.loadgrid-0123abcd.txt",
        ".file.loadgrid-0123ABCD",
        ".other.loadgrid-0123abcd",
        ".fileXloadgrid-0123abcd",
        "file.loadgrid-0123abcd",
    ],
)
def test_a_file_of_another_name_stays_however_old(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    aged(tmp_path / name)
    write_atomically(tmp_path / "file", b"data")
    assert sorted(os.listdir(tmp_path)) == sorted(["file", name])


@pytest.mark.parametrize("target", ["theirs", "none", "folder", LEFT, "/dev/full"])
def test_a_link_stays_whatever_its_name_and_so_does_what_it_leads_to(tmp_path: Path, target: str) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "folder").mkdir()
    aged(tmp_path / "theirs")
    (tmp_path / LEFT).symlink_to(target)
    aged(tmp_path / LEFT)
    write_atomically(tmp_path / "file", b"data")
    assert sorted(os.listdir(tmp_path)) == sorted([LEFT, "file", "folder", "theirs"])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_stays_whatever_its_name(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / LEFT)
    aged(tmp_path / LEFT)
    write_atomically(tmp_path / "file", b"data")
    assert sorted(os.listdir(tmp_path)) == sorted([LEFT, "file"])


def test_a_strangers_file_and_one_from_the_future_stay_and_a_disk_without_locks_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / LEFT).write_bytes(b"half")
    aged(tmp_path / LEFT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        write_atomically(tmp_path / "file", b"data")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", without_locks)
        write_atomically(tmp_path / "file", b"data")
    aged(tmp_path / LEFT, days=-2.0)
    write_atomically(tmp_path / "file", b"data")
    assert sorted(os.listdir(tmp_path)) == sorted([LEFT, "file"])
