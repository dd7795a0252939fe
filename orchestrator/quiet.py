"""What the `bench` commands share: a Watcher that shows nothing but notes, for their output is figures.

And their own words for what options became in a manifest that nobody wrote.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cluster import ClusterError
from orchestrator.course import Course
from orchestrator.manifest import Manifest, ManifestError
from orchestrator.plan import TestSpec
from orchestrator.record import Record
from orchestrator.timings import Board


def bench_folder() -> tempfile.TemporaryDirectory[str]:
    """Where a bench's tests lie until it ends."""
    return tempfile.TemporaryDirectory(prefix="loadgrid-bench-")


def noter(as_json: bool) -> Callable[[str], None]:
    """Who says how a bench goes: nobody, where the output is for machines."""
    return (lambda text: None) if as_json else (lambda text: print(text, file=sys.stderr))


def as_typed(text: str, options: Mapping[str, str]) -> str:
    """`text` with the options that a person typed, where it names the manifest's fields that they became."""
    for field, option in options.items():
        text = text.replace(field, option)
    return text


@contextmanager
def told_as_typed(options: Mapping[str, str]) -> Iterator[None]:
    """The same of the error that ends a command: the person has no file in which to change such a field."""
    try:
        yield
    except ManifestError as error:
        if error.field not in options:
            raise
        message = as_typed(error.message, options)
        raise ManifestError(options[error.field], None, "", message) from None
    except ClusterError as error:
        raise ClusterError(as_typed(str(error), options)) from None


class Quiet:
    """Passes on what is slow, wrong or lost, one line each."""

    def __init__(self, note: Callable[[str], None] = lambda text: None) -> None:
        self._note = note

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """Nothing to say."""

    def preparing(self, what: str) -> None:
        """Say it: it can take a while."""
        self._note(f"preparing {what} ...")

    def progressed(self, step: str, done: int, total: int) -> None:
        """Nothing to say."""

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """Nothing to say."""

    def warned(self, text: str) -> None:
        """Say it."""
        self._note(text)

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """Nothing to say."""

    def event(self, event: dict[str, Any]) -> None:
        """Say losses and failures."""
        if event["event"] in ("loss", "failed", "stuck"):
            self._note(", ".join(f"{key}: {value}" for key, value in event.items()))

    def tick(self, board: Board) -> None:
        """Nothing to say."""

    def judged(self, course: Course) -> None:
        """Nothing to say."""

    def test_ended(self, record: Record, folder: Path) -> None:
        """Nothing to say."""

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """Nothing to say."""
