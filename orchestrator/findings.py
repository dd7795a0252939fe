"""The rules that settings break, one Finding each, with the round's field that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.manifest_fields import Manifest
from orchestrator.rules import Benchmark, Round
from orchestrator.settings import Value, offline_samples_per_query

AUDIT_SETTINGS = (
    "performance_issue_unique",
    "performance_issue_same",
    "accuracy_log_rng_seed",
    "accuracy_log_sampling_target",
)


class Finding(BaseModel):
    """A broken rule: a short name, why in words, and where the round says so.

    `scope` "manifest" means that the test itself may be in order and something beside it is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    why: str
    source: str
    scope: Literal["test", "manifest"] = "test"


def settings_findings(
    found: Round, benchmark: Benchmark, manifest: Manifest, scenario: str, settings: Mapping[str, Value]
) -> Iterator[Finding]:
    """What the settings of a performance test break."""
    yield from _amount_findings(found, benchmark, scenario, settings)
    yield from _sample_findings(found, benchmark, manifest, scenario, settings)
    yield from _latency_findings(found, benchmark, manifest.division, scenario, settings)


def both_modes_findings(
    found: Round, manifest: Manifest, scenario: str, settings: Mapping[str, Value]
) -> Iterator[Finding]:
    """What settings break in performance and accuracy tests alike."""
    for name in AUDIT_SETTINGS:
        if settings.get(name):
            yield Finding(
                rule="audit_setting",
                why=f"{name} is {settings[name]}: it belongs to a compliance test, not to a result",
                source=f"{found.name} compliance",
            )
    if scenario == "Server" and manifest.division == "network" and settings["server_coalesce_queries"]:
        yield Finding(
            rule="network_coalescing",
            why="coalesce_queries is 1; the Network division sends one sample a message",
            source=f"{found.sources['rules']}, Network Division",
        )


def _amount_findings(
    found: Round, benchmark: Benchmark, scenario: str, settings: Mapping[str, Value]
) -> Iterator[Finding]:
    shortest, longest = settings["min_duration_ms"], settings["max_duration_ms"]
    if shortest < found.min_duration_ms:
        yield Finding(
            rule="min_duration",
            why=f"the test may end after {shortest} ms; the round asks for {found.min_duration_ms} ms",
            source=f"{found.name} min_duration_ms",
        )
    if longest and longest < found.min_duration_ms:
        yield Finding(
            rule="max_duration",
            why=f"LoadGen stops after {longest} ms, before the round's {found.min_duration_ms} ms",
            source=f"{found.name} min_duration_ms",
        )
    # In Offline this word counts samples, which the rule on samples per query covers.
    fewest = 0 if scenario == "Offline" else _fewest_queries(found, benchmark, scenario)
    for name in ("min_query_count", "max_query_count"):
        count = settings[name]
        if count < fewest and (count or name == "min_query_count"):
            yield Finding(
                rule=name,
                why=f"the test may end after {count} queries; the round asks for {fewest}",
                source=f"{found.name} benchmarks.{benchmark.name}.min_query_count",
            )


def _fewest_queries(found: Round, benchmark: Benchmark, scenario: str) -> int:
    """The round's fewest queries; 100 is what LoadGen has where the round's conf says nothing."""
    if scenario in benchmark.min_query_count:
        return benchmark.min_query_count[scenario]
    return int(found.conf_words(benchmark.name, scenario).get("min_query_count", 100))


def _sample_findings(
    found: Round, benchmark: Benchmark, manifest: Manifest, scenario: str, settings: Mapping[str, Value]
) -> Iterator[Finding]:
    count, fewest = settings["performance_sample_count_override"], benchmark.performance_sample_count_min
    if 0 < count < fewest:
        yield Finding(
            rule="performance_sample_count",
            why=f"the test draws from {count} samples; the round asks for {fewest}",
            source=f"{found.name} benchmarks.{benchmark.name}.performance_sample_count_min",
        )
    if bool(settings["sample_concatenate_permutation"]) != benchmark.equal_issue_mode:
        wanted = "equally often" if benchmark.equal_issue_mode else "at random"
        yield Finding(
            rule="equal_issue_mode",
            why=f"sample_concatenate_permutation is changed; the round has samples drawn {wanted}",
            source=f"{found.name} benchmarks.{benchmark.name}.equal_issue_mode",
        )
    if scenario == "Offline":
        samples = offline_samples_per_query(settings, int(count) or fewest)
        if samples < benchmark.offline_min_samples_per_query:
            yield Finding(
                rule="offline_samples",
                why=f"the query has {samples} samples; the round asks for "
                f"{benchmark.offline_min_samples_per_query}",
                source=f"{found.name} benchmarks.{benchmark.name}.offline_min_samples_per_query",
            )
    if scenario == "MultiStream" and not found.fixed_interval_multistream:
        wanted_samples = found.conf_words(benchmark.name, scenario)["samples_per_query"]
        samples = int(settings["multi_stream_samples_per_query"])
        if samples != wanted_samples:
            yield Finding(
                rule="samples_per_query",
                why=f"a query has {samples} samples instead of {wanted_samples}",
                source=f"{found.name} words.MultiStream.samples_per_query",
            )


def _latency_findings(
    found: Round, benchmark: Benchmark, division: str, scenario: str, settings: Mapping[str, Value]
) -> Iterator[Finding]:
    name = {"SingleStream": "single_stream", "MultiStream": "multi_stream", "Server": "server"}.get(scenario)
    if name is None:
        return
    wanted = found.conf_words(benchmark.name, scenario)["target_latency_percentile"]
    percentile = 100 * settings[f"{name}_target_latency_percentile"]
    # The rules let the open division choose its latency constraints, the percentile of Server among them. In
    # the streams it is the metric itself, and another one is no result of this benchmark.
    if abs(percentile - wanted) > 1e-6 and (division != "open" or scenario != "Server"):
        yield Finding(
            rule="target_latency_percentile",
            why=f"percentile {percentile:.6g} instead of {wanted}",
            source=f"{found.name} words.{scenario}.target_latency_percentile",
        )
    limit, chosen = benchmark.server_target_latency_ns, settings.get("server_target_latency_ns", 0)
    if scenario == "Server" and limit is not None and chosen > limit:
        judge = "; the rules let the open division choose, the checker does not" if division == "open" else ""
        yield Finding(
            rule="server_target_latency",
            why=f"the limit is {chosen / 1e6:g} ms instead of {limit / 1e6:g} ms{judge}",
            source=f"{found.name} benchmarks.{benchmark.name}.server_target_latency_ns",
        )
    if scenario == "MultiStream" and found.fixed_interval_multistream:
        words = found.conf_words(benchmark.name, scenario)
        for word in ("target_qps", "max_async_queries"):
            if settings[f"multi_stream_{word}"] != words[word] and division != "open":
                yield Finding(
                    rule=word,
                    why=f"{word} is {settings[f'multi_stream_{word}']:g} instead of {words[word]}",
                    source=f"{found.name} words.MultiStream.{word}",
                )


def accuracy_findings(found: Round, benchmark: Benchmark, settings: Mapping[str, Value]) -> Iterator[Finding]:
    """What the settings of an accuracy test break."""
    count = settings["accuracy_sample_count_override"]
    if count and count != benchmark.accuracy_sample_count:
        yield Finding(
            rule="accuracy_sample_count",
            why=f"{count} samples instead of the whole data set of {benchmark.accuracy_sample_count}",
            source=f"{found.name} benchmarks.{benchmark.name}.accuracy_sample_count",
        )


def seed_findings(found: Round, seeds: Mapping[str, int]) -> Iterator[Finding]:
    """Seeds that are not the round's."""
    for name, value in seeds.items():
        if value != found.seeds[name]:
            yield Finding(
                rule="seeds",
                why=f"{name} is {value} instead of {found.seeds[name]}",
                source=f"{found.name} seeds.{name}",
            )
