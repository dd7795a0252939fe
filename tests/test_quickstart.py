"""The quickstart as a stranger runs it, only shorter: real photos, published weights, Ray, all four tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, DETAIL, MANIFEST, RECORD, SUMMARY, USER_CONF
from orchestrator.timings import STAGES
from tests.program import Program

TIME_BUDGET_S = 80

QUICKSTART = Path(__file__).resolve().parent.parent / "manifests" / "quickstart.yaml"
TESTS = ["Offline-performance", "Offline-accuracy", "Server-performance", "Server-accuracy"]
# 60 queries can show a 90th percentile, not the 99th: the real quickstart asks for 480 and needs 48 s.
SHORTER = {
    "min_duration: 1000 ": "min_duration: 200 ",
    "target_qps: 10 ": "target_qps: 12 ",
    "target_latency: 2000 ": "target_latency: 5000 ",
    "min_duration: 48000 ": "target_latency_percentile: 90\n    min_duration: 5000 ",
    "min_query_count: 480 ": "min_query_count: 50 ",
}
# What the issue says that a record has at least.
FIELDS = ["schema", "test", "round", "suite", "division", "benchmark", "scenario", "official"]
FIELDS += ["unofficial_because", "result", "accuracy", "settings", "seeds", "payload_mode", "workers"]
FIELDS += ["losses", "driver", "versions", "hashes"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The finished program, its files still there."""
    folder = tmp_path_factory.mktemp("quickstart")
    text = QUICKSTART.read_text()
    for old, new in SHORTER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "quickstart.yaml").write_text(text)
    with Program(folder, "run", "quickstart.yaml") as program:
        program.end(100.0)
        yield program


def test_every_test_is_good_and_no_process_is_left(quickstart: Program) -> None:
    assert quickstart.process.returncode == 0, quickstart.said
    assert "Traceback" not in quickstart.said
    quickstart.nothing_left_in(5.0)
    for test in TESTS:
        record = quickstart.record(test, "quickstart")
        assert (record.status, record.losses) == ("finished", [])
        assert record.result.valid is (True if record.kind == "performance" else None)


def test_eighteen_photos_or_more_are_known(quickstart: Program) -> None:
    for test in ("Offline-accuracy", "Server-accuracy"):
        accuracy = quickstart.record(test, "quickstart").accuracy
        assert accuracy is not None
        assert accuracy.good is not None and accuracy.good >= 18 and accuracy.total == 20
        assert accuracy.reached and accuracy.target == 90.0


@pytest.mark.parametrize("test", TESTS)
def test_a_record_has_every_field_that_was_promised(quickstart: Program, test: str) -> None:
    body = json.loads((quickstart.test_folder(test, "quickstart") / RECORD).read_text())
    assert set(FIELDS) <= set(body)
    assert body["test"] == test and body["schema"] == "loadgrid.record/1"
    assert body["official"] is False and len(body["unofficial_because"]) >= 3
    assert {"valid", "metric", "value", "unit", "reasons"} <= set(body["result"])
    assert {"cpu_us_per_sample", "issue_lateness"} <= set(body["driver"])
    assert len(body["seeds"]) == 3 and body["payload_mode"] == "index"
    assert body["versions"]["mlcommons-loadgen"] == "6.0.17"
    assert body["loadgen"]["version"].startswith("6.0.17") and len(body["loadgen"]["sha256"]) == 64
    assert all(len(body["hashes"][name]) == 64 for name in ("manifest", "user_conf", "library"))
    assert [worker["name"] for worker in body["workers"]] == ["worker-0", "worker-1"]
    for worker in body["workers"]:
        assert {"name", "node", "device", "model_hash", "samples", "batches", "stages"} <= set(worker)
        assert worker["device"] == "cpu" and len(worker["model_hash"]) == 64
        if body["kind"] == "performance":  # twenty photos in all may well find the same one idle
            assert worker["samples"] > 0 and worker["batches"] > 0
        assert set(worker["stages"]) == set(STAGES)
        assert worker["facts"]["weights"] == "efficientnet-lite0-57934424.pth"
        assert worker["facts"]["niceness"] == 0
        assert re.fullmatch("[0-9a-f]{64}", worker["facts"]["weights_sha256"])
    assert len({worker["model_hash"] for worker in body["workers"]}) == 1
    if test == "Server-performance":
        assert body["driver"]["issue_lateness"]["queries"] >= 50


def test_the_files_are_where_the_table_says(quickstart: Program) -> None:
    (run,) = quickstart.runs.iterdir()
    assert (run / MANIFEST).read_bytes() == (quickstart.runs.parent / "quickstart.yaml").read_bytes()
    assert f"files  runs/{run.name}" in quickstart.said
    for test in TESTS:
        assert f"runs/{run.name}/{test}" in quickstart.said
        wanted = {RECORD, USER_CONF, DETAIL, SUMMARY, ACCURACY_LOG}
        names = {path.name for path in (run / test).iterdir()}
        assert wanted | ({ACCURACY_TXT} if test.endswith("accuracy") else set()) <= names
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == sorted(TESTS)
    assert (run / MANIFEST).is_file() and (run / "report.html").is_file()


def test_the_end_is_a_table_for_newcomers(quickstart: Program) -> None:
    table = quickstart.said[quickstart.said.rindex("quickstart: 4 of 4 tests good") :]
    for words in (*TESTS, "p50 ms", "p90 ms", "p99 ms", "VALID", "REACHED"):
        assert words in table, table
    assert re.search(r"(18|19|20)/20 = ", table), table
    assert "Where did the latency go?" in quickstart.said
    assert "driver" in quickstart.said


# torch


def test_neither_the_test_process_nor_a_scorer_nor_the_driver_loads_torch() -> None:
    modules = ["orchestrator.testrun", "orchestrator.accuracy", "orchestrator.evidence", "orchestrator.cli"]
    modules += ["workers.tasks.imagenet_photos", "workers.tasks.tensor", "workers.tasks.null"]
    imports = "; ".join(f"import {module}" for module in modules)
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; {imports}; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "False\n"


def test_the_test_process_sends_real_photos_by_value_without_torch(tmp_path: Path) -> None:
    text = QUICKSTART.read_text()
    text = re.sub(r"backend:\n(  .*\n)+", "backend: {engine: echo}\n", text)
    text = re.sub(r"workers:\n(  .*\n)+", "workers: {where: local, count: 2}\n", text)
    text = text.replace("[Offline, Server] ", "[Server] ")
    (tmp_path / "photos.yaml").write_text(text + "\ndispatch: {payload: value}\n")
    with Program(tmp_path, "run", "photos.yaml") as program:
        program.wait_said(": running")
        (child,) = program.below("orchestrator.testrun")
        assert "torch" not in Path(f"/proc/{child}/maps").read_text()
        assert "mlperf_loadgen" in Path(f"/proc/{child}/maps").read_text()
