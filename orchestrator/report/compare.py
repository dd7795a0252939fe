"""Several runs of the same test side by side: how they differ, and whether they may be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from orchestrator.journey import PATH, TOTAL, computing_share, merged_histogram, rows
from orchestrator.phrases import limit_ms, plural
from orchestrator.record import Record
from orchestrator.report.drawing import COLOUR, Picture, draw, number_axes
from orchestrator.report.facts import pairs
from orchestrator.report.proof import Proof, verdict_of
from orchestrator.report.runs import Run, plain
from orchestrator.timings import bucket_edges_ns

MOST_LINES = 8
STYLES = {"green": "good", "yellow": "fair"}  # a verdict's colour as a class of the page; else "bad"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Quantity:
    """A quantity in every run; `spread` is (largest - smallest) / mean of those whose test is good.

    It is None where there are not two.
    """

    name: str
    values: tuple[float | None, ...]
    spread: float | None

    @property
    def shown(self) -> list[tuple[str, str]]:
        """For each run its value, and how it differs from the first run's."""
        first = self.values[0]
        return [
            (_number(value), "" if n == 0 else _change(first, value)) for n, value in enumerate(self.values)
        ]

    @property
    def spread_shown(self) -> str:
        """In percent."""
        return "–" if self.spread is None else f"{100 * round(self.spread, 6):.3g} %"


@dataclass(frozen=True)
class Judged:
    """One test of one run: its verdict's word and colour, and whether it is official."""

    word: str
    style: str
    official: bool


@dataclass(frozen=True)
class Comparison:
    """One test in several runs: `letters` of the runs that have it, and why their figures do not compare."""

    test: str
    letters: tuple[str, ...]
    judged: tuple[Judged, ...]
    quantities: tuple[Quantity, ...]
    not_comparable: tuple[str, ...]
    remarks: tuple[str, ...]
    pictures: tuple[Picture, ...]


def letter(number: int) -> str:
    """A, B, ..., Z, A2, B2, ...: how a run is called in tables and figures."""
    turn, at = divmod(number, len(LETTERS))
    return LETTERS[at] + (str(turn + 1) if turn else "")


def compare(runs: Sequence[Run], pictures: bool = True) -> list[Comparison]:
    """Every test that two runs or more have; with figures unless `pictures` is false."""
    names = dict.fromkeys(record.test for run in runs for record in run.records)
    found = []
    for name in names:
        have = [
            (letter(n), record, proof)
            for n, run in enumerate(runs)
            for record, proof in run.proven
            if record.test == name
        ]
        if len(have) > 1:
            found.append(_one(name, have, pictures))
    return found


def _one(name: str, have: Sequence[tuple[str, Record, Proof]], pictures: bool) -> Comparison:
    letters, records = [mark for mark, _, _ in have], [record for _, record, _ in have]
    verdicts = [verdict_of(record, proof) for _, record, proof in have]
    judged = tuple(
        Judged(found.word, STYLES.get(found.style, "bad"), record.official and not proof.doubts)
        for found, (_, record, proof) in zip(verdicts, have, strict=True)
    )
    # An accuracy that missed its target is an accuracy all the same.
    counted = [
        found.good or (record.kind == "accuracy" and found.word == "MISSED")
        for found, record in zip(verdicts, records, strict=True)
    ]
    quantities = [
        _quantity(what, [get(record) for record in records], counted) for what, get in _quantities(records)
    ]
    shown = tuple(q for q in quantities if any(value is not None for value in q.values))
    hard, soft = _differences(letters, records)
    drawn = tuple(_pictures(letters, records)) if pictures else ()
    return Comparison(plain(name), tuple(letters), judged, shown, tuple(hard), tuple(soft), drawn)


def _quantity(name: str, values: list[float | None], counted: Sequence[bool]) -> Quantity:
    clean = tuple(value if value is not None and np.isfinite(value) else None for value in values)
    known = [value for value, counts in zip(clean, counted, strict=True) if counts and value is not None]
    middle = mean(known) if known else 0.0
    spread = (max(known) - min(known)) / abs(middle) if len(known) > 1 and middle else None
    return Quantity(name, clean, spread)


Getter = Callable[[Record], float | None]


def _quantities(records: Sequence[Record]) -> Iterator[tuple[str, Getter]]:
    """Name and value of what is compared; a unit stands last in the name."""
    unit = next((r.result.unit for r in records if r.result.unit), "")
    if any(record.kind == "accuracy" for record in records):
        yield "accuracy", lambda r: r.accuracy.value if r.accuracy else None
    else:
        yield f"result, {unit}", lambda r: r.result.value
    for name in dict.fromkeys(p for record in records for p in record.result.percentiles_ms):
        yield f"{name}, ms", _percentile(name)
    yield "over the limit by LoadGen, queries", lambda r: r.result.overlatency_queries
    yield (
        "over the limit by the driver's clock (from issue), samples",
        lambda r: sum(r.series.over_limit) if r.series and limit_ms(r) is not None else None,
    )
    for stage in (*PATH, TOTAL):
        yield f"mean {stage.replace('_', ' ')}, ms", _stage(stage)
    yield "mean batch, samples", lambda r: found[-1].batch if (found := rows(r)) else None
    yield "workers computing, %", lambda r: None if (s := computing_share(r)) is None else 100 * s
    yield "driver's CPU, % of a core", _driver_cpu
    yield "samples answered", lambda r: r.driver.get("completed")
    yield "workers", lambda r: len(r.workers)
    yield "losses", lambda r: len(r.losses)
    yield "power, W", lambda r: r.power.average_w if r.power else None
    yield "wall time, s", lambda r: r.wall_s


def _percentile(name: str) -> Getter:
    return lambda record: record.result.percentiles_ms.get(name)


def _stage(stage: str) -> Getter:
    return lambda record: found[-1].mean_ms[stage] if (found := rows(record)) else None


def _driver_cpu(record: Record) -> float | None:
    share = record.driver.get("cpu_share")
    return 100 * share if isinstance(share, int | float) else None


def _differences(letters: Sequence[str], records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """What makes the figures those of different things, and what else is not the same."""
    hard: dict[str, list[Any]] = {
        what: [getattr(record, what) for record in records]
        for what in (
            "round",
            "suite",
            "division",
            "benchmark",
            "scenario",
            "payload_mode",
            "security",
            "on_loss",
        )
    }
    hard["model hash"] = [", ".join(sorted({w.model_hash for w in r.workers})) for r in records]
    hard["LoadGen"] = [r.loadgen.get("version") for r in records]
    hard["LoadGen's file"] = [r.loadgen.get("file") for r in records]
    hard["LoadGen's sha256"] = [r.loadgen.get("sha256") for r in records]
    hard["data set's hash"] = [r.hashes.get("library") for r in records]
    for key in dict.fromkeys(key for record in records for key in record.settings):
        hard[f"setting {key}"] = [record.settings.get(key) for record in records]
    soft: dict[str, list[Any]] = {
        "status": [r.status for r in records],
        "devices": [", ".join(sorted({w.device for w in r.workers})) for r in records],
        "number of workers": [len(r.workers) for r in records],
        "largest batch": [_largest_batches(r) for r in records],
    }
    for key in dict.fromkeys(key for record in records for key in record.versions):
        soft[key] = [record.versions.get(key) for record in records]
    return _told(letters, hard), _told(letters, soft)


def _largest_batches(record: Record) -> str:
    sizes = {str(worker.facts["max_batch"]) for worker in record.workers if "max_batch" in worker.facts}
    return ", ".join(sorted(sizes))


def _told(letters: Sequence[str], known: dict[str, list[Any]]) -> list[str]:
    told = []
    for what, values in known.items():
        if any(value != values[0] for value in values):
            each = [
                dict(pairs({mark: value})).get(mark, "none")
                for mark, value in zip(letters, values, strict=True)
            ]
            told.append(
                f"{plain(what)}: " + ", ".join(f"{m} {v}" for m, v in zip(letters, each, strict=True))
            )
    return told


def _pictures(letters: Sequence[str], records: Sequence[Record]) -> Iterator[Picture]:
    drawn = [(m, r) for m, r in zip(letters, records, strict=True) if rows(r)][:MOST_LINES]
    if len(drawn) < 2 or any(r.kind == "accuracy" for _, r in drawn):
        return
    hidden = len(records) - len(drawn)
    more = f" {plural(hidden, 'more run')} in the table." if hidden else ""
    yield _shares(drawn, more)
    timed = [(mark, record) for mark, record in drawn if record.series is not None]
    if len(timed) > 1:
        yield _over_time(timed, more)


def _shares(drawn: Sequence[tuple[str, Record]], more: str) -> Picture:
    """The share of samples answered within a time, run by run."""
    edges = bucket_edges_ns() / 1e6

    def paint(axes: Axes) -> None:
        for n, (mark, record) in enumerate(drawn):
            histogram = merged_histogram(record.workers, TOTAL)
            last = np.flatnonzero(histogram)[[0, -1]]
            at = slice(max(int(last[0]) - 1, 0), int(last[1]) + 1)
            share = 100 * np.cumsum(histogram) / histogram.sum()
            axes.step(edges[at], share[at], where="post", color=COLOUR[f"c{n}"], linewidth=1.6, label=mark)
        number_axes(axes, "latency, ms", "samples answered within, %", log="x")
        axes.figure.legend(loc="outside upper center", ncols=MOST_LINES)

    return draw("Latency, all runs", f"Further left is faster.{more}", paint)


def _over_time(timed: Sequence[tuple[str, Record]], more: str) -> Picture:
    """Throughput over time, run by run."""

    def paint(axes: Axes) -> None:
        for n, (mark, record) in enumerate(timed):
            series = record.series
            assert series is not None
            at = (np.arange(len(series.completed)) + 0.5) * series.span_s
            counts = np.array(series.completed) / series.span_s
            axes.plot(at, counts, color=COLOUR[f"c{n}"], linewidth=1.3, label=mark)
        number_axes(axes, "seconds since the start", "samples/s")
        axes.set_ylim(bottom=0)
        axes.figure.legend(loc="outside upper center", ncols=MOST_LINES)

    return draw("Throughput over time, all runs", f"Answered samples a second.{more}", paint)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def _change(first: float | None, value: float | None) -> str:
    if first is None or value is None or first == 0:
        return ""
    change = value / first - 1
    return "the same" if change == 0 else f"{100 * change:+.1f} %"
