"""Precisions int8 and fp8 of the torch engine: the file of scales, checked against its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from workers.backends import BackendError
from workers.installed import LocateError, locate
from workers.models import SIZING, ModelError, why_not_eight_bits
from workers.models.quantise import Origin, Scales, read_scales

LARGEST_SCALES_BYTES = 1 << 26
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
    scales, sha256 = _read(*file) if file[0] else _sizing(module, facts, samples)
    own = (facts["model"], facts["model_hash"], facts.get("weights_sha256"))
    if (scales.model, scales.model_hash, scales.weights_sha256) != own:
        raise BackendError(
            f"backend.scales: {file[0]} was made for other weights "
            f"({scales.model}, {scales.weights}, {_hashes(scales.model_hash, scales.weights_sha256)}) than "
            f"these ({own[0]}, {facts['weights']}, {_hashes(*own[1:])}); make scales of these with "
            "`loadgrid calibrate`"
        )
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


def _hashes(of_model: str, of_file: str | None) -> str:
    return f"model_hash {of_model[:12]}, sha256 {of_file[:12] if of_file else 'none'}"


def _read(path: str, wanted_sha256: str) -> tuple[Scales, str]:
    """The file's scales, and its sha256; BackendError where it is not as the manifest says."""
    try:
        file = locate(path)
        if file.stat().st_size > LARGEST_SCALES_BYTES:
            raise BackendError(f"backend.scales: {file} is too large for a file of scales")
        data = file.read_bytes()
    except LocateError as error:
        raise BackendError(f"backend.scales: {error}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BackendError(
            f"backend.scales: {path} cannot be read ({why}); `loadgrid calibrate` makes it"
        ) from None
    sha256 = hashlib.sha256(data).hexdigest()
    if wanted_sha256 not in ("", sha256):
        raise BackendError(
            f"backend.scales: {file} has sha256 {sha256}, not backend.scales_sha256, {wanted_sha256}; take "
            "the file that it is of, or make scales anew with `loadgrid calibrate`"
        )
    try:
        return read_scales(data), sha256
    except ModelError as error:
        raise BackendError(f"backend.scales: {file}: {error}; `loadgrid calibrate` makes one") from None


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
