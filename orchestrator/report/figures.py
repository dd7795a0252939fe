"""The figures of one test: where its latencies lie, how it went over time, what each worker and stage did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from orchestrator.journey import PATH, TOTAL, Row, merged_histogram, rows
from orchestrator.phrases import (
    duration,
    judged_percentile,
    late_by_loadgen,
    limit_ms,
    ms,
    percent,
    plural,
    rate,
    result,
    result_name,
)
from orchestrator.record import Record, SeriesRecord
from orchestrator.report.drawing import COLOUR, Picture, draw, number_axes
from orchestrator.report.runs import plain
from orchestrator.timings import PER_OCTAVE, bucket_edges_ns, percentile_ns

STAGE_COLOUR = dict(zip(PATH, (COLOUR[f"c{i}"] for i in range(len(PATH))), strict=True))
MOST_WORKERS = 16  # a figure of more is not read any more; the table and the CSV have them all
MOST_LOSSES = 20
NAME_LENGTH = 18
TIME = "seconds since the start"
ROW_HEIGHT = 22
MANY, MOST_BARS = 5000, 90
CROSSED = 0.95
OWN = "The driver's own timings, in buckets of 4.4 %; LoadGen's log is the result."


def figures(record: Record) -> Iterator[Picture]:
    """All that the record can tell in pictures."""
    found = rows(record)
    if not found:
        return
    yield distribution(record)
    yield percentiles(record)
    if record.series is not None:
        yield latency_over_time(record, record.series)
        yield throughput_over_time(record, record.series)
    lost = frozenset(one.worker for one in record.losses)
    yield stages(found, lost)
    if len(found) > 2:
        yield worker_latencies(record, found, lost)
    if record.series is not None:
        yield in_flight(record.series)


def distribution(record: Record) -> Picture:
    """How many samples took how long."""
    histogram, limit = merged_histogram(record.workers, TOTAL), limit_ms(record)
    filled = np.flatnonzero(histogram)
    first, last = int(filled[0]), int(filled[-1])
    # Few samples, or many buckets: bars of several buckets each, which can still be told apart.
    few = histogram.sum() < MANY or last - first >= MOST_BARS
    each = max(2, -(-(last - first) // MOST_BARS)) if few else 1
    starts = np.arange(first, last + 1, each)
    lower = bucket_edges_ns()[starts] / 1e6 * 2 ** (-1 / PER_OCTAVE)
    edges = lower * 2 ** (each / PER_OCTAVE)
    share = 100 * np.add.reduceat(histogram[: last + 1], starts) / histogram.sum()
    late = np.zeros(len(edges), bool) if limit is None else lower >= limit

    def paint(axes: Axes) -> None:
        for which, colour in ((~late, "accent"), (late, "bad")):
            axes.bar(lower[which], share[which], (edges - lower)[which], align="edge", color=COLOUR[colour])
        _pad(axes, lower[0], max(edges[-1], limit or 0))
        number_axes(axes, "latency, ms", "samples, %", log="x")
        _limit_line(axes, limit, vertical=True)

    got = {p: percentile_ns(histogram, p) / 1e6 for p in (0.5, 0.9, 0.99)}
    told = ", ".join(f"p{100 * p:g} {ms(value)} ms" for p, value in got.items())
    beyond = f" {_beyond(record, histogram)}" if limit is not None else ""
    words = f"{plural(int(histogram.sum()), 'sample')}: {told}.{beyond} {OWN}"
    return draw("Latency distribution", words, paint)


def _beyond(record: Record, histogram: np.ndarray) -> str:
    limit, total = limit_ms(record) or 0.0, int(histogram.sum())
    if record.series is not None:
        late, about = sum(record.series.over_limit), ""
    else:
        lower = bucket_edges_ns() * 2 ** (-1 / PER_OCTAVE)
        late, about = int(histogram[lower >= limit * 1e6].sum()), "About "
    share = f" ({_small(late / total)})" if late else ""
    how_many = plural(late, "sample") if late else "None"
    told = f"{about}{how_many} took longer than {limit:,g} ms from issue{share}"
    # A query that was issued late is later for LoadGen, and its count is the verdict's.
    counted = late_by_loadgen(record)
    return f"{told}. From the scheduled time {counted}." if counted else f"{told}."


def _small(share: float) -> str:
    return f"{100 * share:.3g} %"


def percentiles(record: Record) -> Picture:
    """Latency by percentile, the tail drawn out."""
    histogram, limit = merged_histogram(record.workers, TOTAL), limit_ms(record)
    x, y = percentile_curve(histogram)
    slowest = 1 / histogram.sum()
    judged, own_ms = judged_percentile(record), _own_percentile_ms(record)
    marks = [p for p in (50.0, 90.0, 99.0, 99.9, 99.99, 99.999) if 1 - p / 100 >= slowest]

    def paint(axes: Axes) -> None:
        axes.step(x, y, where="pre", color=COLOUR["accent"], linewidth=1.8)
        number_axes(axes, "percentile", "latency, ms", log="xy" if y[-1] > 20 * y[0] else "x")
        axes.invert_xaxis()
        axes.xaxis.set_major_locator(FixedLocator([1 - p / 100 for p in marks]))
        axes.xaxis.set_major_formatter(FixedFormatter([f"p{p:g}" for p in marks]))
        axes.xaxis.set_minor_locator(NullLocator())
        # Its words stand at the left, unless the curve crosses the limit there.
        _limit_line(axes, limit, at_end=limit is not None and percentile_ns(histogram, CROSSED) / 1e6 > limit)
        if judged:
            at = 1 - float(judged[1:]) / 100
            axes.axvline(at, color=COLOUR["soft"], linestyle=":", linewidth=1)
            if own_ms is not None:
                axes.plot([at], [own_ms], "D", color=COLOUR["c1"], markersize=6)

    words = f"The slowest answer took {ms(float(y[-1]))} ms. {_judged_in_words(record, own_ms)}"
    return draw("Latency by percentile", words, paint)


def _own_percentile_ms(record: Record) -> float | None:
    """What LoadGen itself found at the percentile that it judges by or reports, if that is a latency."""
    if record.status != "finished":
        return None
    if record.scenario == "Server":
        return record.result.percentiles_ms.get(judged_percentile(record))
    return record.result.value if record.result.unit == "ms" else None


def _judged_in_words(record: Record, own_ms: float | None) -> str:
    judged = judged_percentile(record)
    if not judged:
        return "No percentile is judged."
    if record.scenario == "Server":
        own = "" if own_ms is None else f"; the diamond is LoadGen's own {judged}, {ms(own_ms)} ms"
        return f"The dotted line is {judged}, which LoadGen judges by{own}."
    if record.result.unit == "samples":
        return f"The dotted line is {judged}, where LoadGen looks at the ticks that a query took."
    if own_ms is None:
        return f"The dotted line is {judged}, which LoadGen reports."
    own = f"{ms(own_ms)} ms, {result_name(record)}"
    return f"The dotted line is {judged}; the diamond is LoadGen's result: {own}."


def percentile_curve(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of samples that took longer, falling, and latencies in ms: y[i] from x[i - 1] down to x[i]."""
    filled = np.flatnonzero(histogram)
    above = 1 - np.cumsum(histogram)[filled] / histogram.sum()
    # On a logarithmic axis the slowest sample needs a place that is not zero.
    x = np.append(1.0, np.maximum(above, 0.5 / histogram.sum()))
    y = bucket_edges_ns()[filled] / 1e6
    return x, np.append(y[0], y)


def latency_over_time(record: Record, series: SeriesRecord) -> Picture:
    """p50 and p99 of each span of the test, with the limit and the losses."""
    limit, at = limit_ms(record), _times(series)

    def paint(axes: Axes) -> None:
        for name, values, colour in (("p99", series.p99_ms, "c1"), ("p50", series.p50_ms, "accent")):
            axes.plot(at, _numbers(values), color=COLOUR[colour], linewidth=1.3, label=name)
        known = [v for v in (*series.p99_ms, *series.p50_ms) if v]
        wide = bool(known) and max(*known, limit or 0) > 20 * min(known)
        number_axes(axes, TIME, "latency, ms", log="y" if wide else "")
        _limit_line(axes, limit)  # before the scale is fixed: the limit shall be seen, however far it is
        if not wide:
            axes.set_ylim(bottom=0)
        _loss_lines(axes, record)
        _legend(axes)

    worst = max(((v, t) for v, t in zip(series.p99_ms, at, strict=True) if v is not None), default=None)
    told = "" if worst is None else f"The worst: p99 of {ms(worst[0])} ms at {duration(float(worst[1]))}."
    span = f"Spans of {series.span_s:g} s, by when they were answered."
    return draw("Latency over time", f"{told} {span}".strip(), paint)


def throughput_over_time(record: Record, series: SeriesRecord) -> Picture:
    """Samples asked and answered a second."""
    at = _times(series)
    answered, asked = (np.array(counts) / series.span_s for counts in (series.completed, series.issued))
    offline = record.scenario == "Offline"  # asks all at once, which would be one spike

    def paint(axes: Axes) -> None:
        if not offline:
            axes.plot(at, asked, color=COLOUR["soft"], linewidth=1, label="asked")
        axes.plot(at, answered, color=COLOUR["accent"], linewidth=1.4, label="answered")
        axes.fill_between(at, answered, color=COLOUR["accent"], alpha=0.12, linewidth=0)
        number_axes(axes, TIME, "samples/s")
        axes.set_ylim(bottom=0)
        _loss_lines(axes, record)
        _legend(axes)

    inner = answered[1:-1] if len(answered) > 2 else answered  # the first and the last span are not full
    mean, least = rate(float(inner.mean())), rate(float(inner.min()))
    told = f"{mean} samples/s answered on average, {least} in the slowest span"
    cut = ", without the first and the last span, which are not full" if len(answered) > 2 else ""
    by_loadgen = f" LoadGen's result: {result(record)}." if "/s" in record.result.unit else ""
    return draw("Throughput over time", f"{told}{cut}.{by_loadgen}", paint)


def in_flight(series: SeriesRecord) -> Picture:
    """Samples that were asked and not yet answered."""
    at = _times(series)

    def paint(axes: Axes) -> None:
        axes.fill_between(at, series.in_flight, color=COLOUR["c2"], alpha=0.25, linewidth=0)
        axes.plot(at, series.in_flight, color=COLOUR["c2"], linewidth=1.3)
        number_axes(axes, TIME, "samples in flight")
        axes.set_ylim(bottom=0)

    words = (
        f"{max(series.in_flight):,} at most, {series.in_flight[len(at) // 2]:,} in the middle of the test."
    )
    return draw("In flight", f"{words} At the end of each span, of those that were answered.", paint)


def stages(found: Sequence[Row], lost: frozenset[str]) -> Picture:
    """Each worker's mean time by stage, as stacked bars."""
    shown, hidden = _shown(found, lost)

    def paint(axes: Axes) -> None:
        left = np.zeros(len(shown))
        for stage in PATH:
            width = np.nan_to_num([row.mean_ms[stage] for row in shown])
            axes.barh(
                range(len(shown)), width, 0.62, left, color=STAGE_COLOUR[stage], label=stage.replace("_", " ")
            )
            left += width
        number_axes(axes, "mean, ms per sample", "")
        _name_rows(axes, shown, lost)
        axes.figure.legend(loc="outside upper center", ncols=len(PATH), columnspacing=0.9)

    words = "; ".join(f"{stage.replace('_', ' ')} {percent(found[-1].share[stage])}" for stage in PATH)
    return draw("Where the time went", f"All workers: {words}.{hidden}", paint, _height(shown))


def worker_latencies(record: Record, found: Sequence[Row], lost: frozenset[str]) -> Picture:
    """Mean and p99 of each worker's latency, side by side."""
    shown, hidden = _shown(found, lost)
    limit = limit_ms(record)
    means, worst = [r.mean_ms[TOTAL] for r in shown], [r.p99_ms[TOTAL] for r in shown]

    def paint(axes: Axes) -> None:
        places = range(len(shown))
        axes.hlines(places, means, worst, color=COLOUR["line"], linewidth=4)
        axes.plot(means, places, "o", color=COLOUR["accent"], markersize=6, label="mean")
        axes.plot(worst, places, "o", color=COLOUR["c1"], markersize=6, label="p99")
        number_axes(axes, "latency, ms", "")
        _name_rows(axes, shown, lost)
        near = limit is not None and limit < 4 * max(worst)
        axes.set_xlim(0, 1.06 * max(*worst, *means, limit if near and limit else 0))
        if near:
            _limit_line(axes, limit, vertical=True)
        axes.figure.legend(loc="outside upper center", ncols=2)

    slowest = max(found[:-1], key=lambda row: row.p99_ms[TOTAL])
    words = f"The highest p99 is that of {plain(slowest.name)}: {ms(slowest.p99_ms[TOTAL])} ms.{hidden}"
    return draw("Latency by worker", words, paint, _height(shown))


def _shown(found: Sequence[Row], lost: frozenset[str]) -> tuple[list[Row], str]:
    """The workers of a figure, the lost and then the slowest on top, and a word on those that it lacks."""
    order = sorted(found[:-1], key=lambda row: (row.name in lost, row.p99_ms[TOTAL]))
    hidden, first = len(order) - MOST_WORKERS, "The lost and the slowest" if lost else "The slowest"
    said = f" {first}: {MOST_WORKERS}; {plural(hidden, 'more worker')} in the table." if hidden > 0 else ""
    return order[-MOST_WORKERS:], said


def _height(shown: Sequence[Row]) -> int:
    return max(90 + ROW_HEIGHT * len(shown), 150)


def _short(name: str) -> str:
    name = plain(name)
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _name_rows(axes: Axes, shown: Sequence[Row], lost: frozenset[str]) -> None:
    names = [_short(row.name) + (" (lost)" if row.name in lost else "") for row in shown]
    for row, label in zip(shown, axes.set_yticks(range(len(names)), names), strict=True):
        if row.name in lost:
            label.label1.set_color(COLOUR["warn"])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")


def _times(series: SeriesRecord) -> np.ndarray:
    return (np.arange(len(series.issued)) + 0.5) * series.span_s


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _pad(axes: Axes, low: float, high: float) -> None:
    axes.set_xlim(low / 1.15, high * 1.15)


def _limit_line(axes: Axes, limit: float | None, vertical: bool = False, at_end: bool = False) -> None:
    if limit is None:
        return
    line, labelled = axes.axvline if vertical else axes.axhline, axes.get_xlabel() != TIME
    words = f"limit {limit:,g} ms"
    # Over time the legend has it, elsewhere the line's end.
    line(limit, color=COLOUR["bad"], linewidth=1.6, linestyle="--", label=None if labelled else words)
    if labelled:
        place, at, side = axes.get_yaxis_transform(), (float(at_end), limit), "right" if at_end else "left"
        if vertical:
            place, at, side = axes.get_xaxis_transform(), (limit, 1.0), "center"
        axes.annotate(
            words, at, (-2 if at_end else 2, 4), xycoords=place, textcoords="offset points",
            color=COLOUR["bad"], ha=side, va="bottom", annotation_clip=False,
        )  # fmt: skip


def _loss_lines(axes: Axes, record: Record) -> None:
    """A line where each worker was lost; the first one's words stand for all in the legend."""
    timed = [one for one in record.losses if one.at_s is not None and one.at_s >= 0]
    who = _short(timed[0].worker) if len(timed) == 1 else plural(len(timed), "worker")
    for n, one in enumerate(timed[:MOST_LOSSES]):
        words = f"{who} lost" if n == 0 else None
        axes.axvline(one.at_s or 0.0, color=COLOUR["warn"], linewidth=1.2, linestyle=(0, (4, 2)), label=words)


def _legend(axes: Axes) -> None:
    axes.figure.legend(loc="outside upper center", ncols=4)
