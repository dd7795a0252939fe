"""The classification scorer: hand-computed cases, damaged logs, and what the official checkers read."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import accuracy, scorers
from orchestrator.accuracy import AccuracyError, AccuracyScore, write_accuracy_txt
from orchestrator.paths import ACCURACY_LOG
from tests.made_logs import accuracy_log
from workers.library import LibraryWriter

TIME_BUDGET_S = 15

# The patterns of the checkers of v1.0 and v1.1, and of v6.1, and that of the hash line.
CHECKERS = (r"^accuracy=([\d\.]+).*", r'^(?:\{"accuracy|accuracy)[": ]*=?\s*([\d\.]+).*')
HASH = r"^hash=([\w\d]+)$"
LABELS = np.array([243, 559, 0, 999])


def log(folder: Path, answers: list[tuple[int, bytes]]) -> Path:
    return accuracy_log(folder / ACCURACY_LOG, answers)


def score(path: Path, labels: np.ndarray, count: int, dtype: str = "float32") -> AccuracyScore:
    """Score against a library of these labels."""
    with tempfile.TemporaryDirectory() as folder:
        meta = {"scorer": "top1", "label_dtype": dtype}
        with LibraryWriter(Path(folder) / "library", "made", meta) as writer:
            for _ in labels:
                writer.add(b"x")
            writer.add_array("labels", labels)
            return scorers.score(path, writer.finish(), count)


def label(value: float, dtype: str = "<f4") -> bytes:
    return np.array([value], dtype).tobytes()


def test_a_hand_computed_case(tmp_path: Path) -> None:
    path = log(tmp_path, [(3, label(999)), (0, label(243)), (2, label(1)), (1, label(559))])
    scored = score(path, LABELS, 4)
    assert (scored.good, scored.total, scored.value) == (3, 4, 75.0)
    assert (scored.metric, scored.unit) == ("acc", "percent")
    assert scored.line == "accuracy=75.000%, good=3, total=4"


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_labels_of_every_official_type(tmp_path: Path, dtype: str) -> None:
    path = log(tmp_path, [(i, label(v, dtype)) for i, v in enumerate(LABELS)])
    assert score(path, LABELS, 4, dtype).good == 4


def test_checkers_read_accuracy_txt(tmp_path: Path) -> None:
    path = log(tmp_path, [(i, label(v if i else 1)) for i, v in enumerate(LABELS[:3])])
    write_accuracy_txt(tmp_path / "accuracy.txt", score(path, LABELS, 3))
    text = (tmp_path / "accuracy.txt").read_text()
    assert text.endswith("\n")
    for pattern in CHECKERS:
        found = [m for line in text.splitlines() if (m := re.match(pattern, line))]
        assert [float(m[1]) for m in found] == [66.667]
    hashes = [m[1] for line in text.splitlines() if (m := re.match(HASH, line))]
    assert hashes == [hashlib.sha256(path.read_bytes()).hexdigest()]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=60),
    st.integers(1, 200),
    st.randoms(use_true_random=False),
)
def test_known_predictions_give_the_known_score(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], chunk: int, shuffle: object
) -> None:
    folder = tmp_path_factory.mktemp("log")
    labels = np.array([true for true, _ in pairs])
    order = np.random.default_rng(chunk).permutation(len(pairs))
    path = log(folder, [(int(i), label(pairs[i][1])) for i in order])
    whole = accuracy._CHUNK_BYTES
    accuracy._CHUNK_BYTES = chunk  # entries must survive any cut between two reads
    try:
        scored = score(path, labels, len(pairs))
    finally:
        accuracy._CHUNK_BYTES = whole
    assert scored.good == sum(true == found for true, found in pairs)
    assert scored.total == len(pairs)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(0, label(1)), (2, label(1))], "2 of 4 samples have no response: 1, 3"),
        ([], "4 of 4 samples have no response: 0, 1, 2, 3"),
        ([(4, label(1))], "sample 4 is logged, but the data set has 4 samples"),
        ([(-1, label(1))], "sample -1 is logged"),
        ([(0, b"abc")], "sample 0 has 3 bytes, one float32 label has 4"),
        ([(0, b"")], "sample 0 has 0 bytes"),
        ([(0, label(float("nan")))], "sample 0 is nan, which is no label"),
    ],
)
def test_bad_answers_are_explained(tmp_path: Path, answers: list[tuple[int, bytes]], message: str) -> None:
    with pytest.raises(AccuracyError) as caught:
        score(log(tmp_path, answers), LABELS, 4)
    assert message in str(caught.value)
    assert "mlperf_log_accuracy.json" in str(caught.value)


def test_a_log_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = log(tmp_path, [(i, label(v)) for i, v in enumerate(LABELS)])
    raw = path.read_bytes()
    for kept in range(len(raw.rstrip())):
        path.write_bytes(raw[:kept])
        with pytest.raises(AccuracyError):
            score(path, LABELS, 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]]",
        '[{"qsl_idx": 0}]',
        '[{"qsl_idx": "0", "data": "00"}]',
        '[{"qsl_idx": 0, "data": "0g"}]',
        '[{"qsl_idx": 0, "data": 5}]',
        '[{"qsl_idx": true, "data": "00000000"}]',
        "first 4096 bytes ... last 4096 bytes",
    ],
)
def test_what_is_no_accuracy_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlperf_log_accuracy.json").write_text(text)
    with pytest.raises(AccuracyError):
        score(tmp_path / "mlperf_log_accuracy.json", LABELS, 1)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "mlperf_log_accuracy.json"
    path.write_bytes(raw)
    with pytest.raises(AccuracyError):
        score(path, LABELS, 4)


def test_unusable_arguments_are_explained(tmp_path: Path) -> None:
    path = log(tmp_path, [(0, label(1))])
    for arguments, message in (
        ((path, LABELS, 5), "5 samples are to be scored, but the data set holds 4"),
        ((path, LABELS, 1, "float16"), "'float16' are none of"),
        ((tmp_path / "absent.json", LABELS, 1), "absent.json cannot be read"),
    ):
        with pytest.raises(AccuracyError, match=message):
            score(*arguments)


def test_a_large_log_is_scored_in_bounded_memory(tmp_path: Path) -> None:
    count = 50_000
    path = log(tmp_path, [(i, label(i % 1000)) for i in range(count)])
    with LibraryWriter(tmp_path / "library", "made", {"scorer": "top1", "label_dtype": "float32"}) as writer:
        for _ in range(count):
            writer.add(b"x")
        writer.add_array("labels", np.arange(count) % 1000)
        writer.finish()
    code = (
        "import resource, sys, numpy as np; from pathlib import Path;"
        "from orchestrator.scorers import score; from orchestrator.scorers import top1;"
        "from workers.library import Library;"
        "library = Library.open(Path(sys.argv[2]));"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"s = score(Path(sys.argv[1]), library, {count});"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before;"
        f"assert s.good == {count} and grown < 12_000, grown; assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "library")]
    done = subprocess.run(command, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(path.read_text())[-1]["qsl_idx"] == count - 1


def test_the_first_answer_counts_when_loadgen_fills_a_last_query_up(tmp_path: Path) -> None:
    path = log(tmp_path, [(0, label(1)), (1, label(2)), (0, label(9))])
    assert score(path, np.array([1, 2]), 2).good == 2
