"""Plans and records made by hand, for tests of what is shown: no LoadGen, no workers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from rich.console import Console as Terminal
from rich.console import RenderableType

from orchestrator.manifest import Manifest, parse_manifest
from orchestrator.plan import TestSpec, plan
from orchestrator.record import Accuracy, LossRecord, Record, Result, worker_records
from orchestrator.rules import load_round
from orchestrator.timings import COUNTERS, STAGES, Board, bucket_of
from orchestrator.verdict import METRICS

MANIFEST = """
name: shown
round: v6.1
suite: datacenter,edge
division: open
benchmark: resnet
scenarios: [SingleStream, MultiStream, Server, Offline]
task: {name: 'null'}
backend: {engine: echo}
workers: {count: 2}
loadgen:
  min_duration: 30000
  Server: {target_qps: 100, target_latency: 15}
  Offline: {target_qps: 1000}
"""
STAGE_MS = {
    "driver_queue": 0.1,
    "wire": 0.2,
    "worker_queue": 2.0,
    "compute": 7.0,
    "return": 0.3,
    "latency": 9.6,
}


def manifest(text: str = MANIFEST, **replaced: tuple[str, str]) -> Manifest:
    """The manifest, with texts replaced."""
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    return parse_manifest(text.encode(), "shown.yaml")


def specs(made: Manifest) -> list[TestSpec]:
    return plan(made, load_round(made.round))


def spec(scenario: str, test: str = "performance") -> TestSpec:
    return next(s for s in specs(manifest()) if (s.scenario, s.test) == (scenario, test))


def board(samples: list[int], stage_ms: list[dict[str, float]] | None = None, batch: int = 2) -> Board:
    """A board on which worker i has answered samples[i], each with the stage times stage_ms[i]."""
    made = Board(len(samples))
    for i, count in enumerate(samples):
        for stage, ms in (stage_ms[i] if stage_ms else STAGE_MS).items():
            bucket = int(bucket_of(np.array([int(ms * 1e6)]))[0])
            made.histograms[i, STAGES.index(stage), bucket] = count
        values = {
            "samples": count,
            "batches": count // batch,
            "batch_samples": count,
            "busy_ns": count * 7_000_000,
        }
        for name, value in values.items():
            made.counters[i, COUNTERS.index(name)] = value
    made.set_total("issued", sum(samples) + 3)
    made.set_total("completed", sum(samples))
    made.set_total("waiting", 1)
    return made


def driver(**changed: Any) -> dict[str, Any]:
    """What a record says of the driver: 100 samples/s on 5 % of a core, issued promptly."""
    late = {"queries": 3000, "p50_ms": 0.05, "p99_ms": 0.3, "max_ms": 1.0}
    known = {"cpu_us_per_sample": 500.0, "cpu_share": 0.05, "issue_lateness": late}
    known |= {"answering_s": 30.0, "issue": "in place"}
    return known | {"foreign_answers": 0, "issued": 3000, "completed": 3000} | changed


def pauses(still: float = 0.0, crowded: float = 0.0) -> dict[str, dict[str, Any]]:
    """What a record says of its host's pauses: one of so many ms of each kind, or none."""
    kinds = {"stood_still": still, "no_processor_free": crowded}
    return {kind: {"count": int(ms > 0), "longest_ms": ms, "sum_ms": ms} for kind, ms in kinds.items()}


def record(scenario: str = "Server", kind: str = "performance", **changed: Any) -> Record:
    """A finished, VALID or accurate test of two workers, with fields changed."""
    made, samples = spec(scenario, kind), changed.pop("samples", [2000, 1000])
    counted = board(samples, changed.pop("stage_ms", None))
    metric, unit, _ = METRICS[scenario]
    facts = [
        {"name": f"worker-{i}", "node": "node-a", "device": "cpu", "model_hash": "h"}
        for i in range(len(samples))
    ]
    performance = kind == "performance"
    values: dict[str, Any] = {
        "test": made.name,
        "kind": kind,
        "run": "shown-1",
        "round": made.round,
        "suite": made.suite,
        "division": made.division,
        "benchmark": made.benchmark,
        "scenario": scenario,
        "status": "finished",
        "reason": "",
        "official": False,
        "unofficial_because": ["model: the echo backend computes nothing"],
        "result": Result(
            valid=True if performance else None,
            metric=metric,
            value=99.5 if performance else None,
            unit=unit,
            reasons=[],
            percentiles_ms={"p50": 9.4, "p90": 10.2, "p99": 12.6} if performance else {},
        ),
        "accuracy": None if performance else score(18),
        "settings": made.settings,
        "seeds": made.seeds,
        "payload_mode": "index",
        "security": "curve",
        "on_loss": "reissue",
        "workers": worker_records(facts, counted),
        "worker_differences": [],
        "losses": [],
        "late_answers": 0,
        "driver": driver(),
        "loadgen": {},
        "versions": {},
        "hashes": {},
        "files": {},
        "index_approval": None,
        "started": "",
        "wall_s": 31.5,
        "digest": "",
    }
    return Record(**values | changed)


def invalid(reasons: list[str], **changed: Any) -> Result:
    """What LoadGen says of a Server test that it does not accept."""
    late = {"p50": 67.0, "p90": 108.0, "p99": 120.0}
    return Result(
        valid=False, metric="throughput", value=90.0, unit="queries/s", reasons=reasons,
        percentiles_ms=changed.get("percentiles_ms", late),
    )  # fmt: skip


def score(good: int, target: float = 90.0) -> Accuracy:
    """So many of twenty right."""
    value = 5.0 * good
    return Accuracy(
        metric="acc", value=value, target=target, unit="percent", reached=value >= target, good=good, total=20
    )


def loss(worker: str = "worker-1") -> LossRecord:
    return LossRecord(worker=worker, at_s=12.3, reason="its link to the test closed", moved=14)


def shown(*parts: RenderableType, width: int = 80, height: int = 40) -> str:
    file = io.StringIO()
    terminal = Terminal(file=file, width=width, height=height, highlight=False)
    for part in parts:
        terminal.print(part)
    return file.getvalue()


def words(text: str) -> str:
    """Text with its line breaks and runs of blanks gone, so that wrapping does not matter."""
    return " ".join(text.split())
