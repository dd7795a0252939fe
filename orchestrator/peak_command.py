"""`loadgrid peak`: the highest rate that a manifest holds, by short probes, confirmed at full length."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.campaign_files import Campaign, newest_campaign
from orchestrator.console import Console, open_terminal
from orchestrator.manifest import load_manifest
from orchestrator.peak import PEAK_NAME, PROBES, Peak
from orchestrator.peak_probe import scenario_of
from orchestrator.peakview import show_peak
from orchestrator.preflight import check_files, check_names, why_not_writable
from orchestrator.stop import Stop


def search(
    manifest: Annotated[Path, typer.Argument(help="A manifest (YAML) with Server.", show_default=False)],
    probes: Annotated[int, typer.Option(min=2, max=100, help="Probes at most, of all settings.")] = PROBES,
    keep_batches: Annotated[
        bool, typer.Option("--keep-batches", help="Leave max_batch and batch_deadline_ms as they are.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest search of this manifest in --runs-dir.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option(help="Where evidence is written.")] = Path("runs"),
    address: Annotated[
        str, typer.Option(help="Ray: 'local' starts one here, 'auto' finds a running one, or HOST:PORT.")
    ] = "local",
) -> None:
    """Find the highest VALID rate of Server, or samples_per_query of MultiStream in rounds v1.0 and v1.1.

    It starts at the manifest's own value. Probes take a tenth of the test's duration and queries, or end as
    soon as they cannot pass; at the edge it tries batches of twice and half the size and a deadline. What the
    probes passed at is run at full length, as the manifest plans it, lower where that is not VALID, and once
    more where it is, near the edge: four such tests at most, however often the search is resumed. The
    manifest itself is not changed: peak.yaml beside the probes holds the values, for `loadgrid run`, and
    peak.json lists the tests.
    """
    loaded = load_manifest(manifest)
    scenario_of(loaded)
    check_names(loaded)
    check_files(loaded, address)
    if reason := why_not_writable(runs_dir):
        raise typer.BadParameter(f"no run can be written to {runs_dir}: {reason}", param_hint="--runs-dir")
    newest = newest_campaign(runs_dir, [f"{loaded.name}{PEAK_NAME}"]) if resume else None
    if resume:
        none = f"nothing to resume: no search of this manifest in {runs_dir}, so a new one begins"
        typer.echo(none if newest is None else f"resuming search {newest.name} in {runs_dir}", err=True)
    terminal = open_terminal()
    console = Console(terminal, brief=True)
    try:
        peak = Peak(loaded, newest or Campaign(runs_dir), address, console, Stop().listen(), probes)
        found = peak.find(tune=not keep_batches)
    finally:
        console.close()
    words = ["loadgrid", "peak", str(manifest), "--resume", "--runs-dir", str(runs_dir), "--address", address]
    again = [*(["--probes", str(probes)] if probes != PROBES else []), *(["--keep-batches"] * keep_batches)]
    show_peak(found, terminal, shlex.join([*words, *again]))
    raise typer.Exit(found.exit_code)
