"""What the logs of one LoadGen run tell, as frozen types. Pure; `loadgen_logs` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.loadgen_metrics import (
    Metric,
    RoundNumber,
    inferred_metric,
    metric_of,
    round_number,
    round_of_loadgen,
)
from orchestrator.logs import LogError


@dataclass(frozen=True)
class Checks:
    """LoadGen's single conditions; None where it did not say."""

    performance_constraints: bool | None
    min_duration: bool | None
    min_queries: bool | None
    early_stopping: bool | None


@dataclass(frozen=True)
class Seeds:
    """The three seeds as the test used them."""

    qsl: int | None
    sample_index: int | None
    schedule: int | None


@dataclass(frozen=True)
class EarlyStopping:
    """LoadGen's estimates (SingleStream: its own percentile, and the 99th for MultiStream) and its words."""

    single_stream_ns: int | None
    multi_stream_ns: int | None
    words: str | None


@dataclass(frozen=True)
class Latencies:
    """Latencies, or times per token, in ns; percentiles by their number: 50.0, 99.9."""

    min_ns: int | None
    max_ns: int | None
    mean_ns: int | None
    percentiles_ns: Mapping[float, int]


@dataclass(frozen=True)
class Rates:
    """Rates a second that the logs hold; scheduled and completed are Server's."""

    samples: float | None
    scheduled: float | None
    completed: float | None
    with_overhead: float | None
    without_overhead: float | None
    tokens: float | None


@dataclass(frozen=True)
class Counts:
    """How much was generated, asked and available."""

    queries: int | None
    overlatency_queries: int | None
    samples_per_query: int | None
    generated_queries: int | None
    generated_samples_per_query: int | None
    data_set_samples: int | None
    performance_samples: int | None


@dataclass(frozen=True)
class Power:
    """The phase in which power counts; its clock is "UTC" since LoadGen 1.1, before that "local".

    An accuracy test has one such phase for each of `phases` sample sets: the first begin and the last end.
    """

    begin: datetime
    end: datetime
    clock: str | None
    phases: int

    @property
    def duration_s(self) -> float:
        """From begin to end."""
        return (self.end - self.begin).total_seconds()


@dataclass(frozen=True)
class AccuracyLog:
    """mlperf_log_accuracy.json; `entries` and `sha256` are None if it was not read, or is not a whole log."""

    size_bytes: int
    entries: int | None
    sha256: str | None
    truncated: bool


@dataclass(frozen=True)
class LoadgenRun:
    """One run of LoadGen as its logs tell it."""

    folder: Path
    form: str | None  # of the detail log: "mllog", or "text" as in v0.5 and v0.7
    loadgen_version: str | None  # "6.0.17", ".5a1"
    loadgen_revision: str | None  # of git; "NA" where it was built outside of a checkout
    scenario: str | None
    mode: str | None
    sut_name: str | None
    qsl_name: str | None
    valid: bool | None
    reasons: tuple[str, ...]
    checks: Checks
    metric: Metric | None
    rates: Rates
    latencies: Latencies
    query_latencies: Latencies
    first_token_latencies: Latencies
    token_latencies: Latencies
    intervals: Mapping[float, int]  # MultiStream up to v1.1: ticks between queries, by percentile
    early_stopping: EarlyStopping
    counts: Counts
    seeds: Seeds
    requested: Mapping[str, Any]
    effective: Mapping[str, Any]
    started: (
        datetime | None
    )  # local time, though LoadGen writes a Z behind it (loadgen/utils.cc, all versions)
    power: Power | None
    error_count: int | None
    errors: tuple[str, ...]
    warning_count: int | None
    warnings: tuple[str, ...]
    messages: tuple[str, ...]
    accuracy_log: AccuracyLog | None
    remarks: tuple[str, ...]
    values: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def round_number(self) -> RoundNumber | None:
        """The round that this LoadGen was made for; (0, 5) stands for v0.5 and v0.7."""
        return round_of_loadgen(self.loadgen_version, self.form)

    def metric_of(self, round_name: str) -> Metric | None:
        """The result by the rule of a round ("v1.0"), which need not be the round of this LoadGen."""
        return self._metric(round_of(round_name))

    def _metric(self, of_round: RoundNumber) -> Metric | None:
        # Without a verdict there is no result: settings alone look like one in MultiStream up to v1.1.
        return None if self.valid is None else metric_of(self.values, of_round)

    def inferred(self, scenario: str, round_name: str | None = None) -> Metric | None:
        """The result of another scenario that may be taken from this run; None where it may not."""
        number = round_of(round_name) if round_name else self.round_number
        return inferred_metric(self.values, scenario, number) if number and self.valid is not None else None

    def as_dict(self) -> dict[str, Any]:
        """Everything but `values` and long lists of samples, as JSON can hold it."""
        named = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "values"}
        told = {name: _plain(value) for name, value in named.items()}
        if self.power:
            told["power"]["duration_s"] = self.power.duration_s
        return told


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: times as ISO 8601, keys as text, what is no number as nothing."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def round_of(name: str) -> RoundNumber:
    number = round_number(name)
    if number is None:
        raise LogError(f"{name!r} is not a round; rounds are called v1.0, v6.1")
    return number
