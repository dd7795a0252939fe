"""`loadgrid results`: the public table of results trees, in the terminal and as CSV, JSON and a web page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.text import Text

from orchestrator.console import open_terminal
from orchestrator.logs import LogError
from orchestrator.named_round import named_round
from orchestrator.paths import write_output
from orchestrator.phrases import plural
from orchestrator.results.gather import Gathered, gather
from orchestrator.results.page import as_page
from orchestrator.results.rows import Row
from orchestrator.results.table import as_csv, as_json, remarks_of, result_shown
from orchestrator.results.trees import TreeError
from orchestrator.tables import plain_table

REMARKS_SHOWN = 20
# Names in a tree may come from anywhere; they shall not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Trees = Annotated[
    list[Path],
    typer.Argument(
        help="Results repositories, divisions of one, or submitters' folders.", show_default=False
    ),
]
RoundName = Annotated[
    str | None,
    typer.Option("--round", help="E.g. v1.0; default: as the folder's name or the logs have it."),
]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write a line for each row of the table.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything that is known.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write one web page that needs nothing else.")]
BaseUrl = Annotated[
    str, typer.Option(help="What the links to details and code begin with; default: relative to the tree.")
]


def show(
    trees: Trees,
    round_name: RoundName = None,
    csv: CsvFile = None,
    json: JsonFile = None,
    html: HtmlFile = None,
    base_url: BaseUrl = "",
) -> None:
    """The table of one or more results trees, of any round: results, accuracy and power by system."""
    if base_url and urlsplit(base_url).scheme not in ("http", "https"):
        raise typer.BadParameter(
            f"{base_url!r} does not begin with http:// or https://", param_hint="--base-url"
        )
    for path in (csv, json, html):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            why = "is a folder" if path.is_dir() else f"cannot be written: {path.parent} is not a folder"
            raise typer.BadParameter(_plain(f"{path} {why}"))
    terminal = open_terminal()
    try:
        if round_name is not None:
            round_name = named_round(round_name)
        gathered = gather(trees, round_name, base_url)
    except (LogError, TreeError) as error:
        raise typer.BadParameter(_plain(str(error))) from None
    for path, written in ((csv, as_csv), (json, as_json), (html, as_page)):
        if path is not None:
            write_output(path, written(gathered).encode(errors="replace"))
            terminal.print(Text(_plain(f"{path}: {plural(len(gathered.rows), 'row')}")), soft_wrap=True)
    if not any((csv, json, html)):
        _show_tables(gathered, terminal)
    _show_remarks(gathered, terminal)


def _show_tables(gathered: Gathered, terminal: Console) -> None:
    """A table for each round, suite, division and category."""
    tables: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in gathered.rows:
        tables.setdefault(row.table, []).append(row)
    for names, rows in tables.items():
        shown = plain_table(_plain(", ".join(names)))
        for head in ("submitter", "system", "hardware", "results"):
            shown.add_column(head, overflow="fold")
        for row in rows:
            m = row.machine
            what, count = (m.accelerator, m.accelerators) if m.accelerator else (m.processor, m.processors)
            results = "\n".join(_plain(result_shown(one)) for one in row.results)
            cells = (row.submitter, m.name, f"{'?' if count is None else count} x {what}" if what else "")
            shown.add_row(*(Text(_plain(cell)) for cell in cells), Text(results))
        terminal.print(shown)
        terminal.print()


def _show_remarks(gathered: Gathered, terminal: Console) -> None:
    remarks = list(gathered.remarks)
    seen: set[tuple[str, str]] = set()
    for row in gathered.rows:
        where = f"{row.division}/{row.submitter}/{row.system}"
        for told in remarks_of(row):
            if (where, told) not in seen and ": inferred from " not in told:
                seen.add((where, told))
                remarks.append(f"{where}: {told}")
    for told in remarks[:REMARKS_SHOWN]:
        terminal.print(Text(_plain(f"remark: {told}")), soft_wrap=True)
    if len(remarks) > REMARKS_SHOWN:
        more = plural(len(remarks) - REMARKS_SHOWN, "remark")
        terminal.print(f"and {more} more; --json and --html have them all", soft_wrap=True)


def _plain(text: str) -> str:
    return _CONTROL.sub("?", text)
