"""Scores of accuracy tests: LoadGen's accuracy log in, accuracy.txt for the official checkers out. Untimed.

Needs neither torch nor the workers, so a run can be scored a week later on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_CHUNK_BYTES = 1 << 20
# What the official script of image classification offers as --dtype; float32 is its default.
LABEL_DTYPES = ("float32", "int32", "int64")


class AccuracyError(Exception):
    """An accuracy log cannot be scored; the text names the file, the sample and what is wrong."""


@dataclass(frozen=True)
class AccuracyScore:
    """A scored accuracy test; `line` as the official script prints it, `log_sha256` of the whole log."""

    metric: str
    value: float
    unit: str
    good: int
    total: int
    line: str
    log_sha256: str


class Logged(NamedTuple):
    """One entry of mlperf_log_accuracy.json."""

    qsl_idx: int
    data: bytes


def score(
    kind: str, accuracy_log: Path, labels: np.ndarray, expected_count: int, dtype: str = "float32"
) -> AccuracyScore:
    """Score an accuracy log of `kind` ("classification") against `labels`, one per sample index.

    Every index below `expected_count` must occur exactly once. `dtype` is that of the responses.
    """
    scorer = _SCORERS.get(kind)
    if scorer is None:
        raise AccuracyError(f"there is no scorer for {kind!r}; scorers: {', '.join(sorted(_SCORERS))}")
    if len(labels) < expected_count:
        raise AccuracyError(f"{expected_count} samples are to be scored, but only {len(labels)} have labels")
    return scorer(Path(accuracy_log), labels, expected_count, dtype)


def write_accuracy_txt(path: Path, scored: AccuracyScore) -> None:
    """Write the score's line and the log's hash, whole or not at all.

    The hash is of the log before it is truncated for a submission; checkers want a line hash=...
    """
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(f"{scored.line}\nhash={scored.log_sha256}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_accuracy_log(path: Path, digest: Any = None) -> Iterator[Logged]:
    """The entries of an accuracy log, one at a time; `digest` (a hashlib object) is updated with every byte.

    No entry holds a brace of its own (its data is hexadecimal), so a brace ends it. That keeps memory to one
    entry; a segmentation benchmark logs 128 MB of text an entry.
    """
    try:
        with open(path, "rb") as file:
            yield from _entries(path, file.read, digest)
    except OSError as error:
        raise AccuracyError(f"{path} cannot be read ({error.strerror})") from None


def _entries(path: Path, read: Callable[[int], bytes], digest: Any) -> Iterator[Logged]:
    pieces: list[bytes] = []  # of an entry that is not complete yet
    count, separator = 0, b"["
    while chunk := read(_CHUNK_BYTES):
        if digest is not None:
            digest.update(chunk)
        *complete, rest = chunk.split(b"}")
        for piece in complete:
            before, brace, body = b"".join([*pieces, piece]).partition(b"{")
            if before.strip() != separator:
                raise _broken(path, count)
            yield _entry(path, count, brace + body + b"}")
            count, separator, pieces = count + 1, b",", []
        pieces.append(rest)
    end = b"".join(b"".join(pieces).split())
    if end != (b"]" if count else b"[]"):
        raise _broken(path, count)


def _broken(path: Path, count: int) -> AccuracyError:
    return AccuracyError(f"{path} is cut short or damaged after entry {count}: it is not a whole JSON list")


def _entry(path: Path, number: int, text: bytes) -> Logged:
    try:
        entry = json.loads(text)
        qsl_idx, data = entry["qsl_idx"], bytes.fromhex(entry["data"])
    except (ValueError, KeyError, TypeError):
        raise AccuracyError(
            f"{path}: entry {number} is damaged: {text[:80].decode(errors='replace')}"
        ) from None
    if type(qsl_idx) is not int:
        raise AccuracyError(f"{path}: entry {number} has no whole number as qsl_idx: {qsl_idx!r}")
    return Logged(qsl_idx, data)


def _score_classification(path: Path, labels: np.ndarray, expected_count: int, dtype: str) -> AccuracyScore:
    """Top-1: the share of samples whose one label of `dtype` is the true one."""
    if dtype not in LABEL_DTYPES:
        raise AccuracyError(f"responses of type {dtype!r} are none of {', '.join(LABEL_DTYPES)}")
    kind = np.dtype(dtype).newbyteorder("<")
    seen = np.zeros(expected_count, dtype=bool)
    good, digest = 0, hashlib.sha256()
    for qsl_idx, data in read_accuracy_log(path, digest):
        if not _is_first(path, qsl_idx, seen):
            continue
        if len(data) != kind.itemsize:
            wanted = f"one {dtype} label has {kind.itemsize}"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        found = np.frombuffer(data, kind)[0]
        if not np.isfinite(found):
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} is {found}, which is no label")
        good += int(found) == int(labels[qsl_idx])
    _check_all_seen(path, seen)
    value = 100.0 * good / expected_count
    line = f"accuracy={value:.3f}%, good={good}, total={expected_count}"
    return AccuracyScore("acc", value, "percent", good, expected_count, line, digest.hexdigest())


def _is_first(path: Path, qsl_idx: int, seen: np.ndarray) -> bool:
    """Mark a sample as answered; whether it is its first answer, the one that counts.

    LoadGen fills MultiStream's last query up with samples that were asked before; the official scorers pass
    over them.
    """
    if not 0 <= qsl_idx < len(seen):
        raise AccuracyError(f"{path}: sample {qsl_idx} is logged, but the data set has {len(seen)} samples")
    first = not seen[qsl_idx]
    seen[qsl_idx] = True
    return first


def _check_all_seen(path: Path, seen: np.ndarray) -> None:
    missing = np.flatnonzero(~seen)
    if len(missing):
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise AccuracyError(f"{path}: {len(missing)} of {len(seen)} samples have no response: {some}")


_SCORERS: dict[str, Callable[[Path, np.ndarray, int, str], AccuracyScore]] = {
    "classification": _score_classification
}
