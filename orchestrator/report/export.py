"""The figures' numbers as CSV and JSON, for those who want to draw their own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.journey import merged_histogram
from orchestrator.phrases import limit_ms
from orchestrator.record import Record, WorkerRecord
from orchestrator.report.compare import compare
from orchestrator.report.facts import losses, rules_on_settings, stragglers
from orchestrator.report.proof import Proof, verdict_of
from orchestrator.report.runs import Run, plain
from orchestrator.timings import PER_OCTAVE, STAGES, bucket_edges_ns

SCHEMA = "loadgrid.report/1"
STAGE_FIGURES = ("mean_ms", "p50_ms", "p90_ms", "p99_ms")
SERIES = ("issued", "completed", "over_limit", "in_flight", "p50_ms", "p99_ms")


def histogram_csv(runs: Sequence[Run]) -> str:
    """Samples by stage and time, all workers added: a line for each bucket that holds any."""
    upper_ms = bucket_edges_ns() / 1e6
    lower_ms = upper_ms * 2 ** (-1 / PER_OCTAVE)
    lines = (
        (run.name, record.test, stage, f"{lower_ms[at]:.6g}", f"{upper_ms[at]:.6g}", int(count))
        for run, record in _tests(runs)
        for stage in STAGES
        for at, count in enumerate(merged_histogram(record.workers, stage))
        if count
    )
    return _csv(("run", "test", "stage", "from_ms", "to_ms", "samples"), lines)


def series_csv(runs: Sequence[Run]) -> str:
    """The tests over time: a line for each span."""
    lines = (
        (
            run.name,
            record.test,
            f"{n * series.span_s:g}",
            series.span_s,
            *(getattr(series, s)[n] for s in SERIES),
        )
        for run, record in _tests(runs)
        if (series := record.series) is not None
        for n in range(len(series.issued))
    )
    return _csv(("run", "test", "from_s", "span_s", *SERIES), lines)


def stages_csv(runs: Sequence[Run]) -> str:
    """Every worker's stages: a line for each."""
    lines = (
        (run.name, record.test, *_who(w), stage, *(w.stages[stage].get(name) for name in STAGE_FIGURES))
        for run, record in _tests(runs)
        for w in record.workers
        for stage in STAGES
    )
    who = ("worker", "node", "device", "samples", "batches", "mean_batch_samples", "busy_s")
    return _csv(("run", "test", *who, "stage", *STAGE_FIGURES), lines)


def losses_csv(runs: Sequence[Run]) -> str:
    """Every worker that was lost: a line for each; `at_s` counts from the start of the test's clock."""
    heads = ("worker", "node", "at_s", "moved", "reason")
    lines = (
        (run.name, record.test, *(getattr(one, head) for head in heads))
        for run, record in _tests(runs)
        for one in losses(record)
    )
    return _csv(("run", "test", *heads), lines)


def _who(w: WorkerRecord) -> tuple[Any, ...]:
    return w.name, w.node, w.device, w.samples, w.batches, w.mean_batch_size, w.busy_s


def as_json(runs: Sequence[Run]) -> str:
    """The records, and what the report made of them."""
    body = {
        "schema": SCHEMA,
        "runs": [_run(run) for run in runs],
        "comparisons": [
            {
                "test": one.test,
                "runs": one.letters,
                "judged": [vars(found) for found in one.judged],
                "not_comparable": one.not_comparable,
                "quantities": [
                    {"name": q.name, "values": q.values, "spread": q.spread} for q in one.quantities
                ],
            }
            for one in compare(runs, pictures=False)
        ],
    }
    return json.dumps(body, indent=1) + "\n"


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "unfinished": list(run.unfinished),
        "never_ran": list(run.never_ran),
        "tests": [_test(*pair) for pair in run.proven],
    }


def _test(record: Record, proof: Proof) -> dict[str, Any]:
    found = verdict_of(record, proof)
    return {
        "verdict": found.word,
        "why": found.sentence,
        "compared_with": list(proof.logs),
        "doubts": [plain(text) for text in proof.doubts],
        "limit_ms": limit_ms(record),
        "losses": [vars(one) for one in losses(record)],
        "stragglers": [vars(one) for one in stragglers(record)],
        "rules": [vars(one) for one in rules_on_settings(record)],
        "record": json.loads(record.to_json()),
    }


def _tests(runs: Sequence[Run]) -> list[tuple[Run, Record]]:
    return [(run, record) for run in runs for record in run.records]


def _csv(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """A cell; a name that a spreadsheet would take for a formula gets a quote in front."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
