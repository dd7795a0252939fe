"""From an outcome and LoadGen's logs to a verdict: the result, whether it is official, and why not. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from orchestrator.audit import ISSUED_UNIQUE_OR_SAME, RAN_OUT
from orchestrator.logs import DetailLog
from orchestrator.plan import TestSpec
from orchestrator.record import Accuracy, Audit, Power, Result
from orchestrator.supervise import Outcome

# LoadGen's metric of each scenario: name, unit, and what turns the log's number into the unit.
METRICS = {
    "SingleStream": ("latency", "ms", 1e-6),
    "MultiStream": ("query latency", "ms", 1e-6),
    "Server": ("throughput", "queries/s", 1.0),
    "Offline": ("throughput", "samples/s", 1.0),
}
# MultiStream up to v1.1 counts the samples that fit into its fixed interval.
STREAMS_KEY = "effective_samples_per_query"
OVERLATENCY_KEY = "result_overlatency_query_count"  # Server alone has it
MAY_DIFFER = ("workers differ in device", "workers differ in max_batch")
# What LoadGen's log shows of a test: our setting, LoadGen's key.
SHOWN = {
    "qsl_rng_seed": "effective_qsl_rng_seed",
    "sample_index_rng_seed": "effective_sample_index_rng_seed",
    "schedule_rng_seed": "effective_schedule_rng_seed",
    "min_duration_ms": "effective_min_duration_ms",
    "server_target_qps": "effective_target_qps",
    "server_target_latency_ns": "effective_target_latency_ns",
    "server_target_latency_percentile": "effective_target_latency_percentile",
    "performance_issue_unique": "effective_performance_issue_unique",
    "performance_issue_same": "effective_performance_issue_same",
    "accuracy_log_sampling_target": "effective_accuracy_log_sampling_target",
}
SHORTER = "the test was shorter than min_duration"
# The keys of LoadGen's checks, and what a failed one means to somebody who sees it for the first time.
CHECKS = {
    "result_perf_constraints_met": "too many queries took longer than the limit: offer fewer a second",
    "result_min_duration_met": f"{SHORTER}: expect more (a higher target_qps)",
    "result_min_queries_met": "fewer queries than min_query_count were asked",
    "early_stopping_met": "too few queries to be 99 % sure that the latency holds: ask more "
    "(min_query_count, min_duration), or, where some were late, fewer a second",
}
# In SingleStream and MultiStream the one hint at the number of queries is the latency that is expected.
STREAM_CHECKS = {
    "result_min_duration_met": f"{SHORTER}: expect a shorter target_latency",
    "early_stopping_met": "too few queries to be 99 % sure of the percentile: run longer",
}
# A duration cannot be missed there by a wrong hint: the interval is fixed.
FIXED_INTERVAL_CHECKS = {
    "result_perf_constraints_met": "too many queries made another skip its tick: ask fewer samples a query",
    "result_min_duration_met": SHORTER,
}


def result_of(spec: TestSpec, detail: DetailLog, finished: bool) -> Result:
    """What LoadGen measured, nothing of an unfinished test; the value is LoadGen's own, never ours."""
    metric, unit = _metric(spec)
    late = detail.number(OVERLATENCY_KEY) if finished else None
    reasons = list(detail.reasons)
    if detail.valid is False:
        reasons += _failed_checks(spec, detail)
    return Result(
        valid=detail.valid if finished else None,
        metric=metric,
        value=value_of(spec.scenario, spec.result_key, detail) if finished else None,
        unit=unit,
        reasons=reasons,
        percentiles_ms=detail.percentiles_ms(),
        errors=detail.troubles,
        overlatency_queries=None if late is None else int(late),
    )


def value_of(scenario: str, result_key: str, detail: DetailLog) -> float | None:
    """LoadGen's number of a test, in its metric's unit; None where it gave none."""
    value = detail.number(result_key)
    if value is None or result_key == STREAMS_KEY:
        return value
    _, unit, scale = METRICS[scenario]
    if value == 0 and unit == "ms":
        return None  # early stopping had too few queries for an estimate
    return value * scale


def _failed_checks(spec: TestSpec, detail: DetailLog) -> list[str]:
    """LoadGen's checks that this test failed, in words that fit its scenario."""
    streams = STREAM_CHECKS if spec.scenario in ("SingleStream", "MultiStream") else {}
    checks = CHECKS | (FIXED_INTERVAL_CHECKS if spec.result_key == STREAMS_KEY else streams)
    failed = [key for key in checks if detail.values.get(key) is False]
    if "result_perf_constraints_met" in failed and "early_stopping_met" in failed:
        # Of a latency that was missed nobody can be sure that it holds, however long the test.
        failed.remove("early_stopping_met")
    if spec.scenario == "Offline" and (value := value_of(spec.scenario, spec.result_key, detail)):
        hint = f"target_qps: {math.ceil(value)} or more"  # as YAML takes it, so without a comma
        checks |= {"result_min_duration_met": f"{SHORTER}: expect more ({hint})"}
    return [checks[key] for key in failed]


def _metric(spec: TestSpec) -> tuple[str, str]:
    """Name and unit of a test's metric; a latency is named by its percentile."""
    if spec.result_key == STREAMS_KEY:
        return "samples per query", "samples"
    metric, unit, _ = METRICS[spec.scenario]
    for prefix in ("single_stream", "multi_stream"):
        percentile = spec.settings.get(f"{prefix}_target_latency_percentile")
        if spec.scenario in ("SingleStream", "MultiStream") and percentile:
            metric = f"p{100 * percentile:g} {metric}"
    return metric, unit


def shown_otherwise(spec: TestSpec, detail: DetailLog) -> list[str]:
    """Settings that LoadGen's log, which a checker reads, shows otherwise than planned."""
    wanted: dict[str, Any] = {SHOWN[k]: value for k, value in spec.settings.items() if k in SHOWN}
    if spec.scenario != "Server":
        wanted = {key: value for key, value in wanted.items() if "target" not in key}
    wanted["effective_scenario"] = spec.scenario
    wanted["effective_test_mode"] = "AccuracyOnly" if spec.test == "accuracy" else "PerformanceOnly"
    seen = detail.values
    return [
        f"LoadGen's log shows {key} {seen[key]} instead of {value}"
        for key, value in wanted.items()
        if key in seen and seen[key] != value
    ]


def doubts_about_log(detail: DetailLog) -> list[str]:
    """Why a finished test's log is not whole, or not of one mind: what is missing may have been an error."""
    doubts = [f"log: LoadGen's gives different values: {text}" for text in detail.said_twice]
    if detail.cut_short:
        doubts.append("log: LoadGen's is cut short in its last line")
    # The settings stand near its beginning, the window of power at the end of all but the results.
    missing = [key for key in ("effective_scenario", "effective_test_mode") if key not in detail.values]
    if not any(window.end for window in detail.power.values()):
        missing.append("power_end")
    if missing:
        doubts.append(f"log: a part of LoadGen's is missing: it does not show {', '.join(missing)}")
    failed = [key for key in CHECKS if detail.values.get(key) is False]
    if detail.valid and failed:
        doubts.append(f"log: LoadGen's says VALID, and {', '.join(failed)} false")
    return doubts


def doubts_about_workers(
    facts: Sequence[dict[str, Any]], differences: Sequence[str], absent: Sequence[str], outcome: Outcome
) -> list[str]:
    """What makes a result one of another system than it says, or its answers strange."""
    board = outcome.board
    # Several kinds of device are a system like any other; different code or precision are different answers.
    doubts = [f"workers: {text}" for text in differences if not text.startswith(MAY_DIFFER)]
    if absent:
        doubts.append(f"workers: only {len(facts)} took part; lost before: {', '.join(absent)}")
    if any(fact.get("weights") == "seeded" for fact in facts):
        doubts.append("weights: a worker computed with seeded weights")
    late, foreign = board.total("late"), outcome.result.get("foreign_answers") or 0
    if (late and not outcome.losses) or foreign:
        doubts.append(f"answers: {late} came late and {foreign} from another test, though no worker was lost")
    if dropped := board.total("rows_dropped"):
        doubts.append(f"timings: {dropped} frames are missing in the workers' stage times")
    return doubts


def unofficial_because(
    spec: TestSpec,
    outcome: Outcome,
    result: Result,
    accuracy: Accuracy | None,
    findings: Sequence[Any],
    evidence: Sequence[str],
) -> list[str]:
    """Every reason why this test could not be submitted; empty means official.

    `findings` are broken rules, `evidence` what could not be shown (hashes, a clean commit).
    """
    named = {f.rule + f.why: f"{f.rule}: {f.why} ({f.source})" for f in findings if f.scope == "test"}
    because = list(named.values())
    if outcome.status != "finished":
        how = "failed" if outcome.status == "failed" else "was interrupted"
        because.append(f"the test {how}: {outcome.reason}")
    because += [f"loss: worker {x['worker']} was lost ({x['reason']})" for x in outcome.losses]
    expected = RAN_OUT if spec.test in ISSUED_UNIQUE_OR_SAME else None
    errors = [error for error in result.errors if expected is None or expected not in error]
    because += [f"LoadGen logged an error: {error}" for error in errors]
    if spec.test == "performance" and result.valid is not True and outcome.status == "finished":
        because.append("LoadGen's verdict is not VALID")
    if spec.test == "accuracy" and outcome.status == "finished":
        if accuracy is None:
            because.append("the accuracy could not be scored")
        elif not accuracy.reached and spec.division != "open":  # open chooses its own model and accuracy
            because.append(
                f"accuracy {accuracy.value:g} is below the target {accuracy.target:g} {accuracy.unit}"
            )
    return because + list(evidence)


def doubts_about_power(round_name: str, power: Power | None, remote_hosts: Sequence[str]) -> list[str]:
    """What makes a measured figure one that the round does not take."""
    doubts = []
    # SUPPORTED_MODEL of the Power WG's check.py, v1.0 to v6.1: all are Yokogawa's; a dummy says so too.
    if power is not None and not (power.meter or "").startswith("Yokogawa"):
        doubts.append(f"power: the meter is {power.meter or 'not said'}, none that the power checker takes")
    # Their power tooling is for one meter on one system, and their text excludes disaggregated ones.
    if power is not None and remote_hosts and round_name in ("v1.0", "v1.1"):
        doubts.append(
            f"power: {round_name} measures one system; workers ran on {', '.join(remote_hosts)} too"
        )
    return doubts


def doubts_of(audit: Audit | None) -> list[str]:
    """Why a compliance test's verification does not show what it should."""
    if audit is None or audit.good:
        return []
    return [
        f"compliance: {audit.test} {'failed' if audit.passed is False else 'has no verdict'}: {audit.reason}"
    ]


def missing_evidence(
    facts: Sequence[dict[str, Any]],
    engine: str,
    hashes: dict[str, str | None],
    commit: dict[str, Any],
    loadgen: dict[str, Any],
) -> list[str]:
    """What an official result must show and this one cannot."""
    missing = []
    if not loadgen["version"] or not loadgen["sha256"]:
        missing.append("loadgen: its version and the hash of its file are not known")
    # The plan has said it already of the echo backend and of seeded weights.
    seeded = any(fact.get("weights") == "seeded" for fact in facts)
    if engine == "echo" or seeded:
        pass
    elif hashes["weights_expected"] is None:
        missing.append("checkpoint: backend.weights_sha256 is not given, so the weights are not verified")
    elif not facts or any(fact.get("weights_sha256") != hashes["weights_expected"] for fact in facts):
        missing.append("checkpoint: not every worker showed weights with the hash backend.weights_sha256")
    missing += _missing_scales(facts, hashes.get("scales_expected"))
    if hashes["library_expected"] is None:
        missing.append("data set: task.sha256 is not given, so the data set is not verified")
    elif hashes["library"] != hashes["library_expected"]:
        missing.append("data set: the prepared data set does not have the hash task.sha256")
    if any(fact.get("library") not in (None, hashes["library"]) for fact in facts):
        missing.append("data set: a worker's data set is not the one on this host")
    if commit.get("commit") is None:
        missing.append("code: LoadGrid does not run from a git checkout, so its commit is not known")
    elif commit.get("dirty"):
        missing.append(f"code: LoadGrid's code has changes over commit {commit['commit'][:12]}")
    own = hashes.get("workers_code")  # records of before have none
    if own is not None and any(fact.get("code") not in (None, own) for fact in facts):
        missing.append("code: a worker's LoadGrid is not the one on this host")
    return missing


def _missing_scales(facts: Sequence[dict[str, Any]], expected: str | None) -> list[str]:
    """What a quantised network's result must show of its scales; those of seeded weights prove nothing."""
    scaled = [fact for fact in facts if fact.get("scales_sha256") and fact.get("weights") != "seeded"]
    if scaled and expected is None:
        return ["calibration: backend.scales_sha256 is not given, so the scales are not verified"]
    if any(fact["scales_sha256"] != expected for fact in scaled):
        return ["calibration: not every worker showed scales with the hash backend.scales_sha256"]
    return []
