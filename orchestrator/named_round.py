"""The round that a user names for logs: whether it ever was, and what the logs' seeds say against it."""

from __future__ import annotations

from orchestrator.loadgen_run import LoadgenRun
from orchestrator.logs import LogError
from orchestrator.rules import load_round, not_a_round, round_names, spelled_round

# Every round of MLPerf Inference with its own results; LoadGrid knows the rules of some of them only.
ROUNDS = (
    *("v0.5", "v0.7", "v1.0", "v1.1", "v2.0", "v2.1", "v3.0", "v3.1"),
    *("v4.0", "v4.1", "v5.0", "v5.1", "v6.0", "v6.1"),
)


def named_round(word: str) -> str:
    """The round that --round names, `1.0` as `v1.0`; LogError for one that never was."""
    name = spelled_round(word)
    if name not in ROUNDS:
        raise LogError(f"--round {not_a_round(word, ROUNDS)}")
    return name


def round_of_seeds(run: LoadgenRun) -> str | None:
    """The round that LoadGrid knows by its seeds: LoadGen 6 runs the old rounds too."""
    seeds = {"qsl_rng_seed": run.seeds.qsl, "sample_index_rng_seed": run.seeds.sample_index}
    for name in round_names():
        if all(load_round(name).seeds[key] == seed for key, seed in seeds.items()):
            return name
    return None


def other_round(run: LoadgenRun, name: str) -> str | None:
    """A remark where the log's seeds are known to be another round's than the one that was named."""
    seeded = round_of_seeds(run)
    if seeded in (None, name):
        return None
    return f"the seeds are those of {seeded}, but --round says {name}"
