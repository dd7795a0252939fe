"""The one place that knows where a run's files lie."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SUMMARY = "mlperf_log_summary.txt"
DETAIL = "mlperf_log_detail.txt"
ACCURACY_LOG = "mlperf_log_accuracy.json"
ACCURACY_TXT = "accuracy.txt"
USER_CONF = "user.conf"
AUDIT_CONFIG = "audit.config"
VERIFY_PERFORMANCE = "verify_performance.txt"
VERIFY_ACCURACY = "verify_accuracy.txt"
BASELINE_LOG = "mlperf_log_accuracy_baseline.json"
BASELINE_TXT = "baseline_accuracy.txt"
COMPLIANCE_TXT = "compliance_accuracy.txt"
RECORD = "record.json"
MANIFEST = "manifest.yaml"
TEST_LOG = "test.log"
CAMPAIGN = "campaign.json"
EARLIER = ".earlier-"  # in the name of a test's folder that a rerun has replaced


def cache_dir() -> Path:
    """Where prepared data sets lie on this host: $LOADGRID_CACHE, else the user's cache folder."""
    own = os.environ.get("LOADGRID_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "loadgrid"


@dataclass(frozen=True)
class TestPaths:
    """A test's folder: `partial` while it runs, renamed to `final` when its record is written."""

    __test__ = False
    final: Path

    @property
    def partial(self) -> Path:
        """The folder while the test runs."""
        return self.final.with_name(f"{self.final.name}.partial")

    def set_aside(self) -> None:
        """Give way to a rerun: a finished folder gets a name of its own, and is no test's any more."""
        if not os.path.lexists(self.final):
            return
        number = 1
        while (aside := self.final.with_name(f"{self.final.name}{EARLIER}{number}")).exists():
            number += 1
        self.final.rename(aside)
        sync(self.final.parent)

    def begin(self) -> Path:
        """Make the partial folder; what an interrupted try left there moves aside, never overwritten."""
        if self.partial.exists():
            number = 1
            while (aside := self.final.with_name(f"{self.final.name}.partial-{number}")).exists():
                number += 1
            self.partial.rename(aside)
        self.partial.mkdir(parents=True)
        return self.partial

    def finish(self) -> Path:
        """Put the finished folder in place, in one step, with LoadGen's logs safe on the disk before."""
        for path in self.partial.rglob("*"):
            if path.is_file() and not path.is_symlink():
                sync(path)
        self.partial.rename(self.final)
        sync(self.final.parent)
        return self.final


@dataclass(frozen=True)
class RunPaths:
    """A run's folder: one manifest, its tests."""

    root: Path

    @classmethod
    def new(cls, runs_dir: Path, name: str) -> RunPaths:
        """A fresh folder `<runs_dir>/<name>-<time>`."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        root, number = runs_dir / f"{name}-{stamp}", 1
        while True:
            try:
                root.mkdir(parents=True)
                return cls(root)
            except FileExistsError:
                number += 1
                root = runs_dir / f"{name}-{stamp}-{number}"

    def test(self, name: str) -> TestPaths:
        """The folder of one test."""
        return TestPaths(self.root / name)


STREAMS = (Path("/dev/stdout"), Path("/dev/stderr"))

# In the name of a file that is being written; eight hexadecimal digits follow. Nothing else makes such names.
WRITING = ".loadgrid-"
# A writer holds a lock as long as it lives. Other hosts may not see it: their files get this long.
LEFT_S = 24 * 3600.0


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file of a run's folder, as replacing() does."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(
    path: Path, put: Callable[[Path, Path], object] = lambda aside, path: aside.replace(path)
) -> Iterator[BinaryIO]:
    """A new file that is put in the place of `path` whole or not at all, and outlasts a power cut.

    What has the name goes, be it a link or a pipe that somebody put there: nothing is written through it.
    """
    aside, opened = _beside(path)
    try:
        with open(opened, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            put(aside, path)  # before the file closes, and its lock goes
    finally:
        aside.unlink(missing_ok=True)
    _remove_leftovers(path)
    sync(path.parent)


def write_output(path: Path, data: bytes) -> None:
    """Write where a person said, whole or not at all: a link that they made stays, its target is written.

    Into a pipe or a device (/dev/null) the data goes as it is, and to the end of what standard output is
    (/dev/stdout): none of them is ever replaced.
    """
    if path in STREAMS:
        with open(path, "ab") as stream:
            stream.write(data)
        return
    mode = None
    with contextlib.suppress(FileNotFoundError):
        # OSError too where the kernel follows no such link, which we then do not
        mode = os.stat(path).st_mode
    if mode is None or stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        write_atomically(path.resolve() if path.is_symlink() else path, data)
        return
    with open(path, "wb") as special:
        special.write(data)


def write_new(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; FileExistsError where one is, also if another wrote it just now."""
    with replacing(path, _take_name) as file:
        file.write(data)


def _take_name(aside: Path, path: Path) -> None:
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system: the name is taken first, and empty for a moment
        path.touch(exist_ok=False)
        aside.replace(path)


def _beside(path: Path) -> tuple[Path, int]:
    """A new file next to `path`, and its descriptor, under a name at which nobody can have put a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        temporary = path.with_name(f".{path.name}{WRITING}{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):
            opened = os.open(temporary, flags, 0o666)
            break
    with contextlib.suppress(OSError):  # some shared storage has no locks
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temporary, opened


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` left behind that were killed; what cannot be told to be that stays."""
    ours = re.compile(re.escape(f".{path.name}{WRITING}") + "[0-9a-f]{8}")
    with contextlib.suppress(OSError):  # a folder that may be written into and not read
        for name in filter(ours.fullmatch, os.listdir(path.parent)):
            with contextlib.suppress(OSError):
                _remove_left(path.with_name(name))


def _remove_left(aside: Path) -> None:
    """Remove a file that nobody has written into for LEFT_S and whose writer has died; OSError: it lives."""
    # For reading: NFS then refuses the lock, for there not every host need know of every other's.
    opened = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        seen = os.fstat(opened)
        old = time.time() - seen.st_mtime > LEFT_S
        if old and stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid():
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            aside.unlink()
    finally:
        os.close(opened)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, outlast a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people, whole or not at all."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """JSON for people."""
    return json.dumps(value, indent=2).encode() + b"\n"
