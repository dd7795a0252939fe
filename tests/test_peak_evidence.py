"""What `loadgrid peak` takes for evidence of a simulated system, and what full-length tests say together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.course import HOPELESS, Course
from orchestrator.manifest import ManifestError, load_manifest
from orchestrator.paths import EARLIER, RECORD
from orchestrator.peak_history import HISTORY_FILE, PEAK_FILE
from orchestrator.record import Result, read_record
from tests import made_records
from tests.simulated_session import SERVER, System, in_place, search, told, written

TIME_BUDGET_S = 30


@pytest.fixture
def system(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    return in_place(System(rng), monkeypatch, tmp_path)


# What it does not take for a measurement


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ({"losses": [made_records.loss()]}, "it lost worker-1"),
        ({"status": "failed", "reason": "the test process died"}, "it failed: the test process died"),
    ],
)
def test_a_probe_with_a_loss_or_a_failure_ends_the_search(
    system: System, tmp_path: Path, fault: dict[str, Any], word: str
) -> None:
    system.faults = {1: fault}
    found = search(written(tmp_path), tmp_path / "runs")
    assert found.exit_code == 4 and len(system.ran) == 2 and word in found.trouble
    assert "go on with: loadgrid peak M --resume" in told(found)
    again = search(written(tmp_path), tmp_path / "runs", resume=True)
    assert again.exit_code == 0 and again.rows[0].before and not again.rows[1].before


def test_a_worker_that_is_lost_between_two_tests_ends_the_search_and_what_it_spoiled_runs_again(
    system: System, tmp_path: Path
) -> None:
    two = made_records.record("Server", samples=[10, 10]).workers
    runs = tmp_path / "runs"
    manifest = written(tmp_path, SERVER.replace("where: local, count: 1", "where: local, count: 2"))
    system.faults = {0: {"workers": two}}
    found = search(manifest, runs)
    assert found.exit_code == 4 and len(found.rows) == 1
    assert "only 1 of 2 workers took part in it" in found.trouble
    system.faults = {number: {"workers": two} for number in range(2, 40)}
    notes: list[str] = []
    again = search(manifest, runs, resume=True, notes=notes)
    assert again.exit_code == 0 and again.rows[0].before and not again.rows[1].before
    assert any(note.endswith("runs again: only 1 of 2 workers took part in it") for note in notes)


def test_a_test_on_other_devices_than_the_first_ends_the_search(system: System, tmp_path: Path) -> None:
    [worker] = made_records.record("Server", samples=[10]).workers
    system.faults = {1: {"workers": [worker.model_copy(update={"device": "cuda"})]}}
    found = search(written(tmp_path), tmp_path / "runs")
    words = "it ran on 1 worker on cuda, the first test of this search on 1 worker on cpu"
    assert found.exit_code == 4 and words in found.trouble


def test_a_probe_that_is_too_short_to_prove_anything_is_not_called_invalid(
    system: System, tmp_path: Path
) -> None:
    why = "a test of 41 queries proves nothing: 459 are the fewest"
    short = Course("cannot pass", why, 0, 1, 41, None, None, None)
    fault = {"status": "failed", "reason": f"{HOPELESS}: {why}", "course": short}
    system.faults = {0: fault}
    found = search(written(tmp_path), tmp_path / "runs")
    assert found.exit_code == 4 and not found.rows
    assert f"{why}; give min_query_count or min_duration more" in told(found)


def test_a_search_whose_first_probe_has_too_few_queries_is_refused_before_anything_runs(
    system: System, tmp_path: Path
) -> None:
    short = SERVER.replace("60000", "200").replace(", min_query_count: 270336", ", min_query_count: 1")
    words = r"yaml:14: loadgen.Server: the first probe, at 300 queries/s, cannot pass: a test of 61 queries "
    words += "proves nothing: 459 are the fewest; give min_query_count or min_duration more"
    with pytest.raises(ManifestError, match=words):
        search(written(tmp_path, short), tmp_path / "runs")
    assert not system.ran and not (tmp_path / "runs").exists()


# What full-length tests say together


def test_a_rate_that_was_valid_once_and_then_invalid_is_not_reported(system: System, tmp_path: Path) -> None:
    manifest, runs = written(tmp_path), tmp_path / "runs"
    first = search(manifest, runs)
    assert first.confirmed is not None and first.folder is not None
    rate = first.confirmed.seen.value
    # The same test once more, as `loadgrid run --resume` leaves it, and now it is INVALID.
    aside = first.confirmed.folder.with_name(f"{first.confirmed.folder.name}{EARLIER}1")
    shutil.copytree(first.confirmed.folder, aside)
    record = read_record(aside / RECORD)
    failed = record.result.model_copy(update={"valid": False})
    (aside / RECORD).write_bytes(record.model_copy(update={"result": failed}).to_json())
    again = search(manifest, runs, resume=True)
    assert len(again.full) > len(first.full) and aside in [row.folder for row in again.full]
    made = first.folder / PEAK_FILE
    if again.confirmed is None:
        assert not made.exists()
    else:
        assert again.confirmed.seen.value < rate
        assert load_manifest(made).loadgen.Server.target_qps == again.confirmed.seen.value
    history = json.loads((first.folder / HISTORY_FILE).read_text())["tests"]
    same = [test["verdict"] for test in history if (test["value"], test["length"]) == (rate, "full")]
    assert sorted(set(same)) == ["INVALID", "VALID"]


def test_no_option_buys_more_full_length_tests_than_a_search_may_have(system: System, tmp_path: Path) -> None:
    manifest, runs = written(tmp_path), tmp_path / "runs"
    invalid = Result(valid=False, metric="throughput", value=1.0, unit="queries/s", reasons=["late"])
    system.faults = {number: {"result": invalid} for number in range(3, 8)}
    first = search(manifest, runs, probes=3)
    assert [row.seen.held for row in first.full] == [False] * 4 and first.confirmed is None
    system.faults = {}
    for changed in ({"probes": 12}, {"probes": 20, "tune": True}):
        again = search(manifest, runs, resume=True, **changed)  # type: ignore[arg-type]
        assert [row.folder for row in again.full] == [row.folder for row in first.full]
        assert len(again.probes) > 3 and again.confirmed is None and again.exit_code == 1
        assert all(row.before for row in again.full) and told(again).count("INVALID") >= 4


def test_a_search_that_was_cut_short_says_that_there_may_be_more(system: System, tmp_path: Path) -> None:
    manifest, runs = written(tmp_path), tmp_path / "runs"
    short = search(manifest, runs, probes=2)
    assert short.confirmed is not None
    assert f"Highest tested, VALID: {short.confirmed.seen.value:,.10g} queries/s offered" in told(short)
    # More probes find more, and the tests of the first program stay in the evidence.
    more = search(manifest, runs, resume=True)
    assert more.confirmed is not None and more.confirmed.seen.value > short.confirmed.seen.value
    assert more.full[0].folder == short.full[0].folder and more.full[0].before
    assert len(more.full) <= 4 and "Highest VALID" in told(more)


def test_tests_that_count_no_more_stay_in_the_history(system: System, tmp_path: Path) -> None:
    manifest, runs = written(tmp_path), tmp_path / "runs"
    first = search(manifest, runs, probes=2)
    assert first.folder is not None and first.full
    file = first.folder / HISTORY_FILE
    body = json.loads(file.read_text())
    gone = body["tests"][-1] | {"started": "before the code was changed"}
    file.write_text(json.dumps(body | {"tests": [gone, *body["tests"]]}))
    for _ in range(2):
        search(manifest, runs, resume=True, probes=2)
        tests = json.loads(file.read_text())["tests"]
        assert tests == [gone | {"counts": False}, *body["tests"]]
