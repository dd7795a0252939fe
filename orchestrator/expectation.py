"""What a test is expected to take: samples and seconds, as far as its settings tell. Pure."""

from __future__ import annotations

from orchestrator.plan import TestSpec
from orchestrator.settings import expected_queries, offline_samples_per_query

STREAMS = {"SingleStream": "single_stream", "MultiStream": "multi_stream"}


def expected_samples(spec: TestSpec) -> int | None:
    """How many samples the test will ask for; None when that depends on the system or on the data set."""
    settings = spec.settings
    if spec.test == "accuracy":
        return int(settings.get("accuracy_sample_count_override", 0)) or None
    if spec.scenario == "Offline":
        return offline_samples_per_query(settings, spec.performance_sample_count or 0)
    if spec.scenario == "Server":
        if _each_once(spec):
            return spec.performance_sample_count
        return expected_queries(spec.scenario, settings)
    return None


def expected_s(spec: TestSpec) -> float | None:
    """How long the test will take if the system is as fast as the settings say; None when they do not say."""
    settings, samples = spec.settings, expected_samples(spec)
    if spec.scenario in ("Server", "Offline"):
        qps = settings["server_target_qps" if spec.scenario == "Server" else "offline_expected_qps"]
        seconds = samples / float(qps) if samples is not None else None
    elif spec.test == "accuracy":
        seconds = None
    else:
        fewest = spec.performance_sample_count if _each_once(spec) else None
        seconds = (fewest or int(settings["min_query_count"])) * _expected_query_s(spec)
    if seconds is None or spec.test == "accuracy":
        return seconds
    seconds = max(seconds, shortest_s(spec))
    longest = settings["max_duration_ms"] / 1000
    return min(seconds, longest) if longest else seconds


def shortest_s(spec: TestSpec) -> float:
    """min_duration, which a performance test must reach; Offline's has it in its number of samples."""
    if spec.test == "accuracy" or spec.scenario == "Offline" or _each_once(spec):
        return 0.0
    return float(spec.settings["min_duration_ms"]) / 1000


def _each_once(spec: TestSpec) -> bool:
    """Whether the test ends when every loaded sample was asked once (TEST04-A of the old rounds)."""
    return bool(spec.settings["performance_issue_unique"])


def _expected_query_s(spec: TestSpec) -> float:
    """Seconds of one query of a stream: the hint, or the interval of the old MultiStream."""
    settings = spec.settings
    if "multi_stream_target_qps" in settings:
        return 1 / float(settings["multi_stream_target_qps"])
    return float(settings[f"{STREAMS[spec.scenario]}_expected_latency_ns"]) / 1e9
