"""`loadgrid check`: a submission tree against the rules of a round, and against its official checker."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.check.finding import Context, context_of
from orchestrator.check.gate import judge
from orchestrator.check.official import OfficialError, OfficialRun, compared, run_official
from orchestrator.check.report import as_json, page
from orchestrator.rules import RulesError

EXIT_FINDINGS = 1

Tree = Annotated[
    Path, typer.Argument(help="The folder that holds closed/, open/ or network/.", show_default=False)
]
RoundName = Annotated[str, typer.Option("--round", help="The round whose rules hold, such as v1.0.")]
Checkout = Annotated[
    Path | None,
    typer.Option(
        "--official", metavar="CHECKOUT", help="Also run the official checker of this mlcommons/inference."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object, with every finding.")]


def _time(seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds > 0):
        raise typer.BadParameter(f"{seconds:g} is no number of seconds above 0")
    return seconds


Limit = Annotated[
    float,
    typer.Option(
        "--official-limit",
        metavar="SECONDS",
        callback=_time,
        help="How long the official checker may take.",
    ),
]


def check(
    tree: Tree,
    round_name: RoundName,
    official: Checkout = None,
    json: Json = False,
    official_limit: Limit = 1800,
) -> None:
    """Check a submission tree, more strictly than the official checker; exit 0 only if nothing is wrong."""
    context = _context(tree, round_name)
    run: OfficialRun | None = None
    if official is not None:
        try:
            run = run_official(official, context.root, round_name, official_limit)
        except OfficialError as error:
            raise typer.BadParameter(str(error), param_hint="--official") from None
    findings = judge(context)
    words: list[str] = []
    if run is not None:
        more, words = compared(findings, run, context)
        findings = [*findings, *more]
    if json:
        typer.echo(as_json(context, findings, run, words))
    else:
        for line in page(context, findings, run, words):
            typer.echo(line)
    if findings:
        raise typer.Exit(EXIT_FINDINGS)


def _context(tree: Path, round_name: str) -> Context:
    if not tree.is_dir():
        what = "is a file" if tree.exists() else "is not there"
        raise typer.BadParameter(
            f"{tree} {what}; give the folder that holds closed/ or open/", param_hint="TREE"
        )
    try:
        return context_of(tree.absolute(), round_name)
    except RulesError as error:
        raise typer.BadParameter(str(error), param_hint="--round") from None
