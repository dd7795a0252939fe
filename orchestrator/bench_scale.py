"""`loadgrid bench scale`: what more workers bring, against the sum of what each can do alone.

All workers load their models once, and all take part in a test that does not count: a worker's first one may
be slower than the rest, and what it does alone is what the rest is measured against. In each round half of
them run an Offline test alone, one by one, then tests take more and more of them at once, with as much work
each, then the other half run alone; every second round goes backwards: what changes with time favours
neither, about so already in one round. While one works alone the others rest: what workers of one host take
from each other (power, memory, cores) is part of the figure. Server tests, if asked for, offer the same rate
to each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console as Terminal
from rich.table import Table

from orchestrator.bench_engine import MOST_S, EngineBenchError, filling, sized, spread
from orchestrator.campaign import EXIT_FAILED, Session
from orchestrator.journey import idle_and_tail
from orchestrator.manifest import Manifest, load_manifest
from orchestrator.manifest_fields import MOST_WORKERS
from orchestrator.manifest_types import MOST_QPS
from orchestrator.order import Seat
from orchestrator.paths import RunPaths
from orchestrator.pauses import NO_PROCESSOR, STOOD_STILL
from orchestrator.plan import plan
from orchestrator.preflight import check_files, check_names
from orchestrator.quiet import Quiet, bench_folder, noter, told_as_typed
from orchestrator.record import Record
from orchestrator.rules import load_round
from workers.host import WorkerSpec

T = TypeVar("T")

# What --json prints of each number of workers, and of each rate: name -> meaning and unit. A line after every
# round has all rounds so far: the last one counts, and who ends the bench early keeps what was found.
FIELDS = {
    "scenario": "Offline or Server",
    "workers": "workers that took part",
    "offered_qps": "Server: queries a second that LoadGen offered, in all",
    "samples_per_s": "Offline: LoadGen's result; Server: queries answered a second; median of the rounds",
    "efficiency": "Offline: samples_per_s over the sum of what these workers did alone, median",
    "efficiency_lowest": "the lowest of the rounds",
    "efficiency_highest": "the highest of the rounds",
    "valid": "Server: LoadGen's verdicts, one a round",
    "p99_ms": "Server: 99th percentile of LoadGen's latencies, median",
    "p99s_ms": "Server: that of each round",
    "stood_still_ms": "how long LoadGen's host stood still in each round, in pauses of 10 ms or more",
    "no_processor_ms": "the same for how long it had no processor free",
    "idle": "Offline: share of the test in which the worst worker had nothing in its engine; the worst round",
    "tail": "Offline: share of the test from the worst worker's last answer to the end; the worst round",
    "driver_cpu": "cores that the test's process used, which hosts LoadGen, median; null: too short a test",
}

MOST_SLOWED = 1000.0  # a test is a batch of each at least: beyond it hours may pass
WARM_UP = 0.2  # of a test's samples: long enough for every worker to answer several batches
SHOWN = [name for name in FIELDS if name not in ("scenario", "efficiency_lowest", "efficiency_highest")]


class ScaleSession(Session):
    """A session whose tests take some of its workers only."""

    taking: range = range(0)
    slowed: tuple[str, float] | None = None

    def _worker_spec(self) -> WorkerSpec:
        return replace(super()._worker_spec(), slowed=self.slowed)

    def _seats(self) -> list[Seat]:
        names = {f"worker-{number}" for number in self.taking}
        return [seat for seat in super()._seats() if seat.name in names]


class Scale:
    """A manifest's workers, of which any row can be tested; the last is slower by `slowed`."""

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
        self.batch = self.manifest.workers.max_batch
        self.slowness = [1.0] * (workers - 1) + [slowed]
        self._session = ScaleSession(self.manifest, address, Quiet(note))
        if slowed > 1:
            self._session.slowed = (f"worker-{workers - 1}", slowed)
        self._folder = folder

    def __enter__(self) -> Scale:
        with told_as_typed({"workers.count": "--workers"}):  # the rest is as the manifest has it
            self._session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.__exit__()

    def offline(self, taking: range, samples: float) -> Record:
        """An Offline test of so many samples, in whole batches, on the workers of these numbers."""
        whole = max(math.ceil(samples / self.batch), 1) * self.batch
        return self._test(sized(self.manifest.model_copy(update={"scenarios": ("Offline",)}), whole), taking)

    def server(self, taking: range, qps: float, seconds: float) -> Record:
        """A Server test on the workers of these numbers."""
        update = {"target_qps": qps, "min_duration": int(seconds * 1000), "max_duration": None}
        update |= {"min_query_count": 1, "max_query_count": None}
        server = self.manifest.loadgen.Server.model_copy(update=update)
        loadgen = self.manifest.loadgen.model_copy(update={"Server": server})
        changed = {"scenarios": ("Server",), "loadgen": loadgen}
        return self._test(self.manifest.model_copy(update=changed), taking)

    def _test(self, manifest: Manifest, taking: range) -> Record:
        """One test; EngineBenchError if it did not finish with every worker that was to take part."""
        spec = plan(manifest, load_round(manifest.round))[0]
        self._session.taking = taking
        record = self._session.run(spec, RunPaths.new(self._folder, "scale"))
        if record.status != "finished" or not record.result.value:
            raise EngineBenchError(f"a test on {len(taking)} workers {record.status}: {record.reason}")
        lost = [f"{loss.worker}: {loss.reason}" for loss in record.losses]
        if lost or len(record.workers) != len(taking):
            gone = "; ".join(lost) or "lost before it"
            raise EngineBenchError(f"a test on {len(taking)} workers was not one: {gone}")
        return record

    def samples_for(self, seconds: float) -> int:
        """How many samples the first worker answers in so many seconds, in whole batches."""

        def took_s(samples: int) -> float:
            return samples / offline_rate(self.offline(range(1), samples))

        return filling(seconds, self.batch, took_s)

    def warm_up(self, samples: int) -> None:
        """A test of all workers that does not count, WARM_UP as long as the others, a batch each at least."""
        share = max(samples * WARM_UP, self.batch)
        self.offline(range(len(self.slowness)), share * sum(1 / slow for slow in self.slowness))


def for_scale(manifest: Manifest, workers: int) -> Manifest:
    """The manifest with so many Ray workers and performance tests only, in the division open to any size."""
    placed = manifest.workers.model_copy(update={"count": workers, "where": "ray", "placement": "spread"})
    kept = {"division": "open", "runs": ("performance",), "accuracy_target": None}
    return manifest.model_copy(update={**kept, "stop_when_hopeless": False, "workers": placed})


def told_of_local(manifest: Manifest) -> str:
    """That others than the workers of the test's process are measured: those load anew in every test."""
    return (
        f"{manifest.path}: workers.where is local, but scaling is measured with Ray workers, here of "
        f"{manifest.workers.num_cpus:g} CPU each; for others set workers.where: ray, and num_cpus or num_gpus"
    )


def offline_rate(record: Record) -> float:
    """LoadGen's samples a second."""
    return float(record.result.value or 0.0)


def offline_row(workers: int, seen: Sequence[tuple[Record, float]]) -> dict[str, Any]:
    """A row of the table: the Offline tests of so many workers, each with the sum of what each did alone."""
    ratio, lowest, highest = spread([offline_rate(record) / alone for record, alone in seen])
    known = [found for record, _ in seen if (found := idle_and_tail(record)) is not None]
    return dict.fromkeys(FIELDS) | {
        "scenario": "Offline",
        "workers": workers,
        "samples_per_s": round(median(offline_rate(record) for record, _ in seen), 3),
        "efficiency": round(ratio, 4),
        "efficiency_lowest": round(lowest, 4),
        "efficiency_highest": round(highest, 4),
        "idle": round(max(idle for idle, _ in known), 5) if known else None,
        "tail": round(max(tail for _, tail in known), 5) if known else None,
        **paused([record for record, _ in seen]),
        "driver_cpu": driver_cpu([record for record, _ in seen]),
    }


def server_row(workers: int, offered_qps: float, seen: Sequence[Record]) -> dict[str, Any]:
    """A row of the table: the Server tests of so many workers."""
    done = [r.driver["completed"] / r.driver["answering_s"] for r in seen if r.driver["answering_s"]]
    return dict.fromkeys(FIELDS) | {
        "scenario": "Server",
        "workers": workers,
        "offered_qps": offered_qps,
        "samples_per_s": round(median(done), 3) if done else None,
        "valid": [bool(record.result.valid) for record in seen],
        "p99_ms": median(record.result.percentiles_ms["p99"] for record in seen),
        "p99s_ms": [record.result.percentiles_ms["p99"] for record in seen],
        **paused(seen),
        "driver_cpu": driver_cpu(seen),
    }


def paused(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """The pauses of LoadGen's host in each test, by field; None where nobody watched."""
    seen = [record.driver.get("pauses") for record in records]
    kinds = (("stood_still_ms", STOOD_STILL), ("no_processor_ms", NO_PROCESSOR))
    return {field: [one and float(one[kind]["sum_ms"]) for one in seen] for field, kind in kinds}


def driver_cpu(records: Sequence[Record]) -> float | None:
    """Cores that the tests' processes used, median; None for tests too short to tell."""
    known = [record.driver["cpu_share"] for record in records if record.driver["cpu_share"] is not None]
    return round(median(known), 3) if known else None


class Rows:
    """The tests of all rounds so far; what a round did not finish does not count."""

    def __init__(self, scale: Scale, counts: Sequence[int], rates: Sequence[float] = ()) -> None:
        self._scale, self._counts = scale, counts
        self._rates = rates = list(dict.fromkeys(rates))  # each once
        self._offline: dict[int, list[tuple[Record, float]]] = {n: [] for n in counts}
        self._server: dict[tuple[int, float], list[Record]] = {(n, qps): [] for n in counts for qps in rates}

    def round(self, samples: int, seconds: float, backwards: bool) -> str:
        """Half alone, every number of them together, the others alone, or all in reverse; what came of it.

        Each works as long as the others do, also where one is slower: for what `samples` take the first.
        """
        alone: dict[int, float] = {}
        together: dict[int, Record] = {}
        server: dict[tuple[int, float], Record] = {}
        everyone = range(max(self._counts))

        def one_by_one(some: Sequence[int]) -> None:
            for i in turned(some):
                alone[i] = offline_rate(self._scale.offline(range(i, i + 1), samples * self._share(i, i + 1)))

        def at_once() -> None:
            for n in turned(self._counts):
                together[n] = self._scale.offline(range(n), samples * self._share(0, n))
                for qps in self._rates:
                    server[n, qps] = self._scale.server(range(n), self.offered(n, qps), seconds)

        def turned(order: Sequence[T]) -> Sequence[T]:
            return order[::-1] if backwards else order

        for step in turned([lambda: one_by_one(everyone[::2]), at_once, lambda: one_by_one(everyone[1::2])]):
            step()
        for n in self._counts:
            self._offline[n].append((together[n], sum(alone[i] for i in range(n))))
        for case, record in server.items():
            self._server[case].append(record)
        rates = ", ".join(f"{alone[i]:,.1f}" for i in everyone)
        told = "; ".join(f"{n} together {offline_rate(together[n]):,.1f}" for n in self._counts)
        return f"alone {rates}; {told} samples/s"

    def _share(self, first: int, last: int) -> float:
        """What workers `first` to `last` (not itself) can do, in equal workers."""
        return sum(1 / slow for slow in self._scale.slowness[first:last])

    def offered(self, workers: int, qps: float) -> float:
        """Queries a second for so many workers at `qps` each; a slowed one gets what it can take."""
        return qps * self._share(0, workers)

    def shown(self) -> list[dict[str, Any]]:
        """A row for every number of workers, Offline before Server."""
        rows = [offline_row(n, seen) for n, seen in self._offline.items() if seen]
        return rows + [
            server_row(n, round(self.offered(n, qps), 3), seen)
            for (n, qps), seen in self._server.items()
            if seen
        ]


def scale(
    manifest: Annotated[Path, typer.Argument(help="Manifest file (YAML).")],
    workers: Annotated[str, typer.Option(help="Numbers of workers, such as 1,2,4,8.")] = "1,2",
    seconds: Annotated[float, typer.Option(min=0.1, max=MOST_S, help="About how long a test lasts.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of all tests.")] = 3,
    qps: Annotated[
        list[float],
        typer.Option(
            min=0.001,
            max=MOST_QPS,
            help="Also Server tests: so many queries/s for each worker; can be given several times.",
        ),
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    slowed: Annotated[
        float, typer.Option(min=1, max=MOST_SLOWED, help="Make the last worker about so many times slower.")
    ] = 1.0,
    address: Annotated[str, typer.Option(help="Ray: local, auto or HOST:PORT.")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """What more workers bring: a manifest on 1, 2, 4 ... of them, against what each does alone."""

    note = noter(as_json)
    counts = numbers(workers)
    if slowed > 1 and max(counts) < 2:
        raise typer.BadParameter("a slowed worker needs one beside it", param_hint="--slowed")
    chosen = load_manifest(manifest)
    check_names(chosen)
    check_files(for_scale(chosen, max(counts)), address)
    if chosen.workers.where == "local":
        typer.echo(f"loadgrid: {told_of_local(chosen)}", err=True)
    folder = bench_folder()
    rows, failed = None, ""
    try:
        with folder, Scale(chosen, max(counts), slowed, address, Path(folder.name), note) as bench:
            rows = Rows(bench, counts, qps)
            note("how many samples fill the time?")
            samples = bench.samples_for(seconds)
            bench.warm_up(samples)
            for number in range(rounds):
                note(f"round {number + 1}: {rows.round(samples, seconds, backwards=number % 2 == 1)}")
                if as_json:
                    print(json.dumps(rows.shown()), flush=True)
    except EngineBenchError as error:
        failed = str(error)
    if not as_json:
        _show(rows.shown() if rows is not None else [])
    if failed:
        typer.echo(f"loadgrid: {failed}", err=True)
        raise typer.Exit(EXIT_FAILED)


def numbers(text: str) -> list[int]:
    """Numbers of workers in rising order, each once; a usage error if `text` does not name any."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,2,4", param_hint="--workers")
    if found[-1] > MOST_WORKERS:
        raise typer.BadParameter(f"{found[-1]} is more than {MOST_WORKERS}", param_hint="--workers")
    return found


def _show(rows: Sequence[dict[str, Any]]) -> None:
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        of_it = [row for row in rows if row["scenario"] == scenario]
        names = [name for name in SHOWN if any(row[name] is not None for row in of_it)]
        table = Table(*names, title=scenario)
        for row in of_it:
            table.add_row(*(_said(row, name) for name in names))
        Terminal().print(table)
        for name in names:
            Terminal().print(f"{name}: {FIELDS[name]}", style="dim")


def _said(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return "?"
    if name == "valid":
        return " ".join("VALID" if valid else "INVALID" for valid in value)
    if isinstance(value, list):
        return " ".join("?" if ms is None else f"{ms:.3g}" for ms in value)
    if name == "efficiency":
        return f"{value:.3f} ({row['efficiency_lowest']:.3f} to {row['efficiency_highest']:.3f})"
    return f"{value:.2%}" if name in ("idle", "tail") else f"{value:,}"
