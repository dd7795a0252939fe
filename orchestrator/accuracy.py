"""LoadGen's accuracy log in, accuracy.txt for the checkers out; scorers/ does what is between. Untimed.

Needs neither torch nor the workers, so a run can be scored a week later on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.paths import write_atomically
from orchestrator.plain_files import open_plain

_CHUNK_BYTES = 1 << 20
_ENTRY_CHUNKS = 1 << 10  # 1 GiB; the largest real entry has 128 MB


class AccuracyError(Exception):
    """An accuracy log cannot be scored; the text names the file, the sample and what is wrong."""


@dataclass(frozen=True)
class AccuracyScore:
    """A scored accuracy test; `line` as the official script prints it, `log_sha256` of the whole log.

    `good` of `total` samples are right, where a metric counts such; else `good` is None.
    """

    metric: str
    value: float
    unit: str
    good: int | None
    total: int
    line: str
    log_sha256: str


class Logged(NamedTuple):
    """One entry of mlperf_log_accuracy.json."""

    qsl_idx: int
    data: bytes


def write_accuracy_txt(path: Path, scored: AccuracyScore) -> None:
    """Write the score's line and the log's hash, whole or not at all.

    The hash is of the log before it is truncated for a submission; checkers want a line hash=...
    """
    write_atomically(path, f"{scored.line}\nhash={scored.log_sha256}\n".encode())


def first_answers(
    path: Path, expected_count: int, digest: Any = None, only: Collection[int] | None = None
) -> Iterator[Logged]:
    """The first answer to each sample, in the log's order; AccuracyError if one of `expected_count` has none.

    `only`: the log holds these samples and no others.
    LoadGen fills MultiStream's last query up with samples that were asked before; the official scorers pass
    over them. `digest` (a hashlib object) is updated with the whole log.
    """
    seen = np.zeros(expected_count, dtype=bool)
    for logged in read_accuracy_log(path, digest):
        if _is_first(path, logged.qsl_idx, seen):
            yield logged
    if only is None:
        _check_all_seen(path, seen)
    elif set(np.flatnonzero(seen).tolist()) != set(only):
        raise AccuracyError(f"{path} does not hold the answers to {len(only)} samples that it should")


def read_accuracy_log(path: Path, digest: Any = None) -> Iterator[Logged]:
    """The entries of an accuracy log, one at a time; `digest` (a hashlib object) is updated with every byte.

    No entry holds a brace of its own (its data is hexadecimal), so a brace ends it. That keeps memory to one
    entry; a segmentation benchmark logs 128 MB of text an entry.
    """
    try:
        with open_plain(path) as file:
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
        if len(pieces) > _ENTRY_CHUNKS:  # a file without braces must not fill the memory
            raise _broken(path, count)
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


def _is_first(path: Path, qsl_idx: int, seen: np.ndarray) -> bool:
    """Mark a sample as answered; whether it is its first answer, the one that counts."""
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
