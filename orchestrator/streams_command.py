"""`loadgrid multistream`: the largest number of samples per query that the old MultiStream holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.console import Console, open_terminal
from orchestrator.manifest import load_manifest
from orchestrator.preflight import check_files, check_names, why_not_writable
from orchestrator.stop import Stop
from orchestrator.stream_search import search_streams
from orchestrator.streamview import show_search

FEWEST_QUERIES = 100  # of which at most none may be late: fewer say nothing of 1 %


def search(
    manifest: Annotated[Path, typer.Argument(help="A manifest of round v1.0 or v1.1.", show_default=False)],
    queries: Annotated[int, typer.Option(min=FEWEST_QUERIES, help="Queries of each probe.")] = 1000,
    runs_dir: Annotated[Path, typer.Option(help="Where the probes' records are written.")] = Path("runs"),
    address: Annotated[str, typer.Option(help="Ray: 'local', 'auto' or HOST:PORT.")] = "local",
) -> None:
    """Find the largest samples_per_query of MultiStream (rounds v1.0 and v1.1) by short tests."""
    loaded = load_manifest(manifest)
    check_names(loaded)
    check_files(loaded, address)
    if reason := why_not_writable(runs_dir):
        raise typer.BadParameter(f"no run can be written to {runs_dir}: {reason}", param_hint="--runs-dir")
    terminal = open_terminal()
    console = Console(terminal, brief=True)
    try:
        outcome = search_streams(loaded, runs_dir, address, console, Stop().listen(), queries)
    finally:
        console.close()
    show_search(outcome, queries, terminal)
    raise typer.Exit(outcome.exit_code)
