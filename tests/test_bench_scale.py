"""`loadgrid bench scale`: who takes part, what is compared with what, and real workers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator import bench_scale
from orchestrator.bench_engine import EngineBenchError
from orchestrator.bench_scale import FIELDS, Rows, Scale, for_scale, numbers, offline_row, server_row
from orchestrator.campaign import Session
from orchestrator.cluster import ClusterError
from orchestrator.journey import idle_and_tail
from orchestrator.manifest import Manifest, ManifestError, load_manifest
from orchestrator.record import LossRecord, Record
from orchestrator.settings import offline_samples_per_query
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


def record(
    rate: float, busy_s: list[float], tail_s: list[float | None], scenario: str = "Offline", **driver: Any
) -> Record:
    """A test of ten seconds."""
    known = {"answering_s": 10.0, "rows_dropped": 0, **driver}
    made = made_records.record(scenario, driver=made_records.driver(**known))
    workers = [
        made.workers[0].model_copy(update={"busy_s": busy, "tail_s": tail})
        for busy, tail in zip(busy_s, tail_s, strict=True)
    ]
    result = made.result.model_copy(update={"value": rate})
    return made.model_copy(update={"workers": workers, "result": result})


def test_idle_and_tail_are_the_worst_workers_shares_of_the_test() -> None:
    assert idle_and_tail(record(1.0, [9.9, 9.5], [0.0, 0.2])) == pytest.approx((0.05, 0.02))


def test_a_worker_without_an_answer_stood_idle_all_the_time() -> None:
    assert idle_and_tail(record(1.0, [9.9, 0.0], [0.0, None])) == (1.0, 1.0)


def test_where_times_were_dropped_nobody_knows_who_stood_idle() -> None:
    assert idle_and_tail(record(1.0, [9.9], [0.0], rows_dropped=1)) is None
    row = offline_row(1, [(record(1.0, [9.9], [0.0], rows_dropped=1), 1.0)])
    assert (row["idle"], row["tail"], row["efficiency"]) == (None, None, 1.0)


def test_efficiency_is_the_median_of_rounds_against_what_each_did_alone_in_that_round() -> None:
    seen = [(record(rate, [9.0], [0.0]), alone) for rate, alone in ((190, 200), (150, 150), (99, 100))]
    row = offline_row(2, seen)
    assert set(row) == set(FIELDS)
    assert (row["workers"], row["samples_per_s"], row["efficiency"]) == (2, 150, 0.99)
    assert (row["efficiency_lowest"], row["efficiency_highest"]) == (0.95, 1.0)
    assert row["valid"] is None and row["idle"] == 0.1


def test_a_servers_row_says_of_each_round_its_p99_and_how_long_its_host_stood_still() -> None:
    pauses = made_records.pauses(still=61.0, crowded=12.0)
    seen = [record(100.0, [9.0], [0.0], "Server", pauses=known) for known in (None, pauses)]
    row = server_row(1, 100.0, seen)
    assert set(row) == set(FIELDS)
    assert (row["stood_still_ms"], row["no_processor_ms"]) == ([None, 61.0], [None, 12.0])
    assert offline_row(1, [(one, 100.0) for one in seen])["stood_still_ms"] == [None, 61.0]
    assert row["p99s_ms"] == [record.result.percentiles_ms["p99"] for record in seen]


def test_a_test_too_short_to_tell_its_cpu_share_spoils_nothing() -> None:
    short = record(1.0, [9.0], [0.0], cpu_share=None)
    assert offline_row(1, [(short, 1.0)])["driver_cpu"] is None
    assert offline_row(1, [(short, 1.0), (record(1.0, [9.0], [0.0]), 1.0)])["driver_cpu"] == 0.05


class Simulated:
    """Workers of these speeds, of which any row can be tested; notes the tests."""

    def __init__(self, *rates: float) -> None:
        self.rates = rates
        self.slowness = [rates[0] / rate for rate in rates]
        self.tests: list[tuple[Any, ...]] = []
        self.speed, self.drift = 1.0, 1.0

    def offline(self, taking: range, samples: float) -> Record:
        self.tests.append((taking, round(samples)))
        self.speed *= self.drift
        rate = sum(self.rates[i] for i in taking) * 0.98 ** (len(taking) - 1)
        return record(rate * self.speed, [10.0], [0.0])

    def server(self, taking: range, qps: float, seconds: float) -> Record:
        self.tests.append((taking, qps, seconds))
        return record(qps, [10.0], [0.0], "Server")


def rows_of(workers: Simulated, counts: list[int], *qps: float, rounds: int = 1) -> Rows:
    rows = Rows(workers, counts, qps)  # type: ignore[arg-type]
    for number in range(rounds):
        rows.round(1000, 10.0, backwards=number % 2 == 1)
    return rows


def test_every_round_measures_each_worker_alone_and_rows_of_them_for_as_long_there_and_back() -> None:
    workers = Simulated(100.0, 100.0, 10.0)
    rows = rows_of(workers, [2, 3], rounds=2)
    there = [(range(1), 1000), (range(2, 3), 100), (range(2), 2000), (range(3), 2100), (range(1, 2), 1000)]
    assert workers.tests == there + there[::-1]
    assert [(row["workers"], row["efficiency"]) for row in rows.shown()] == [(2, 0.98), (3, 0.9604)]


def test_what_changes_with_time_favours_neither() -> None:
    for rounds in (1, 2):
        workers = Simulated(100.0, 100.0, 100.0, 100.0)
        workers.drift = 0.99
        (row,) = rows_of(workers, [4], rounds=rounds).shown()
        assert row["efficiency"] == pytest.approx(0.98**3, abs=0.001)


def test_server_tests_offer_as_much_to_each_worker_and_to_a_slowed_one_what_it_can_take() -> None:
    workers = Simulated(100.0, 100.0, 10.0)
    rows = rows_of(workers, [2, 3], 80.0, 90.0).shown()
    asked = [test for test in workers.tests if len(test) == 3]
    assert asked == [(range(n), qps, 10.0) for n, qps in ((2, 160.0), (2, 180.0), (3, 168.0), (3, 189.0))]
    assert [(r["scenario"], r["offered_qps"]) for r in rows[2:]] == [("Server", qps) for _, qps, _ in asked]
    # 3,000 queries in ten seconds, whatever LoadGen's result was.
    assert rows[3]["samples_per_s"] == 300.0 and rows[3]["valid"] == [True] and rows[3]["idle"] is None


def test_a_rate_asked_for_twice_is_measured_once() -> None:
    workers = Simulated(100.0)
    rows = rows_of(workers, [1], 80.0, 90.0, 80.0).shown()
    assert [test[1] for test in workers.tests if len(test) == 3] == [80.0, 90.0]
    assert [row["offered_qps"] for row in rows] == [None, 80.0, 90.0]


def test_a_test_that_lost_a_worker_is_no_measurement_of_so_many(tmp_path: Path) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST)
    whole = record(1.0, [9.0, 9.0], [0.0, 0.0])
    lost = whole.model_copy(
        update={"losses": [LossRecord(worker="worker-1", at_s=1.0, reason="gone", moved=3)]}
    )
    fewer = record(1.0, [9.0], [0.0])
    failed = whole.model_copy(update={"status": "failed", "reason": "no worker is left"})
    scale = Scale(load_manifest(file), 2, 1.0, "local", tmp_path, lambda text: None)
    for made, told in ((lost, "worker-1: gone"), (fewer, "lost before it"), (failed, "no worker is left")):
        scale._session.run = lambda spec, run, made=made: made  # type: ignore[method-assign, misc]
        with pytest.raises(EngineBenchError, match=told):
            scale.offline(range(2), 8)
    scale._session.run = lambda spec, run: whole  # type: ignore[method-assign]
    assert scale.offline(range(2), 8) is whole


def test_tests_last_as_long_as_asked_whatever_the_round_wants(tmp_path: Path) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST.replace("v6.1", "v1.1").replace("datacenter,edge", "datacenter"))
    scale = Scale(load_manifest(file), 2, 1.0, "local", tmp_path, lambda text: None)
    asked: list[Any] = []

    def run(spec: Any, run: Any) -> Record:
        asked.append(spec)
        return record(1.0, [9.0], [0.0])

    scale._session.run = run  # type: ignore[method-assign]
    scale.server(range(1), 400.0, 0.5)
    scale.offline(range(1), 9)
    server, offline = (spec.settings for spec in asked)
    assert (server["min_query_count"], server["min_duration_ms"], server["max_query_count"]) == (1, 500, 0)
    assert offline_samples_per_query(offline, 100) == 16, "whole batches"


def test_before_the_first_round_all_workers_have_answered_a_test_that_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST)
    tests: list[tuple[int, float]] = []

    def offline(self: Scale, taking: range, samples: float) -> Record:
        tests.append((len(taking), samples))
        return record(1000.0, [9.0] * len(taking), [0.0] * len(taking))

    monkeypatch.setattr(Scale, "offline", offline)
    monkeypatch.setattr(Scale, "__enter__", lambda self: self)
    monkeypatch.setattr(Scale, "__exit__", lambda self, *_: None)
    bench_scale.scale(file, workers="2,4", seconds=4.0, rounds=1, qps=[], slowed=2.0, as_json=True)
    # 4 seconds at 1,000 a second: a fifth of it, of three workers and one half as fast.
    sizing = [count for count, _ in tests].index(4)
    assert {count for count, _ in tests[:sizing]} == {1}
    assert tests[sizing:] == [(4, 2800), (1, 4000), (1, 4000), (2, 8000), (4, 14000), (1, 4000), (1, 2000)]


@pytest.mark.parametrize("text", ["", "two", "0,1", "1,-2", "1.5"])
def test_what_is_no_list_of_workers_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no list of numbers"):
        numbers(text)
    assert numbers("4,1,2,2") == [1, 2, 4]
    with pytest.raises(typer.BadParameter, match="99999 is more than 4096"):
        numbers("1,99999")


def test_any_manifest_is_measured_with_ray_workers_in_performance_tests(tmp_path: Path) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST.replace("where: ray", "where: local").replace(", num_cpus: 0", ""))
    made = for_scale(load_manifest(file), 3)
    assert (made.workers.where, made.workers.count, made.runs) == ("ray", 3, ("performance",))


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("where", ["local", "ray"])
def test_who_asked_for_local_workers_is_told_of_ray_ones_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    as_json: bool,
) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST.replace("where: ray", f"where: {where}").replace(", num_cpus: 0", ""))

    def starts(self: Scale) -> Scale:
        raise EngineBenchError("started")

    monkeypatch.setattr(Scale, "__enter__", starts)
    with pytest.raises(typer.Exit):
        bench_scale.scale(file, workers="2", qps=[], as_json=as_json)
    told = capsys.readouterr().err.splitlines()
    assert told.pop() == "loadgrid: started"
    if where == "ray":
        assert not told
        return
    assert len(told) == 1 and told[0].startswith(f"loadgrid: {file}: workers.where is local, but ")
    assert "measured with Ray workers, here of 1 CPU each" in told[0] and "workers.where: ray" in told[0]


def test_a_cluster_without_room_asks_for_fewer_by_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST)

    def refuses(self: Session) -> None:
        raise ClusterError("no room. Lower workers.count, or add nodes")

    monkeypatch.setattr(Session, "__enter__", refuses)
    with pytest.raises(ClusterError, match="^no room. Lower --workers, or add nodes$"):
        Scale(load_manifest(file), 2, 1.0, "local", tmp_path, lambda text: None).__enter__()


def test_files_are_looked_for_where_the_ray_workers_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "unlike.yaml"
    file.write_text(MANIFEST.replace("where: ray", "where: local").replace(", num_cpus: 0", ""))
    asked: list[str] = []

    def looked_for(manifest: Manifest, address: str) -> None:
        asked.append(manifest.workers.where)
        raise ManifestError("m.yaml", 1, "backend.weights", "no such file")

    monkeypatch.setattr(bench_scale, "check_files", looked_for)
    with pytest.raises(ManifestError):
        bench_scale.scale(file, workers="2", qps=[], address="10.0.0.7:6379")
    assert asked == ["ray"]


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
    assert 0 <= offline["idle"] < 1 and 0 <= offline["tail"] < 1
    assert server["offered_qps"] == 250 and len(server["valid"]) == 1 and server["samples_per_s"] > 0
    assert FIELDS.keys() == offline.keys() == server.keys()
