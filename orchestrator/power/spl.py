"""spl.txt: a power analyser's readings, one a second, as PTDaemon logs them. A streaming reader.

    Time,03-08-2021 00:00:05.273,Watts,9.45,Volts,248.8,Amps,0.0979,PF,0.388,Mark,2021-03-08_00-00-00_testing

Several channels or analysers follow in the same line; the first columns are their sum. Memory does not grow
with the file, and no byte of it is an error: what cannot be read is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.plain_files import open_plain

TIME_FORM = "%m-%d-%Y %H:%M:%S.%f"  # the checkers' datetime_format, LoadGen's too
# A line of one channel has some 120 bytes, and an analyser at most 12 channels (`-c` of PTDaemon).
LINE_BYTES = 64 << 10
MARK_COLUMNS = 12  # up to the first Mark and its value
LETTERS_SHOWN = 80


class SplError(Exception):
    """The file cannot be opened or read; the text names it."""


@dataclass(frozen=True)
class Reading:
    """One line: `at` by the meter's host's clock, mean `watts` of the second before; None: not readable.

    `timed` is whether the line begins with "Time" as PTDaemon's do, `mark` the session it was taken for.
    """

    line: int
    timed: bool
    at: datetime | None
    watts: float | None
    mark: str | None
    text: str


def read_spl(path: Path) -> Iterator[Reading]:
    """The lines of a file in their order; SplError where it cannot be read."""
    try:
        with open_plain(path) as file:
            number = 0
            while raw := file.readline(LINE_BYTES):
                number += 1
                yield _reading(number, raw.decode("utf-8", errors="replace"))
                while len(raw) == LINE_BYTES and not raw.endswith(b"\n"):  # the rest of an absurd line
                    raw = file.readline(LINE_BYTES)
    except OSError as error:
        raise SplError(f"{path}: {error.strerror}") from None


def _reading(number: int, line: str) -> Reading:
    """By position, as every checker reads it: the time is the second column, the watts are the fourth."""
    columns = line.rstrip("\r\n").split(",", MARK_COLUMNS)
    return Reading(
        line=number,
        timed=line.startswith("Time"),
        at=_time(columns[1]) if len(columns) > 1 else None,
        watts=_number(columns[3]) if len(columns) > 3 else None,
        mark=columns[11] if len(columns) > 11 and columns[10] == "Mark" else None,
        text=line[:LETTERS_SHOWN].rstrip(),
    )


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, TIME_FORM)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
