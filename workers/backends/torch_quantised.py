"""Precisions int8 and fp8 of the torch engine: the file of scales, checked against its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from workers.backends import BackendError
from workers.installed import locate
from workers.models import SIZING, ModelError, why_not_eight_bits
from workers.models.scales import Origin, Scales, Weights, refuse_other_weights, scales_of_file

# Random samples that stand in for a calibration: no answer of seeded weights means anything.
SIZING_SAMPLES = 4


# A network's input: of a ragged task rows and counts.
Given: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def refuse_eight_bits(model: str, precision: str, channels_last: bool, compiled: bool) -> None:
    """BackendError if the network cannot be computed in `precision`, or not so."""
    if wrong := why_not_eight_bits(model, precision, channels_last, compiled):
        raise BackendError(f"backend.{wrong[0]}: {wrong[1]}")


def quantised(
    module: Any,
    facts: Mapping[str, Any],
    file: tuple[str, str],
    device: torch.device,
    samples: Callable[[int], Given] | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The folded module in 8 bits on its device, and what a record says of its scales.

    `file`: path of the scales and the sha256 that it must have. `facts`: of the module's weights. Without a
    file seeded weights are scaled by random `samples`, so that a machine can be sized without any data.
    """
    scales, sha256 = _read(*file, facts) if file[0] else _sizing(module, facts, samples)
    try:
        made = module.quantised(scales, device)
    except ModelError as error:
        by = f" by {file[0]}" if file[0] else ""
        raise BackendError(f"precision {facts['precision']}{by}: {error}") from None
    told = {
        "scales": locate(file[0]).name if file[0] else SIZING,
        "scales_sha256": sha256,
        "calibration": {
            **scales.samples.told(),  # first: what the file says of them replaces nothing below
            "method": scales.method,
            "numbers": list(made.numbers),
            "biases": "corrected" if scales.corrections else "as they were",
            **({"agreement": scales.agreement} if scales.agreement else {}),
        },
    }
    if hasattr(made, "weight_data_types"):
        told["weight_data_types"] = made.weight_data_types
    if made.kernels is not None:
        told["kernels"] = made.kernels.facts()
    return made, told


def _read(path: str, wanted_sha256: str, facts: Mapping[str, Any]) -> tuple[Scales, str]:
    """The file's scales, and its sha256; BackendError where they are not those of the weights of `facts`."""
    own = Weights(facts["model"], facts["weights"], facts.get("weights_sha256"), facts["model_hash"])
    try:
        scales, sha256 = scales_of_file(path, wanted_sha256)
        refuse_other_weights(scales, path, own)
    except ModelError as error:
        raise BackendError(f"backend.scales: {error}") from None
    return scales, sha256


def _sizing(
    module: Any, facts: Mapping[str, Any], samples: Callable[[int], Given] | None
) -> tuple[Scales, str]:
    """Scales of random samples, for seeded weights alone. On the CPU, so that all workers have the same."""
    if facts["weights"] != "seeded" or samples is None:
        raise BackendError(
            f"backend.scales is missing: precision {facts['precision']} needs the scales of these weights; "
            "`loadgrid calibrate` makes the file that it names"
        )
    about = {"model": facts["model"], "model_hash": facts["model_hash"], "weights": "seeded", "method": "max"}
    parts = module.calibrated([samples(SIZING_SAMPLES)], "max", False)
    scales = Scales(samples=Origin(generated=True, count=SIZING_SAMPLES), **about, **parts)
    return scales, scales.sha256()
