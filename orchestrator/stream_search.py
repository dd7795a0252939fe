"""The largest samples_per_query that the fixed-interval MultiStream holds, by short tests.

As LoadGen's FindPeakPerformance: from the manifest's own number upwards by doubling, then by bisection; here
also downwards. A short test is a hint and no result: the number found has to hold in a test of full length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.campaign import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_INVALID, EXIT_VALID, Session
from orchestrator.manifest import Manifest
from orchestrator.paths import MANIFEST, RunPaths, write_atomically
from orchestrator.plan import PlanError, TestSpec, plan
from orchestrator.record import Record
from orchestrator.rules import load_round
from orchestrator.stop import Stop
from orchestrator.watching import Watcher

SCENARIO = "MultiStream"
MOST_SAMPLES = 10**6  # the manifest's bound
# A probe whose queries take more than this many intervals each has failed, and need not be sat through.
INTERVALS_AT_MOST = 3


class ProbeFailed(Exception):
    """A probe ended without a verdict; its record says why."""


@dataclass(frozen=True)
class Found:
    """What a search came to: the largest number that passed (0: none), and its probes."""

    samples_per_query: int
    records: Sequence[Record]
    exit_code: int


def largest_passing(passes: Callable[[int], bool], first: int, most: int = MOST_SAMPLES) -> int:
    """The largest number up to `most` that passes, tried from `first` on; 0 if 1 does not."""
    low, high = 0, most + 1
    number = min(first, most)
    while high - low > 1:
        if passes(number):
            low = number
        else:
            high = number
        if not low:
            number = high // 2
        elif high > most:
            number = min(2 * low, most)
        else:
            number = (low + high) // 2
    return low


@dataclass
class StreamSearch:
    """Probes of one manifest over one session; `records` keeps them in the order in which they ran."""

    session: Session
    run: RunPaths
    queries: int
    records: list[Record] = field(default_factory=list)

    def find(self) -> int:
        """The largest number of samples that passes; 0 if none does."""
        own = probe_of(self.session.manifest, None, self.queries)
        return largest_passing(self.passes, int(own.settings["multi_stream_samples_per_query"]))

    def passes(self, samples: int) -> bool:
        """Run one probe; ProbeFailed if it gives no verdict."""
        record = self.session.run(probe_of(self.session.manifest, samples, self.queries), self.run)
        self.records.append(record)
        if record.status != "finished":
            raise ProbeFailed(f"the probe of {samples} samples a query {record.status}: {record.reason}")
        return record.result.valid is True


def probe_of(manifest: Manifest, samples: int | None, queries: int) -> TestSpec:
    """A short test of `queries` queries of so many samples (None: the manifest's own number)."""
    found = load_round(manifest.round)
    if not found.fixed_interval_multistream:
        raise PlanError(
            f"round {found.name} has no MultiStream of a fixed interval: a query has "
            f"{found.words[SCENARIO]['samples_per_query']} samples there, and its latency is the result"
        )
    qps = {**found.conf_words(manifest.benchmark, SCENARIO), **manifest.conf_words(SCENARIO)}["target_qps"]
    words = manifest.loadgen.MultiStream.model_copy(
        update={
            "min_duration": 0,
            "max_duration": int(INTERVALS_AT_MOST * queries / qps * 1000),
            "min_query_count": queries,
            "max_query_count": 0,
            **({} if samples is None else {"samples_per_query": samples}),
        }
    )
    loadgen = manifest.loadgen.model_copy(update={SCENARIO: words})
    changed = {"loadgen": loadgen, "scenarios": [SCENARIO], "runs": ["performance"]}
    [spec] = plan(manifest.model_copy(update=changed), found)
    return spec.model_copy(update={"name": f"{SCENARIO}-{spec.settings['multi_stream_samples_per_query']}"})


def search_streams(
    manifest: Manifest, runs_dir: Path, address: str, watcher: Watcher, stop: Stop, queries: int
) -> Found:
    """Search by probes of so many queries, and tell the watcher."""
    probe_of(manifest, None, queries)  # what cannot be planned is told before anything starts
    with Session(manifest, address, watcher, stop) as session:
        run = RunPaths.new(runs_dir, f"{manifest.name}-streams")
        write_atomically(run.root / MANIFEST, manifest.raw)
        search = StreamSearch(session, run, queries)
        try:
            with stop.patience():
                found = search.find()
        except ProbeFailed as error:
            watcher.warned(str(error))
            return Found(0, search.records, EXIT_INTERRUPTED if stop() else EXIT_FAILED)
    return Found(found, search.records, EXIT_VALID if found else EXIT_INVALID)
