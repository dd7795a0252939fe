"""Every fault that the facts name, whether a checker sees it or not, is some rule's of `loadgrid check`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TIME_BUDGET_S = 30

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT.parent / "shared" / "facts" / "rules.yaml"
# An entry of rules.yaml, by its beginning -> the rules that see it. v1.1's are v1.0's.
OLD = {
    "result_validity is not VALID": ("invalid-result",),
    "any MLLOG entry with is_error": ("loadgen-error",),
    "effective_performance_sample_count below": ("few-samples",),
    "accuracy below target, missing hash": (
        "low-accuracy",
        "no-hash",
        "accuracy-log-not-truncated",
        "file-missing",
    ),
    "required scenario directory missing": ("missing-scenario",),
    "system json absent, bad status": ("system-missing", "system-field", "suite-unknown"),
    "closed model not known": (
        "unknown-model",
        "model-not-in-suite",
        "scenario-not-in-suite",
        "unknown-scenario",
    ),
    "an exception while parsing": ("damaged-log", "cut-log", "no-log"),
    "power directory present but files missing": ("power-file-missing", "no-power-figure"),
    "wrong qsl/sample_index/schedule seed": ("wrong-seed",),
    "effective_min_duration_ms < 600000": ("short-duration",),
    "effective_min_query_count too low": ("few-queries",),
    "Offline effective_samples_per_query < 24576": ("few-offline-samples",),
    "p99 latency above": ("latency-limit",),
    "missing or extra files in performance": ("file-missing", "extra-file"),
    "missing user.conf, mlperf.conf": (
        "user-conf-missing",
        "mlperf-conf-missing",
        "readme-missing",
        "implementation-missing",
    ),
    "missing code directory": ("code-missing",),
    "missing compliance directory or test": (
        "compliance-missing",
        "compliance-test-missing",
        "unknown-top-level",
    ),
    "TEST01 verify_performance.txt saying FAIL": ("compliance-failed",),
    "TEST01 verify_accuracy.txt saying FAIL": ("compliance-answers",),
    "accuracy run not covering": ("accuracy-coverage",),
    "calibration document absent": ("calibration-missing",),
    "empty directory": ("empty-folder",),
}
NEWEST = {
    "seeds wrong": ("wrong-seed",),
    "effective_min_duration_ms < 600000": ("short-duration",),
    "sample count low": ("few-samples",),
    "early_stopping_met false": ("early-stopping",),
    "effective_target_latency_ns above": ("latency-target",),
    "accuracy below target or no hash": (
        "low-accuracy",
        "no-hash",
        "accuracy-log-not-truncated",
        "loadgen-error",
    ),
    "effective_accuracy_sample_count differs": ("accuracy-coverage",),
    "user.conf or README.md or measurements.json missing or empty": (
        "user-conf-missing",
        "user-conf-empty",
        "readme-missing",
        "readme-empty",
        "implementation-missing",
        "implementation-field",
    ),
    "src (v6.x) or code (v5.x) directory missing": ("code-missing",),
    "compliance failures": ("compliance-failed", "compliance-missing", "compliance-file-missing"),
    "required scenario missing or unknown": (
        "missing-scenario",
        "unknown-scenario",
        "scenario-not-in-suite",
    ),
    "system json field missing": ("system-field",),
    "result_validity INVALID": ("invalid-result",),
    "is_error entries in the performance log": ("loadgen-error",),
    "missing mlperf_log_summary.txt": (
        "file-missing",
        "extra-file",
        "stray",
        "unknown-part",
        "calibration-missing",
        "mlperf-conf-missing",
    ),
    "equal issue mode": ("equal-issue",),
    "all --skip-... flags": ("unknown-top-level", "calibration-missing", "system-without-results"),
    "Offline effective_samples_per_query minimum": ("few-offline-samples",),
    "systems/<id>.json missing": ("system-missing",),
    "both detail logs of a scenario missing": ("file-missing",),
    "model outside the suite": ("model-not-in-suite",),
    "system_type misspelt": ("suite-unknown",),
    "is_network must be absent": ("system-field",),
    "a meaningful field with JSON value 0": ("system-field",),
    "retraining must be a non-empty string": ("implementation-field",),
}


def named_rules() -> set[str]:
    """Every rule id that the checks name: the texts that stand where one belongs."""
    found = set()
    for path in (ROOT / "orchestrator" / "check").glob("*.py"):
        found |= set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)+|stray|draft|symlink)"', path.read_text()))
    # Rules whose name is put together: f"{_rule(name)}-missing".
    conf = ("user-conf", "mlperf-conf", "readme")
    return found | {f"{name}-{fault}" for name in conf for fault in ("missing", "empty")}


@pytest.mark.parametrize("table", [OLD, NEWEST], ids=["v1.0 and v1.1", "v6.1"])
def test_every_rule_of_the_table_is_one_that_a_check_names(table: dict[str, tuple[str, ...]]) -> None:
    assert {rule for rules in table.values() for rule in rules} <= named_rules()


def entries(value: Any) -> list[str]:
    """The texts of an enforcement section, whatever list they stand in."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in entries(part)]
    return [text for part in value for text in entries(part)] if isinstance(value, list) else [str(value)]


@pytest.mark.skipif(not FACTS.exists(), reason="the facts are not part of the project")
@pytest.mark.parametrize(("where", "table"), [(("rounds", "v1.0"), OLD), (("rounds", "newest"), NEWEST)])
def test_every_entry_of_the_facts_stands_in_the_table(
    where: tuple[str, str], table: dict[str, tuple[str, ...]]
) -> None:
    facts = yaml.safe_load(FACTS.read_text())[where[0]][where[1]]["enforcement"]
    # The last entry of v1.0 tells how a gate is to be built, and names no fault.
    told = [text for text in entries(facts) if not text.startswith("treat the run as green")]
    assert [text for text in told if not any(text.startswith(start) for start in table)] == []
    assert [start for start in table if not any(text.startswith(start) for text in told)] == []
