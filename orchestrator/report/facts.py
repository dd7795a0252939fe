"""What a report says of one test in words and tables; pure, from its record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.course import Course
from orchestrator.journey import IN_WORDS, PATH, TOTAL, Row, driver_was_the_limit, rows
from orchestrator.phrases import (
    accuracy,
    duration,
    judged_percentile,
    late_answers_story,
    late_by_driver,
    late_by_loadgen,
    limit_ms,
    ms,
    percent,
    plural,
    power_in_words,
    result,
    result_name,
    with_unit,
)
from orchestrator.record import Record
from orchestrator.report.runs import Run, plain
from orchestrator.rules import RulesError, load_round

# A worker is behind in a stage when its mean there is so many times the median of the others', and the
# difference is this share of the whole latency: below it nobody would notice.
BEHIND = 1.25
NOTICED = 0.02
# Of fewer samples a mean is an accident, and only in these stages is the time a worker's own: what waits in
# the driver waits for all of them.
FEWEST_SAMPLES = 100
OWN_STAGES = tuple(stage for stage in PATH if stage != "driver_queue")
MOST_STRAGGLERS = 10
LONGEST_S = 10**9  # a test of thirty years has a damaged record
MOST_NAMED = 3  # tests of a headline
MOST_SHOWN = 300  # characters of one value: a settings file may hold anything


@dataclass(frozen=True)
class Margin:
    """By how much: words, and how full a bar of the limit is (1.0 is the limit itself), if there is one."""

    words: str
    used: float | None = None


@dataclass(frozen=True)
class Straggler:
    """A worker that is behind in a stage: its mean and the median of the others', both in ms."""

    worker: str
    stage: str
    mean_ms: float
    others_ms: float

    @property
    def words(self) -> str:
        """One sentence."""
        times = f"{self.mean_ms / self.others_ms:.1f} times" if self.others_ms > 0 else "beyond"
        where = self.stage.replace("_", " ")
        return f"{self.worker}, {where}: {ms(self.mean_ms)} ms, {times} the others' {ms(self.others_ms)} ms"


@dataclass(frozen=True)
class Lost:
    """A worker that was lost: where, why, when (seconds into the test), how many samples moved to others.

    `at_s` is None, or below zero, where the test's clock had not started.
    """

    worker: str
    node: str
    reason: str
    at_s: float | None
    moved: int

    @property
    def when(self) -> str:
        """When, as a table has it."""
        return "before the start" if self.at_s is None or self.at_s < 0 else f"{self.at_s:,.1f} s"


@dataclass(frozen=True)
class Rule:
    """One rule of the round on a setting: what the test had, what is asked, whether it is met."""

    name: str
    value: str
    asked: str
    met: bool


def figure_of_test(record: Record) -> str:
    """The one number that the test was for."""
    if record.kind == "accuracy":
        return accuracy(record)
    if record.status != "finished" or record.result.value is None:
        return "no result"
    return f"{judged_percentile(record)} {result(record)}" if record.result.unit == "ms" else result(record)


def metric(record: Record) -> str:
    """What that number is, by LoadGen's key; empty where there is none."""
    if record.kind == "accuracy" or record.status != "finished" or record.result.value is None:
        return ""
    return result_name(record)


def margin(record: Record) -> Margin | None:
    """By how much the test passed or missed what was asked of it."""
    if record.status != "finished":
        return None
    if record.accuracy is not None:
        got = record.accuracy
        target = with_unit(f"{got.target:g}", got.unit)
        if got.value == got.target:
            return Margin(f"exactly the target of {target}")
        side = "above" if got.value > got.target else "below"
        apart = with_unit(f"{abs(got.value - got.target):.3g}", got.unit)
        return Margin(f"{apart} {side} the target of {target}")
    limit, judged = limit_ms(record), judged_percentile(record)
    got_ms = record.result.percentiles_ms.get(judged)
    if limit is not None and got_ms is not None and limit > 0:
        used = got_ms / limit
        how = f"{percent(used)} of the limit used" if used <= 1 else f"{used:.1f} times the limit"
        return Margin(f"{judged} {ms(got_ms)} ms of {limit:,g} ms: {how}", used)
    shortest = record.settings.get("min_duration_ms")
    if record.kind == "performance" and isinstance(shortest, int | float) and shortest > 0:
        took = _measured(record)
        return Margin(f"{took}; {duration(shortest / 1000)} at least were asked") if took else None
    return None


def _measured(record: Record) -> str:
    """How long the clock ran, without start and load: by LoadGen where its figure tells, or by the driver."""
    value, answered = record.result.value or 0.0, record.driver.get("completed") or 0
    if record.scenario == "Offline" and 0 < answered < LONGEST_S * value:
        return f"{duration(answered / value)} by LoadGen's clock"
    if record.series is not None:
        return f"About {duration(len(record.series.completed) * record.series.span_s)} by the driver's clock"
    return ""


def what_limited(record: Record) -> list[str]:
    """What kept the test from more: where the latency went, late queries, the driver, the losses."""
    told = []
    answer = driver_was_the_limit(record)
    if answer is not None:
        # In Offline every sample waits from the start, so where it waited says nothing.
        if record.scenario != "Offline" and "ost latency was" not in answer.sentence:
            share = rows(record)[-1].share
            stage = max(PATH, key=lambda name: share[name])
            told.append(f"Most latency was {IN_WORDS[stage]}: {percent(share[stage])}.")
        told.append(f"Was the driver the limit? {answer.sentence}")
    if late := late_by_loadgen(record) or late_by_driver(record):
        told.append(f"{late[0].upper()}{late[1:]}.")
    elif record.course is not None:
        course = record.course
        told.append(f"{_late_queries(course)}.")
    told += [f"Behind the others: {one.words}." for one in stragglers(record)[:1]]
    return told


def _late_queries(course: Course) -> str:
    late = plural(course.late, "query") if course.late else "no query"
    told = f"By the driver's clock {late} {'were' if course.late > 1 else 'was'} late"
    if course.allowed_late is None:
        return f"{told}; a test of {plural(course.expected, 'query')} is too short to prove anything"
    return f"{told}; of {plural(course.expected, 'query')} at most {course.allowed_late:,} may be"


def comparable(record: Record) -> list[Row]:
    """The workers with samples enough to be held against each other."""
    return [row for row in rows(record)[:-1] if row.samples >= FEWEST_SAMPLES]


def stragglers(record: Record) -> list[Straggler]:
    """Workers that are behind the others in a stage, the costliest first."""
    workers = comparable(record)
    found = [one for stage in OWN_STAGES for one in _behind(workers, stage)]
    found.sort(key=lambda one: one.others_ms - one.mean_ms)
    return found[:MOST_STRAGGLERS]


def _behind(workers: Sequence[Row], stage: str) -> Iterator[Straggler]:
    whole = np.median([row.mean_ms[TOTAL] for row in workers]) if workers else 0.0
    for row in workers:
        others = [other.mean_ms[stage] for other in workers if other is not row]
        middle = float(np.median(others)) if others else float("nan")
        if row.mean_ms[stage] > BEHIND * middle and row.mean_ms[stage] - middle > NOTICED * whole:
            yield Straggler(plain(row.name), stage, row.mean_ms[stage], middle)


def losses(record: Record) -> list[Lost]:
    """The workers that were lost, in the order of their losses."""
    nodes = {worker.name: worker.node for worker in record.workers}
    return [
        Lost(plain(one.worker), plain(nodes.get(one.worker, "")), plain(one.reason), one.at_s, one.moved)
        for one in record.losses
    ]


def rules_on_settings(record: Record) -> list[Rule]:
    """The round's rules on a performance test's settings, met or not; none for a round that is not known."""
    try:
        found = load_round(record.round)
        benchmark = found.benchmark(record.benchmark)
    except (RulesError, KeyError):
        return []
    settings, asked = record.settings, []
    if record.kind == "performance":
        asked.append(("min_duration_ms", found.min_duration_ms, "≥"))
        if count := benchmark.min_query_count.get(record.scenario):
            asked.append(("min_query_count", count, "≥"))
        asked.append(("performance_sample_count_override", benchmark.performance_sample_count_min, "≥"))
        if record.scenario == "Server" and benchmark.server_target_latency_ns:
            asked.append(("server_target_latency_ns", benchmark.server_target_latency_ns, "="))
    asked += [(name, value, "=") for name, value in found.seeds.items()]
    return [
        Rule(name, _shown(settings[name]), f"{sign} {_shown(value)}", _meets(settings[name], sign, value))
        for name, value, sign in asked
        if isinstance(settings.get(name), int | float)
    ]


def _meets(value: float, sign: str, asked: float) -> bool:
    return value >= asked if sign == "≥" else value == asked


def settings_rows(record: Record) -> list[tuple[str, str]]:
    """What LoadGen was told, and how the samples travelled."""
    ways = {"payload": record.payload_mode, "security": record.security, "on_loss": record.on_loss}
    if record.index_approval:
        ways["index_approval"] = record.index_approval
    return pairs(ways | record.settings)


def system_rows(record: Record) -> list[tuple[str, str]]:
    """Hosts, devices, LoadGen, versions, hashes."""
    nodes = sorted({worker.node for worker in record.workers})
    devices = sorted({worker.device for worker in record.workers})
    models = sorted({worker.model_hash for worker in record.workers})
    known: dict[str, Any] = {
        "workers": len(record.workers),
        "hosts": ", ".join(nodes),
        "devices": ", ".join(devices),
        "model hash": ", ".join(models),
    }
    known |= {f"LoadGen {key}": value for key, value in record.loadgen.items()}
    known |= {f"hash of {key}": value for key, value in record.hashes.items()}
    return pairs(known | record.versions)


def driver_rows(record: Record) -> list[tuple[str, str]]:
    """What the driver measured of itself."""
    return pairs(record.driver)


def pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; what is not known is left out."""
    return [(plain(key), _shown(value)) for key, value in values.items() if value not in (None, "", [], {})]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        # A seed is a name, not an amount.
        return f"{value:,}" if abs(value) < 10**15 else str(value)
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_shown(one)}" for key, one in value.items() if one is not None)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = plain(text)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def also(record: Record) -> list[str]:
    """What a reader should know besides: power, late answers, workers that differ."""
    told = [power_in_words(record.power)] if record.power is not None else []
    told += [f"Workers: {text}" for text in record.worker_differences]
    if record.late_answers:
        told.append(late_answers_story(record.late_answers))
    if dropped := record.driver.get("rows_dropped"):
        told.append(f"{dropped} rows of timings are missing in the figures")
    return told


def headline(run: Run) -> str:
    """A run in one line."""
    good = sum(found.good for found in run.verdicts)
    official = sum(record.official and not proof.doubts for record, proof in run.proven)
    # A test that a rerun replaced left a folder without a record beside its record.
    ended = {record.test for record in run.records}
    half = {name for one in run.unfinished if (name := one.partition(".partial")[0]) not in ended}
    count = len(run.records) + len(half) + len(run.never_ran)
    never = f"; {_named(run.never_ran)} never ran" if run.never_ran else ""
    return f"{good} of {plural(count, 'test')} good, {official or 'none'} official{never}"


def _named(tests: Sequence[str]) -> str:
    return ", ".join(tests) if len(tests) <= MOST_NAMED else plural(len(tests), "test")
