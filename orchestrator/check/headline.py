"""Whether the headline figures of a test agree with its own counts and times."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.audit import ISSUED_UNIQUE_OR_SAME
from orchestrator.check.cell_logs import Test
from orchestrator.check.finding import Finding

# Published logs (v1.0, v1.1, v5.1): Server's rate is at most 0.93 % from its count by its schedule, and in
# SingleStream the queries took at most 1.008 of the time that they had.
SLACK = 0.02
# power_begin to power_end of Server is at most 1.0124 times the schedule: what is under way has to end.
LONGEST_WINDOW = 1.5
MEND = "submit the log as LoadGen wrote it, of one test"


def headline(test: Test) -> Iterator[Finding]:
    """What does not agree, one finding each."""
    for what in (*_rates(test), *_counts(test), *_times(test), *_estimates(test)):
        yield test.finding("figures-contradict", what, MEND)


def _rates(test: Test) -> Iterator[str]:
    """Server's rate is its queries by their schedule; SingleStream issues no more than were generated."""
    run, issued = test.run, test.run.counts.generated_queries
    took_s = _generated_s(test)
    if run.scenario == "Server" and run.rates.scheduled and issued and took_s:
        wanted = issued * (run.counts.generated_samples_per_query or 1) / took_s
        if abs(run.rates.scheduled / wanted - 1) > SLACK:
            yield (
                f"the log says {run.rates.scheduled:g} samples/s were scheduled, but {issued} queries in "
                f"{took_s:.6g} s make {wanted:g}"
            )
        if run.rates.completed and run.rates.completed > wanted * (1 + SLACK):
            yield f"{run.rates.completed:g} samples/s were completed, but only {wanted:g} issued"
    if run.scenario != "SingleStream":
        return
    window_s, rate, inverse = _window_s(test), run.rates.with_overhead, run.rates.without_overhead
    if window_s and rate and issued and rate * window_s > issued * (1 + SLACK) + 1:
        yield f"{rate:g} queries/s in {window_s:.6g} s are more than the {issued} that were generated"
    if rate and inverse and rate > inverse * (1 + SLACK):
        yield f"the rate with LoadGen's overhead, {rate:g}, is above that without, {inverse:g}"
    done, mean_ns = run.counts.queries, run.latencies.mean_ns
    if window_s and done and mean_ns and done * mean_ns / 1e9 > window_s * (1 + SLACK):
        yield (
            f"{done} queries of {mean_ns} ns, one after the other, take {done * mean_ns / 1e9:.6g} s; "
            f"power_begin to power_end is {window_s:.6g} s"
        )


def _counts(test: Test) -> Iterator[str]:
    """LoadGen generates at least the queries that are asked for, and counts no more than it generated."""
    counts = test.run.counts
    made, least = counts.generated_queries, test.run.effective.get("min_query_count")
    if made is None or test.kind in ISSUED_UNIQUE_OR_SAME:
        return  # those issue what is loaded, once each
    if isinstance(least, int) and made < least and test.run.scenario != "Offline":
        yield f"generated_query_count is {made}; effective_min_query_count asks for {least}"
    if counts.queries is not None and counts.queries > made:
        yield f"result_query_count is {counts.queries}; only {made} queries were generated"


def _times(test: Test) -> Iterator[str]:
    """Queries are generated for the whole test, but for Offline's one."""
    run, took_s = test.run, _generated_s(test)
    if took_s is None or run.scenario in (None, "Offline") or test.kind in ISSUED_UNIQUE_OR_SAME:
        return
    least = run.effective.get("min_duration_ms")
    if isinstance(least, int) and took_s < least / 1000 * (1 - SLACK):
        yield f"generated_query_duration is {took_s:.6g} s; effective_min_duration_ms asks for {least} ms"
    window_s = _window_s(test)
    if run.scenario == "Server" and window_s is not None:
        if window_s > took_s * LONGEST_WINDOW:
            yield f"power_begin to power_end is {window_s:.6g} s; queries were issued for {took_s:.6g} s"
        elif window_s < took_s * (1 - SLACK):
            yield f"power_begin to power_end is {window_s:.6g} s, less than the queries' {took_s:.6g} s"


def _estimates(test: Test) -> Iterator[str]:
    """Early stopping's estimate is a bound from above: never below the percentile of the log itself."""
    run = test.run
    pairs = (
        ("SingleStream", run.early_stopping.single_stream_ns, run.latencies.percentiles_ns.get(90.0), "90th"),
        (
            "MultiStream",
            run.early_stopping.multi_stream_ns,
            run.query_latencies.percentiles_ns.get(99.0),
            "99th",
        ),
    )
    for scenario, estimate, percentile, which in pairs:
        if run.scenario == scenario and estimate and percentile and estimate < percentile:
            yield (
                f"early stopping's estimate is {estimate} ns, below the log's own {which} percentile, "
                f"{percentile} ns"
            )


def _generated_s(test: Test) -> float | None:
    value = test.logs.detail.number("generated_query_duration")
    return value / 1e9 if value is not None and value > 0 else None


def _window_s(test: Test) -> float | None:
    """By LoadGen's clock; the local one may be set back by an hour in between."""
    power = test.run.power
    if power is None:
        return None
    took_s = power.duration_s
    return took_s + 3600 if took_s < 0 and power.clock == "local" else took_s
