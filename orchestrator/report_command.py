"""`loadgrid report`: one run, or several side by side, as a web page with its numbers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.console import open_terminal
from orchestrator.paths import write_atomically, write_output
from orchestrator.phrases import size
from orchestrator.report.runs import ReportError, plain, read_run
from orchestrator.report.write import REPORT, write_report

Runs = Annotated[
    list[Path],
    typer.Argument(help="Folders of runs, or of single tests.", show_default=False),
]
OutFile = Annotated[
    Path | None,
    typer.Option(help="The page. Default: report.html in the run's folder; of several runs, in this folder."),
]


def write(runs: Runs, out: OutFile = None) -> None:
    """Write a report of a run, or of several compared: a web page that needs nothing else, CSV and JSON."""
    page = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    if page.suffix != ".html":
        raise typer.BadParameter(plain(f"{page} does not end in .html"), param_hint="--out")
    if page.is_dir() or (not page.parent.is_dir() and out is not None):
        why = "is a folder" if page.is_dir() else f"cannot be written: {page.parent} is not a folder"
        raise typer.BadParameter(plain(f"{page} {why}"), param_hint="--out")
    try:
        read = [read_run(folder) for folder in runs]
        # In a run's folder no link is followed; where a person said, theirs are.
        written = write_report(read, page, write_atomically if out is None else write_output)
    except ReportError as error:
        raise typer.BadParameter(str(error), param_hint="RUNS") from None
    terminal = open_terminal()
    for path in written:
        terminal.print(Text(plain(f"{path}  {size(path.stat().st_size)}")), soft_wrap=True)
    for run in read:
        for record, proof in run.proven:
            if proof.doubts:
                told = f"not to be believed: {run.name}, {record.test}: {'; '.join(proof.doubts)}"
                typer.echo(plain(told), err=True)
