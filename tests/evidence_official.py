"""Asks the official checkers what they do about the evidence trees, whole and with every single fault.

    python -m tests.evidence_official CHECKOUTS

CHECKOUTS holds checkouts of mlcommons/inference at v1.0.1, r1.1 and master (`head`). It takes minutes and is
not in CI, which compares what `check` says of the official checkers with what is written down by this.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from orchestrator.check.finding import OFFICIAL, Finding
from orchestrator.check.official import OfficialRun, run_official
from orchestrator.paths import write_json
from tests.evidence_fault_list import FAULTS
from tests.evidence_faults import edited
from tests.evidence_packs import FOLDER
from tests.evidence_trees import Tree, build, unpacked

TABLE = FOLDER / "official.json"
CHECKOUT = {"v1.0": "v1.0.1", "v1.1": "r1.1", "v6.1": "head"}
LIMIT_S = 300.0

Verdict = dict[str, str | int]


def did(run: OfficialRun) -> str:
    """What the checker did: it exited with 1 ("error"), only logged an ERROR ("logged"), or saw nothing."""
    return "error" if run.exit_code else "logged" if run.errors else "unseen"


def said(findings: list[Finding]) -> str:
    """What findings say of it: the worst of them."""
    return min((finding.official for finding in findings), key=OFFICIAL.index, default="unseen")


def ask(tree: Tree, checkouts: Path, aside: Path) -> tuple[Verdict, dict[str, str]]:
    """The whole tree's verdict, and what the checker did about every fault that is put into the tree."""
    round_name = tree.context.round.name
    checkout = checkouts / CHECKOUT[round_name]
    whole = run_official(checkout, tree.root, round_name, LIMIT_S)
    verdict: Verdict = {"checker": checkout.name, "exit_code": whole.exit_code, "errors": len(whole.errors)}
    print(f"{tree.name}: {verdict} {whole.errors[:3]}", flush=True)
    found = {}
    before = set(tree.judged())
    for name, fault in FAULTS.items():
        if tree.name not in fault.trees:
            continue
        with edited(tree, fault, aside):
            new = [finding for finding in tree.judged() if finding not in before]
            found[name] = did(run_official(checkout, tree.root, round_name, LIMIT_S))
        if said(new) != found[name]:
            print(f"  {name}: the checker says {found[name]}, LoadGrid {said(new)}", flush=True)
    return verdict, found


def main(checkouts: Path) -> None:
    """Ask about every tree, and write the table."""
    trees: dict[str, Verdict] = {}
    faults: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for round_name in CHECKOUT:
            for name, runs in unpacked(round_name, place / "runs" / round_name).items():
                tree = build(name, runs, place)
                trees[name], seen = ask(tree, checkouts.absolute(), place / "aside")
                for fault, what in seen.items():
                    faults.setdefault(fault, {})[name] = what
    write_json(TABLE, {"trees": trees, "faults": faults})


def verdicts() -> dict[str, Verdict]:
    """What was written down of whole trees."""
    found: dict[str, Verdict] = json.loads(TABLE.read_text())["trees"]
    return found


def deeds() -> dict[str, dict[str, str]]:
    """What was written down of single faults: fault -> tree -> what the checker did."""
    found: dict[str, dict[str, str]] = json.loads(TABLE.read_text())["faults"]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
