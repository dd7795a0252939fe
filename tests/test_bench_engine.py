"""`loadgrid bench engine`: the bare loop, the size of the tests, and both figures from one worker."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from orchestrator import children
from orchestrator.bench_engine import (
    FIELDS,
    EngineBench,
    EngineBenchError,
    one_worker,
    remark,
    sized,
    spread,
)
from orchestrator.manifest import Manifest, load_manifest
from orchestrator.plan import plan
from orchestrator.rules import load_round
from orchestrator.settings import offline_samples_per_query
from tests.made_ragged import RunsTask
from tests.program import Program
from tests.ray_nodes import LocalRay
from workers import models
from workers.backends import Backend, open_backend
from workers.bare import bare_loop
from workers.library import Library
from workers.tasks import Task
from workers.tasks.null import NullTask
from workers.tasks.tensor import TensorTask

TIME_BUDGET_S = 60
# 4 ms a batch of eight: 2,000 samples a second, whatever machine this is.
MANIFEST = """
name: echoes
round: v6.1
suite: datacenter,edge
division: closed
benchmark: resnet
scenarios: [Server]
task: {{name: "null", count: 100}}
backend: {{engine: echo, service_time_us: 4000}}
workers: {{where: {where}, count: 3, max_batch: 8}}
loadgen:
  performance_sample_count_override: 100
  min_duration: 600000
  Offline: {{target_qps: 77}}
"""


def manifest(folder: Path, where: str = "local") -> Path:
    file = folder / "echoes.yaml"
    file.write_text(MANIFEST.format(where=where))
    return file


def bench(folder: Path, where: str, *arguments: str, env: Any = None, lasts: float = 0.4) -> dict[str, Any]:
    size = ["--seconds", str(lasts), "--rounds", "2", "--json"]
    command = ["bench", "engine", str(manifest(folder, where)), *size, *arguments]
    with Program(folder, *command, env=env) as program:
        assert program.end(90.0) == 0, program.said
        program.nothing_left_in(5.0)
    (line,) = program.lines
    found: dict[str, Any] = json.loads(line)
    return found


def check(found: dict[str, Any], where: str) -> None:
    assert set(found) == set(FIELDS)
    assert (found["engine"], found["where"], found["max_batch"]) == ("echo", where, 8)
    assert found["samples"] % 8 == 0 and 400 <= found["samples"] <= 1000
    assert found["rows_per_s_bare"] is None and len(found["rounds"]) == 2
    # Batches of eight that take 4 ms each, and two may be in the engine.
    assert 1000 < found["samples_per_s_bare"] <= 2010
    assert 500 < found["samples_per_s_loadgrid"] <= 2010
    ratios = [one["ratio"] for one in found["rounds"]]
    assert found["ratio"] == pytest.approx(median(ratios), abs=0.001)
    assert (found["ratio_lowest"], found["ratio_highest"]) == (min(ratios), max(ratios))
    # A local worker's bare loop is the end of its test's process.
    assert [one["first"] for one in found["rounds"]] == ["loadgrid", "bare" if where == "ray" else "loadgrid"]


def test_a_local_worker_is_measured_bare_and_through_loadgrid(tmp_path: Path) -> None:
    check(bench(tmp_path, "local"), "local")


def test_a_ray_worker_is_measured_bare_and_through_loadgrid(tmp_path: Path, local_ray: LocalRay) -> None:
    check(bench(tmp_path, "ray", "--address", local_ray.address, env=local_ray.env), "ray")


def test_a_test_has_as_many_samples_as_were_asked_for_and_one_worker(tmp_path: Path) -> None:
    chosen: Manifest = sized(one_worker(load_manifest(manifest(tmp_path))), 1234)
    (spec,) = plan(chosen, load_round(chosen.round))
    assert spec.name == "Offline-performance" and chosen.workers.count == 1
    assert offline_samples_per_query(spec.settings, 100) == 1234
    assert spec.performance_sample_count == 100
    assert chosen.resolve("x") == str(tmp_path / "x")  # it still knows its folder


def test_rounds_that_lie_far_apart_are_remarked() -> None:
    assert remark(*spread([0.97, 1.0, 0.96])) is None
    assert spread([0.8, 1.0, 0.9]) == (0.9, 0.8, 1.0)
    assert "lie 22% apart" in str(remark(0.9, 0.8, 1.0))


DYING = """
import runpy, sys
from workers import host

def dies(*_):
    {how}

host.bare_loop = dies
runpy.run_module("orchestrator.testrun", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise RuntimeError('the engine broke')", "RuntimeError: the engine broke"),
        ("import os; os.kill(os.getpid(), 9)", "the test process died (signal SIGKILL)"),
    ],
)
def test_a_backend_that_dies_in_the_bare_loop_is_not_told_as_a_failed_test(
    how: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADGRID_CACHE", str(tmp_path / "cache"))
    started = tmp_path / "dying.py"
    started.write_text(DYING.format(how=how))
    monkeypatch.setattr(children, "command", lambda _, *rest: [sys.executable, str(started), *rest])
    chosen = load_manifest(manifest(tmp_path))
    with (
        EngineBench(chosen, "local", tmp_path / "runs", lambda text: None) as bench,
        pytest.raises(EngineBenchError) as told,
    ):
        bench.round(16)
    assert str(told.value).startswith("the test through LoadGrid finished, but the bare loop failed: ")
    assert says in str(told.value)


# The bare loop


class Watched:
    """A backend that remembers what it was given."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.sizes: list[int] = []
        self.indices: list[int] = []

    def submit(self, batch: Any) -> None:
        self.sizes.append(len(batch.indices))
        self.indices += batch.indices.tolist()
        self._backend.submit(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


ENGINES: dict[str, tuple[dict[str, Any], Task]] = {
    "echo, at once": ({"engine": "echo"}, NullTask({"count": 30})),
    "echo, service": ({"engine": "echo", "service_time_us": 300}, NullTask({"count": 30})),
    "torch": ({"engine": "torch", "model": "perceptron", "threads": 1}, TensorTask({"count": 30})),
    "torch, ragged": ({"engine": "torch", "model": "sums", "threads": 1}, RunsTask(30)),
}


@pytest.mark.parametrize("name", ENGINES)
def test_the_bare_loop_computes_every_sample_in_full_batches(
    name: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models._MODELS, "sums", "tests.made_ragged")
    options, task = ENGINES[name]
    library: Library = task.prepare(tmp_path)
    backend = open_backend(options, task, 8)
    backend.load()
    backend.warm_up()
    watched = Watched(backend)
    order = rng.integers(0, 30, 101)
    found = bare_loop(watched, library, order, task if task.ragged else None)
    assert watched.indices == order.tolist() and watched.sizes == [8] * 12 + [5]
    assert (found["samples"], found["batches"]) == (101, 13) and found["seconds"] > 0
    sizes = library.sizes[order] // 12
    assert found["rows"] == (sizes.sum() if task.ragged else None)
    assert backend.step() == []
    backend.close()
