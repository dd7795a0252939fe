"""What a performance test was asked to do, against the round: seeds, amounts, limits, audit settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.audit import ISSUED_UNIQUE_OR_SAME
from orchestrator.check.cell_logs import PERFORMANCE, Test
from orchestrator.check.finding import Finding, Official
from orchestrator.logs import number_of
from orchestrator.rules import load_round, round_names

RAN = "set it for the test (user.conf, or by LoadGrid's manifest) and run the test again"
# LoadGen's warning where it found an audit.config, all versions (loadgen.cc, StartTest).
AUDIT_WARNING = "Found Audit Config file"
# What a result's test leaves at 0 and compliance tests set: audit.config of all rounds.
AUDIT_SETTINGS = (
    "accuracy_log_rng_seed",
    "accuracy_log_probability",
    "accuracy_log_sampling_target",
    "performance_issue_unique",
    "performance_issue_same",
    "performance_issue_same_index",
)
EARLY_STOPPED = ("SingleStream", "MultiStream", "Server")  # since v2.0
PERCENT_SLACK = 1e-6  # LoadGen multiplies by 0.01 in floating point


def seeds(test: Test, wanted: Mapping[str, int | float] | None = None) -> Iterator[Finding]:
    """The three seeds; `wanted` are another test's than the round's."""
    for name, seed in test.context.round.seeds.items():
        wants = int((wanted or {}).get(name, seed))
        found = test.run.effective.get(name)
        if found == wants:
            continue
        shown = "not logged" if found is None else found
        what = f"{name} is {shown}; {test.context.round.name} wants {wants}"
        if test.kind == PERFORMANCE and found == test.context.round.compliance.get("TEST05", {}).get(name):
            what += " (this is TEST05's)"
        elif others := [other for other in round_names() if load_round(other).seeds.get(name) == found]:
            what += (
                f" (this is {others[0]}'s: is the tree of that round? then check it with --round {others[0]})"
            )
        mend = "use the round's seeds (its mlperf.conf has them) and run the test again"
        yield test.finding("wrong-seed", what, mend, "logged", "error")


def amounts(test: Test) -> Iterator[Finding]:
    """Duration, queries, samples of a query and of the performance set."""
    found, benchmark = test.context.round, test.benchmark
    yield from _least(test, "min_duration_ms", found.min_duration_ms, "short-duration", "logged", "error")
    if benchmark is None:
        return
    yield from _least(
        test,
        "performance_sample_count",
        benchmark.performance_sample_count_min,
        "few-samples",
        "error",
        "error",
    )
    scenario = test.scenario
    queries = benchmark.min_query_count.get(scenario or "", 0)
    if queries:
        # The newest leaves the streams and Server to early stopping (min_query_count_check).
        newest: Official = "unseen" if scenario in EARLY_STOPPED else "error"
        yield from _least(test, "min_query_count", queries, "few-queries", "logged", newest)
    if test.kind in ISSUED_UNIQUE_OR_SAME and scenario == "Offline":
        return  # its query has the loaded samples, each once or one of them again and again
    if scenario == "Offline" and (test.enforced or not test.context.layout.one_tree):
        newest = "error" if test.cell.submission.division == "closed" else "unseen"
        least = benchmark.offline_min_samples_per_query
        yield from _least(test, "samples_per_query", least, "few-offline-samples", "logged", newest)
        yield from _generated(test, least)
    elif scenario is not None:
        yield from _samples_per_query(test, scenario)


def _least(
    test: Test, name: str, least: int, rule: str, old: Official, newest: Official
) -> Iterator[Finding]:
    value = number_of(test.run.effective.get(name))
    if value is not None and value >= least:
        return
    shown = "not logged" if value is None else f"{value:g}"
    what = f"effective_{name} is {shown}; {test.context.round.name} wants at least {least}"
    yield test.finding(rule, what, f"{name}: {RAN}", old, newest)


def _generated(test: Test, least: int) -> Iterator[Finding]:
    """Offline's one query as it was made."""
    made = test.run.counts.generated_samples_per_query
    if made is not None and made < least:
        what = f"Offline's query had {made} samples; {test.context.round.name} wants at least {least}"
        yield test.finding("few-offline-samples", what, f"samples_per_query: {RAN}")


def _samples_per_query(test: Test, scenario: str) -> Iterator[Finding]:
    """One, but for MultiStream: free before v2.0, where it is the result, and the round's word since."""
    found = test.context.round
    if scenario == "MultiStream" and found.fixed_interval_multistream:
        return
    wanted = 1 if scenario != "MultiStream" else int(found.words["MultiStream"]["samples_per_query"])
    value = test.run.effective.get("samples_per_query")
    if test.enforced and value is not None and value != wanted:
        what = f"effective_samples_per_query is {value}; {scenario} has {wanted}"
        yield test.finding("samples-per-query", what, f"samples_per_query: {RAN}")


def limits(test: Test) -> Iterator[Finding]:
    """Latency limits and percentiles, equal issue mode, early stopping."""
    benchmark, scenario, one_tree = test.benchmark, test.scenario, test.context.layout.one_tree
    if benchmark is None or scenario is None:
        return
    fixed = scenario == "MultiStream" and test.context.round.fixed_interval_multistream
    if scenario == "Server" and benchmark.server_target_latency_ns:
        yield from _target(test, benchmark.server_target_latency_ns)
        yield from _real(test, benchmark.server_target_latency_ns, "latencies")
    if fixed and benchmark.multistream_target_latency_ns:
        yield from _real(test, benchmark.multistream_target_latency_ns, "query_latencies")
    if one_tree and scenario in EARLY_STOPPED and test.run.checks.early_stopping is not True:
        words = test.run.early_stopping.words or "early_stopping_met is not logged"
        mend = "run the test longer, or at a lower rate, until early stopping is satisfied"
        what = f"early stopping is not met: {words[:200]}"
        yield test.finding("early-stopping", what, mend, "unseen", "error")
    if test.enforced:
        yield from _fixed_words(test, fixed)


def _target(test: Test, limit_ns: int) -> Iterator[Finding]:
    value = number_of(test.run.effective.get("target_latency_ns"))
    if value is None or value > limit_ns:
        shown = "not logged" if value is None else f"{value:.0f}"
        what = f"effective_target_latency_ns is {shown}; the limit is {limit_ns}"
        yield test.finding("latency-target", what, f"target_latency: {RAN}", "unseen", "error")


def _real(test: Test, limit_ns: int, which: str) -> Iterator[Finding]:
    """The 99th percentile as it was; v1.x logs it in every division, the newest trusts early stopping."""
    value = getattr(test.run, which).percentiles_ns.get(99.0)
    one_tree = test.context.layout.one_tree
    if value is None and test.enforced and test.run.valid is not None:
        what = "the 99th percentile of latency is missing, which is held against the limit"
        yield test.finding("no-result", what, "submit the log as LoadGen wrote it", "error")
    if value is not None and value > limit_ns and (test.enforced or not one_tree):
        what = f"the 99th percentile of latency is {value} ns; the limit is {limit_ns}"
        yield test.finding("latency-limit", what, "offer fewer queries and run the test again", "logged")


def _fixed_words(test: Test, fixed: bool) -> Iterator[Finding]:
    """Words of mlperf.conf that a submitter may not change and that no checker reads."""
    found, benchmark, scenario = test.context.round, test.benchmark, test.scenario
    if benchmark is None or scenario is None:
        return
    words, effective = found.conf_words(benchmark.name, scenario), test.run.effective
    percentile = number_of(effective.get("target_latency_percentile"))
    # Offline has no percentile: LoadGen does not read that word of mlperf.conf there.
    wanted = words.get("target_latency_percentile") if scenario != "Offline" else None
    if wanted is not None and percentile is not None and abs(percentile - wanted / 100) > PERCENT_SLACK:
        what = f"effective_target_latency_percentile is {percentile:g}; {found.name} has {wanted / 100:g}"
        yield test.finding("latency-percentile", what, f"target_latency_percentile: {RAN}")
    permuted = effective.get("sample_concatenate_permutation")
    if benchmark.equal_issue_mode and permuted is not True:
        what = "sample_concatenate_permutation is not true: this benchmark issues all samples equally often"
        yield test.finding("equal-issue", what, f"sample_concatenate_permutation 1: {RAN}")
    elif permuted is True and not benchmark.equal_issue_mode:
        what = "sample_concatenate_permutation is true, which this benchmark does not have"
        yield test.finding("equal-issue", what, f"sample_concatenate_permutation 0: {RAN}")
    if fixed:
        yield from _ticks(test, words)


def _ticks(test: Test, words: Mapping[str, int | float]) -> Iterator[Finding]:
    """MultiStream before v2.0: its interval and the queries that may be under way."""
    rate = number_of(test.run.effective.get("target_qps"))
    if rate is not None and rate < words["target_qps"] - 1e-3:
        what = (
            f"the interval is {1000 / rate if rate > 0 else 0:.6g} ms (target_qps {rate:g}); "
            f"{test.context.round.name} has {1000 / words['target_qps']:.6g} ms"
        )
        yield test.finding("long-interval", what, f"target_qps {words['target_qps']:g}: {RAN}")
    waiting = test.run.effective.get("max_async_queries")
    if waiting is not None and waiting != words["max_async_queries"]:
        what = f"effective_max_async_queries is {waiting}; {test.context.round.name} has 1"
        yield test.finding("async-queries", what, f"max_async_queries 1: {RAN}")


def audit_leaks(test: Test) -> Iterator[Finding]:
    """Settings of a compliance test in a test that is a result."""
    mend = "take audit.config out of the folder in which LoadGen runs, and run the test again"
    for name in AUDIT_SETTINGS:
        value = test.run.effective.get(name)
        if value:
            what = f"effective_{name} is {str(value)[:40]}: a compliance test's setting in a result"
            yield test.finding("audit-leak", what, mend)
    warned = [text for text in test.logs.detail.warnings if AUDIT_WARNING in text]
    if warned:
        yield test.finding("audit-leak", f"LoadGen found an audit.config: {warned[0][:200]}", mend)
    log = test.run.accuracy_log
    if test.kind == PERFORMANCE and log is not None and (log.entries or log.truncated):
        what = "mlperf_log_accuracy.json holds answers: they were logged in a performance test, as in TEST01"
        yield test.finding("audit-leak", what, mend)
