"""`loadgrid bench`: every key that was promised, both payloads and securities, the search for a rate."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator import bench as bench_command
from orchestrator.bench import OFFLINE_SLACK, SWEEP_RESOLUTION, Bench, NullPath, highest
from orchestrator.campaign import EXIT_FAILED, Session
from orchestrator.cli import app
from orchestrator.cluster import ClusterError
from orchestrator.manifest import ManifestError
from orchestrator.manifest_types import MOST_QPS
from orchestrator.record import Record
from tests import made_records
from tests.program import Program
from tests.ray_nodes import LocalRay

TIME_BUDGET_S = 60

PATH = NullPath(2, 0, 4, "curve", 8, 0)
FIGURES = ["completed_qps", "valid", "p50_ms", "p99_ms", "p999_ms", "driver_cpu_us_per_sample"]


def bench(folder: Path, ray_here: LocalRay, *arguments: str, code: int | None = 0) -> Any:
    """What `bench` prints with --json, over the tests' own Ray."""
    (folder / "cache").mkdir(exist_ok=True)
    where = ["--address", ray_here.address, "--workers", "2", "--json"]
    with Program(folder, "bench", *arguments, *where, env=ray_here.env) as program:
        ended = program.end(60.0)
        program.nothing_left_in(5.0)
    assert code is None or ended == code, program.said
    assert len(program.lines) >= 1, "nothing was printed"
    found = [json.loads(line) for line in program.lines]
    return found if len(found) > 1 else found[0]


def test_null_prints_every_figure_of_both_paths_and_their_ratio(tmp_path: Path, local_ray: LocalRay) -> None:
    rates = ["--qps", "1000", "--qps", "2000", "--duration-s", "1"]
    for row, offered in zip(bench(tmp_path, local_ray, "null", *rates, code=None), (1000, 2000), strict=True):
        assert row["offered_qps"] == offered
        for figures in (row, row["inprocess"]):
            assert set(FIGURES) <= set(figures)
            # Whether a shared machine holds 15 ms in this second is no question of a test.
            assert figures["valid"] is False or figures["p99_ms"] <= 15
            assert 0.8 * offered < figures["completed_qps"] < 1.2 * offered
            assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
            assert figures["driver_cpu_us_per_sample"] > 0
        assert row["ratio"]["completed_qps"] == pytest.approx(1.0, abs=0.2)
        assert row["ratio"]["p99_ms"] > 0
        assert (row["workers"], row["duration_s"], row["security"]) == (2, 1, "curve")
        assert (row["payload_bytes"], row["response_bytes"]) == (0, 4)
        assert len(row["nodes"]) == 1 and bool(row["reasons"]) is not row["valid"]
        assert set(row["stages_ms"]) >= {"driver_queue", "wire", "worker_queue", "compute", "return"}


def test_watch_scrapes_every_second_test_and_compares_pairs(tmp_path: Path, local_ray: LocalRay) -> None:
    short = ["--qps", "500", "--rounds", "1", "--duration-s", "1", "--every-s", "0.1"]
    found = bench(tmp_path, local_ray, "watch", *short, code=None)
    [alone], [watched] = found["unwatched"], found["watched"]
    assert "scrapes" not in alone and watched["scrapes"] >= 2
    assert watched["scrape_bytes"] > 1000 and watched["scrape_ms"] > 0
    for key in ("p50_ms", "p99_ms", "driver_cpu_us_per_sample"):
        assert found["median"][key]["ratio"] == pytest.approx(watched[key] / alone[key], abs=1e-3)


@pytest.mark.parametrize("security", ["curve", "none"])
def test_values_travel_under_both_securities(tmp_path: Path, local_ray: LocalRay, security: str) -> None:
    sizes = ["--payload-bytes", "150528", "--response-bytes", "100000", "--security", security]
    row = bench(tmp_path, local_ray, "null", "--qps", "100", "--duration-s", "1", *sizes, code=None)
    assert "failed" not in row
    assert (row["security"], row["payload_bytes"], row["response_bytes"]) == (security, 150_528, 100_000)
    assert row["gigabytes_per_s"] == pytest.approx(row["completed_qps"] * 250_528 / 1e9, rel=0.01)
    assert row["gigabytes_per_s"] > 0.01


def test_offline_tells_how_soon_the_first_answer_came(tmp_path: Path, local_ray: LocalRay) -> None:
    found = bench(tmp_path, local_ray, "offline", "--samples", "50000")
    assert found["samples"] == pytest.approx(50_000, abs=2)
    assert 0 < found["issue_s"] <= found["first_answer_s"]
    assert found["samples_per_s"] > 0
    assert found["max_rss_bytes"] > 1e6
    assert found["response_path"] == "messages" and found["gigabytes_per_s"] > 0


class Simulated:
    """A path that holds 120,000 queries/s, and whose test fails from `broken` on: real ones need minutes."""

    broken = math.inf

    def __init__(self, *_: object) -> None:
        """Needs no cluster."""

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def test(self, scenario: str, qps: float, duration_s: float) -> tuple[Record, None, None]:
        result = made_records.record().result.model_copy(update={"valid": qps <= 120_000, "value": qps})
        driver = made_records.driver(rss_growth_bytes=0, max_rss_bytes=0)
        made = made_records.record(scenario, result=result, driver=driver)
        if qps >= self.broken:
            nothing = made.result.model_copy(update={"valid": False, "value": None})
            made = made.model_copy(update={"result": nothing, "status": "failed", "reason": "no room"})
        return made, None, None


def test_sweep_prints_the_highest_rate_and_every_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "Bench", Simulated)
    told = CliRunner().invoke(bench_command.app, ["sweep", "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert 120_000 / (1 + SWEEP_RESOLUTION) <= found["highest_valid_qps"] <= 120_000
    assert found["highest_valid_qps"] == max(row["offered_qps"] for row in found["tests"] if row["valid"])
    assert all(set(FIGURES) <= set(row) for row in found["tests"])


def test_a_test_that_fails_ends_a_sweep_unless_a_lower_rate_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "Bench", Simulated)
    monkeypatch.setattr(Simulated, "broken", 0)
    told = CliRunner().invoke(bench_command.app, ["sweep"])
    assert told.exit_code == EXIT_FAILED and "no room" in told.output and "highest" not in told.output
    monkeypatch.setattr(Simulated, "broken", 100_000)
    told = CliRunner().invoke(bench_command.app, ["sweep", "--json"])
    assert told.exit_code == 0
    assert 100_000 / (1 + SWEEP_RESOLUTION) <= json.loads(told.stdout)["highest_valid_qps"] < 100_000


def test_a_wrong_setting_is_one_message(tmp_path: Path, local_ray: LocalRay) -> None:
    arguments = ["bench", "null", "--security", "curv", "--address", local_ray.address]
    with Program(tmp_path, *arguments, env=local_ray.env) as program:
        assert program.end(10.0) == 2
        assert len(program.lines) == 1 and 'did you mean "curve"?' in program.said
        assert program.said.startswith('loadgrid: --security: "curv" is not one of ')


def test_workers_go_only_where_ray_has_the_cpus_asked_for(tmp_path: Path, local_ray: LocalRay) -> None:
    arguments = ["bench", "null", "--num-cpus", "4096", "--address", local_ray.address]
    with Program(tmp_path, *arguments, env=local_ray.env) as program:
        assert program.end(30.0) == 3
        assert "4096 CPU and 0 GPU each" in program.said


# What a person typed is what messages name


@pytest.mark.parametrize(
    ("option", "value"),
    [("--num-cpus", 5000.0), ("--num-cpus", math.inf), ("--response-bytes", 1 << 40), ("--security", "x")],
)
def test_a_setting_that_no_manifest_takes_is_named_as_it_was_typed(
    tmp_path: Path, option: str, value: Any
) -> None:
    shape = {"workers": 2, "payload_bytes": 0, "response_bytes": 4, "security": "curve", "max_batch": 8}
    path = NullPath(**{**shape, "io_threads": 0, option.lstrip("-").replace("-", "_"): value})
    with pytest.raises(ManifestError) as caught:
        Bench(path, "local", tmp_path, lambda text: None)
    assert str(caught.value).startswith(f"{option}: ")


@pytest.mark.parametrize(
    ("field", "option"), [("workers.count", "--workers"), ("workers.num_cpus", "--num-cpus")]
)
def test_a_cluster_without_room_asks_for_less_of_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, option: str
) -> None:
    def refuses(self: Session) -> None:
        raise ClusterError(f"no room. Lower {field}, or add nodes")

    monkeypatch.setattr(Session, "__enter__", refuses)
    with pytest.raises(ClusterError, match=f"^no room. Lower {option}, or add nodes$"):
        Bench(PATH, "local", tmp_path, lambda text: None).__enter__()


def test_a_data_set_without_room_on_the_disk_is_the_payload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(ManifestError, match="^--payload-bytes: .* 64.0 GB .*; lower "):
        Bench(replace(PATH, payload_bytes=10**9), "local", tmp_path, lambda text: None).__enter__()


def test_why_a_test_failed_is_told_with_the_option_beside_the_figures_and_under_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted: list[str] = []
    made = Bench(PATH, "local", tmp_path, noted.append)
    made._quiet.event({"event": "failed", "reason": "too much: lower workers.max_batch"})
    assert noted == ["event: failed, reason: too much: lower --max-batch"]
    failed = made_records.record(
        "Server",
        status="failed",
        reason="[/] too much: lower workers.max_batch",
        driver=made_records.driver(max_rss_bytes=0),
    )
    failed = failed.model_copy(update={"result": failed.result.model_copy(update={"valid": False})})
    row = bench_command.figures(failed, 100.0, PATH, 1.0)
    assert row["failed"] == "[/] too much: lower --max-batch"
    bench_command._show([row], as_json=False)
    assert "100/s failed: [/] too much: lower --max-batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["null", "--qps", "inf"],
        ["sweep", "--start-qps", "1e9"],
        ["watch", "--qps", "inf"],
        ["offline", "--samples", "110000001"],
        ["null", "--payload-bytes", str((1 << 30) + 1)],
        ["scale", "m.yaml", "--qps", "inf"],
        ["scale", "m.yaml", "--slowed", "inf"],
    ],
    ids=" ".join,
)
def test_a_number_beyond_any_test_is_refused_by_its_option(arguments: list[str]) -> None:
    told = CliRunner().invoke(app, ["bench", *arguments])
    assert told.exit_code == 2 and f"'{arguments[-2]}': Input should be less than or" in told.output


def test_the_most_samples_that_can_be_asked_for_make_a_manifest() -> None:
    most = PATH.manifest("Offline", 110_000_000 / OFFLINE_SLACK, 1.0).loadgen.Offline
    assert most.target_qps == pytest.approx(MOST_QPS)


# The search


@pytest.mark.parametrize("start", [1.0, 50_000.0])
@pytest.mark.parametrize("capacity", [1_000.0, 49_999.0, 50_000.0, 650_000.0, 3_000_000.0])
def test_the_search_comes_within_its_resolution_of_the_capacity(start: float, capacity: float) -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= capacity

    found = highest(holds, start)
    assert capacity / (1 + SWEEP_RESOLUTION) <= found <= capacity
    assert found in tried
    assert len(tried) <= 30 and len(set(tried)) == len(tried) - 1  # the edge is tried again


def test_the_search_never_answers_a_rate_that_did_not_hold(rng: np.random.Generator) -> None:
    """A shared machine: near its capacity a rate holds by chance."""
    for _ in range(200):
        capacity = float(rng.uniform(1e3, 1e6))
        held: list[float] = []

        def holds(rate: float, capacity: float = capacity, held: list[float] = held) -> bool:
            good = rate <= capacity * rng.uniform(0.9, 1.1)
            held += [rate] * good
            return bool(good)

        found = highest(holds, 50_000.0)
        assert found in held
        assert 0.5 * capacity < found < 1.15 * capacity


def test_a_path_that_holds_nothing_gives_nothing() -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return False

    assert highest(holds, 50_000.0) == 0.0
    assert len(tried) <= 11
