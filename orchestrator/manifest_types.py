"""What the fields of a manifest are made of: bounded numbers, names, paths, and the frozen section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

WEEK_MS = 7 * 24 * 3600 * 1000
MAX_SEED = 2**64 - 1
MOST_QPS = 1e8


def _as_switch(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
Switch = Annotated[Literal[0, 1], BeforeValidator(_as_switch)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Milliseconds = Annotated[int, Field(ge=0, le=WEEK_MS)]
QueryCount = Annotated[int, Field(ge=1, le=10**10)]
SampleCount = Annotated[int, Field(ge=0, le=10**9)]
Qps = Annotated[float, Field(gt=0, le=MOST_QPS)]
Percentile = Annotated[float, Field(ge=50, lt=100)]


class Section(BaseModel):
    """A part of a manifest: frozen, no unknown keys, no silent conversion, no nan or inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
