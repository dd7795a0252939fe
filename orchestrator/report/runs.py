"""The records of one run's folder, read with suspicion: a folder may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.campaign_files import planned_tests
from orchestrator.journey import driver_was_the_limit, rows
from orchestrator.paths import EARLIER, RECORD
from orchestrator.phrases import (
    Verdict,
    late_by_driver,
    late_by_loadgen,
    limit_ms,
    result,
    result_name,
    verdict,
)
from orchestrator.record import Record, RecordError, SeriesRecord, read_record
from orchestrator.report.proof import Proof, proof_of, verdict_of
from orchestrator.timings import BUCKETS, MOST_SPANS, STAGES

MOST_BYTES = 256 * 2**20  # a record of 1,000 workers has some 40 MB
MOST_COUNT = 2**53  # beyond it a count is no number that a page could show
# Names shall steer neither a terminal nor a figure.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class ReportError(Exception):
    """What a report cannot be made of; the text names the file."""


@dataclass(frozen=True)
class Run:
    """One run: its folder's name, and its tests in the order in which they were run.

    `unfinished` are folders of tests that have no record, `never_ran` planned tests without any folder.
    """

    name: str
    folder: Path
    records: Sequence[Record]
    unfinished: Sequence[str] = ()
    never_ran: Sequence[str] = ()
    proofs: Sequence[Proof] = ()  # of `records`, in their order; none where no file was looked at

    @property
    def proven(self) -> list[tuple[Record, Proof]]:
        """Every record with what its logs say of it."""
        return list(zip(self.records, self.proofs or [Proof()] * len(self.records), strict=True))

    @property
    def verdicts(self) -> list[Verdict]:
        """Of every test, as far as its record is to be believed."""
        return [verdict_of(record, proof) for record, proof in self.proven]


def plain(text: str) -> str:
    """A text that is only that: no control characters, nothing that turns the line's direction."""
    return _CONTROL.sub("?", text)


def read_run(folder: Path) -> Run:
    """The run of a folder, or of one test's folder; ReportError if there is none or a record is damaged."""
    if not folder.is_dir():
        raise ReportError(f"{plain(str(folder))} is not a folder of a run")
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        own = (folder / RECORD).is_file()
        found = [folder] if own else [path for path in inside if (path / RECORD).is_file()]
    except OSError as error:
        raise ReportError(f"{plain(str(folder))}: {error.strerror}") from None
    unfinished = [] if own else [path.name for path in inside if ".partial" in path.name]
    found = [path for path in found if path.name not in unfinished and (own or EARLIER not in path.name)]
    if not found and not unfinished:
        raise ReportError(f"{plain(str(folder))} holds no test with a {RECORD}")
    known = sorted(((_record(path / RECORD), path) for path in found), key=lambda pair: pair[0].started)
    records, proofs = [made for made, _ in known], [proof_of(*pair) for pair in known]
    begun = {record.test for record in records} | {name.partition(".partial")[0] for name in unfinished}
    never_ran = [] if own else [plain(name) for name in planned_tests(folder) if name not in begun]
    return Run(plain(folder.resolve().name), folder, records, unfinished, never_ran, proofs)


def _record(path: Path) -> Record:
    try:
        if path.is_symlink():
            raise ReportError(f"{plain(str(path))} is a link, not a record")
        if path.stat().st_size > MOST_BYTES:
            raise ReportError(f"{plain(str(path))} is larger than {MOST_BYTES >> 20} MiB, so it is no record")
        record = read_record(path)
    except (RecordError, OSError, RecursionError, MemoryError) as error:
        raise ReportError(
            plain(f"{error}" if isinstance(error, RecordError) else f"{path}: {error}")
        ) from None
    if trouble := _trouble(record):
        raise ReportError(plain(f"{path} is damaged: {trouble}"))
    return record


def _trouble(record: Record) -> str:
    """What of a record that can be read makes no sense."""
    for worker in record.workers:
        if missing := [stage for stage in STAGES if stage not in worker.stages]:
            return f"workers.{worker.name}.stages has no {missing[0]}"
        for stage in STAGES:
            if not _is_histogram(worker.stages[stage].get("histogram")):
                return f"workers.{worker.name}.stages.{stage}.histogram is none"
        if worker.samples < 0 or worker.batches < 0 or not 0 <= worker.busy_s < MOST_COUNT:
            return f"workers.{worker.name}: a count is below zero"
    counts = {
        "result.overlatency_queries": record.result.overlatency_queries,
        "driver.completed": record.driver.get("completed"),
    }
    for name, count in counts.items():
        if count is not None and not (type(count) is int and 0 <= count < MOST_COUNT):
            return f"{name} is no count"
    if record.series is not None and not _is_series(record.series):
        return "series: the lists are not of one length, or too long"
    try:
        verdict(record), result(record), limit_ms(record), driver_was_the_limit(record), rows(record)
        result_name(record), late_by_loadgen(record), late_by_driver(record)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        return f"its figures or settings make no sense ({type(error).__name__}: {error})"
    return ""


def _is_histogram(found: object) -> bool:
    if not isinstance(found, dict) or len(found) > BUCKETS:
        return False
    keys = all(key.isascii() and key.isdigit() and len(key) < 5 and int(key) < BUCKETS for key in found)
    return keys and all(type(n) is int and 0 <= n < MOST_COUNT for n in found.values())


def _is_series(series: SeriesRecord) -> bool:
    lists = [value for value in vars(series).values() if isinstance(value, list)]
    counts = [n for value in lists for n in value if n is not None]
    same = {len(value) for value in lists} == {len(series.issued)}
    sensible = all(abs(n) < MOST_COUNT for n in counts)
    return same and 0 < len(series.issued) <= MOST_SPANS and 0 < series.span_s < MOST_COUNT and sensible
