"""A search for the peak as people read it: every test, the bracket, what was confirmed, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator.campaign import EXIT_INTERRUPTED
from orchestrator.peak import Found, Row
from orchestrator.peak_probe import bound_of, delivered, is_hopeless, late_of
from orchestrator.phrases import judged_percentile, ms, plural, rate, verdict
from orchestrator.tables import plain_table

NOUNS = {"Server": "queries/s", "MultiStream": "samples a query"}


def show_peak(found: Found, terminal: Console, resume: str) -> None:
    """Print the evidence and what it comes to; `resume` is the command that goes on with the search."""
    terminal.print()
    terminal.print(Rule(Text(f"the peak of {found.scenario}"), style="dim"))
    if found.rows:
        terminal.print(_table(found))
    for line in _lines(found, resume):
        terminal.print(line, soft_wrap=True)


def shown(found: Found, value: float) -> str:
    """A value as it is written into a manifest, with commas."""
    return f"{value:,.10g}" if found.scenario == "Server" else f"{value:,.0f}"


def _table(found: Found) -> Table:
    judged = judged_percentile(found.rows[0].record)
    with_batches = any(row.batching != found.usual for row in found.rows)
    with_run = any(row.before for row in found.rows)
    counts = ["late", "allowed", "done/s"] if found.scenario == "Server" else []
    left = ["test", *(["batches"] if with_batches else []), "verdict"]
    table = plain_table()
    for name in (NOUNS[found.scenario], *left, f"{judged} ms", *counts, *(["run"] if with_run else [])):
        table.add_column(name, justify="left" if name in (*left, "run") else "right", no_wrap=True)
    for row in found.rows:
        latency = row.record.result.percentiles_ms.get(judged)
        table.add_row(
            shown(found, row.seen.value),
            Text("full", style="bold") if row.confirms else "probe",
            *([row.batching.words(found.usual) or "as given"] if with_batches else []),
            _verdict(row),
            "–" if latency is None else ms(latency),
            *(_counts(found, row) if counts else ()),
            *([Text("before", style="dim") if row.before else "now"] if with_run else []),
        )
    return table


def _verdict(row: Row) -> Text:
    """LoadGen's word; a test that was ended early would have had this one."""
    told = verdict(row.record)
    return Text("INVALID", style="red") if is_hopeless(row.record) else Text(told.word, style=told.style)


def _counts(found: Found, row: Row) -> Iterator[str]:
    """Late queries, how many LoadGen lets pass, and the rate at which all were answered."""
    late, _ = late_of(row.record, row.folder)
    bound = bound_of(row.record, found.early_stopping)
    done = row.record.result.value or delivered(row.record.series)
    yield f"{late:,}"
    yield "–" if bound is None else f"{bound:,}"
    yield rate(done) if done else "–"


def _lines(found: Found, resume: str) -> Iterator[Text]:
    if found.rows:
        yield Text(_limits(found), style="dim")
    noun, confirmed = NOUNS[found.scenario], found.confirmed
    probes = sum(not row.confirms for row in found.rows)
    if found.low:
        above = (
            f"{shown(found, found.high)} did not" if found.high < float("inf") else "nothing above was tried"
        )
        words = "" if found.batching is None else found.batching.words(found.usual)
        with_words = f" with {words}" if words else ""
        text = f"\n{plural(probes, 'probe')}: {shown(found, found.low)} {noun} held{with_words}, {above}."
        yield Text(text)
    elif found.rows:
        yield Text(
            f"\n{plural(probes, 'probe')}: no rate held." if found.scenario == "Server" else "\nnone held"
        )
    if found.not_tried:
        yield Text(f"Not tried, for no probe was left (--probes): {', '.join(found.not_tried)}.")
    if confirmed is not None:
        told = "official" if confirmed.record.official else "not official, for the reasons in its record"
        yield Text(
            f"Highest VALID: {shown(found, confirmed.seen.value)} {noun}, held at full length ({told}).",
            style="bold green",
        )
        yield Text(f"record: {confirmed.folder}\nmanifest with these values: {found.file}")
    elif found.low and not found.trouble:
        yield Text("No result: no test of full length was VALID.", style="bold red")
    if found.trouble:
        yield Text(f"The search did not end: {found.trouble}", style="yellow")
        what = "Go on with" if found.exit_code == EXIT_INTERRUPTED else "When that is mended, go on with"
        yield Text(f"{what}: {resume}")
    if found.folder is not None:
        yield Text(f"probes: {found.folder}", style="dim")


def _limits(found: Found) -> str:
    """What the columns are held against."""
    settings = found.rows[0].record.settings
    if found.scenario == "Server":
        limit = settings["server_target_latency_ns"] / 1e6
        told = f"limit {limit:,g} ms; allowed: so many late ones let LoadGen's bound pass"
    else:
        told = f"interval {ms(1000 / settings['multi_stream_target_qps'])} ms"
    early = any(is_hopeless(row.record) for row in found.rows)
    return told + ("; –: ended early, for it could not pass any more" if early else "")
