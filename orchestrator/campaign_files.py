"""Where a campaign's evidence lies: run folders below one runs folder, found again by the next program.

Each run folder has a file campaign.json, written once when the folder is made: the campaign that it is of,
the manifest's name, and the tests that it plans. What is done is read from the records alone. While a
program writes into a run folder it holds a lock on that file; the kernel takes the lock back when the program
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from orchestrator.manifest import Manifest
from orchestrator.paths import CAMPAIGN, MANIFEST, RECORD, RunPaths, write_atomically, write_json
from orchestrator.plan import TestSpec
from orchestrator.record import Record, RecordError, read_record
from orchestrator.resume import Found

SCHEMA = "loadgrid.campaign/1"
MOST_BYTES = 2**20  # of a campaign.json that says what was planned
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # some shared storage has none


class InUseError(OSError):
    """Another program writes into the run's folder."""


@dataclass(frozen=True)
class Ended:
    """One manifest's end: its records, those of them that were done before, the tests without one.

    `folder` is None where the run could not begin.
    """

    manifest: str
    folder: Path | None
    records: Sequence[Record]
    done_before: frozenset[str]
    not_run: Sequence[str]


@dataclass
class Campaign:
    """The runs of one `loadgrid run`, and of those that resume it; `name` sorts by the time of beginning."""

    runs_dir: Path
    name: str = ""
    resumed: bool = False
    ended: list[Ended] = field(default_factory=list)
    _used: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.name = self.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"

    def folder_of(self, manifest: Manifest) -> Path | None:
        """The run folder of the very same manifest in a campaign that is resumed; None if there is none."""
        if not self.resumed:
            return None
        for folder, about in _run_folders(self.runs_dir):
            if about != (self.name, manifest.name) or folder in self._used:
                continue
            with contextlib.suppress(OSError):
                if (folder / MANIFEST).read_bytes() == manifest.raw:
                    return folder
        return None

    def has_run(self, manifest: Manifest) -> bool:
        """Whether the campaign has a run of a manifest of this name, whatever stood in it."""
        known = {about for folder, about in _run_folders(self.runs_dir) if folder not in self._used}
        return self.resumed and (self.name, manifest.name) in known

    def folders(self, manifest: str) -> list[Path]:
        """Every run folder of the campaign that is of a manifest of this name, in order of name."""
        return [folder for folder, about in _run_folders(self.runs_dir) if about == (self.name, manifest)]

    @contextlib.contextmanager
    def writing(self, folder: Path) -> Iterator[RunPaths]:
        """A run folder of this campaign to write into; InUseError if another program does."""
        self._used.add(folder)
        with open(folder / CAMPAIGN, "r+") as file:  # nothing is written, but NFS locks no file that is read
            _lock(file, folder)
            yield RunPaths(folder)

    def begin(self, manifest: Manifest, tests: Sequence[str] = ()) -> Path:
        """A new run folder of this campaign; `tests` are the planned ones, for its report."""
        run = RunPaths.new(self.runs_dir, manifest.name)
        about = {"schema": SCHEMA, "campaign": self.name, "manifest": manifest.name, "tests": list(tests)}
        write_json(run.root / CAMPAIGN, about)
        write_atomically(run.root / MANIFEST, manifest.raw)
        return run.root


def newest_campaign(runs_dir: Path, manifests: Iterable[str]) -> Campaign | None:
    """The newest campaign below a folder that has a run of one of these manifests, by their names."""
    wanted = set(manifests)
    names = [campaign for _, (campaign, manifest) in _run_folders(runs_dir) if manifest in wanted]
    return Campaign(runs_dir, max(names), resumed=True) if names else None


def _run_folders(runs_dir: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Run folders in order of name, each with its campaign and manifest; links are not followed."""
    try:
        entries = sorted(os.scandir(runs_dir), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and (about := _about(Path(entry.path))) is not None:
            yield Path(entry.path), about


def _about(folder: Path) -> tuple[str, str] | None:
    try:
        body = json.loads((folder / CAMPAIGN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA or not (folder / MANIFEST).is_file():
        return None  # without a manifest: the program was killed while it made the folder
    campaign, manifest = body.get("campaign"), body.get("manifest")
    return (campaign, manifest) if isinstance(campaign, str) and isinstance(manifest, str) else None


def planned_tests(folder: Path) -> list[str]:
    """The tests that a run's folder was made for; none where nothing tells, as in an older LoadGrid's."""
    file, body = folder / CAMPAIGN, None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if file.is_file() and file.stat().st_size <= MOST_BYTES:
            body = json.loads(file.read_bytes())
    tests = body.get("tests") if isinstance(body, dict) else None
    return [name for name in tests if isinstance(name, str)] if isinstance(tests, list) else []


def _lock(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        why = "another loadgrid run writes into it; wait for its end, or end it"
        raise InUseError(errno.EBUSY, why, str(folder)) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def found_in(folder: Path, specs: Iterable[TestSpec]) -> dict[str, Found]:
    """What lies of each test in a run's folder; every file is held against the hash in the record."""
    return {spec.name: _found(folder / spec.name) for spec in specs if os.path.lexists(folder / spec.name)}


def _found(folder: Path) -> Found:
    if not folder.is_dir() or folder.is_symlink():
        return Found(None, "what lies in its place is no folder")
    try:
        record = read_record(folder / RECORD)
    except RecordError as error:
        return Found(None, f"its record cannot be read ({error})")
    if record.test != folder.name:
        return Found(None, f"the record in its place is of {record.test}")
    for name, sha256 in record.files.items():
        file = folder / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or file.is_symlink() or _sha256(file) != sha256:
            return Found(record, f"{name} is not the file that its record names")
    return Found(record)


def _sha256(file: Path) -> str | None:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None
