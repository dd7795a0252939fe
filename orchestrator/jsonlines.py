"""`loadgrid run --json`: one JSON object a line on standard output, for machines.

Every line has `event` and `time` (seconds since 1970), and between `planned` and `ended` also `manifest` (its
name). Units end a field's name. A value that is not known is null. New fields may come; these stay.

event           when, and its fields
--------------  ------------------------------------------------------------------------------------------
preparing       something slow begins: what
prepared        once a second while a data set is read: step, done, total (samples; bytes when checking)
worker_ready    a worker on Ray has loaded its model: worker, node, device
planned         a manifest's run begins: folder, tests (names of those left to run), broken_rules (names)
test_began      a test begins: test, scenario, mode, workers (names), limit_ms, expected_samples
running         LoadGen's clock has started: test
progress        once a second while it runs: test, issued, completed, in_flight, waiting, over_limit,
                rate_per_s (samples), p50_ms and p99_ms (the driver's own estimates), elapsed_s, left_s,
                doing (words; null while queries are under way), and course: word, why, late, allowed_late,
                more_needed
loss            a worker is lost: test, worker, reason, moved (samples)
stuck           a worker that did not leave a test, or whose engine failed, was ended: test, worker
test_ended      a test's record is written: test, status, verdict (a word), good, value, unit, metric (of an
                accuracy test its score), official, unofficial_because (the record's reasons; none where it is
                official), reasons (of the verdict), folder, wall_s
ended           a manifest's run is over: folder, tests, good, official (all three are counts)
campaign_ended  all is over: exit_code, and tests: manifest, test, done_before, verdict, good (the last two
                are null where the test was not run)

Notes for people go to standard error, and so does whatever else is printed. A program that is killed, or
interrupted while it prepares, says no more: the exit code tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from orchestrator.campaign_files import Ended
from orchestrator.course import Course
from orchestrator.manifest import Manifest
from orchestrator.phrases import verdict
from orchestrator.plan import TestSpec
from orchestrator.progress import Progress
from orchestrator.record import Record
from orchestrator.timings import Board

LINE_EVERY_S = 1.0
COURSE_FIELDS = ("word", "why", "late", "allowed_late", "more_needed")


class JsonLines:
    """Watches a campaign and tells machines. `clock_s` counts seconds, `wall_s` is the time of day."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        notes: TextIO,
        clock_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._write: Callable[[bytes], object] | None = write
        self._notes = notes
        self._clock_s, self._wall_s = clock_s, wall_s
        self._manifest: str | None = None
        self._progress: Progress | None = None
        self._course: Course | None = None
        self._next_s = 0.0

    # -- Watcher -----------------------------------------------------------------------------------

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """The run begins."""
        self._manifest = manifest.name
        broken = {finding.rule for spec in specs for finding in spec.broken_rules if finding.scope == "test"}
        tests = [spec.name for spec in specs]
        self._say("planned", folder=str(folder), tests=tests, broken_rules=sorted(broken))

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""
        self._next_s = self._clock_s() + LINE_EVERY_S
        self._say("preparing", what=what)

    def progressed(self, step: str, done: int, total: int) -> None:
        """How far the preparation of a data set is."""
        if self._is_time():
            self._say("prepared", step=step, done=done, total=total)

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """A worker has loaded its model."""
        node = facts.get("node", facts.get("host"))
        self._say("worker_ready", worker=facts["name"], node=node, device=facts.get("device"))

    def warned(self, text: str) -> None:
        """Something worth knowing that stops nothing: for people."""
        with contextlib.suppress(OSError, ValueError):  # who closes standard error wants no notes
            print(f"note: {text}", file=self._notes, flush=True)

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """A test begins."""
        self._progress, self._course = Progress(spec, self._clock_s()), None
        self._say(
            "test_began",
            test=spec.name,
            scenario=spec.scenario,
            mode=spec.mode,
            workers=list(workers),
            limit_ms=None if spec.limit_ns is None else spec.limit_ns / 1e6,
            expected_samples=self._progress.samples,
        )

    def event(self, event: dict[str, Any]) -> None:
        """The test process said something."""
        kind, progress = event["event"], self._progress
        if progress is None:
            return
        if kind == "running" and progress.start_clock(self._clock_s(), event.get("samples")):
            self._next_s = self._clock_s() + LINE_EVERY_S
            self._say("running", test=progress.spec.name)
        elif kind == "loss":
            told = {name: event[name] for name in ("worker", "reason", "moved")}
            self._say("loss", test=progress.spec.name, **told)
        elif kind == "stuck":
            self._say("stuck", test=progress.spec.name, worker=event["worker"])

    def tick(self, board: Board) -> None:
        """Some time has passed."""
        progress = self._progress
        if progress is None or progress.running_since_s is None:
            return
        progress.look(board, self._clock_s())
        if not self._is_time():
            return
        p50, p99 = progress.latency_ms() or (None, None)
        self._say(
            "progress",
            test=progress.spec.name,
            issued=progress.issued,
            completed=progress.completed,
            in_flight=max(progress.issued - progress.completed, 0),
            waiting=progress.waiting,
            over_limit=self._over_limit(board),
            rate_per_s=progress.rate,
            p50_ms=p50,
            p99_ms=p99,
            elapsed_s=progress.elapsed_s,
            left_s=progress.left_s,
            doing=progress.doing,
            course=self._heading(),
        )

    def judged(self, course: Course) -> None:
        """Where the test is heading."""
        self._course = course

    def test_ended(self, record: Record, folder: Path) -> None:
        """A test's record is written."""
        self._progress = self._course = None
        found, (value, unit, metric) = verdict(record), _figure(record)
        self._say(
            "test_ended",
            test=record.test,
            status=record.status,
            verdict=found.word,
            good=found.good,
            value=value,
            unit=unit,
            metric=metric,
            official=record.official,
            unofficial_because=record.unofficial_because,
            reasons=[*found.reasons] or ([] if found.good else [found.sentence]),
            folder=str(folder),
            wall_s=record.wall_s,
        )

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """The run is over."""
        good, official = (sum(map(bool, each)) for each in (map(_good, records), map(_official, records)))
        self._say("ended", folder=str(folder), tests=len(records), good=good, official=official)
        self._manifest = None

    # -- the program -------------------------------------------------------------------------------

    def campaign_ended(self, ended: Sequence[Ended], exit_code: int) -> None:
        """All manifests are through."""
        tests = [_told(part, record) for part in ended for record in part.records]
        empty = {"done_before": False, "verdict": None, "good": None}
        tests += [{"manifest": p.manifest, "test": name, **empty} for p in ended for name in p.not_run]
        self._say("campaign_ended", exit_code=exit_code, tests=tests)

    def close(self) -> None:
        """Nothing is held: every line was flushed."""

    # -- lines -------------------------------------------------------------------------------------

    def _over_limit(self, board: Board) -> int | None:
        """Of the same look as the course, where there is one: a line must not contradict itself."""
        if self._course is not None:
            return self._course.late
        limited = self._progress is not None and self._progress.spec.limit_ns is not None
        return board.total("over_limit") if limited else None

    def _heading(self) -> dict[str, Any] | None:
        if self._course is None:
            return None
        return {name: value for name, value in asdict(self._course).items() if name in COURSE_FIELDS}

    def _is_time(self) -> bool:
        """Whether a line of those that come once a second may come now."""
        now = self._clock_s()
        if now < self._next_s:
            return False
        self._next_s = now + LINE_EVERY_S
        return True

    def _say(self, event: str, **fields: Any) -> None:
        if self._write is None:
            return
        about = {"manifest": self._manifest} if self._manifest is not None else {}
        line = {"event": event, "time": round(self._wall_s(), 3), **about, **fields}
        try:
            self._write(json.dumps(line, allow_nan=False).encode() + b"\n")
        except OSError:  # the reader has left: the run goes on to its records
            self._write = None


def _figure(record: Record) -> tuple[float | None, str | None, str | None]:
    """Value, unit and name: LoadGen's metric, or the score of an accuracy test."""
    if record.kind != "accuracy":
        return record.result.value, record.result.unit, record.result.metric
    scored = record.accuracy
    return (scored.value, scored.unit, scored.metric) if scored else (None, None, None)


def _good(record: Record) -> bool:
    return verdict(record).good


def _official(record: Record) -> bool:
    return record.official


def _told(part: Ended, record: Record) -> dict[str, Any]:
    found = verdict(record)
    return {
        "manifest": part.manifest,
        "test": record.test,
        "done_before": record.test in part.done_before,
        "verdict": found.word,
        "good": found.good,
    }


@contextlib.contextmanager
def standard_output_for_machines() -> Iterator[Callable[[bytes], object]]:
    """Writes to standard output as it was; all that is printed otherwise within goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)

    def write(line: bytes) -> None:
        while line:
            line = line[os.write(kept, line) :]

    try:
        os.dup2(2, 1)
        yield write
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
