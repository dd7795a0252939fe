"""The logs of a LoadGen run, of any version from v0.5 to v6.x, as one frozen typed result.

    run = read_run(Path("results/.../Server/performance/run_1"))
    run.metric.value, run.metric.unit     the round's headline figure, as its checkers read it
    run.valid, run.reasons, run.checks    LoadGen's verdict, its words, its single conditions (None: not said)
    run.seeds, run.effective["min_duration_ms"], run.requested
    run.latencies.percentiles_ns[99.0]    also query_latencies, first_token_latencies, token_latencies
    run.metric_of("v1.0")                 the same logs by another round's rule
    run.inferred("Offline")               another scenario's figure, where the rules let it be inferred
    run.remarks                           everything that is missing, cut, damaged or contradictory
    run.values["..."]                     any other key of the logs
    for logged in answers(folder): ...    the accuracy log, one answer at a time

What the logs do not say for sure is None and named in `remarks`, never guessed. Only a folder without any
log, or a log that cannot be opened, is an error (LogError). Memory does not grow with the logs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.accuracy import AccuracyError, Logged, read_accuracy_log
from orchestrator.loadgen_metrics import Metric, RoundNumber, metric_of, round_of_loadgen, round_shown
from orchestrator.loadgen_run import (
    AccuracyLog,
    Checks,
    Counts,
    EarlyStopping,
    Latencies,
    LoadgenRun,
    Power,
    Rates,
    Seeds,
    round_of,
)
from orchestrator.loadgen_summary import SummaryLog, read_summary
from orchestrator.logs import DetailLog, LogError, number_of, read_detail
from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY
from orchestrator.plain_files import open_plain

__all__ = ["LoadgenRun", "LogError", "Logged", "Metric", "answers", "holds_logs", "read_run"]

TRUNCATED_BYTES = (
    10240  # the most that a submission may hold of an accuracy log (the checkers' MAX_ACCURACY_LOG_SIZE)
)
SHOWN = 5  # damaged lines that are named one by one
UTC_SINCE = (1, 1)  # power_begin and power_end (mlcommons/inference d02b066b)
SCENARIOS = ("SingleStream", "MultiStream", "MultiStreamFree", "Server", "Offline")
MODES = ("SubmissionRun", "AccuracyOnly", "PerformanceOnly", "FindPeakPerformance")
# A summary prints rates with two decimals, both logs with six digits.
_DECIMALS, _DIGITS = 0.0051, 1.1e-5


def holds_logs(folder: Path) -> bool:
    """Whether a folder holds a detail log or a summary."""
    return os.path.isfile(folder / DETAIL) or os.path.isfile(folder / SUMMARY)  # False where it may not look


def read_run(
    folder: Path, round_name: str | None = None, read_answers: bool = True, *, detail_alone: bool = False
) -> LoadgenRun:
    """Read the logs in a folder; `metric` is by `round_name` if given, else by the LoadGen's own round.

    `read_answers=False` leaves the accuracy log, which may have gigabytes, unread; `detail_alone` takes no
    figure from the summary, as the official checkers since v1.0.
    """
    folder = Path(folder)
    of_round = round_of(round_name) if round_name else None
    try:
        there = [name for name in (DETAIL, SUMMARY, ACCURACY_LOG) if (folder / name).exists()]
    except OSError as error:  # a folder that may not be searched
        raise LogError(f"{folder}: {error.strerror}") from None
    if not there:
        raise LogError(f"{folder}: no LoadGen logs here, neither {DETAIL} nor {SUMMARY}")
    remarks = [f"there is no {name}" for name in (DETAIL, SUMMARY) if name not in there]
    detail = read_detail(folder / DETAIL) if DETAIL in there else DetailLog()
    use_summary = SUMMARY in there and not detail_alone
    summary = read_summary(folder / SUMMARY) if use_summary else SummaryLog()
    if DETAIL in there:
        remarks += _remarks_on_detail(detail)
    if use_summary:
        remarks += _remarks_on_summary(summary)
    remarks += contradictions(detail, summary)
    remark: list[str] = []
    accuracy_log = None
    if ACCURACY_LOG in there:
        accuracy_log, remark = _accuracy_log(folder / ACCURACY_LOG, read_answers)
        remarks += remark
    run = _Assembly(folder, detail, summary, remarks).run(accuracy_log, of_round)
    if there == [ACCURACY_LOG]:  # as compliance/TEST01/accuracy has it
        return replace(run, remarks=("only the accuracy log is here", *remark))
    return run


def answers(folder: Path, digest: Any = None) -> Iterator[Logged]:
    """The entries of the accuracy log, one at a time; AccuracyError where it is cut or damaged."""
    return read_accuracy_log(folder / ACCURACY_LOG, digest)


class _Assembly:
    """Takes each figure from the detail log, else from the summary; notes what neither says."""

    def __init__(self, folder: Path, detail: DetailLog, summary: SummaryLog, remarks: list[str]) -> None:
        self.folder, self.detail, self.summary, self.remarks = folder, detail, summary, remarks
        self.values = {**summary.values, **detail.values}

    def run(self, accuracy_log: AccuracyLog | None, of_round: RoundNumber | None) -> LoadgenRun:
        detail, summary = self.detail, self.summary
        self._one_of("effective_scenario", SCENARIOS)
        self._one_of("effective_test_mode", MODES)
        version, _, revision = (self.text("loadgen_version") or "").partition(" @ ")
        number = round_of_loadgen(version, detail.form)
        mode = self.text("effective_test_mode")
        errors = self._count(detail.error_count, summary.error_count)
        warnings = self._count(detail.warning_count, summary.warning_count)
        valid = self._valid(mode)
        run = LoadgenRun(
            folder=self.folder,
            form=detail.form or None,
            loadgen_version=version or None,
            loadgen_revision=revision or None,
            scenario=self.text("effective_scenario"),
            mode=mode,
            sut_name=self.text("sut_name"),
            qsl_name=self.text("qsl_name"),
            valid=valid,
            reasons=tuple(reason.strip() for reason in detail.reasons or summary.reasons),
            checks=self._checks(),
            metric=None,
            rates=self._rates(),
            latencies=self._latencies("result_{}_latency_ns", "_percentile_latency_ns"),
            query_latencies=self._latencies("result_{}_query_latency_ns", "_percentile_per_query_latency_ns"),
            first_token_latencies=self._latencies(
                "result_first_token_{}_latency_ns", "_percentile_latency_ns", "result_first_token_"
            ),
            token_latencies=self._latencies(
                "result_time_to_output_token_{}", "_percentile_ns", "result_time_per_output_token_"
            ),
            intervals=self._percentiles("result_", "_percentile_num_intervals_between_queries"),
            early_stopping=self._early_stopping(),
            counts=self._counts(),
            seeds=Seeds(
                *(self.whole(f"effective_{name}_rng_seed") for name in ("qsl", "sample_index", "schedule"))
            ),
            requested=self._settings("requested_"),
            effective=self._settings("effective_"),
            started=self._time("test_datetime", "%Y-%m-%dT%H:%M:%SZ"),
            power=self._power(mode, number),
            error_count=errors,
            errors=tuple(detail.errors),
            warning_count=warnings,
            warnings=tuple(detail.warnings),
            messages=tuple(detail.messages),
            accuracy_log=accuracy_log,
            remarks=(),
            values=MappingProxyType(self.values),
        )
        metric = self._metric(run, of_round or number)
        return replace(run, metric=metric, remarks=tuple(self.remarks))

    # Single values

    def text(self, key: str) -> str | None:
        """A value that is text."""
        value = self.values.get(key)
        return value.strip() if isinstance(value, str) else None

    def whole(self, key: str) -> int | None:
        """A value that is a whole number."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def truth(self, key: str) -> bool | None:
        """A value that is true or false."""
        value = self.values.get(key)
        return value if isinstance(value, bool) else None

    def rate(self, key: str) -> float | None:
        """A value that is a number."""
        return number_of(self.values.get(key))

    def _one_of(self, key: str, known: tuple[str, ...]) -> None:
        value = self.values.get(key)
        if value not in known:
            self.values.pop(key, None)
            told = "is not said" if value is None else f"is unknown: {str(value)[:80]}"
            self.remarks.append(f"{key} {told}")

    def _time(self, key: str, form: str, value: Any = None) -> datetime | None:
        told = self.values.get(key) if value is None else value
        if told is None:
            self.remarks.append(f"{key} is not said")
            return None
        try:
            return datetime.strptime(str(told)[:40], form)
        except ValueError:
            self.remarks.append(f"{key} is no time: {str(told)[:80]}")
            return None

    # Groups

    def _valid(self, mode: str | None) -> bool | None:
        verdict = self.values.get("result_validity")
        valid = {"VALID": True, "INVALID": False}.get(verdict) if isinstance(verdict, str) else None
        if valid is None and mode != "AccuracyOnly":
            self.remarks.append(
                "there is no verdict, and so no result: the test did not end, or its logs are cut"
            )
        return valid

    def _metric(self, run: LoadgenRun, number: RoundNumber | None) -> Metric | None:
        if run.valid is None:
            return None
        if number is None:
            number = round_shown(self.values, self.summary.headline)
            self.remarks.append(
                "LoadGen's version is not said"
                + (
                    ": the metric is the one that the summary shows"
                    if number
                    else ", and so not which metric counts"
                )
            )
        metric = metric_of(self.values, number) if number else None
        if metric is None and number:
            few = 0 in (run.early_stopping.single_stream_ns, run.early_stopping.multi_stream_ns)
            why = "early stopping had too few queries for an estimate" if few else "its line is missing"
            self.remarks.append(f"there is no result: {why}")
        return metric

    def _checks(self) -> Checks:
        return Checks(
            performance_constraints=self.truth("result_perf_constraints_met"),
            min_duration=self.truth("result_min_duration_met"),
            min_queries=self.truth("result_min_queries_met"),
            early_stopping=self.truth("early_stopping_met"),
        )

    def _rates(self) -> Rates:
        tokens = (
            "result_tokens_per_second",
            "result_completed_tokens_per_second",
            "result_inferred_tokens_per_second",
            "result_inferred_completed_tokens_per_second",
        )
        return Rates(
            samples=self.rate("result_samples_per_second"),
            scheduled=self.rate("result_scheduled_samples_per_sec"),
            completed=self.rate("result_completed_samples_per_sec"),
            with_overhead=self.rate("result_qps_with_loadgen_overhead"),
            without_overhead=self.rate("result_qps_without_loadgen_overhead"),
            tokens=next((rate for key in tokens if (rate := self.rate(key)) is not None), None),
        )

    def _latencies(self, extremes: str, percentile: str, start: str = "result_") -> Latencies:
        least, most, mean = (self.whole(extremes.format(which)) for which in ("min", "max", "mean"))
        return Latencies(least, most, mean, self._percentiles(start, percentile))

    def _percentiles(self, start: str, end: str) -> Mapping[float, int]:
        found = {}
        for key in self.values:
            middle = key[len(start) : len(key) - len(end)]
            if not (
                key.startswith(start)
                and key.endswith(end)
                and re.fullmatch(r"[0-9]{1,2}\.[0-9]{1,4}", middle)
            ):
                continue
            if (value := self.whole(key)) is not None:
                found[float(middle)] = value
        return MappingProxyType(dict(sorted(found.items())))

    def _early_stopping(self) -> EarlyStopping:
        keys = ("early_stopping_result", "early_stopping_ttft_result", "early_stopping_tpot_result")
        words = " ".join(" ".join(text.split()) for key in keys if (text := self.text(key)))
        estimates = (self.whole("early_stopping_latency_ss"), self.whole("early_stopping_latency_ms"))
        return EarlyStopping(*estimates, words or None)

    def _counts(self) -> Counts:
        return Counts(
            queries=self.whole("result_query_count"),
            overlatency_queries=self.whole("result_overlatency_query_count"),
            samples_per_query=self.whole("effective_samples_per_query"),
            generated_queries=self.whole("generated_query_count"),
            generated_samples_per_query=self.whole("generated_samples_per_query"),
            data_set_samples=self.whole("qsl_reported_total_count"),
            performance_samples=self.whole("effective_performance_sample_count"),
        )

    def _settings(self, prefix: str) -> Mapping[str, Any]:
        return MappingProxyType(
            {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        )

    def _power(self, mode: str | None, number: RoundNumber | None) -> Power | None:
        windows = self.detail.power
        window = windows.get("Performance") or (next(iter(windows.values())) if len(windows) == 1 else None)
        if window is None:
            if self.detail.form:
                self.remarks.append("power_begin and power_end are not said")
            return None
        if mode == "SubmissionRun" and window.count > 1:
            self.remarks.append("the power phases of accuracy and performance cannot be told apart")
            return None
        form = "%m-%d-%Y %H:%M:%S.%f"
        begin = self._time("power_begin", form, window.begin)
        end = self._time("power_end", form, window.end)
        if begin is None or end is None:
            return None
        clock = None if number is None else ("UTC" if number >= UTC_SINCE else "local")
        return Power(begin, end, clock, window.count)

    def _count(self, detail: int, summary: int | None) -> int | None:
        """The number of errors or warnings; not known of a log that is cut, or a test that did not end."""
        ended = "result_validity" in self.detail.values or "power_end" in self.detail.values
        return detail if ended and not self.detail.cut_short else summary


def _remarks_on_detail(detail: DetailLog) -> list[str]:
    remarks = [f"{DETAIL}: {text}" for text in detail.damaged[:SHOWN]]
    if len(detail.damaged) > SHOWN:
        remarks.append(f"{DETAIL}: {len(detail.damaged) - SHOWN} more such lines")
    if not detail.form:
        remarks.append(f"{DETAIL} holds no line of LoadGen's")
    if detail.cut_short:
        remarks.append(f"{DETAIL} is cut short in its last line")
    # One of the two in each test, whatever its mode; LoadGen itself writes a new file for each.
    if (tests := max(detail.times["loadgen_version"], detail.times["result_validity"])) > 1:
        remarks.append(f"{DETAIL} holds {tests} tests; the first value of every key is read, as checkers do")
    return remarks


def _remarks_on_summary(summary: SummaryLog) -> list[str]:
    remarks = [f"{SUMMARY}: {text}" for text in summary.damaged]
    if not summary.whole:
        remarks.append(
            f"{SUMMARY} is cut short or empty: its last lines, how many warnings and errors, are missing"
        )
    return remarks


def contradictions(detail: DetailLog, summary: SummaryLog) -> list[str]:
    """What the two logs say differently; the figure is the detail log's, as for checkers since v1.0."""
    found = [
        f"{key}: {DETAIL} says {str(detail.values[key])[:80]}, {SUMMARY} {str(told)[:80]}"
        for key, told in summary.values.items()
        if key in detail.values and not _agree(key, detail.values[key], told)
    ]
    counts = (("errors", detail.error_count, summary.error_count),)
    if detail.form and not detail.cut_short:
        found += [
            f"{DETAIL} holds {a} {what}, {SUMMARY} counts {b}" for what, a, b in counts if b not in (None, a)
        ]
    return found


def _agree(key: str, detail: Any, summary: Any) -> bool:
    if "early_stopping_" in key and isinstance(detail, str):
        return True  # the same words, broken otherwise
    if isinstance(detail, str) and isinstance(summary, str):
        return detail.strip() == summary.strip()
    one, other = number_of(detail), number_of(summary)
    if one is None or other is None:
        return bool(detail == summary)
    if isinstance(detail, int) and isinstance(summary, int):
        return detail == summary
    return abs(one - other) <= _DECIMALS + _DIGITS * abs(one)


def _accuracy_log(path: Path, read: bool) -> tuple[AccuracyLog, list[str]]:
    try:
        size = path.stat().st_size
        with open_plain(path) as file:
            head = file.read(TRUNCATED_BYTES + 1)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from None
    if size <= TRUNCATED_BYTES and b"..." in head:
        return AccuracyLog(size, None, None, True), [f"{ACCURACY_LOG} is truncated, as submissions have it"]
    if not size:
        return AccuracyLog(0, None, None, False), [f"{ACCURACY_LOG} is empty: LoadGen did not end"]
    if not read:
        return AccuracyLog(size, None, None, False), []
    digest, entries = hashlib.sha256(), 0
    try:
        for _ in read_accuracy_log(path, digest):
            entries += 1
    except AccuracyError as error:
        return AccuracyLog(size, None, None, False), [str(error).replace(f"{path.parent}/", "")]
    return AccuracyLog(size, entries, digest.hexdigest(), False), []
