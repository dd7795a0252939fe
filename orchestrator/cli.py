"""The command line: every user-facing `if`. Errors are one message; tracebacks are bugs."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from orchestrator import (
    __version__,
    bench,
    bench_watch,
    calibrate_command,
    check_command,
    cluster,
    doctor,
    log_command,
    peak_command,
    report_command,
    results_command,
    submit_command,
    system_command,
)
from orchestrator.audit import with_compliance
from orchestrator.campaign import (
    EXIT_INTERRUPTED,
    EXIT_SETUP,
    EXIT_USAGE,
    SetUpError,
    run_campaign,
)
from orchestrator.campaign_files import Campaign, Ended, newest_campaign
from orchestrator.campaignview import show_campaign_end
from orchestrator.console import Console, open_terminal, print_plan
from orchestrator.exporter import serve_metrics
from orchestrator.jsonlines import JsonLines, standard_output_for_machines
from orchestrator.manifest import (
    Manifest,
    ManifestError,
    load_manifest,
    manifest_files,
    manifest_schema,
)
from orchestrator.paths import json_bytes, write_output
from orchestrator.plan import PlanError
from orchestrator.preflight import check_files, check_names, check_scales, why_not_writable
from orchestrator.prepare import check_digest, prepare, same_data
from orchestrator.rules import RulesError, load_round
from orchestrator.stop import Interrupted, Stop
from orchestrator.suiteview import Part, show_campaign
from orchestrator.watching import Watchers
from workers.library import Library

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="MLPerf Inference on a cluster: the official LoadGen over workers that Ray places.",
)
bench.app.command("watch")(bench_watch.watch)
app.add_typer(bench.app, name="bench")
app.command("log")(log_command.show)
app.command("check")(check_command.check)
app.command("calibrate")(calibrate_command.calibrate)
app.command("peak")(peak_command.search)
app.command("describe-system")(system_command.describe)
app.command("submit")(submit_command.write)
app.command("report")(report_command.write)
app.command("results")(results_command.show)

Manifests = Annotated[
    list[Path], typer.Argument(help="Manifest files (YAML), or folders of them.", show_default=False)
]
RunsDir = Annotated[Path, typer.Option(help="Where evidence is written.")]
Compliance = Annotated[
    bool, typer.Option("--compliance", help="Also the compliance tests that the closed division asks for.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the newest campaign of these manifests in --runs-dir.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object a line on standard output, for machines.")
]
Address = Annotated[
    str, typer.Option(help="Ray: 'local' starts one here, 'auto' finds a running one, or HOST:PORT.")
]


@app.command()
def run(
    manifests: Manifests,
    runs_dir: RunsDir = Path("runs"),
    address: Address = "local",
    compliance: Compliance = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run every test of one or more manifests and write their records.

    Without --resume a new campaign begins, whatever lies in --runs-dir: who measures again wants to measure.
    With it the newest campaign goes on: tests with a good record of the very same manifest, data set,
    weights, LoadGen and code stay; all others run, and what lay in their place is kept aside.
    """
    loaded = _loaded(manifests, compliance)
    tests: list[list[str]] = []
    for manifest in loaded:
        tests.append([spec.name for spec in check_names(manifest)])
        check_files(manifest, address)
    if reason := why_not_writable(runs_dir):
        raise typer.BadParameter(f"no run can be written to {runs_dir}: {reason}", param_hint="--runs-dir")
    stop = Stop().listen()
    with contextlib.ExitStack() as held:
        lines = JsonLines(held.enter_context(standard_output_for_machines()), sys.stderr) if as_json else None
        campaign = _campaign(loaded, runs_dir, resume)
        codes = []
        for manifest, names in zip(loaded, tests, strict=True):
            count = len(campaign.ended)
            if not stop():
                codes.append(_run_one(manifest, campaign, address, stop, lines))
            if len(campaign.ended) == count:  # it was never looked into
                campaign.ended.append(Ended(manifest.name, None, (), frozenset(), names))
        # Of several runs the worst decides, by the order of the codes.
        code = EXIT_INTERRUPTED if stop() else max(codes)
        if lines is not None:
            lines.campaign_ended(campaign.ended, code)
        elif len(loaded) > 1 or campaign.resumed:
            show_campaign_end(campaign.name, campaign.ended, open_terminal())
    raise typer.Exit(code)


def _campaign(loaded: list[Manifest], runs_dir: Path, resume: bool) -> Campaign:
    """The campaign to go on with, or a new one; says which, where it was asked for."""
    newest = newest_campaign(runs_dir, [manifest.name for manifest in loaded]) if resume else None
    if resume:
        none = f"nothing to resume: no campaign of these manifests in {runs_dir}, so a new one begins"
        typer.echo(none if newest is None else f"resuming campaign {newest.name} in {runs_dir}", err=True)
    return newest or Campaign(runs_dir)


def _loaded(manifests: list[Path], compliance: bool) -> list[Manifest]:
    """The manifests; with `compliance` each with all runs that a closed submission needs."""
    loaded = [load_manifest(path) for path in manifest_files(manifests)]
    if not compliance:
        return loaded
    runs = [with_compliance(load_round(m.round), m.benchmark, m.runs) for m in loaded]
    return [m.model_copy(update={"runs": wanted}) for m, wanted in zip(loaded, runs, strict=True)]


def _run_one(
    manifest: Manifest, campaign: Campaign, address: str, stop: Stop, lines: JsonLines | None
) -> int:
    """Run one manifest; what keeps it from beginning is told and does not keep the next from running."""
    teller = lines or Console()

    def run_tests() -> int:
        exporter = serve_metrics(manifest.metrics, teller.warned)
        watcher = teller if exporter is None else Watchers(teller, exporter)
        try:
            return run_campaign(manifest, campaign.runs_dir, address, watcher, stop, campaign)
        finally:
            teller.close()
            if exporter is not None:
                exporter.close()

    return _guarded(run_tests)


@app.command("plan")
def plan_command(manifests: Manifests, compliance: Compliance = False) -> None:
    """Show what would run, with which settings, and every rule that is broken; of a folder in one table."""
    loaded = _loaded(manifests, compliance)
    parts = [Part(manifest, check_names(manifest)) for manifest in loaded]
    for manifest in loaded:
        check_scales(manifest, manifest.workers.where == "local")
    if any(path.is_dir() for path in manifests):
        show_campaign(", ".join(map(str, manifests)), parts, open_terminal())
        return
    for part in parts:
        print_plan(part.manifest, part.specs)


@app.command("prepare")
def prepare_command(manifests: Manifests) -> None:
    """Prepare the data sets of manifests on this host, or check those that are here; prints their hashes."""
    loaded = [load_manifest(path) for path in manifest_files(manifests)]
    ready: dict[str, Library] = {}
    codes = [0]
    for manifest in loaded:
        codes.append(_guarded(partial(_prepare_one, manifest, ready)))
        if codes[-1] == EXIT_INTERRUPTED:
            break
    raise typer.Exit(max(codes))


def _prepare_one(manifest: Manifest, ready: dict[str, Library]) -> int:
    """Prepare one data set; of manifests that share one, the first does."""
    terminal = open_terminal()
    library = ready.get(same_data(manifest))
    if library is None:
        console = Console(terminal)
        try:
            made = prepare(manifest, console)
        finally:
            console.close()
        library = ready[same_data(manifest)] = made.library
        for part in made.report(manifest):
            terminal.print(part)
        terminal.print(f"task.sha256: {library.digest}\n", soft_wrap=True)  # to be copied into the manifest
    else:
        terminal.print(f"{manifest.name}: the same data set, {library.folder}\n", soft_wrap=True)
    check_digest(manifest, library)
    return 0


@app.command("doctor")
def doctor_command(
    address: Address = "local",
    manifest: Annotated[Path | None, typer.Argument(help="A manifest to size the checks by.")] = None,
) -> None:
    """Check whether this machine and cluster are fit to run; one line each, with the mend."""
    fit = doctor.examine(address, load_manifest(manifest) if manifest else None)
    raise typer.Exit(0 if fit else EXIT_SETUP)


@app.command("schema")
def schema_command(
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write the manifest's JSON schema, for editors."""
    if out is None:
        typer.echo(json.dumps(manifest_schema(), indent=2))
    else:
        write_output(out, json_bytes(manifest_schema()))


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Options of the program itself."""
    if version:
        typer.echo(f"loadgrid {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command; turn errors into one message and an exit code."""
    Stop().listen()
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(call: Callable[[], int]) -> int:
    """What `call` returns, or the exit code of its error, which is told."""
    try:
        return call()
    except (ManifestError, PlanError, RulesError) as error:
        return _complain(str(error), EXIT_USAGE)
    except (SetUpError, cluster.ClusterError) as error:
        return _complain(str(error), EXIT_SETUP)
    except (KeyboardInterrupt, Interrupted) as error:
        return _complain(f"interrupted: {error}" if str(error) else "interrupted", EXIT_INTERRUPTED)
    except MemoryError as error:
        return _complain(f"not enough memory{f': {error}' if str(error) else ''}", EXIT_SETUP)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", EXIT_SETUP)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise  # typer's own ways to end
    except Exception as error:
        if wish := _wish_behind(error):
            return _complain(f"interrupted: {wish}", EXIT_INTERRUPTED)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        fault = "this is a fault of LoadGrid, please report it"
        return _complain(f"unexpected error: {what} ({fault}{_kept_traceback(error)})", EXIT_SETUP)


def _wish_behind(error: BaseException | None) -> BaseException | None:
    """The interrupt of which somebody made this error, as Ray does in its waits (SystemError); None: none."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def _kept_traceback(error: Exception) -> str:
    """' with FILE', a new file that holds the error's traceback; nothing where none can be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="loadgrid-error-", suffix=".txt", encoding="utf-8", errors="replace", delete=False
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return ""
    return f" with {file.name}"


def _complain(text: str, code: int) -> int:
    typer.echo(f"loadgrid: {text}", err=True)
    return code


if __name__ == "__main__":
    main()
