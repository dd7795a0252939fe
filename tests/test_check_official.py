"""The made trees and single faults against the real official checkers, where a user has them at hand.

LOADGRID_OFFICIAL is a folder with checkouts of mlcommons/inference: v1.0.1 (tag), r1.1 (branch), head.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.check.official import run_official
from tests.made_trees import KINDS, made_tree
from tests.tree_faults import Fault
from tests.tree_faults_new import NEW_FAULTS
from tests.tree_faults_old import OLD_FAULTS

TIME_BUDGET_S = 300  # only where the checkers are: a start of a checker for each of some 170 trees

OFFICIAL = Path(os.environ.get("LOADGRID_OFFICIAL", ""))
CHECKOUTS = {"v1.0": "v1.0.1", "v1.1": "r1.1", "v6.1": "head"}
FAULTS = (*OLD_FAULTS, *NEW_FAULTS)
pytestmark = pytest.mark.skipif(
    "LOADGRID_OFFICIAL" not in os.environ, reason="LOADGRID_OFFICIAL names no checkouts"
)


@pytest.mark.parametrize("kind", KINDS)
def test_official_checkers_pass_a_tree_without_a_fault(tmp_path: Path, kind: str) -> None:
    tree = made_tree(tmp_path / "tree", kind)
    run = run_official(OFFICIAL / CHECKOUTS[tree.kind.round], tree.root, tree.kind.round, 60)
    assert (run.exit_code, run.errors, run.crash) == (0, (), None)


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.kind.partition('-')[0]} {f.name}" for f in FAULTS])
def test_official_checkers_do_about_a_fault_what_its_rule_says(tmp_path: Path, fault: Fault) -> None:
    tree = made_tree(tmp_path / "tree", fault.kind)
    fault.broken(tree)
    run = run_official(OFFICIAL / CHECKOUTS[tree.kind.round], tree.root, tree.kind.round, 60)
    logged = run.errors or fault.name == "an unknown field"  # the one fault that is a WARNING
    assert ("error" if run.exit_code else "logged" if logged else "unseen") == fault.official
