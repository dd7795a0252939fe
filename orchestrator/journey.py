"""Where the latency went, and whether the driver was the limit: read from a record. Pure.

Histograms of several workers are added, so a merged percentile is one of all samples, not a mean of
percentiles. They are the driver's own, bucketed to 4.4 %: they explain a result, LoadGen's log is the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.pauses import NO_PROCESSOR, PAUSE_MS, STOOD_STILL
from orchestrator.phrases import ms, percent, plural
from orchestrator.record import Record, WorkerRecord
from orchestrator.timings import BUCKETS, mean_ns, percentile_ns

PATH = ("driver_queue", "wire", "worker_queue", "compute", "return")
TOTAL = "latency"
IN_WORDS = {
    "driver_queue": "waiting in the driver until a worker had room",
    "wire": "the wire to the workers",
    "worker_queue": "waiting in the worker",
    "compute": "compute",
    "return": "the way back",
}
# A thread of Python has one core at most; above this share the dispatcher may be what limits.
BUSY_CPU = 0.9
# Lateness that takes this part of the latency limit is the driver's fault, whatever the workers did.
LATE_SHARE = 0.1
# Workers that compute less than this share of an Offline test were not fed.
FED = 0.8
ON_THE_WAY_SHARE = 0.5
# So long a standstill makes 1 % of the queries late by itself, and of those the p99 of the lateness tells.
STILL_SHARE = 0.01
RULES = {
    "Server": "yes when 1 % of the queries or more are issued late by a tenth of the limit (perhaps, if "
    "LoadGen's host stood still for 1 % of the time); perhaps when the test process uses 90 % of a core, or "
    "when the limit is missed by waiting in the driver while the workers compute less than 80 % of the time",
    "Offline": "no when the workers compute 80 % of the time; below that yes when the test process uses 90 % "
    "of a core, else perhaps",
    "SingleStream": "yes when half of the latency or more arises on the way: driver queue, wire, return",
    "MultiStream": "yes when half of the latency or more arises on the way: wire, return; what is in the "
    "driver's queue waits for a worker",
}
# With one sample at a time nothing waits in the driver but for the driver itself.
ON_THE_WAY = {"SingleStream": ("driver_queue", "wire", "return"), "MultiStream": ("wire", "return")}
LOCAL_RULE = "with workers in the test process its CPU share says nothing about the driver alone"


@dataclass(frozen=True)
class Row:
    """One worker's samples, or all: mean and p99 in ms by stage, and each stage's share of the mean."""

    name: str
    samples: int
    batch: float | None
    mean_ms: dict[str, float]
    p99_ms: dict[str, float]
    share: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """Was the driver the limit? `word` is yes, no, perhaps or unknown; `rule` says how that was decided."""

    word: str
    sentence: str
    rule: str


def rows(record: Record) -> list[Row]:
    """The workers that answered anything, and all of them merged as the last row."""
    active = [worker for worker in record.workers if worker.samples]
    return [_row(worker.name, [worker]) for worker in active] + ([_row("all", active)] if active else [])


def _row(name: str, workers: Sequence[WorkerRecord]) -> Row:
    merged = {stage: merged_histogram(workers, stage) for stage in (*PATH, TOTAL)}
    mean = {stage: mean_ns(histogram) / 1e6 for stage, histogram in merged.items()}
    p99 = {stage: percentile_ns(histogram, 0.99) / 1e6 for stage, histogram in merged.items()}
    # Of the sum of the stages, not of the measured total: so the shares add up to 1 in spite of the buckets.
    whole = sum(mean[stage] for stage in PATH if mean[stage] == mean[stage])
    share = {stage: mean[stage] / whole if whole and mean[stage] == mean[stage] else 0.0 for stage in PATH}
    batches = sum(worker.batches for worker in workers)
    in_batches = sum((worker.mean_batch_size or 0) * worker.batches for worker in workers)
    samples = sum(worker.samples for worker in workers)
    return Row(name, samples, in_batches / batches if batches else None, mean, p99, share)


def merged_histogram(workers: Sequence[WorkerRecord], stage: str) -> np.ndarray:
    """A stage of several workers, their histograms added: (BUCKETS,)."""
    histogram = np.zeros(BUCKETS, np.int64)
    for worker in workers:
        for bucket, count in worker.stages.get(stage, {}).get("histogram", {}).items():
            histogram[int(bucket)] += count
    return histogram


def computing_share(record: Record) -> float | None:
    """The share of the test in which a worker computed, on average over the workers; None if not known.

    Records from before `answering_s` counted batches that overlap in full: theirs is not known.
    """
    span_s = record.driver.get("answering_s")
    if not span_s or not record.workers:
        return None
    return min(sum(worker.busy_s for worker in record.workers) / (span_s * len(record.workers)), 1.0)


def idle_and_tail(record: Record) -> tuple[float, float] | None:
    """(idle, tail) of the worst worker, as shares of the time from the first issue to the last answer.

    None where not every answer's times were kept.
    """
    span_s = record.driver.get("answering_s")
    if not span_s or record.driver.get("rows_dropped"):
        return None
    idle = max(1.0 - worker.busy_s / span_s for worker in record.workers)
    # Who answered nothing stood idle all the time.
    tail = max(span_s if worker.tail_s is None else worker.tail_s for worker in record.workers) / span_s
    return max(idle, 0.0), tail


def driver_was_the_limit(record: Record) -> Answer | None:
    """The answer for a performance test that ended; None for all others."""
    if record.kind != "performance" or record.status != "finished" or not record.workers:
        return None
    merged = rows(record)
    if not merged:
        return None
    decide = {"Server": _server, "Offline": _offline}.get(record.scenario, _stream)
    answer = decide(record, merged[-1])
    # Records from before 23 November 2026 do not know.
    told = pauses_in_words(record.driver.get("pauses"))
    return replace(answer, sentence=f"{answer.sentence} {told}") if told else answer


def pauses_in_words(seen: dict[str, Any] | None) -> str:
    """Sentences about the pauses of LoadGen's host, as pauses_between tells them; "" if there were none."""
    told = []
    for kind, what in ((STOOD_STILL, "stood still"), (NO_PROCESSOR, "had no processor free")):
        if seen and (of_kind := seen[kind])["count"]:
            times, longest = plural(of_kind["count"], "time"), ms(of_kind["longest_ms"])
            told.append(
                f"LoadGen's host {what} for {PAUSE_MS:g} ms or more at least {times}: "
                f"{ms(of_kind['sum_ms'])} ms in all, {longest} the longest."
            )
    return " ".join(told)


def _still_share(record: Record) -> float:
    """For what share of the test LoadGen's host stood still."""
    seen, span_s = record.driver.get("pauses"), record.driver.get("answering_s")
    return float(seen[STOOD_STILL]["sum_ms"]) / (1e3 * span_s) if seen and span_s else 0.0


def _cpu(record: Record) -> float | None:
    """CPU share of the test process, None when it says nothing about the driver."""
    share = record.driver.get("cpu_share")
    return None if record.security == "in-process" or share is None else float(share)


def _used(record: Record) -> str:
    share = record.driver.get("cpu_share")
    if share is None:
        return "its CPU share could not be measured (too short a test)"
    whose = "with its workers " if record.security == "in-process" else ""
    return f"the test process {whose}used {percent(share)} of a core"


def _server(record: Record, merged: Row) -> Answer:
    limit = record.settings["server_target_latency_ns"] / 1e6
    late, cpu, rule = record.driver.get("issue_lateness"), _cpu(record), RULES["Server"]
    if record.security == "in-process":
        rule = f"{rule}; {LOCAL_RULE}"
    if late is None:
        return Answer("unknown", f"Cannot tell: no query was logged as issued; {_used(record)}.", rule)
    part = late["p99_ms"] / limit
    behind = f"{ms(late['p99_ms'])} ms"
    if part >= LATE_SHARE:
        told = f"1 % of the queries were issued {behind} or more behind LoadGen's schedule"
        word = "perhaps" if _still_share(record) >= STILL_SHARE else "yes"
        told = f"{word.capitalize()}: {told}, which is {percent(part)} of the limit; {_used(record)}."
        return Answer(word, told, rule)
    issued = f"99 % of the queries were issued within {behind} of LoadGen's schedule"
    issued = f"{issued} ({percent(part)} of the limit)"
    if cpu is not None and cpu >= BUSY_CPU:
        return Answer("perhaps", f"Perhaps: {_used(record)}, although {issued}.", rule)
    where, busy = max(PATH, key=lambda stage: merged.share[stage]), computing_share(record)
    most = f"Most latency was {IN_WORDS[where]} ({percent(merged.share[where])})"
    if where == "driver_queue" and busy is not None:
        computed = f"the workers computed {percent(busy)} of the time"
        if busy < FED and record.result.percentiles_ms.get("p99", 0.0) > limit:
            return Answer("perhaps", f"Perhaps: {most[0].lower()}{most[1:]}, while {computed} only.", rule)
        most = f"{most}; {computed}"
    return Answer("no", f"No: {_used(record)}, and {issued}. {most}.", rule)


def _offline(record: Record, merged: Row) -> Answer:
    busy, cpu, rule = computing_share(record), _cpu(record), RULES["Offline"]
    if record.security == "in-process":
        rule = f"{rule}; {LOCAL_RULE}"
    if busy is None:
        told = "how long the workers computed is not in the record"
        return Answer("unknown", f"Cannot tell: {told}; {_used(record)}.", rule)
    computed = f"the workers computed {percent(busy)} of the time"
    if busy >= FED:
        return Answer("no", f"No: {computed}, so they were the limit; {_used(record)}.", rule)
    if cpu is not None and cpu >= BUSY_CPU:
        return Answer("yes", f"Yes: {computed} only, and {_used(record)}.", rule)
    rest = "the rest went to the wire, to the workers' own Python, or to the driver"
    return Answer("perhaps", f"Perhaps: {computed} only; {rest} ({_used(record)}).", rule)


def _stream(record: Record, merged: Row) -> Answer:
    way = ON_THE_WAY[record.scenario]
    share, cost = (sum(values[stage] for stage in way) for values in (merged.share, merged.mean_ms))
    names = ", ".join(stage.replace("_", " ") for stage in way)
    told = (
        f"{percent(share)} of the latency arose on the way ({names}), {ms(cost)} ms of "
        f"{ms(merged.mean_ms[TOTAL])} ms per sample"
    )
    word = "yes" if share >= ON_THE_WAY_SHARE else "no"
    return Answer(word, f"{word.capitalize()}: {told}; {_used(record)}.", RULES[record.scenario])
