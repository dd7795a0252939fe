"""Which figure of LoadGen's logs is the result, round by round and scenario by scenario. Pure.

Source: RESULT_FIELD_NEW and RESULT_FIELD_BENCHMARK_OVERWRITE of the submission checkers of v0.7 to v6.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.logs import number_of

RoundNumber = tuple[int, int]
# LoadGen calls itself .5a1 in the rounds v0.5, v0.7 and v1.0, whose metrics are the same.
FIRST_ROUND = (0, 5)
V1_0, V2_0, V4_0, V4_1, V5_1 = (1, 0), (2, 0), (4, 0), (4, 1), (5, 1)
# LoadGen gives 0 where early stopping had too few queries for an estimate.
_ESTIMATES = ("early_stopping_latency_ss", "early_stopping_latency_ms")
MULTI_STREAM_SAMPLES = 8  # of every query since v2.0; its inference from SingleStream multiplies by it


@dataclass(frozen=True)
class Metric:
    """A result as the checkers of `round` read it: `value` in `unit`, from `key` of the logs."""

    name: str
    value: float
    unit: str
    key: str
    round: str
    inferred_from: str | None = None


class _Rule(NamedTuple):
    since: RoundNumber
    scenario: str
    key: str
    name: str
    unit: str
    divisor: float = 1.0


_RULES = (
    _Rule(
        FIRST_ROUND,
        "SingleStream",
        "result_90.00_percentile_latency_ns",
        "90th percentile latency",
        "ms",
        1e6,
    ),
    _Rule(V2_0, "SingleStream", _ESTIMATES[0], "early-stopping estimate of the latency", "ms", 1e6),
    _Rule(FIRST_ROUND, "MultiStream", "effective_samples_per_query", "samples per query", "samples/query"),
    _Rule(V2_0, "MultiStream", _ESTIMATES[1], "early-stopping estimate of the query latency", "ms", 1e6),
    _Rule(FIRST_ROUND, "MultiStreamFree", "result_samples_per_second", "samples per second", "samples/s"),
    _Rule(
        FIRST_ROUND, "Server", "result_scheduled_samples_per_sec", "scheduled samples per second", "queries/s"
    ),
    _Rule(V4_1, "Server", "result_completed_samples_per_sec", "completed samples per second", "queries/s"),
    _Rule(FIRST_ROUND, "Offline", "result_samples_per_second", "samples per second", "samples/s"),
)
# Language models: of these tests the configuration asks LoadGen for tokens.
_TOKEN_RULES = (
    _Rule(V4_0, "Offline", "result_tokens_per_second", "tokens per second", "tokens/s"),
    _Rule(V4_0, "Server", "result_completed_samples_per_sec", "completed samples per second", "queries/s"),
    _Rule(V4_1, "Server", "result_completed_tokens_per_second", "completed tokens per second", "tokens/s"),
    _Rule(V5_1, "SingleStream", "result_90.00_percentile_latency_ns", "90th percentile latency", "ms", 1e6),
)
_SCALED_TOKEN_RULES = (
    _Rule(V4_1, "Offline", "result_inferred_tokens_per_second", "tokens per second (inferred)", "tokens/s"),
    _Rule(
        V4_1,
        "Server",
        "result_inferred_completed_tokens_per_second",
        "completed tokens per second (inferred)",
        "tokens/s",
    ),
)


def round_number(text: str) -> RoundNumber | None:
    """`v1.0`, `6.0.17`, `.5a1 @ 6958607d52` as (1, 0), (6, 0), (0, 5); None for anything else."""
    found = re.match(r"v?(\d{0,3})\.(\d{1,3})", text.strip())
    return (int(found[1] or 0), int(found[2])) if found else None


def round_of_loadgen(version: str | None, form: str | None) -> RoundNumber | None:
    """The round of a LoadGen: `.5a1` with MLLOG lines is v1.0's (mlcommons/inference 7224f32a)."""
    number = round_number(version or "")
    return V1_0 if number == FIRST_ROUND and form == "mllog" else number


def round_name(number: RoundNumber) -> str:
    """A round's name; v0.5 and v0.7 have the same logs."""
    return "v0.5 or v0.7" if number < V1_0 else f"v{number[0]}.{number[1]}"


def metric_of(values: Mapping[str, Any], of_round: RoundNumber) -> Metric | None:
    """The result of a test by the rule of a round; None where the logs do not hold it."""
    rule = _rule_for(values, of_round)
    value = number_of(values.get(rule.key)) if rule else None
    if rule is None or value is None or (rule.key in _ESTIMATES and value <= 0):
        return None
    return Metric(rule.name, value / rule.divisor, rule.unit, rule.key, round_name(of_round))


def round_shown(values: Mapping[str, Any], headline: str | None) -> RoundNumber | None:
    """A round with the metric that a summary shows, where LoadGen's version is lost; None if none is."""
    scenario = values.get("effective_scenario")
    if scenario == "Server" and headline:
        return V4_1 if "completed" in headline else FIRST_ROUND
    if scenario == "MultiStream" and headline:
        return FIRST_ROUND if headline == "effective_samples_per_query" else V2_0
    if scenario == "SingleStream" and headline:
        return V2_0 if "early_stopping_met" in values else FIRST_ROUND
    return FIRST_ROUND if scenario == "Offline" and "result_tokens_per_second" not in values else None


def inferred_metric(values: Mapping[str, Any], scenario: str, of_round: RoundNumber) -> Metric | None:
    """The result of another scenario that edge submitters may take from a stream's run (inference rules).

    From the mean: the checkers' `result_qps_without_loadgen_overhead` is 1 / mean with six digits left.
    """
    run = values.get("effective_scenario")
    if scenario == "Offline" and run == "SingleStream":
        key, samples = "result_mean_latency_ns", 1.0
    elif scenario == "Offline" and run == "MultiStream" and of_round >= V2_0:
        key, samples = (
            "result_mean_query_latency_ns",
            number_of(values.get("effective_samples_per_query")) or 0.0,
        )
    elif scenario == "MultiStream" and run == "SingleStream" and of_round >= V2_0:
        key, samples = "early_stopping_latency_ms", float(MULTI_STREAM_SAMPLES)
    else:
        return None
    latency_ns = number_of(values.get(key))
    if latency_ns is None or latency_ns <= 0 or samples <= 0:
        return None
    if scenario == "Offline":
        return Metric(
            "samples per second", samples * 1e9 / latency_ns, "samples/s", key, round_name(of_round), run
        )
    name = "early-stopping estimate of the query latency"
    return Metric(name, samples * latency_ns / 1e6, "ms", key, round_name(of_round), run)


def _rule_for(values: Mapping[str, Any], of_round: RoundNumber) -> _Rule | None:
    scenario, rules = values.get("effective_scenario"), list(_RULES)
    if values.get("requested_use_token_latencies") is True or "result_tokens_per_second" in values:
        rules += _TOKEN_RULES
    if any(rule.key in values for rule in _SCALED_TOKEN_RULES):
        rules += _SCALED_TOKEN_RULES
    fitting = [rule for rule in rules if rule.scenario == scenario and rule.since <= of_round]
    return fitting[-1] if fitting else None
