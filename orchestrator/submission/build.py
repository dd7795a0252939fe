"""`loadgrid submit` without its command line: from records and a description of the system to a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.submission.bandwidth_document import bandwidth_document
from orchestrator.submission.bandwidth_document import wanted as bandwidth_wanted
from orchestrator.submission.calibrated import calibrated
from orchestrator.submission.cell_files import write_results, write_settings
from orchestrator.submission.documents import (
    SOURCE,
    calibration,
    calibration_place,
    code_readme,
    own_files,
    write_draft,
)
from orchestrator.submission.facts import quantised
from orchestrator.submission.gather import Evidence, Test, check_files
from orchestrator.submission.inference import metric
from orchestrator.submission.layout import MAPPING
from orchestrator.submission.missing import failures, missing
from orchestrator.submission.mlperf_conf import mlperf_conf
from orchestrator.submission.names import official_folder
from orchestrator.submission.own_source import FOLDER, NOT_HERE, is_what_ran, write_own_source
from orchestrator.submission.planned import Plan, Wishes, planned, why_unofficial
from orchestrator.submission.proven import refuse_contradictions, unproven
from orchestrator.submission.readme import Described, readme
from orchestrator.submission.refusal import SubmitError
from orchestrator.submission.writer import TreeWriter

NAMEPLATE = "_power.yaml"  # the power supplies' capacities, which the checker of v6.1 adds up
__all__ = ["Built", "SubmitError", "Wishes", "Written", "submit"]


@dataclass(frozen=True)
class Written:
    """One result of the tree, by the names of its folders."""

    model: str
    benchmark: str
    scenario: str
    result: str
    accuracy: str
    compliance: tuple[str, ...]
    inferred_from: str | None


@dataclass(frozen=True)
class Built:
    """The tree that was written: `missing` is what its division still asks for.

    `left_out` is what was not taken, `remarks` what the system's description had better say otherwise,
    `originals` where the accuracy logs lie of which the tree has a part only (None: there are none).
    """

    root: Path
    originals: Path | None
    round: str
    division: str
    submitter: str
    system: str
    cells: tuple[Written, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    remarks: tuple[str, ...]
    draft_because: tuple[str, ...]


def submit(records: Sequence[Path], system: Path, out: Path, wishes: Wishes | None = None) -> Built:
    """Write the tree `out` of `records` (folders of tests, of runs, or of such) on `system` (json).

    SubmitError for records that cannot be submitted, RecordError for one that cannot be read.
    """
    plan = planned(records, system, wishes or Wishes())
    for cell in plan.gathered.cells:
        for test in cell.tests:
            check_files(test)
    refuse_contradictions(plan.gathered)
    plan = replace(plan, unproven=unproven(plan.gathered, plan.wishes.draft))
    with TreeWriter(out) as tree:
        written = tuple(_write_cell(plan, tree, cell) for cell in plan.cells)
        left_out, lacking = _write_rest(plan, tree)
        tree.finish()
    found, division = plan.gathered.round, plan.gathered.division
    return Built(
        root=tree.out,
        originals=tree.originals if tree.has_originals else None,
        round=found.name,
        division=division,
        submitter=plan.submitter,
        system=plan.system,
        cells=written,
        left_out=(*plan.gathered.left_out, *left_out),
        missing=(
            *failures(division, plan.cells),
            *missing(found, plan.gathered.suite, division, plan.cells),
            *lacking,
        ),
        remarks=plan.remarks,
        draft_because=plan.because,
    )


def _write_cell(plan: Plan, tree: TreeWriter, cell: Evidence) -> Written:
    """One result and its measurements."""
    found, model, layout = plan.gathered.round, plan.folder(cell), plan.layout
    write_results(tree, layout, plan.base, plan.system, model, cell)
    place = plan.base / layout.measurements(plan.system, model, cell.scenario)
    facts, result = plan.facts[cell.benchmark, cell.scenario], metric(found, cell)
    told = Described(
        found=found,
        cell=cell,
        model=plan.own_model(cell) or found.benchmark(cell.benchmark).model,
        implementation=facts,
        metric=result,
        system=str(plan.values.get("system_name") or plan.system),
        code=str(plan.code(model)),
        draft_because=_because(plan, cell),
    )
    tree.write_json(
        place / layout.implementation_json(plan.system, plan.wishes.implementation, cell.scenario), facts
    )
    tree.write(place / "README.md", readme(told))
    tree.write(place / "mlperf.conf", mlperf_conf(found))
    if not layout.one_tree:
        tree.write(place / "calibration_process.adoc", _calibration(plan))
    write_settings(tree, place, cell)
    got = cell.accuracy.record.accuracy
    return Written(
        model=model,
        benchmark=cell.benchmark,
        scenario=cell.scenario,
        result=f"{result.value:.6g} {result.unit}{_fault(cell)}" if result else "none",
        accuracy=f"{got.value:.5g} {got.metric}" if got else "none",
        compliance=tuple(f"{name}{_refused(test)}" for name, test in cell.audits.items()),
        inferred_from=cell.inferred_from,
    )


def _fault(cell: Evidence) -> str:
    return "" if cell.performance.record.result.valid else " INVALID"


def _refused(test: Test) -> str:
    audit = test.record.audit
    return "" if audit is None or audit.good else " FAIL"


def _because(plan: Plan, cell: Evidence) -> tuple[str, ...]:
    """Why the cell is a draft: its own reasons, or that the whole tree is one."""
    own = [
        reason
        for test in cell.tests
        for reason in (*why_unofficial(test.record), *plan.unproven.get(test.name, ()))
    ]
    return tuple(dict.fromkeys(own or ["the tree is a draft"])) if plan.wishes.draft else ()


def _calibration(plan: Plan) -> str:
    formats = [facts["weight_data_types"] for facts in plan.facts.values()]
    cells = [c for c in plan.cells if quantised(c, plan.facts[c.benchmark, c.scenario])]
    return calibration(plan.wishes.calibration, formats, bool(cells), plan.wishes.draft, calibrated(cells))


def _write_rest(plan: Plan, tree: TreeWriter) -> tuple[list[str], list[str]]:
    """System, code and documents; returns what of the user's code was left out, and what documents lack."""
    tree.write_json(plan.base / plan.layout.system_json(plan.system), plan.values)
    nameplate = plan.system_file.with_name(f"{plan.system_file.stem}{NAMEPLATE}")
    if nameplate.is_file() and plan.layout.one_tree:
        tree.copy(nameplate, plan.base / "systems" / f"{plan.system}{NAMEPLATE}")
    tree.write(plan.base / calibration_place(plan.layout), _calibration(plan))
    for document in plan.wishes.documents:
        tree.copy(document, plan.base / plan.layout.documentation(document.name))
    left_out = _write_code(plan, tree)
    mapping = _mapping(plan)
    if mapping and plan.layout.one_tree:
        tree.write_json(plan.base / MAPPING, mapping)
    if plan.wishes.draft:
        write_draft(tree, plan.because)
    lacking = _write_bandwidth(plan, tree)
    if plan.gathered.division == "network" and not plan.wishes.documents:
        lacking.append("network: a document with the system's diagram, network cards, software (--document)")
    return left_out, lacking


def _write_bandwidth(plan: Plan, tree: TreeWriter) -> list[str]:
    """The statement on the network, where the round wants one; returns what it lacks but for open."""
    gathered = plan.gathered
    if not bandwidth_wanted(gathered.round, gathered.suite):
        return []
    text, lacking = bandwidth_document(
        gathered.round, plan.cells, plan.facts, plan.system_file, plan.wishes.data_path
    )
    tree.write(plan.base / plan.layout.documentation("bandwidth.adoc"), text)
    return lacking if gathered.division != "open" else []


def _write_code(plan: Plan, tree: TreeWriter) -> list[str]:
    folder = plan.wishes.code
    own, left_out = own_files(folder) if folder else ([], [])
    told = [f"{folder}/{name}: hidden, or left by a tool" for name in left_out]
    ran_here = is_what_ran(plan.cells)
    if ran_here:
        write_own_source(tree, plan.base / plan.layout.code / FOLDER)
    else:
        told.append(NOT_HERE)
    for model in dict.fromkeys(plan.folder(cell) for cell in plan.cells):
        cells = [cell for cell in plan.cells if plan.folder(cell) == model]
        place = plan.base / plan.code(model)
        tree.write(place / "README.md", code_readme(cells, folder, ran_here))
        for cell in cells:
            if cell.inferred_from is None:
                tree.write(place / "manifests" / f"{cell.scenario}.yaml", cell.performance.manifest.raw)
        for name in own:
            tree.copy(Path(folder or "", name), place / SOURCE / name)
    return told


def _mapping(plan: Plan) -> dict[str, str]:
    """Own model name -> official name, where they differ (open division)."""
    found = plan.gathered.round
    named = {plan.folder(cell): found.benchmark(cell.benchmark) for cell in plan.cells}
    return {folder: known.name for folder, known in named.items() if folder != official_folder(known)}
