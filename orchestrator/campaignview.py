"""The end of a campaign as people read it: one table over all manifests, with what was done before."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator.campaign_files import Ended
from orchestrator.phrases import accuracy, plural, result, verdict
from orchestrator.tables import plain_table


def show_campaign_end(campaign: str, ended: Sequence[Ended], console: Console) -> None:
    """Print it; manifests that could not begin are in it, as tests that were not run."""
    records = [record for part in ended for record in part.records]
    count = len(records) + sum(len(part.not_run) for part in ended)
    good = sum(verdict(record).good for record in records)
    before = sum(len(part.done_before) for part in ended)
    style = "green" if good == count else "red"
    done = f", {before:,} done before" if before else ""
    head = f"campaign {campaign}: {good:,} of {plural(count, 'test')} good{done}"
    console.print()
    console.print(Rule(Text(head, style=f"bold {style}"), style=style))
    console.print(_table(ended))
    for part in ended:
        if part.folder is not None:
            console.print(Text(f"{part.manifest}: {part.folder}", style="dim"), soft_wrap=True)


def _table(ended: Sequence[Ended]) -> Table:
    some_official = any(record.official for part in ended for record in part.records)
    table = plain_table()
    for name in ("manifest", "test", "verdict", "result", *(["official"] if some_official else []), "run"):
        table.add_column(name, no_wrap=name != "manifest")
    for part in ended:
        for record in part.records:
            found = verdict(record)
            table.add_row(
                part.manifest,
                record.test,
                Text(found.word, style=found.style),
                accuracy(record) if record.kind == "accuracy" else result(record),
                *([Text("yes", style="green") if record.official else "no"] if some_official else []),
                Text("before", style="dim") if record.test in part.done_before else "now",
            )
        for name in part.not_run:
            table.add_row(part.manifest, name, "–", "–", *(["no"] if some_official else []), "not run")
    return table
