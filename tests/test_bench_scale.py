"""`loadgrid bench scale`: who takes part, what is compared with what, and real workers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator import bench_scale
from orchestrator.bench_scale import FIELDS, for_scale, measure, numbers, offline_row, shares
from orchestrator.manifest import load_manifest
from orchestrator.record import Record
from tests import made_records
from tests.program import Program
from tests.ray_nodes import LocalRay

TIME_BUDGET_S = 45
MANIFEST = """
name: unlike
round: v6.1
suite: datacenter,edge
division: closed
benchmark: resnet
scenarios: [Server]
task: {name: "null", count: 100}
backend: {engine: echo, service_time_us: 2000}
workers: {where: ray, count: 7, max_batch: 8, num_cpus: 0}
loadgen:
  performance_sample_count_override: 100
  min_duration: 600000
  Server: {target_qps: 10, target_latency: 500, min_query_count: 1}
"""


def record(rate: float, busy_s: list[float], tail_s: list[float | None], span_s: float = 10.0) -> Record:
    made = made_records.record("Offline", driver=made_records.driver(answering_s=span_s))
    workers = [
        made.workers[0].model_copy(update={"busy_s": busy, "tail_s": tail})
        for busy, tail in zip(busy_s, tail_s, strict=True)
    ]
    result = made.result.model_copy(update={"value": rate})
    return made.model_copy(update={"workers": workers, "result": result})


def test_idle_and_tail_are_the_worst_workers_shares_of_the_test() -> None:
    assert shares(record(1.0, [9.9, 9.5], [0.0, 0.2])) == pytest.approx((0.05, 0.02))


def test_a_worker_without_an_answer_stood_idle_all_the_time() -> None:
    assert shares(record(1.0, [9.9, 0.0], [0.0, None])) == (1.0, 1.0)


def test_efficiency_is_the_median_of_rounds_against_what_each_did_alone_in_that_round() -> None:
    seen = [(record(rate, [9.0], [0.0]), alone) for rate, alone in ((190, 200), (150, 150), (99, 100))]
    row = offline_row(2, seen)
    assert set(row) == set(FIELDS)
    assert (row["workers"], row["samples_per_s"], row["efficiency"]) == (2, 150, 0.99)
    assert row["valid"] is None and row["idle"] == 0.1


class Simulated:
    """Workers of these speeds, of which any row can be tested; notes the tests."""

    def __init__(self, *rates: float) -> None:
        self.rates = rates
        self.slowness = [rates[0] / rate for rate in rates]
        self.tests: list[tuple[Any, ...]] = []

    def samples_for(self, seconds: float) -> int:
        return round(self.rates[0] * seconds)

    def offline(self, first: int, last: int, samples: int) -> Record:
        self.tests.append((first, last, samples))
        return record(sum(self.rates[first:last]) * 0.98 ** (last - first - 1), [10.0], [0.0])

    def server(self, workers: int, qps: float, seconds: float) -> Record:
        self.tests.append((workers, qps, seconds))
        return made_records.record("Server", driver=made_records.driver(answering_s=10.0))


def test_every_round_measures_each_worker_alone_and_then_rows_of_them_for_as_long() -> None:
    workers = Simulated(100.0, 100.0, 10.0)
    rows = measure(workers, [2, 3], 2, 10.0, None, lambda text: None)  # type: ignore[arg-type]
    once = [(0, 1, 1000), (1, 2, 1000), (2, 3, 100), (0, 2, 2000), (0, 3, 2100)]
    assert workers.tests == once * 2
    assert [(row["workers"], row["efficiency"]) for row in rows] == [(2, 0.98), (3, 0.9604)]


def test_server_tests_offer_as_much_to_each_worker() -> None:
    workers = Simulated(100.0, 100.0)
    rows = measure(workers, [1, 2], 1, 10.0, 80.0, lambda text: None)  # type: ignore[arg-type]
    assert [t for t in workers.tests if t[1] in (80.0, 160.0)] == [(1, 80.0, 10.0), (2, 160.0, 10.0)]
    assert [(r["scenario"], r["offered_qps"]) for r in rows[2:]] == [("Server", 80.0), ("Server", 160.0)]
    assert rows[3]["valid"] == [True] and rows[3]["efficiency"] is None


@pytest.mark.parametrize("text", ["", "two", "0,1", "1,-2", "1.5"])
def test_what_is_no_list_of_workers_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no list of numbers"):
        numbers(text)
    assert numbers("4,1,2,2") == [1, 2, 4]


def test_any_manifest_is_measured_with_ray_workers_in_performance_tests(tmp_path: Path) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST.replace("where: ray", "where: local").replace(", num_cpus: 0", ""))
    made = for_scale(load_manifest(file), 3)
    assert (made.workers.where, made.workers.count, made.runs) == ("ray", 3, ("performance",))


def test_real_workers_alone_and_together_one_of_them_slowed(tmp_path: Path, local_ray: LocalRay) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST)
    options = ["--workers", "2", "--seconds", "0.5", "--rounds", "1", "--qps", "200", "--slowed", "4"]
    command = ["bench", "scale", file, *options, "--address", local_ray.address, "--json"]
    with Program(tmp_path, *command, env=local_ray.env) as program:
        assert program.end(60.0) == 0, program.said
    offline, server = json.loads(program.said.splitlines()[-1])
    # 4,000 and 1,000 samples/s; a busy machine makes it less, and unequal shares of it.
    assert offline["workers"] == 2 and 2000 < offline["samples_per_s"] < 5100
    assert 0.5 < offline["efficiency"] < 1.5
    for row in (offline, server):
        assert 0 <= row["idle"] < 1 and 0 <= row["tail"] < 1 and row["driver_cpu"] > 0
    assert server["offered_qps"] == 400 and len(server["valid"]) == 1
    assert bench_scale.FIELDS.keys() == offline.keys()
