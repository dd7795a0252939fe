"""Run folders as a compliance test finds them: logs and records of the tests before it, made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.audit_verify import Case
from orchestrator.logs import DetailLog, read_detail
from orchestrator.paths import ACCURACY_LOG, DETAIL, RECORD
from orchestrator.rules import load_round
from tests import made_records
from tests.made_logs import accuracy_log
from tests.test_record import mllog
from workers.library import Library, LibraryWriter

Answers = Sequence[tuple[int, bytes]]


def log_text(round_name: str, scenario: str, score: float, error: str = "", **changed: Any) -> str:
    """A detail log with a VALID score, and what is changed; None leaves a key out."""
    values: dict[str, Any] = {
        "effective_scenario": scenario,
        "result_validity": "VALID",
        load_round(round_name).result_keys[scenario]: score,
        "effective_target_latency_ns": 15_000_000,
        "effective_performance_issue_unique": False,
        "effective_performance_issue_same": False,
        **changed,
    }
    lines = [mllog(key, value) for key, value in values.items() if value is not None]
    return "".join([*lines, *([mllog("error_runtime", error, is_error=True)] if error else [])])


def detail(
    tmp_path: Path, round_name: str, scenario: str, score: float, error: str = "", **changed: Any
) -> DetailLog:
    path = tmp_path / "one.txt"
    path.write_text(log_text(round_name, scenario, score, error, **changed))
    return read_detail(path)


def label_library(folder: Path, labels: Sequence[int], **meta: Any) -> Library:
    """Samples whose true labels these are; answers are int32."""
    with LibraryWriter(folder, "made", {"scorer": "top1", "label_dtype": "int32", **meta}) as writer:
        for _ in labels:
            writer.add(b"x")
        writer.add_array("labels", np.array(labels, np.int64))
        return writer.finish()


def finished_test(folder: Path, log: str, answers: Answers | None = None, **changed: Any) -> None:
    """A test's folder with its logs, and a record that names their hashes."""
    folder.mkdir(parents=True)
    (folder / DETAIL).write_text(log)
    if answers is not None:
        accuracy_log(folder / ACCURACY_LOG, answers)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    record = made_records.record("Offline", **{"files": files, "test": folder.name, **changed})
    (folder / RECORD).write_bytes(record.to_json())


def case_of_test01(
    tmp_path: Path,
    library: Library,
    accurate: Answers,
    logged: Answers,
    *,
    round_name: str = "v6.1",
    benchmark: str = "resnet",
    scores: tuple[float, float] = (1000.0, 1000.0),
) -> Case:
    """A TEST01 in Offline that has ended, after a performance and an accuracy test."""
    run, found = tmp_path / "run", load_round(round_name)
    finished_test(run / "Offline-performance", log_text(round_name, "Offline", scores[0]))
    finished_test(run / "Offline-accuracy", mllog("effective_scenario", "Offline"), accurate)
    own = run / "Offline-TEST01.partial"
    own.mkdir()
    (own / DETAIL).write_text(log_text(round_name, "Offline", scores[1]))
    accuracy_log(own / ACCURACY_LOG, logged)
    return Case(found, found.benchmark(benchmark), "Offline", "TEST01", own, run, library)
