"""The data set of a manifest, prepared on this host: for `run`, and by itself for `prepare`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import RenderableType
from rich.text import Text

from orchestrator.manifest import Manifest, error_at
from orchestrator.paths import cache_dir
from orchestrator.phrases import duration, plural, size
from orchestrator.preflight import task_field
from orchestrator.stop import Interrupted
from orchestrator.tables import facts_grid
from workers.library import Library, LibraryError, heard_by
from workers.library_reader import CONTINUING, PREPARING, WRITTEN
from workers.tasks import TaskError, open_task


class Listener(Protocol):
    """Who is told how far a preparation is: the terminal, or nobody."""

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""

    def progressed(self, step: str, done: int, total: int) -> None:
        """How far it is: bytes when checking, else samples."""


def open_library(manifest: Manifest, listener: Listener) -> Library:
    """The prepared data set on this host, prepared now if it is not yet; ManifestError names the field."""
    task = manifest.task
    listener.preparing(f"data set {task.name}")
    try:
        with heard_by(listener.progressed):
            library = open_task(task.name, manifest.task_options()).prepare(cache_dir())
    except TaskError as error:
        raise error_at(manifest, task_field(error), str(error)) from None
    except LibraryError as error:
        raise error_at(manifest, "task", str(error)) from None
    if not library.count:
        raise error_at(manifest, "task", f"the data set of {task.name} is empty")
    return library


@dataclass
class Prepared:
    """A data set that is ready: `written` says that it was prepared now, `kept` samples of it earlier."""

    library: Library
    written: bool
    kept: int
    seconds: float

    def report(self, manifest: Manifest) -> Iterator[RenderableType]:
        """What a person wants to know of it; the hash is not among it, for it must not wrap."""
        library = self.library
        how = "prepared" if self.written else "was here; every byte is checked by its hash"
        if self.written and self.kept:
            how = f"prepared; {plural(self.kept, 'sample')} of an earlier prepare were kept"
        total = sum(facts["bytes"] for facts in library.files.values())
        facts = [
            ("folder", str(library.folder)),
            ("samples", f"{library.count:,}"),
            ("bytes", f"{total:,} ({size(total)})"),
            ("time", f"{duration(self.seconds)}: {how}"),
        ]
        yield Text(f"{manifest.name}: data set {manifest.task.name}", style="bold")
        yield facts_grid((name, Text(text, overflow="fold")) for name, text in facts)


def prepare(manifest: Manifest, listener: Listener) -> Prepared:
    """Prepare the data set of a manifest, or check every byte of the one that is there."""
    hearer, began_s = Hearer(listener), time.monotonic()
    try:
        library = open_library(manifest, hearer)
    except Interrupted as error:
        if not hearer.resumable:
            raise
        kept = "the samples prepared so far are kept, and the same command goes on from there"
        raise Interrupted(f"{error}; {kept}") from None
    return Prepared(library, hearer.written, hearer.kept, time.monotonic() - began_s)


def same_data(manifest: Manifest) -> str:
    """Alike for manifests that have one data set between them."""
    return json.dumps([manifest.task.name, manifest.task_options()], sort_keys=True)


def check_digest(manifest: Manifest, library: Library) -> None:
    """ManifestError if the manifest names another hash than the data set has."""
    wanted = manifest.task.sha256
    if wanted is not None and wanted != library.digest:
        why = f"the prepared data set has {library.digest}: it is another one, or another version prepared it"
        raise error_at(manifest, "task.sha256", why)


class Hearer:
    """Passes on what a preparation says, and remembers how it came about."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.written, self.resumable, self.kept = False, False, 0

    def preparing(self, what: str) -> None:
        """See Listener."""
        self._listener.preparing(what)

    def progressed(self, step: str, done: int, total: int) -> None:
        """See Listener."""
        self.written |= step == WRITTEN
        self.resumable = step in (CONTINUING, PREPARING)
        self.kept = done if step == CONTINUING else self.kept
        self._listener.progressed(step, done, total)
