"""The gate's checks of what belongs together: tests of one result, copied logs, runs with power."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.check.consistency import consistency
from orchestrator.check.finding import context_of
from orchestrator.check.power import power
from orchestrator.paths import DETAIL, SUMMARY
from orchestrator.submission.layout import POWER_FILES, SPL
from orchestrator.submission.tree import submissions
from tests.log_faults import changed, found, text, tree_of
from tests.made_trees import KINDS, MadeTree, made_tree

TIME_BUDGET_S = 30

V1, V6, EDGE = "v1.0-datacenter", "v6.1-edge", "v1.0-edge"


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_result_is_consistent(kind: str) -> None:
    tree = tree_of(kind)
    assert [found(consistency, tree, scenario) for scenario in tree.kind.scenarios] == [{}] * len(
        tree.kind.scenarios
    )


@pytest.mark.parametrize(
    "values",
    [
        {"loadgen_version": "1.0.1 @ 0123456789"},
        {"qsl_name": "another"},
    ],
)
def test_tests_of_another_loadgen_or_data_set_do_not_belong_to_a_result(values: dict[str, Any]) -> None:
    tree = tree_of(V1)
    for folder in (tree.accuracy(), tree.compliance("TEST05") / "performance" / "run_1"):
        with changed(folder, **values):
            assert found(consistency, tree) == {"tests-differ": "unseen"}


def copied(tree: MadeTree, model: str) -> Path:
    """All logs of a result under another model's name, as if they were its own."""
    source = tree.cell()
    return shutil.copytree(source, source.parent.parent / model / source.name)


def test_logs_of_another_benchmark_are_copies(tmp_path: Path) -> None:
    tree = made_tree(tmp_path, "v1.1-edge")
    copied(tree, "resnet50")
    assert found(consistency, tree) == {"copied-log": "unseen"}


def test_one_run_may_serve_both_targets_with_the_accuracy_that_it_had(tmp_path: Path) -> None:
    tree = made_tree(tmp_path, "v1.1-edge")
    other = copied(tree, "bert-99.9")
    assert found(consistency, tree) == {}
    log = other / "accuracy" / DETAIL
    log.write_text(log.read_text().replace("2021-03-07T23:59:12Z", "2021-03-07T23:59:13Z"))
    assert found(consistency, tree) == {"other-accuracy": "unseen"}


def test_logs_of_another_system_and_of_another_submitter_are_copies(tmp_path: Path) -> None:
    tree = made_tree(tmp_path, "v1.1-edge")
    results = tree.submission / "results"
    shutil.copytree(results / "2x-made-gpu", results / "another")
    assert set(found(consistency, tree)) == {"copied-log"}
    shutil.rmtree(results / "another")
    shutil.copytree(tree.submission, tree.submission.with_name("Somebody"))
    context = context_of(tree.root, "v1.1")
    for submission in submissions(tree.root):
        for cell in submission.cells():
            assert {one.rule for one in consistency(context, cell)} == {"copied-log"}


def test_an_inferred_scenario_shares_its_logs(tmp_path: Path) -> None:
    tree = made_tree(tmp_path, EDGE)
    shutil.rmtree(tree.cell("Offline"))
    shutil.copytree(tree.cell("SingleStream"), tree.cell("Offline"))
    assert found(consistency, tree, "Offline") == {}
    assert found(consistency, tree, "SingleStream") == {}


def test_an_accuracy_log_of_another_scenario_is_a_copy() -> None:
    tree = tree_of(V1)
    with text(tree.accuracy("Server") / DETAIL, (tree.accuracy("Offline") / DETAIL).read_text()):
        assert found(consistency, tree, "Server") == {"copied-log": "unseen"}


# Power

BEGIN = datetime(2021, 3, 8, 0, 0, 5, 233000)
STAMP = "%m-%d-%Y %H:%M:%S.%f"


def readings(begin: datetime, seconds: int, watts: float, mark: str, step: int = 1) -> str:
    times = [(begin + timedelta(seconds=at)).strftime(STAMP)[:-3] for at in range(1, seconds, step)]
    rows = [f"Time,{at},Watts,{watts},Volts,230.0,Amps,1.0,PF,0.9,Mark,{mark}" for at in times]
    return "\n".join(rows) + "\n"


@contextmanager
def measured(tree: MadeTree) -> Iterator[Path]:
    """A result with power: MADE readings of 300 W, ranging an hour before the test at 310 W."""
    top = tree.cell() / "performance"
    session = json.dumps({"session_name": "s", "timezone": 0})
    earlier = BEGIN - timedelta(hours=1)
    try:
        for name in POWER_FILES:
            (top / "power").mkdir(exist_ok=True)
            (top / "power" / name).write_text(session if name.endswith("json") else "made\n")
        shutil.copytree(top / "run_1", top / "ranging")
        log = (top / "ranging" / DETAIL).read_text().replace("03-08-2021 00:", "03-07-2021 23:")
        (top / "ranging" / DETAIL).write_text(log)
        (top / "ranging" / SPL).write_text(readings(earlier, 601, 310.0, "s_ranging"))
        (top / "run_1" / SPL).write_text(readings(BEGIN, 601, 300.0, "s_testing"))
        yield top
    finally:
        for name in ("power", "ranging"):
            shutil.rmtree(top / name, ignore_errors=True)
        (top / "run_1" / SPL).unlink(missing_ok=True)


@pytest.mark.parametrize("kind", [V1, V6, "v1.1-datacenter"])
def test_a_good_result_with_power_has_no_finding(kind: str) -> None:
    tree = tree_of(kind)
    assert found(power, tree) == {}
    with measured(tree):
        assert found(power, tree) == {}


YESTERDAY = readings(BEGIN - timedelta(days=1), 601, 300.0, "s_testing")
FAULTS = [
    (V1, f"run_1/{SPL}", YESTERDAY, "no-power-figure", "error"),
    (V1, f"run_1/{SPL}", "Time,soon,Watts,3\n", "no-power-figure", "error"),
    (V1, f"run_1/{SPL}", readings(BEGIN, 601, 300.0, "s_testing", step=5), "few-readings", "unseen"),
    (V1, f"run_1/{SPL}", readings(BEGIN, 601, 300.0, "t_testing"), "power-session", "unseen"),
    (V6, f"run_1/{SPL}", readings(BEGIN, 601, 294.5, "s_testing"), "below-ranging", "error"),
    (V1, "power/client.json", '{"session_name": "t", "timezone": 0}', "power-session", "unseen"),
    (V6, "power/client.json", '{"session_name": "t", "timezone": 0}', "power-session", "error"),
    (V1, "power/client.json", '{"session_name": "s"}', "no-power-figure", "error"),
    (V1, "power/notes.txt", "a note", "power-extra-file", "error"),
    (V6, f"ranging/{DETAIL}", "", "no-ranging", "error"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "content", "rule", "official"), FAULTS)
def test_a_fault_in_a_result_with_power_is_found(
    kind: str, name: str, content: str, rule: str, official: str
) -> None:
    tree = tree_of(kind)
    with measured(tree) as top, text(top / name, content):
        assert found(power, tree).get(rule) == official


def test_ranging_comes_before_the_test() -> None:
    tree = tree_of(V1)
    with measured(tree) as top:
        (top / "ranging" / DETAIL).write_text((top / "run_1" / DETAIL).read_text())
        assert found(power, tree) == {"ranging-order": "unseen"}


@pytest.mark.parametrize(
    "name", [f"run_1/{SPL}", f"ranging/{SPL}", "power/ptd_logs.txt", f"ranging/{SUMMARY}"]
)
def test_a_missing_file_of_power_is_found(name: str) -> None:
    tree = tree_of(V1)
    with measured(tree) as top:
        (top / name).unlink()
        assert found(power, tree) == {"power-file-missing": "error"}


def test_readings_without_the_power_clients_folder_are_found() -> None:
    tree = tree_of(V1)
    with measured(tree) as top:
        shutil.rmtree(top / "power")
        assert found(power, tree) == {"power-incomplete": "unseen"}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    raw=st.binary(max_size=200)
    | st.sampled_from([b'{"session_name": [1]}', b"Time,03-08-2021 00:00:09.000,W,1e400\n"]),
    name=st.sampled_from([f"run_1/{SPL}", f"ranging/{DETAIL}", f"ranging/{SPL}", "power/server.json"]),
)
def test_no_bytes_break_the_checks_of_power(raw: bytes, name: str) -> None:
    tree = tree_of("v6.1-datacenter")
    with measured(tree) as top, text(top / name, raw):
        found(power, tree)
        found(consistency, tree)
