"""`loadgrid log` and `loadgrid results --round`: rounds that never were, and seeds that speak against one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.logs import LogError
from orchestrator.named_round import ROUNDS, named_round
from orchestrator.paths import DETAIL
from orchestrator.rules import load_round, round_names
from tests import made_logs, made_results

TIME_BUDGET_S = 10


def of_round(name: str, log: str) -> str:
    """A log of made_logs with the seeds of a round."""
    for key, seed in load_round(name).seeds.items():
        log = log.replace(str(made_logs.SEEDS[key]), str(seed))
    return log


def submission(root: Path, seeds: str) -> Path:
    """A tree of one result, with the seeds of a round."""
    made_results.system(root / "closed" / "Acme", "box")
    cell = made_results.result(root / "closed" / "Acme", "box/resnet50/Offline", 10.5)
    log = cell / "performance" / "run_1" / DETAIL
    log.write_text(of_round(seeds, log.read_text()))
    return root


@pytest.mark.parametrize("command", ["log", "results"])
@pytest.mark.parametrize("word", ["v9.9", "v1.2", "v1.0.1", "newest", ""])
def test_a_round_that_never_was_is_refused(command: str, word: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [command, str(submission(tmp_path, "v1.0")), "--round", word])
    assert done.exit_code == 2 and not done.stdout
    said = " ".join(done.stderr.replace("│", " ").split())
    assert f'--round "{word}" is not one of v0.5, v0.7, v1.0' in said and "v6.0, v6.1" in said


def test_every_round_that_was_may_be_named_with_or_without_its_v() -> None:
    assert [named_round(name[1:]) for name in ROUNDS] == [named_round(name.upper()) for name in ROUNDS]
    assert set(round_names()) <= set(ROUNDS)
    with pytest.raises(LogError, match="is not one of"):
        named_round("v6.2")


@pytest.mark.parametrize(("seeds", "told"), [("v1.0", True), ("v6.1", False)])
def test_seeds_of_another_round_than_the_named_one_are_remarked(
    seeds: str, told: bool, tmp_path: Path
) -> None:
    tree, written = submission(tmp_path / "tree", seeds), tmp_path / "table.json"
    done = CliRunner().invoke(app, ["log", str(tree), "--json", "--round", "v6.1"])
    remark = "the seeds are those of v1.0, but --round says v6.1"
    assert (remark in json.loads(done.stdout)["remarks"]) is told
    CliRunner().invoke(app, ["results", str(tree), "--json", str(written), "--round", "6.1"])
    assert (f"tree: closed/Acme/results/box/resnet50/Offline: {remark}" in written.read_text()) is told


def test_seeds_of_no_known_round_say_nothing_against_the_named_one(tmp_path: Path) -> None:
    made_logs.write(tmp_path, made_logs.detail("5.1", "Offline", {"result_samples_per_second": 10.5}))
    done = CliRunner().invoke(app, ["log", str(tmp_path), "--round", "v5.1"])
    assert done.exit_code == 0 and "the seeds are those" not in done.stdout
