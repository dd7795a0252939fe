"""The rules that a manifest breaks, one Finding each, with the round's field that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.manifest_fields import EchoBackend, Manifest, TorchBackend
from orchestrator.rules import Benchmark, Place, Round, Wanted
from orchestrator.settings import Value, offline_samples_per_query

NETWORK_SCENARIOS = ("Server", "Offline")
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


def manifest_findings(found: Round, benchmark: Benchmark, manifest: Manifest) -> Iterator[Finding]:
    """What the manifest breaks in every test of it."""
    division = manifest.division
    if division not in found.divisions:
        yield Finding(
            rule="division",
            why=f"round {found.name} has no {division} division",
            source=f"{found.name} divisions",
        )
    yield from _reference_findings(found, benchmark, manifest)
    yield from _network_findings(found, manifest)
    if division != "open" and manifest.accuracy_target is not None:
        yield Finding(
            rule="accuracy_target",
            why=f"accuracy_target replaces {benchmark.accuracy.target}; only the open division may",
            source=f"{found.name} benchmarks.{benchmark.name}.accuracy",
        )
    if isinstance(manifest.backend, EchoBackend):
        yield Finding(
            rule="model", why="engine echo computes nothing: there is no model", source="design: official"
        )
    if isinstance(manifest.backend, TorchBackend) and manifest.backend.weights is None:
        yield Finding(
            rule="weights",
            why="backend.weights is not set: seeded weights are never official",
            source="design: official",
        )
    if manifest.loadgen.path is None:
        yield from plan_findings_for_loadgen("6.0.17", None, found)


def _reference_findings(found: Round, benchmark: Benchmark, manifest: Manifest) -> Iterator[Finding]:
    """Every division asks for the benchmark's own data set, all but open for its network too."""
    source = f"{found.name} benchmarks.{benchmark.name}.reference"
    wanted = benchmark.reference
    if manifest.task.name != wanted.task:
        yield Finding(
            rule="data_set",
            why=f"task {manifest.task.name} is not the data set {wanted.task} ({benchmark.dataset})",
            source=source,
        )
    model = getattr(manifest.backend, "model", None)
    if manifest.division != "open" and model is not None and model != wanted.model:
        yield Finding(
            rule="reference_model",
            why=f"model {model} is not the network {wanted.model} ({benchmark.model})",
            source=source,
        )


def _network_findings(found: Round, manifest: Manifest) -> Iterator[Finding]:
    """What the Network division asks for besides."""
    if manifest.division != "network":
        return
    source = f"{found.sources['rules']}, Network Division"
    if "datacenter" not in manifest.suite.split(","):
        yield Finding(rule="network", why="the Network division has the datacenter suite only", source=source)
    others = [name for name in manifest.scenarios if name not in NETWORK_SCENARIOS]
    if others:
        yield Finding(rule="network", why=f"the Network division has no {', '.join(others)}", source=source)
    if manifest.dispatch.payload != "value":
        yield Finding(
            rule="payload",
            why="the Network division sends samples inside the clock: dispatch.payload must be value",
            source=source,
        )
    if manifest.workers.where == "local":
        yield Finding(
            rule="network",
            why="workers in the test process have no network between LoadGen and them",
            source=source,
        )


def network_on_one_host_finding(manifest: Manifest, found: Round, near: Sequence[str]) -> Finding | None:
    """The finding on workers of the Network division that share LoadGen's host (`near`), if there are any."""
    if manifest.division != "network" or not near:
        return None
    return Finding(
        rule="network",
        why=f"{', '.join(near)} ran on LoadGen's own host; SUT and QDL must be separate systems",
        source=f"{found.sources['rules']}, Network Division",
    )


def suite_findings(
    found: Round, benchmark: Benchmark, manifest: Manifest, scenario: str
) -> Iterator[Finding]:
    """Whether the suite has the benchmark and the scenario, and what the manifest leaves out."""
    place = found.place(manifest.suite, benchmark.name)
    if place is None:
        yield Finding(
            rule="suite",
            why=f"{benchmark.name} is not in the {manifest.suite} suite of round {found.name}",
            source=f"{found.name} suites.{manifest.suite}",
        )
        return
    source = f"{found.name} suites.{manifest.suite}.{benchmark.name}"
    judges = _judges(found, place, manifest.division)
    for judge, wanted in judges.items():
        if not wanted.allows(scenario):
            yield Finding(
                rule="scenario",
                why=f"by the {judge}, {benchmark.name} has no {scenario} in the {manifest.suite} suite",
                source=f"{source}.{judge}",
            )
    for judge, wanted in judges.items():
        missing = [name for name in wanted.required if name not in manifest.scenarios]
        if missing:
            yield Finding(
                rule="required_scenario",
                why=f"by the {judge}, a submission also needs {', '.join(missing)}",
                source=f"{source}.{judge}",
                scope="manifest",
            )
    for run in ("performance", "accuracy"):
        if run not in manifest.runs:
            yield Finding(
                rule="required_run",
                why=f"a result needs the {run} test too, of the same system",
                source=found.sources["rules"],
            )


def _judges(found: Round, place: Place, division: str) -> dict[str, Wanted]:
    """Who judges the scenarios: the rules let the open division choose them, some checkers do not."""
    judges = {} if division == "open" else {"rules": place.rules}
    if division in found.checker_scenarios_in:
        judges["checker"] = place.checker
    return judges


def plan_findings_for_loadgen(version: str, file_hash: str | None, found: Round) -> list[Finding]:
    """Whether this LoadGen is one that the round approves.

    `version` may be what the log shows ("6.0.17 @ d6147c7eb7"). `file_hash` is the sha256 of the module's
    file; None (planning) leaves it out.
    """
    approved = found.loadgen
    number, _, revision = version.partition(" @ ")
    source = f"{found.name} loadgen"
    if number.strip() not in approved.versions:
        own = (
            f"LoadGen built from {approved.tag} ({approved.revision})"
            if approved.tag
            else f"LoadGen {approved.versions[0]}"
        )
        mend = "; name the folder of its module in loadgen.path" if approved.tag else ""
        shown = number.strip() or "(no version)"
        why = f"LoadGen {shown} is not the round's own: {found.name} needs {own}{mend}"
        return [Finding(rule="loadgen", why=why, source=f"{source}.versions")]
    revision = revision.strip()
    revision = "" if revision == "NA" else revision
    # A LoadGen that does not tell its revision passes in a plan only, which has seen no file yet.
    unproven = not revision and file_hash is not None
    if approved.revision and (unproven or (revision and not _same_revision(approved.revision, revision))):
        why = f"LoadGen was built from revision {revision or '(unknown)'}, not from {approved.revision}"
        return [Finding(rule="loadgen", why=why, source=f"{source}.revision")]
    if approved.sha256 and file_hash is not None and file_hash not in approved.sha256:
        why = f"the LoadGen file (sha256 {file_hash[:12]}...) is none of the published builds of {number}"
        return [Finding(rule="loadgen_file", why=why, source=f"{source}.sha256")]
    return []


def library_findings(
    found: Round, benchmark_name: str, test: str, count: int, drawn: int = 0
) -> list[Finding]:
    """Whether a prepared data set of `count` samples has the round's size and holds the `drawn` ones."""
    benchmark = found.benchmark(benchmark_name)
    field = f"{found.name} benchmarks.{benchmark.name}"
    if test == "accuracy" and count != benchmark.accuracy_sample_count:
        why = f"the data set has {count} samples instead of {benchmark.accuracy_sample_count}"
        return [Finding(rule="accuracy_sample_count", why=why, source=f"{field}.accuracy_sample_count")]
    if test == "performance" and drawn > count:
        why = f"performance_sample_count_override is {drawn}, the data set has {count} samples"
        source = f"{field}.performance_sample_count_min"
        return [Finding(rule="performance_sample_count", why=why, source=source)]
    if test == "performance" and count < benchmark.performance_sample_count_min:
        why = (
            f"the data set has {count} samples; the round draws from {benchmark.performance_sample_count_min}"
        )
        source = f"{field}.performance_sample_count_min"
        return [Finding(rule="performance_sample_count", why=why, source=source)]
    return []


def _same_revision(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def index_to_remote_finding(manifest: Manifest, found: Round, remote_hosts: Sequence[str]) -> Finding | None:
    """The finding on payload index to workers on other hosts than LoadGen's, if there is one.

    The rules put the samples in the memory of the processor on which LoadGen runs. Which hosts the workers
    are on is known when they run, so the plan cannot say.
    """
    if manifest.division != "closed" or manifest.dispatch.payload != "index" or not remote_hosts:
        return None
    if manifest.dispatch.index_approval is not None:
        return None
    hosts = ", ".join(remote_hosts)
    return Finding(
        rule="payload",
        why=f"payload index to other hosts ({hosts}) needs dispatch.index_approval, or payload value",
        source=f"{found.sources['rules']}, LoadGen Operation",
    )
