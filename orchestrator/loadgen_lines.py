"""The lines of LoadGen's detail log: ":::MLLOG" JSON since v1.0, plain text in v0.5 and v0.7. Pure.

Both become entries under the keys of today, so whoever reads them need not know which form it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

PREFIX = ":::MLLOG "
# loadgen/utils.cc ToString of v0.5 and v0.7: their names, today's names.
SCENARIO_NAMES = {
    "Single Stream": "SingleStream",
    "Multi Stream": "MultiStream",
    "Multi Stream Free": "MultiStreamFree",
}
MODE_NAMES = {
    "Submission": "SubmissionRun",
    "Accuracy": "AccuracyOnly",
    "Performance": "PerformanceOnly",
    "Find Peak Performance": "FindPeakPerformance",
}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class Entry(NamedTuple):
    """One thing that LoadGen logged; `mode` is given where the text form says for which phase."""

    key: str
    value: Any
    error: bool = False
    warning: bool = False
    mode: str = ""


class LineError(ValueError):
    """A line is not as LoadGen writes it, and cannot be read by its shape either."""


# MLLOG

# LoadGen does not escape strings (logging.cc ArgValueTransform): a quote in a SUT's name, or a backslash in
# a path of Windows, makes a line that is not JSON and can still be read by its fixed frame.
_FRAME = re.compile(
    r'\{"key": "([^"]*)", "value": (.*), "time_ms": [-+.\deE]+, "namespace": '
    r'.*"is_error": (true|false), "is_warning": (true|false)',
    re.DOTALL,
)
_FRAME_LETTERS = 16 << 10  # names and messages are short, and the pattern's time grows as the square


def mllog_entry(body: str) -> tuple[Entry, bool]:
    """The entry of an MLLOG line without its prefix; also whether it is the JSON that checkers demand."""
    try:
        entry, sound = json.loads(body), True
        key, value, metadata = entry["key"], entry["value"], entry.get("metadata") or {}
        if not isinstance(key, str) or not isinstance(metadata, Mapping):
            raise LineError("another shape")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        frame = _FRAME.match(body) if len(body) < _FRAME_LETTERS else None
        if frame is None:
            raise LineError(body[:80]) from None
        key, value, sound = frame[1], _loose(frame[2]), False
        metadata = {"is_error": frame[3] == "true", "is_warning": frame[4] == "true"}
    return Entry(key, value, metadata.get("is_error") is True, metadata.get("is_warning") is True), sound


def _loose(text: str) -> Any:
    """A value as LoadGen wrote it: JSON, or a string whose quotes it did not escape."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


# Text

_TEXT_LINE = re.compile(r'"pid": \d+, "tid": \d+, "ts": -?\d+ns : ?(.*)', re.DOTALL)
# Words that begin a message, and the key that says the same today.
_FACTS = {
    "version : ": "loadgen_version",
    "build_date_local : ": "loadgen_build_date_local",
    "build_date_utc   : ": "loadgen_build_date_utc",
    "git_commit_date  : ": "loadgen_git_commit_date",
    "Date + time of test: ": "test_datetime",
    "System Under Test (SUT) name: ": "sut_name",
    "Query Sample Library (QSL) name: ": "qsl_name",
    "QSL total size: ": "qsl_reported_total_count",
    "QSL performance size*: ": "qsl_reported_performance_count",
}
_NAMED = ("loadgen_version", "sut_name", "qsl_name", "test_datetime")  # are text, whatever they look like
_SETTINGS = {"Effective Settings:": "effective_", "Requested Settings:": "requested_"}
_SETTING = re.compile(r"([a-z]\w*)(?: \((\w+)\))? ?: (.*)")
_GENERATED = re.compile(
    r'GeneratedQueries: "queries" : (\d+), "samples per query" : (\d+), "duration" : (\d+)'
)
_POWER = re.compile(r'POWER_(BEGIN|END): "mode" : ([\w ]+), "time" : (.*)')
_LOADED = re.compile(r'Loading QSL : "set" : "(\[[\d,]*\])"')
_COUNTER = re.compile(r"(\d+) : (\w+)")
_SILENT = ("LoadgenVersionInfo:", "git_log :", "git_status :", "SHA1 of files :", "Log Contention Counters:")


def is_text_line(line: str) -> bool:
    """Whether a line begins as those of v0.5 and v0.7 do."""
    return line.startswith('"pid": ')


class TextLines:
    """Reads the text form; it has to remember which settings it is among."""

    def __init__(self) -> None:
        self._settings = ""  # the prefix of the keys in this block

    def entries(self, line: str) -> list[Entry]:
        """The entries of one line; LineError for one that was damaged."""
        found = _TEXT_LINE.fullmatch(line)
        if found is None:
            raise LineError(line[:80])
        message = found[1].strip()
        if message in _SETTINGS:
            self._settings = _SETTINGS[message]
            return []
        if not message:  # ends a block; messages of other threads may stand within one
            self._settings = ""
            return []
        if self._settings and (setting := _setting_of(message)):
            key, value = setting
            return [Entry(self._settings + key, value)]
        return [] if message in _SILENT else _messages(message)


def _setting_of(message: str) -> tuple[str, Any] | None:
    """`target_latency (ns): 15000000` is target_latency_ns; `Test mode : Performance` is test_mode."""
    for words, key, names in (
        ("Scenario : ", "scenario", SCENARIO_NAMES),
        ("Test mode : ", "test_mode", MODE_NAMES),
    ):
        if message.startswith(words):
            told = message.removeprefix(words)
            return key, names.get(told, told)
    found = _SETTING.fullmatch(message)
    if found is None:
        return None
    name, unit, value = found.groups()
    return f"{name}_{unit}" if unit else name, value_of(value)


def _messages(message: str) -> list[Entry]:
    for words, key in _FACTS.items():
        if message.startswith(words):
            told = message.removeprefix(words)
            return [Entry(key, told if key in _NAMED else value_of(told))]
    for words, key in (("ERROR : ", "error_runtime"), ("WARNING : ", "warning_generic_message")):
        if message.startswith(words):
            error = key == "error_runtime"
            return [Entry(key, message.removeprefix(words), error=error, warning=not error)]
    if found := _GENERATED.fullmatch(message):
        keys = ("generated_query_count", "generated_samples_per_query", "generated_query_duration")
        return [Entry(key, value_of(text)) for key, text in zip(keys, found.groups(), strict=True)]
    if found := _POWER.fullmatch(message):
        return [Entry(f"power_{found[1].lower()}", found[3], mode=found[2])]
    if found := _LOADED.fullmatch(message):
        return [Entry("loaded_qsl_set", _loose(found[1]))]
    if found := _COUNTER.fullmatch(message):
        return [Entry(f"logger_{found[2]}", value_of(found[1]))]
    return [Entry("generic_message", message)]


def value_of(text: str) -> Any:
    """A value as text forms print it: true, false, a number, or the text itself."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if not _NUMBER.fullmatch(text) or len(text) > 64:  # no figure of LoadGen's is longer
        return text
    return int(text) if text.lstrip("+-").isdigit() else float(text)
