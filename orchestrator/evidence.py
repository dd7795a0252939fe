"""From what happened to the record of it: logs read, accuracy scored, doubts written down. Runs nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.accuracy import AccuracyError, write_accuracy_txt
from orchestrator.audit import validate
from orchestrator.audit_verify import Case, verify
from orchestrator.findings import Finding
from orchestrator.findings_data import calibration_findings
from orchestrator.findings_manifest import (
    index_to_remote_finding,
    network_on_one_host_finding,
    plan_findings_for_loadgen,
)
from orchestrator.logs import DetailLog, LogError, read_detail
from orchestrator.manifest import Manifest
from orchestrator.order import TestOrder
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL
from orchestrator.pauses import pauses_between
from orchestrator.plan import TestSpec, opened_findings
from orchestrator.power.figures import PowerError, figure_of
from orchestrator.power.files import POWER, meter_of
from orchestrator.provenance import versions
from orchestrator.record import Accuracy, Audit, LossRecord, Power, Record, series_record, worker_records
from orchestrator.rules import Round
from orchestrator.scorers import score
from orchestrator.supervise import Outcome
from orchestrator.timings import ANSWERED
from orchestrator.verdict import (
    doubts_about_log,
    doubts_about_power,
    doubts_about_workers,
    doubts_of,
    missing_evidence,
    result_of,
    shown_otherwise,
    unofficial_because,
)
from workers.library import Library, LibraryError
from workers.own_code import workers_sha256

FROM_RESULT = (
    "cpu_us_per_sample",
    "cpu_share",
    "issue_lateness",
    "issue_rest_us",
    "completion",
    "issue",
    "max_rss_bytes",
    "rss_growth_bytes",
    "foreign_answers",
    "response_path",
    "ports",
    "shared_answers",
)


@dataclass(frozen=True)
class Crew:
    """The workers of a test: their facts, how they differ, who was where, who else was meant to take part.

    `remote_hosts` are their hosts other than LoadGen's, `near` the names of those on LoadGen's own.
    """

    facts: Sequence[dict[str, Any]]
    differences: Sequence[str]
    remote_hosts: Sequence[str]
    near: Sequence[str] = ()
    absent: Sequence[str] = ()


@dataclass(frozen=True)
class Evidence:
    """What is the same for all records of a run."""

    manifest: Manifest
    round: Round
    commit: dict[str, Any]
    library: Library
    run: str

    def record(self, spec: TestSpec, order: TestOrder, outcome: Outcome, crew: Crew, started: str) -> Record:
        """The record of one test, from its folder (order.out_dir) and its outcome."""
        folder = Path(order.out_dir)
        finished = outcome.status == "finished"
        detail = _detail_of(folder)
        accuracy = self._score(spec, outcome, folder)
        power = self._power(spec, outcome, folder)
        result = result_of(spec, detail, finished)
        hashes, loadgen = self._hashes(spec), self._loadgen(detail, outcome)
        audit = self._verify(spec, outcome, folder)
        findings = [*spec.broken_rules, *self._run_time_findings(spec, crew, loadgen)]
        missing = [
            *shown_otherwise(spec, detail),
            *(doubts_about_log(detail) if finished else []),
            *(validate(spec.settings, spec.audit, detail.values) if finished else []),
            *doubts_about_workers(crew.facts, crew.differences, crew.absent, outcome),
            *missing_evidence(crew.facts, self.manifest.backend.engine, hashes, self.commit, loadgen),
            *doubts_about_power(spec.round, power, crew.remote_hosts),
        ]
        because = unofficial_because(spec, outcome, result, accuracy, findings, [*missing, *doubts_of(audit)])
        return Record(
            test=spec.name,
            kind="compliance" if spec.is_audit else order.test,
            run=self.run,
            round=spec.round,
            suite=spec.suite,
            division=spec.division,
            benchmark=spec.benchmark,
            scenario=spec.scenario,
            status=outcome.status,
            reason=outcome.reason,
            official=not because,
            unofficial_because=because,
            result=result,
            accuracy=accuracy,
            audit=audit,
            power=power,
            settings=spec.settings,
            seeds=spec.seeds,
            payload_mode=order.payload,
            security="in-process" if order.local else order.security,
            index_approval=self.manifest.dispatch.index_approval,
            on_loss=order.on_loss,
            workers=worker_records(_gathered(crew.facts, outcome), outcome.board),
            worker_differences=list(crew.differences),
            course=outcome.course,
            series=series_record(outcome.board),
            losses=_losses(outcome),
            late_answers=outcome.board.total("late"),
            driver=_driver(outcome),
            loadgen=loadgen,
            versions=versions() | self.commit,
            hashes=hashes,
            files=_files(folder),
            started=started,
            wall_s=round(outcome.wall_s, 3),
            digest=spec.digest,
        )

    def _hashes(self, spec: TestSpec) -> dict[str, str | None]:
        return {
            "manifest": hashlib.sha256(self.manifest.raw).hexdigest(),
            "user_conf": hashlib.sha256(spec.user_conf.encode()).hexdigest(),
            "library": self.library.digest,
            "library_expected": self.manifest.task.sha256,
            "workers_code": workers_sha256(),
            "weights_expected": getattr(self.manifest.backend, "weights_sha256", None),
            "scales_expected": getattr(self.manifest.backend, "scales_sha256", None),
        }

    def _loadgen(self, detail: DetailLog, outcome: Outcome) -> dict[str, Any]:
        return {
            "version": detail.values.get("loadgen_version"),
            "sha256": outcome.result.get("loadgen_sha256"),
            "file": outcome.result.get("loadgen_file"),
            "path": self.manifest.loadgen_folder(),
        }

    def _run_time_findings(self, spec: TestSpec, crew: Crew, loadgen: dict[str, Any]) -> list[Finding]:
        """Rules that only the run itself can break: whose LoadGen, which data set, where the workers were."""
        found: list[Finding] = []
        if loadgen["version"]:
            found += plan_findings_for_loadgen(loadgen["version"], loadgen["sha256"], self.round)
        told = {finding.rule for finding in spec.broken_rules}
        found = [finding for finding in found if finding.rule not in told]
        found += opened_findings(spec, self.round, self.library)
        found += calibration_findings(self.round, self.manifest, crew.facts)
        placed = (
            index_to_remote_finding(self.manifest, self.round, crew.remote_hosts),
            network_on_one_host_finding(self.manifest, self.round, crew.near),
        )
        return [*found, *(finding for finding in placed if finding is not None)]

    def _verify(self, spec: TestSpec, outcome: Outcome, folder: Path) -> Audit | None:
        """Verify a compliance test that ended well, against the tests that ran before it."""
        if not spec.is_audit or outcome.status != "finished":
            return None
        benchmark = self.round.benchmark(spec.benchmark)
        return verify(
            Case(self.round, benchmark, spec.scenario, spec.test, folder, folder.parent, self.library)
        )

    def _power(self, spec: TestSpec, outcome: Outcome, folder: Path) -> Power | None:
        """The figure of a measured test that ended well; readings without one fail the test."""
        if outcome.status != "finished" or not (folder / POWER).is_dir():
            return None
        try:
            found = figure_of(spec.round, spec.scenario, folder, folder / POWER)
        except PowerError as error:
            why = str(error).replace(f"{folder}/", "")
            outcome.status, outcome.reason = "failed", f"there is no power figure: {why}"
            return None
        return Power(**vars(found), meter=meter_of(folder / POWER))

    def _score(self, spec: TestSpec, outcome: Outcome, folder: Path) -> Accuracy | None:
        """Score an accuracy test that ended well; a log that cannot be scored fails the test."""
        if spec.accuracy is None or outcome.status != "finished":
            return None
        goal = spec.accuracy
        count = int(spec.settings.get("accuracy_sample_count_override", 0)) or self.library.count
        try:
            scored = score(folder / ACCURACY_LOG, self.library, count)
        except (AccuracyError, LibraryError) as error:
            outcome.status, outcome.reason = "failed", f"the accuracy could not be scored: {error}"
            return None
        if scored.metric != goal.metric:
            outcome.status = "failed"
            outcome.reason = (
                f"task {self.manifest.task.name} is scored by {scored.metric}, "
                f"but {spec.benchmark} of round {spec.round} by {goal.metric}"
            )
            return None
        write_accuracy_txt(folder / ACCURACY_TXT, scored)
        # As the checker reads it: the rounded figure of the line decides.
        seen = re.match(self.round.benchmark(spec.benchmark).accuracy.pattern, scored.line)
        if seen is None:
            outcome.status, outcome.reason = (
                "failed",
                f"{ACCURACY_TXT} is not in the round's form: {scored.line}",
            )
            return None
        value = float(seen[1])
        reached = value >= goal.target if goal.higher_is_better else value <= goal.target
        return Accuracy(
            metric=scored.metric,
            value=value,
            target=goal.target,
            unit=goal.unit,
            reached=reached,
            good=scored.good,
            total=scored.total,
        )


def _files(folder: Path) -> dict[str, str]:
    """sha256 of every file of the test, so that none can change after the record unseen."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        with open(path, "rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _detail_of(folder: Path) -> DetailLog:
    """LoadGen's detail log, an empty one if the test never got so far."""
    try:
        return read_detail(folder / DETAIL)
    except LogError:
        return DetailLog()


def _gathered(facts: Sequence[dict[str, Any]], outcome: Outcome) -> list[dict[str, Any]]:
    """The workers' facts, with what became of them when this test's samples were loaded."""
    stacked = outcome.result.get("stacked", {})
    after_all = {name: {"gather": "host", "gather_why": why} for name, why in stacked.items()}
    return [fact | after_all.get(fact["name"], {}) for fact in facts]


def _losses(outcome: Outcome) -> list[LossRecord]:
    began_ns = outcome.board.total("started_ns")
    return [
        LossRecord(
            worker=x["worker"],
            at_s=round((x["at_ns"] - began_ns) / 1e9, 3) if began_ns else None,
            reason=x["reason"],
            moved=x["moved"],
        )
        for x in outcome.losses
    ]


def _driver(outcome: Outcome) -> dict[str, Any]:
    told = {key: outcome.result.get(key) for key in FROM_RESULT}
    board = outcome.board
    began_ns = board.total("started_ns")
    told["start_s"] = {
        name: round((board.total(key) - began_ns) / 1e9, 4) if began_ns and board.total(key) else None
        for name, key in (("first_issue", "first_issue_ns"), ("first_answer", "first_done_ns"))
    }
    first_ns, last_ns = board.total("first_issue_ns"), int(board.counters[:, ANSWERED].max(initial=0))
    answered = bool(first_ns and last_ns)
    told["answering_s"] = round((last_ns - first_ns) / 1e9, 4) if answered else None
    told["pauses"] = pauses_between(outcome.result.get("pauses"), first_ns, last_ns) if answered else None
    return told | {name: outcome.board.total(name) for name in ("issued", "completed", "rows_dropped")}
