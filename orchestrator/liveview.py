"""A running test on a terminal of any size: progress, rate, p99 against the limit, course, losses, workers.

Every fact is one line, cut and never wrapped, and what is not known yet has its line too: so the view keeps
its height from frame to frame, and nothing jumps. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.course import Course
from orchestrator.phrases import bar, clock, duration, ms, plural, rate
from orchestrator.progress import Progress
from orchestrator.tables import facts_grid, plain_table
from orchestrator.timings import Board

# Wider lines are no easier to read, and fewer of them break when the window is made smaller.
WIDEST = 100
NAMES_CELLS = 9  # of a fact's name, and what separates it
WORDS_CELLS = 50  # what a bar leaves for its words
BAR_CELLS = (8, 40)
NARROW, TINY = 60, 30  # below: a worker's samples alone; no bars
HEAD_LINES = 3  # of the workers' table: one empty, its heads, the line below them
STRIP_LINES = 2
LAST_RANK = 8
LEVELS = "▁▂▃▄▅▆▇█"
LOST = "×"
ESTIMATE = (
    "the driver's own estimates so far; LoadGen's verdict comes at the end",
    "the driver's own estimates",
)
COURSE_STYLES = {"on course": "green", "at risk": "yellow", "cannot pass": "bold red"}


@dataclass(frozen=True)
class Seen:
    """What there is to show: `title` of the test, `phase` it is in, `lost` workers and how that came.

    `waited_s` is the time since the test began, shown until its clock starts.
    """

    progress: Progress
    title: str
    phase: str
    waited_s: float
    workers: Sequence[str]
    lost: Mapping[str, str]
    board: Board | None
    course: Course | None


@dataclass(frozen=True)
class Fact:
    """One line: its name, its text; the lowest `rank` stay where not all fit."""

    rank: int
    name: str
    text: Text


def test_view(seen: Seen, width: int, height: int) -> RenderableType:
    """The view of a test on a terminal of `width` x `height` cells; it takes fewer than `height` lines."""
    width, room = min(width, WIDEST), max(height - 2, 1)
    rule = Rule(Text.assemble((seen.title, "bold"), f": {seen.phase}"), style="dim")
    head = Table.grid()
    head.add_column(width=width)
    head.add_row(rule)
    if seen.progress.running_since_s is None:
        return Group(head, Spinner("dots", Text(f"{seen.phase}  {clock(seen.waited_s)}")))
    facts = list(_facts(seen, width))
    if len(facts) >= room:  # a line for the workers says more than the last fact
        facts = [one for one in facts if one.rank < LAST_RANK]
    kept = sorted(facts, key=lambda one: one.rank)[:room]
    shown = [one for one in facts if one in kept]
    room -= len(shown)
    if seen.board is None or room < 1:
        return Group(head, _grid(shown))
    if room >= HEAD_LINES + len(seen.workers):
        return Group(head, _grid(shown), Text(), _table(seen, seen.board, width, len(seen.workers)))
    strip = _strip(seen, width, min(room, STRIP_LINES))
    shown.append(Fact(0, "workers", strip))
    count = room - strip.plain.count("\n") - HEAD_LINES - 2
    if count < 1:
        return Group(head, _grid(shown))
    return Group(head, _grid(shown), Text(), _table(seen, seen.board, width, count), _rest(seen, count))


test_view.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for one of its own


def _grid(shown: Sequence[Fact]) -> Table:
    return facts_grid([(one.name, one.text) for one in shown])


def _facts(seen: Seen, width: int) -> Iterator[Fact]:
    """The lines, from above."""
    progress, spec = seen.progress, seen.progress.spec
    room = max(width - NAMES_CELLS, 1)
    yield Fact(1, "time", _time(progress, room))
    if progress.samples:
        told = f"{progress.completed:,} of {progress.samples:,}"
        yield Fact(0, "samples", _bar(progress.completed / progress.samples, room, told))
    else:
        yield Fact(0, "samples", _line(f"{progress.completed:,}"))
    held = max(progress.issued - progress.completed - progress.waiting, 0)
    flow = f"{progress.issued:,} issued  {progress.completed:,} completed"
    flow = f"{flow}  {progress.waiting:,} waiting here  {held:,} with workers"
    brief = f"{held + progress.waiting:,} in flight, {progress.waiting:,} waiting"
    yield Fact(6, "", _line(_fitting(room, flow, brief)))
    judged = spec.scenario == "Server" and spec.mode == "performance"
    pace = f"{rate(progress.rate)} samples/s" if progress.rate else "–"
    offered = (
        f", {rate(float(spec.settings['server_target_qps']))} offered" if judged and progress.rate else ""
    )
    yield Fact(3, "rate", _line(_fitting(room, f"{pace}{offered}", pace)))
    if progress.has_latency:
        yield Fact(2, "latency", _latency(progress, room))
    if judged:
        yield Fact(5, "course", _course(seen.course))
        yield Fact(LAST_RANK, "needed", _needed(seen.course, room))
    if seen.lost:
        yield Fact(4, "lost", _losses(seen, room))
    if progress.has_latency:
        yield Fact(7, "", _line(_fitting(room, *ESTIMATE), "dim"))


def _time(progress: Progress, room: int) -> Text:
    if progress.doing:
        return _line(_fitting(room, f"{clock(progress.elapsed_s)}  {progress.doing}", progress.doing))
    left = None if progress.left_s is None else f"{duration(progress.left_s)} left"
    if not progress.seconds:
        told = "how long is not known yet" if left is None else f"about {left}"
        return _line(_fitting(room, f"{clock(progress.elapsed_s)}  {told}", told))
    gone, least = duration(progress.issuing_s), duration(progress.seconds)
    words = [f"{gone} of {least} at least", f"{gone} of {least}"]
    if left is not None:
        words = [f"{words[0]}, about {left}", f"{words[1]}, {left}", f"about {left}", left]
    return _bar(progress.issuing_s / progress.seconds, room, *words)


def _latency(progress: Progress, room: int) -> Text:
    """p99 against the limit, as a bar too; p50 beside it."""
    latency, limit_ns = progress.latency_ms(), progress.spec.limit_ns
    if latency is None:
        return _line("–")
    p50, p99 = latency
    if limit_ns is None:
        return _line(_fitting(room, f"p50 {ms(p50)} ms  p99 {ms(p99)} ms", f"p99 {ms(p99)} ms"))
    limit = limit_ns / 1e6
    told = f"p99 {ms(p99)} ms (limit {limit:,g} ms)"
    words = (f"{told}  p50 {ms(p50)} ms", told, f"p99 {ms(p99)} of {limit:,g} ms", f"p99 {ms(p99)} ms")
    return _bar(p99 / limit, room, *words, style="red" if p99 > limit else "green")


def _course(course: Course | None) -> Text:
    """The live verdict, with its reason."""
    if course is None:
        return _line("too early to tell", "dim")
    return _line(Text.assemble((course.word, COURSE_STYLES[course.word]), f": {course.why}"))


def _needed(course: Course | None, room: int) -> Text:
    """How many queries it still takes."""
    if course is None or course.more_needed is None:
        return _line("–", "dim")
    if not course.more_needed:
        return _line("no more: enough are within the limit")
    more = f"{course.more_needed:,} more"
    return _line(_fitting(room, f"{more} within the limit until it could pass", f"{more} within the limit"))


def _losses(seen: Seen, room: int) -> Text:
    count = f"{len(seen.lost):,} of {plural(len(seen.workers), 'worker')}"
    # A reason may be an error of several lines.
    whole = "; ".join(f"{name} {' '.join(story.split())}" for name, story in seen.lost.items())
    brief = whole if len(seen.lost) == 1 else ", ".join(seen.lost)
    return _line(_fitting(room, f"{count}: {whole}", f"{count}: {brief}"), "bold yellow")


def _fitting(room: int, *texts: str) -> str:
    """The first text that fits, or the last, of which the end will be cut."""
    return next((text for text in texts if len(text) <= room), texts[-1])


def _line(text: str | Text, style: str = "") -> Text:
    """One line, whatever the width."""
    made = Text(text, style=style) if isinstance(text, str) else text
    made.no_wrap, made.overflow = True, "ellipsis"
    return made


def _bar(share: float, room: int, *words: str, style: str = "cyan") -> Text:
    """A bar, its percentage, and the longest words that fit behind it."""
    told = f"{math.floor(100 * share):3d} %  "
    cells = min(max(room - WORDS_CELLS, BAR_CELLS[0]), BAR_CELLS[1]) if room >= TINY else 0
    drawn = bar(share, cells) if cells else ""
    rest = _fitting(room - cells - len(told) - 1, *words)
    return _line(Text.assemble((drawn, f"{style} on grey23"), " " * bool(cells), told, rest))


def _samples(seen: Seen) -> list[int]:
    return [seen.board.counter(i, "samples") if seen.board else 0 for i in range(len(seen.workers))]


def _strip(seen: Seen, width: int, lines: int) -> Text:
    """A cell for each worker, or for a few that stand together: the fewest samples among them."""
    samples, strip = _samples(seen), Text()
    most, cells = max([*samples, 1]), max(width - NAMES_CELLS, 1)
    each = max(-(-len(samples) // (lines * cells)), 1)
    for place, first in enumerate(range(0, len(samples), each)):
        group = range(first, min(first + each, len(samples)))
        strip.append("\n" if place and place % cells == 0 else "")
        if any(seen.workers[i] in seen.lost for i in group):
            strip.append(LOST, "bold red")
        else:
            fewest = min(samples[i] for i in group)
            strip.append(LEVELS[min(fewest * len(LEVELS) // most, len(LEVELS) - 1)], "green")
    return strip


def _table(seen: Seen, board: Board, width: int, count: int) -> Table:
    """A line a worker; where not all fit, the lost and those with the least done."""
    samples, order = _samples(seen), list(range(len(seen.workers)))
    if count < len(order):
        order.sort(key=lambda i: (seen.workers[i] not in seen.lost, samples[i]))
    whole, most = width >= NARROW, max([*samples, 1])
    table = plain_table()
    table.add_column("worker", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in ("mean batch", "in flight") if whole else ():
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for i in order[:count]:
        name, batches = seen.workers[i], board.counter(i, "batches")
        lost = name in seen.lost
        batch = f"{board.counter(i, 'batch_samples') / batches:.1f}" if batches else "–"
        more = (batch, f"{board.counter(i, 'outstanding'):,}") if whole else ()
        done = Text(bar(samples[i] / most, max(width // 5, 6)), style="red" if lost else "green")
        table.add_row(name, f"{samples[i]:,}", done, *more, Text("lost" if lost else "", style="bold red"))
    return table


def _rest(seen: Seen, count: int) -> Text:
    more = plural(len(seen.workers) - count, "worker")
    return _line(f"and {more} more, up to {plural(max(_samples(seen)), 'sample')} each", "dim")
