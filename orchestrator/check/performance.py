"""The performance test of a result: its logs, its verdict, what it was asked to do and where it was made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from orchestrator.check.cell_logs import PERFORMANCE, Test, damage, own_file, test_of, unreadable
from orchestrator.check.finding import Context, Finding, Official
from orchestrator.check.headline import headline
from orchestrator.check.judged_keys import missing_keys, repeated_keys
from orchestrator.check.loadgen_origin import origin
from orchestrator.check.performance_settings import amounts, audit_leaks, limits, seeds
from orchestrator.check.user_conf import user_conf
from orchestrator.logs import LogError
from orchestrator.paths import DETAIL
from orchestrator.submission.tree import Cell

# Which scenario's run may stand for another's, on edge systems. v1.x: inference_rules.adoc; since v2.0:
# performance_check.py, inferred_check. (v1.0's rules also infer MultiStream, its checker cannot.)
INFERRED_V1 = {("SingleStream", "Offline")}
INFERRED = {("SingleStream", "MultiStream"), ("MultiStream", "Offline"), ("SingleStream", "Offline")}
# LoadGen takes both times from clocks of milliseconds.
TIME_SLACK_S = 0.5
# A local clock is at most this far from UTC, and no test loads its samples for longer.
FARTHEST_CLOCK = timedelta(hours=14)
LONGEST_LOADING = timedelta(hours=24)
UNCOMMITTED = "Loadgen built with uncommitted changes!"


def performance(context: Context, cell: Cell) -> Iterator[Finding]:
    """Everything about the logs of performance/run_1."""
    if not own_file(context, cell.performance / DETAIL):
        return  # told by the checks of what lies in the folders
    try:
        test = test_of(context, cell, PERFORMANCE, cell.performance)
    except LogError as error:
        yield unreadable(context, cell.performance, str(error))
        return
    yield from damage(test)
    if not test.logs.detail.form:
        return
    yield from missing_keys(test)
    yield from repeated_keys(test)
    yield from scenario_of(test)
    yield from verdict(test)
    yield from errors(test)
    yield from seeds(test)
    yield from amounts(test)
    yield from limits(test)
    yield from audit_leaks(test)
    yield from duration(test)
    yield from figures(test)
    yield from headline(test)
    yield from origin(test)
    yield from dates(test)
    yield from user_conf(test)


def scenario_of(test: Test) -> Iterator[Finding]:
    """Whether LoadGen ran the scenario that the folder is named after, or one that may stand for it."""
    context, cell = test.context, test.cell
    folder, run, mode = context.scenario(cell), test.run.scenario, test.run.mode
    if mode != "PerformanceOnly":
        # Without a verdict in the detail log the checkers have no result; a SubmissionRun has one.
        told = "result_validity" in test.logs.detail.values
        seen: Official = "unseen" if told else "error"
        what = f"LoadGen ran in mode {mode or '(not said)'}; a performance test is PerformanceOnly"
        mend = "run the performance test for itself, in LoadGen's mode PerformanceOnly"
        yield test.finding("wrong-mode", what, mend, seen, seen)
    if run is None or test.scenario is None:
        shown = test.logs.detail.values.get("effective_scenario")
        what = f"LoadGen's scenario is {str(shown)[:80] if shown else 'not said'}"
        yield test.finding(
            "wrong-scenario", what, "run the test in the scenario of the folder", "error", "error"
        )
    elif folder is not None and run != folder:
        yield from _inferred(test, run, folder)


def _inferred(test: Test, run: str, folder: str) -> Iterator[Finding]:
    newest = test.context.layout.one_tree
    suite = test.context.suite(test.cell)
    if (run, folder) not in (INFERRED if newest else INFERRED_V1):
        what = f"LoadGen ran {run}, the folder is for {folder}; that cannot be inferred"
        # v1.x takes the scenario from the log, but for Offline, which only SingleStream can stand for.
        old: Official = "error" if folder == "Offline" else "unseen"
        yield test.finding("wrong-scenario", what, f"run the test in {folder}", old, "error")
    elif suite is not None and "edge" not in suite:
        what = f"{folder} is inferred from {run}, which edge systems alone may do; this one is {suite}"
        yield test.finding("inferred-off-edge", what, f"run the test in {folder}", "unseen", "error")
    elif folder == "MultiStream" and not test.run.early_stopping.multi_stream_ns:
        what = "SingleStream had too few queries for an estimate of MultiStream's latency (662 at least)"
        mend = "run SingleStream longer, or run MultiStream"
        yield test.finding("not-inferable", what, mend, "error", "error")


def verdict(test: Test) -> Iterator[Finding]:
    """LoadGen's own verdict, and whether its single conditions say the same."""
    run = test.run
    if run.valid is not True:
        reasons = "; ".join(run.reasons[:3])
        if run.valid is None:
            what = "LoadGen gives no verdict: the test did not end, or its log is cut"
        else:
            what = f"LoadGen's verdict is INVALID{f': {reasons}' if reasons else ''}"
        newest: Official = "error" if run.valid is None else "unseen"  # it never looks at result_validity
        mend = "run the test again until LoadGen says VALID; an INVALID run is no result"
        yield test.finding("invalid-result", what, mend, "error", newest)
        return
    failed = [name for name, met in vars(run.checks).items() if met is False]
    if failed or run.reasons:
        told = ", ".join([*failed, *run.reasons])
        what = f"result_validity is VALID, but the log says otherwise: {told[:300]}"
        stopped: Official = "error" if "early_stopping" in failed else "unseen"
        yield test.finding(
            "verdict-contradicts", what, "submit the log as LoadGen wrote it", "unseen", stopped
        )


def errors(test: Test) -> Iterator[Finding]:
    """The errors that LoadGen logged."""
    detail = test.logs.detail
    for text in detail.errors[:5]:
        mend = "find the cause in LoadGen's message, and run the test again"
        if UNCOMMITTED in text:
            mend = "build LoadGen from an unchanged checkout of the round's revision, and run the test again"
        what = f"LoadGen logged an error: {text[:300]}"
        # The newest checker looks at them only when told --submission-exceptions.
        yield test.finding("loadgen-error", what, mend, "error", "unseen")
    if detail.error_count > 5:
        what = f"LoadGen logged {detail.error_count} errors, of which 5 are shown"
        yield test.finding("loadgen-error", what, "find the causes in the log", "error", "unseen")


def duration(test: Test) -> Iterator[Finding]:
    """Whether the test really took the time that the round asks for, by LoadGen's own clock."""
    wanted_s = test.context.round.min_duration_ms / 1000
    run = test.run
    mend = "run the test again, at least as long as the round asks for"
    if run.power is not None:
        took_s = run.power.duration_s
        if took_s < 0 and run.power.clock == "local":  # the hour that clocks are set back by
            took_s += 3600
        if took_s < wanted_s - TIME_SLACK_S:
            what = f"power_begin to power_end is {took_s:.3f} s; the round asks for {wanted_s:g} s"
            yield test.finding("short-test", what, mend)
    slowest_ns = run.latencies.max_ns
    if run.scenario == "Offline" and slowest_ns is not None and slowest_ns < wanted_s * 1e9:
        what = (
            f"Offline's one query took {slowest_ns / 1e9:.3f} s, the test is as long; it needs {wanted_s:g} s"
        )
        yield test.finding("short-test", what, mend)


def figures(test: Test) -> Iterator[Finding]:
    """Whether the result is a number, and agrees with the latencies beside it."""
    run, name = test.run, test.context.round.name
    metric = run.metric
    if run.valid is not None and (metric is None or metric.value <= 0):
        what = f"the log holds no result: {test.context.round.result_keys.get(run.scenario or '', 'its key')}"
        mend = "run the test again; where early stopping has too few queries, run it longer"
        yield test.finding("no-result", f"{what} is missing or not above 0 ({name})", mend, "error", "error")
    mend = "submit the log as LoadGen wrote it"
    if text := _rate_contradicts(test):
        yield test.finding("figures-contradict", text, mend)
    latencies = run.latencies
    ordered = [latencies.min_ns, *latencies.percentiles_ns.values(), latencies.max_ns]
    rising = [value for value in ordered if value is not None]
    if rising != sorted(rising):
        what = "latency percentiles do not rise from the least to the most"
        yield test.finding("figures-contradict", what, mend)


def _rate_contradicts(test: Test) -> str:
    """Offline's rate is its samples by the longest latency, SingleStream's the inverse of the mean."""
    run = test.run
    rate, samples = run.rates.samples, run.counts.generated_samples_per_query
    if run.scenario == "Offline" and rate and samples and run.latencies.max_ns:
        wanted = samples * (run.counts.generated_queries or 1) * 1e9 / run.latencies.max_ns
        what = f"{samples} samples in {run.latencies.max_ns / 1e9:.6g} s"
    elif run.scenario == "SingleStream" and run.rates.without_overhead and run.latencies.mean_ns:
        rate, wanted = run.rates.without_overhead, 1e9 / run.latencies.mean_ns
        what = f"a mean latency of {run.latencies.mean_ns} ns"
    else:
        return ""
    if abs(rate - wanted) <= 1e-4 * wanted:  # logged with six digits
        return ""
    return f"the log says {rate:g} samples/s, but {what} makes {wanted:g}"


def dates(test: Test) -> Iterator[Finding]:
    """Whether the test's times can be: not in the future, and its measured phase soon after its start."""
    run = test.run
    mend = "submit the log as LoadGen wrote it; if the clock was wrong, set it and run the test again"
    now = datetime.now()  # local, as LoadGen's is, whatever the Z behind it
    if run.started is None:
        shown = test.logs.detail.values.get("test_datetime")
        what = f"test_datetime is {f'no time: {str(shown)[:40]}' if shown is not None else 'not said'}"
        yield test.finding("bad-date", what, mend)
        return
    if run.started - FARTHEST_CLOCK > now:
        yield test.finding("bad-date", f"the test began in the future: {run.started}", mend)
    if run.power is None:
        return
    away = run.power.begin - run.started
    if not -FARTHEST_CLOCK <= away <= FARTHEST_CLOCK + LONGEST_LOADING:
        what = f"the test began {run.started}, its measured phase {run.power.begin}: they are of two tests"
        yield test.finding("bad-date", what, mend)
