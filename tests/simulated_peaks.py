"""How near `loadgrid peak` comes to the true peaks of random systems, and in how many tests.

`python -m tests.simulated_peaks [SYSTEMS] [SEED] [--stalls SHARE]`: servers with fixed and with exponential
service times, and workers that batch; limits of 3 to 200 services; starts up to ten times too low or too
high; for half of them a warm-up that is off by up to a half. `--stalls`: the share of probes in which the
machine stops for four limits.
"""

from __future__ import annotations

import argparse

import numpy as np

from tests.simulated_queue import Queue, found_by

WITHIN = 0.02  # of the true peak
EXPONENTIAL_AT_LEAST = 14  # services in a limit; in fewer a server of exponential times holds next to nothing


def random_queue(rng: np.random.Generator, stalls: float) -> Queue:
    """One server in seven of ten systems, workers that batch in the others."""
    sample_s = 1e-3 * 10 ** rng.uniform(-1, 2)
    limit = int(rng.choice([5, 15, 30, 100, 200]))
    if rng.random() < 0.7:
        random = bool(rng.random() < 0.3) and limit > EXPONENTIAL_AT_LEAST
        return Queue(rng, limit * sample_s, sample_s, random=random, stalls=stalls)
    max_batch, workers = int(rng.choice([4, 8, 32])), int(rng.choice([1, 2, 4]))
    limit_s = int(rng.choice([3, 8, 20])) * (2 + max_batch / 4) * sample_s  # in full batches
    return Queue(rng, limit_s, sample_s / 4, 2 * sample_s, max_batch, workers, stalls=stalls)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulated_peaks")
    parser.add_argument("systems", nargs="?", type=int, default=60)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--stalls", type=float, default=0.0)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    errors, probes, confirmations = [], [], []
    for _ in range(asked.systems):
        queue = random_queue(rng, asked.stalls)
        peak = queue.peak()
        hint = queue.capacity * rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
        search, confirmation = found_by(queue, peak * 10 ** rng.uniform(-1, 1), hint)
        errors.append(confirmation.low / peak - 1)
        probes.append(len(search.seen))
        confirmations.append(len(confirmation.seen))
    within = sum(abs(error) <= WITHIN for error in errors)
    worst = max(errors, key=abs)
    print(f"{within} of {asked.systems} systems within {WITHIN:.0%} of the true peak, worst {worst:+.1%}")
    print(f"probes: {np.mean(probes):.1f} on average, {max(probes)} at most")
    print(f"tests of full length: {np.mean(confirmations):.1f} on average, {max(confirmations)} at most")


if __name__ == "__main__":
    main()
