"""A search for the peak as people read it: every test, the bracket, what was confirmed, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator.campaign import EXIT_INTERRUPTED
from orchestrator.peak_history import Found, Row
from orchestrator.peak_probe import LATE_KEY, bound_of, delivered, is_hopeless, late_of, logged
from orchestrator.peak_search import DOUBT
from orchestrator.phrases import judged_percentile, ms, plural, rate, verdict
from orchestrator.tables import plain_table

COMPLETED_KEY = "result_completed_samples_per_sec"
OWN_COUNT = " *"
BUSY = "If a machine had other work to do meanwhile, search anew without it."
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
    """LoadGen's word, which a test that was ended early has none of."""
    told = verdict(row.record)
    return Text("ended", style="red") if is_hopeless(row.record) else Text(told.word, style=told.style)


def _is_own_count(row: Row) -> bool:
    """Whether its late queries are the driver's count, for LoadGen's log has none."""
    return row.record.scenario == "Server" and logged(row.record, row.folder, LATE_KEY) is None


def _counts(found: Found, row: Row) -> Iterator[str]:
    """Late queries, how many LoadGen lets pass, and the rate at which all were answered."""
    late, _ = late_of(row.record, row.folder)
    bound = bound_of(row.record, found.early_stopping)
    done = logged(row.record, row.folder, COMPLETED_KEY) or delivered(row.record.series)
    yield f"{late:,}{OWN_COUNT if _is_own_count(row) else ''}"
    yield "–" if bound is None else f"{bound:,}"
    yield rate(done) if done else "–"


def _lines(found: Found, resume: str) -> Iterator[Text]:
    if found.rows:
        yield Text(_limits(found), style="dim")
    if found.probes:
        yield Text(f"\n{plural(len(found.probes), 'probe')}: {_passed(found)}.")
    if found.not_tried:
        yield Text(f"Not tried, for no probe was left (--probes): {', '.join(found.not_tried)}.")
    if found.confirmed is not None:
        yield Text(_result(found, found.confirmed), style="bold green")
        yield Text(f"record: {found.confirmed.folder}\nmanifest with these values: {found.file}")
    elif (found.low or found.full) and not found.trouble:
        yield Text(f"No result: at no value was every test of full length VALID. {BUSY}", style="bold red")
    if found.folder is not None and len(found.full) >= found.most_full and not _is_settled(found):
        text = f"The {plural(found.most_full, 'test')} of full length that a search may have are used up"
        yield Text(f"{text}: only a new one, without --resume, has others.", style="yellow")
    if found.trouble:
        yield Text(f"The search did not end: {found.trouble}", style="yellow")
        what = "Go on with" if found.exit_code == EXIT_INTERRUPTED else "When that is mended, go on with"
        yield Text(f"{what}: {resume}")
    if found.folder is not None:
        yield Text(f"probes: {found.folder}", style="dim")


def _passed(found: Found) -> str:
    """What the probes passed at and where not, which is no result."""
    noun = NOUNS[found.scenario]
    if not found.low:
        return "none passed"
    words = "" if found.batching is None else found.batching.words(found.usual)
    above = f"not at {shown(found, found.high)}" if found.high < float("inf") else "nothing above was tried"
    return f"passed at {shown(found, found.low)} {noun}{f' with {words}' if words else ''}, {above}"


def _result(found: Found, confirmed: Row) -> str:
    """The value, how many tests say so, LoadGen's own figure, and whether anything above was tried."""
    same = [row for row in found.full if row.of == confirmed.of]
    valid = sum(row.seen.held for row in same)
    head = "Highest VALID" if _is_closed(found, confirmed) else "Highest tested, VALID"
    text = f"{head}: {shown(found, confirmed.seen.value)} {NOUNS[found.scenario]}"
    if found.scenario == "Server":
        text += " offered"
    if words := confirmed.batching.words(found.usual):
        text += f" with {words}"
    text += f", {valid} of {plural(len(same), 'full-length test')} at this value VALID"
    value = confirmed.record.result.value
    if found.scenario == "Server" and value is not None:
        text += f"; LoadGen's result is {value:,.6g} ({found.result_key})"
    told = "official" if confirmed.record.official else "not official, for the reasons in its record"
    return f"{text}; {told}."


def _is_closed(found: Found, confirmed: Row) -> bool:
    """Whether a test failed a little above, and no batches were left untried: there may be no higher one."""
    value, batching = confirmed.of
    near = (1 + DOUBT) * value if found.scenario == "Server" else max((1 + DOUBT) * value, value + 1)
    failed = (row.seen.value for row in found.rows if not row.seen.held and row.batching == batching)
    return not found.not_tried and any(value < other <= near for other in failed)


def _is_settled(found: Found) -> bool:
    """Whether there is a result of the batches that the probes passed with."""
    return found.confirmed is not None and found.confirmed.batching == (found.batching or found.usual)


def _limits(found: Found) -> str:
    """What the columns are held against."""
    settings = found.rows[0].record.settings
    if found.scenario == "Server":
        limit = settings["server_target_latency_ns"] / 1e6
        told = f"limit {limit:,g} ms; allowed: so many late ones let LoadGen's bound pass"
    else:
        told = f"interval {ms(1000 / settings['multi_stream_target_qps'])} ms"
    if any(is_hopeless(row.record) for row in found.rows):
        told += "; ended: by LoadGrid, for it could not pass any more"
    if any(_is_own_count(row) for row in found.rows):
        told += "; *: the driver's count, from issue and up to the end, all others are LoadGen's"
    return told
