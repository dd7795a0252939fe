"""`loadgrid bench scale`: what more workers bring, against the sum of what each can do alone.

All workers load their models once. In each round every worker runs an Offline test alone, and then tests take
more and more of them at once, with as much work each; so what changes with time favours neither. Server
tests, if asked for, offer the same rate to each worker.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console as Terminal
from rich.table import Table

from orchestrator.bench_engine import EngineBenchError, filling, sized
from orchestrator.campaign import EXIT_FAILED, Session
from orchestrator.manifest import Manifest, load_manifest
from orchestrator.order import Seat
from orchestrator.paths import RunPaths
from orchestrator.plan import plan
from orchestrator.preflight import check_files, check_names
from orchestrator.quiet import Quiet
from orchestrator.record import Record
from orchestrator.rules import load_round
from workers.host import WorkerSpec

# What --json prints of each number of workers: name -> meaning and unit.
FIELDS = {
    "scenario": "Offline or Server",
    "workers": "workers that took part",
    "offered_qps": "Server: queries a second that LoadGen offered, in all",
    "samples_per_s": "Offline: LoadGen's result; Server: completed queries a second; median",
    "efficiency": "Offline: samples_per_s over the sum of what these workers did alone, median",
    "valid": "Server: LoadGen's verdicts, one a round",
    "p99_ms": "Server: 99th percentile of LoadGen's latencies, median",
    "idle": "share of the test in which the worst worker had nothing in its engine, highest of the rounds",
    "tail": "share of the test between the worst worker's last answer and the last of all, likewise",
    "driver_cpu": "cores that the test's process used, which hosts LoadGen, median",
}


class ScaleSession(Session):
    """A session whose tests take some of its workers only."""

    taking: slice = slice(None)
    slowed: tuple[str, float] | None = None

    def _worker_spec(self) -> WorkerSpec:
        return replace(super()._worker_spec(), slowed=self.slowed)

    def _seats(self) -> list[Seat]:
        return super()._seats()[self.taking]


class Scale:
    """A manifest's workers, of which any row can be tested."""

    def __init__(
        self,
        manifest: Manifest,
        workers: int,
        slowed: float,
        address: str,
        folder: Path,
        note: Callable[[str], None],
    ) -> None:
        self.manifest = for_scale(manifest, workers)
        self.slowness = [1.0] * (workers - 1) + [slowed]
        self._session = ScaleSession(self.manifest, address, Quiet(note))
        if slowed > 1:
            self._session.slowed = (f"worker-{workers - 1}", slowed)
        self._folder = folder

    def __enter__(self) -> Scale:
        self._session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.__exit__()

    def offline(self, first: int, last: int, samples: int) -> Record:
        """An Offline test of so many samples on workers `first` to `last` (not itself)."""
        manifest = sized(self.manifest.model_copy(update={"scenarios": ("Offline",)}), samples)
        return self._test(manifest, slice(first, last))

    def server(self, workers: int, qps: float, seconds: float) -> Record:
        """A Server test on the first workers."""
        server = self.manifest.loadgen.Server.model_copy(
            update={"target_qps": qps, "min_duration": int(seconds * 1000), "max_duration": None}
        )
        loadgen = self.manifest.loadgen.model_copy(update={"Server": server})
        update = {"scenarios": ("Server",), "loadgen": loadgen}
        return self._test(self.manifest.model_copy(update=update), slice(0, workers))

    def _test(self, manifest: Manifest, taking: slice) -> Record:
        spec = plan(manifest, load_round(manifest.round))[0]
        self._session.taking = taking
        record = self._session.run(spec, RunPaths.new(self._folder, "scale"))
        if record.status != "finished" or not record.result.value:
            raise EngineBenchError(
                f"a test on {len(record.workers)} workers {record.status}: {record.reason}"
            )
        return record

    def samples_for(self, seconds: float) -> int:
        """How many samples the first worker answers in so many seconds, in whole batches."""

        def took_s(samples: int) -> float:
            return samples / float(self.offline(0, 1, samples).result.value or 1.0)

        return filling(seconds, self.manifest.workers.max_batch, took_s)


def for_scale(manifest: Manifest, workers: int) -> Manifest:
    """The manifest with so many Ray workers and performance tests only, in the division open to any size."""
    placed = manifest.workers.model_copy(update={"count": workers, "where": "ray"})
    kept = {"division": "open", "runs": ("performance",), "accuracy_target": None}
    return manifest.model_copy(update={**kept, "workers": placed})


def shares(record: Record) -> tuple[float, float]:
    """(idle, tail) of the worst worker, as shares of the time from the first issue to the last answer."""
    span_s = record.driver["answering_s"]
    idle = max(1.0 - worker.busy_s / span_s for worker in record.workers)
    # Who answered nothing stood idle all the time.
    tail = max(span_s if worker.tail_s is None else worker.tail_s for worker in record.workers) / span_s
    return max(idle, 0.0), tail


def offline_row(workers: int, seen: Sequence[tuple[Record, float]]) -> dict[str, Any]:
    """A row of the table: the Offline tests of so many workers, each with the sum of what each did alone."""
    rates = [float(record.result.value or 0.0) for record, _ in seen]
    row = dict.fromkeys(FIELDS)
    row |= {"workers": workers, "scenario": "Offline", "samples_per_s": round(median(rates), 3)}
    row["efficiency"] = round(median(r / alone for r, (_, alone) in zip(rates, seen, strict=True)), 4)
    return row | _common([record for record, _ in seen])


def server_row(workers: int, offered_qps: float, seen: Sequence[Record]) -> dict[str, Any]:
    """A row of the table: the Server tests of so many workers."""
    row = dict.fromkeys(FIELDS)
    row |= {"workers": workers, "scenario": "Server", "offered_qps": offered_qps}
    row["samples_per_s"] = round(median(float(r.result.value or 0.0) for r in seen), 3)
    row["valid"] = [bool(r.result.valid) for r in seen]
    row["p99_ms"] = median(r.result.percentiles_ms["p99"] for r in seen)
    return row | _common(seen)


def _common(records: Sequence[Record]) -> dict[str, Any]:
    found = [shares(record) for record in records]
    return {
        "idle": round(max(idle for idle, _ in found), 5),
        "tail": round(max(tail for _, tail in found), 5),
        "driver_cpu": round(median(record.driver["cpu_share"] for record in records), 3),
    }


def measure(
    scale: Scale,
    counts: Sequence[int],
    rounds: int,
    seconds: float,
    qps: float | None,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The rows of the table, Offline before Server, each for every number of workers."""
    note("how many samples fill the time?")
    samples = scale.samples_for(seconds)
    offline: dict[int, list[tuple[Record, float]]] = {n: [] for n in counts}
    server: dict[int, list[Record]] = {n: [] for n in counts}
    for number in range(rounds):
        alone = [scale.offline(i, i + 1, math.ceil(samples / slow)) for i, slow in enumerate(scale.slowness)]
        rates = [float(record.result.value or 0.0) for record in alone]
        note(f"round {number + 1}: alone {', '.join(f'{rate:,.1f}' for rate in rates)} samples/s")
        for n in counts:
            # As much time as each had alone, also where one is slower than the others.
            sum_alone = sum(rates[:n])
            record = scale.offline(0, n, math.ceil(samples * sum_alone / rates[0]))
            offline[n].append((record, sum_alone))
            note(f"round {number + 1}: {n} together {record.result.value:,.1f}, alone {sum_alone:,.1f}")
            if qps is not None:
                server[n].append(scale.server(n, n * qps, seconds))
    rows = [offline_row(n, offline[n]) for n in counts]
    return rows + [server_row(n, n * qps, server[n]) for n in counts if qps is not None]


def scale(
    manifest: Annotated[Path, typer.Argument(help="Manifest file (YAML).")],
    workers: Annotated[str, typer.Option(help="Numbers of workers, such as 1,2,4,8.")] = "1,2",
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long a test lasts.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of all tests.")] = 3,
    qps: Annotated[
        float | None, typer.Option(min=0.001, help="Also Server tests, with so many queries/s a worker.")
    ] = None,
    slowed: Annotated[float, typer.Option(min=1, help="Make the last worker so many times slower.")] = 1.0,
    address: Annotated[str, typer.Option(help="Ray: local, auto or HOST:PORT.")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """What more workers bring: a manifest on 1, 2, 4 ... of them, against what each does alone."""

    def note(text: str) -> None:
        if not as_json:
            print(text, file=sys.stderr)

    counts = numbers(workers)
    chosen = load_manifest(manifest)
    check_names(chosen)
    check_files(chosen, address)
    folder = tempfile.TemporaryDirectory(prefix="loadgrid-bench-")
    try:
        where = Path(folder.name)
        with folder, Scale(chosen, max(counts), slowed, address, where, note) as bench:
            rows = measure(bench, counts, rounds, seconds, qps, note)
    except EngineBenchError as error:
        typer.echo(f"loadgrid: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    if as_json:
        print(json.dumps(rows))
    else:
        _show(rows)


def numbers(text: str) -> list[int]:
    """Numbers of workers in rising order, each once; a usage error if `text` does not name any."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,2,4", param_hint="--workers")
    return found


def _show(rows: Sequence[dict[str, Any]]) -> None:
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        of_it = [row for row in rows if row["scenario"] == scenario]
        names = [name for name in FIELDS if name != "scenario" and of_it[0][name] is not None]
        table = Table(*names, title=scenario)
        for row in of_it:
            table.add_row(*(_said(row[name]) for name in names))
        Terminal().print(table)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " ".join("VALID" if valid else "INVALID" for valid in value)
    return f"{value:,}"
