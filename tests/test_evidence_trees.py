"""Trees of full-length tests: built by `submit`, judged by the gate, whole and with every single fault.

The tests ran once for their whole 600 s (`make evidence`); tests/evidence has their records and logs. What
the official checkers say of the same trees stands in tests/evidence/README.md: they are no part of CI.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from orchestrator.check.finding import Finding
from orchestrator.manifest import load_manifest, parse_manifest
from orchestrator.paths import MANIFEST, RECORD
from orchestrator.record import Record, read_record
from orchestrator.rules import load_round
from tests import evidence_official, evidence_packs, evidence_trees
from tests.evidence_fault_list import FAULTS
from tests.evidence_faults import edited
from tests.evidence_official import said
from tests.evidence_trees import STUB, Tree, build, unpacked

TIME_BUDGET_S = 30

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests" / "evidence"
NAMES = [
    *(f"{suite}-{number}-closed{own}" for suite in ("datacenter", "edge") for number in ("v1.0", "v1.1")
      for own in ("", "-own-loadgen")),
    "datacenter-v1.0-open",
    "edge-v1.1-open",
    "edge-v6.1-closed",
    "edge-v6.1-open",
    "datacenter-v6.1-closed",
    "datacenter-v6.1-network",
]  # fmt: skip
STUBBED = [name for name in NAMES if name.startswith("datacenter-v6.1")]
# By tree: what was read of it once need not be read again.
CASES = sorted(
    ((name, tree) for name, fault in FAULTS.items() for tree in fault.trees), key=lambda case: case[1]
)

VERDICTS, DEEDS = evidence_official.verdicts(), evidence_official.deeds()

Runs = Callable[[str], dict[str, list[Path]]]
Trees = Callable[[str], Tree]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run folders of a round, by tree; each round is unpacked when it is first asked for."""
    place = tmp_path_factory.mktemp("runs")
    return cache(lambda round_name: unpacked(round_name, place / round_name))


@pytest.fixture(scope="module")
def trees(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """Trees by name, each built when it is first asked for."""
    place = tmp_path_factory.mktemp("trees")
    return cache(lambda name: build(name, runs(name.split("-")[1])[name], place))


@pytest.fixture(scope="module")
def known(trees: Trees) -> Callable[[str], frozenset[Finding]]:
    """What the gate says of a tree without a fault."""
    return cache(lambda name: frozenset(trees(name).judged()))


def branded(name: str, finding: Finding) -> bool:
    """Whether a finding says no more than that the tree is a draft, of another LoadGen than the round's."""
    foreign = "v1." in name and not name.endswith("-own-loadgen")
    return finding.rule == "draft" or (foreign and finding.rule == "loadgen-version")


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_of_full_length_tests_has_no_fault_but_that_it_is_a_draft(
    name: str, known: Callable[[str], frozenset[Finding]]
) -> None:
    assert [finding for finding in known(name) if not branded(name, finding)] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_official_checkers_take_every_tree_without_an_error(name: str) -> None:
    verdict = VERDICTS[name]
    assert (verdict["exit_code"], verdict["errors"]) == (0, 0)


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_a_single_fault_is_reported_with_what_the_official_checker_does_about_it(
    fault: str, name: str, trees: Trees, known: Callable[[str], frozenset[Finding]], tmp_path: Path
) -> None:
    tree, before = trees(name), known(name)
    with edited(tree, FAULTS[fault], tmp_path / "aside"):
        new = [finding for finding in tree.judged() if finding not in before]
    assert FAULTS[fault].rule in {finding.rule for finding in new}
    assert said(new) == DEEDS[fault][name]


@pytest.mark.parametrize("name", sorted({tree for fault in FAULTS.values() for tree in fault.trees}))
def test_a_fault_that_is_taken_back_leaves_no_trace(
    name: str, trees: Trees, known: Callable[[str], frozenset[Finding]]
) -> None:
    assert frozenset(trees(name).judged()) == known(name)


@pytest.mark.parametrize("name", STUBBED)
def test_a_stub_is_called_one_wherever_it_is_shown(name: str, trees: Trees) -> None:
    tree = trees(name)
    assert STUB in (tree.root / "DRAFT.md").read_text()
    assert STUB in (tree.cell("Offline").measurements(tree.context.layout) / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STUBBED])
def test_no_other_tree_has_a_stub(name: str, trees: Trees) -> None:
    assert all(STUB not in path.read_text() for path in trees(name).root.rglob("*.md"))


@pytest.mark.parametrize("round_name", ["v1.0", "v1.1", "v6.1"])
def test_the_tests_ran_in_full_by_the_manifests_that_are_here(round_name: str, runs: Runs) -> None:
    found = runs(round_name)
    assert set(found) == {name for name in NAMES if name.split("-")[1] == round_name}
    for run in (run for each in found.values() for run in each):
        ran = parse_manifest((run / MANIFEST).read_bytes())
        here = load_manifest(MANIFESTS / f"{ran.name.removesuffix('-own-loadgen')}.yaml")
        # Those with the rounds' own LoadGens have another name, and say where these are.
        ours, theirs = (
            one.model_dump(exclude={"name": True, "loadgen": {"path": True}}) for one in (here, ran)
        )
        assert ours == theirs
        for record in (read_record(path) for path in run.glob(f"*/{RECORD}")):
            assert long_enough(record), f"{run.name}: {record.test}"


def long_enough(record: Record) -> bool:
    """Valid after the round's whole time, with its settings; TEST04-A of v1.x ends when its samples do."""
    rules = load_round(record.round)
    if record.kind == "accuracy":
        return (
            sum(w.samples for w in record.workers) == rules.benchmark(record.benchmark).accuracy_sample_count
        )
    if record.settings["min_duration_ms"] != rules.min_duration_ms:
        return False
    if record.audit is not None and record.audit.test.startswith("TEST04-"):
        return True
    return record.result.valid is True and record.wall_s >= rules.min_duration_ms / 1000


def test_an_accuracy_log_is_kept_by_the_order_of_its_samples() -> None:
    entries = [evidence_packs.ENTRY % (seq, index, f"{index:02X}000000") for seq, index in ((0, 7), (5, 3))]
    log = ("[\n" + ",\n".join(entries) + "\n]\n").encode()
    order = evidence_packs.order_of(log)
    assert order is not None and evidence_packs.log_of(order) == log
    assert evidence_packs.order_of(log.replace(b"07000000", b"08000000")) is None


def test_the_system_of_the_evidence_has_no_accelerator() -> None:
    assert '"accelerators_per_node": "0"' in evidence_trees.SYSTEM.read_text()
