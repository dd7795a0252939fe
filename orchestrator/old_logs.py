"""mlperf_log_* as the LoadGen of round v1.0 wrote them for MultiStream, for our own generator of it.

Keys, forms and order are those of v1.0.1 (logging.cc, loadgen.cc, test_settings_internal.cc), so that the
checkers and scripts of that time read them. Who wrote them is said in loadgen_version, in a warning and in
the names of SUT and QSL. Left out: logger_*, which tell of the insides of LoadGen's logger.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import __version__
from orchestrator.fixed_interval import LOGGED_PERCENTILES, Result, Settings
from orchestrator.paths import ACCURACY_LOG, DETAIL, SUMMARY

GENERATOR = f"LoadGrid {__version__} fixed-interval generator, not MLCommons LoadGen"
UNOFFICIAL = (
    "The queries of this test came from LoadGrid's own fixed-interval generator and not from MLCommons "
    "LoadGen: this result is unofficial."
)
SUT_NAME, QSL_NAME = "LoadGrid", "LoadGrid library"
REQUESTED_TARGET_LATENCY_NS = 100_000_000  # TestSettings' default in v1.0.1, which no configuration changes
RULE = "=" * 48
# What the generator is made of; its hash stands where that of LoadGen's file does.
SOURCES = ("fixed_interval.py", "metronome.py", "old_draw.py", "old_logs.py")
# What v1.0.1 says of its own build, where it is known; this one is not built.
OF_A_BUILD = (
    "build_date_local",
    "build_date_utc",
    "git_commit_date",
    "git_log_message",
    "git_status_message",
)
SEEDS_AND_AUDIT = (
    "qsl_rng_seed",
    "sample_index_rng_seed",
    "schedule_rng_seed",
    "accuracy_log_rng_seed",
    "accuracy_log_probability",
    "accuracy_log_sampling_target",
    "print_timestamps",
    "performance_issue_unique",
    "performance_issue_same",
    "performance_issue_same_index",
)
# A reason for every constraint that is not met, in our words.
REASONS = {
    "perf_constraints_met": "Reduce samples per query: at least 1 of 100 queries made another skip a tick.",
    "min_duration_met": "The last query was issued before the shortest duration was over.",
    "min_queries_met": "Fewer queries than min_query_count were issued.",
}


class OldLogs:
    """The three logs of one test, open; a context manager. Times in the detail log count from its opening."""

    def __init__(self, folder: Path) -> None:
        self._files = ExitStack()
        self._summary, self._detail, self._answers = (
            self._files.enter_context((folder / name).open("w", encoding="utf-8"))
            for name in (SUMMARY, DETAIL, ACCURACY_LOG)
        )
        self._answers.write("[")
        self._began_ns = time.monotonic_ns()
        self._first_answer = True
        self._warnings = self._errors = 0

    def __enter__(self) -> OldLogs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The last lines, where the test ended; a test that broke off leaves its logs without them."""
        if kind is None:
            self._answers.write("\n]\n")
            self._summary.write(f"\n{_counted(self._warnings, 'warning')}\n{_counted(self._errors, 'ERROR')}")
        self._files.close()

    # -- the detail log --------------------------------------------------------------------------------------

    def detail(self, key: str, value: Any, *, error: bool = False, warning: bool = False) -> None:
        """One entry."""
        self._errors += error
        self._warnings += warning
        ms, ns = divmod(time.monotonic_ns() - self._began_ns, 1_000_000)
        metadata = {
            "is_error": error,
            "is_warning": warning,
            "file": "loadgrid/fixed_interval.py",
            "line_no": 0,
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
        }
        self._detail.write(
            f':::MLLOG {{"key": {json.dumps(key)}, "value": {_json(value)}, "time_ms": {ms}.{ns:06d}, '
            '"namespace": "mlperf::logging", "event_type": "POINT_IN_TIME", '
            f'"metadata": {json.dumps(metadata)}}}\n'
        )

    def details(self, values: Mapping[str, Any]) -> None:
        """Several entries."""
        for key, value in values.items():
            self.detail(key, value)

    def header(self, settings: Settings, total: int, performance_count: int) -> None:
        """Who asks, of what data set, by which settings."""
        self.detail("loadgen_version", GENERATOR)
        self.details({f"loadgen_{what}": "NA" for what in OF_A_BUILD})
        self.detail("loadgen_file_sha1", _source_hashes("sha1"))
        self.detail("warning_generic_message", UNOFFICIAL, warning=True)
        self.details(
            {
                # In local time, whatever the Z says: that of v1.0.1 is.
                "test_datetime": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "sut_name": SUT_NAME,
                "qsl_name": QSL_NAME,
                "qsl_reported_total_count": total,
                "qsl_reported_performance_count": performance_count,
            }
        )
        self.details({f"requested_{name}": value for name, value in _requested(settings).items()})
        shown = _effective(settings, settings.performance_sample_count_override or performance_count)
        self.details({f"effective_{name}": value for name, value in shown.items()})
        mode = "accuracy" if settings.accuracy else "performance"
        self.detail("generic_message", f"Starting {mode} mode")

    def queries_made(self, settings: Settings, count: int) -> None:
        """How many queries there are for the sample set, and how long they would take."""
        self.detail("generated_query_count", count)
        self.detail("generated_samples_per_query", settings.samples_per_query)
        self.detail("generated_query_duration", count * settings.period_ns)

    def power_window(self, began_s: float, duration_ns: int) -> None:
        """From the start to the last answer, by the clock on the wall: local time, as v1.0.1 has it."""
        self.detail("power_begin", _wall_clock(began_s))
        self.detail("power_end", _wall_clock(began_s + duration_ns * 1e-9))

    def answers(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Entries of the accuracy log: sequence number, index, bytes of the response."""
        for seq_id, index, data in rows:
            comma = "" if self._first_answer else ","
            self._first_answer = False
            self._answers.write(
                f'{comma}\n{{ "seq_id" : {seq_id}, "qsl_idx" : {index}, "data" : "{data.hex().upper()}" }}'
            )

    def result(self, settings: Settings, result: Result, performance_count: int) -> None:
        """The verdict and the numbers of a performance test, in both logs."""
        self._summary.write(_summary_text(settings, result, performance_count))
        self.detail("result_validity", "VALID" if result.valid else "INVALID")
        for check in REASONS:
            self.detail(f"result_{check}", getattr(result, check))
        if not result.valid:
            self.detail("result_invalid_reason", " ".join(_reasons(result)))
        for percentile, ticks, latency_ns in zip(
            LOGGED_PERCENTILES, result.intervals, result.query_latency_ns, strict=True
        ):
            name = f"result_{100 * percentile:.2f}_percentile"
            self.detail(f"{name}_num_intervals_between_queries", ticks)
            self.detail(f"{name}_per_query_latency_ns", latency_ns)
        for kind in ("min", "max", "mean"):
            self.detail(f"result_{kind}_latency_ns", getattr(result, f"{kind}_latency_ns"))
        for percentile, latency_ns in zip(LOGGED_PERCENTILES, result.sample_latency_ns, strict=True):
            self.detail(f"result_{100 * percentile:.2f}_percentile_latency_ns", latency_ns)


def _requested(s: Settings) -> dict[str, Any]:
    return {
        "scenario": "MultiStream",
        "test_mode": _mode(s),
        "multi_stream_target_qps": s.target_qps,
        "multi_stream_target_latency_ns": REQUESTED_TARGET_LATENCY_NS,
        "multi_stream_target_latency_percentile": s.target_latency_percentile,
        "multi_stream_samples_per_query": s.samples_per_query,
        "multi_stream_max_async_queries": s.max_async_queries,
        "min_duration_ms": s.min_duration_ms,
        "max_duration_ms": s.max_duration_ms,
        "min_query_count": s.min_query_count,
        "max_query_count": s.max_query_count,
        **{name: getattr(s, name) for name in SEEDS_AND_AUDIT},
        "performance_sample_count_override": s.performance_sample_count_override,
    }


def _effective(s: Settings, performance_count: int) -> dict[str, Any]:
    return {
        "scenario": "MultiStream",
        "test_mode": _mode(s),
        "samples_per_query": s.samples_per_query,
        "target_qps": s.target_qps,
        "target_latency_ns": s.target_latency_ns,
        "target_latency_percentile": s.target_latency_percentile,
        "max_async_queries": s.max_async_queries,
        "target_duration_ms": s.min_duration_ms,
        "min_duration_ms": s.min_duration_ms,
        "max_duration_ms": s.max_duration_ms,
        "min_query_count": s.min_query_count,
        "max_query_count": s.max_query_count,
        "min_sample_count": s.min_query_count * s.samples_per_query,
        **{name: getattr(s, name) for name in SEEDS_AND_AUDIT},
        "performance_sample_count": performance_count,
    }


def _mode(s: Settings) -> str:
    return "AccuracyOnly" if s.accuracy else "PerformanceOnly"


def _summary_text(s: Settings, r: Result, performance_count: int) -> str:
    """The summary of a performance test, up to the counts of warnings and errors."""
    lines = [
        *_headline("MLPerf Results Summary"),
        f"SUT name : {SUT_NAME}",
        "Scenario : MultiStream",
        f"Mode     : {_mode(s)}",
        f"Samples per query : {s.samples_per_query}",
        f"Result is : {'VALID' if r.valid else 'INVALID'}",
        f"  Performance constraints satisfied : {_yes(r.perf_constraints_met)}",
        f"  Min duration satisfied : {_yes(r.min_duration_met)}",
        f"  Min queries satisfied : {_yes(r.min_queries_met)}",
    ]
    if not r.valid:
        lines += ["Recommendations:", *(f" * {reason}" for reason in _reasons(r))]
    limit_ns = s.target_latency_ns
    lines += [
        "",
        *_headline("Additional Stats"),
        f'Intervals between each IssueQuery:  "qps" : {s.target_qps:g}, "ms" : {1000 / s.target_qps:g}',
        *_percentile_lines("percentile", r.intervals),
        "",
        f'Per-query latency:  "target_ns" : {limit_ns}, "target_ms" : {limit_ns / 1e6:g}',
        *_percentile_lines("percentile latency (ns)  ", r.query_latency_ns),
        "",
        "Per-sample latency:",
        f"Min latency (ns)                : {r.min_latency_ns}",
        f"Max latency (ns)                : {r.max_latency_ns}",
        f"Mean latency (ns)               : {r.mean_latency_ns}",
        *_percentile_lines("percentile latency (ns)  ", r.sample_latency_ns),
        "",
        *_headline("Test Parameters Used"),
        *(f"{name} : {_plain(value)}" for name, value in _parameters(s, performance_count).items()),
    ]
    # v1.0.1 writes these without a blank before the colon.
    text = "\n".join(lines) + "\n"
    for name in ("target_latency (ns)", "min_duration (ms)", "max_duration (ms)"):
        text = text.replace(f"{name} : ", f"{name}: ")
    return text


def _parameters(s: Settings, performance_count: int) -> dict[str, Any]:
    return {
        "samples_per_query": s.samples_per_query,
        "target_qps": s.target_qps,
        "target_latency (ns)": s.target_latency_ns,
        "max_async_queries": s.max_async_queries,
        "min_duration (ms)": s.min_duration_ms,
        "max_duration (ms)": s.max_duration_ms,
        "min_query_count": s.min_query_count,
        "max_query_count": s.max_query_count,
        **{name: getattr(s, name) for name in SEEDS_AND_AUDIT},
        "performance_sample_count": performance_count,
    }


def _headline(text: str) -> list[str]:
    return [RULE, text, RULE]


def _percentile_lines(what: str, values: Sequence[int]) -> list[str]:
    pairs = zip(LOGGED_PERCENTILES, values, strict=True)
    return [f"{100 * percentile:.2f} {what} : {value}" for percentile, value in pairs]


def _reasons(r: Result) -> list[str]:
    return [text for check, text in REASONS.items() if not getattr(r, check)]


def _yes(met: bool) -> str:
    return "Yes" if met else "NO"


def _counted(count: int, what: str) -> str:
    """The closing lines of the summary, which the compliance scripts of v1.0 look for."""
    if not count:
        return f"No {what.lower()}s encountered during test.\n"
    plural = "" if count == 1 else "S" if what.isupper() else "s"
    return f"{count} {what}{plural} encountered. See detailed log.\n"


def _plain(value: Any) -> str:
    """A value of the summary: switches as 0 and 1, fractions as a C++ stream shows them."""
    return f"{value:g}" if isinstance(value, float) else str(int(value))


def _json(value: Any) -> str:
    """A value of the detail log: fractions as a C++ stream shows them."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, np.ndarray):
        return "[" + ",".join(map(str, value.tolist())) + "]"
    return json.dumps(value)


def _wall_clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{time.strftime('%m-%d-%Y %H:%M:%S', time.localtime(whole))}.{int((seconds - whole) * 1000):03d}"


def _source_hashes(algorithm: str) -> dict[str, str]:
    folder = Path(__file__).parent
    return {f"/{name}": hashlib.new(algorithm, (folder / name).read_bytes()).hexdigest() for name in SOURCES}


def generator_sha256() -> str:
    """One hash over the generator's source files."""
    return hashlib.sha256(json.dumps(_source_hashes("sha256"), sort_keys=True).encode()).hexdigest()
