"""`loadgrid check` as a command: exit codes, its page and JSON, wrong places, the official checker's run."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from orchestrator.check import official
from orchestrator.check.finding import Context, Finding, context_of
from orchestrator.check.gate import judge
from orchestrator.check.official import OfficialRun, compared
from orchestrator.cli import app
from orchestrator.paths import DETAIL
from tests.made_checkouts import checkout
from tests.made_trees import MadeTree, change_json, made_tree, write

TIME_BUDGET_S = 60

KIND = "v6.1-datacenter"  # the smallest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> MadeTree:
    return made_tree(tmp_path_factory.mktemp("good") / "tree", KIND)


@pytest.fixture
def tree(good: MadeTree, tmp_path: Path) -> MadeTree:
    shutil.copytree(good.root, tmp_path / "tree")
    return MadeTree(tmp_path / "tree", good.kind)


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)], env={"COLUMNS": "200"})


def words(result: Result) -> str:
    """Everything that was said, whatever the width of the box it stands in."""
    return " ".join(result.output.replace("│", " ").split())


# The page, the JSON object, exit codes


def test_a_tree_without_a_fault_ends_with_0(tree: MadeTree) -> None:
    result = check(tree.root, "--round", "v6.1")
    assert result.exit_code == 0
    assert result.output == "nothing is wrong: 1 result by the rules of v6.1\n"


def test_a_finding_is_told_with_file_rule_and_mend_and_ends_with_1(tree: MadeTree) -> None:
    (tree.measurements() / "README.md").unlink()
    result = check(tree.root, "--round", "v6.1")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "closed/Made: 2x-made-gpu/3d-unet-99/Offline",
        "  readme-missing: README.md is missing",
        "      results/2x-made-gpu/3d-unet-99/Offline/README.md",
        "      mend: write how to repeat this run: commands, data, software versions",
        "      the official checker exits with 1",
        "",
        "1 finding in 1 result by the rules of v6.1: 1 fail the official checker, "
        "0 are only logged by it, 0 are not seen by it",
    ]


def test_findings_that_say_the_same_are_told_once_with_the_first_paths(tree: MadeTree) -> None:
    for number in range(9):
        write(tree.submission / "src" / f".x{number}", "x")
    result = check(tree.root, "--round", "v6.1")
    assert result.output.count("dotfile") == 1
    assert "and 5 more" in result.output


def test_json_holds_every_finding(tree: MadeTree) -> None:
    for number in range(9):
        write(tree.submission / "src" / f".x{number}", "x")
    result = check(tree.root, "--round", "v6.1", "--json")
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert told["counts"] == {"all": 9, "error": 0, "logged": 0, "unseen": 9}
    assert told["findings"][0] == {
        "rule": "dotfile",
        "path": "closed/Made/src/.x0",
        "message": "names that begin with a dot are not to be submitted",
        "mend": "remove it",
        "official": "unseen",
    }
    assert told["official"] is None


@pytest.mark.parametrize("below", ["closed", "closed/Made"])
def test_a_tree_given_too_low_is_told_where_it_begins(tree: MadeTree, below: str) -> None:
    result = check(tree.root / below, "--round", "v6.1")
    assert result.exit_code == 1
    assert f"give the folder that holds closed or open or network: {tree.root}" in result.output


def test_a_tree_given_too_high_is_told_where_it_begins(tree: MadeTree) -> None:
    result = check(tree.root.parent, "--round", "v6.1")
    assert result.exit_code == 1
    assert f"give the folder that holds closed or open or network: {tree.root}" in result.output


def test_a_round_that_is_not_known_is_refused_with_those_that_are(tree: MadeTree) -> None:
    result = check(tree.root, "--round", "v0.7")
    assert result.exit_code == 2
    assert 'round "v0.7" is not one of v1.0, v1.1, v6.1' in words(result)


def test_a_tree_that_is_not_there_is_a_usage_error(tree: MadeTree) -> None:
    assert check(tree.root / "nothing", "--round", "v6.1").exit_code == 2
    assert check(tree.system_json, "--round", "v6.1").exit_code == 2


# Trees of strangers


def test_control_characters_in_names_do_not_reach_the_terminal(tree: MadeTree) -> None:
    write(tree.submission / "src" / "\x1b[31mred", "x")
    assert "\x1b" not in check(tree.root, "--round", "v6.1").output


def test_folders_where_files_should_be_and_files_where_folders_should_be_are_findings(tree: MadeTree) -> None:
    for path in (tree.system_json, tree.performance() / DETAIL, tree.measurements() / "user.conf"):
        path.unlink()
        path.mkdir()
    shutil.rmtree(tree.accuracy())
    tree.accuracy().write_text("x")
    shutil.rmtree(tree.submission / "src")
    (tree.submission / "src").write_text("x")
    rules = {finding.rule for finding in judge(context_of(tree.root, "v6.1"))}
    assert {
        "system-missing",
        "file-missing",
        "user-conf-missing",
        "accuracy-missing",
        "code-missing",
    } <= rules


def test_a_linked_result_is_not_followed(tree: MadeTree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    tree.cell().rename(outside)
    tree.cell().symlink_to(outside)
    (tree.submission / "systems" / "loop").symlink_to(tree.submission / "systems")
    found = judge(context_of(tree.root, "v6.1"))
    assert {"symlink", "no-results"} <= {finding.rule for finding in found}
    assert not any("outside" in finding.path for finding in found)


def test_a_tree_may_be_nested_deeper_than_the_stack(tree: MadeTree) -> None:
    start, made = os.getcwd(), 0
    os.chdir(tree.submission / "src")
    try:
        while made < 1500:
            os.mkdir("d")
            os.chdir("d")
            made += 1
        rules = {finding.rule for finding in judge(context_of(tree.root, "v6.1"))}
    finally:
        for _ in range(made):  # shutil.rmtree, and so pytest, could not
            os.chdir("..")
            os.rmdir("d")
        os.chdir(start)
    assert "long-path" in rules


def test_a_tree_is_judged_alike_however_it_is_named(tree: MadeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.measurements() / "user.conf").unlink()
    beside = tree.root.parent / "beside"
    beside.mkdir()
    monkeypatch.chdir(beside)
    ways = [tree.root, Path("..") / tree.root.name, beside / ".." / tree.root.name]
    found = [{(f.rule, f.path) for f in judge(context_of(way, "v6.1"))} for way in ways]
    assert found[0]
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_finding(tree: MadeTree) -> None:
    tree.measurements().chmod(0)
    try:
        assert "unreadable" in {finding.rule for finding in judge(context_of(tree.root, "v6.1"))}
    finally:
        tree.measurements().chmod(stat.S_IRWXU)


@given(
    data=st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b"1" * 5000, b'{"retraining": {}}', b"\0"])
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_any_text_are_findings_and_never_a_traceback(tree: MadeTree, data: bytes) -> None:
    for path in (tree.system_json, tree.implementation_json(), tree.measurements() / "mlperf.conf"):
        path.write_bytes(data)
    assert judge(context_of(tree.root, "v6.1"))


# The official checker


PASS = "print('[2026 main.py:1 INFO] SUMMARY: submission looks OK')"
FAIL = "print('[2026 x.py:1 ERROR] {line}', file=sys.stderr); sys.exit({code})"


def test_the_official_checker_is_run_and_agrees(tree: MadeTree, tmp_path: Path) -> None:
    where = checkout(tmp_path, PASS)
    before = sorted(where.rglob("*"))
    result = check(tree.root, "--round", "v6.1", "--official", where)
    assert result.exit_code == 0
    assert "exit code 0, 0 ERROR lines" in result.output
    assert "LoadGrid and the official checker agree: nothing is wrong." in result.output
    assert sorted(where.rglob("*")) == before  # the user's checkout is not written to


def test_an_error_line_is_a_finding_even_if_the_checker_ends_with_0(tree: MadeTree, tmp_path: Path) -> None:
    where = checkout(tmp_path, FAIL.format(line="closed/Made is odd", code=0))
    result = check(tree.root, "--round", "v6.1", "--official", where, "--json")
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert [finding["rule"] for finding in told["findings"]] == ["official-only"]
    assert "closed/Made is odd" in told["findings"][0]["message"]
    assert told["official"]["errors"] == ["closed/Made is odd"]


def test_an_exit_code_without_a_word_is_a_finding(tree: MadeTree, tmp_path: Path) -> None:
    result = check(tree.root, "--round", "v6.1", "--official", checkout(tmp_path, "sys.exit(1)"))
    assert result.exit_code == 1
    assert "official-only" in result.output


def test_a_traceback_is_a_finding_with_its_last_line(tree: MadeTree, tmp_path: Path) -> None:
    where = checkout(tmp_path, "{}['x']")
    result = check(tree.root, "--round", "v6.1", "--official", where)
    assert result.exit_code == 1
    assert "the official checker ended with KeyError: 'x'" in result.output


def test_a_checkout_that_does_not_know_the_round_names_the_right_one(tree: MadeTree, tmp_path: Path) -> None:
    result = check(tree.root, "--round", "v1.0", "--official", checkout(tmp_path, PASS))
    assert result.exit_code == 2
    assert "knows v6.0, v6.1, and not v1.0; for v1.0 check out tag v1.0.1" in words(result)


def test_a_folder_that_is_no_checkout_says_what_one_is(tree: MadeTree, tmp_path: Path) -> None:
    result = check(tree.root, "--round", "v6.1", "--official", tmp_path)
    assert result.exit_code == 2
    assert "no checkout of mlcommons/inference" in words(result)


def test_a_checker_that_does_not_start_is_told(tree: MadeTree, tmp_path: Path) -> None:
    where = checkout(tmp_path, PASS)
    (where / "tools/submission/submission_checker/main.py").write_text("import not_here_at_all")
    result = check(tree.root, "--round", "v6.1", "--official", where)
    assert result.exit_code == 2
    assert "does not start: ModuleNotFoundError" in words(result)


@pytest.mark.parametrize("limit", ["nan", "inf", "1e400", "-1", "0"])
def test_a_time_limit_that_is_none_is_a_usage_error(tmp_path: Path, limit: str) -> None:
    result = check(tmp_path, "--round", "v6.1", "--official-limit", limit)
    assert result.exit_code == 2
    assert "is no number of seconds above 0" in words(result)


def test_a_checker_that_does_not_end_is_told(tree: MadeTree, tmp_path: Path) -> None:
    where = checkout(tmp_path, "import time; time.sleep(60)")
    result = check(tree.root, "--round", "v6.1", "--official", where, "--official-limit", 0.5)
    assert result.exit_code == 2
    assert "did not end in 0.5 s" in words(result)


def test_the_script_of_old_checkouts_is_found(tmp_path: Path) -> None:
    write(tmp_path / "tools" / "submission" / "submission-checker.py", "")
    assert official._program(tmp_path)[1][-1] == "submission-checker.py"


# Both against each other


@pytest.fixture
def context(good: MadeTree) -> Context:
    return context_of(good.root, "v6.1")


def one(path: str, kind: Any) -> Finding:
    return Finding("a-rule", path, "wrong", "mend it", kind)


def run(code: int, *errors: str) -> OfficialRun:
    return OfficialRun(Path("x"), ("checker",), code, errors, None)


CELL = "closed/Made/results/s/resnet/Offline"


def test_error_lines_about_a_result_with_a_finding_are_explained(context: Context) -> None:
    said = run(1, f"/t/{CELL}/performance seed is wrong", "a text", f"NoResults /t/{CELL}", "SUMMARY: bad")
    more, told = compared([one(f"{CELL}/performance/run_1/x", "error")], said, context)
    assert more == []
    assert told[-1] == "All that it says is explained by LoadGrid's findings."


def test_error_lines_about_another_result_are_not_explained(context: Context) -> None:
    said = run(1, "/t/closed/Made/results/s/resnet/Server/performance seed is wrong")
    more, told = compared([one(f"{CELL}/x", "error")], said, context)
    assert [finding.rule for finding in more] == ["official-only"]
    assert "it may be wrong there" in told[-1]


def test_a_scenario_that_counts_as_missing_is_explained_by_what_is_wrong_with_it(context: Context) -> None:
    said = run(1, "closed/Made/results/s/resnet does not have all required scenarios, missing {'Offline'}")
    more, _ = compared([one(f"{CELL}/performance/run_1/x", "error")], said, context)
    assert more == []


def test_a_finding_that_no_checker_sees_explains_no_error_line(context: Context) -> None:
    more, _ = compared([one(f"{CELL}/x", "unseen")], run(1, f"/t/{CELL} is wrong"), context)
    assert [finding.rule for finding in more] == ["official-only"]


def test_a_checker_that_passes_what_we_thought_it_would_not_is_said(context: Context) -> None:
    _, told = compared([one(f"{CELL}/x", "error"), one(f"{CELL}/y", "unseen")], run(0), context)
    assert told[0] == "The official checker passes the tree, LoadGrid does not: 2 findings."
    assert "It cannot see 1 of LoadGrid's findings." in told
    assert any("expected it to fail for 1 of them" in line for line in told)


def test_descriptions_may_change(tree: MadeTree) -> None:
    change_json(tree.system_json, cooling="water")
    assert judge(context_of(tree.root, "v6.1")) == []
