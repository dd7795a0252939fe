"""Our MultiStream end to end over echo workers: the child process, its logs, the record, the command."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.dispatch import Completion
from orchestrator.loadgen import Callbacks
from orchestrator.logs import read_detail
from orchestrator.metronome import CLOCK_LOOKS, Metronome
from orchestrator.old_logs import GENERATOR
from orchestrator.order import TestOrder
from orchestrator.paths import DETAIL
from orchestrator.query_samples import columns
from orchestrator.record import read_record
from orchestrator.supervise import Hooks, run_test
from tests.old_multistream import MANIFEST, settings
from tests.program import Program
from tests.real_loadgen import SAMPLES, SEEDS, ThreadFleet, order_of
from workers.protocol import Buffer

TIME_BUDGET_S = 60

SETTINGS = {
    **SEEDS,
    "multi_stream_target_qps": 100.0,
    "multi_stream_target_latency_percentile": 0.99,
    "multi_stream_samples_per_query": 8,
    "multi_stream_max_async_queries": 1,
    "min_duration_ms": 0,
    "max_duration_ms": 0,
    "min_query_count": 60,
    "max_query_count": 0,
    "performance_sample_count_override": 200,
    "test05": False,  # a word of later LoadGens, which the plan always has
}


def order(folder: Path, test: str = "performance", **changes: Any) -> TestOrder:
    expected = {**SETTINGS, **changes.pop("expected", {})}
    return order_of(folder, "MultiStream", test, asker="fixed_interval", expected=expected, **changes)


def run(wanted: TestOrder, fleet: Any = None) -> dict[str, Any]:
    """The values of the detail log."""
    outcome = run_test(wanted, fleet, Hooks())
    assert (outcome.status, outcome.reason) == ("finished", "")
    log = read_detail(Path(wanted.out_dir) / "mlperf_log_detail.txt")
    assert log.errors == [] and len(log.warnings) == 1
    assert outcome.board.total("issued") == outcome.board.total("completed") > 0
    assert outcome.result["loadgen_file"] == "orchestrator/fixed_interval.py"
    assert len(outcome.result["loadgen_sha256"]) == 64
    return log.values


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_performance_test_keeps_its_interval_and_counts_its_queries(tmp_path: Path, over_tcp: bool) -> None:
    changes: dict[str, Any] = {}
    fleet = ThreadFleet(2) if over_tcp else None
    if fleet is not None:
        changes = {"workers": fleet.seats(), "local": None}
    wanted = order(tmp_path, **changes)
    began = time.monotonic()
    found = run(wanted, fleet)
    assert time.monotonic() - began >= 0.6
    assert found["loadgen_version"] == GENERATOR
    assert found["result_min_queries_met"] and found["effective_min_sample_count"] == 480
    assert found["result_validity"] in ("VALID", "INVALID")  # 60 queries: one stall of this machine decides
    assert 0 < found["result_50.00_percentile_per_query_latency_ns"] < 10e6
    summary = (Path(wanted.out_dir) / "mlperf_log_summary.txt").read_text()
    assert "Samples per query : 8\n" in summary and "No errors encountered during test." in summary


def test_an_accuracy_test_answers_every_sample_with_its_own_bytes(tmp_path: Path) -> None:
    wanted = order(tmp_path, "accuracy", expected={"multi_stream_target_qps": 500.0})
    values = run(wanted)
    assert "result_validity" not in values and values["effective_test_mode"] == "AccuracyOnly"
    entries = json.loads((Path(wanted.out_dir) / "mlperf_log_accuracy.json").read_text())
    # Each of the sets of 200, 200 and 100 fills its last query up.
    assert len(entries) == 200 + 200 + 104
    assert {entry["qsl_idx"] for entry in entries} == set(range(SAMPLES))
    assert sorted(entry["seq_id"] for entry in entries) == list(range(504))
    for entry in entries:
        assert bytes.fromhex(entry["data"]) == entry["qsl_idx"].to_bytes(4, "little")


def test_a_performance_test_can_log_some_answers_for_an_audit(tmp_path: Path) -> None:
    wanted = order(tmp_path, expected={"accuracy_log_sampling_target": 100, "accuracy_log_rng_seed": 5})
    run(wanted)
    entries = json.loads((Path(wanted.out_dir) / "mlperf_log_accuracy.json").read_text())
    assert 50 < len(entries) < 150
    for entry in entries:
        assert bytes.fromhex(entry["data"]) == entry["qsl_idx"].to_bytes(4, "little")


def test_a_lost_worker_costs_no_query(tmp_path: Path) -> None:
    fleet = ThreadFleet(2)
    kills = iter([1])

    def on_tick(board: Any) -> None:
        if board.total("completed") > 50:
            for worker in kills:
                fleet.kill(worker)
                fleet._lost.append((f"w{worker}", "its process died"))

    wanted = order(tmp_path, workers=fleet.seats(), local=None, on_loss="reissue")
    outcome = run_test(wanted, fleet, Hooks(on_tick=on_tick))
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert [loss["worker"] for loss in outcome.losses] == ["w1"]
    assert outcome.board.total("completed") == 60 * 8


# The loop by itself


class Prompt:
    """A system that answers in the callback, or in two parts."""

    def __init__(self, metronome: Metronome, parts: int) -> None:
        self.metronome, self.parts = metronome, parts
        self.issued_ns: list[int] = []

    def issue(self, samples: Buffer) -> None:
        self.issued_ns.append(time.monotonic_ns())
        for part in np.array_split(columns(samples)[0][::-1], self.parts):
            sizes = np.full(len(part), 1)
            self.metronome.complete(Completion(part, np.zeros(len(part), np.uint8), sizes * 0, sizes))


@pytest.mark.parametrize("parts", [1, 2])
def test_queries_never_go_out_early(tmp_path: Path, parts: int) -> None:
    metronome = Metronome()
    system = Prompt(metronome, parts)
    callbacks = Callbacks(issue=system.issue, load=lambda x: None, unload=lambda x: None)
    began = time.monotonic_ns()
    metronome.run(settings(target_qps=200.0, min_query_count=40), callbacks, 50, 50, tmp_path)
    issued = np.array(system.issued_ns)
    assert len(issued) == 40
    assert (issued - began >= np.arange(1, 41) * 5_000_000).all()
    assert np.median(np.diff(issued)) == pytest.approx(5_000_000, rel=0.2)


def test_an_answer_before_any_question_is_refused() -> None:
    with pytest.raises(ValueError, match="before any question"):
        Metronome().complete(Completion(np.zeros(1, np.uint64), np.zeros(1, np.uint8), None, 1))


@pytest.mark.parametrize(
    ("rate", "pause_s", "told"),
    [(1.0, 0.02, ""), (1.005, 0.0, "warning_generic_message"), (1.02, 0.0, "error_runtime")],
)
def test_clocks_that_part_are_told_and_a_pause_between_two_readings_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, pause_s: float, told: str
) -> None:
    readings = itertools.count()

    def wall_ns() -> int:
        time.sleep(pause_s * (next(readings) % CLOCK_LOOKS == 0))
        return int(time.monotonic_ns() * rate)

    monkeypatch.setattr(time, "time_ns", wall_ns)
    metronome = Metronome()
    callbacks = Callbacks(issue=Prompt(metronome, 1).issue, load=lambda x: None, unload=lambda x: None)
    metronome.run(settings(target_qps=200.0, min_query_count=40), callbacks, 50, 50, tmp_path)
    log = read_detail(tmp_path / DETAIL)
    said = [line for line in (*log.errors, *log.warnings) if "clock" in line]
    assert [line.partition(":")[0] for line in said] == [told] * bool(told), said


# The program


def manifest(folder: Path, found: str = "v1.0", words: str = "") -> Path:
    file = folder / "streams.yaml"
    file.write_text(
        MANIFEST.format(round=found).replace("samples_per_query: 4", f"samples_per_query: 4{words}")
    )
    return file


def test_loadgrid_run_records_the_test_as_ours_and_unofficial(tmp_path: Path) -> None:
    with Program(tmp_path, "run", manifest(tmp_path, words=", target_qps: 100")) as program:
        assert program.end(40.0) in (0, 1)
    [path] = program.runs.glob("*/MultiStream-performance/record.json")
    record = read_record(path)
    assert record.status == "finished" and not record.official
    assert (
        record.loadgen["version"] == GENERATOR and record.loadgen["file"] == "orchestrator/fixed_interval.py"
    )
    assert any(why.startswith("loadgen: LoadGrid's own") for why in record.unofficial_because)
    assert (record.result.metric, record.result.value) == ("samples per query", 4.0)
    said = program.said
    assert "LoadGrid's own generator (unofficial)" in said and "4 samples a query, one every 10.0 ms" in said
