"""The keys of a detail log that a result is judged by: all there, each once, whatever the summary says."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.check.cell_logs import Test
from orchestrator.check.finding import Finding, Official

# Every performance test of LoadGen 1.0 to 6.0 logs them (3,673 published logs of v1.0, v1.1 and v5.1).
ALWAYS = (
    "loadgen_version",
    "test_datetime",
    "sut_name",
    "qsl_name",
    "effective_scenario",
    "effective_test_mode",
    "effective_samples_per_query",
    "effective_target_qps",
    "effective_target_latency_ns",
    "effective_target_latency_percentile",
    "effective_max_async_queries",
    "effective_min_duration_ms",
    "effective_min_query_count",
    "effective_qsl_rng_seed",
    "effective_sample_index_rng_seed",
    "effective_schedule_rng_seed",
    "effective_accuracy_log_rng_seed",
    "effective_accuracy_log_probability",
    "effective_accuracy_log_sampling_target",
    "effective_performance_issue_unique",
    "effective_performance_issue_same",
    "effective_performance_issue_same_index",
    "effective_performance_sample_count",
    "generated_query_count",
    "generated_samples_per_query",
    "generated_query_duration",
    "power_begin",
    "power_end",
    "result_validity",
    "result_min_duration_met",
    "result_min_queries_met",
    "result_min_latency_ns",
    "result_max_latency_ns",
    "result_mean_latency_ns",
    "result_50.00_percentile_latency_ns",
    "result_90.00_percentile_latency_ns",
    "result_99.00_percentile_latency_ns",
)
OF_SCENARIO = {
    "SingleStream": ("result_qps_with_loadgen_overhead", "result_qps_without_loadgen_overhead"),
    "MultiStream": ("result_99.00_percentile_per_query_latency_ns",),
    "Server": ("result_perf_constraints_met", "result_completed_samples_per_sec"),
    "Offline": (),
}
# LoadGen since 2.0; early_stopping_met is judged for itself (performance_settings.py).
SINCE_V2 = ("result_query_count", "effective_sample_concatenate_permutation")
# What the checkers do where one is missing: measured with v1.0.1, r1.1 and the newest, key by key.
STOPS_ALL = ("effective_scenario", "effective_min_duration_ms", "effective_performance_sample_count")
STOPS_V1 = ("result_validity", "effective_min_query_count")
STOPS_OFFLINE = ("effective_samples_per_query", "effective_min_query_count")
SHOWN = 5


def missing_keys(test: Test) -> Iterator[Finding]:
    """Keys that are judged and missing: the checkers read no other log for them."""
    scenario, detail = test.scenario, test.logs.detail
    if detail.form != "mllog" or test.run.mode == "AccuracyOnly":
        return  # told for itself
    wanted = [*ALWAYS, *OF_SCENARIO.get(scenario or "", ())]
    wanted += SINCE_V2 if test.context.layout.one_tree else ()
    for key in wanted:
        if key not in detail.values:
            what = f"{key} is missing from the detail log, which LoadGen always writes there"
            mend = "submit the log as LoadGen wrote it; if it is damaged at its source, run the test again"
            yield test.finding("missing-key", what, mend, _old(test, key), _newest(test, key))


def _old(test: Test, key: str) -> Official:
    if key.endswith("_rng_seed") and key.removeprefix("effective_") in test.context.round.seeds:
        return "logged"
    stops = key in (*STOPS_ALL, *STOPS_V1) or (test.scenario == "Offline" and key in STOPS_OFFLINE)
    stops |= test.scenario == "Server" and key == "result_99.00_percentile_latency_ns" and _limited(test)
    return "error" if stops or _headline(test, key) else "unseen"


def _newest(test: Test, key: str) -> Official:
    if key.endswith("_rng_seed") and key.removeprefix("effective_") in test.context.round.seeds:
        return "error"
    stops = key in STOPS_ALL or (test.scenario == "Offline" and key in STOPS_OFFLINE)
    return "error" if stops else "unseen"


def _headline(test: Test, key: str) -> bool:
    return key == test.context.round.result_keys.get(test.scenario or "")


def _limited(test: Test) -> bool:
    return test.benchmark is not None and bool(test.benchmark.server_target_latency_ns)


def repeated_keys(test: Test) -> Iterator[Finding]:
    """Keys that stand there with different values: readers take different ones."""
    if told := test.logs.detail.said_twice:
        what = f"the detail log gives different values: {'; '.join(told[:SHOWN])}"
        mend = "submit the log as LoadGen wrote it, of one test"
        yield test.finding("repeated-key", what, mend)
