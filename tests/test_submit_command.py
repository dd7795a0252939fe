"""The command `loadgrid submit`: what it shows, which exit code it ends with, what it is told on its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.campaign import EXIT_INVALID, EXIT_USAGE
from orchestrator.cli import app
from tests.made_runs import made_run, made_system

TIME_BUDGET_S = 20


def command(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["submit", *map(str, arguments)], env={"COLUMNS": "120"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_the_command_shows_the_tree_and_what_comes_next(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", ("SingleStream", "Offline", "MultiStream"))
    code, said = command(run, "--system", made_system(tmp_path), "--out", tmp_path / "tree")
    assert code == 0, said
    assert "0.91 ms" in said and "TEST01, TEST04" in said
    assert f"Next: loadgrid check {tmp_path}/tree --round v6.1" in said


def test_the_command_tells_what_is_missing_and_ends_with_1(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", tests=("performance", "accuracy"))
    fact = ("--fact", "retraining=No", "--fact", "resnet.input_data_types=fp32")
    code, said = command(run, "--system", made_system(tmp_path), "--out", tmp_path / "tree", *fact)
    assert code == EXIT_INVALID
    assert "scenario Offline is required" in said and "TEST01, TEST04 (`loadgrid run --compliance`)" in said


def test_fields_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "facts.yaml").write_text("retraining: from the file\nweight_data_types: fp16\n")
    arguments = ("--facts", tmp_path / "facts.yaml", "--fact", "weight_data_types=bf16")
    run, tree = made_run(tmp_path / "runs"), tmp_path / "tree"
    command(run, "--system", made_system(tmp_path), "--out", tree, *arguments)
    told = json.loads(
        (tree / "closed/ACME/results/sys-1/resnet50/SingleStream/measurements.json").read_text()
    )
    assert (told["retraining"], told["weight_data_types"]) == ("from the file", "bf16")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere is no folder of records"),
        (["."], "holds no record.json"),
        (["runs", "--fact", "retraining"], "--fact takes NAME=VALUE"),
        (["runs", "--fact", "retraining=No", "--fact", "retraining=Yes"], "is given twice"),
        (["runs", "--facts", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["runs", "--system", "nowhere.json"], "nowhere.json is not there"),
    ],
)
def test_bad_words_end_with_2_and_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    system = [] if "--system" in arguments else ["--system", made_system(tmp_path).name]
    if arguments[0] == "runs":
        made_run(tmp_path / "runs", tests=("performance", "accuracy"))
    code, said = command(*arguments, *system, "--out", "tree")
    assert (code, "Traceback" in said) == (EXIT_USAGE, False)
    assert told in said
