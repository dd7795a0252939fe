"""mlperf_log_summary.txt of any LoadGen, v0.5 to v6.x, under the keys of the detail log.

Up to v0.7 the results stand nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.loadgen_lines import MODE_NAMES, SCENARIO_NAMES, value_of
from orchestrator.logs import LogError
from orchestrator.plain_files import open_plain

SUMMARY_BYTES = 1 << 20  # a real one has 5 kB
_TITLES = {
    "MLPerf Results Summary": "results",
    "Additional Stats": "stats",
    "Test Parameters Used": "settings",
}
_RATES = {
    "Samples per second": "result_samples_per_second",
    "Scheduled samples per second": "result_scheduled_samples_per_sec",
    "Completed samples per second": "result_completed_samples_per_sec",
    "Tokens per second": "result_tokens_per_second",
    "Completed tokens per second": "result_completed_tokens_per_second",
    "Tokens per second (inferred)": "result_inferred_tokens_per_second",
    "Completed tokens per second (inferred)": "result_inferred_completed_tokens_per_second",
    "QPS w/ loadgen overhead": "result_qps_with_loadgen_overhead",
    "QPS w/o loadgen overhead": "result_qps_without_loadgen_overhead",
    "TPS w/ loadgen overhead": "result_token_throughput_with_loadgen_overhead",
    "TPS w/o loadgen overhead": "result_token_throughput",
    "Samples per query": "effective_samples_per_query",
}
_CHECKS = {
    "Performance constraints satisfied": "result_perf_constraints_met",
    "Min duration satisfied": "result_min_duration_met",
    "Min queries satisfied": "result_min_queries_met",
    "Early stopping satisfied": "early_stopping_met",
}
_STOPPING = {
    "Early Stopping Result": "early_stopping_result",
    "TTFT Early Stopping Result": "early_stopping_ttft_result",
    "TPOT Early Stopping Result": "early_stopping_tpot_result",
}
# "per query" of MultiStream, "per sample" of the others and, up to v1.1, of MultiStream too.
_BLOCKS = {"Per-query latency": "per_query_", "Per-sample latency": ""}
_FLAGS = ("print_timestamps", "performance_issue_unique", "performance_issue_same")  # 0 and 1 since v1.0
# "90th" up to v4.1, "90.0th" since (mlcommons/inference d7bbf881).
_HEADLINE = re.compile(r"(\d+(?:\.\d+)?)th percentile latency \(ns\)")
_PERCENTILE = re.compile(
    r"(\d+\.\d+) percentile( latency \(ns\)| first token latency \(ns\)| time .*\(ns\))?"
)
_EXTREME = re.compile(r"(Min|Max|Mean) (latency|First Token latency|Time (?:to|per) Output Token) \(ns\)")
_ESTIMATE = re.compile(r"Early stopping \d+(?:\.\d+)?th percentile estimate: (\d{1,20})")
_PROCESSED = re.compile(
    r"(?:Processed at least \d+ queries \((\d+)\)|(?:Only processed|Processed) (\d+) queries)"
)
_COUNTED = re.compile(r"(No|\d+) (warning|error)s? encountered", re.IGNORECASE)


@dataclass
class SummaryLog:
    """The figures of a summary by the detail log's keys, LoadGen's advice, and how many errors it counted.

    `headline` is the key of the rate or the latency that stands above the verdict; `whole` is whether the
    last lines, the counts of warnings and errors, are there.
    """

    values: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    headline: str | None = None
    error_count: int | None = None
    warning_count: int | None = None
    damaged: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the summary has its end."""
        return self.error_count is not None and self.warning_count is not None


def read_summary(path: Path) -> SummaryLog:
    """Read a summary; what cannot be read is left out."""
    try:
        with open_plain(path) as file:
            raw = file.read(SUMMARY_BYTES + 1)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from None
    reader = _Reader()
    if len(raw) > SUMMARY_BYTES:
        reader.log.damaged.append(f"only the first {SUMMARY_BYTES >> 20} MiB of the summary are read")
    text = raw[:SUMMARY_BYTES].decode("utf-8", errors="replace")
    if "\0" in text:
        reader.log.damaged.append("the summary holds NUL bytes")
    *lines, rest = text.replace("\0", "").split("\n")
    for line in lines:  # what follows the last line break was cut: "Mean latency (ns) : 57" may be 5787
        reader.read(line.rstrip())
    if rest.strip() and _COUNTED.match(rest):
        reader.read(rest.rstrip())
    reader.finish()
    return reader.log


class _Reader:
    """Line after line; what a line means hangs on the section and the block that it stands in."""

    def __init__(self) -> None:
        self.log = SummaryLog()
        self._section = ""
        self._block = ""  # of the results: whose bullets these are; of the stats: whose latencies
        self._percentile: tuple[str, int] | None = None
        self._estimates: list[int] = []

    def read(self, line: str) -> None:
        if line in _TITLES:
            self._section, self._block = _TITLES[line], ""
        elif counted := _COUNTED.match(line):
            self._count(counted)
        elif not line or not line.strip("="):  # ends advice and early stopping's words
            self._block = "" if self._section == "results" else self._block
        elif self._section == "results":
            self._result(line)
        elif self._section == "stats":
            self._stat(line)
        elif self._section == "settings":
            self._setting(line)

    def _put(self, key: str, value: Any) -> None:
        if value is not None and value != "":
            self.log.values.setdefault(key, value)

    def _count(self, found: re.Match[str]) -> None:
        number = 0 if found[1].lower() == "no" else value_of(found[1])
        if isinstance(number, int):
            name = "error_count" if found[2].lower() == "error" else "warning_count"
            setattr(self.log, name, number)

    def _result(self, line: str) -> None:
        if line.startswith((" * ", "   ")) and self._block:
            self._bullet(line)
            return
        label, _, told = (part.strip() for part in line.partition(":"))
        if label == "Recommendations" or label in _STOPPING:
            self._block = label
        elif label == "SUT name":
            self._put("sut_name", told)
        elif label == "Scenario":
            self._put("effective_scenario", SCENARIO_NAMES.get(told, told))
        elif label == "Mode":
            self._put("effective_test_mode", MODE_NAMES.get(told, told))
        elif label == "Result is" and told in ("VALID", "INVALID"):
            self._put("result_validity", told)
        elif label in _CHECKS and told in ("Yes", "NO"):
            self._put(_CHECKS[label], told == "Yes")
        elif label in _RATES:
            self._rate(label, told)
            self.log.headline = self.log.headline or _RATES[label]
        elif (found := _HEADLINE.fullmatch(label)) and isinstance(latency_ns := value_of(told), int):
            self._percentile = (found[1], latency_ns)
        elif self._block and line.strip():  # early stopping breaks its sentences
            self._bullet(line)

    def _bullet(self, line: str) -> None:
        text = line.strip()
        bullet = text.startswith("* ")
        if self._block == "Recommendations":
            if bullet or not self.log.reasons:
                self.log.reasons.append(text.removeprefix("* "))
            else:
                self.log.reasons[-1] += f" {text}"
            return
        key = _STOPPING[self._block]
        before = self.log.values.get(key)
        self.log.values[key] = f"{before} {text}" if before else text
        if found := _ESTIMATE.search(text):
            self._estimates.append(int(found[1]))
        if (found := _PROCESSED.search(text)) and self._block == "Early Stopping Result":
            self._put("result_query_count", value_of(found[1] or found[2]))

    def _rate(self, label: str, told: str) -> None:
        value = value_of(told)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._put(_RATES[label], value)

    def _stat(self, line: str) -> None:
        label, _, told = (part.strip() for part in line.partition(":"))
        if label in _BLOCKS:
            self._block = _BLOCKS[label]
            return
        if label in _RATES:
            self._rate(label, told)
            return
        value = value_of(told)
        if isinstance(value, int) and not isinstance(value, bool) and (key := self._latency_key(label)):
            self._put(key, value)

    def _latency_key(self, label: str) -> str | None:
        if found := _EXTREME.fullmatch(label):
            which = found[1].lower()
            if found[2] == "latency":
                return f"result_{which}_{'query_' if self._block else ''}latency_ns"
            token = found[2] == "First Token latency"
            return (
                f"result_first_token_{which}_latency_ns" if token else f"result_time_to_output_token_{which}"
            )
        found = _PERCENTILE.fullmatch(label)
        if found is None:
            return None
        percentile, kind = found[1], (found[2] or "").strip()
        if not kind:
            return f"result_{percentile}_percentile_num_intervals_between_queries"
        if kind.startswith("first token"):
            return f"result_first_token_{percentile}_percentile_latency_ns"
        if kind.startswith("time"):
            return f"result_time_per_output_token_{percentile}_percentile_ns"
        return f"result_{percentile}_percentile_{self._block}latency_ns"

    def _setting(self, line: str) -> None:
        label, colon, told = (part.strip() for part in line.partition(":"))
        found = re.fullmatch(r"([a-z]\w*)(?: \((\w+)\))?", label)
        if not colon or found is None or not told:
            return
        value = value_of(told)
        if found[1] in _FLAGS and value in (0, 1):
            value = bool(value)
        self._put(f"effective_{found[1]}_{found[2]}" if found[2] else f"effective_{found[1]}", value)

    def finish(self) -> None:
        """What can be said only when all lines are read."""
        scenario = self.log.values.get("effective_scenario")
        single, multi = scenario == "SingleStream", scenario == "MultiStream"
        names = ["early_stopping_latency_ss", "early_stopping_latency_ms"] if single else []
        names = ["early_stopping_latency_ms"] if multi else names
        for name, estimate_ns in zip(names, self._estimates, strict=False):
            self._put(name, estimate_ns)
        if self._percentile is None or not (single or multi):
            return
        percentile, latency_ns = self._percentile
        # A whole number is rounded ("100th" is 99.9), so the exact line of the stats counts if there is one.
        key = f"result_{float(percentile):.2f}_percentile_{'per_query_' if multi else ''}latency_ns"
        self.log.headline = self.log.headline or key
        if "." in percentile or percentile in ("90", "99"):
            self._put(key, latency_ns)
