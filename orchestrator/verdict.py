"""From an outcome and LoadGen's logs to a verdict: the result, whether it is official, and why not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.logs import DetailLog
from orchestrator.plan import TestSpec
from orchestrator.record import Accuracy, Result
from orchestrator.supervise import Outcome

# LoadGen's metric of each scenario: name, unit, and what turns the log's number into the unit.
METRICS = {
    "SingleStream": ("latency", "ms", 1e-6),
    "MultiStream": ("query latency", "ms", 1e-6),
    "Server": ("throughput", "queries/s", 1.0),
    "Offline": ("throughput", "samples/s", 1.0),
}
# The keys of LoadGen's checks, and what a failed one means to somebody who sees it for the first time.
CHECKS = {
    "result_perf_constraints_met": "too many queries took longer than the limit: offer fewer a second",
    "result_min_duration_met": "the test was shorter than min_duration: expect more (target_qps)",
    "result_min_queries_met": "fewer queries than min_query_count were asked",
    "early_stopping_met": "too few queries to be 99 % sure that the latency holds: run longer or offer less",
}


def result_of(spec: TestSpec, detail: DetailLog) -> Result:
    """What LoadGen measured; the metric's value is LoadGen's own, never one of ours."""
    metric, unit, scale = METRICS[spec.scenario]
    value = detail.number(spec.result_key)
    reasons = list(detail.reasons)
    if detail.valid is False:
        reasons += [words for key, words in CHECKS.items() if detail.values.get(key) is False]
    return Result(
        valid=detail.valid,
        metric=metric,
        value=None if value is None else value * scale,
        unit=unit,
        reasons=reasons,
        percentiles_ms=detail.percentiles_ms(),
        errors=detail.errors,
    )


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
    because = [f"{f.rule}: {f.why} ({f.source})" for f in findings if f.scope == "test"]
    if outcome.status != "finished":
        how = "failed" if outcome.status == "failed" else "was interrupted"
        because.append(f"the test {how}: {outcome.reason}")
    because += [f"loss: worker {x['worker']} was lost ({x['reason']})" for x in outcome.losses]
    because += [f"LoadGen logged an error: {error}" for error in result.errors]
    if spec.test == "performance" and result.valid is not True and outcome.status == "finished":
        because.append("LoadGen's verdict is not VALID")
    if spec.test == "accuracy" and outcome.status == "finished":
        if accuracy is None:
            because.append("the accuracy could not be scored")
        elif not accuracy.reached:
            because.append(
                f"accuracy {accuracy.value:g} is below the target {accuracy.target:g} {accuracy.unit}"
            )
    return because + list(evidence)


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
    if hashes["library_expected"] is None:
        missing.append("data set: task.sha256 is not given, so the data set is not verified")
    elif hashes["library"] != hashes["library_expected"]:
        missing.append("data set: the prepared data set does not have the hash task.sha256")
    if any(fact.get("library") not in (None, hashes["library"]) for fact in facts):
        missing.append("data set: a worker's data set is not the one on this host")
    if commit.get("commit") is None:
        missing.append("code: LoadGrid does not run from a git checkout, so its commit is not known")
    elif commit.get("dirty"):
        missing.append(f"code: LoadGrid's checkout has changes over commit {commit['commit'][:12]}")
    return missing
