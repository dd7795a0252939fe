"""The question answering scorer: hand-computed cases, the round trip through a task, damaged logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator import scorers
from orchestrator.accuracy import AccuracyError
from orchestrator.paths import ACCURACY_LOG
from orchestrator.rules import load_round
from orchestrator.scorers.squad import as_written, plain, word_f1
from tests import made_squad
from tests.made_logs import accuracy_log
from workers.library import Library
from workers.tasks import counts_of, open_task

TIME_BUDGET_S = 15

WORDS = [
    "the",
    "tall",
    "red",
    "tower",
    "of",
    "rome",
    "was",
    "built",
    "in",
    "1895",
    "(",
    ")",
    "##s",
    "who",
    "?",
]


def log(folder: Path, answers: list[tuple[int, bytes]]) -> Path:
    return accuracy_log(folder / ACCURACY_LOG, answers)


def library(folder: Path, context: str, answers: list[list[str]]) -> Library:
    """A prepared library of one paragraph, asked once for each list of answers: [CLS] who ? [SEP] context."""
    qas = [
        {"id": str(i), "question": "who?", "answers": [{"text": t} for t in a]} for i, a in enumerate(answers)
    ]
    data = {"version": "1.1", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(made_squad.SPECIAL + WORDS) + "\n")
    (folder / "dev-v1.1.json").write_text(json.dumps(data))
    return open_task("squad", {"path": str(folder)}).prepare(folder / "cache")


def logits(**high: tuple[int, int]) -> bytes:
    """Logits with two high positions, first and last, for `span`, and higher ones for `decoy`."""
    found = np.full((384, 2), -5, np.float32)
    for name, (first, last) in high.items():
        found[first, 0] = found[last, 1] = {"span": 4.0, "decoy": 6.0}[name]
    return found.tobytes()


def test_a_hand_computed_case(tmp_path: Path) -> None:
    # Positions: [CLS] 0, who 1, ? 2, [SEP] 3, the 4, tall 5, red 6, tower 7, of 8, rome 9.
    made = library(
        tmp_path / "set",
        "The tall red Tower of Rome was built in (1895).",
        [["tower of Rome"], ["The Tower"], ["1895", "in 1895"], ["red"]],
    )
    path = log(
        tmp_path,
        [
            (1, logits(span=(5, 7))),  # "tall red Tower" against "Tower": 1 of 3 and 1 of 1, F1 1/2
            (0, logits(span=(7, 9))),  # "Tower of Rome": exact
            (3, logits(span=(9, 9), decoy=(1, 5))),  # a decoy that begins in the question: "Rome", F1 0
            (2, logits(span=(12, 14))),  # "in ( 1895" was written "in (1895": exact with the second answer
        ],
    )
    scored = scorers.score(path, made, 4)
    assert scored.line == '{"exact_match": 50.0, "f1": 62.5}'
    assert (scored.metric, scored.value, scored.unit, scored.good, scored.total) == (
        "F1",
        62.5,
        "percent",
        None,
        4,
    )


@pytest.mark.parametrize("version", ["v1.0", "v1.1", "v6.1"])
def test_checkers_read_the_line(version: str) -> None:
    pattern = load_round(version).benchmark("bert-99").accuracy.pattern
    match = re.match(pattern, json.dumps({"exact_match": 83.67076631977294, "f1": 90.87401238}))
    assert match
    assert float(match[1]) == 90.87401238


def test_spans_that_are_impossible_are_passed_over(tmp_path: Path) -> None:
    # Positions 4, 6, 8, ... are "red", 5, 7, 9, ... "tower"; what stands beside the decoy's has -5.
    made = library(tmp_path / "set", "red tower " * 40, [["red"], ["tower"], ["red tower"]])
    too_long = logits(decoy=(4, 34))  # 31 tokens; next best: from 4 to the first end of the rest, 4
    backwards = logits(decoy=(9, 8))  # next best: from 9 to 9
    in_question = logits(decoy=(1, 5))  # next best: from the first start of the rest, 4, to 5
    path = log(tmp_path, [(0, too_long), (1, backwards), (2, in_question)])
    assert scorers.score(path, made, 3).value == 100


def test_what_no_span_can_answer_is_answered_empty(tmp_path: Path) -> None:
    made = library(tmp_path / "set", "Rome was red.", [["empty"], ["Rome"]])
    nothing = np.full((384, 2), -5, np.float32)
    nothing[300:330] = 5  # padding takes all of the best twenty
    path = log(tmp_path, [(0, nothing.tobytes()), (1, nothing.tobytes())])
    assert scorers.score(path, made, 2).line == '{"exact_match": 50.0, "f1": 50.0}'


def test_short_responses_are_filled_up_as_the_script_does(tmp_path: Path) -> None:
    made = library(tmp_path / "set", "Rome was red.", [["Rome"]])
    path = log(tmp_path, [(0, logits(span=(4, 4))[: 9 * 8])])
    assert scorers.score(path, made, 1).value == 100


def test_known_answers_make_the_round_trip(tmp_path: Path) -> None:
    task = open_task("squad", made_squad.write(tmp_path / "set", 30, 3))
    made = task.prepare(tmp_path / "cache")
    everything = np.arange(made.count)
    made.load(everything)
    counts = counts_of(task, made.samples(everything))
    features, truth = made.array("features"), json.loads(made.array("truth").tobytes())
    outputs, at, expected = np.full((counts.sum(), 2), -3, np.float32), 0, {}
    for number, (question, query, _, length) in enumerate(features.tolist()):
        may_start = np.flatnonzero(made.array("may_start")[number])
        first = int(may_start[len(may_start) // 2])
        last = min(first + number % 4, query + 1 + length)
        outputs[at + first, 0] = outputs[at + last, 1] = 1 + number / 64
        expected[question] = number, first, last
        at += int(counts[number])
    responses = task.respond(outputs, everything, counts)
    data = responses.blob.reshape(made.count, -1)
    scored = scorers.score(
        log(tmp_path, [(i, row.tobytes()) for i, row in enumerate(data)]), made, made.count
    )
    # Later windows of a question have the higher logits here, so the last is what is answered.
    f1 = 0.0
    for question, (number, first, last) in expected.items():
        _, query, start, _ = features[number].tolist()
        paragraph = truth["paragraphs"][truth["questions"][question]["paragraph"]]
        a, b = first - query - 2 + start, last - query - 2 + start
        words = paragraph["word_of_token"]
        found = " ".join(
            " ".join(paragraph["tokens"][a : b + 1]).replace(" ##", "").replace("##", "").split()
        )
        text = as_written(found, " ".join(paragraph["words"][words[a] : words[b] + 1]))
        f1 += max(word_f1(text, one) for one in truth["questions"][question]["answers"])
    assert scored.value == pytest.approx(100 * f1 / len(expected))
    assert len(expected) == 30


def test_answers_are_given_as_they_are_written() -> None:
    assert as_written("steve smith", "Steve Smith's") == "Steve Smith"
    assert as_written("cafe", "the Caf\u00e9,") == "Caf\u00e9"
    assert as_written("1895", "(1895-1943).") == "1895"
    # The accent as a character of its own is lost in the tokens: nothing can be counted off, all is shown.
    assert as_written("cafe", "the Cafe\u0301,") == "the Cafe\u0301,"
    assert as_written("[UNK]", "\U0001f600 x") == "\U0001f600 x"


def test_answers_are_compared_without_case_marks_and_articles() -> None:
    assert plain(" The  tall, red\tTOWER of (an) ann's! ") == "tall red tower of anns"
    assert word_f1("the a", "tower") == 0
    assert word_f1("red red tower", "red tower tower") == pytest.approx(2 / 3)


def test_damaged_logs_are_explained(tmp_path: Path) -> None:
    made = library(tmp_path / "set", "Rome was red.", [["Rome"], ["red"]])

    def why(*answers: tuple[int, bytes]) -> str:
        with pytest.raises(AccuracyError) as caught:
            scorers.score(log(tmp_path, list(answers)), made, 2)
        return str(caught.value)

    good = logits(span=(4, 4))
    assert "1 of 2 samples have no response" in why((0, good))
    assert "sample 1 has 3071 bytes" in why((0, good), (1, good[:-1]))
    assert "sample 1 has 3080 bytes" in why((0, good), (1, good + bytes(8)))
    nan = np.frombuffer(good, np.float32).copy()
    nan[5] = np.nan
    assert "sample 0 holds numbers that are no logits" in why((0, nan.tobytes()), (1, good))
