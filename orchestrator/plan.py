"""Manifest x Round -> list of TestSpec: what will run, with which settings, breaking which rules. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.audit import RESULTS, audit_config, audit_settings, audit_words, tests_of
from orchestrator.findings import (
    Finding,
    accuracy_findings,
    both_modes_findings,
    seed_findings,
    settings_findings,
)
from orchestrator.findings_data import ground_truth_findings, identity_findings, library_findings
from orchestrator.findings_manifest import (
    index_to_remote_finding,
    manifest_findings,
    needs_own_generator,
    plan_findings_for_loadgen,
    suite_findings,
)
from orchestrator.manifest_fields import Manifest
from orchestrator.rules import SCENARIOS, Benchmark, Round
from orchestrator.settings import (
    EVERY_SCENARIO,
    Value,
    attributes_of,
    expected_queries,
    merged_words,
    offline_samples_per_query,
    user_conf_text,
)
from workers.library import Library

__all__ = [
    "AccuracyGoal",
    "Finding",
    "PlanError",
    "TestSpec",
    "index_to_remote_finding",
    "library_findings",
    "memory_needed_bytes",
    "opened_findings",
    "plan",
    "plan_findings_for_loadgen",
]

# LoadGen's own store, bytes at the peak. Server: of the whole test process, 344 with 54 million queries and
# 377 with 390 million. MultiStream: per query of 8, LoadGen 6.0.17 with an immediate answer, as SingleStream.
# Offline: of the whole test process above the first 85 MB, 72 a sample (1 to 17 million); 307 in the Network
# division, whose queries come as lists of objects.
BYTES_PER_QUERY = {"Server": 380, "SingleStream": 650, "MultiStream": 1330}
OFFLINE_BYTES, BYTES_PER_OFFLINE_SAMPLE, BYTES_PER_NETWORK_SAMPLE = 85_000_000, 72, 307
LONG_TEST_S = 2 * 3600
NOT_IN_OLD_MULTISTREAM = ("sample_concatenate_permutation", "accuracy_sample_count_override")
SERVER_FEWEST_VALID = 459  # queries at p99 with none over the limit: LoadGen's early stopping, fact sheet

TWICE = "power: a performance test runs twice, for the meter's ranges and for its readings"


class PlanError(Exception):
    """The manifest asks for a test that no LoadGen at hand can run; the text says what to do."""


class AccuracyGoal(BaseModel):
    """What an accuracy test must reach. `sample_count` is the size of the round's data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    target: float
    higher_is_better: bool
    unit: str
    sample_count: int


class TestSpec(BaseModel):
    """One test, fully determined.

    `settings` are the TestSettings attributes that LoadGen must show when read back, seeds included;
    `user_conf` yields them, once `attributes` (the seeds, which FromConfig does not read) are set. `digest`
    changes when the test would. `test` is performance, accuracy, or a compliance test, which differs from the
    performance test by the words `audit`; `audit_config` is the file that says so.
    """

    __test__ = False
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    round: str
    suite: str
    division: str
    benchmark: str
    scenario: str
    test: str
    conf_model: str
    settings: dict[str, int | float | bool]
    user_conf: str
    attributes: dict[str, int | float | bool]
    seeds: dict[str, int]
    limit_ns: int | None
    performance_sample_count: int | None
    result_key: str
    accuracy: AccuracyGoal | None
    broken_rules: list[Finding]
    notes: list[str]
    digest: str
    audit: dict[str, int | float] = {}
    audit_config: str = ""

    @property
    def mode(self) -> Literal["performance", "accuracy"]:
        """LoadGen's mode: a compliance test is a performance test to it."""
        return "accuracy" if self.test == "accuracy" else "performance"

    @property
    def is_audit(self) -> bool:
        """Whether it is a compliance test."""
        return self.test not in RESULTS


def opened_findings(spec: TestSpec, found: Round, library: Library) -> list[Finding]:
    """What the prepared data set breaks and the plan could not know, without the rules that it has named."""
    told = {finding.rule for finding in spec.broken_rules}
    drawn = spec.performance_sample_count or 0
    both = (
        *library_findings(found, spec.benchmark, spec.mode, library.count, drawn),
        *identity_findings(found, spec.benchmark, library.meta, int(library.sizes.sum())),
    )
    return [finding for finding in both if finding.rule not in told]


def plan(manifest: Manifest, found: Round) -> list[TestSpec]:
    """The tests of a manifest, in its order; PlanError if one cannot be run at all."""
    benchmark = found.benchmark(manifest.benchmark)
    return [
        _spec(manifest, found, benchmark, scenario, test)
        for scenario in manifest.scenarios
        for test in tests_of(found, benchmark.name, scenario, manifest.runs)
    ]


def _spec(manifest: Manifest, found: Round, benchmark: Benchmark, scenario: str, test: str) -> TestSpec:
    user = manifest.conf_words(scenario)
    coalesce = manifest.division != "network"
    words = merged_words(found, benchmark.name, scenario, user, coalesce=coalesce)
    seeds = {**found.seeds, **manifest.seeds()}
    planned: dict[str, Value] = {**attributes_of(found, scenario, words), **seeds}
    # An audit's values come on top of all others, as if LoadGen had read them from an audit.config.
    audit = audit_words(found, benchmark, test)
    settings = {**planned, **audit_settings(audit)}
    seeds = {name: int(settings[name]) for name in seeds}
    _refuse_for_own_generator(manifest, found, scenario, settings)
    count = int(settings["performance_sample_count_override"])
    goal = None
    if test == "accuracy":
        target = benchmark.accuracy.target if manifest.accuracy_target is None else manifest.accuracy_target
        kept = benchmark.accuracy.model_dump(include={"metric", "higher_is_better", "unit"})
        goal = AccuracyGoal(**kept, target=target, sample_count=benchmark.accuracy_sample_count)
    spec = TestSpec(
        name=f"{scenario}-{test}",
        round=found.name,
        suite=manifest.suite,
        division=manifest.division,
        benchmark=benchmark.name,
        scenario=scenario,
        test=test,
        conf_model=benchmark.conf_model_name,
        settings=settings,
        user_conf=user_conf_text(
            found, benchmark.name, scenario, {**words, **_conf_words(audit)}, {**user, **audit}
        ),
        attributes={**seeds},
        seeds=seeds,
        limit_ns=int(settings["server_target_latency_ns"]) if scenario == "Server" else None,
        performance_sample_count=count or None,
        result_key=found.result_keys[scenario],
        accuracy=goal,
        # The rules are about the settings without the audit's own.
        broken_rules=list(_findings(manifest, found, benchmark, scenario, test, planned)),
        notes=[
            *_notes(found, scenario, test, settings, user),
            *_idle_words(manifest),
            *_audit_notes(manifest, found, scenario, test),
            *([TWICE] if manifest.power is not None and test == "performance" else []),
        ],
        digest="",
        audit=audit,
        audit_config=audit_config(found, benchmark, test),
    )
    return spec.model_copy(update={"digest": _digest(manifest, spec)})


def _refuse_for_own_generator(
    manifest: Manifest, found: Round, scenario: str, settings: dict[str, Value]
) -> None:
    """What no LoadGen of the old rounds has, our generator in its place has not either."""
    if not needs_own_generator(manifest, found, scenario):
        return
    if lacking := [word for word in NOT_IN_OLD_MULTISTREAM if settings[word]]:
        raise PlanError(f"MultiStream of round {found.name} has no {', '.join(lacking)}: leave it out")
    if settings["performance_issue_unique"] and settings["performance_issue_same"]:
        raise PlanError("performance_issue_unique and performance_issue_same exclude each other")
    drawn = int(settings["performance_sample_count_override"])
    if settings["performance_issue_same"] and 0 < drawn <= settings["performance_issue_same_index"]:
        raise PlanError(f"performance_issue_same_index must be below the {drawn} samples that are loaded")


def _findings(
    manifest: Manifest,
    found: Round,
    benchmark: Benchmark,
    scenario: str,
    test: str,
    settings: dict[str, Value],
) -> Iterator[Finding]:
    yield from manifest_findings(found, benchmark, manifest, scenario)
    yield from suite_findings(found, benchmark, manifest, scenario)
    own_seeds = found.compliance.get(test, {})
    yield from seed_findings(found, {n: seed for n, seed in manifest.seeds().items() if n not in own_seeds})
    yield from both_modes_findings(found, manifest, scenario, settings)
    if test != "accuracy":
        yield from settings_findings(found, benchmark, manifest, scenario, settings)
    else:
        yield from accuracy_findings(found, benchmark, settings)
        yield from ground_truth_findings(manifest)


def _conf_words(audit: dict[str, int | float]) -> dict[str, int | float]:
    """What a LoadGen reads from user.conf: all but the seeds."""
    return {word: value for word, value in audit.items() if word in EVERY_SCENARIO}


def _audit_notes(manifest: Manifest, found: Round, scenario: str, test: str) -> Iterator[str]:
    """What one should know of a compliance test before it runs."""
    asked = [name for name in manifest.runs if name not in RESULTS]
    exempt = [name for name in asked if name not in found.compliance_tests(manifest.benchmark, scenario)]
    if test == "performance" and exempt:
        yield f"{', '.join(exempt)}: not for {scenario} in {found.name}, so not run there"
    if test == "TEST04-B" and manifest.loadgen.path is None:
        yield (
            "LoadGen 6 runs TEST04-B for the whole of min_duration, but TEST04-A for as many samples as are "
            "loaded: so short, A may seem slower, and B fail. The round's own LoadGen asks as many in both"
        )


def _idle_words(manifest: Manifest) -> Iterator[str]:
    """Words for a scenario that the manifest does not run."""
    for scenario in SCENARIOS:
        if scenario not in manifest.scenarios and f"loadgen.{scenario}" in manifest.lines:
            yield f"loadgen.{scenario} does nothing: scenarios does not name {scenario}"


def _notes(
    found: Round, scenario: str, test: str, settings: dict[str, Value], user: dict[str, int | float]
) -> Iterator[str]:
    """What breaks no rule and is seldom meant."""
    if test == "accuracy":
        return
    if scenario in ("Server", "Offline") and "target_qps" not in user:
        what = "1 query" if scenario == "Server" else "1 sample"
        yield f"loadgen.{scenario}.target_qps is not set: LoadGen reckons with {what} a second"
    old_multistream = "multi_stream_target_qps" in settings
    if scenario in ("SingleStream", "MultiStream") and "target_latency" not in user and not old_multistream:
        hint = found.words[scenario]["target_latency"]
        yield (
            f"loadgen.{scenario}.target_latency is not set: LoadGen expects {hint} ms a query, and a system "
            "more than twice as fast runs out of queries"
        )
    if scenario == "Server":
        queries = expected_queries(scenario, settings)
        if queries < SERVER_FEWEST_VALID and settings["server_target_latency_percentile"] == 0.99:
            yield f"about {queries} queries: early stopping calls fewer than {SERVER_FEWEST_VALID} INVALID"
        seconds = queries / float(settings["server_target_qps"])
        if seconds > LONG_TEST_S:
            yield f"at this target_qps the test takes {seconds / 3600:.1f} hours (min_query_count)"
    for low, high in (("min_duration_ms", "max_duration_ms"), ("min_query_count", "max_query_count")):
        if 0 < settings[high] < settings[low] and scenario != "Offline":
            yield f"{high} is below {low}: LoadGen will call the result INVALID"


def _digest(manifest: Manifest, spec: TestSpec) -> str:
    """sha256 over everything that makes this test what it is.

    Left out: the run's name, the other scenarios of the manifest, and findings and notes, which follow from
    the rest or concern the manifest; so a scenario can be added without running the others again.
    """
    parts: dict[str, Any] = {
        "task": manifest.task_options() | {"name": manifest.task.name, "sha256": manifest.task.sha256},
        "backend": manifest.backend_options(),
        "workers": manifest.workers.model_dump(mode="json"),
        "dispatch": manifest.dispatch.model_dump(mode="json") | {"on_loss": manifest.on_loss},
        "loadgen_folder": manifest.loadgen_folder(),
        "in_place": manifest.loadgen.in_place,
        "spec": spec.model_dump(mode="json", exclude={"broken_rules", "notes", "digest"}),
    }
    if manifest.power is not None and spec.test == "performance":
        parts["power"] = manifest.power.model_dump(mode="json")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def memory_needed_bytes(spec: TestSpec) -> int:
    """The memory that LoadGen itself needs for a test; the SUT's comes on top."""
    if spec.test == "accuracy":
        samples = spec.accuracy.sample_count if spec.accuracy else 0
        return samples * max(BYTES_PER_QUERY.values())
    if spec.scenario == "Offline":
        samples = offline_samples_per_query(spec.settings, spec.performance_sample_count or 0)
        each = BYTES_PER_NETWORK_SAMPLE if spec.division == "network" else BYTES_PER_OFFLINE_SAMPLE
        return OFFLINE_BYTES + samples * each
    return expected_queries(spec.scenario, spec.settings) * BYTES_PER_QUERY[spec.scenario]
