"""One manifest, run: plan, workers, each test in turn, scores, records, exit code."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import cluster
from orchestrator.campaign_files import Campaign
from orchestrator.continuing import kept_of
from orchestrator.course import Course, CourseWatch, reason_of_hopeless
from orchestrator.evidence import Crew, Evidence
from orchestrator.findings_manifest import needs_own_generator
from orchestrator.manifest import Manifest
from orchestrator.manifest_power import PowerSection
from orchestrator.order import LocalWorker, Seat, TestOrder
from orchestrator.pace import even_warm_ups
from orchestrator.paths import (
    AUDIT_CONFIG,
    RECORD,
    USER_CONF,
    RunPaths,
    cache_dir,
    write_atomically,
)
from orchestrator.plan import TestSpec, opened_findings, plan
from orchestrator.power.measure import Mode, measure, why_no_server
from orchestrator.prepare import open_library
from orchestrator.provenance import code_sha256, commit_of
from orchestrator.record import Record
from orchestrator.report.write import report_of_run
from orchestrator.rules import Round, load_round
from orchestrator.stop import Stop
from orchestrator.supervise import Hooks, Outcome, run_test
from orchestrator.timings import Board
from orchestrator.watching import Watcher
from workers.host import WorkerSpec
from workers.library import Library
from workers.own_code import workers_sha256

EXIT_VALID, EXIT_INVALID, EXIT_USAGE, EXIT_SETUP, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130
# A model can take minutes to load in an in-process worker; a Ray worker has loaded it before the test begins.
ATTACH_TIMEOUT_S = 60.0
LOCAL_ATTACH_TIMEOUT_S = 3600.0


class SetUpError(Exception):
    """The run cannot begin; the text says what is wrong and the mend."""


@dataclass
class Session:
    """A manifest's data set and workers, ready to run test after test; a context manager.

    What the data set breaks in `specs`, the tests that will run, is told as soon as it is open.
    """

    manifest: Manifest
    address: str
    watcher: Watcher
    stop: Stop = field(default_factory=Stop)
    specs: Sequence[TestSpec] = ()
    power: PowerSection | None = None  # measured in performance tests; searches and `bench` leave it out
    opened: Library | None = None  # the manifest's data set, if it is open already

    def __enter__(self) -> Session:
        if self.power is not None and (why := why_no_server(self.power)):
            raise SetUpError(why)
        self.round: Round = load_round(self.manifest.round)
        self.library = self.opened or open_library(self.manifest, self.watcher)
        if broken := broken_by_data(self.manifest, self.round, self.library, self.specs):
            self.watcher.warned(f"the results will be unofficial: {'; '.join(broken)}")
        self.commit, self.code = commit_of(), code_sha256()
        self.fleet: cluster.RayFleet | None = None
        if self.manifest.workers.where == "ray":
            try:
                self._start_fleet()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.fleet is not None:
            self.fleet.stop()
        if self.manifest.workers.where == "ray":
            cluster.disconnect()

    def _start_fleet(self) -> None:
        w = self.manifest.workers
        self.watcher.preparing("Ray")
        cluster.connect(self.address, num_cpus=max(int(w.count * w.num_cpus + 1), 2))
        self.watcher.preparing("workers")
        place = cluster.Placement(w.count, w.placement, w.num_cpus, w.num_gpus)
        self.fleet = cluster.RayFleet(place, self._worker_spec())
        with self.stop.patience():
            self.fleet.load(self.watcher.worker_ready, self.stop)
        self._refuse_others(self.fleet.facts)
        for text in (*self.fleet.differences(), *self.fleet.giving_way()):
            self.watcher.warned(text)

    def _refuse_others(self, facts: Sequence[dict[str, Any]]) -> None:
        """Records name this host's commit, and answers are scored by its labels: workers have both too."""
        own = workers_sha256()
        if strangers := [f"{f['name']} on {f['node']}" for f in facts if f["code"] != own]:
            raise SetUpError(
                f"the LoadGrid of {', '.join(strangers)} is not the one on this host; install the same there"
            )
        other = [f["name"] for f in facts if f["library"] not in (None, self.library.digest)]
        if other:
            who = ", ".join(other)
            raise SetUpError(
                f"the data set of {who} is not the one on this host; give all hosts the same files"
            )

    def _worker_spec(self) -> WorkerSpec:
        m = self.manifest
        return WorkerSpec(
            name="",
            task=m.task.name,
            task_options=m.task_options(),
            backend=self._backend_options(),
            max_batch=m.workers.max_batch,
            batch_deadline_ns=int(m.workers.batch_deadline_ms * 1e6),
            cache=str(cache_dir()),
            needs_library=m.dispatch.payload == "index",
        )

    def _backend_options(self) -> dict[str, Any]:
        """The manifest's backend, and what follows from where it runs: the device, its share of the cores."""
        w = self.manifest.workers
        options = {**self.manifest.backend_options(), "device": "cuda" if w.num_gpus else "cpu"}
        if w.where == "local":
            options["workers_on_host"] = w.count
        elif options.get("threads") is None and w.num_cpus >= 1:
            options["threads"] = int(w.num_cpus)
        return options

    def run(self, spec: TestSpec, run: RunPaths) -> Record:
        """Run one test into its folder of `run` and write its record."""
        seats = self._seats()
        if not seats:
            raise SetUpError("no worker is left: all were lost in earlier tests")
        paths = run.test(spec.name)
        folder = paths.begin()
        write_atomically(folder / USER_CONF, spec.user_conf.encode())
        if spec.audit_config:
            write_atomically(folder / AUDIT_CONFIG, spec.audit_config.encode())
        order = self._order(spec, folder, seats)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self.power is not None and spec.test == "performance":
            order, outcome = self._measured(self.power, spec, order)
        else:
            self.watcher.test_began(spec, [seat.name for seat in order.workers])
            outcome = run_test(order, self.fleet, self._hooks(spec, self.stop))
        evidence = Evidence(self.manifest, self.round, self._commit_still(), self.library, run.root.name)
        record = evidence.record(spec, order, outcome, self._crew(order, outcome), started)
        write_atomically(folder / RECORD, record.to_json())
        self.watcher.test_ended(record, paths.finish())
        return record

    def _commit_still(self) -> dict[str, Any]:
        """The commit that the session began with; a test's process reads the code anew, so it must stay."""
        same = (commit_of(), code_sha256()) == (self.commit, self.code)
        return self.commit if same else {**self.commit, "dirty": True}

    def _hooks(self, spec: TestSpec, stop: Callable[[], str | None]) -> Hooks:
        """Who listens to a test: the watcher, who is also told where the test is heading."""
        old = self.round.fixed_interval_multistream and self.manifest.loadgen_folder() is not None
        watch = CourseWatch(spec, early_stopping=not old)

        def look(board: Board, at_once: bool) -> Course | None:
            issued, completed, late = (board.total(n) for n in ("issued", "completed", "over_limit"))
            return watch.look(time.monotonic(), issued, completed, late, at_once)

        def tick(board: Board) -> None:
            if course := look(board, at_once=False):
                self.watcher.judged(course)
            self.watcher.tick(board)

        def give_up() -> str | None:
            course = watch.last
            if course is None or course.word != "cannot pass" or not self.manifest.stop_when_hopeless:
                return None
            return reason_of_hopeless(course.why)

        return Hooks(self.watcher.event, tick, stop, give_up, partial(look, at_once=True))

    def _measured(self, power: PowerSection, spec: TestSpec, order: TestOrder) -> tuple[TestOrder, Outcome]:
        """A test within a power measurement, whose client has it run twice: the second run's order counts."""
        last = order

        def ask(mode: Mode, folder: Path, stop: Callable[[], str | None]) -> Outcome:
            nonlocal last
            # As for any test: a new epoch, and new keys of the workers that live.
            last = self._order(spec, folder, self._seats()).model_copy(update={"conf_file": order.conf_file})
            if not last.workers:
                return no_run("no worker is left: all were lost in the ranging run")
            hooks = Hooks(stop=stop)
            if mode == "ranging":
                self.watcher.preparing(f"the power measurement of {spec.name}: ranging run")
            else:
                self.watcher.test_began(spec, [seat.name for seat in last.workers])
                hooks = self._hooks(spec, stop)
            outcome = run_test(last, self.fleet, hooks)
            if outcome.status == "interrupted" and not self.stop() and self.fleet is not None:
                self.fleet.detach(stop=self.stop)  # only the client has left: the next test needs the workers
            return outcome

        def no_run(reason: str) -> Outcome:
            return Outcome("failed", Board(len(order.workers)), reason)

        self.watcher.preparing(f"the power measurement of {spec.name}: the client and its meter")
        where, folder = self.manifest.path.absolute().parent, Path(order.out_dir)
        outcome, trouble = measure(power, where, folder, spec.name, ask, self.stop)
        if outcome is None:
            last, outcome = order, no_run(trouble)
        if trouble:
            outcome.status, outcome.reason = "interrupted" if self.stop() else "failed", trouble
        return last, outcome

    def _crew(self, order: TestOrder, outcome: Outcome) -> Crew:
        if self.fleet is None:
            return Crew(outcome.workers, [], [])
        names = [seat.name for seat in order.workers]
        facts = [fact for fact in self.fleet.facts if fact["name"] in names]
        here = cluster.node_address()
        return Crew(
            facts,
            self.fleet.differences(),
            remote_hosts=sorted({fact["node"] for fact in facts if fact["node"] != here}),
            near=[fact["name"] for fact in facts if fact["node"] == here],
            absent=[fact["name"] for fact in self.fleet.facts if fact["name"] not in names],
        )

    def _order(self, spec: TestSpec, folder: Path, seats: list[Seat]) -> TestOrder:
        m = self.manifest
        d = m.dispatch
        local = None
        if self.fleet is None:
            made = self._worker_spec()
            local = LocalWorker(**{key: getattr(made, key) for key in LocalWorker.model_fields})
        return TestOrder(
            name=spec.name,
            epoch=secrets.randbelow(2**32 - 1) + 1,
            out_dir=str(folder.absolute()),
            asker="fixed_interval" if needs_own_generator(m, self.round, spec.scenario) else "loadgen",
            loadgen_path=m.loadgen_folder(),
            in_place=m.loadgen.in_place,
            conf_model=spec.conf_model,
            scenario=spec.scenario,
            test=spec.mode,
            conf_file=str((folder / USER_CONF).absolute()),
            attributes=spec.attributes,
            expected=spec.settings,
            sample_count=self.library.count,
            performance_count=min(spec.performance_sample_count or self.library.count, self.library.count),
            network=m.division == "network",
            payload=d.payload,
            library=str(self.library.folder),
            security=d.security,
            address=d.listen or self._own_address(),
            ports=d.ports,
            io_threads=m.io_threads,
            on_loss=m.on_loss,
            workers=seats,
            local=local,
            attach_timeout_s=ATTACH_TIMEOUT_S if self.fleet else LOCAL_ATTACH_TIMEOUT_S,
            schedule_seed=spec.seeds["schedule_rng_seed"],
            target_qps=float(spec.settings.get("server_target_qps", 0) or 0),
            limit_ns=spec.limit_ns,
        )

    def _own_address(self) -> str:
        """Where workers find the test; a Ray that was started here has none elsewhere."""
        alone = self.fleet is None or self.address == "local"
        return "127.0.0.1" if alone else cluster.node_address()

    def _seats(self) -> list[Seat]:
        """The workers that live, each with a fresh key."""
        if self.fleet is None:
            w = self.manifest.workers
            return [Seat(name=f"worker-{i}", max_batch=w.max_batch) for i in range(w.count)]
        facts = {fact["name"]: fact for fact in self.fleet.facts}
        warm_ups = dict(zip(facts, even_warm_ups(self.fleet.facts), strict=True))
        secure = self.manifest.dispatch.security == "curve"
        keys = self.fleet.keys(self.stop) if secure else dict.fromkeys(self.fleet.names, "")
        # The Network division is about the network: there every answer travels.
        here = None if self.manifest.division == "network" else cluster.node_address()
        return [
            Seat(
                name=n,
                public_key=k,
                warm_up=warm_ups[n],
                max_batch=facts[n]["max_batch"],
                slots=facts[n].get("slots", 1),
                near=facts[n]["node"] == here,
            )
            for n, k in keys.items()
        ]


def broken_by_data(
    manifest: Manifest, found: Round, library: Library, specs: Sequence[TestSpec]
) -> list[str]:
    """What an opened data set breaks that the plan could not know, once each; the records will say it too."""
    told = []
    if specs and manifest.task.sha256 not in (None, library.digest):
        told.append("the prepared data set does not have the hash task.sha256")
    for spec in specs:
        told += [finding.why for finding in opened_findings(spec, found, library)]
    return list(dict.fromkeys(told))


def run_campaign(
    manifest: Manifest,
    runs_dir: Path,
    address: str,
    watcher: Watcher,
    stop: Stop,
    campaign: Campaign | None = None,
) -> int:
    """Run every test of a manifest that the campaign has not; returns the exit code of all of them.

    SetUpError, ClusterError or OSError if it cannot begin.
    """
    specs, worst = plan(manifest, load_round(manifest.round)), EXIT_VALID
    campaign = campaign or Campaign(runs_dir)
    records: list[Record] = []
    with contextlib.ExitStack() as held:
        kept = kept_of(campaign, manifest, specs, watcher, held)
        try:
            if not kept.left:
                watcher.planned(manifest, (), kept.folder)
            else:
                session = Session(manifest, address, watcher, stop, kept.left, manifest.power, kept.library)
                with session:
                    # Until all is told: a signal while Ray ends must not cost the table and the report.
                    held.enter_context(stop.patience())
                    worst = _run_tests(session, kept.begin(), records)
        finally:
            records = kept.end(records)
            if kept.run is not None:
                report_of_run(kept.folder, watcher.warned)
        whole = len(records) == len(specs) and all(record.status != "interrupted" for record in records)
        if whole and (reason := stop()):  # or nothing would say why the exit code is an interrupted run's
            watcher.warned(f"{reason} after the last test: no test of this run is missing")
        watcher.ended(records, kept.folder)
    return max(exit_code(records, bool(stop())), worst)


def _run_tests(session: Session, run: RunPaths, records: list[Record]) -> int:
    """Run test after test until all are done, somebody wants to stop, or no worker is left."""
    specs = session.specs
    session.watcher.planned(session.manifest, specs, run.root)
    for number, spec in enumerate(specs):
        if session.stop():
            break
        try:
            records.append(session.run(spec, run))
        except SetUpError as error:
            session.watcher.warned(f"{error}; not run: {', '.join(left.name for left in specs[number:])}")
            return EXIT_SETUP
    return EXIT_VALID


def exit_code(records: Sequence[Record], interrupted: bool) -> int:
    """The exit code of a run: the worst of its tests."""
    if interrupted or any(r.status == "interrupted" for r in records):
        return EXIT_INTERRUPTED
    if any(r.status == "failed" for r in records):
        return EXIT_FAILED
    below = any(r.accuracy is not None and not r.accuracy.reached for r in records)
    invalid = any(
        r.result.errors or (r.kind == "performance" and r.result.valid is not True)
        for r in records
        if r.kind != "compliance"
    )
    refused = any(r.audit is not None and not r.audit.good for r in records)
    return EXIT_INVALID if below or invalid or refused else EXIT_VALID
