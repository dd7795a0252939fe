"""What is decided before the first byte of a tree is written: its cells, names, system and facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.record import Record
from orchestrator.submission import as_recorded
from orchestrator.submission.facts import FIELDS, UNKNOWN, implementation
from orchestrator.submission.gather import Evidence, Gathered, gather
from orchestrator.submission.inference import with_inferred
from orchestrator.submission.layout import Layout, layout_of
from orchestrator.submission.names import by_benchmark, model_folder, model_used
from orchestrator.submission.readme import DRAFT
from orchestrator.submission.refusal import SubmitError, safe_name, several
from orchestrator.submission.system import problems, read_system

IMPLEMENTATION = "loadgrid"
DRAFT_SYSTEM = "DRAFT-"  # before the system's folder, so that no path of a draft looks like a result's


@dataclass(frozen=True)
class Wishes:
    """What the records do not say, or what is to be said otherwise.

    `facts` are fields of the implementation's description (retraining, ...); a key "BENCHMARK.field" is of
    one benchmark. `models` is benchmark -> name of the model used (open division); "" is the only benchmark.
    """

    submitter: str | None = None
    status: str | None = None
    implementation: str = IMPLEMENTATION
    facts: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    notes: str | None = None
    code: Path | None = None
    calibration: Path | None = None
    data_path: Path | None = None
    documents: Sequence[Path] = ()
    infer: bool = False
    draft: bool = False


@dataclass(frozen=True)
class Plan:
    """All decisions; `remarks` are faults of the system's description that the round's checker lets pass."""

    wishes: Wishes
    system_file: Path
    gathered: Gathered
    layout: Layout
    cells: list[Evidence]
    system: str
    values: dict[str, Any]
    submitter: str
    models: dict[str, str]
    facts: dict[tuple[str, str], dict[str, str]]
    draft_because: tuple[str, ...]
    remarks: tuple[str, ...]
    # Why records that call themselves official are not (submission.proven), by the tests' names.
    unproven: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def because(self) -> tuple[str, ...]:
        """Every reason why the tree can be a draft only."""
        return (
            *self.draft_because,
            *(f"{several(list(why))} [{name}]" for name, why in self.unproven.items()),
        )

    @property
    def base(self) -> PurePosixPath:
        """The submitter's folder in the tree."""
        return PurePosixPath(self.gathered.division, self.submitter)

    def folder(self, cell: Evidence) -> str:
        """The model's folder of a cell."""
        gathered = self.gathered
        return model_folder(gathered.round, self.layout, gathered.division, cell, self.models)

    def own_model(self, cell: Evidence) -> str | None:
        """The name of a network that is not the reference's (open division)."""
        return model_used(self.gathered.round, self.gathered.division, cell, self.models)

    def code(self, model: str) -> PurePosixPath:
        """Where the implementation of a model lies, below the submitter's folder."""
        return PurePosixPath(self.layout.code, model, self.wishes.implementation)


def planned(records: Sequence[Path], system: Path, wishes: Wishes) -> Plan:
    """Decide everything; SubmitError for what cannot be submitted."""
    safe_name("the implementation", wishes.implementation)
    gathered = gather(records)
    found = gathered.round
    if gathered.division not in found.divisions:
        raise SubmitError(
            f"round {found.name} has no {gathered.division} division, only {', '.join(found.divisions)}"
        )
    because = _unofficial(gathered, wishes.draft)
    cells = with_inferred(found, gathered.suite, gathered.cells) if wishes.infer else list(gathered.cells)
    layout = layout_of(found.name)
    models = by_benchmark(found, wishes.models, cells, "--model-used")
    own = {cell.benchmark: model_used(found, gathered.division, cell, models) for cell in cells}
    values, submitter = _system(system, gathered, wishes)
    used = [f"{benchmark}: {name}" for benchmark, name in own.items() if name]
    values["sw_notes"] = _joined(
        values.get("sw_notes"),
        wishes.notes,
        f"Model used: {', '.join(used)}" if used else None,
    )
    remarks = (
        *_judged(values, system, layout, gathered.division, submitter, wishes.draft),
        *_beside_records(values, system, gathered, wishes.draft),
    )
    name = system.stem
    if wishes.draft:
        name, values = f"{DRAFT_SYSTEM}{name}", _branded(values)
    return Plan(
        wishes=wishes,
        system_file=system,
        gathered=gathered,
        layout=layout,
        cells=cells,
        system=safe_name("the system's file", name),
        values=values,
        submitter=submitter,
        models=models,
        facts=_facts(cells, wishes),
        draft_because=because,
        remarks=remarks,
    )


def why_unofficial(record: Record) -> list[str]:
    """The record's own reasons; it says so even if somebody took them away."""
    return list(record.unofficial_because) or ([] if record.official else ["the record is not official"])


def _unofficial(gathered: Gathered, draft: bool) -> tuple[str, ...]:
    """Every reason why a record is not official, with its tests; SubmitError unless it is a draft."""
    reasons: dict[str, list[str]] = {}
    for cell in gathered.cells:
        for test in cell.tests:
            for reason in why_unofficial(test.record):
                reasons.setdefault(reason, []).append(test.name)
    told = tuple(f"{reason} [{several(names, 3)}]" for reason, names in reasons.items())
    if told and not draft:
        listed = "\n  ".join(told)
        raise SubmitError(
            f"the records are not official, so they cannot be submitted:\n  {listed}\n"
            "--draft makes a tree all the same, branded as what it is, to try the way"
        )
    return told


def _system(path: Path, gathered: Gathered, wishes: Wishes) -> tuple[dict[str, Any], str]:
    """The system's description with what the tree decides filled in, and the submitter."""
    values = dict(read_system(path).values)
    if wishes.status is not None:
        values["status"] = wishes.status
    submitter = wishes.submitter or values.get("submitter") or ""
    if not isinstance(submitter, str) or not submitter:
        raise SubmitError(f"who submits? {path} has no submitter; give --submitter NAME")
    values["submitter"] = safe_name("the submitter", submitter)
    for name, wanted in (("division", gathered.division), ("system_type", gathered.suite)):
        given = values.get(name)
        if given in (None, ""):
            values[name] = wanted
        elif not isinstance(given, str) or sorted(given.lower().split(",")) != sorted(wanted.split(",")):
            raise SubmitError(f"{path}: {name} is {given!r}, but the records are of {wanted}")
    return values, submitter


def _judged(
    values: Mapping[str, Any], path: Path, layout: Layout, division: str, submitter: str, draft: bool
) -> tuple[str, ...]:
    """What is wrong with the description; but for drafts SubmitError for what the checker refuses."""
    found = problems(values, layout, division, submitter)
    fatal = [f"{problem.field} {problem.message}" for problem in found if problem.fatal]
    if fatal and not draft:
        listed = "\n  ".join(fatal)
        raise SubmitError(f"{path} does not describe the system as round {layout.round} asks:\n  {listed}")
    return tuple(f"{path.name}: {problem.field} {problem.message}" for problem in found)


def _beside_records(values: Mapping[str, Any], path: Path, gathered: Gathered, draft: bool) -> Iterator[str]:
    """What the description says otherwise than the records; SubmitError where both cannot be true."""
    wrong = as_recorded.contradictions(values, gathered.cells)
    if wrong and not draft and gathered.division != "open":
        listed = "\n  ".join(wrong)
        raise SubmitError(
            f"{path} describes another system than that of the records:\n  {listed}\n"
            "mend the description, or submit the runs of the system that it describes"
        )
    for text in (*wrong, *as_recorded.remarks(values, gathered.cells)):
        yield f"{path.name}: {text}"


def _branded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a draft: whoever reads a table made from it sees what it is."""
    return {
        **values,
        "system_name": f"{DRAFT}: {values.get('system_name') or ''}".rstrip(": "),
        "sw_notes": _joined(DRAFT, values.get("sw_notes")),
    }


def _joined(*parts: Any) -> str:
    return ". ".join(str(part).rstrip(". ") for part in parts if part)


def _facts(cells: Sequence[Evidence], wishes: Wishes) -> dict[tuple[str, str], dict[str, str]]:
    """The implementation's fields of every cell; SubmitError asks for those that nobody knows."""
    known = {*FIELDS, *(f"{cell.benchmark}.{name}" for cell in cells for name in FIELDS)}
    if strange := sorted(set(wishes.facts) - known):
        raise SubmitError(
            f"{several(strange)}: no field of an implementation's description ({', '.join(FIELDS)}), "
            "alone or as BENCHMARK.field of a benchmark that is here"
        )
    facts = {}
    unknown: dict[str, list[str]] = {}
    for cell in cells:
        told = implementation(cell, wishes.facts)
        for name in [name for name, value in told.items() if not value]:
            unknown.setdefault(name, []).append(f"{cell.benchmark} {cell.scenario}")
            told[name] = UNKNOWN
        facts[cell.benchmark, cell.scenario] = told
    if unknown and not wishes.draft:
        asked = "\n  ".join(
            f"--fact {name}=...   {FIELDS[name]} ({several(where, 3)})" for name, where in unknown.items()
        )
        raise SubmitError(f"the records do not say everything that a result must; please add:\n  {asked}")
    return facts
