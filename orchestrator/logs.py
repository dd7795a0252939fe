"""What LoadGen's own logs say: the only source of an official number."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = ":::MLLOG "
PERCENTILES = ("50.00", "90.00", "99.00", "99.90")


class LogError(Exception):
    """A log is missing or unreadable; the text names the file."""


@dataclass
class DetailLog:
    """mlperf_log_detail.txt: the first value of every key, as the checkers read it, and what went wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool | None:
        """LoadGen's verdict, None if it gave none (an accuracy test, or a test that did not end)."""
        verdict = self.values.get("result_validity")
        return None if verdict is None else verdict == "VALID"

    def number(self, key: str) -> float | None:
        """A numeric value, None if it is not there."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            return None
        return number if math.isfinite(number) else None

    def percentiles_ms(self) -> dict[str, float]:
        """The latency percentiles that LoadGen computed, in ms."""
        found = {p: self.number(f"result_{p}_percentile_latency_ns") for p in PERCENTILES}
        return {f"p{float(p):g}": round(v / 1e6, 4) for p, v in found.items() if v is not None}


def read_detail(path: Path) -> DetailLog:
    """Read a detail log; a line that is cut short (the test was killed) ends it."""
    log = DetailLog()
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                _read_line(line, log)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from None
    return log


def _read_line(line: str, log: DetailLog) -> None:
    whole = line.endswith("\n")  # the last line of a test that was killed is cut short
    line = line.strip("\0 \n")
    if not line.startswith(PREFIX):
        return
    try:
        entry = json.loads(line[len(PREFIX) :])
        key, value, metadata = str(entry["key"]), entry["value"], dict(entry.get("metadata") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # The official checkers refuse the whole log, and it may be an error that is hidden here.
        if whole:
            log.errors.append(f"a line of the log is damaged: {line[:80]}")
        return
    if metadata.get("is_error"):
        log.errors.append(f"{key}: {value}")
    if metadata.get("is_warning"):
        log.warnings.append(f"{key}: {value}")
    if key == "result_invalid_reason" and value:
        log.reasons.append(str(value))
    log.values.setdefault(key, value)
