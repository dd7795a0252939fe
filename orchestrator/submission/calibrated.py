"""What the calibration document of a submission says of networks that LoadGrid has quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.submission.gather import Evidence
from workers.models import SIZING

METHODS = {  # the constants are those of workers/models/quantise.py
    "mse": "the scale with the least squared error over all values on the calibration samples, rounding and "
    "clipping together: of 100 clips, evenly from a fifth of the tensor's largest value to all of it, judged "
    "on a histogram of its positive values in 4,096 bins",
    "max": "the largest value on the calibration samples is the largest that the format holds",
}
CORRECTED = (
    "layer by layer in the network's order, with those before corrected, each is moved by what keeps its "
    "channel's mean over the calibration samples that of fp32"
)


def calibrated(cells: Sequence[Evidence]) -> str | None:
    """The document for cells with quantised networks, from the workers' own words.

    None where there is no such cell, or one whose workers do not tell how it was calibrated.
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        facts = cell.performance.model_facts
        if not isinstance(facts.get("calibration"), Mapping):
            return None
        found.setdefault(_network(facts), []).append(f"{cell.benchmark} {cell.scenario}")
    if not found:
        return None
    parts = [f"== {', '.join(where)}\n\n{text}" for text, where in found.items()]
    head = "= Calibration\n\nQuantised after training, without retraining.\n\n"
    return head + "\n".join(parts)


def _network(facts: Mapping[str, Any]) -> str:
    """One network's paragraph, a fact a line."""
    made = facts["calibration"]
    count = made.get("count", "an unknown number of")
    samples = f"the {count} samples of `{made.get('list')}` (sha256 {made.get('list_sha256')})"
    sizing = facts.get("scales") == SIZING
    by = "each worker from random samples, for sizing: not calibrated" if sizing else "`loadgrid calibrate`"
    if not made.get("list"):
        samples = f"{count} generated samples, none of the data set"
    method = METHODS.get(str(made.get("method")), made.get("method"))
    lines = [
        f"Scales made by {by}.",
        f"Weights before: `{facts.get('weights')}`, sha256 {facts.get('weights_sha256') or 'none'}.",
        f"Calibration samples: {samples}; as prepared, sha256 {made.get('library') or 'none'}.",
        *[str(line) for line in made.get("numbers", ())],
        f"Scale of an activation: {method}; to 6 significant digits.",
        f"Biases: {CORRECTED if made.get('biases') == 'corrected' else 'as they were'}.",
        f"Scales: {SIZING if sizing else '`' + str(facts.get('scales')) + '`'}, "
        f"sha256 {facts.get('scales_sha256')}.",
    ]
    told = made.get("agreement")
    if isinstance(told, Mapping) and {"top1", "samples"} <= told.keys():
        same = f"{100 * float(told['top1']):.2f} % of {int(told['samples'])} samples not calibrated with"
        lines.append(f"Against fp32: the same best answer for {same}.")
    return "".join(f"* {line}\n" for line in lines)
