"""Probes: short LoadGen tests of a manifest at values of the search's own, and what each of them tells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.course import CourseWatch, why_hopeless
from orchestrator.early_stopping import fewest_in_limit, most_late, most_late_by_percentile
from orchestrator.findings import Finding
from orchestrator.logs import LogError, number_of, read_detail
from orchestrator.manifest import Manifest, error_at
from orchestrator.paths import DETAIL
from orchestrator.peak_manifest import WORDS, Batching, batching_of, with_value
from orchestrator.peak_search import Seen
from orchestrator.phrases import judged_percentile, plural, verdict
from orchestrator.plan import PlanError, TestSpec, plan
from orchestrator.record import Record, SeriesRecord
from orchestrator.rules import load_round

# A probe is a tenth of the test: by the rules a minute, and 27,034 queries, of which LoadGen's bound lets
# 0.88 % be late, near the 0.96 % of the whole test. Of fewer queries than ten times those that prove anything
# the bound is far from the whole test's.
PART = 10
TIMES_FEWEST = 10
# An overload of x fills a latency limit in 1 / x limits: a probe of 200 limits shows one of half a percent.
LIMITS = 200
STREAM_QUERIES = 1000  # MultiStream's numbers are whole, and its latency hardly varies
# A probe whose queries take more than this many intervals each has failed, and need not be sat through.
INTERVALS_AT_MOST = 3
FEWEST_LATE = 10  # their share tells the room; with fewer the percentile does
LATE_KEY = "result_overlatency_query_count"
OVERLOADED = 0.2  # share of late queries with which what is delivered is all that the workers can

PROBE = Finding(
    rule="probe",
    why="it is a probe of loadgrid peak: short, and at a value of the search's own",
    source="LoadGrid: only the full-length test that confirms a value is a result",
)


def is_probe(record: Record) -> bool:
    """Whether a record is a probe's, which no result may rest on, be it the newest."""
    return any(reason.startswith(f"{PROBE.rule}: {PROBE.why}") for reason in record.unofficial_because)


def scenario_of(manifest: Manifest) -> str:
    """The scenario that is searched: the first of the manifest's that has a peak."""
    found = load_round(manifest.round)
    for scenario in manifest.scenarios:
        if scenario == "Server" or (scenario == "MultiStream" and found.fixed_interval_multistream):
            if "performance" not in manifest.runs:
                raise error_at(
                    manifest, "runs", "names no performance, and a peak is one of performance tests"
                )
            return scenario
    if "MultiStream" in manifest.scenarios:
        raise PlanError(
            f"round {found.name} has no MultiStream of a fixed interval: a query has "
            f"{found.words['MultiStream']['samples_per_query']} samples there, and its latency is the result"
        )
    why = "has no scenario with a peak: Server, or MultiStream of rounds v1.0 and v1.1"
    raise error_at(manifest, "scenarios", why)


def performance_spec(manifest: Manifest, scenario: str) -> TestSpec:
    """The full-length performance test of one scenario, as the manifest plans it."""
    changed = manifest.model_copy(update={"scenarios": (scenario,), "runs": ("performance",)})
    [spec] = plan(changed, load_round(manifest.round))
    return spec


def own_value(spec: TestSpec) -> float:
    """The rate, or the samples a query, of a test."""
    name = {"Server": "server_target_qps", "MultiStream": "multi_stream_samples_per_query"}[spec.scenario]
    return spec.settings[name]


def limit_ms(spec: TestSpec) -> float:
    """Server's latency limit, or MultiStream's interval."""
    if spec.limit_ns is not None:
        return spec.limit_ns / 1e6
    return 1000 / float(spec.settings["multi_stream_target_qps"])


def probe_manifest(manifest: Manifest, scenario: str, value: float, batching: Batching) -> Manifest:
    """The manifest of a probe; its test ends as soon as it cannot pass any more."""
    full = performance_spec(manifest, scenario)
    if scenario == "Server":
        words: dict[str, Any] = _server_words(full, value)
    else:
        queries = min(STREAM_QUERIES, int(full.settings["min_query_count"]))
        longest_ms = int(INTERVALS_AT_MOST * queries * limit_ms(full))
        words = {"min_duration": 0, "max_duration": longest_ms, "min_query_count": queries}
    words |= {"max_query_count": 0, WORDS[scenario]: value}
    changed = with_value(manifest, scenario, words, batching)
    return changed.model_copy(update={"stop_when_hopeless": True})


def refuse_too_few(manifest: Manifest, spec: TestSpec, early_stopping: bool) -> None:
    """ManifestError for a probe of which is known beforehand that it proves nothing."""
    if why := CourseWatch(spec, early_stopping).too_few():
        first = f"the first probe, at {own_value(spec):,.10g} queries/s, cannot pass: {why}"
        raise error_at(
            manifest, f"loadgen.{spec.scenario}", f"{first}; give min_query_count or min_duration more"
        )


def _server_words(full: TestSpec, qps: float) -> dict[str, int]:
    """A tenth of the test, but long enough to judge by; never longer than the test."""
    full_ms, full_queries = int(full.settings["min_duration_ms"]), int(full.settings["min_query_count"])
    share = float(full.settings["server_target_latency_percentile"])
    queries = max(full_queries // PART, TIMES_FEWEST * fewest_in_limit(0, share))
    length_ms = min(max(full_ms // PART, int(LIMITS * limit_ms(full))), full_ms)
    if queries >= max(full_queries, qps * full_ms / 1000):
        length_ms, queries = full_ms, full_queries
    return {"min_duration": length_ms, "max_duration": 0, "min_query_count": queries}


def probe_of(changed: Manifest, scenario: str, usual: Batching, tries: int) -> TestSpec:
    """The test of a probe's manifest; `usual` are the batches that its name need not tell."""
    spec = performance_spec(changed, scenario)
    words = (f"{own_value(spec):.10g}", batching_of(changed).words(usual), "" if tries == 0 else "again")
    name = "-".join([scenario, *filter(None, words)])
    return spec.model_copy(update={"name": name, "broken_rules": [*spec.broken_rules, PROBE]})


def trouble_of(record: Record, manifest: Manifest, first: Record | None = None) -> str:
    """Why a record says nothing of its value: the test failed, was interrupted, was too short, lost a worker.

    Or it had other workers than the manifest asks for, or than the `first` test of the search.
    """
    if record.losses:
        lost = record.losses[0]
        return f"it lost {lost.worker}: {lost.reason}"
    if record.status != "finished" and not is_hopeless(record):
        return f"it {'was interrupted' if record.status == 'interrupted' else 'failed'}: {record.reason}"
    if is_hopeless(record) and record.course and record.course.allowed_late is None:
        return f"{record.course.why}; give min_query_count or min_duration more"
    asked = manifest.workers
    if asked.placement != "per_node" and len(record.workers) < asked.count:
        return f"only {len(record.workers)} of {plural(asked.count, 'worker')} took part in it"
    if first is not None and (now := _devices(record)) != (before := _devices(first)):
        return f"it ran on {_in_words(now)}, the first test of this search on {_in_words(before)}"
    return ""


def _devices(record: Record) -> Counter[str]:
    return Counter(worker.device for worker in record.workers)


def _in_words(devices: Counter[str]) -> str:
    told = [f"{plural(count, 'worker')} on {device or '?'}" for device, count in sorted(devices.items())]
    return ", ".join(told) or "no worker"


def is_hopeless(record: Record) -> bool:
    """Whether a test was ended because it could not pass any more."""
    return why_hopeless(record.status, record.reason) is not None


def seen_of(record: Record, spec: TestSpec, folder: Path, early_stopping: bool = True) -> Seen:
    """What a test without trouble tells of its value."""
    held = verdict(record).good
    percentile_ms = record.result.percentiles_ms.get(judged_percentile(record))
    strain = percentile_ms / limit_ms(spec) if percentile_ms else None
    if spec.scenario != "Server":
        return Seen(own_value(spec), held, None if strain is None else 2 - strain)
    late, queries = late_of(record, folder)
    capacity = delivered(record.series) if queries and late > OVERLOADED * queries else None
    room = 1 / strain if strain else None
    if late >= FEWEST_LATE:
        share = math.log(late / queries) / math.log(allowed_share(record, early_stopping))
        # A stall of the machine makes some queries late where the percentile is far from the limit.
        room = max(share, room or 0.0) if held else share
    return Seen(own_value(spec), held, room, capacity)


def logged(record: Record, folder: Path, key: str) -> float | None:
    """A number of LoadGen's detail log; None of a test that did not finish, or where the log has none."""
    if record.status != "finished":
        return None
    try:
        return number_of(read_detail(folder / DETAIL).values.get(key))
    except LogError:
        return None


def late_of(record: Record, folder: Path) -> tuple[int, int]:
    """Queries beyond the limit, by LoadGen where it counted them, and all that were answered."""
    completed = int(record.driver["completed"])
    counted = logged(record, folder, LATE_KEY)
    if counted is not None:
        return int(counted), completed
    return (record.course.late, record.course.completed) if record.course else (0, completed)


def bound_of(record: Record, early_stopping: bool = True) -> int | None:
    """How many late queries LoadGen lets pass in a Server test; of one that was ended, in the whole of it."""
    share = float(record.settings["server_target_latency_percentile"])
    queries = int(record.driver["completed"])
    if record.status != "finished" and record.course:
        queries = record.course.expected
    return most_late(queries, share) if early_stopping else most_late_by_percentile(queries, share)


def allowed_share(record: Record, early_stopping: bool) -> float:
    """The share of late queries with which the test just passes."""
    share = float(record.settings["server_target_latency_percentile"])
    queries = int(record.driver["completed"])
    if record.status != "finished" and record.course:
        queries = record.course.expected
    return max(bound_of(record, early_stopping) or 0, 1) / queries if queries else 1 - share


def delivered(series: SeriesRecord | None) -> float | None:
    """Samples a second that overloaded workers answered; None where the test was too short to tell."""
    answered = [] if series is None else series.completed
    began = next((place for place, count in enumerate(answered) if count), len(answered))
    full = answered[began + 1 : -1]  # the first and the last span are cut short
    return sum(full) / (len(full) * series.span_s) if series is not None and any(full) else None


def warm_capacity(records: Sequence[Record]) -> float | None:
    """Samples a second in full batches by the workers' warm-up; None where it is not known."""
    workers = records[-1].workers if records else []
    rates = [
        max(size / max(seconds, 1e-9) for size, seconds in worker.facts["warm_up"])
        for worker in workers
        if worker.facts.get("warm_up")
    ]
    return sum(rates) if rates and len(rates) == len(workers) else None
