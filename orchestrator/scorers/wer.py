"""Word error rate of speech to text, as the reference's rnnt/accuracy_eval.py prints it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import jiwer
import numpy as np

from orchestrator.accuracy import AccuracyError, AccuracyScore, first_answers
from workers.library import Library

# The reference's default for --output_dtype.
TOKEN = np.dtype("<i8")


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """100 - WER in percent, which is what the checkers read; tokens are places in the library's vocabulary.

    Errors are substituted, deleted and inserted words of all transcripts, over all words of the truth (array
    "truth", a JSON list). The samples are scored in the log's order, as the reference does.
    """
    vocabulary, truth = library.meta.get("vocabulary"), _truth(library)
    if not isinstance(vocabulary, str) or len(truth) < expected_count:
        raise AccuracyError(f"{library.folder} holds no vocabulary or too few transcripts; delete it")
    heard, said, digest = [], [], hashlib.sha256()
    for qsl_idx, data in first_answers(path, expected_count, digest, only):
        heard.append(_text(path, qsl_idx, data, vocabulary))
        said.append(truth[qsl_idx])
    found = _errors(said, heard)
    words = sum(len(text.split()) for text in said)
    if not words:
        raise AccuracyError(f"{library.folder}: the true transcripts hold no word")
    rate = found / words
    line = f"Word Error Rate: {rate * 100}%, accuracy={(1 - rate) * 100}%"
    value = (1 - rate) * 100
    return AccuracyScore("WER", value, "percent", None, len(said), line, digest.hexdigest())


def _errors(said: list[str], heard: list[str]) -> int:
    """Wrong, missing and additional words; jiwer takes no utterance without a true word: those are apart."""
    pairs = [(truth, text) for truth, text in zip(said, heard, strict=True) if truth.split()]
    surplus = sum(len(t.split()) for truth, t in zip(said, heard, strict=True) if not truth.split())
    if not pairs:
        return surplus
    out = jiwer.process_words([truth for truth, _ in pairs], [text for _, text in pairs])
    return surplus + out.substitutions + out.deletions + out.insertions


def _text(path: Path, qsl_idx: int, data: bytes, vocabulary: str) -> str:
    if len(data) % TOKEN.itemsize:
        wanted = f"tokens of {TOKEN.itemsize} bytes"
        raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, not {wanted}")
    tokens = np.frombuffer(data, TOKEN)
    strange = tokens[(tokens < 0) | (tokens >= len(vocabulary))]
    if len(strange):
        raise AccuracyError(
            f"{path}: the response to sample {qsl_idx} has token {strange[0]}, of {len(vocabulary)}"
        )
    return "".join(vocabulary[token] for token in tokens)


def _truth(library: Library) -> list[str]:
    try:
        truth = json.loads(library.array("truth").tobytes())
    except ValueError:
        truth = None
    if not isinstance(truth, list) or not all(isinstance(text, str) for text in truth):
        raise AccuracyError(f"{library.folder} holds no transcripts that can be read; delete it")
    return truth
