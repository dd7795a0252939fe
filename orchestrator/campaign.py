"""One manifest, run: plan, workers, each test in turn, scores, records, exit code."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator import cluster
from orchestrator.evidence import Crew, Evidence
from orchestrator.manifest import Manifest
from orchestrator.order import LocalWorker, Seat, TestOrder
from orchestrator.paths import MANIFEST, RECORD, USER_CONF, RunPaths, cache_dir, write_atomically
from orchestrator.plan import TestSpec, plan
from orchestrator.provenance import commit_of
from orchestrator.record import Record
from orchestrator.rules import Round, load_round
from orchestrator.supervise import Hooks, run_test
from orchestrator.timings import Board
from workers.host import WorkerSpec
from workers.library import Library, LibraryError
from workers.tasks import TaskError, open_task

EXIT_VALID, EXIT_INVALID, EXIT_USAGE, EXIT_SETUP, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130
# Payloads cost encryption and copies in ZeroMQ's own threads; indices do not.
IO_THREADS = {"index": 1, "value": 4}
# A model can take minutes to load in an in-process worker; a Ray worker has loaded it before the test begins.
ATTACH_TIMEOUT_S = 60.0
LOCAL_ATTACH_TIMEOUT_S = 3600.0


class SetUpError(Exception):
    """The run cannot begin; the text says what is wrong and the mend."""


class Watcher(Protocol):
    """Who is told how a run goes: the terminal, or nobody."""

    def planned(self, manifest: Manifest, specs: Sequence[TestSpec], folder: Path) -> None:
        """The run begins."""

    def preparing(self, what: str) -> None:
        """Something slow and untimed begins."""

    def worker_ready(self, facts: dict[str, Any]) -> None:
        """A worker has loaded its model."""

    def warned(self, text: str) -> None:
        """Something worth knowing that stops nothing."""

    def test_began(self, spec: TestSpec, workers: Sequence[str]) -> None:
        """A test begins."""

    def event(self, event: dict[str, Any]) -> None:
        """The test process said something (attached, running, loss)."""

    def tick(self, board: Board) -> None:
        """Some time has passed."""

    def test_ended(self, record: Record, folder: Path) -> None:
        """A test's record is written."""

    def ended(self, records: Sequence[Record], folder: Path) -> None:
        """The run is over."""


@dataclass
class Campaign:
    """Runs one manifest; `stop` gives the reason to end at once, or None."""

    manifest: Manifest
    runs_dir: Path
    address: str
    watcher: Watcher
    stop: Callable[[], str | None] = lambda: None
    records: list[Record] = field(default_factory=list)

    def run(self) -> int:
        """Run every test; returns the exit code. SetUpError and ClusterError if it cannot begin."""
        m = self.manifest
        self._round: Round = load_round(m.round)
        specs = plan(m, self._round)
        library = self._open_library()
        self._paths = RunPaths.new(self.runs_dir, m.name)
        write_atomically(self._paths.root / MANIFEST, m.raw)
        self.watcher.planned(m, specs, self._paths.root)
        self._commit = commit_of()
        if m.workers.where == "local":
            self._run_all(specs, library, None)
        else:
            self._run_on_ray(specs, library)
        self.watcher.ended(self.records, self._paths.root)
        return exit_code(self.records, bool(self.stop()))

    def _open_library(self) -> Library:
        """The prepared data set, on this host: its count, its labels, and its bytes in value mode."""
        m = self.manifest
        self.watcher.preparing(f"data set {m.task.name}")
        try:
            library = open_task(m.task.name, m.task_options()).prepare(cache_dir())
        except (TaskError, LibraryError) as error:
            raise SetUpError(str(error)) from None
        if not library.count:
            raise SetUpError(f"task.name: the data set of {m.task.name} is empty")
        return library

    def _run_on_ray(self, specs: Sequence[TestSpec], library: Library) -> None:
        m = self.manifest
        w = m.workers
        self.watcher.preparing("Ray")
        wanted_cpus = max(int(w.count * w.num_cpus + 1), 2)
        cluster.connect(self.address, num_cpus=wanted_cpus)
        fleet = None
        try:
            self.watcher.preparing("workers")
            place = cluster.Placement(w.count, w.placement, w.num_cpus, w.num_gpus)
            fleet = cluster.RayFleet(place, self._worker_spec())
            fleet.load(self.watcher.worker_ready, self.stop)
            for text in fleet.differences():
                self.watcher.warned(text)
            self._run_all(specs, library, fleet)
        finally:
            if fleet is not None:
                fleet.stop()
            cluster.disconnect()

    def _worker_spec(self) -> WorkerSpec:
        m = self.manifest
        device = "cuda" if m.workers.num_gpus else "cpu"
        return WorkerSpec(
            name="",
            task=m.task.name,
            task_options=m.task_options(),
            backend={**m.backend_options(), "device": device},
            max_batch=m.workers.max_batch,
            batch_deadline_ns=int(m.workers.batch_deadline_ms * 1e6),
            cache=str(cache_dir()),
            needs_library=m.dispatch.payload == "index",
        )

    def _run_all(
        self, specs: Sequence[TestSpec], library: Library, fleet: cluster.RayFleet | None
    ) -> None:
        for spec in specs:
            if self.stop():
                return
            if fleet is not None and not fleet.names:
                raise SetUpError("no worker is left: all were lost in earlier tests")
            self.records.append(self._run_one(spec, library, fleet))

    # -- one test ----------------------------------------------------------------------------------------------------

    def _run_one(self, spec: TestSpec, library: Library, fleet: cluster.RayFleet | None) -> Record:
        paths = self._paths.test(spec.name)
        folder = paths.begin()
        write_atomically(folder / USER_CONF, spec.user_conf.encode())
        order = self._order(spec, folder, library, fleet)
        self.watcher.test_began(spec, [seat.name for seat in order.workers])
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        outcome = run_test(order, fleet, Hooks(self.watcher.event, self.watcher.tick, self.stop))
        evidence = Evidence(self.manifest, self._round, self._commit, library, self._paths.root.name)
        facts, differences, remote = outcome.workers, [], []
        if fleet is not None:
            facts = [fact for fact in fleet.facts if fact["name"] in [w.name for w in order.workers]]
            differences, here = fleet.differences(), cluster.node_address()
            remote = sorted({str(fact["node"]) for fact in facts if fact["node"] != here})
        record = evidence.record(spec, order, outcome, Crew(facts, differences, remote), started)
        write_atomically(folder / RECORD, record.to_json())
        final = paths.finish()
        self.watcher.test_ended(record, final)
        return record

    def _order(
        self, spec: TestSpec, folder: Path, library: Library, fleet: cluster.RayFleet | None
    ) -> TestOrder:
        m = self.manifest
        d = m.dispatch
        local = None
        if fleet is None:
            made = self._worker_spec()
            local = LocalWorker(
                **{k: getattr(made, k) for k in LocalWorker.model_fields}
            )
            seats = [Seat(name=f"worker-{i}", max_batch=m.workers.max_batch) for i in range(m.workers.count)]
        else:
            facts = {fact["name"]: fact for fact in fleet.facts}
            keys = fleet.keys() if d.security == "curve" else [""] * len(fleet.names)
            seats = [
                Seat(name=n, public_key=k, warm_up=facts[n]["warm_up"], max_batch=facts[n]["max_batch"])
                for n, k in zip(fleet.names, keys, strict=True)
            ]
        listen = d.listen or ("127.0.0.1" if fleet is None else cluster.node_address())
        return TestOrder(
            name=spec.name,
            epoch=secrets.randbelow(2**32 - 1) + 1,
            out_dir=str(folder.absolute()),
            loadgen_path=m.loadgen_folder(),
            conf_model=spec.conf_model,
            scenario=spec.scenario,
            test="accuracy" if spec.test == "accuracy" else "performance",
            conf_file=str((folder / USER_CONF).absolute()),
            attributes=spec.attributes,
            expected=spec.settings,
            sample_count=library.count,
            performance_count=min(spec.performance_sample_count or library.count, library.count),
            network=m.division == "network",
            payload=d.payload,
            library=str(library.folder),
            security=d.security,
            address=listen,
            ports=d.ports,
            io_threads=d.io_threads or IO_THREADS[d.payload],
            on_loss=m.on_loss,
            workers=seats,
            local=local,
            attach_timeout_s=ATTACH_TIMEOUT_S if fleet else LOCAL_ATTACH_TIMEOUT_S,
            schedule_seed=spec.seeds["schedule_rng_seed"],
            target_qps=float(spec.settings.get("server_target_qps", 0) or 0),
        )


def exit_code(records: Sequence[Record], interrupted: bool) -> int:
    """The exit code of a run: the worst of its tests."""
    if interrupted or any(r.status == "interrupted" for r in records):
        return EXIT_INTERRUPTED
    if any(r.status == "failed" for r in records):
        return EXIT_FAILED
    below = any(r.accuracy is not None and not r.accuracy.reached for r in records)
    invalid = any(r.kind == "performance" and r.result.valid is not True for r in records)
    return EXIT_INVALID if below or invalid else EXIT_VALID
