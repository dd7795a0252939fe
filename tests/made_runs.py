"""Run folders as `loadgrid run` leaves them, made: logs, records with hashes, scores that are stubs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.audit import RESULTS
from orchestrator.logs import read_detail
from orchestrator.manifest import parse_manifest
from orchestrator.paths import (
    ACCURACY_LOG,
    ACCURACY_TXT,
    AUDIT_CONFIG,
    DETAIL,
    MANIFEST,
    RECORD,
    SUMMARY,
    USER_CONF,
    VERIFY_ACCURACY,
    VERIFY_PERFORMANCE,
)
from orchestrator.plan import plan
from orchestrator.record import Accuracy, Audit, Record, WorkerRecord, read_record
from orchestrator.rules import load_round
from orchestrator.submission.layout import layout_of
from orchestrator.submission.system import NETWORK_FIELDS, required
from orchestrator.verdict import result_of
from tests import made_logs, made_records

STUB = "a stub: no network computed it"
VERSIONS = {"v1.0": ".5a1", "v1.1": "1.1", "v6.1": "6.0.17"}
RESULT: dict[str, dict[str, Any]] = {
    "SingleStream": {
        "result_90.00_percentile_latency_ns": 900_000,
        "result_mean_latency_ns": 800_000,
        "early_stopping_latency_ss": 910_000,
        "early_stopping_latency_ms": 1_200_000,
    },
    "MultiStream": {
        "early_stopping_latency_ms": 6_000_000,
        "result_mean_query_latency_ns": 5_000_000,
        "effective_samples_per_query": 8,
    },
    "Server": {"result_completed_samples_per_sec": 990.0, "result_scheduled_samples_per_sec": 1000.0},
    "Offline": {"result_samples_per_second": 5000.0},
}
TEXT = """name: {name}
round: {round}
suite: {suite}
division: {division}
benchmark: {benchmark}
scenarios: [{scenarios}]
task: {{name: {task}, path: data, sha256: {library}{truth}}}
backend: {backend}
{placed}
"""
LOCAL = "workers: {where: local}"
PLACED = {"network": "workers: {where: ray}\ndispatch: {payload: value}"}
TORCH = (
    "{{engine: torch, model: {model}, weights: w/net.pth, precision: fp16, weights_sha256: " + "a" * 64 + "}}"
)


def made_run(
    runs: Path,
    scenarios: Sequence[str] = ("SingleStream",),
    *,
    name: str = "made",
    tests: Sequence[str] | None = None,
    round_name: str = "v6.1",
    suite: str = "edge",
    division: str = "closed",
    benchmark: str = "resnet",
    backend: str = TORCH,
    model: str | None = None,
    entries: int = 10,
    **changed: Any,
) -> Path:
    """A run of official tests, by default all that its division asks for, with fields of records changed."""
    found = load_round(round_name)
    known = found.benchmark(benchmark)
    model = model or known.reference.model
    run = runs / f"{name}-20260101-000000"
    run.mkdir(parents=True)
    manifest = TEXT.format(
        name=name, round=round_name, suite=suite, division=division, benchmark=benchmark,
        scenarios=", ".join(scenarios), task=known.reference.task, backend=backend.format(model=model),
        library="d" * 64, truth=", truth: labels" if known.reference.task == "brats" else "",
        placed=PLACED.get(division, LOCAL),
    )  # fmt: skip
    (run / MANIFEST).write_text(manifest)
    for scenario in scenarios:
        audits = found.compliance_tests(benchmark, scenario) if division != "open" else ()
        for test in tests if tests is not None else (*RESULTS, *audits):
            folder = run / f"{scenario}-{test}"
            folder.mkdir()
            line, score = _score(known.accuracy)
            _write_logs(folder, VERSIONS[round_name], scenario, test, entries, line)
            record = _record(run, scenario, test, model, score)
            fields = {"round": round_name, "suite": suite, "division": division, "benchmark": known.name}
            fields |= {"payload_mode": "value" if division == "network" else "index"}
            record = record.model_copy(update=fields)
            finish(folder, _as_logged(run, folder, record).model_copy(update=changed))
    return run


# As a scorer prints it, where the round's own rules have no example.
LINES = {
    "acc": "accuracy=76.5%",
    "DICE": "Accuracy: mean = 0.86170",
    "F1": '{"exact_match": 83.1, "f1": 90.9}',
    "AUC": "AUC=80.300%",
    "mAP": "mAP=37.600%",
    "WER": "Word Error Rate: 7.4%, accuracy=92.6%",
}


def _score(rules: Any) -> tuple[str, Accuracy]:
    """A scorer's line that reaches the target, and the record of it."""
    line = rules.example or LINES[rules.metric]
    seen = re.match(rules.pattern, line)
    assert seen, line
    if rules.example:
        line = f"{line[: seen.start(1)]}{rules.target * 1.0001:.6f}{line[seen.end(1) :]}"
        seen = re.match(rules.pattern, line)
        assert seen, line
    return line, Accuracy(
        metric=rules.metric, value=float(seen[1]), target=rules.target, unit=rules.unit, reached=True,
        good=None, total=10,
    )  # fmt: skip


def _as_logged(run: Path, folder: Path, record: Record) -> Record:
    """The record with the verdict and the figure of the log that lies there."""
    manifest = parse_manifest((run / MANIFEST).read_bytes())
    specs = plan(manifest, load_round(record.round))
    spec = next(s for s in specs if s.scenario == record.scenario)
    return record.model_copy(update={"result": result_of(spec, read_detail(folder / DETAIL), True)})


def _write_logs(folder: Path, version: str, scenario: str, test: str, entries: int, line: str) -> None:
    result = dict(RESULT[scenario]) if test != "accuracy" else {}
    text = made_logs.detail(version, scenario, result, samples_per_query=1)
    if test == "accuracy":  # LoadGen gives no verdict on one
        text = "".join(part for part in text.splitlines(True) if "result_validity" not in part)
    (folder / DETAIL).write_text(text)
    (folder / SUMMARY).write_text(
        "No warnings encountered during test.\n\nNo errors encountered during test.\n"
    )
    (folder / USER_CONF).write_text(f"*.{scenario}.min_duration = 600000\n")
    if test not in RESULTS:
        (folder / AUDIT_CONFIG).write_text("*.*.mode = 2\n")
    if test in ("accuracy", "TEST01"):
        made_logs.accuracy_log(folder / ACCURACY_LOG, [(i, b"\1\2\3\4") for i in range(entries)])
    if test == "accuracy":
        digest = hashlib.sha256((folder / ACCURACY_LOG).read_bytes()).hexdigest()
        (folder / ACCURACY_TXT).write_text(f"{line}\nhash={digest}\n")
    if test.startswith("TEST") and test != "TEST04-A":
        (folder / VERIFY_PERFORMANCE).write_text("TEST PASS\n")
    if test == "TEST01":
        (folder / VERIFY_ACCURACY).write_text("TEST PASS\n")


@cache
def _plain(scenario: str, kind: str) -> Record:
    """Making one plans a manifest, which takes a while."""
    return made_records.record(scenario, kind)


def _record(run: Path, scenario: str, test: str, model: str, score: Accuracy) -> Record:
    """An official record, which no real stub could have."""
    manifest = hashlib.sha256((run / MANIFEST).read_bytes()).hexdigest()
    facts: dict[str, Any] = {
        "engine": "torch",
        "model": model,
        "weights": "net.pth",
        "weights_sha256": "a" * 64,
    }
    facts |= {"precision": "fp16", "code": "c" * 64, "host": "node-a", "versions": {"torch": "2.8.0"}}
    worker = WorkerRecord(
        name="worker-0", node="node-a", device="NVIDIA H100", model_hash="h" * 64, samples=1, batches=1,
        mean_batch_size=1.0, busy_s=1.0, stages={}, facts=facts,
    )  # fmt: skip
    kind = test if test in RESULTS else "performance"
    changes: dict[str, Any] = {
        "test": f"{scenario}-{test}",
        "run": run.name,
        "official": True,
        "unofficial_because": [],
        "accuracy": score if test == "accuracy" else None,
        "workers": [worker],
        "started": "2026-01-01T00:00:00+0000",
        "hashes": {"manifest": manifest, "library": "d" * 64},
        "loadgen": {"version": "6.0.17", "sha256": "e" * 64, "file": "mlperf_loadgen.so", "path": None},
        "versions": {"loadgrid": "0.1.0", "commit": "f" * 40, "dirty": False, "python": "3.11.7"},
    }
    if test not in RESULTS:
        changes |= {"kind": "compliance", "audit": _audit(scenario, test)}
    return _plain(scenario, kind).model_copy(update=changes)


def _audit(scenario: str, test: str) -> Audit:
    awaited = test == "TEST04-A"
    return Audit(
        test=test, passed=None if awaited else True, reason=STUB, against=f"{scenario}-performance",
        awaited=awaited,
    )  # fmt: skip


def finish(folder: Path, record: Record) -> None:
    """Write the record, with the hashes of the files that lie there now."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    (folder / RECORD).write_bytes(record.model_copy(update={"files": files}).to_json())


def rerecord(folder: Path, **changed: Any) -> None:
    """The record of a test anew: files as they are now, fields changed."""
    finish(folder, read_record(folder / RECORD).model_copy(update=changed))


def made_system(folder: Path, round_name: str = "v6.1", name: str = "sys-1", **values: Any) -> Path:
    """A description that the round's checker takes; a value of None takes the field away."""
    told: dict[str, Any] = {field.name: field.example for field in required(layout_of(round_name))}
    told |= {
        "submitter": "ACME",
        "system_name": "One node",
        "status": "available",
        "sw_notes": "",
        "hw_notes": "",
    }
    told |= {
        "division": "closed",
        "system_type": "edge",
        "number_of_nodes": "1",
        "accelerators_per_node": "1",
    }
    told |= {"accelerator_model_name": "NVIDIA H100", **values}
    if told["division"] == "network":
        told |= {key: field.example for key, field in NETWORK_FIELDS.items()} | {"is_network": "true"}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    return path
