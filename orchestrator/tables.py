"""Records as tables for 80 columns or more: what came out, where the time went, what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from orchestrator.journey import PATH, TOTAL, Answer, Row, driver_was_the_limit, rows
from orchestrator.phrases import (
    accuracy,
    duration,
    judged_percentile,
    late_answers_story,
    limit_ms,
    loss_story,
    ms,
    percent,
    plural,
    power,
    power_in_words,
    rate,
    result,
    result_name,
    verdict,
    with_unit,
)
from orchestrator.record import Record

HEADS = {
    "driver_queue": "driver\nqueue",
    "wire": "wire",
    "worker_queue": "worker\nqueue",
    "compute": "compute",
    "return": "return",
    TOTAL: "total",
}
# A table of more workers is not read any more; the record has them all.
WORKERS_SHOWN = 8
WIDER = 1000  # than any table: what it would take if it could
SHOWN = ("p50", "p90", "p99")
ANSWER_STYLES = {"no": "green", "yes": "red", "perhaps": "yellow", "unknown": "yellow"}


def plain_table(title: str = "") -> Table:
    """A table without a frame."""
    return Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )


def facts_grid(pairs: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names at the left, texts that wrap at the right."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, text in pairs:
        grid.add_row(name, text)
    return grid


# -- one test --------------------------------------------------------------------------------------


def test_report(record: Record, folder: Path) -> RenderableType:
    """Everything that a person wants to know of one test when it ends."""
    found = verdict(record)
    parts: list[RenderableType] = [
        Rule(Text(f"{record.test}: {found.word}", style=f"bold {found.style}"), style=found.style),
        facts_grid(_facts(record, folder)),
    ]
    if record.kind == "performance":
        parts += list(journey_report(record))
    parts += [Text(text, style="yellow") for text in _remarks(record)]
    return Group(*parts)


test_report.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for one of its own


def _facts(record: Record, folder: Path) -> Iterator[tuple[str, RenderableType]]:
    found = verdict(record)
    sentence = Text.assemble((found.word, f"bold {found.style}"), "  ", found.sentence)
    yield "verdict", Group(sentence, bullets(found.reasons, found.style)) if found.reasons else sentence
    if record.status == "finished" and record.kind != "accuracy" and record.result.value is not None:
        yield "result", Text(_result_in_words(record))
        if record.power is not None:
            yield "power", Text(power_in_words(record.power))
        yield "latency", _latency(record)
    if record.losses:
        yield "lost", Text("\n".join(losses(record)), style="yellow")
    yield "official", _official(record)
    answered = plural(record.driver.get("completed") or 0, "sample")
    workers = plural(len(record.workers), "worker")
    yield "took", Text(f"{duration(record.wall_s)}; {answered} answered by {workers}")
    yield "files", Text(str(folder), overflow="fold")


def _result_in_words(record: Record) -> str:
    text, name = result(record), result_name(record)
    if record.scenario == "Server":
        return f"{text} {name}, {rate(record.settings['server_target_qps'])} offered"
    if record.scenario == "Offline":
        return f"{text}, {name}"
    return f"{text}: {name}" if record.result.unit == "ms" else f"{text} {name}"


def _latency(record: Record) -> Text:
    if record.scenario == "Offline":
        return Text("not judged in Offline, where every sample waits from the start", style="dim")
    found = record.result.percentiles_ms
    text = Text("  ".join(f"{name} {ms(found.get(name))}" for name in SHOWN) + " ms")
    limit, judged = limit_ms(record), judged_percentile(record)
    if limit is not None:
        text.append(f"; limit {limit:,g} ms at {judged}")
        if judged in found:
            used = found[judged] / limit
            text.append(f", {percent(used)} used" if used <= 1 else f": {used:.1f} times the limit")
    return text


def _official(record: Record) -> Text:
    if record.official:
        return Text("yes", style="green")
    return Text(f"no, for {plural(len(record.unofficial_because), 'reason')} (told at the end of the run)")


def losses(record: Record) -> list[str]:
    """Every loss by name, one sentence each."""
    told = []
    for loss in record.losses:
        started = loss.at_s is not None and loss.at_s >= 0
        when = f"{duration(loss.at_s or 0.0)} after the start" if started else "before the clock started"
        told.append(f"{loss.worker} {when}: {loss_story(loss.reason, loss.moved, record.on_loss)}")
    return told


def _remarks(record: Record) -> list[str]:
    told = list(record.worker_differences)
    if record.late_answers:
        told.append(late_answers_story(record.late_answers))
    if foreign := record.driver.get("foreign_answers"):
        told.append(f"{plural(foreign, 'answer')} of another test dropped")
    return told


# -- where the latency went ------------------------------------------------------------------------


def journey_report(record: Record) -> Iterator[RenderableType]:
    """Where the latency went, per worker and merged, and whether the driver was the limit."""
    found = rows(record)
    if not found:
        return
    yield Text()
    yield _journey_table(found)
    hidden = len(found) - 1 - WORKERS_SHOWN
    if hidden > 0:
        yield Text(f"the slowest by p99; {plural(hidden, 'more worker')} in record.json", style="dim")
    answer = driver_was_the_limit(record)
    if answer is not None:
        yield Text()
        yield Text.assemble(("Was the driver the limit? ", "bold"), _styled(answer))
        yield Text(f"Rule: {answer.rule}.", style="dim")
    yield Text()


def _styled(answer: Answer) -> Text:
    head, mark, rest = answer.sentence.partition(":")
    return Text.assemble((head, f"bold {ANSWER_STYLES[answer.word]}"), mark, rest)


def _journey_table(found: Sequence[Row]) -> Table:
    """Three lines a worker at most: mean, p99 and, for all of them together, the share of the whole."""
    table = plain_table("Where did the latency go? ms per sample, the driver's own timings")
    table.add_column("worker", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("mean\nbatch", justify="right", no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    for stage in (*PATH, TOTAL):
        table.add_column(HEADS[stage], justify="right", no_wrap=True)
    *workers, merged = found
    if len(workers) > WORKERS_SHOWN:
        workers = sorted(workers, key=lambda row: -row.p99_ms[TOTAL])[:WORKERS_SHOWN]
    for row in [*workers, merged] if len(workers) > 1 else [merged]:
        name = workers[0].name if row is merged and len(workers) == 1 else row.name
        size = "–" if row.batch is None else f"{row.batch:.1f}"
        style = "bold" if row is merged else ""
        means, worst = ([ms(values[s]) for s in (*PATH, TOTAL)] for values in (row.mean_ms, row.p99_ms))
        table.add_row(name, f"{row.samples:,}", size, "mean", *means, style=style)
        table.add_row("", "", "", "p99", *worst, style=style, end_section=row is workers[-1])
    table.add_row("", "", "", "share", *[percent(merged.share[s]) for s in PATH], "100 %")
    return table


# -- the whole run ---------------------------------------------------------------------------------


def run_report(
    name: str, records: Sequence[Record], folder: Path, console: Console, never_ran: Sequence[str] = ()
) -> RenderableType:
    """The end of a run: outcomes, where the time went, losses, why it is not official, the files."""
    if not records:
        return Text(f"{name}: no test was run")
    good = sum(verdict(record).good for record in records)
    count = len(records) + len(never_ran)
    style = "green" if good == count else "red"
    head = f"{name}: {good} of {plural(count, 'test')} good, {_how_many_official(records)}"
    parts: list[RenderableType] = [Text(), Rule(Text(head, style=f"bold {style}"), style=style)]
    table = _outcomes(records, broken=False)
    if Measurement.get(console, console.options.update(max_width=WIDER), table).maximum > console.width:
        table = _outcomes(records, broken=True)
    parts += [table, Text()]
    if never_ran:
        parts += [Text(f"Never ran: {', '.join(never_ran)}", style="yellow"), Text()]
    parts += [_because(record) for record in records if not verdict(record).good]
    parts += list(_journeys(records))
    lost = [f"{record.test}: {text}" for record in records for text in losses(record)]
    if lost:
        parts += [listed("Workers lost", lost, "yellow"), Text()]
    parts += list(_unofficial(records))
    parts.append(facts_grid([("files", Text(str(folder), overflow="fold"))]))
    return Group(*parts)


def _outcomes(records: Sequence[Record], *, broken: bool) -> Table:
    """One line a test; `broken` puts a long name on two."""
    table = plain_table()
    table.add_column("test", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("result")
    for name in SHOWN:
        table.add_column(f"{name} ms", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    some_official = any(record.official for record in records)
    if some_official:
        table.add_column("official", no_wrap=True)
    for record in records:
        found = verdict(record)
        table.add_row(
            record.test.replace("-", "-\n", 1) if broken else record.test,
            Text(found.word, style=found.style),
            _short_result(record),
            *_short_percentiles(record),
            _short_limit(record),
            *([Text("yes", style="green") if record.official else "no"] if some_official else []),
        )
    return table


def _how_many_official(records: Sequence[Record]) -> str:
    """A test is official by itself; a result is that and an accuracy test that reached its target."""
    count = sum(record.official for record in records)
    told = "all official" if count == len(records) else f"{count or 'none'} official"
    missed = any(r.kind == "accuracy" and not (r.accuracy and r.accuracy.reached) for r in records)
    return f"{told}, but no result without its accuracy" if count and missed else told


def _short_result(record: Record) -> str:
    if record.kind == "accuracy":
        return accuracy(record)
    estimated = record.result.unit == "ms" and record.result.value is not None
    told = f"{judged_percentile(record)} {result(record)}" if estimated else result(record)
    return told if record.power is None else f"{told}, {power(record.power)}"


def _short_percentiles(record: Record) -> list[str]:
    if record.kind == "accuracy" or record.scenario == "Offline" or record.status != "finished":
        return ["–"] * len(SHOWN)
    return [ms(record.result.percentiles_ms.get(name)) for name in SHOWN]


def _short_limit(record: Record) -> str:
    if record.kind == "accuracy":
        return with_unit(f"≥{record.accuracy.target:g}", record.accuracy.unit) if record.accuracy else ""
    limit = limit_ms(record)
    return "" if limit is None else f"≤{limit:,g} ms"


def _because(record: Record) -> RenderableType:
    found = verdict(record)
    return Group(listed(f"{record.test}: {found.sentence}", found.reasons, found.style), Text())


def listed(title: str, lines: Sequence[str], style: str) -> RenderableType:
    """A title and a list under it."""
    return Group(Text(title, style=f"bold {style}"), Padding(bullets(lines, style), (0, 0, 0, 1)))


def bullets(lines: Sequence[str], style: str) -> Table:
    """A list; lines that wrap stay indented."""
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row(Text("·", style=style), Text(line))
    return grid


def _journeys(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Every performance test's merged line, and the answers on the driver."""
    known = [(record, answer) for record in records if (answer := driver_was_the_limit(record)) is not None]
    if not known:
        return
    table = plain_table("Where did the latency go? share of the mean since the issue; all workers")
    table.add_column("test", no_wrap=True)
    for stage in PATH:
        table.add_column(HEADS[stage], justify="right", no_wrap=True)
    table.add_column("mean ms", justify="right", no_wrap=True)
    for record, _ in known:
        merged = rows(record)[-1]
        shares = [percent(merged.share[stage]) for stage in PATH]
        table.add_row(record.test, *shares, ms(merged.mean_ms[TOTAL]))
    yield table
    yield Text("\nWas the driver the limit?", style="bold")
    yield Padding(facts_grid((record.test, _styled(answer)) for record, answer in known), (0, 0, 0, 1))
    yield Text()


def _unofficial(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Every reason once, with the tests that it concerns; those of one rule stand together."""
    told = [(reason, record.test) for record in records for reason in record.unofficial_because]
    if not told:
        return
    lines = with_tests(sorted(told, key=lambda pair: pair[0].partition(":")[0]), len(records))
    yield listed(f"Not official, for {plural(len(lines), 'reason')}", lines, "yellow")
    yield Text()


def with_tests(told: Sequence[tuple[str, str]], everywhere: int) -> list[str]:
    """From (text, test) each text once, with the tests that it concerns unless it concerns all."""
    tests: dict[str, list[str]] = {}
    for text, name in told:
        tests.setdefault(text, []).append(name)
    return [
        text if len(names) == everywhere else f"{text} [{', '.join(names)}]" for text, names in tests.items()
    ]
