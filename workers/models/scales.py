"""The file of scales of a network in 8 bits: what it holds, and whether it fits. Without torch.

A worker reads it as it loads the network, the driver before anything starts; both with this.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from workers.installed import LocateError, locate
from workers.models import ModelError

LARGEST_BYTES = 1 << 26
# A scale puts the largest magnitude that calibration saw on the last step: 127 of int8, 448 of e4m3. Beside
# their 8 bits the networks compute in float16, which holds no magnitude above 65504 and none below 2^-24. So
# 2^-24 / 448 and 65504 / 127 are the bounds, a little outwards, for scales are rounded to some digits.
LEAST_SCALE, MOST_SCALE = 1.3e-10, 515.9
# Corrections are steps of a bias in fp32; where a tensor is never above zero, a step is next to nothing.
MOST_CORRECTION = 3.4e38

Method = Literal["mse", "max"]
METHODS: tuple[Method, ...] = ("mse", "max")


def _scale(value: float) -> float:
    if not LEAST_SCALE <= value <= MOST_SCALE:
        raise PydanticCustomError(
            "scale",
            "{value} is no scale: must be {least} to {most}, or the last step (127 of int8, 448 of fp8) is "
            "nothing that float16 holds",
            {"value": f"{value:g}", "least": f"{LEAST_SCALE:g}", "most": f"{MOST_SCALE:g}"},
        )
    return value


def _correction(value: float) -> float:
    if not abs(value) <= MOST_CORRECTION:
        raise PydanticCustomError(
            "correction",
            "{value} is no correction of a bias: float32 holds no more than {most}",
            {"value": f"{value:g}", "most": f"{MOST_CORRECTION:g}"},
        )
    return value


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
    activations: dict[str, Annotated[float, AfterValidator(_scale)]]
    corrections: dict[str, list[Annotated[float, AfterValidator(_correction)]]]
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


def first_fault(error: ValidationError) -> str:
    """Where scales are first wrong, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where[:100]}: {first['msg'][:200]}" if where else str(first["msg"][:200])


def read_scales(data: bytes) -> Scales:
    """The scales of a file; ModelError says what is wrong with it."""
    try:
        return Scales.model_validate_json(data)
    except ValidationError as error:
        raise ModelError(f"it is no file of scales ({first_fault(error)})") from None
    except RecursionError:
        raise ModelError("it is no file of scales (too deep)") from None


def scales_of_file(path: str, wanted_sha256: str) -> tuple[Scales, str]:
    """The scales in the file at `path`, and its sha256; ModelError where it is not as the manifest says."""
    try:
        file = locate(path)
        if file.stat().st_size > LARGEST_BYTES:
            raise ModelError(f"{file} is too large for a file of scales")
        data = file.read_bytes()
    except LocateError as error:
        raise ModelError(str(error)) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"{path} cannot be read ({why}); `loadgrid calibrate` makes it") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if wanted_sha256 not in ("", sha256):
        raise ModelError(
            f"{file} has sha256 {sha256}, not backend.scales_sha256, {wanted_sha256}; take "
            "the file that it is of, or make scales anew with `loadgrid calibrate`"
        )
    try:
        return read_scales(data), sha256
    except ModelError as error:
        raise ModelError(
            f"{file}: {error}; take a good copy, or move it away and make it anew with `loadgrid calibrate`"
        ) from None


@dataclass(frozen=True)
class Weights:
    """The weights that scales must be of, as far as they are known: "" is a hash that is not.

    `sha256` None: seeded weights, which have no file.
    """

    model: str
    name: str
    sha256: str | None
    model_hash: str = ""


def refuse_other_weights(scales: Scales, file: str, own: Weights) -> None:
    """ModelError if the scales of `file` are known not to be of the weights `own`."""
    same_file = scales.weights_sha256 == own.sha256
    if own.sha256 == "":
        same_file = scales.weights_sha256 is not None
    same = scales.model == own.model and own.model_hash in ("", scales.model_hash)
    if not same or not same_file:
        made_for = Weights(scales.model, scales.weights, scales.weights_sha256, scales.model_hash)
        raise ModelError(
            f"{file} was made for other weights ({_told(made_for)}) than these ({_told(own)}); make scales "
            "of these with `loadgrid calibrate`"
        )


def _told(weights: Weights) -> str:
    known = [weights.model, weights.name]
    if weights.model_hash:
        known.append(f"model_hash {weights.model_hash[:12]}")
    if weights.sha256 != "":
        known.append(f"sha256 {weights.sha256[:12] if weights.sha256 else 'none'}")
    return ", ".join(known)
