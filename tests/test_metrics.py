"""metrics.py and exporter.py: what Prometheus reads of a run, from the board and over HTTP."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.course import CourseWatch
from orchestrator.exporter import MOST_AT_ONCE, Exporter, ExporterError, _Handler
from orchestrator.metrics import MOST_WORKERS, NAMES, PREFIX, REST, RunCollector, View, edges_s
from orchestrator.timings import Board, Folder, Timings
from tests.processes import eventually
from tests.test_course import spec_of

TIME_BUDGET_S = 15
MS = 10**6
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def board_of(latencies_ns: list[int], workers: int = 1, limit_ns: int | None = None) -> Board:
    """A board on which each worker has answered each latency once, in batches of one."""
    board = Board(workers, ring_rows=1024)
    pen, folder = Timings(board), Folder(board, limit_ns)
    for worker in range(workers):
        for ns in latencies_ns:
            pen.add(worker, 1, 0, ns // 10, 0, ns // 10, ns // 2, ns // 2, ns, 1)
    folder.fold(final=True)
    board.set_total("issued", workers * len(latencies_ns) + 2)
    board.set_total("completed", workers * len(latencies_ns))
    return board


def samples_of(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def scraped(view: View) -> Samples:
    collector = RunCollector()
    collector.view = view
    registry = CollectorRegistry()
    registry.register(collector)
    return samples_of(generate_latest(registry).decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"{PREFIX}_{name}", frozenset(labels.items())]


def view_of(board: Board, workers: int = 1) -> View:
    names = tuple(f"worker-{i}" for i in range(workers))
    spec = spec_of()
    course = CourseWatch(spec).look(10.0, 1000, 1000, 3)
    return View(run="a", state="running", spec=spec, workers=names, board=board, elapsed_s=10, course=course)


def test_a_run_without_a_test_says_what_it_is_doing_and_no_more() -> None:
    samples = scraped(View(state="preparing", tests_planned=4))
    assert value(samples, "state", state="preparing") == 1
    assert value(samples, "state", state="running") == 0
    assert value(samples, "tests_planned") == 4
    assert not [name for name, _ in samples if "latency" in name or "worker" in name]


def test_every_name_of_the_table_is_served_of_a_server_test() -> None:
    view = view_of(board_of([5 * MS, 20 * MS], limit_ns=15 * MS))
    growing = CourseWatch(spec_of())
    for i in range(20):
        course = growing.look(float(i), 10 * i, 9 * i, 0)
    view = View(**{**vars(view), "course": course, "left_s": 3.0, "expected": 10_001})
    served = {name for name, _ in scraped(view)}
    bare = {name.removesuffix(end) for name in served for end in ("_total", "_bucket", "")}
    assert {f"{PREFIX}_{name}" for name in NAMES} <= bare


def test_the_bucket_at_the_limit_is_exact_although_the_board_s_are_not() -> None:
    # 15.0 and 15.1 ms share a bucket of the board.
    samples = scraped(view_of(board_of([14 * MS, 15 * MS, 15 * MS + 100_000, 40 * MS], limit_ns=15 * MS)))
    assert value(samples, "latency_seconds_bucket", le="0.015") == 2
    assert value(samples, "samples_over_limit_total") == 2
    assert value(samples, "latency_seconds_count") == 4
    assert value(samples, "latency_limit_seconds") == 0.015


@settings(max_examples=10, deadline=None)
@given(latencies=st.lists(st.integers(1000, 10**11), min_size=1, max_size=30))
def test_histograms_never_fall_and_end_with_everything(latencies: list[int]) -> None:
    samples = scraped(view_of(board_of(latencies, limit_ns=15 * MS)))
    for name in ("latency_seconds", "stage_seconds"):
        series: dict[str, list[tuple[float, float]]] = {}
        for (sample, labels), count in samples.items():
            if sample == f"{PREFIX}_{name}_bucket":
                series.setdefault(dict(labels).get("stage", ""), []).append(
                    (float(dict(labels)["le"]), count)
                )
        for points in series.values():
            counts = [count for _, count in sorted(points)]
            assert counts == sorted(counts)
            assert counts[-1] == len(latencies)


def test_a_bucket_never_counts_what_is_beyond_its_edge() -> None:
    rng = np.random.default_rng(1)
    latencies = rng.integers(10**4, 10**9, 300)
    samples = scraped(view_of(board_of(latencies.tolist(), limit_ns=15 * MS)))
    for edge in edges_s(0.015):
        counted = value(samples, "latency_seconds_bucket", le=repr(edge))
        # The board's buckets are 4.4 % wide, and only whole ones count.
        assert (latencies <= edge * 1e9 / 1.045).sum() <= counted <= (latencies <= edge * 1e9).sum()


def test_each_worker_has_its_counters_and_times() -> None:
    samples = scraped(view_of(board_of([10 * MS] * 5, workers=2), workers=2))
    for worker in ("worker-0", "worker-1"):
        assert value(samples, "worker_samples_total", worker=worker) == 5
        assert value(samples, "worker_batches_total", worker=worker) == 5
        # All five were in the engine at once.
        assert value(samples, "worker_busy_seconds_total", worker=worker) == pytest.approx(0.004)
        compute = value(samples, "worker_stage_seconds_total", worker=worker, stage="compute")
        assert compute == pytest.approx(0.02, rel=0.05)


def test_a_lost_worker_is_down() -> None:
    view = view_of(board_of([MS], workers=2), workers=2)
    samples = scraped(View(**{**vars(view), "lost": frozenset({"worker-1"})}))
    assert value(samples, "worker_up", worker="worker-0") == 1
    assert value(samples, "worker_up", worker="worker-1") == 0


def test_thousands_of_workers_stay_a_bounded_number_of_series() -> None:
    count = MOST_WORKERS + 50
    board = Board(count, ring_rows=16)
    board.counters[:, 0] = 3
    samples = scraped(view_of(board, workers=count))
    labels = {dict(labels)["worker"] for name, labels in samples if "worker_samples" in name}
    assert len(labels) == MOST_WORKERS
    assert value(samples, "worker_samples_total", worker=REST) == 3 * 51
    assert value(samples, "worker_up", worker=REST) == 51


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    served = Exporter("127.0.0.1", 0)
    yield served
    served.close()


def fetched(exporter: Exporter) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=10) as answer:
        return samples_of(answer.read().decode())


def test_the_exporter_follows_a_test_from_beginning_to_end(exporter: Exporter, tmp_path: Path) -> None:
    spec = spec_of()
    exporter.planned(None, [spec], tmp_path / "run-1")  # type: ignore[arg-type]
    assert value(fetched(exporter), "state", state="preparing") == 1
    exporter.test_began(spec, ["worker-0"])
    exporter.event({"event": "running"})
    exporter.tick(board_of([MS] * 3))
    exporter.event({"event": "loss", "worker": "worker-0"})
    samples = fetched(exporter)
    assert value(samples, "state", state="running") == 1
    assert value(samples, "samples_completed_total") == 3
    assert value(samples, "samples_in_flight") == 2
    assert value(samples, "worker_up", worker="worker-0") == 0
    assert ("loadgrid_run_info", "run-1") in {(n, dict(labels).get("run")) for n, labels in samples}
    exporter.test_ended(SimpleNamespace(), tmp_path)  # type: ignore[arg-type]
    assert value(fetched(exporter), "tests_done") == 1


def test_connections_that_say_nothing_are_few_and_keep_nobody_out_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Handler, "timeout", 0.3)
    served = Exporter("127.0.0.1", 0)
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(MOST_AT_ONCE + 4)]
    try:
        # Beyond the most, a connection is closed at once; when the silent ones are given up, there is room.
        assert silent[-1].recv(1) == b""
        assert eventually(lambda: reads(served), 10)
    finally:
        for connection in silent:
            connection.close()
        served.close()


def reads(served: Exporter) -> bool:
    try:
        return bool(fetched(served))
    except OSError:
        return False


def test_counts_at_the_limit_never_fall_while_rows_are_being_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board(1, ring_rows=1024)
    pen, folder = Timings(board), Folder(board, 15 * MS)
    view = view_of(board)
    last = 0.0
    original = board.set_total

    def looked_at(name: str, count: int) -> None:
        nonlocal last
        original(name, count)
        if name in ("over_limit", "within_limit"):
            now = value(scraped(view), "latency_seconds_bucket", le="0.015")
            assert now >= last
            last = now

    monkeypatch.setattr(board, "set_total", looked_at)
    for turn in range(12):
        for ns in (MS, 2 * MS, (10 + turn) * MS):
            pen.add(0, 1, 0, 1, 0, 2, 3, 3, ns, 1)
        folder.fold(final=True)
    assert last > 12


def test_a_port_that_is_taken_is_told_with_a_mend(exporter: Exporter) -> None:
    with pytest.raises(ExporterError, match=f"127.0.0.1:{exporter.port}.*name another"):
        Exporter("127.0.0.1", exporter.port)
