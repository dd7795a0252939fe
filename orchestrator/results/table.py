"""The rows as CSV and JSON, and as text for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import NamedTuple

from orchestrator.results.gather import Gathered
from orchestrator.results.rows import SCENARIOS, Result, Row

SCHEMA = "loadgrid-results-1"
FIRST = {
    "Round": "round",
    "Suite": "suite",
    "Division": "division",
    "Category": "category",
    "Submitter": "submitter",
    "System": "system",
    "System id": "system_id",
    "Nodes": "nodes",
    "Processor": "processor",
    "Processors": "processors",
    "Accelerator": "accelerator",
    "Accelerators": "accelerators",
    "Software": "software",
    "Operating system": "operating_system",
    "Model used": "model_used",
}
LAST = {"Notes": "notes", "Details": "details", "Code": "code"}
# What spreadsheet programs take for a formula; names come from anywhere.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
FIVE_DIGITS = Context(prec=5, rounding=ROUND_HALF_EVEN)  # the rules' way to report an accuracy


class Column(NamedTuple):
    """A benchmark in a scenario; several units stand in several columns."""

    benchmark: str
    scenario: str
    unit: str


def as_json(gathered: Gathered) -> str:
    """Everything that is known, the schema as in `rows`."""
    told = {
        "schema": SCHEMA,
        "rows": [row.as_dict() for row in gathered.rows],
        "remarks": list(gathered.remarks),
    }
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(gathered: Gathered) -> str:
    """A line for each row, columns for each benchmark and scenario: result, accuracy, power."""
    columns = columns_of(gathered.rows)
    measured = {
        column for row in gathered.rows for one in row.results if one.power for column in [column_of(one)]
    }
    heads = [*FIRST]
    for column in columns:
        name = f"{column.benchmark} {column.scenario}"
        heads += [f"{name} ({column.unit or 'no result'})", f"{name} accuracy"]
        heads += [f"{name} power"] if column in measured else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_harmless(head) for head in (*heads, *LAST, "Remarks")])
    for row in gathered.rows:
        told = row.as_dict()
        line = [told[name] for name in FIRST.values()]
        results = {column_of(one): one for one in row.results}
        for column in columns:
            line += _cells(results.get(column), column in measured)
        line += [told[name] for name in LAST.values()]
        writer.writerow([_harmless(cell) for cell in (*line, "; ".join(remarks_of(row)))])
    return out.getvalue()


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns that rows need: benchmarks by name, scenarios in their usual order."""
    found = {column_of(one): one.scenario_order for row in rows for one in row.results}
    return sorted(found, key=lambda column: (column.benchmark, found[column], column.unit))


def column_of(result: Result) -> Column:
    """Where a result stands."""
    return Column(result.benchmark, result.scenario, result.unit)


def remarks_of(row: Row) -> list[str]:
    """What is to be said of a row and its results."""
    told = list(row.remarks)
    for one in row.results:
        name = f"{one.model} {one.scenario}"
        told += [f"{name}: inferred from {one.inferred_from}"] if one.inferred_from else []
        told += [f"{name}: {remark}" for remark in one.remarks]
    return told


def shown_accuracy(result: Result) -> list[str]:
    """Each metric to five significant figures, half to even, as the rules have it reported."""
    return [f"{name} {five_digits(figure)}" for name, figure in result.accuracy.items()]


def five_digits(figure: str) -> str:
    """A figure to five significant digits, whole numbers as they are."""
    try:
        number = Decimal(figure)
    except InvalidOperation:
        return figure
    if number == number.to_integral_value():
        return figure
    return f"{FIVE_DIGITS.plus(number):f}"


def number_shown(value: float) -> str:
    """A result for people: thousands apart, two decimals, more for what is small."""
    decimals = 2 if abs(value) >= 10 else 3 if abs(value) >= 1 else 4
    return f"{value:,.{0 if value == int(value) and abs(value) < 1e15 else decimals}f}"


def result_shown(result: Result) -> str:
    """One result as a line of text."""
    figure = f"{number_shown(result.value)} {result.unit}" if result.value is not None else missing(result)
    power = f", {number_shown(result.power.value)} {result.power.unit}" if result.power else ""
    model = "" if result.model == result.benchmark else f" ({result.model})"
    return f"{result.benchmark}{model} {result.scenario}: {figure}{power}"


def missing(result: Result) -> str:
    """What stands in place of a figure that is not there."""
    return "INVALID" if result.valid is False else "no result"


def scenarios_of(rows: Sequence[Row]) -> list[str]:
    """The scenarios that occur, in their usual order, then what is none."""
    found = {one.scenario for row in rows for one in row.results}
    return [name for name in SCENARIOS if name in found] + sorted(found - set(SCENARIOS))


def _cells(result: Result | None, with_power: bool) -> list[object]:
    if result is None:
        return ["", "", ""] if with_power else ["", ""]
    value = missing(result) if result.value is None else f"{result.value:.10g}"
    accuracy = "; ".join(f"{name} {figure}" for name, figure in result.accuracy.items())
    power = f"{result.power.value:.10g} {result.power.unit}" if result.power else ""
    return [value, accuracy, power] if with_power else [value, accuracy]


def _harmless(cell: object) -> object:
    """A cell that no spreadsheet program takes for a formula."""
    if cell is None:
        return ""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
