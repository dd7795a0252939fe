"""`loadgrid bench engine`: one worker's backend in a bare loop, and the same samples through LoadGrid.

Both run in one worker that has loaded its model once: an Offline test with the official LoadGen, and the
samples of that very test again in a bare loop and in full batches; so in turn, several times.

In every second round the bare loop of a Ray worker comes first, with the samples of the test before: what
changes with time, such as a GPU's clock, then favours neither. A local worker ends with its test: its loop
always follows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console as Terminal
from rich.table import Table

from orchestrator.campaign import EXIT_FAILED, Session
from orchestrator.cluster import ClusterError, RayFleet
from orchestrator.journey import idle_and_tail
from orchestrator.manifest import Manifest, load_manifest
from orchestrator.paths import RunPaths
from orchestrator.plan import plan
from orchestrator.preflight import check_files, check_names
from orchestrator.quiet import Quiet, bench_folder, noter
from orchestrator.record import Record
from orchestrator.rules import load_round
from workers.host import WorkerSpec

# A test that takes this long tells how many samples fill the time asked for.
SIZING_S = 1.0
SIZING_TRIES = 5
FIRST_BATCHES = 2
MOST_SAMPLES = 50_000_000  # of each the test process holds plan.BYTES_PER_OFFLINE_SAMPLE
PATIENCE_S = 600.0
MOST_S = 86_400.0  # of --seconds
# Rounds of a quiet machine differ by less: beyond it a remark is made.
MOST_SPREAD = 0.05
LOOP_FAILED = "the test through LoadGrid finished, but the bare loop failed"

# What --json prints: name -> meaning and unit.
FIELDS = {
    "manifest": "name of the manifest",
    "benchmark": "the benchmark that it names",
    "engine": "engine of the backend",
    "model": "model of the backend",
    "weights": "file of its weights, or seeded",
    "device": "device that the worker found",
    "precision": "number format of the computation",
    "scales": "file of its scales, or what they are of; null: not quantised",
    "where": "ray: an actor and TCP; local: the test's own process",
    "payload": "index or value: what travels to the worker",
    "max_batch": "most samples in a batch; the bare loop's batches are full",
    "mean_batch": "samples in a batch through LoadGrid, mean",
    "samples": "samples of each test and of each bare loop",
    "samples_per_s_bare": "samples a second in the bare loop, median of the rounds",
    "samples_per_s_loadgrid": "samples a second of LoadGen's Offline result, median of the rounds",
    "ratio": "samples_per_s_loadgrid / samples_per_s_bare of a round, median of the rounds",
    "ratio_lowest": "the lowest of the rounds' ratios",
    "ratio_highest": "the highest of the rounds' ratios",
    "loadgen_share": "share of a test in which LoadGen worked alone, before its query came or after the last "
    "answer, median; null: not known",
    "idle_share": "share of a test in which LoadGen waited and the engine had nothing, median; null: not "
    "known. In the rest a slot of the engine worked, or several",
    "remark": f"said when the rounds' ratios lie more than {MOST_SPREAD:.0%} apart; else null",
    "rows_per_sample": "tokens, pairs or audio samples in a sample, mean; null: samples are all alike",
    "rows_per_s_bare": "rows a second in the bare loop; null as above",
    "rows_per_s_loadgrid": "rows a second through LoadGrid; null as above",
    "graphs": "CUDA graphs captured in each of the engine's slots; null: the engine has none",
    "open_s": "seconds that a slot's memory and graphs took before the tests; null: not measured",
    "rounds": "of each round: samples_per_s_bare, samples_per_s_loadgrid, ratio, loadgen_share, idle_share, "
    "seconds_bare, first (bare or loadgrid)",
    "versions": "versions of the libraries that compute",
}


class EngineBenchError(Exception):
    """A test of the bench did not finish; the text says why."""


class BenchSession(Session):
    """A session whose worker remembers the samples of a test, to repeat them."""

    def _worker_spec(self) -> WorkerSpec:
        return replace(super()._worker_spec(), note_order=True)


class Replays(Quiet):
    """Hears what a worker of the test process tells of its bare loop."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(note)
        self.heard: list[dict[str, Any]] = []
        self.replaying = False  # the test was over, and its bare loop began

    def event(self, event: dict[str, Any]) -> None:
        """Keep replays; say what Quiet says."""
        self.replaying |= event["event"] == "replaying"
        if event["event"] == "replay":
            self.heard.append(event)
        super().event(event)


@dataclass(frozen=True)
class Round:
    """One test and the bare loop over its samples; `bare_first`: over those of the test before."""

    record: Record
    replay: dict[str, Any]
    bare_first: bool = False

    @property
    def loadgrid(self) -> float:
        """Samples a second by LoadGen's own log."""
        return float(self.record.result.value or 0.0)

    @property
    def bare(self) -> float:
        """Samples a second of the bare loop."""
        return float(self.replay["samples"] / max(self.replay["seconds"], 1e-9))

    @property
    def ratio(self) -> float:
        """LoadGrid's share of the bare loop's speed."""
        return self.loadgrid / self.bare

    @property
    def shares(self) -> tuple[float, float] | None:
        """The test's shares in which (LoadGen, nobody) worked; in the rest slots of the engine did."""
        known, test_s = idle_and_tail(self.record), self.replay["samples"] / self.loadgrid
        if known is None:
            return None
        answering = min(self.record.driver["answering_s"] / test_s, 1.0)
        return 1.0 - answering, known[0] * answering

    def shown(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "samples_per_s_bare": round(self.bare, 3),
            "samples_per_s_loadgrid": round(self.loadgrid, 3),
            "ratio": round(self.ratio, 4),
            **_shares([self]),
            "seconds_bare": round(self.replay["seconds"], 3),
            "first": "bare" if self.bare_first else "loadgrid",
        }


class EngineBench:
    """A manifest's engine in one worker, at which tests of any size can be run."""

    def __init__(self, manifest: Manifest, address: str, folder: Path, note: Callable[[str], None]) -> None:
        self.manifest = one_worker(manifest)
        self._watcher = Replays(note)
        self._session = BenchSession(self.manifest, address, self._watcher)
        self._folder = folder
        self._patience_s = PATIENCE_S

    def __enter__(self) -> EngineBench:
        self._session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.__exit__()

    def round(self, samples: int, bare_first: bool = False) -> Round:
        """One Offline test of so many samples and the bare loop; EngineBenchError if either fails.

        `bare_first` needs a test of as many samples before it, and a Ray worker: else the loop follows.
        """
        fleet = self._session.fleet
        if fleet is None:
            record = self._test(samples)
            return Round(record, self._heard())
        if bare_first:
            replay = self._replay(fleet)
            return Round(self._test(samples), replay, bare_first=True)
        return Round(self._test(samples), self._replay(fleet))

    def _test(self, samples: int) -> Record:
        """The test through LoadGrid; a local worker's loop is part of its process, and may end it."""
        manifest = sized(self.manifest, samples)
        spec = plan(manifest, load_round(manifest.round))[0]
        self._watcher.heard, self._watcher.replaying = [], False
        record = self._session.run(spec, RunPaths.new(self._folder, "bench"))
        if record.status == "failed" and self._watcher.replaying:
            self._heard(record.reason)
        if record.status != "finished" or not record.result.value:
            raise EngineBenchError(f"the test through LoadGrid {record.status}: {record.reason}")
        self._patience_s = PATIENCE_S + 4 * record.wall_s
        return record

    def _heard(self, otherwise: str = "it was not heard of") -> dict[str, Any]:
        """What a local worker said of its bare loop."""
        replay = self._watcher.heard[-1] if self._watcher.heard else {"failed": otherwise}
        if "failed" in replay:
            raise EngineBenchError(f"{LOOP_FAILED}: {replay['failed']}")
        return replay

    def _replay(self, fleet: RayFleet) -> dict[str, Any]:
        """The bare loop of the Ray worker over the samples of its last test."""
        try:
            return fleet.replay(self._patience_s)[0]
        except ClusterError as error:
            raise EngineBenchError(f"{LOOP_FAILED}: {error}") from None

    def samples_for(self, seconds: float) -> int:
        """How many samples the bare loop computes in so many seconds, in whole batches."""
        batch = self.manifest.workers.max_batch
        return filling(seconds, batch, lambda samples: float(self.round(samples).replay["seconds"]))


def filling(seconds: float, batch: int, took_s: Callable[[int], float]) -> int:
    """How many samples fill so many seconds, in whole batches; `took_s` measures a number of samples."""
    samples = FIRST_BATCHES * batch
    for _ in range(SIZING_TRIES):
        took = took_s(samples)
        wanted = samples * seconds / max(took, 1e-6)
        if took >= min(SIZING_S, seconds / 2) or samples >= MOST_SAMPLES:
            break
        # Short tests are mostly beginning and end: go up in steps.
        samples = int(min(wanted, 30 * samples, MOST_SAMPLES))
    return math.ceil(min(max(wanted, 1), MOST_SAMPLES) / batch) * batch


def one_worker(manifest: Manifest) -> Manifest:
    """The manifest with one worker and an Offline performance test, in the division open to any size."""
    workers = manifest.workers.model_copy(update={"count": 1, "placement": "spread"})
    kept = {"division": "open", "scenarios": ("Offline",), "runs": ("performance",), "accuracy_target": None}
    return manifest.model_copy(update={**kept, "workers": workers})


def sized(manifest: Manifest, samples: int) -> Manifest:
    """The manifest with exactly so many samples in Offline's one query."""
    offline = manifest.loadgen.Offline.model_copy(
        update={"min_query_count": samples, "min_duration": 1, "target_qps": 1.0, "max_duration": None}
    )
    return manifest.model_copy(update={"loadgen": manifest.loadgen.model_copy(update={"Offline": offline})})


def summary(manifest: Manifest, rounds: list[Round]) -> dict[str, Any]:
    """What --json prints: every name of FIELDS."""
    worker = rounds[-1].record.workers[0]
    facts, replay = worker.facts, rounds[-1].replay
    bare, loadgrid = median(r.bare for r in rounds), median(r.loadgrid for r in rounds)
    ratio, lowest, highest = spread([r.ratio for r in rounds])
    rows = None if replay["rows"] is None else replay["rows"] / replay["samples"]
    return {
        "manifest": manifest.name,
        "benchmark": manifest.benchmark,
        **{key: facts.get(key) for key in ("engine", "model", "weights", "precision", "scales", "versions")},
        **{key: facts.get(key) for key in ("graphs", "open_s")},
        "device": worker.device,
        "where": manifest.workers.where,
        "payload": manifest.dispatch.payload,
        "max_batch": manifest.workers.max_batch,
        "mean_batch": worker.mean_batch_size,
        "samples": replay["samples"],
        "samples_per_s_bare": round(bare, 3),
        "samples_per_s_loadgrid": round(loadgrid, 3),
        "ratio": round(ratio, 4),
        "ratio_lowest": round(lowest, 4),
        "ratio_highest": round(highest, 4),
        **_shares(rounds),
        "remark": remark(ratio, lowest, highest),
        "rows_per_sample": rows and round(rows, 3),
        "rows_per_s_bare": rows and round(rows * bare, 1),
        "rows_per_s_loadgrid": rows and round(rows * loadgrid, 1),
        "rounds": [r.shown() for r in rounds],
    }


def _shares(rounds: Sequence[Round]) -> dict[str, float | None]:
    known = [found for one in rounds if (found := one.shares) is not None]
    medians = [round(median(values), 5) for values in zip(*known, strict=True)] or [None, None]
    return dict(zip(("loadgen_share", "idle_share"), medians, strict=True))


def spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return median(ratios), min(ratios), max(ratios)


def remark(ratio: float, lowest: float, highest: float) -> str | None:
    """What to think of rounds that lie far apart; None if they do not."""
    apart = (highest - lowest) / ratio
    if apart <= MOST_SPREAD:
        return None
    return (
        f"the rounds' ratios lie {apart:.0%} apart: something else used the machine, or its clock changed; "
        "measure again, with more --seconds and --rounds"
    )


def engine(
    manifest: Annotated[Path, typer.Argument(help="Manifest file (YAML); one of its workers is measured.")],
    seconds: Annotated[
        float, typer.Option(min=0.1, max=MOST_S, help="About how long a test and a bare loop last.")
    ] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds: a test and a bare loop each.")] = 3,
    address: Annotated[str, typer.Option(help="Ray: local, auto or HOST:PORT.")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """A manifest's engine in a bare loop and through LoadGrid: the same samples, worker and loaded model."""

    note = noter(as_json)
    chosen = load_manifest(manifest)
    check_names(chosen)
    check_files(chosen, address)
    done: list[Round] = []
    folder = bench_folder()
    try:
        with folder, EngineBench(chosen, address, Path(folder.name), note) as bench:
            note("how many samples fill the time?")
            samples = bench.samples_for(seconds)
            for number in range(rounds):
                done.append(bench.round(samples, bare_first=number % 2 == 1))
                shown = [f"{key} {_said(value)}" for key, value in done[-1].shown().items()]
                note(f"round {number + 1}: {', '.join(shown)}")
    except EngineBenchError as error:
        typer.echo(f"loadgrid: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    found = summary(bench.manifest, done)
    if as_json:
        print(json.dumps(found))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    table = Table("", "", "meaning")
    for name, meaning in FIELDS.items():
        value = found[name]
        if name in ("rounds", "versions") or value is None:
            continue
        table.add_row(name, _said(value), meaning)
    Terminal().print(table)


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
