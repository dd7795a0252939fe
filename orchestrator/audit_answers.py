"""The accuracy half of TEST01: the answers that a performance test logged, against the accuracy test's.

The official script compares the first element of each answer; here all of it is compared besides, and
counted. Logs of segmentation hold gigabytes: of an answer only its first element and its hash stay in memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.accuracy import AccuracyError, read_accuracy_log
from orchestrator.paths import replacing
from workers.library import Library

# What run_verification.py offers as --dtype; answers of another type it compares by their first byte.
DTYPES = {"byte": "i1", "float32": "<f4", "int32": "<i4", "int64": "<i8"}


@dataclass(frozen=True)
class Answer:
    """What is kept of a logged answer: hash, length, and first element (None: the answer is empty)."""

    digest: bytes
    size: int
    first: Any


@dataclass
class AnswerCounts:
    """verify_accuracy.py's counts by its names, the answers that differ anywhere, and the indices logged."""

    acc_log_entries: int = 0
    acc_log_duplicate_keys: int = 0
    acc_log_data_mismatch: int = 0
    perf_log_entries: int = 0
    perf_log_qsl_idx_match: int = 0
    perf_log_data_mismatch: int = 0
    missing_qsl_idxs: int = 0
    whole_mismatch: int = 0
    indices: frozenset[int] = frozenset()

    @property
    def passed(self) -> bool:
        """The newest script's verdict; those of v1.0 and v1.1 also pass a test that logged nothing."""
        return self.perf_log_data_mismatch == 0 and self.perf_log_qsl_idx_match > 0

    @property
    def reason(self) -> str:
        """Why it did not pass, empty if it did."""
        if self.perf_log_data_mismatch:
            return f"{self.perf_log_data_mismatch} of {self.perf_log_entries} logged answers differ"
        return "" if self.passed else "no logged answer is to a sample of the accuracy test"

    def text(self) -> str:
        """verify_accuracy.txt in official words."""
        names = ["acc_log_entries", "acc_log_duplicate_keys", "acc_log_data_mismatch", "perf_log_entries"]
        names += ["perf_log_qsl_idx_match", "perf_log_data_mismatch"]
        lines = ["Verifying accuracy. This might take a while...", "Reading accuracy mode results..."]
        lines.append("Reading performance mode results...")
        lines += [f"num_{name} = {getattr(self, name)}" for name in names]
        lines.append(f"num_missing_qsl_idxs = {self.missing_qsl_idxs}")
        return "\n".join([*lines, "TEST PASS" if self.passed else "TEST FAIL", "", ""])


def answer_dtype(library: Library) -> str:
    """The --dtype that fits the answers of this data set."""
    response = library.meta.get("response") or {}
    name = library.meta.get("label_dtype") or response.get("dtype")
    return name if name in DTYPES else "byte"


def compare_answers(
    accuracy_log: Path, test_log: Path, dtype: str, accuracy_digest: Any = None
) -> AnswerCounts:
    """Compare what TEST01 logged; AccuracyError for a damaged log. `accuracy_digest` gets the log's bytes."""
    counts = AnswerCounts()
    known: dict[int, Answer] = {}
    for logged in read_accuracy_log(accuracy_log, accuracy_digest):
        counts.acc_log_entries += 1
        answer = _kept(logged.data, dtype)
        if logged.qsl_idx in known:
            counts.acc_log_duplicate_keys += 1
            counts.acc_log_data_mismatch += known[logged.qsl_idx].digest != answer.digest
        else:
            known[logged.qsl_idx] = answer
    original = dict(known)
    indices = set()
    for logged in read_accuracy_log(test_log):
        counts.perf_log_entries += 1
        indices.add(logged.qsl_idx)
        answer = _kept(logged.data, dtype)
        before = known.get(logged.qsl_idx)
        if before is None:
            counts.missing_qsl_idxs += 1
        else:
            counts.perf_log_qsl_idx_match += 1
            for one, path in ((answer, test_log), (before, accuracy_log)):
                _refuse_cut(path, logged.qsl_idx, one, dtype)
            counts.perf_log_data_mismatch += not _same_first(before, answer)
        if logged.qsl_idx in original:
            counts.whole_mismatch += original[logged.qsl_idx].digest != answer.digest
        # As the script does: the next answer to the same sample is compared with this one.
        known[logged.qsl_idx] = answer
    counts.indices = frozenset(indices)
    return counts


def _kept(data: bytes, dtype: str) -> Answer:
    kind = np.dtype(DTYPES[dtype])
    first = np.frombuffer(data[: kind.itemsize], kind)[0] if len(data) >= kind.itemsize else None
    return Answer(hashlib.sha256(data).digest(), len(data), first)


def _refuse_cut(path: Path, qsl_idx: int, answer: Answer, dtype: str) -> None:
    width = np.dtype(DTYPES[dtype]).itemsize
    if answer.size % width:
        wanted = f"elements of type {dtype} have {width}"
        raise AccuracyError(f"{path}: the answer to sample {qsl_idx} has {answer.size} bytes, {wanted}")


def _same_first(one: Answer, other: Answer) -> bool:
    """Two empty answers are alike; NaN is like nothing, as in the script."""
    if one.first is None or other.first is None:
        return one.size == other.size
    return bool(one.first == other.first)


def write_baseline(accuracy_log: Path, indices: frozenset[int], path: Path) -> int:
    """Write the accuracy test's first answers to these samples as a log of their own; how many there are."""
    left = set(indices)
    with replacing(path) as file:
        for logged in read_accuracy_log(accuracy_log):
            if logged.qsl_idx not in left:
                continue
            number = len(indices) - len(left)
            left.remove(logged.qsl_idx)
            head = json.dumps({"seq_id": number, "qsl_idx": logged.qsl_idx})[:-1]
            file.write(f"{'[' if number == 0 else ','}\n{head}, ".encode())
            file.write(f'"data": "{logged.data.hex().upper()}"}}'.encode())
        file.write(b"\n]\n" if len(left) < len(indices) else b"[\n]\n")
    return len(indices) - len(left)


def fallback_percent(benchmark: str) -> float:
    """By how many percent two scores of the same samples may differ: get_delta_perc of the newest checker.

    The READMEs of TEST01 say the same: 1 % where the target is 99 %, 0.1 % where it is 99.9 %.
    """
    return 0.1 if "99.9" in benchmark else 1.0


def score_delta_percent(baseline: float, compliance: float) -> float:
    """How far apart two scores are, as the newest checker reckons it; both must be above 0."""
    return abs(1 - baseline / compliance) * 100
