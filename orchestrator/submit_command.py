"""`loadgrid submit`: a submission tree from records, a table of what is in it and what it still lacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.campaign import EXIT_INVALID, EXIT_SETUP, EXIT_USAGE
from orchestrator.console import open_terminal
from orchestrator.record import RecordError
from orchestrator.submission.build import Built, SubmitError, Wishes, submit
from orchestrator.submission.data_files import GivenError, read_given
from orchestrator.submission.planned import IMPLEMENTATION
from orchestrator.submission.readme import DRAFT
from orchestrator.submission.system import SystemError
from orchestrator.tables import plain_table

Records = Annotated[
    list[Path],
    typer.Argument(help="Runs, as `loadgrid run` leaves them, or folders of runs.", show_default=False),
]
System = Annotated[
    Path, typer.Option(help="The system's description, as `loadgrid describe-system` writes it.")
]
Out = Annotated[Path, typer.Option(help="Folder to write: closed/, open/ or network/ will lie in it.")]
Submitter = Annotated[
    str | None, typer.Option(help="Who submits, a folder name. Default: as the system's description says.")
]
Status = Annotated[str | None, typer.Option(help="available, preview or rdi, instead of the description's.")]
Implementation = Annotated[str, typer.Option(help="Name of the implementation, a folder name.")]
Facts = Annotated[
    list[str] | None,
    typer.Option(
        "--fact", help="NAME=VALUE of the implementation's description, such as retraining=No; repeatable."
    ),
]
FactsFile = Annotated[
    Path | None, typer.Option("--facts", help="Such fields in a YAML or JSON file; --fact beats it.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(help="Open division: the model's name, BENCHMARK=NAME or NAME; repeatable."),
]
Notes = Annotated[str | None, typer.Option(help="Added to the description's notes, which the table shows.")]
Code = Annotated[Path | None, typer.Option(help="Folder of your own implementation, to be copied.")]
Calibration = Annotated[
    Path | None, typer.Option(help="Document that describes how the network was calibrated (quantisation).")
]
Documents = Annotated[
    list[Path] | None,
    typer.Option(help="A document of the submission, such as the network division's network.md; repeatable."),
]
DataPath = Annotated[
    Path | None, typer.Option(help="Text on the way from the NICs to the accelerators, for bandwidth.adoc.")
]
Infer = Annotated[
    bool,
    typer.Option("--infer", help="Edge: infer missing scenarios from a stream, as the rules allow."),
]
Draft = Annotated[
    bool, typer.Option("--draft", help="Take unofficial records too, and brand the tree as a draft.")
]


def write(
    records: Records,
    system: System,
    out: Out,
    submitter: Submitter = None,
    status: Status = None,
    implementation: Implementation = IMPLEMENTATION,
    fact: Facts = None,
    facts_file: FactsFile = None,
    model_used: Models = None,
    notes: Notes = None,
    code: Code = None,
    calibration: Calibration = None,
    data_path: DataPath = None,
    document: Documents = None,
    infer: Infer = False,
    draft: Draft = False,
) -> None:
    """Write the submission tree of official records: logs, settings, compliance, system, code, documents."""
    try:
        wishes = Wishes(
            submitter=submitter,
            status=status,
            implementation=implementation,
            facts={**(read_given(facts_file) if facts_file else {}), **_pairs(fact or (), "--fact")},
            models=_pairs(model_used or (), "--model-used", alone=True),
            notes=notes,
            code=code,
            calibration=calibration,
            data_path=data_path,
            documents=document or (),
            infer=infer,
            draft=draft,
        )
        built = submit(records, system, out, wishes)
    except (SubmitError, SystemError, RecordError, GivenError) as error:
        lines = [_printable(line) for line in f"loadgrid: {error}".splitlines()]
        typer.echo("\n".join(lines), err=True)
        raise typer.Exit(EXIT_USAGE) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"loadgrid: {where}{error.strerror or error}", err=True)
        raise typer.Exit(EXIT_SETUP) from None
    show(built)
    raise typer.Exit(EXIT_INVALID if built.missing else 0)


def _pairs(given: Iterable[str], option: str, alone: bool = False) -> dict[str, str]:
    """NAME=VALUE as a mapping; with `alone` a VALUE may stand for itself, under the empty name."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name, value = (name, value) if equals else ("", name)
        if not value.strip() or (not name.strip() and not (alone and not equals)):
            raise SubmitError(f"{option} takes NAME=VALUE, not {text!r}")
        if name.strip() in found:
            raise SubmitError(f"{option} {name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found


def _printable(line: str) -> str:
    """What comes from records and files shall not steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in line)


def show(built: Built) -> None:
    """What was written, what was not taken, what is missing, and what to do next."""
    terminal = open_terminal()
    table = plain_table(f"{built.root}: {built.division} division, {built.submitter}, {built.system}")
    for head in ("model", "scenario", "result", "accuracy", "compliance"):
        table.add_column(head)
    for cell in built.cells:
        scenario = cell.scenario + (f" (inferred from {cell.inferred_from})" if cell.inferred_from else "")
        compliance = ", ".join(cell.compliance) or "none"
        table.add_row(cell.model, scenario, cell.result, cell.accuracy, compliance)
    terminal.print(table)
    parts = (
        (f"{DRAFT}: the tree is branded, because", built.draft_because),
        ("Not taken", built.left_out),
        ("The system's description", built.remarks),
        (f"Still missing in the {built.division} division of round {built.round}", built.missing),
    )
    for title, lines in parts:
        if lines:
            terminal.print(f"\n{title}", style="bold", markup=False)
        for line in lines:
            terminal.print(f" · {_printable(line)}", markup=False, soft_wrap=True)
    if built.originals is not None:
        terminal.print(
            f"\nKeep {built.originals}: the whole accuracy logs, of which the tree has both ends.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    terminal.print(f"\nNext: loadgrid check {built.root} --round {built.round}", markup=False, soft_wrap=True)
