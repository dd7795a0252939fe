"""The options of DLRM, and what its embedding tables take by them; without torch, for plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.models import ModelError
from workers.tasks.criteo import SPARSE, TABLE_ROWS

# As main.py (get_backend) has them; bottom and top: sizes of the layers between input and output.
OPTIONS: dict[str, Any] = {
    "rows": list(TABLE_ROWS),
    "dim": 128,
    "bottom": [512, 256],
    "top": [1024, 1024, 512, 256],
}
# Of a number in the tables, by the backend's precision.
NUMBER_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
LARGEST = 2**63 - 1  # of any size: torch's


def check_options(options: Mapping[str, Any]) -> None:
    """ModelError for a value that makes no network."""
    for key in ("rows", "bottom", "top"):
        value = options[key]
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(type(n) is int and 0 < n <= LARGEST for n in value)
        ):
            raise ModelError(
                f"model 'dlrm': backend.options.{key} must be a list of positive numbers, not {value!r}"
            )
    if len(options["rows"]) != SPARSE:
        raise ModelError(
            f"model 'dlrm': backend.options.rows must be {SPARSE} numbers, the rows of each table, "
            f"not {len(options['rows'])}"
        )
    if type(options["dim"]) is not int or not 0 < options["dim"] <= LARGEST:
        raise ModelError(
            f"model 'dlrm': backend.options.dim must be a positive number, not {options['dim']!r}"
        )


def large_weights(options: Mapping[str, Any], precision: str) -> tuple[str, int]:
    """See workers.models: the tables; beside them the perceptrons are nothing (2.4 million numbers)."""
    check_options(options)
    return "embedding tables", sum(options["rows"]) * options["dim"] * NUMBER_BYTES[precision]
