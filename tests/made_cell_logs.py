"""LoadGen logs of whole results, MADE and not measured: every key that checkers read, in LoadGen's own lines.

The figures are chosen so that each rule of the round is met with little to spare in no direction: a rate of
RATE_PER_S, a test of TEST_S. Keys and their order are those of published logs (v1.0 NVIDIA) and of LoadGen
6.0.17's; `tests/made_logs.py` has the line's form.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL, SUMMARY
from orchestrator.rules import Benchmark, Round
from orchestrator.submission.layout import LONGEST_ACCURACY_LOG_BYTES
from tests.made_logs import LINE, mllog

RATE_PER_S = 1000  # what the made system does in Server and Offline, samples a second
TEST_S = 601  # a little longer than the shortest test that the rounds allow
LATENCY_NS = 4_000_000  # of every query, but for the slower percentiles below
PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
OFFSETS_NS = {"TEST01": 11, "TEST04": 17, "TEST04-A": 13, "TEST04-B": 19, "TEST05": 23}
EDGE = b"\n\n...\n\n"  # between the two ends of a truncated accuracy log
SUT_NAMES = {"network": "Network SUT: made"}

Values = dict[str, Any]


def performance(rules: Round, benchmark: Benchmark, scenario: str, division: str = "closed") -> Values:
    """A performance test's detail log as key -> value, in LoadGen's order."""
    values = _head(rules, benchmark, division) | _settings(rules, benchmark, scenario, "PerformanceOnly")
    values |= _issued(values, scenario)
    values |= {"power_begin": "03-08-2021 00:00:05.233", "power_end": "03-08-2021 00:10:06.241"}
    return values | _results(rules, values, scenario)


def accuracy(rules: Round, benchmark: Benchmark, scenario: str, division: str = "closed") -> Values:
    """An accuracy test's detail log as key -> value."""
    values = _head(rules, benchmark, division) | _settings(rules, benchmark, scenario, "AccuracyOnly")
    count = benchmark.accuracy_sample_count
    each = count if scenario == "Offline" else values["effective_samples_per_query"]
    values |= {"generated_query_count": -(-count // each), "generated_samples_per_query": each}
    values |= {"generated_query_duration": 10**9}
    return values | {"power_begin": "03-08-2021 00:00:05.233", "power_end": "03-08-2021 00:03:05.241"}


def compliance(
    rules: Round, benchmark: Benchmark, scenario: str, test: str, division: str = "closed"
) -> Values:
    """A compliance test's detail log as key -> value: the performance test's, with audit.config obeyed."""
    values = performance(rules, benchmark, scenario, division)
    for key in values:  # no two tests are alike to the nanosecond
        if key.endswith("_latency_ns") and key.startswith("result_"):
            values[key] += OFFSETS_NS[test]
    for word, value in rules.compliance[test].items():
        if word != "mode":
            kind = bool if word in ("performance_issue_unique", "performance_issue_same") else int
            values[f"effective_{word}"] = kind(value)
    if test == "TEST01":
        values["effective_accuracy_log_sampling_target"] = benchmark.test01_sampling_target
        values["effective_accuracy_log_probability"] = 0.01
    if test == "TEST04-A":  # each loaded sample once, and so over before its time
        values |= {"result_validity": "INVALID", "result_min_duration_met": False}
        each = values["effective_samples_per_query"] if scenario == "MultiStream" else 1
        count = values["effective_performance_sample_count"]
        if scenario == "Offline":
            values |= {"generated_samples_per_query": count}
        else:
            values |= {"generated_query_count": count // each, "power_end": "03-08-2021 00:00:06.233"}
            values |= {"generated_query_duration": count // each * 10**9 // RATE_PER_S}
    return values


def detail(values: Values) -> str:
    """The detail log of these values."""
    return "".join(mllog(key, value) for key, value in values.items())


def summary(rules: Round, values: Values) -> str:
    """The summary that LoadGen writes besides: checkers of v1.x look that it is there, scripts read it."""
    scenario, modern = values["effective_scenario"], rules.name == "v6.1"
    headline = {
        "Offline": ("Samples per second", "result_samples_per_second"),
        "Server": ("Completed samples per second", "result_completed_samples_per_sec")
        if modern
        else ("Scheduled samples per second", "result_scheduled_samples_per_sec"),
        "SingleStream": ("90.0th percentile latency (ns)", "result_90.00_percentile_latency_ns")
        if modern
        else ("90th percentile latency (ns)", "result_90.00_percentile_latency_ns"),
        "MultiStream": ("99.0th percentile latency (ns)", "result_99.00_percentile_per_query_latency_ns")
        if modern
        else ("Samples per query", "effective_samples_per_query"),
    }[scenario]
    mode = values["effective_test_mode"]
    parts = [LINE, "MLPerf Results Summary", LINE, f"SUT name : {values['sut_name']}"]
    parts += [f"Scenario : {scenario}", f"Mode     : {mode}"]
    if "result_validity" in values:
        parts += [f"{headline[0]} : {values[headline[1]]}", f"Result is : {values['result_validity']}"]
    parts += ["", LINE, "Test Parameters Used", LINE]
    for key in ("samples_per_query", "target_qps", "min_query_count"):
        parts.append(f"{key} : {values[f'effective_{key}']}")
    parts += [f"target_latency (ns): {values['effective_target_latency_ns']}"]
    for key in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "performance_sample_count"):
        parts.append(f"{key} : {values[f'effective_{key}']}")
    for key in ("performance_issue_unique", "performance_issue_same"):
        parts.append(f"{key} : {int(values[f'effective_{key}'])}")
    return "\n".join(
        [*parts, "", "No warnings encountered during test.", "", "No errors encountered during test.", ""]
    )


def write(folder: Path, rules: Round, values: Values) -> None:
    """A test's folder: detail log and summary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DETAIL).write_text(detail(values))
    (folder / SUMMARY).write_text(summary(rules, values))


def write_accuracy(folder: Path, rules: Round, benchmark: Benchmark, scenario: str, division: str) -> None:
    """An accuracy test's folder: its answers truncated as the official tool does it, score and hash."""
    write(folder, rules, accuracy(rules, benchmark, scenario, division))
    digest = write_answers(folder, benchmark.accuracy_sample_count)
    (folder / ACCURACY_TXT).write_text(f"{score_line(rules, benchmark)}\nhash={digest}\n")


def write_answers(folder: Path, count: int, first: int = 0) -> str:
    """The truncated log of answers, numbered from `first`; returns the hash of the whole."""
    whole = _answers(count, first)
    cut = whole[:4096] + EDGE + whole[-4096:] if len(whole) > LONGEST_ACCURACY_LOG_BYTES else whole
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ACCURACY_LOG).write_bytes(cut)
    return hashlib.sha256(whole).hexdigest()


def score_line(rules: Round, benchmark: Benchmark, beside_target: float = 1.001) -> str:
    """A line of accuracy.txt that says a score a little above the target. MADE: nothing was scored."""
    score = benchmark.accuracy.target * beside_target
    good = round(500 * score)
    return {
        "acc": f"accuracy={good / 500:.3f}%, good={good}, total=50000",
        "F1": f'{{"exact_match": 83.1, "f1": {score:.6f}}}',
        "mAP": f"mAP={score:.3f}%",
        "WER": f"Word Error Rate: {1 - score / 100:.6f}, accuracy={score:.6f}%",
        "AUC": f"AUC={score:.3f}%",
        "DICE": f"Accuracy: mean = {score:.5f}, whole tumor = 0.9, tumor core = 0.9",
    }[benchmark.accuracy.metric]


def changed(path: Path, **values: Any) -> None:
    """Change values of a detail log that is there; None takes the line away. For single faults."""
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        key = json.loads(line.removeprefix(":::MLLOG "))["key"]
        if key not in values:
            lines.append(line)
        elif values[key] is not None:
            lines.append(mllog(key, values[key]))
    path.write_text("".join(lines))


@cache
def _answers(count: int, first: int) -> bytes:
    entries = (f'{{ "seq_id" : {first + i}, "qsl_idx" : {i}, "data" : "{i:08X}" }}' for i in range(count))
    return ("[\n" + ",\n".join(entries) + "\n]\n").encode()


def _head(rules: Round, benchmark: Benchmark, division: str) -> Values:
    revision = rules.loadgen.revision or "d6147c7eb7"
    count = benchmark.accuracy_sample_count
    return {
        "loadgen_version": f"{rules.loadgen.versions[0]} @ {revision}",
        "loadgen_git_status_message": "",
        "test_datetime": "2021-03-07T23:59:12Z",
        "sut_name": SUT_NAMES.get(division, "made"),
        "qsl_name": "made",
        "qsl_reported_total_count": count,
        "qsl_reported_performance_count": min(count, benchmark.performance_sample_count_min),
    }


def _settings(rules: Round, benchmark: Benchmark, scenario: str, mode: str) -> Values:
    limit_ns = {
        "Server": benchmark.server_target_latency_ns,
        "MultiStream": benchmark.multistream_target_latency_ns,
    }.get(scenario)
    samples = {"Offline": int(1.1 * RATE_PER_S * 600), "MultiStream": 8}.get(scenario, 1)
    samples = max(samples, benchmark.offline_min_samples_per_query) if scenario == "Offline" else samples
    least = benchmark.min_query_count.get(scenario) or 100
    words = rules.conf_words(benchmark.name, scenario)
    values: Values = {
        "scenario": scenario,
        "test_mode": mode,
        "samples_per_query": samples,
        "target_qps": words.get("target_qps", 20) if scenario == "MultiStream" else RATE_PER_S,
        "target_latency_ns": limit_ns or 0,
        "target_latency_percentile": 0.99 if scenario in ("Server", "MultiStream") else 0.9,
        "max_async_queries": 0 if scenario == "Server" else 1,
        "target_duration_ms": 0 if scenario == "Offline" else 600_000,
        "min_duration_ms": 600_000,
        "max_duration_ms": 0,
        "min_query_count": least,
        "max_query_count": 0,
        "min_sample_count": samples * least,
        **rules.seeds,
        "accuracy_log_rng_seed": 0,
        "accuracy_log_probability": 0,
        "accuracy_log_sampling_target": 0,
        "print_timestamps": False,
        "performance_issue_unique": False,
        "performance_issue_same": False,
        "performance_issue_same_index": 0,
        "performance_sample_count": benchmark.performance_sample_count_min,
    }
    if rules.name == "v6.1":
        values["accuracy_sample_count"] = benchmark.accuracy_sample_count
        values["sample_concatenate_permutation"] = benchmark.equal_issue_mode
    return {f"effective_{key}": value for key, value in values.items()}


def _issued(values: Values, scenario: str) -> Values:
    least = values["effective_min_query_count"]
    counts = {"Offline": 1, "SingleStream": TEST_S * 10**9 // LATENCY_NS, "Server": TEST_S * RATE_PER_S}
    queries = max(counts.get(scenario, TEST_S * 20), least)
    return {
        "generic_message": "Starting performance mode",
        "generated_query_count": queries,
        "generated_samples_per_query": values["effective_samples_per_query"],
        "generated_query_duration": TEST_S * 10**9,
    }


def _results(rules: Round, values: Values, scenario: str) -> Values:
    modern, queries = rules.name == "v6.1", values["generated_query_count"]
    found: Values = {"result_validity": "VALID"}
    if scenario in ("Server", "MultiStream"):
        found["result_perf_constraints_met"] = True
    found |= {"result_min_duration_met": True, "result_min_queries_met": True}
    if modern and scenario != "Offline":
        found |= {"early_stopping_met": True, "early_stopping_result": " * Run successful."}
        stop = {"SingleStream": "early_stopping_latency_ss", "MultiStream": "early_stopping_latency_ms"}
        found |= {stop[scenario]: LATENCY_NS + 190} if scenario in stop else {}
    if modern:
        found["result_query_count"] = queries
    if scenario == "Server":
        found |= {"result_scheduled_samples_per_sec": RATE_PER_S, "result_completed_samples_per_sec": 999.5}
    if scenario == "Offline":
        found["result_samples_per_second"] = values["effective_samples_per_query"] / TEST_S
    if scenario == "SingleStream":
        rate = 1e9 / LATENCY_NS
        found |= {"result_qps_with_loadgen_overhead": rate - 0.5, "result_qps_without_loadgen_overhead": rate}
    if scenario == "MultiStream":
        for place in PERCENTILES:
            if not modern:
                found[f"result_{place}_percentile_num_intervals_between_queries"] = 1
            found[f"result_{place}_percentile_per_query_latency_ns"] = LATENCY_NS + 100
        if modern:
            found["result_mean_query_latency_ns"] = LATENCY_NS
    slowest = TEST_S * 10**9 if scenario == "Offline" else LATENCY_NS + 100
    mean = slowest // 2 if scenario == "Offline" else LATENCY_NS
    # No two tests are alike to the nanosecond.
    least = 1_000_000 + len(scenario)
    found |= {"result_min_latency_ns": least, "result_max_latency_ns": slowest}
    found |= {"result_mean_latency_ns": mean}
    return found | {f"result_{place}_percentile_latency_ns": slowest for place in PERCENTILES}
