"""Word error rate: hand-computed cases, from tokens to the line that the checkers read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from orchestrator import scorers
from orchestrator.accuracy import AccuracyError, AccuracyScore
from tests import made_librispeech
from workers.library import Library
from workers.tasks import open_task
from workers.tasks.librispeech import VOCABULARY

TIME_BUDGET_S = 5
ROUNDS = Path(__file__).parent.parent / "orchestrator" / "rounds"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Three utterances of which we say what is said in them."""
    folder = tmp_path_factory.mktemp("libri")
    made_librispeech.write(folder, 3, 1)
    manifest = folder / "dev-clean-wav.json"
    entries = json.loads(manifest.read_text())
    for entry, text in zip(entries[1:], ("a b c d", "it's so", "no more of that"), strict=True):
        entry["transcript"] = text
    manifest.write_text(json.dumps(entries))
    return open_task("librispeech", {"path": str(folder)}).prepare(folder / "cache")


def tokens(text: str) -> np.ndarray:
    return np.array([VOCABULARY.index(c) for c in text], np.int64)


def log(path: Path, texts: list[str], order: list[int]) -> Path:
    """The accuracy log of a task that heard these texts."""
    task = open_task("librispeech", {"generated": 1})
    rows = [tokens(texts[i]) for i in order]
    counts = np.array([len(row) for row in rows])
    responses = task.respond(np.concatenate(rows), np.array(order), counts)
    assert responses.sizes is not None
    parts = np.split(responses.blob, np.cumsum(responses.sizes)[:-1])
    entries = [
        {"seq_id": n, "qsl_idx": i, "data": part.tobytes().hex().upper()}
        for n, (i, part) in enumerate(zip(order, parts, strict=True))
    ]
    path.write_text(json.dumps(entries))
    return path


def scored(tmp_path: Path, library: Library, texts: list[str]) -> AccuracyScore:
    return scorers.score(log(tmp_path / "mlperf_log_accuracy.json", texts, [2, 0, 1]), library, 3)


@pytest.mark.parametrize(
    ("heard", "wrong"),
    [
        (["a b c d", "it's so", "no more of that"], 0),
        (["a b c d", "its so", "no more of that"], 1),  # another word
        (["a c d", "it's so", "no more  of that"], 1),  # one missing; spaces do not count
        (["a b c d", "it's so so", "no more of that that"], 2),  # one too many, twice
        (["d c b a", "", "more of that"], 7),  # 4 (or 2 moved: 4), all of two, one missing
        (["a b c d", "it's so and so and so and so and so", "no more of that"], 8),
    ],
)
def test_errors_over_words_of_all_transcripts(
    tmp_path: Path, library: Library, heard: list[str], wrong: int
) -> None:
    found = scored(tmp_path, library, heard)
    assert (found.metric, found.unit, found.good, found.total) == ("WER", "percent", None, 3)
    assert found.line == f"Word Error Rate: {wrong / 10 * 100}%, accuracy={(1 - wrong / 10) * 100}%"
    assert found.value == pytest.approx(100 - 10 * wrong)


@pytest.mark.parametrize("round_name", ["v1.0", "v1.1"])
def test_the_line_is_what_the_rounds_checker_reads(tmp_path: Path, library: Library, round_name: str) -> None:
    rules = yaml.safe_load((ROUNDS / f"{round_name}.yaml").read_text())["benchmarks"]["rnnt"]["accuracy"]
    found = scored(tmp_path, library, ["a b c d", "it's so", "no more"])
    match = re.match(rules["pattern"], found.line)
    assert match and float(match[1]) == found.value == pytest.approx(80)


def test_answers_that_are_no_tokens_are_named(tmp_path: Path, library: Library) -> None:
    path = log(tmp_path / "mlperf_log_accuracy.json", ["a b c d", "it's so", "no more of that"], [0, 1, 2])
    whole = json.loads(path.read_text())
    for data, why in (
        ("00", "sample 1 has 1 bytes, not tokens of 8 bytes"),
        ((28).to_bytes(8, "little").hex(), "sample 1 has token 28, of 28"),
        ((-1).to_bytes(8, "little", signed=True).hex(), "sample 1 has token -1"),
    ):
        path.write_text(json.dumps([whole[0], {**whole[1], "data": data}, whole[2]]))
        with pytest.raises(AccuracyError, match=why):
            scorers.score(path, library, 3)
    path.write_text(json.dumps(whole[:2]))
    with pytest.raises(AccuracyError, match="1 of 3 samples have no response: 2"):
        scorers.score(path, library, 3)
