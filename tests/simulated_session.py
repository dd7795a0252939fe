"""Stands for a session of real workers: tests of a simulated queue, true records in true folders."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console as Terminal

from orchestrator import peak as peak_module
from orchestrator.campaign import SetUpError
from orchestrator.campaign_files import Campaign, newest_campaign
from orchestrator.course import HOPELESS, Course
from orchestrator.manifest import Manifest, load_manifest
from orchestrator.paths import DETAIL, RECORD, RunPaths, write_atomically
from orchestrator.peak import PEAK_NAME, Peak
from orchestrator.peak_history import Found
from orchestrator.peak_probe import limit_ms, own_value
from orchestrator.peakview import show_peak
from orchestrator.plan import TestSpec
from orchestrator.present import Present, present_of
from orchestrator.quiet import Quiet
from orchestrator.record import Record, Result, SeriesRecord
from orchestrator.stop import Stop
from tests import made_records
from tests.simulated_queue import PROBE_QUERIES, Queue

SERVER = """
name: echoes
round: v6.1
suite: datacenter,edge
division: open
benchmark: resnet
scenarios: [Server, Offline]
runs: [performance, accuracy]
task: {name: 'null', count: 20}
backend: {engine: echo, service_time_us: 1000}
workers: {where: local, count: 1, max_batch: 1}
loadgen:
  min_duration: 60000
  Server: {target_qps: 300, min_query_count: 270336}
  Offline: {target_qps: 1000}
"""
MS = 1e-3


class System:
    """Stands for orchestrator.campaign.Session: tests of a simulated queue, true records in true folders.

    `faults`: what becomes of the test with this number. `most_batch`: larger batches cannot be started.
    """

    def __init__(self, rng: np.random.Generator, **queue: float) -> None:
        self.values = {"limit_s": 15 * MS, "sample_s": 1 * MS} | queue
        self.seed = int(rng.integers(2**32))
        self.ran: list[str] = []
        self.faults: dict[int, dict[str, Any]] = {}
        self.most_batch = 10**6
        self.sessions = 0
        self.known: Present | None = None
        self.queues: dict[int, Queue] = {}

    def queue(self, max_batch: int) -> Queue:
        if max_batch not in self.queues:
            rng = np.random.default_rng(self.seed)
            self.queues[max_batch] = Queue(rng, max_batch=max_batch, **self.values)  # type: ignore[arg-type]
        return self.queues[max_batch]

    def present(self, manifest: Manifest, library: Any) -> Present:
        """What a test of a manifest runs on; the code is looked at once."""
        self.known = self.known or present_of(manifest, library)
        return replace(self.known, manifest=hashlib.sha256(manifest.raw).hexdigest(), library=library.digest)

    def session(self, manifest: Manifest, *rest: Any) -> Session:
        self.sessions += 1
        return Session(self, manifest, rest[-1])


class Session:
    def __init__(self, system: System, manifest: Manifest, library: Any) -> None:
        self.system, self.manifest, self.library, self.power = system, manifest, library, None

    def __enter__(self) -> Session:
        if self.manifest.workers.max_batch > self.system.most_batch:
            raise SetUpError("out of memory")
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def run(self, spec: TestSpec, run: RunPaths) -> Record:
        paths = run.test(spec.name)
        folder = paths.begin()
        fault = self.system.faults.get(len(self.system.ran), {})
        self.system.ran.append(f"{run.root.name.rsplit('-', 2)[0]}/{spec.name}")
        record = self._record(spec, folder, run).model_copy(update=fault)
        write_atomically(folder / RECORD, record.to_json())
        paths.finish()
        return record

    def _record(self, spec: TestSpec, folder: Path, run: RunPaths) -> Record:
        played = self._play(spec)
        settings = spec.settings
        wanted: dict[str, Any] = {"valid": played["valid"], "metric": "throughput"}
        log = {
            "result_overlatency_query_count": played["late"],
            "result_completed_samples_per_sec": played["qps"],
        }
        lines = [f':::MLLOG {{"key": "{key}", "value": {value}}}' for key, value in log.items()]
        (folder / DETAIL).write_text("\n".join(lines) + "\n")
        now = self.system.present(self.manifest, self.library)
        hopeless = played["hopeless"]
        result = Result(
            **wanted, value=played["qps"], unit="queries/s", reasons=[], percentiles_ms=played["p"]
        )
        course = Course(
            "cannot pass",
            "",
            played["late"],
            played["queries"],
            int(settings["min_query_count"]),
            None,
            9,
            None,
        )
        return made_records.record("Server", samples=[10]).model_copy(
            update={
                "test": spec.name, "run": run.root.name, "scenario": spec.scenario, "digest": spec.digest,
                "settings": settings, "status": "failed" if hopeless else "finished",
                "reason": f"{HOPELESS}: too many" if hopeless else "",
                "result": result.model_copy(update={"valid": None}) if hopeless else result,
                "course": course if hopeless else None,
                "series": SeriesRecord(
                    span_s=1.0, issued=[], completed=[round(played["qps"])] * 5, over_limit=[],
                    p50_ms=[], p99_ms=[], in_flight=[],
                ),
                "driver": made_records.driver(completed=played["queries"]),
                "hashes": {"manifest": now.manifest, "library": now.library},
                "loadgen": {"file": "lg", "sha256": None if hopeless else now.loadgens[""]},
                "versions": now.versions | {"commit": now.commit},
                "files": {DETAIL: hashlib.sha256((folder / DETAIL).read_bytes()).hexdigest()},
                "unofficial_because": [f"{f.rule}: {f.why}" for f in spec.broken_rules],
            }
        )  # fmt: skip

    def _play(self, spec: TestSpec) -> dict[str, Any]:
        if spec.scenario == "MultiStream":
            strain = (3 + own_value(spec)) * MS / (limit_ms(spec) / 1e3)
            p99 = {"p99": strain * limit_ms(spec)}
            return {"valid": strain <= 1, "late": 0, "hopeless": False, "qps": 1.0, "p": p99, "queries": 1000}
        queue, qps = self.system.queue(self.manifest.workers.max_batch), float(own_value(spec))
        short = self.manifest.stop_when_hopeless
        assert int(spec.settings["min_query_count"]) == (PROBE_QUERIES if short else 270_336)
        played = queue.probe(qps) if short else queue.full(qps)
        p99 = {} if played.hopeless else {"p99": 1e3 * played.p99_s}
        return {
            "valid": played.valid, "late": played.late, "hopeless": played.hopeless,
            "qps": played.delivered, "p": p99, "queries": played.queries,
        }  # fmt: skip


# `loadgrid peak` over it


def in_place(system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    """Lets searches run on a simulated system."""
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak_module, "Session", system.session)
    return system


def written(folder: Path, text: str = SERVER) -> Manifest:
    file = folder / "echoes.yaml"
    file.write_text(text)
    return load_manifest(file)


def search(
    manifest: Manifest, runs: Path, resume: bool = False, probes: int = 12, tune: bool = False, **changed: Any
) -> Found:
    campaign = newest_campaign(runs, [f"{manifest.name}{PEAK_NAME}"]) if resume else None
    notes: list[str] = changed.pop("notes", [])
    stop = changed.pop("stop", Stop())
    campaign = campaign or Campaign(runs)
    return Peak(manifest, campaign, "local", Quiet(notes.append), stop, probes).find(tune)


def told(found: Found) -> str:
    return made_records.words(shown_text(found))


def shown_text(found: Found) -> str:
    out = io.StringIO()
    show_peak(found, Terminal(file=out, width=100), "loadgrid peak M --resume")
    return out.getvalue()
