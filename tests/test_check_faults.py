"""`loadgrid check`: a tree without a fault has no finding, and each single fault is seen by its rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.check import gate
from orchestrator.check.contents import compliance_files, compliance_folders, contents
from orchestrator.check.finding import OFFICIAL, Finding, context_of
from orchestrator.check.measurements import measurements
from tests.made_trees import KINDS, MadeTree, made_tree
from tests.tree_faults import Fault
from tests.tree_faults_new import NEW_FAULTS
from tests.tree_faults_old import OLD_FAULTS

TIME_BUDGET_S = 60

FAULTS = (*OLD_FAULTS, *NEW_FAULTS)

Copy = Callable[[str], MadeTree]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MadeTree]:
    """One good tree of each kind; tests break copies."""
    return {kind: made_tree(tmp_path_factory.mktemp("good") / kind, kind) for kind in KINDS}


@pytest.fixture
def copy(good: dict[str, MadeTree], tmp_path: Path) -> Copy:
    def make(kind: str) -> MadeTree:
        shutil.copytree(good[kind].root, tmp_path / "tree", symlinks=True)
        return MadeTree(tmp_path / "tree", KINDS[kind])

    return make


def judged(tree: MadeTree) -> list[Finding]:
    return gate.judge(context_of(tree.root, tree.kind.round))


@pytest.fixture
def without_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the checks that are not about a result's logs: those have tests of their own."""
    monkeypatch.setattr(gate, "OF_CELL", (contents, measurements, compliance_folders, compliance_files))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_without_a_fault_has_no_finding(good: dict[str, MadeTree], kind: str) -> None:
    assert judged(good[kind]) == []


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.kind.partition('-')[0]} {f.name}" for f in FAULTS])
@pytest.mark.usefixtures("without_logs")
def test_a_single_fault_is_seen_by_its_rule_and_no_other(copy: Copy, fault: Fault) -> None:
    tree = copy(fault.kind)
    fault.broken(tree)
    found = judged(tree)
    assert {finding.rule for finding in found} == set(fault.rules), found
    seen = {finding.official for finding in found if finding.rule == fault.rules[0]}
    assert min(seen, key=OFFICIAL.index) == fault.official
    for finding in found:
        assert finding.message and finding.mend and not finding.path.startswith("/")
