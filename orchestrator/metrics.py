"""Every metric that LoadGrid serves to Prometheus, by name, and how each is read from a running test.

Nothing here touches the measured loop: a scrape reads the board, which the test writes anyway. Histograms are
merged over all workers; what is told of each worker are counters, of MOST_WORKERS at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from orchestrator.course import WORDS, Course
from orchestrator.plan import TestSpec
from orchestrator.timings import STAGES, Board, bucket_edges_ns, mean_ns

PREFIX = "loadgrid"
STATES = ("idle", "preparing", "attaching", "loading", "running", "reading")
# Workers beyond so many are told of as one, named REST: the label's values stay bounded.
MOST_WORKERS = 256
REST = "others"
# Bucket edges: parts of the round's limit where it has one, and powers of 4 from 16 us to 268 s.
LIMIT_PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
WIDE_EDGES_S = tuple(16e-6 * 4**power for power in range(13))


class Name(NamedTuple):
    """A metric's kind, meaning and labels; `run` and `test` labels stand at run_info alone."""

    kind: Any
    meaning: str
    labels: tuple[str, ...] = ()


_WORKER = ("worker",)
# Prometheus adds _total to counters. Times are in seconds, as its own rules want.
NAMES: dict[str, Name] = {
    "run_info": Name(
        GaugeMetricFamily,
        "1, with the names of what runs",
        ("run", "test", "round", "suite", "division", "benchmark", "scenario", "mode"),
    ),
    "state": Name(GaugeMetricFamily, "1 for what the run is doing now, else 0", ("state",)),
    "tests_done": Name(GaugeMetricFamily, "tests of the run that have ended"),
    "tests_planned": Name(GaugeMetricFamily, "tests of the run"),
    "test_elapsed_seconds": Name(GaugeMetricFamily, "since the clock of the test started"),
    "test_left_seconds": Name(GaugeMetricFamily, "about how long the test will go on; absent while unknown"),
    "samples_issued": Name(CounterMetricFamily, "samples that LoadGen has asked for in this test"),
    "samples_completed": Name(CounterMetricFamily, "samples that were answered in this test"),
    "samples_expected": Name(GaugeMetricFamily, "samples that the test will have; absent while unknown"),
    "samples_waiting": Name(GaugeMetricFamily, "samples in LoadGrid's queue, not yet with a worker"),
    "samples_in_flight": Name(GaugeMetricFamily, "samples issued and not completed"),
    "samples_over_limit": Name(CounterMetricFamily, "samples that took longer than the latency limit"),
    "samples_moved": Name(CounterMetricFamily, "samples of lost workers that went to others"),
    "late_answers": Name(CounterMetricFamily, "answers to samples that were completed before"),
    "target_qps": Name(GaugeMetricFamily, "rate that LoadGen offers or expects; absent where it has none"),
    "latency_limit_seconds": Name(GaugeMetricFamily, "latency limit of the test; absent where it has none"),
    "latency_seconds": Name(HistogramMetricFamily, "from issue to completion, by the driver's clock"),
    "stage_seconds": Name(HistogramMetricFamily, "time of a sample in each stage of its path", ("stage",)),
    "workers_lost": Name(CounterMetricFamily, "workers lost in this test"),
    "worker_up": Name(GaugeMetricFamily, "1 while the worker takes part, 0 once it is lost", _WORKER),
    "worker_samples": Name(CounterMetricFamily, "samples that the worker has answered", _WORKER),
    "worker_batches": Name(CounterMetricFamily, "batches that the worker has computed", _WORKER),
    "worker_batch_samples": Name(CounterMetricFamily, "samples in those batches", _WORKER),
    "worker_busy_seconds": Name(CounterMetricFamily, "time in which the worker computed", _WORKER),
    "worker_stage_seconds": Name(
        CounterMetricFamily, "time of its samples in each stage, summed", (*_WORKER, "stage")
    ),
    "worker_in_flight": Name(GaugeMetricFamily, "samples that the worker holds", _WORKER),
    "driver_cpu_seconds": Name(
        CounterMetricFamily, "CPU time of the test's process, which hosts LoadGen, over all its threads"
    ),
    "driver_rows_dropped": Name(
        CounterMetricFamily, "answers whose times were not kept: the driver is behind"
    ),
    "course": Name(GaugeMetricFamily, "1 for the live verdict of a Server test, else 0", ("course",)),
    "course_more_needed": Name(GaugeMetricFamily, "further queries within the limit until it could pass"),
    "course_late_allowed": Name(GaugeMetricFamily, "queries that may be late in the whole test"),
    "course_outstanding_per_second": Name(GaugeMetricFamily, "growth of the outstanding samples"),
}


@dataclass
class View:
    """What a scrape sees; the driver's thread puts a new one in place, a scrape only reads."""

    run: str = ""
    state: str = "idle"
    tests_planned: int = 0
    tests_done: int = 0
    spec: TestSpec | None = None
    workers: Sequence[str] = ()
    board: Board | None = None
    elapsed_s: float = 0.0
    left_s: float | None = None
    expected: int | None = None
    course: Course | None = None
    lost: frozenset[str] = field(default_factory=frozenset)


class RunCollector(Collector):
    """Reads `view` at every scrape."""

    def __init__(self) -> None:
        self.view = View()

    def describe(self) -> Iterator[Metric]:
        """The names, so that a registry refuses two of them."""
        return (_family(name) for name in NAMES)

    def collect(self) -> Iterator[Metric]:
        """Every metric that has a value now."""
        view = self.view
        yield from _run_metrics(view)
        if view.spec is None or view.board is None:
            return
        yield from _test_metrics(view, view.spec, view.board)
        yield from _course_metrics(view.course)
        yield from _latency_metrics(view.spec, view.board)
        yield from _worker_metrics(view, view.board)


def _family(name: str) -> Any:
    kind, meaning, labels = NAMES[name]
    family: Any = kind(f"{PREFIX}_{name}", meaning, labels=labels)
    return family


def _value(name: str, value: float | None) -> Iterator[Metric]:
    """A metric without labels; nothing where there is no value."""
    if value is not None:
        family = _family(name)
        family.add_metric((), value)
        yield family


def _one_of(name: str, values: Sequence[str], now: str) -> Metric:
    family = _family(name)
    for value in values:
        family.add_metric((value,), float(value == now))
    return family


def _run_metrics(view: View) -> Iterator[Metric]:
    yield _one_of("state", STATES, view.state)
    yield from _value("tests_done", view.tests_done)
    yield from _value("tests_planned", view.tests_planned)
    spec = view.spec
    if spec is not None:
        info = _family("run_info")
        of_test = (spec.round, spec.suite, spec.division, spec.benchmark, spec.scenario, spec.mode)
        info.add_metric((view.run, spec.name, *of_test), 1.0)
        yield info


def _test_metrics(view: View, spec: TestSpec, board: Board) -> Iterator[Metric]:
    issued, completed = board.total("issued"), board.total("completed")
    qps = {"Server": "server_target_qps", "Offline": "offline_expected_qps"}.get(spec.scenario, "")
    values: dict[str, float | None] = {
        "test_elapsed_seconds": view.elapsed_s,
        "test_left_seconds": view.left_s,
        "samples_issued": issued,
        "samples_completed": completed,
        "samples_expected": view.expected,
        "samples_waiting": board.total("waiting"),
        "samples_in_flight": max(issued - completed, 0),
        "samples_over_limit": board.total("over_limit") if spec.limit_ns else None,
        "samples_moved": board.total("moved"),
        "late_answers": board.total("late"),
        "target_qps": float(spec.settings[qps]) if qps in spec.settings else None,
        "latency_limit_seconds": spec.limit_ns / 1e9 if spec.limit_ns else None,
        "workers_lost": board.total("losses"),
        "driver_cpu_seconds": board.total("cpu_ns") / 1e9,
        "driver_rows_dropped": board.total("rows_dropped"),
    }
    for name, value in values.items():
        yield from _value(name, value)


def _course_metrics(course: Course | None) -> Iterator[Metric]:
    if course is None:
        return
    yield _one_of("course", WORDS, course.word)
    yield from _value("course_more_needed", course.more_needed)
    yield from _value("course_late_allowed", course.allowed_late)
    yield from _value("course_outstanding_per_second", course.outstanding_per_s)


def _latency_metrics(spec: TestSpec, board: Board) -> Iterator[Metric]:
    limit_s = spec.limit_ns / 1e9 if spec.limit_ns else None
    latency = _family("latency_seconds")
    within = board.total("within_limit") if limit_s else None
    _add_histogram(latency, (), board.stage("latency"), edges_s(limit_s), limit_s, within)
    yield latency
    stages = _family("stage_seconds")
    for stage in STAGES[:-1]:
        _add_histogram(stages, (stage,), board.stage(stage), edges_s(limit_s))
    yield stages


def edges_s(limit_s: float | None) -> list[float]:
    """Upper edges of the buckets in seconds, the limit itself among them."""
    parts = [] if limit_s is None else [part * limit_s for part in LIMIT_PARTS]
    return sorted({*parts, *WIDE_EDGES_S})


def _add_histogram(
    family: Any,
    labels: tuple[str, ...],
    histogram: np.ndarray,
    edges: Sequence[float],
    limit_s: float | None = None,
    within: int | None = None,
) -> None:
    """The board's fine histogram in coarse buckets: each fine bucket whole, by its upper edge (4.4 % wide).

    At the limit the count is exact: the samples `within` it. No count ever falls from one scrape to the next.
    """
    cumulative = np.cumsum(histogram)
    total = int(cumulative[-1])
    at = np.searchsorted(bucket_edges_ns() / 1e9, np.array(edges) * (1 + 1e-9), side="right") - 1
    counts = [int(cumulative[i]) if i >= 0 else 0 for i in at]
    if limit_s is not None and within is not None:
        total = max(total, within)
        # Its neighbours are not allowed to contradict it.
        pairs = zip(edges, counts, strict=True)
        counts = [
            within if edge == limit_s else (min(n, within) if edge < limit_s else max(n, within))
            for edge, n in pairs
        ]
    buckets = [(repr(edge), n) for edge, n in zip(edges, counts, strict=True)]
    summed_s = mean_ns(histogram) * int(cumulative[-1]) / 1e9 if cumulative[-1] else 0.0
    family.add_metric(labels, [*buckets, ("+Inf", total)], summed_s)


def _worker_metrics(view: View, board: Board) -> Iterator[Metric]:
    groups = _groups(view.workers)
    simple = {
        "worker_samples": ("samples", 1.0),
        "worker_batches": ("batches", 1.0),
        "worker_batch_samples": ("batch_samples", 1.0),
        "worker_busy_seconds": ("busy_ns", 1e-9),
        "worker_in_flight": ("outstanding", 1.0),
    }
    for name, (counter, unit) in simple.items():
        family = _family(name)
        for label, members in groups:
            value = sum(board.counter(i, counter) for i in members) * unit
            family.add_metric((label,), value)
        yield family
    up, spent = _family("worker_up"), _family("worker_stage_seconds")
    for label, members in groups:
        alive = sum(view.workers[i] not in view.lost for i in members)
        up.add_metric((label,), float(alive))
        for stage in STAGES[:-1]:
            merged = sum((board.stage(stage, i) for i in members[1:]), board.stage(stage, members[0]))
            count = int(merged.sum())
            seconds = mean_ns(merged) * count / 1e9 if count else 0.0
            spent.add_metric((label, stage), seconds)
    yield up
    yield spent


def _groups(workers: Sequence[str]) -> list[tuple[str, list[int]]]:
    """A label for each of the first workers, one for all that are left."""
    if len(workers) <= MOST_WORKERS:
        return [(name, [i]) for i, name in enumerate(workers)]
    named = [(name, [i]) for i, name in enumerate(workers[: MOST_WORKERS - 1])]
    return [*named, (REST, list(range(MOST_WORKERS - 1, len(workers))))]
