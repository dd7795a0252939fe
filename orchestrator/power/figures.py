"""The power figure of a test, exactly as each round's submission checker computes it from the same files.

Sources: check_power_dir of mlcommons/inference v1.0.1, r1.1, v2.0, v2.1, v3.0; get_power_metric of v3.1 to
v5.1; submission_checker/checks/power_check.py of v6.x. What stops those by an exception is a PowerError here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator.loadgen_logs import read_run
from orchestrator.loadgen_metrics import MULTI_STREAM_SAMPLES, RoundNumber
from orchestrator.loadgen_run import LoadgenRun, round_of
from orchestrator.logs import LogError, number_of
from orchestrator.power.files import CLIENT_JSON, POWER, SERVER_JSON, read_json
from orchestrator.power.spl import Reading, SplError, read_spl
from orchestrator.submission.layout import RUN, SPL

WATT_SCENARIOS = ("offline", "server", "interactive")


class PowerError(Exception):
    """There is no power figure; the text names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class PowerFigure:
    """`value` in `unit` (W; J/sample in v1.x, J/query in v2.x, mJ/query since), from `samples` readings.

    `average_w` is their mean, `window_s` LoadGen's time from power_begin to power_end.
    """

    value: float
    unit: str
    average_w: float
    samples: int
    window_s: float


@dataclass(frozen=True)
class _Rule:
    """How the checkers since a round differ from those before.

    `offsets`: both clocks get the `timezone` of their host's json. `per_query`: energy by the queries that
    LoadGen counted, in `unit`, for which v1.x had only a rate. `any_line`: a line that is no reading is an
    error. `any_watts`: readings of zero and less count.
    """

    since: RoundNumber
    unit: str
    offsets: bool = False
    per_query: bool = True
    any_line: bool = True
    any_watts: bool = True


_RULES = (
    _Rule((1, 0), "J/sample", offsets=True, per_query=False),
    _Rule((2, 0), "J/query"),
    _Rule((3, 0), "mJ/query"),
    _Rule((3, 1), "mJ/query", any_watts=False),
    _Rule((4, 0), "mJ/query", any_watts=False, any_line=False),
)


def power_figure(round_name: str, scenario: str, performance: Path) -> PowerFigure:
    """The figure of the folder `performance` (run_1, power) as a result of `scenario`; PowerError if none.

    `scenario` is the submission's folder, which need not be the log's: results may be inferred.
    """
    return figure_of(round_name, scenario, performance / RUN, performance / POWER)


def figure_of(round_name: str, scenario: str, run_folder: Path, power: Path) -> PowerFigure:
    """The same from the folder of the run's logs and readings, and that of the client's files."""
    rule = _rule_for(round_name)
    try:
        run = read_run(run_folder, round_name, read_answers=False)
    except LogError as error:
        raise PowerError(str(error)) from None
    window = _window(run)
    if rule.offsets:
        window = _in_zones(window, _offset(power / CLIENT_JSON), _offset(power / SERVER_JSON))
    average_w, samples = _average(run_folder / SPL, window, rule)
    if scenario.lower() in WATT_SCENARIOS:
        return PowerFigure(average_w, "W", average_w, samples, window.length_s)
    value = _energy(rule, scenario, run, average_w, window.length_s)
    return PowerFigure(value, rule.unit, average_w, samples, window.length_s)


@dataclass(frozen=True)
class _Window:
    """From power_begin to power_end; `offset` puts the meter's times on the same clock."""

    begin: datetime
    end: datetime
    offset: timedelta = timedelta()
    zones: str = ""

    @property
    def length_s(self) -> float:
        return (self.end - self.begin).total_seconds()


def _rule_for(round_name: str) -> _Rule:
    try:
        number = round_of(round_name)
    except LogError as error:
        raise PowerError(str(error)) from None
    fitting = [rule for rule in _RULES if rule.since <= number]
    if not fitting:
        raise PowerError(f"round {round_name} had no power measurement; the first was v1.0")
    return fitting[-1]


def _window(run: LoadgenRun) -> _Window:
    """LoadGen's power_begin and power_end."""
    if run.power is None:
        why = next(
            (text for text in run.remarks if "power" in text), "power_begin and power_end are not said"
        )
        raise PowerError(f"{run.folder}: {why}; power needs the detail log of a test that ended")
    if run.power.phases != 1:
        raise PowerError(
            f"{run.folder}: the detail log holds {run.power.phases} power phases; a measured test has one"
        )
    if run.power.end <= run.power.begin:
        raise PowerError(f"{run.folder}: power_end {run.power.end} is not after {run.power.begin}")
    return _Window(run.power.begin, run.power.end)


def _in_zones(window: _Window, client: timedelta, server: timedelta) -> _Window:
    """v1.x: LoadGen's local time and the meter's, each with its host's own zone."""
    told = [f"{zone.total_seconds():g} s" for zone in (client, server)]
    zones = f", with timezone {told[0]} of the client and {told[1]} of the server"
    return _Window(_shifted(window.begin, client), _shifted(window.end, client), server, zones)


def _offset(path: Path) -> timedelta:
    """`timezone` of the client's or the server's json, seconds."""
    try:
        body = read_json(path)
    except OSError as error:
        raise PowerError(f"{path}: {error.strerror}; v1.0 and v1.1 need its timezone") from None
    if body is None:
        raise PowerError(f"{path} is no JSON object; it is the power client's own file, as it wrote it")
    seconds = number_of(body.get("timezone"))
    if seconds is None:
        raise PowerError(f"{path}: timezone is no number of seconds; v1.0 and v1.1 shift the clocks by it")
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise PowerError(f"{path}: timezone {seconds:g} s is no time zone") from None


def _shifted(at: datetime, shift: timedelta) -> datetime:
    try:
        return at + shift
    except OverflowError:
        raise PowerError(f"{at} with a time zone of {shift} is no time") from None


def _average(path: Path, window: _Window, rule: _Rule) -> tuple[float, int]:
    """Mean watts of the readings strictly between begin and end, and how many they are."""
    total_w, samples, lines = 0.0, 0, 0
    try:
        for reading in read_spl(path):
            lines += 1
            watts = _watts_within(path, reading, window, rule)
            if watts is not None:
                total_w += watts
                samples += 1
    except SplError as error:
        raise PowerError(str(error)) from None
    if not samples:
        raise PowerError(
            f"{path}: no line of {lines} lies between power_begin {window.begin} and power_end {window.end}"
            f"{window.zones}; the clocks of the system and of the meter's host must agree (NTP)"
        )
    average_w = total_w / samples
    if not math.isfinite(average_w):
        raise PowerError(f"{path}: the readings add up to {total_w}, which is no power")
    return average_w, samples


def _watts_within(path: Path, reading: Reading, window: _Window, rule: _Rule) -> float | None:
    """The watts of a line that counts, None for one that does not."""
    if not (reading.timed or rule.any_line):
        return None
    if reading.at is None:
        raise PowerError(f"{path}:{reading.line}: has no time and stops the checker: {reading.text!r}")
    if not window.begin < _shifted(reading.at, window.offset) < window.end:
        return None
    if reading.watts is None:
        raise PowerError(f"{path}:{reading.line}: has no watts and stops the checker: {reading.text!r}")
    return reading.watts if rule.any_watts or reading.watts > 0 else None


def _energy(rule: _Rule, scenario: str, run: LoadgenRun, average_w: float, window_s: float) -> float:
    """Energy of a query or a sample of the streams, in the rule's unit."""
    stream = scenario.lower()
    if stream not in ("singlestream", "multistream"):
        raise PowerError(f"{scenario!r} is no scenario: SingleStream, MultiStream, Server, Offline")
    if not rule.per_query:
        count = _samples_of_v1(stream, run, window_s)
    else:
        count = float(_count(run, "result_query_count", run.counts.queries))
    scale = 1000 if rule.unit.startswith("mJ") else 1
    if rule.per_query and stream == "multistream" and run.scenario == "SingleStream":
        scale *= MULTI_STREAM_SAMPLES
    return average_w * window_s * scale / count


def _samples_of_v1(stream: str, run: LoadgenRun, window_s: float) -> float:
    """Before v2.0 LoadGen did not log how many queries it asked: a rate stands for it in SingleStream."""
    if stream == "multistream":
        counts = run.counts
        queries = _count(run, "generated_query_count", counts.generated_queries)
        return float(queries * _count(run, "generated_samples_per_query", counts.generated_samples_per_query))
    return _count(run, "result_qps_with_loadgen_overhead", run.rates.with_overhead) * window_s


def _count(run: LoadgenRun, key: str, value: float | None) -> float:
    if value is None or value <= 0:
        told = "is not said" if value is None else f"is {value:g}"
        raise PowerError(f"{run.folder}: {key} {told}, and the energy is divided by it")
    return value
