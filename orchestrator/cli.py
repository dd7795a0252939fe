"""The command line: every user-facing `if`. Errors are one message; tracebacks are bugs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from orchestrator import __version__, bench, cluster, doctor
from orchestrator.campaign import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SETUP,
    EXIT_USAGE,
    SetUpError,
    run_campaign,
)
from orchestrator.console import Console, print_plan
from orchestrator.manifest import ManifestError, load_manifest, manifest_schema
from orchestrator.paths import write_json
from orchestrator.plan import PlanError, plan
from orchestrator.rules import RulesError, load_round

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="MLPerf Inference on a cluster: the official LoadGen over workers that Ray places.",
)
app.add_typer(bench.app, name="bench")

Manifests = Annotated[list[Path], typer.Argument(help="Manifest files (YAML).", show_default=False)]
RunsDir = Annotated[Path, typer.Option(help="Where evidence is written.")]
Address = Annotated[
    str, typer.Option(help="Ray: 'local' starts one here, 'auto' finds a running one, or HOST:PORT.")
]


class Stop:
    """SIGINT and SIGTERM end a run cleanly: the first asks, the second is Python's own."""

    def __init__(self) -> None:
        self.reason: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    def _asked(self, number: int, _frame: Any) -> None:
        self.reason = f"{signal.Signals(number).name} received"
        signal.signal(number, signal.default_int_handler)

    def __call__(self) -> str | None:
        """The reason to stop, None to go on."""
        return self.reason


@app.command()
def run(manifests: Manifests, runs_dir: RunsDir = Path("runs"), address: Address = "local") -> None:
    """Run every test of one or more manifests and write their records."""
    console = Console()
    stop = Stop()
    loaded = [load_manifest(path) for path in manifests]
    for manifest in loaded:
        plan(manifest, load_round(manifest.round))
    codes = []
    for manifest in loaded:
        codes.append(run_campaign(manifest, runs_dir, address, console, stop))
        if stop():
            raise typer.Exit(EXIT_INTERRUPTED)
    # Of several runs the worst decides: a failed test, then an invalid one.
    raise typer.Exit(max(codes))


@app.command("plan")
def plan_command(manifests: Manifests) -> None:
    """Show what would run, with which settings, and every rule that is broken."""
    for path in manifests:
        manifest = load_manifest(path)
        print_plan(manifest, plan(manifest, load_round(manifest.round)))


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
        typer.echo(__import__("json").dumps(manifest_schema(), indent=2))
    else:
        write_json(out, manifest_schema())


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Options of the program itself."""
    if version:
        typer.echo(f"loadgrid {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command; turn errors into one message and an exit code."""
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(call: Callable[[], Any]) -> int:
    try:
        call()
    except (ManifestError, PlanError, RulesError) as error:
        return _complain(str(error), EXIT_USAGE)
    except (SetUpError, cluster.ClusterError) as error:
        return _complain(str(error), EXIT_SETUP)
    except (KeyboardInterrupt, cluster.Interrupted):
        return _complain("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        return _complain(f"{error.filename or ''}: {error.strerror or error}", EXIT_SETUP)
    return EXIT_FAILED  # typer leaves by SystemExit


def _complain(text: str, code: int) -> int:
    typer.echo(f"loadgrid: {text}", err=True)
    return code
