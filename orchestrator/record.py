"""record.json: what one test was, what came of it, and why anyone should believe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.course import Course
from orchestrator.plain_files import read_plain
from orchestrator.timings import ANSWERED, STAGES, Board, stage_summary

SCHEMA = "loadgrid.record/1"
LARGEST_BYTES = 64 << 20  # would be that of thousands of workers; of a few it has some 50 kB


class RecordError(Exception):
    """A record cannot be read; the text names the file and the field."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(_Part):
    """The verdict and the metric, from LoadGen's detail log alone.

    `overlatency_queries` is Server's result_overlatency_query_count: from the scheduled time, by LoadGen's
    clock. Records of before 2026-11-22 lack it.
    """

    valid: bool | None
    metric: str
    value: float | None
    unit: str
    reasons: list[str]
    percentiles_ms: dict[str, float] = {}
    errors: list[str] = []
    overlatency_queries: int | None = None


class Accuracy(_Part):
    """A scored accuracy test against its target."""

    metric: str
    value: float
    target: float
    unit: str
    reached: bool
    good: int | None
    total: int


class AuditedAnswers(_Part):
    """What TEST01 logged, against the accuracy test: by first elements of `dtype`, and by whole answers.

    Where first elements differ, `baseline` and `compliance` are both tests' scores of the same samples.
    """

    dtype: str
    logged: int
    compared: int
    missing: int
    first_differ: int
    whole_differ: int
    baseline: float | None = None
    compliance: float | None = None
    delta_percent: float | None = None
    allowed_percent: float | None = None


class Audit(_Part):
    """A compliance test's verification; `passed` is None, and `reason` says why, where there was none.

    `awaited`: it is the first half of a comparison; the verdict is in the record of the test named `against`.
    """

    test: str
    passed: bool | None
    reason: str
    against: str
    reference_score: float | None = None
    score: float | None = None
    allowed: float | None = None
    answers: AuditedAnswers | None = None
    awaited: bool = False

    @property
    def good(self) -> bool:
        """Whether it passed, or is one half of a comparison whose other half has the verdict."""
        return self.passed is True or self.awaited


class Power(_Part):
    """Power at the wall, from PTDaemon's readings within LoadGen's power_begin and power_end.

    `value` in `unit` is the round's figure (orchestrator.power.figures), `meter` PTDaemon's name for it.
    """

    value: float
    unit: str
    average_w: float
    samples: int
    window_s: float
    meter: str | None
    measured: Literal["wall measurement by PTDaemon"] = "wall measurement by PTDaemon"


class WorkerRecord(_Part):
    """One worker: what it is, what it answered, where its samples' time went.

    `busy_s`: with at least one batch in the engine. `tail_s`: from its last answer to the last of all; None
    if it gave none.
    """

    name: str
    node: str
    device: str
    model_hash: str
    samples: int
    batches: int
    mean_batch_size: float | None
    busy_s: float
    tail_s: float | None = None
    stages: dict[str, dict[str, Any]]
    facts: dict[str, Any]


class SeriesRecord(_Part):
    """The test over time: one value for each span of `span_s` since the clock's start, 600 at most.

    From the driver's own timings of answered samples: a sample is late beyond the scenario's limit, if it has
    one; `in_flight` is at a span's end.
    """

    span_s: float
    issued: list[int]
    completed: list[int]
    over_limit: list[int]
    p50_ms: list[float | None]
    p99_ms: list[float | None]
    in_flight: list[int]


class LossRecord(_Part):
    """A worker lost: when after the clock's start, why, and how many samples moved to others."""

    worker: str
    at_s: float | None
    reason: str
    moved: int


class Record(_Part):
    """One test. `official` is the conjunction of every reason why it might not be."""

    # "schema" would hide a method of pydantic's, so the name in the file is an alias.
    record_schema: str = SCHEMA
    test: str
    kind: Literal["performance", "accuracy", "compliance"]
    run: str
    round: str
    suite: str
    division: str
    benchmark: str
    scenario: str
    status: Literal["finished", "failed", "interrupted"]
    reason: str
    official: bool
    unofficial_because: list[str]
    result: Result
    accuracy: Accuracy | None
    audit: Audit | None = None
    power: Power | None = None
    settings: dict[str, Any]
    seeds: dict[str, int]
    payload_mode: str
    security: str
    index_approval: str | None
    on_loss: str
    workers: list[WorkerRecord]
    worker_differences: list[str]
    course: Course | None = None
    series: SeriesRecord | None = None
    losses: list[LossRecord]
    late_answers: int
    driver: dict[str, Any]
    loadgen: dict[str, Any]
    versions: dict[str, Any]
    hashes: dict[str, str | None]
    files: dict[str, str]
    started: str
    wall_s: float
    digest: str

    def to_json(self) -> bytes:
        """The file's bytes, `schema` first."""
        body = self.model_dump(mode="json")
        return json.dumps({"schema": body.pop("record_schema"), **body}, indent=1).encode() + b"\n"


def read_record(path: Path) -> Record:
    """Read a record.json; RecordError if it is none."""
    try:
        body = json.loads(read_plain(path, LARGEST_BYTES))
        if not isinstance(body, dict) or body.pop("schema", None) != SCHEMA:
            raise RecordError(f"{path} is not a {SCHEMA}")
        return Record.model_validate(body)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not JSON: {error}") from None


def series_record(board: Board) -> SeriesRecord | None:
    """The test over time; None where nothing was answered."""
    found = board.series.summary() if board.series is not None else None
    return None if found is None else SeriesRecord.model_validate(found)


def worker_records(facts: list[dict[str, Any]], board: Board) -> list[WorkerRecord]:
    """The workers of a test, with their stage times from the board."""
    records = []
    last_ns = board.counters[:, ANSWERED].max(initial=0)
    for i, fact in enumerate(facts):
        answered_ns = board.counter(i, "answered_ns")
        batches = board.counter(i, "batches")
        total = board.counter(i, "batch_samples")
        shown = {k: v for k, v in fact.items() if k not in ("name", "node", "device", "model_hash")}
        records.append(
            WorkerRecord(
                name=fact["name"],
                node=str(fact.get("node", fact.get("host", ""))),
                device=str(fact.get("device", "")),
                model_hash=str(fact.get("model_hash", "")),
                samples=board.counter(i, "samples"),
                batches=batches,
                mean_batch_size=round(total / batches, 2) if batches else None,
                busy_s=round(board.counter(i, "busy_ns") / 1e9, 4),
                tail_s=round(int(last_ns - answered_ns) / 1e9, 4) if answered_ns else None,
                stages={stage: stage_summary(board.stage(stage, i)) for stage in STAGES},
                facts=shown,
            )
        )
    return records
