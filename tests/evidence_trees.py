"""Submission trees of the evidence runs: full-length tests of the echo backend, built as drafts by `submit`.

The echo backend answers with the sample's index, which is what the data set null expects where a benchmark
scores classes: those accuracies were computed by the run, and are 100 %. 3d-unet scores voxels, and there
are none: its accuracy is a STUB of known value, put in here and called so in the record and what comes of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.audit_verify import Case, verify
from orchestrator.check.finding import Context, Finding, context_of
from orchestrator.check.gate import judge
from orchestrator.paths import ACCURACY_LOG, ACCURACY_TXT, RECORD
from orchestrator.record import Accuracy, Record, read_record
from orchestrator.rules import load_round
from orchestrator.submission.build import Wishes, submit
from orchestrator.submission.layout import layout_of
from orchestrator.submission.system import required
from orchestrator.submission.tree import Cell, submissions
from tests import evidence_packs
from workers.tasks import open_task

STUB_VALUE = 0.8617  # the reference's own, submission_checker/constants.py of mlcommons/inference
STUB_LINE = "Accuracy: mean = 0.86170, kidney = 0.86170, tumor = 0.86170"
STUB = "stub: this accuracy is a constant of LoadGrid's tests, not a measurement"
SUBMITTER = "LoadGrid-evidence"
SYSTEM = Path(__file__).resolve().parent / "evidence" / "echo.json"
# What nobody but the runner of a network can say; of the echo backend there is nothing to say.
FACTS = {
    "input_data_types": "none: synthetic samples",
    "retraining": "No",
    "weight_data_types": "none: no model",
    "weight_transformations": "none: no model",
}
NETWORK = {
    "is_network": "true",
    "network_type": "loopback, for evidence",
    "network_media": "none",
    "network_rate": "none",
    "nic_loadgen": "lo",
    "number_nic_loadgen": "1",
    "net_software_stack_loadgen": "Linux TCP, ZeroMQ",
    "network_protocol": "TCP",
    "number_connections": "1",
    "nic_sut": "lo",
    "number_nic_sut": "1",
    "net_software_stack_sut": "Linux TCP, ZeroMQ",
    "network_topology": "one host",
}


@dataclass(frozen=True)
class Tree:
    """A tree that was built, with what judges it."""

    name: str
    root: Path
    context: Context

    def judged(self) -> list[Finding]:
        """What the gate finds."""
        return judge(self.context)

    def cell(self, scenario: str) -> Cell:
        """A result, by its scenario."""
        cells = [cell for one in submissions(self.root) for cell in one.cells()]
        return next(cell for cell in cells if cell.scenario == scenario)


def suite_round_division(name: str) -> tuple[str, str, str]:
    """What a tree's name says: edge-v1.0-closed, and more behind it."""
    suite, round_name, division = name.split("-")[:3]
    return suite, round_name, division


def tree_of(run: Path) -> str:
    """The tree that a run folder belongs to: its name without benchmark, scenario and time."""
    own = "-own-loadgen" if "-own-loadgen-" in run.name else ""
    return "-".join(run.name.split("-")[:3]) + own


def unpacked(round_name: str, folder: Path) -> dict[str, list[Path]]:
    """The run folders of a round's pack, by the tree that they belong to."""
    found: dict[str, list[Path]] = {}
    for run in evidence_packs.unpack(evidence_packs.FOLDER / f"{round_name}.tar.xz", folder):
        found.setdefault(tree_of(run), []).append(run)
    return found


def build(name: str, runs: Iterable[Path], folder: Path) -> Tree:
    """Build the tree of these runs (which are changed where a stub is needed), below `folder`."""
    _, round_name, division = suite_round_division(name)
    runs = list(runs)
    for run in runs:
        put_stub(run, folder / "cache")
    asked = {field.name for field in required(layout_of(round_name))}
    values = {name: value for name, value in json.loads(SYSTEM.read_text()).items() if name in asked}
    if division == "network":
        values |= NETWORK
    system = folder / "systems" / f"{name}.json"
    system.parent.mkdir(parents=True, exist_ok=True)
    system.write_text(json.dumps(values))
    root = folder / name
    documents: tuple[Path, ...] = ()
    if division == "network":
        documents = (system.with_name("network.md"),)
        documents[0].write_text("Every query went over TCP to a worker on the same host: this is a draft.\n")
    wishes = Wishes(submitter=SUBMITTER, status="rdi", facts=FACTS, documents=documents, draft=True)
    submit(runs, system, root, wishes)
    return Tree(name, root, context_of(root, round_name))


def put_stub(run: Path, cache: Path) -> None:
    """Give accuracy tests that could not be scored the stub, and verify what waits for them."""
    for path in sorted(run.glob(f"*-accuracy/{RECORD}")):
        record = read_record(path)
        if record.status == "finished":
            continue
        assert "is scored by acc" in record.reason, record.reason
        _stub_accuracy(path.parent, record)
        _verify_again(run, record, cache)


def _stub_accuracy(folder: Path, record: Record) -> None:
    digest = hashlib.sha256((folder / ACCURACY_LOG).read_bytes()).hexdigest()
    (folder / ACCURACY_TXT).write_text(f"{STUB_LINE}\nhash={digest}\n")
    rules = load_round(record.round).benchmark(record.benchmark).accuracy
    seen = re.search(rules.pattern, STUB_LINE)
    assert seen and float(seen[1]) == STUB_VALUE
    scored = Accuracy(
        metric=rules.metric, value=STUB_VALUE, target=rules.target, unit=rules.unit, reached=True,
        good=None, total=record.workers[0].samples,
    )  # fmt: skip
    because = [why for why in record.unofficial_because if not why.startswith("the test failed")]
    update = {"status": "finished", "reason": "", "accuracy": scored, "unofficial_because": [*because, STUB]}
    _rewrite(folder, record.model_copy(update=update))


def _verify_again(run: Path, record: Record, cache: Path) -> None:
    rules, folder = load_round(record.round), run / f"{record.scenario}-TEST01"
    first = read_record(folder / RECORD)
    library = open_task("null", {"count": rules.benchmark(record.benchmark).accuracy_sample_count}).prepare(
        cache
    )
    case = Case(rules, rules.benchmark(record.benchmark), record.scenario, "TEST01", folder, run, library)
    audit = verify(case)
    assert audit.passed, audit.reason
    because = [why for why in first.unofficial_because if not why.startswith("compliance")]
    _rewrite(folder, first.model_copy(update={"audit": audit, "unofficial_because": because}))


def _rewrite(folder: Path, record: Record) -> None:
    """The record with the hashes of the files as they are now."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    (folder / RECORD).write_bytes(record.model_copy(update={"files": files}).to_json())
