"""`loadgrid bench watch`: what /metrics and a scraper cost a test, without and with them turn by turn."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Terminal
from rich.table import Table

from orchestrator import children
from orchestrator.bench import (
    AddressOption,
    AsJson,
    Bench,
    Duration,
    MaxBatch,
    NullPath,
    Security,
    Workers,
    figures,
)
from orchestrator.campaign import EXIT_INVALID, SetUpError
from orchestrator.exporter import Exporter
from orchestrator.manifest_types import MOST_QPS
from orchestrator.quiet import bench_folder, noter

KEYS = ("p50_ms", "p99_ms", "p999_ms", "driver_cpu_us_per_sample")


def watch(
    workers: Workers = 4,
    qps: Annotated[
        float, typer.Option(min=1, max=MOST_QPS, help="Queries a second that LoadGen offers.")
    ] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Tests without and with, each.")] = 5,
    every_s: Annotated[float, typer.Option(min=0.01, help="Seconds between two scrapes.")] = 1.0,
    duration_s: Duration = 10,
    security: Security = "curve",
    max_batch: MaxBatch = 2048,
    address: AddressOption = "local",
    as_json: AsJson = False,
) -> None:
    """The same Server test unwatched and watched (/metrics served, a process scraping it), turn by turn."""
    path = NullPath(workers, 0, 4, security, max_batch, 0)
    note = noter(as_json)
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    with bench_folder() as folder, Bench(path, address, Path(folder), note) as bench:

        def test(watched: bool) -> None:
            with _watched(every_s) if watched else _alone() as (exporter, told):
                record = bench.test("Server", qps, duration_s, *exporter)[0]
            rows[watched].append({**figures(record, qps, path, duration_s), **told})
            seen = rows[watched][-1]
            verdict = "VALID" if seen["valid"] else "INVALID"
            note(f"{'watched' if watched else 'unwatched'}: {verdict}, p99 {seen['p99_ms']} ms")

        for number in range(rounds):
            # The first of a pair changes: what drifts on a shared machine hits both alike.
            for watched in (False, True) if number % 2 == 0 else (True, False):
                test(watched)
    _show(rows, as_json)
    raise typer.Exit(0 if all(row["valid"] for row in rows[False] + rows[True]) else EXIT_INVALID)


@contextmanager
def _alone() -> Iterator[tuple[list[Exporter], dict[str, Any]]]:
    yield [], {}


@contextmanager
def _watched(every_s: float) -> Iterator[tuple[list[Exporter], dict[str, Any]]]:
    """An exporter under a scraper of its own process, which tells at the end what it did."""
    told: dict[str, Any] = {}
    exporter = Exporter("127.0.0.1", 0)
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    try:
        with subprocess.Popen(
            children.command("orchestrator.scraper", url, str(every_s)),
            env=children.environment(),
            start_new_session=True,  # a Ctrl-C is for us; its input then ends, and so does it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as scraper:
            yield [exporter], told
            said, _ = scraper.communicate(timeout=30)
            if scraper.returncode:
                raise SetUpError(f"the scraper of {url} failed: nothing can be said of its cost")
            told.update(json.loads(said))
    finally:
        exporter.close()


def compared(rows: dict[bool, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per figure the medians without and with, and the median of the pairs' ratios."""
    found: dict[str, Any] = {}
    for key in KEYS:
        pairs = [(a[key], b[key]) for a, b in zip(rows[False], rows[True], strict=True) if a[key] and b[key]]
        if pairs:
            without, watched = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            found[key] = {"unwatched": without, "watched": watched, "ratio": round(ratio, 3)}
    return found


def _show(rows: dict[bool, list[dict[str, Any]]], as_json: bool) -> None:
    found = compared(rows)
    scrapes = sum(row["scrapes"] for row in rows[True])
    if as_json:
        print(json.dumps({"unwatched": rows[False], "watched": rows[True], "median": found}))
        return
    first = rows[False][0]
    offered = f"{first['offered_qps']:,.0f} queries/s"
    pairs = f"{len(rows[True])} pairs of {first['duration_s']:g} s"
    title = f"null model, {first['workers']} workers, {offered}, {pairs}"
    table = Table(title=title)
    for head in ("median", "unwatched", "watched", "ratio of a pair"):
        table.add_column(head, justify="left" if head == "median" else "right")
    for key, row in found.items():
        table.add_row(key, f"{row['unwatched']:.3g}", f"{row['watched']:.3g}", f"{row['ratio']:.3f}")
    terminal = Terminal()
    terminal.print(table)
    each_ms = statistics.median(row["scrape_ms"] for row in rows[True])
    size = max(row["scrape_bytes"] for row in rows[True])
    terminal.print(f"{scrapes} scrapes, {each_ms:.3g} ms and {size:,} bytes each", style="dim")
    if failed := sum(row["failed_scrapes"] for row in rows[True]):
        terminal.print(f"{failed} more scrapes failed", style="yellow")
    if bad := sum(not row["valid"] for row in rows[False] + rows[True]):
        terminal.print(f"{bad} of {2 * len(rows[True])} tests were INVALID", style="yellow")
