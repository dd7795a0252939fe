"""What is left of an accuracy log in a tree: its two ends, as the official tool cuts them, or all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.accuracy import AccuracyError, read_accuracy_log

# truncate_accuracy_log.py of all rounds: so much of each end, and this between them.
END_BYTES = 4096
BETWEEN = b"\n\n...\n\n"
# An accuracy test's seq_id are below the number of samples (528 published logs), MultiStream's padding apart.
MOST_SEQ_IDS = 2


def faults_of_ends(text: bytes, samples: int, *, accuracy_test: bool) -> Iterator[str]:
    """What is wrong with a truncated log of a data set of so many samples."""
    first, between, last = text.partition(BETWEEN)
    if not between:
        yield "it has a ... but not on a line of its own between two ends, as the official tool leaves it"
        return
    # The tool cuts characters, which LoadGen's log has one byte each of.
    if len(first) != END_BYTES or len(last) != END_BYTES:
        sizes = f"{len(first)} and {len(last)} bytes"
        yield f"{sizes} are left of its ends; the official tool leaves {END_BYTES} each"
    if not first.lstrip().startswith(b"[") or not last.rstrip().endswith(b"]"):
        yield "its ends are not those of a LoadGen log, [ and ]: the original was cut or is another file"
        return
    *entries, cut = first.lstrip()[1:].split(b"}")
    closed, *later = last.rstrip()[:-1].split(b"}")
    end = later.pop() if later else closed
    if end is closed or end.strip() or cut.strip(b" \r\n\t,")[:1] not in (b"", b"{"):
        yield "between its entries is something that LoadGen does not write"
    for piece in (*entries, *later):
        fault = _fault(piece, samples, accuracy_test=accuracy_test)
        if fault:
            yield fault
            return


def _fault(piece: bytes, samples: int, *, accuracy_test: bool) -> str:
    """What is wrong with one whole entry, without its closing brace; some tools spread it over lines."""
    shown = piece.strip(b" \r\n\t,")[:60].decode(errors="replace")
    try:
        entry = json.loads(piece.strip(b" \r\n\t,") + b"}")
        seq_id, qsl_idx = entry["seq_id"], entry["qsl_idx"]
        bytes.fromhex(entry["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"an entry is damaged: {shown}"
    if not (type(seq_id) is int and type(qsl_idx) is int and seq_id >= 0):
        return f"an entry is damaged: {shown}"
    if not 0 <= qsl_idx < samples:
        return f"an answer is of sample {str(qsl_idx)[:20]}; the data set has {samples}"
    if accuracy_test and seq_id >= MOST_SEQ_IDS * samples:
        return f"an answer is number {str(seq_id)[:20]}; the data set has {samples} samples"
    return ""


def faults_of_whole(path: Path, samples: int) -> Iterator[str]:
    """What is wrong with a log that was short enough to be left whole."""
    count = 0
    try:
        for logged in read_accuracy_log(path):
            count += 1
            if not 0 <= logged.qsl_idx < samples:
                yield f"an answer is of sample {str(logged.qsl_idx)[:20]}; the data set has {samples}"
                return
    except AccuracyError:
        yield "it is cut short or damaged: no whole JSON list of LoadGen's"
        return
    if not count:
        yield "it holds no answers"
