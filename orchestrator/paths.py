"""The one place that knows where a run's files lie."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and keep it through a power cut; a link stays, its target is written.

    Into a pipe or a device (/dev/stdout, /dev/null) the data goes as it is: neither is ever replaced.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        with open(path, "wb") as special:
            special.write(data)
        return
    if path.is_symlink():
        path = _target(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; FileExistsError where one is, also if another wrote it just now."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_atomically(aside, data)
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system: the name is taken first, and empty for a moment
        path.touch(exist_ok=False)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def _target(link: Path) -> Path:
    """Where a chain of links ends, whether or not a file is there."""
    try:
        return link.resolve()
    except RuntimeError:  # Python 3.11's word for links that lead in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(link)) from None


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, outlast a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")
