"""What LoadGen's own detail log says: the only source of an official number. Any version, v0.5 to v6.x.

This is the low layer, entries by key; `loadgen_logs` makes a typed result of it and of the other two logs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.loadgen_lines import PREFIX, Entry, LineError, TextLines, is_text_line, mllog_entry
from orchestrator.plain_files import open_plain

PERCENTILES = ("50.00", "90.00", "99.00", "99.90")
# The longest line of a real log is `loaded_qsl_set` of an accuracy test: 7 bytes a sample. 16 MiB are 2
# million samples; dlrm, the largest data set, has 330,067.
LINE_BYTES = 16 << 20
VALUE_LETTERS = 64 << 10  # any other; the longest of a real log, git's messages, has some thousand
# Keys whose value is one of the test: others may come again and again, as warnings do.
SINGLE = ("effective_", "result_", "generated_", "early_stopping_")
# A log has a few hundred keys, and of warnings up to some hundreds ("Logging allocation detected").
KEPT = 1000


class LogError(Exception):
    """A log is missing or unreadable; the text names the file."""


@dataclass
class PowerWindow:
    """Begin and end of the phase that power is measured in, as logged: MM-DD-YYYY HH:MM:SS.mmm."""

    begin: Any = None
    end: Any = None
    count: int = 0


@dataclass
class DetailLog:
    """mlperf_log_detail.txt: the first value of every key, as the checkers read it, and what went wrong.

    `errors` and `warnings` are LoadGen's own (the first 1000; the counts are of all), `damaged` is what is
    not as LoadGen writes it, `repeated` are keys that come again with another value. `form` is "mllog",
    "text" (v0.5, v0.7) or, with no line of LoadGen's, "".
    """

    values: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    error_count: int = 0
    warning_count: int = 0
    times: Counter[str] = field(default_factory=Counter)
    power: dict[str, PowerWindow] = field(default_factory=dict)
    form: str = ""
    cut_short: bool = False

    @property
    def valid(self) -> bool | None:
        """LoadGen's verdict, None if it gave none (an accuracy test, or a test that did not end)."""
        verdict = self.values.get("result_validity")
        return None if verdict is None else verdict == "VALID"

    @property
    def troubles(self) -> list[str]:
        """LoadGen's errors, and damaged lines: checkers refuse the log, and a line may have held an error."""
        return self.errors + [f"a line of the log is damaged: {text}" for text in self.damaged]

    @property
    def said_twice(self) -> list[str]:
        """Keys of which a test has one value, and that have several: readers take different ones."""
        return [text for text in self.repeated if text.startswith(SINGLE)]

    def number(self, key: str) -> float | None:
        """A numeric value, None if it is not there."""
        return number_of(self.values.get(key))

    def percentiles_ms(self) -> dict[str, float]:
        """The latency percentiles that LoadGen computed, in ms."""
        found = {p: self.number(f"result_{p}_percentile_latency_ns") for p in PERCENTILES}
        return {f"p{float(p):g}": round(v / 1e6, 4) for p, v in found.items() if v is not None}

    def add(self, entry: Entry) -> None:
        """Take one entry in; of a key that comes again the first value stays."""
        key, value = entry.key, entry.value
        if entry.error:
            self.error_count += 1
            _keep(self.errors, f"{key}: {value}")
        if entry.warning:
            self.warning_count += 1
            _keep(self.warnings, f"{key}: {value}")
        if key == "result_invalid_reason" and value:
            _keep(self.reasons, str(value))
        if key == "generic_message":
            _keep(self.messages, str(value))
        if key in ("power_begin", "power_end"):
            self._add_power(entry)
        if key in self.values and self.values[key] != value and key != "result_invalid_reason":
            _keep(self.repeated, f"{key}: {str(self.values[key])[:80]}, {str(value)[:80]}")
        if key in self.values or len(self.values) < KEPT:
            self.values.setdefault(key, value)
            self.times[key] += 1

    def _add_power(self, entry: Entry) -> None:
        """An accuracy test logs a window for every sample set that it loads; together they are one."""
        phase = entry.mode if entry.mode in ("Performance", "Accuracy") else ""  # the text form names it
        window = self.power.setdefault(phase, PowerWindow())
        if entry.key == "power_end":
            window.end = entry.value
        else:
            window.count += 1
            window.begin = entry.value if window.begin is None else window.begin


def _keep(kept: list[str], text: str) -> None:
    if len(kept) < KEPT:
        kept.append(text[:2000])  # LoadGen's longest message has some hundred letters


def number_of(value: Any) -> float | None:
    """A value as a number; None if it is none, a truth value, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def read_detail(path: Path) -> DetailLog:
    """Read a detail log of any version, in memory that does not grow with it; a cut line ends it."""
    log, text = DetailLog(), TextLines()
    try:
        for number, line in bounded_lines(path, log):
            _read_line(number, line, log, text)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror}") from None
    return log


def bounded_lines(path: Path, log: DetailLog) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; one of absurd length is passed over and noted."""
    with open_plain(path) as file:
        number = 0
        while raw := file.readline(LINE_BYTES):
            number += 1
            if len(raw) < LINE_BYTES or raw.endswith(b"\n"):
                yield number, raw.decode("utf-8", errors="replace")
                continue
            _keep(log.damaged, f"line {number} is longer than {LINE_BYTES >> 20} MiB")
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LINE_BYTES)


def _read_line(number: int, line: str, log: DetailLog, text: TextLines) -> None:
    whole = line.endswith("\n")  # the last line of a test that was killed is cut short
    line = line.strip("\0 \r\n")
    mllog = line.startswith(PREFIX)
    if not mllog and not is_text_line(line):
        log.cut_short |= not whole and bool(line) and (PREFIX.startswith(line) or '"pid": '.startswith(line))
        return  # the text form has messages of many lines: git's log, hashes of files
    log.form = log.form or ("mllog" if mllog else "text")
    # Some SUTs count the final NUL among their name's letters (Intel's OpenVINO, v0.7 and v1.1).
    body, sound = line.replace("\0", ""), True
    try:
        if mllog:
            entry, sound = mllog_entry(body[len(PREFIX) :])
            entries = [entry]
        else:
            entries = text.entries(body)
    except LineError:
        if whole:
            # The official checkers refuse the whole log, and it may be an error that is hidden here.
            _keep(log.damaged, f"line {number}: {line[:80]}")
        else:
            log.cut_short = True
        return
    if "\0" in line:
        _keep(log.damaged, f"line {number} holds a NUL byte: {body[:80]}")
    elif not sound:
        _keep(log.damaged, f"line {number} is not JSON: {line[:80]}")
    for entry in entries:
        if len(line) > VALUE_LETTERS and entry.key != "loaded_qsl_set":
            _keep(log.damaged, f"line {number} has a value of {len(line)} letters: {line[:80]}")
        else:
            log.add(entry)
