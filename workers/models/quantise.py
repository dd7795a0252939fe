"""Post-training quantisation: scales from calibration samples, for any network. No training.

Int8: activations are symmetric with one scale a tensor, weights symmetric with one scale an output channel. A
scale is the value of one step; int8 holds -127 to 127 steps, and 0 to 127 after a ReLU. FP8 differs by the
largest number that it holds, and is the business of the networks that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workers.models.scales import Method

TOP = 127
BINS = 4096
# Clips that mse tries, from this share of the largest value to all of it.
CLIPS = 100
LEAST_CLIP = 0.2
# Digits after the point of a bias correction, in steps: far below what rounding to whole steps can show.
CORRECTION_DIGITS = 5
# Of a scale. What rounds with it would else hang on the last bits of a sum, which change with the number of
# CPU threads: in fp32 by up to 4e-6 of a ResNet-50's scales, too much for six digits; in fp64 far below them.
SCALE_DIGITS = 6

# Told the name and the values of every tensor that will be int8, before a ReLU cuts it; of FP8 their sizes.
Observe = Callable[[str, torch.Tensor], None]
# A pass of the float network over one batch.
Pass = Callable[[Any, Observe], torch.Tensor]


def activation_scales(
    run: Pass,
    batches: Sequence[Any],
    method: Method,
    step: Callable[[], None] = lambda: None,
    last: float = TOP,
) -> dict[str, float]:
    """The scale of every tensor that `run` tells of, over all batches. `step` is called after each pass.

    max: the largest value is the `last` step. mse, for int8 alone: of CLIPS largest values the one with the
    least squared error over all values seen, rounding and clipping together.
    """
    tops: dict[str, float] = {}
    counts: dict[str, torch.Tensor] = {}

    def see_top(name: str, values: torch.Tensor) -> None:
        # What never exceeds zero needs a scale all the same: any.
        tops[name] = max(tops.get(name, 1e-6), values.max().item())

    def see_counts(name: str, values: torch.Tensor) -> None:
        found = torch.histc(values[values > 0], BINS, 0, tops[name]).double().cpu()
        counts[name] = counts[name] + found if name in counts else found

    for observe in (see_top, see_counts) if method == "mse" else (see_top,):
        for batch in batches:
            run(batch, observe)
            step()
    if method == "max":
        return {name: rounded_scale(top / last) for name, top in tops.items()}
    return {name: rounded_scale(least_error(counts[name], top) / TOP) for name, top in tops.items()}


def rounded_scale(value: float) -> float:
    """To SCALE_DIGITS, where it is made: what is computed with it is what the file says."""
    return float(f"{value:.{SCALE_DIGITS}g}")


def least_error(counts: torch.Tensor, top: float) -> float:
    """The largest value kept that costs least, of a histogram of BINS bins from 0 to `top`."""
    values = (torch.arange(BINS, dtype=torch.float64) + 0.5) * top / BINS
    clips = torch.linspace(LEAST_CLIP, 1.0, CLIPS, dtype=torch.float64) * top
    scale = (clips / TOP)[:, None]
    error = values - (values / scale).round().clamp(max=TOP) * scale
    return float(clips[(error.square() * counts).sum(1).argmin()].item())


def quantise_weights(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, ...] -> int8 of the same shape, and float64 scales [N]."""
    w = weight.double()
    scale = w.flatten(1).abs().amax(1).clamp(min=1e-12) / TOP
    steps = (w / scale.view(-1, *[1] * (w.dim() - 1))).round().clamp(-TOP, TOP)
    return steps.to(torch.int8), scale


def agreement(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Of scores [n, classes]: the share of equal best classes, and how alike the scores are beyond that.

    `cosine` is of the scores less their mean over all samples, for a network with a favourite class agrees
    with itself on anything; `error` is relative to the same.
    """
    a, b = found.double().cpu(), expected.double().cpu()
    own_a, own_b = a - b.mean(0), b - b.mean(0)
    return {
        "samples": float(len(a)),
        "top1": (a.argmax(1) == b.argmax(1)).double().mean().item(),
        "cosine": torch.nn.functional.cosine_similarity(own_a, own_b).mean().item(),
        "error": ((a - b).norm() / own_b.norm().clamp(min=1e-12)).item(),
    }
