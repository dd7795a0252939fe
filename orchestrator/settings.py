"""user.conf words <-> TestSettings attributes of LoadGen 6.0.17, as its FromConfig reads them. Pure.

Checked by a test that lets the real LoadGen read every user.conf and compares what it shows. Measured traps:

- Server's target_latency and every count are read with strtoull: 7.5 becomes 7, and 1e6 becomes 1.
- Percentiles are percent times 0.01 in floating point: 99.9 is 0.9990000000000001.
- Seeds in user.conf are ignored without a word: they are attributes, set after FromConfig.
- In Offline min_query_count is the fewest samples of the one query, which has 10 % more than qps x duration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from orchestrator.rules import Round, Words

Value = int | float | bool

NS_PER_MS = 1_000_000
OFFLINE_SLACK = 1.1  # kSlack of test_settings_internal.cc
GENERATED_OVER_DURATION = 2  # LoadGen generates queries for twice the duration, but for Server
EQUAL_ISSUE_SLACK = (
    2  # SingleStream with sample_concatenate_permutation asks for this many times the expected queries
)


class Word(NamedTuple):
    """The attribute that a word sets, and how LoadGen turns the word's number into it."""

    attribute: str
    read: Callable[[int | float], Value]


def _percent(value: int | float) -> float:
    return float(value) * 0.01


def _latency_ns(value: int | float) -> float:
    return float(value) * NS_PER_MS


def _whole_latency_ns(value: int | float) -> int:
    return int(value) * NS_PER_MS


EVERY_SCENARIO = {
    "min_duration": Word("min_duration_ms", int),
    "max_duration": Word("max_duration_ms", int),
    "min_query_count": Word("min_query_count", int),
    "max_query_count": Word("max_query_count", int),
    "performance_sample_count_override": Word("performance_sample_count_override", int),
    "accuracy_sample_count_override": Word("accuracy_sample_count_override", int),
    "performance_issue_unique": Word("performance_issue_unique", bool),
    "performance_issue_same": Word("performance_issue_same", bool),
    "performance_issue_same_index": Word("performance_issue_same_index", int),
    "sample_concatenate_permutation": Word("sample_concatenate_permutation", bool),
    "print_timestamps": Word("print_timestamps", bool),
    "accuracy_log_rng_seed": Word("accuracy_log_rng_seed", int),
    "accuracy_log_sampling_target": Word("accuracy_log_sampling_target", int),
}
ONE_SCENARIO: dict[str, dict[str, Word]] = {
    "SingleStream": {
        "target_latency": Word("single_stream_expected_latency_ns", _latency_ns),
        "target_latency_percentile": Word("single_stream_target_latency_percentile", _percent),
    },
    "MultiStream": {
        "target_latency": Word("multi_stream_expected_latency_ns", _latency_ns),
        "target_latency_percentile": Word("multi_stream_target_latency_percentile", _percent),
        "samples_per_query": Word("multi_stream_samples_per_query", int),
    },
    "Server": {
        "target_qps": Word("server_target_qps", float),
        "target_latency": Word("server_target_latency_ns", _whole_latency_ns),
        "target_latency_percentile": Word("server_target_latency_percentile", _percent),
        "coalesce_queries": Word("server_coalesce_queries", bool),
        "max_async_queries": Word("server_max_async_queries", int),
    },
    "Offline": {"target_qps": Word("offline_expected_qps", float)},
}
# MultiStream before LoadGen 2.0: a fixed interval. Its FromConfig does not read target_latency.
OLD_MULTISTREAM = {
    "target_qps": Word("multi_stream_target_qps", float),
    "target_latency_percentile": Word("multi_stream_target_latency_percentile", _percent),
    "samples_per_query": Word("multi_stream_samples_per_query", int),
    "max_async_queries": Word("multi_stream_max_async_queries", int),
}

# What TestSettings holds before any configuration (read from LoadGen 6.0.17), where no round's words fix it.
DEFAULTS: dict[str, Value] = {
    "max_duration_ms": 0,
    "min_query_count": 100,
    "max_query_count": 0,
    "performance_sample_count_override": 0,
    "accuracy_sample_count_override": 0,
    "performance_issue_unique": False,
    "performance_issue_same": False,
    "performance_issue_same_index": 0,
    "sample_concatenate_permutation": False,
    "print_timestamps": False,
    "accuracy_log_rng_seed": 0,
    "accuracy_log_probability": 0.0,
    "accuracy_log_sampling_target": 0,
    "test05": False,
    "use_token_latencies": False,
    "infer_token_latencies": False,
}
SERVER_DEFAULTS: dict[str, Value] = {"server_max_async_queries": 0, "server_num_issue_query_threads": 0}


def table(found: Round, scenario: str) -> dict[str, Word]:
    """The words that LoadGen reads in a scenario of this round."""
    if scenario == "MultiStream" and found.fixed_interval_multistream:
        return {**EVERY_SCENARIO, **OLD_MULTISTREAM}
    return {**EVERY_SCENARIO, **ONE_SCENARIO[scenario]}


def merged_words(
    found: Round, benchmark: str, scenario: str, user: Mapping[str, int | float], *, coalesce: bool
) -> Words:
    """The round's words under the user's. `coalesce`: our default for Server, which LoadGen has off."""
    words = found.conf_words(benchmark, scenario)
    if not found.loadgen.embeds_conf:
        words |= found.benchmark(benchmark).loadgen6_words
    if scenario == "Server":
        words["coalesce_queries"] = int(coalesce)
    known = table(found, scenario)
    return {word: value for word, value in {**words, **user}.items() if word in known}


def attributes_of(found: Round, scenario: str, words: Mapping[str, int | float]) -> dict[str, Value]:
    """The TestSettings attributes of one scenario that these words give, defaults included, seeds not."""
    known = table(found, scenario)
    settings = {**DEFAULTS, **(SERVER_DEFAULTS if scenario == "Server" else {})}
    return settings | {known[word].attribute: known[word].read(value) for word, value in words.items()}


def user_conf_text(
    found: Round,
    benchmark: str,
    scenario: str,
    words: Mapping[str, int | float],
    user: Mapping[str, int | float],
) -> str:
    """The user.conf that makes LoadGen show these words' settings, one exact model.Scenario.word a line.

    LoadGen brings the words of its own round along, so then only what differs is written; an old round's
    LoadGen brings none, and LoadGen 6 the wrong ones, so then every word is.
    """
    model = found.benchmark(benchmark).conf_model_name
    own = found.conf_words(benchmark, scenario) if found.loadgen.embeds_conf else {}
    lines = [
        f"# {found.name} {benchmark} {scenario}: written by LoadGrid from the manifest and the round's rules."
    ]
    for word, value in words.items():
        if word in user or own.get(word) != value:
            lines.append(f"{model}.{scenario}.{word} = {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: int | float) -> str:
    """A number as LoadGen's parser takes it: counts without a point, for strtoull stops at one."""
    return str(int(value)) if value == int(value) and abs(value) < 2**64 else repr(value)


def readable_settings(settings: Mapping[str, Value], attributes: Collection[str]) -> dict[str, Value]:
    """The settings that a LoadGen with these TestSettings attributes can show: old ones lack some.

    ValueError names a setting that it lacks and that is not at its neutral value (0 or False).
    """
    lost = [name for name, value in settings.items() if name not in attributes and value]
    if lost:
        raise ValueError(f"this LoadGen has no setting {', '.join(lost)}, which the plan needs")
    return {name: value for name, value in settings.items() if name in attributes}


def offline_samples_per_query(settings: Mapping[str, Value], performance_sample_count: int) -> int:
    """How many samples LoadGen's one Offline query has."""
    if settings["performance_issue_unique"]:
        return performance_sample_count
    expected = OFFLINE_SLACK * (settings["min_duration_ms"] / 1000) * settings["offline_expected_qps"]
    return max(int(settings["min_query_count"]), int(expected))


def expected_queries(scenario: str, settings: Mapping[str, Value]) -> int:
    """How many queries LoadGen generates before the clock starts, so how many it keeps in memory."""
    if scenario == "Offline":
        return 1
    duration_s = settings["min_duration_ms"] / 1000
    if scenario == "Server":
        return max(int(settings["min_query_count"]), int(settings["server_target_qps"] * duration_s) + 1)
    if "multi_stream_target_qps" in settings:
        qps = float(settings["multi_stream_target_qps"])
    else:
        name = "single_stream" if scenario == "SingleStream" else "multi_stream"
        qps = 1e9 / float(settings[f"{name}_expected_latency_ns"])
    generated = int(GENERATED_OVER_DURATION * duration_s * qps) + 1
    return max(int(settings["min_query_count"]), generated)
