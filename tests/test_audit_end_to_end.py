"""`loadgrid run --compliance` with the real LoadGen and echo workers: what runs, is told, and is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.accuracy import read_accuracy_log
from orchestrator.logs import read_detail
from orchestrator.paths import ACCURACY_LOG, AUDIT_CONFIG, DETAIL, VERIFY_ACCURACY, VERIFY_PERFORMANCE
from orchestrator.record import Record
from tests.program import Program, manifest

TIME_BUDGET_S = 90

FOUND = "Found Audit Config file"
# In Server the rate follows from LoadGen's own schedule, so verdicts do not hang on this machine's pace.
PLAN = {"runs": "performance, accuracy", "count": 1000, "qps": 4000}
NEW = [f"{s}-{t}" for s in ("Server", "Offline") for t in ("TEST01", "TEST04")]
OLD = [f"Server-{t}" for t in ("TEST01", "TEST04-A", "TEST04-B", "TEST05")]


def started(folder: Path, round_name: str, scenarios: str) -> Program:
    """The program over a manifest that names results only."""
    file = manifest(folder, **{**PLAN, "scenarios": scenarios})
    file.write_text(file.read_text().replace("round: v6.1", f"round: {round_name}"))
    return Program(folder, "run", file, "--compliance")


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A run of round v6.1, after its end."""
    with started(tmp_path_factory.mktemp("newest"), "v6.1", "Server, Offline") as program:
        program.end(float(TIME_BUDGET_S))
        yield program


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A run of round v1.0 in Server, after its end."""
    with started(tmp_path_factory.mktemp("old"), "v1.0", "Server") as program:
        program.end(float(TIME_BUDGET_S))
        yield program


def folders_of(program: Program) -> list[str]:
    (run,) = program.runs.glob("echoes-*")
    return sorted(path.name for path in run.iterdir() if path.is_dir())


def shown(program: Program, test: str) -> dict[str, Any]:
    return read_detail(program.test_folder(test) / DETAIL).values


def judged(program: Program, test: str) -> Record:
    record = program.record(test)
    assert (record.kind, record.status) == ("compliance", "finished"), program.said
    assert record.audit is not None
    return record


def test_every_test_of_the_round_runs_and_has_a_record(newest: Program, old: Program) -> None:
    results = [f"{s}-{t}" for s in ("Server", "Offline") for t in ("accuracy", "performance")]
    assert folders_of(newest) == sorted(results + NEW), newest.said
    assert folders_of(old) == sorted(["Server-accuracy", "Server-performance", *OLD]), old.said
    assert "Traceback" not in newest.said + old.said


def test_verdicts_are_in_the_records_and_on_the_terminal(newest: Program, old: Program) -> None:
    for program, names in ((newest, ["Server-TEST01", "Server-TEST04"]), (old, OLD)):
        for name in names:
            audit = judged(program, name).audit
            assert audit is not None and audit.good, (name, audit)
            assert audit.awaited is (name == "Server-TEST04-A")
    for name in NEW:
        audit = judged(newest, name).audit
        assert audit is not None and audit.passed is not None
        assert f"{name}: {'PASS' if audit.passed else 'FAIL'}" in newest.said
    assert "Server-TEST04-A: RUN" in old.said and "judged together with Server-TEST04-B" in old.said


def test_the_official_words_lie_beside_the_logs(newest: Program, old: Program) -> None:
    for program, name in ((newest, "Server-TEST01"), (newest, "Server-TEST04"), (old, "Server-TEST04-B")):
        folder = program.test_folder(name)
        assert "\nTEST PASS\n" in (folder / VERIFY_PERFORMANCE).read_text()
        assert (folder / VERIFY_ACCURACY).exists() is name.endswith("TEST01")
        assert VERIFY_PERFORMANCE in program.record(name).files
    assert not (old.test_folder("Server-TEST04-A") / VERIFY_PERFORMANCE).exists()


def test_test01_logs_some_answers_and_they_are_the_accuracy_tests(newest: Program) -> None:
    folder = newest.test_folder("Server-TEST01")
    logged = list(read_accuracy_log(folder / ACCURACY_LOG))
    answers = judged(newest, "Server-TEST01").audit.answers  # type: ignore[union-attr]
    assert answers is not None and answers.logged == len(logged) > 100
    assert (answers.dtype, answers.first_differ, answers.whole_differ, answers.missing) == ("int32", 0, 0, 0)
    assert all(one.data == one.qsl_idx.to_bytes(4, "little") for one in logged)


def test_loadgen_did_what_the_audit_asks_for(newest: Program, old: Program) -> None:
    assert shown(newest, "Server-TEST01")["effective_accuracy_log_rng_seed"] == 720381539243781796
    same = shown(newest, "Server-TEST04")
    assert (same["effective_performance_issue_same"], same["effective_performance_issue_same_index"]) == (
        True, 3,
    )  # fmt: skip
    assert shown(old, "Server-TEST04-A")["effective_performance_issue_unique"] is True
    # LoadGen 6 ignores the seeds of an audit.config: ours it has from attributes.
    assert shown(old, "Server-TEST05")["effective_schedule_rng_seed"] == 413914573387865862
    for program, names in ((newest, NEW), (old, OLD)):
        for name in names:
            text = "\n".join(judged(program, name).unofficial_because)
            assert "LoadGen's log" not in text and "audit_setting" not in text


def test_an_audit_config_is_seen_by_its_own_test_and_by_no_other(newest: Program, old: Program) -> None:
    for program in (newest, old):
        for name in folders_of(program):
            folder = program.test_folder(name)
            audit = "TEST" in name
            assert (folder / AUDIT_CONFIG).exists() is audit
            assert (FOUND in (folder / DETAIL).read_text()) is audit, name
    assert not list(newest.runs.parent.glob(AUDIT_CONFIG))
    plain = shown(newest, "Offline-performance")
    assert plain["effective_accuracy_log_sampling_target"] == 0
    assert plain["effective_performance_issue_same"] is False
    assert json.loads((newest.test_folder("Offline-performance") / ACCURACY_LOG).read_text() or "[]") == []
