"""`loadgrid describe-system`: systems/SYSTEM.json from what the hosts say, and what a person must add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Terminal
from rich.rule import Rule
from rich.text import Text

from orchestrator import cluster
from orchestrator.campaign import EXIT_INVALID, EXIT_VALID
from orchestrator.console import open_terminal
from orchestrator.paths import write_json
from orchestrator.phrases import plural
from orchestrator.preflight import why_not_writable
from orchestrator.rules import load_round, nearest, round_names
from orchestrator.submission.data_files import GivenError, read_given
from orchestrator.submission.describe import Description, cluster_values, merge
from orchestrator.submission.host_facts import read_host
from orchestrator.submission.layout import Layout, layout_of
from orchestrator.submission.system import (
    FIELDS,
    NETWORK_FIELDS,
    POWER_FIELDS_SINCE_V5,
    Field,
    SystemDescription,
    SystemError,
    SystemProblem,
    hosts_file,
    must_be_filled,
    problems,
    read_hosts,
    read_system,
    required,
)
from orchestrator.tables import bullets, plain_table

NODE_TIMEOUT_S = 60.0
NEWEST_ROUND = round_names()[-1]

Address = Annotated[
    str, typer.Option(help="'local' is this machine alone, 'auto' the Ray that runs here, or HOST:PORT.")
]
Given = Annotated[Path | None, typer.Option(help="YAML or JSON of `field: value`, for what no tool knows.")]
RoundName = Annotated[str, typer.Option("--round", help="The round whose fields are written.")]
Out = Annotated[Path, typer.Option(help="The file; what a person wrote in it is kept.")]


def describe(
    address: Address = "local",
    given: Given = None,
    round_name: RoundName = NEWEST_ROUND,
    out: Out = Path("system.json"),
) -> None:
    """Describe the system for a submission: what its hosts tell, and a list of what you must add."""
    layout = layout_of(load_round(round_name).name)
    try:
        said = _checked(read_given(given), given, layout) if given else {}
        before = read_system(out) if out.exists() or out.is_symlink() else SystemDescription(out.stem, {})
        hosts_before = read_hosts(out)
    except (GivenError, SystemError) as error:
        raise typer.BadParameter(str(error)) from None
    if reason := why_not_writable(out.parent):
        raise typer.BadParameter(f"{out} cannot be written: {reason}", param_hint="--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    hosts = _hosts(address)
    found = cluster_values(hosts)
    merged = merge(layout, found, before.values, hosts_before.get("found", {}), said)
    merged.remarks += [f"{name} stood there more than once; the last one counts" for name in before.repeated]
    write_json(out, merged.values)
    write_json(hosts_file(out), {"found": found.values, "hosts": hosts})
    raise typer.Exit(_show(out, layout, merged, found, open_terminal()))


def _checked(given: dict[str, str], path: Path, layout: Layout) -> dict[str, str]:
    """The given fields, if all are fields."""
    known = {**FIELDS, **NETWORK_FIELDS, **dict.fromkeys(POWER_FIELDS_SINCE_V5)}
    for name in given:
        if name not in known:
            close = nearest(name, known)
            raise GivenError(f"{path}: {name!r} is not a field{f'; did you mean {close}?' if close else ''}")
    return given


def _hosts(address: str) -> list[dict[str, Any]]:
    """The facts of this machine, or of every node of a Ray cluster; ClusterError for one that cannot tell."""
    if address == "local":
        return [read_host()]
    cluster.connect(address)
    try:
        nodes = cluster.ask_nodes(read_host, NODE_TIMEOUT_S)
    finally:
        cluster.disconnect()
    for node in nodes:
        if error := node.get("error"):
            raise cluster.ClusterError(
                f"node {node['name']} ({node['address']}) could not be described: {error}; "
                "LoadGrid of this version must be installed on every node"
            )
    return [node["facts"] for node in nodes]


def _show(out: Path, layout: Layout, merged: Description, found: Description, terminal: Terminal) -> int:
    """Print what is in the file and what is missing; returns the exit code."""
    division = str(merged.values.get("division") or "closed").lower()
    wrong = problems(merged.values, layout, division, None)
    fields = [*required(layout), *(NETWORK_FIELDS.values() if division == "network" else ())]
    empty = [field for field in fields if merged.values.get(field.name) == ""]
    needed = [field for field in empty if _is_needed(field, layout, wrong)]
    terminal.print(Rule(Text(str(out)), style="dim"))
    table = plain_table()
    for title in ("field", "value"):
        table.add_column(title, overflow="fold")
    for name in merged.values:
        if value := str(merged.values[name]):
            mark = "" if str(found.values.get(name, "")) == value else "dim"
            table.add_row(name, Text(value, style=mark))
    terminal.print(table)
    _ask("to fill in", needed, terminal)
    _ask("may stay empty", [field for field in empty if field not in needed], terminal)
    asked = {field.name for field in empty}
    others = [f"{one.field} {one.message}" for one in wrong if one.field not in asked]
    for title, lines, style in (("wrong", others, "red"), ("to know", merged.remarks, "yellow")):
        if lines:
            terminal.print(Text(f"\n{title}", style="bold"))
            terminal.print(bullets(lines, style))
    if needed:
        told = (
            f"{plural(len(needed), 'field')} to fill in: in {out}, or with --given FILE, and run this again"
        )
        terminal.print(Text(f"\n{told}."), soft_wrap=True)
    return EXIT_INVALID if needed or any(one.fatal for one in wrong) else EXIT_VALID


def _is_needed(field: Field, layout: Layout, wrong: Sequence[SystemProblem]) -> bool:
    return must_be_filled(field, layout) or any(one.field == field.name for one in wrong)


def _ask(title: str, fields: Sequence[Field], terminal: Terminal) -> None:
    """List fields with their meaning and an example."""
    if not fields:
        return
    terminal.print(Text(f"\n{title}", style="bold"))
    table = plain_table()
    for column in ("field", "meaning", "such as"):
        table.add_column(column, overflow="fold")
    for field in fields:
        table.add_row(field.name, field.meaning, field.example)
    terminal.print(table)
