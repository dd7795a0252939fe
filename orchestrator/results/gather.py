"""Rows out of trees: submissions and their descriptions read, results grouped by system, suite and model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.results.cells import result_of
from orchestrator.results.reading import Unreadable, inside, told_path
from orchestrator.results.rows import (
    CATEGORIES,
    NO_CATEGORY,
    NO_SUITE,
    SUITE_SCENARIOS,
    Machine,
    Result,
    Row,
    in_suite,
    table_order,
)
from orchestrator.results.trees import remark_on_named, round_of_tree, submissions_of, system_values
from orchestrator.submission.layout import layout_of
from orchestrator.submission.tree import DIVISIONS, Cell, Submission
from orchestrator.submission.tree import Unreadable as UnreadableFolders

# In descriptions of v0.7; generate-final-report.py puts on-premise among the available.
_OTHER_WORDS = {"on-premise": "available", "research, development, or internal": "rdi"}


@dataclass(frozen=True)
class Gathered:
    """All rows in the order of the tables, and what is to be said of whole trees."""

    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


def gather(
    trees: Sequence[Path],
    round_name: str | None = None,
    base_url: str = "",
) -> Gathered:
    """The rows of trees; TreeError for a path that is none."""
    rows: list[Row] = []
    remarks: list[str] = []
    for path in trees:
        unreadable: UnreadableFolders = {}
        found = submissions_of(path, unreadable)
        if round_name:
            of_round, remark = round_name, remark_on_named(round_name, found)
        else:
            of_round, remark = round_of_tree(path, found)
        if remark:
            remarks.append(f"{path.name or path}: {remark}")
        for submission in found:
            rows += _rows(submission, of_round, base_url, unreadable)
        for folder, error in unreadable.items():
            shown = told_path(Path(os.path.abspath(path)), folder)
            remarks.append(f"{shown} cannot be read: {error.strerror or error}")
    return Gathered(tuple(sorted(rows, key=table_order)), tuple(remarks))


def _rows(
    submission: Submission, round_name: str, base_url: str, unreadable: UnreadableFolders
) -> Iterator[Row]:
    """The rows of a submission, system by system."""
    systems: dict[str, list[Cell]] = {}
    for cell in submission.cells(unreadable):
        systems.setdefault(cell.system, []).append(cell)
    for system, cells in systems.items():
        machine, division, remarks = _machine(cells[0])
        if not inside(submission.root, cells[0].path.parent.parent):
            continue
        results = [result_of(cell, round_name) for cell in cells]
        for suite in machine.suites:
            for model, some in _by_model(division, [one for one in results if in_suite(suite, one)]):
                yield Row(
                    round=round_name,
                    suite=suite,
                    division=division,
                    submitter=submission.submitter,
                    system=system,
                    model=model,
                    machine=machine,
                    results=tuple(sorted(some, key=lambda one: (one.benchmark, one.scenario_order))),
                    details=_link(base_url, submission, submission.path / "results" / system),
                    code=_link(base_url, submission, _code(submission, round_name, model)),
                    remarks=tuple(remarks),
                )


def _by_model(division: str, results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """In the open division a row for each model that was used, else one for all."""
    if division != "open":
        return [("", list(results))] if results else []
    models: dict[str, list[Result]] = {}
    for result in results:
        models.setdefault(result.model, []).append(result)
    return list(models.items())


def _machine(cell: Cell) -> tuple[Machine, str, list[str]]:
    """The system, its division, and what is wrong with its description."""
    division = cell.submission.division
    try:
        values: Mapping[str, Any] = system_values(cell)
    except Unreadable as error:
        machine = Machine(cell.system, NO_CATEGORY, (NO_SUITE,))
        return machine, division, [f"no description of the system: {error}"]
    remarks: list[str] = []
    if division not in DIVISIONS:
        division = _text(values, "division") or division
    status = _text(values, "status").lower()
    category = _OTHER_WORDS.get(status, status)
    if category not in CATEGORIES:
        remarks.append(
            f"status is {category!r}, not available, preview or rdi" if category else "status is not said"
        )
        category = category[:40] or NO_CATEGORY
    suites = [part.strip().lower() for part in _text(values, "system_type").split(",")]
    notes = [note for key in ("hw_notes", "sw_notes") if (note := _text(values, key))]
    return (
        Machine(
            name=_text(values, "system_name") or cell.system,
            category=category,
            suites=tuple(dict.fromkeys(s for s in suites if s in SUITE_SCENARIOS)) or (NO_SUITE,),
            nodes=_count(values, "number_of_nodes", remarks),
            processor=_text(values, "host_processor_model_name"),
            processors_per_node=_count(values, "host_processors_per_node", remarks),
            processor_cores=_text(values, "host_processor_core_count"),
            accelerator=_named(_text(values, "accelerator_model_name")),
            accelerators_per_node=_count(values, "accelerators_per_node", remarks),
            software=_text(values, "framework"),
            operating_system=_text(values, "operating_system"),
            notes=". ".join(notes),
        ),
        division,
        remarks,
    )


def _text(values: Mapping[str, Any], key: str) -> str:
    """A field as one line of text; lists, as some published descriptions have them, joined."""
    value = values.get(key)
    parts = value if isinstance(value, list) else [value]
    told = ", ".join(str(part) for part in parts if isinstance(part, str | int | float) and part is not False)
    return re.sub(r"\s+", " ", told).strip()


def _named(text: str) -> str:
    """An accelerator's name; published descriptions say "-" or "N/A" where there is none."""
    return "" if text.lower() in ("-", "n/a", "none", "na", "not applicable") else text


def _count(values: Mapping[str, Any], key: str, remarks: list[str]) -> int | None:
    text = _named(_text(values, key))
    if re.fullmatch(r"\d{1,9}", text):
        return int(text)
    if text:
        remarks.append(f"{key} is no number: {text[:80]}")
    return 0 if key == "accelerators_per_node" and not text else None


def _code(submission: Submission, round_name: str, model: str) -> Path:
    """The folder of the implementation, of the model's if it has one."""
    folder = submission.path / layout_of(round_name).code
    return folder / model if model and os.path.isdir(folder / model) else folder


def _link(base_url: str, submission: Submission, path: Path) -> str:
    """A path in the tree as a link; "" where nothing is there. Names are quoted: they come from anywhere."""
    if not os.path.isdir(path) or not inside(submission.root, path):
        return ""
    told = quote(told_path(submission.root, path), safe="/")
    return f"{base_url.rstrip('/')}/{told}" if base_url else told
