"""The path with a null model, and a session at which it is tested at several rates: what `bench` measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.campaign import Session
from orchestrator.manifest import Manifest, parse_manifest
from orchestrator.paths import RunPaths
from orchestrator.plan import TestSpec, plan
from orchestrator.quiet import Quiet, as_typed, told_as_typed
from orchestrator.record import Record
from orchestrator.rules import load_round
from orchestrator.watching import Watcher, Watchers

LIMIT_MS = 15
SAMPLES = 1024

# What messages call by the field of a manifest is an option here.
OPTIONS = {
    "workers.count": "--workers",
    "workers.num_cpus": "--num-cpus",
    "workers.max_batch": "--max-batch",
    "dispatch.security": "--security",
    "backend.response_bytes": "--response-bytes",
    "task.count": "--payload-bytes",  # which says how many samples there are
}


@dataclass(frozen=True)
class NullPath:
    """What is measured: the path's shape, without the rate."""

    workers: int
    payload_bytes: int
    response_bytes: int
    security: str
    max_batch: int
    io_threads: int
    num_cpus: float = 0.0
    where: str = "ray"

    def manifest(self, scenario: str, qps: float, duration_s: float) -> Manifest:
        """A manifest that runs this path at one rate."""
        count = SAMPLES if self.payload_bytes < 1 << 20 else 64
        body: dict[str, Any] = {
            "name": "bench",
            "round": "v6.1",
            "suite": "datacenter,edge",
            "division": "open",
            "benchmark": "resnet",
            "scenarios": [scenario],
            "runs": ["performance"],
            "task": {"name": "null", "count": count, "sample_bytes": max(self.payload_bytes, 4)},
            "backend": {"engine": "echo", "response_bytes": self.response_bytes},
            "workers": {
                "where": self.where,
                "count": self.workers,
                "num_cpus": self.num_cpus,
                "max_batch": self.max_batch,
            },
            "dispatch": {
                "payload": "value" if self.payload_bytes else "index",
                "security": self.security,
                "io_threads": self.io_threads or None,
            },
            "loadgen": {
                "performance_sample_count_override": count,
                "min_duration": int(duration_s * 1000),
                "min_query_count": 1,
                scenario: {"target_qps": qps},
            },
        }
        if scenario == "Server":
            body["loadgen"]["Server"]["target_latency"] = LIMIT_MS
        return parse_manifest(json.dumps(body).encode(), "bench")


class Bench:
    """A session at which tests of several rates can be run."""

    def __init__(self, path: NullPath, address: str, folder: Path, note: Callable[[str], None]) -> None:
        self._path = path
        self._quiet = Quiet(lambda text: note(as_typed(text, OPTIONS)))
        with told_as_typed(OPTIONS):
            self._session = Session(path.manifest("Server", 1.0, 1.0), address, self._quiet)
        self._folder = folder

    def __enter__(self) -> Bench:
        with told_as_typed(OPTIONS):
            self._session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.__exit__()

    def test(
        self, scenario: str, qps: float, duration_s: float, *watchers: Watcher
    ) -> tuple[Record, TestSpec, Path]:
        """Run one test, watched by whom you name; returns its record, its spec and its folder."""
        self._session.watcher = Watchers(self._quiet, *watchers)
        manifest = self._path.manifest(scenario, qps, duration_s)
        spec = plan(manifest, load_round(manifest.round))[0]
        run = RunPaths.new(self._folder, "bench")
        return self._session.run(spec, run), spec, run.root / spec.name
