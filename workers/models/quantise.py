"""Post-training quantisation: scales from calibration samples, for any network. No training.

Int8: activations are symmetric with one scale a tensor, weights symmetric with one scale an output channel. A
scale is the value of one step; int8 holds -127 to 127 steps, and 0 to 127 after a ReLU. FP8 differs by the
largest number that it holds, and is the business of the networks that have it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.models import ModelError

TOP = 127
BINS = 4096
# Clips that mse tries, from this share of the largest value to all of it.
CLIPS = 100
LEAST_CLIP = 0.2
# Digits after the point of a bias correction, in steps: far below what rounding to whole steps can show.
CORRECTION_DIGITS = 5
# Beyond these a scale, or its inverse, leaves float32's range once it is multiplied by another.
LEAST_SCALE, MOST_SCALE = 1e-30, 1e30
# Of a scale. What rounds with it would else hang on the last bits of a sum, which change with the number of
# CPU threads: in fp32 by up to 4e-6 of a ResNet-50's scales, too much for six digits; in fp64 far below them.
SCALE_DIGITS = 6

Method = Literal["mse", "max"]
METHODS: tuple[Method, ...] = ("mse", "max")
# Told the name and the values of every tensor that will be int8, before a ReLU cuts it; of FP8 their sizes.
Observe = Callable[[str, torch.Tensor], None]
# A pass of the float network over one batch.
Pass = Callable[[Any, Observe], torch.Tensor]


class Origin(BaseModel):
    """From which samples scales were made, and by what: the reference's list, or generated ones.

    `library` is the digest of the samples as prepared. Other devices, versions and numbers of `threads` add
    up in another order, which the last digits may show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task: str | None = None
    library: str | None = None
    generated: bool | None = None
    list: str | None = None
    list_sha256: str | None = None
    count: int | None = None
    device: str | None = None
    torch: str | None = None
    threads: int | None = None

    def told(self) -> dict[str, Any]:
        """What is known."""
        return self.model_dump(exclude_none=True)


class Scales(BaseModel):
    """What quantises one set of weights, and how it was found: the file of `backend.scales`.

    `model_hash` is that of the weights as loaded; `samples` says from what the scales were made.
    `activations` is the value of a step, by tensor, `corrections` what is added to a bias, in such steps, by
    layer and channel. `agreement`, if measured: 8 bits against fp32 on samples that are not among `samples`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal["loadgrid-scales-1"] = "loadgrid-scales-1"
    model: str
    model_hash: str
    weights: str
    weights_sha256: str | None = None
    method: Method
    samples: Origin
    activations: dict[str, Annotated[float, Field(ge=LEAST_SCALE, le=MOST_SCALE)]]
    corrections: dict[str, list[float]]
    agreement: dict[str, float] | None = None

    def written(self) -> bytes:
        """The file's bytes: a tensor or a layer a line."""
        body = self.model_dump(exclude_none=True)
        lines = []
        for key, value in body.items():
            if key in ("activations", "corrections"):
                inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
                lines.append(
                    f" {json.dumps(key)}: {{\n{inner}\n }}" if value else f" {json.dumps(key)}: {{}}"
                )
            else:
                lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    def sha256(self) -> str:
        """Of the file's bytes, as `written` makes them."""
        return hashlib.sha256(self.written()).hexdigest()


def read_scales(data: bytes) -> Scales:
    """The scales of a file; ModelError says what is wrong with it."""
    try:
        return Scales.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        told = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise ModelError(f"it is no file of scales ({told[:200]})") from None
    except RecursionError:
        raise ModelError("it is no file of scales (too deep)") from None


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
