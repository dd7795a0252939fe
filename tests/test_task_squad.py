"""The question answering task: tokens, windows, rows, responses, and what is wrong with a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import made_squad
from workers.tasks import TaskError, open_task
from workers.tasks.bert_words import ANSWER_DROPS, SAMPLE_DROPS, bert_words
from workers.tasks.squad import SquadTask
from workers.tasks.squad_features import document_spans, read_questions, widest_context

TIME_BUDGET_S = 15

SPECIAL = made_squad.SPECIAL


def prepared(folder: Path, count: int = 12, **options: object) -> tuple[SquadTask, list[memoryview]]:
    made = made_squad.write(folder / "set", count, 1)
    task = SquadTask({**made, **options})
    library = task.prepare(folder / "cache")
    library.load(np.arange(library.count))
    return task, library.samples(np.arange(library.count))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Caf\u00e9 Cafe\u0301 \u00d1", ["cafe", "cafe", "n"]),
        ("don't (1895-1943).", ["don", "'", "t", "(", "1895", "-", "1943", ")", "."]),
        ("$5+^`~", ["$", "5", "+", "^", "`", "~"]),
        ("\u201cquoted\u2014so\u201d", ["\u201c", "quoted", "\u2014", "so", "\u201d"]),
        ("a\u4e2d\u6587b \u3042\u3044", ["a", "\u4e2d", "\u6587", "b", "\u3042\u3044"]),
        ("\u039b\u039f\u0393\u039f\u03a3 \u03a3\u0391", ["\u03bb\u03bf\u03b3\u03bf\u03c2", "\u03c3\u03b1"]),
        ("\u0130stanbul stra\u00dfe", ["istanbul", "stra\u00dfe"]),
        ("a\u200bb\x00c\ufffdd\x07e\ufeff", ["abcde"]),
        ("a\u00a0b\u3000c\td\u2028e", ["a", "b", "c", "d", "e"]),
        ("[MASK] x[MASK]y [Mask]", ["[MASK]", "x", "[", "mask", "]", "y", "[", "mask", "]"]),
        ("\u037e \u1fef", [";", "`"]),
        ("", []),
    ],
)
def test_texts_are_cut_into_words_as_berts_tokenizer_does(text: str, words: list[str]) -> None:
    assert bert_words(text, SAMPLE_DROPS, SPECIAL) == words


def test_the_scorers_tokenizer_keeps_private_and_unassigned_characters() -> None:
    assert bert_words("a\ue000b\u0378c", SAMPLE_DROPS) == ["abc"]
    assert bert_words("a\ue000b\u0378c", ANSWER_DROPS) == ["a\ue000b\u0378c"]


def test_tokens_know_the_word_that_they_are_of(tmp_path: Path) -> None:
    vocab = [*SPECIAL, "un", "##aff", "##able", "(", ")", "a", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    long_word = "a" + "b" * 100
    paragraph = {"context": f" (Unaffable)  \u202fab\txyz {long_word[:100]} {long_word} [MASK]\n"}
    qas = [{"id": "1", "question": "unaffable a", "answers": [{"text": "ab"}]}]
    data = {"data": [{"paragraphs": [{**paragraph, "qas": qas}]}]}
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(data))
    found = read_questions(tmp_path / "dev-v1.1.json", tmp_path / "vocab.txt")
    tokens, words = found.paragraphs[0].tokens, found.paragraphs[0].words
    assert words == ["(Unaffable)", "ab", "xyz", long_word[:100], long_word, "[MASK]"]
    expected = ["(", "un", "##aff", "##able", ")", "a", "##b", "[UNK]", "a", *["##b"] * 99, "[UNK]", "[MASK]"]
    assert tokens.texts == expected
    assert tokens.words == [0] * 5 + [1, 1, 2] + [3] * 100 + [4, 5]
    assert tokens.ids == [vocab.index(token) for token in expected]
    ids, mask, segments = found.encode(found.features[0])
    used = 3 + 4 + len(expected)
    assert ids[:8].tolist() == [2, 5, 6, 7, 10, 3, 8, 5]
    assert ids[used - 1] == vocab.index("[SEP]")
    assert mask.tolist() == [1] * used + [0] * (384 - used)
    assert segments.tolist() == [0] * 6 + [1] * (used - 6) + [0] * (384 - used)


def test_long_paragraphs_get_windows_of_which_one_shows_most_around_a_token() -> None:
    # Beside a question of 10 tokens a window has room for 384 - 3 - 10 = 371.
    assert document_spans(0, 10) == []
    assert document_spans(371, 10) == [(0, 371)]
    assert document_spans(372, 10) == [(0, 371), (128, 244)]
    spans = document_spans(600, 10)
    assert spans == [(0, 371), (128, 371), (256, 344)]
    best = widest_context(spans, 600)
    # Token 200 has 170 to the right in the first window, 72 to the left in the second.
    assert (best[0], best[200], best[300], best[350], best[599]) == (0, 0, 1, 1, 2)
    # 249 has 121 in both of the first two, which are equally long: the first counts.
    assert (best[249], best[250]) == (0, 1)


def test_questions_are_cut_at_64_tokens(tmp_path: Path) -> None:
    made = made_squad.write(tmp_path, 30, 1)
    found = read_questions(Path(made["path"]) / "dev-v1.1.json", Path(made["path"]) / "vocab.txt")
    assert max(len(question.query) for question in found.questions) == 64


def test_rows_are_the_tokens_of_all_samples_back_to_back(tmp_path: Path) -> None:
    task, samples = prepared(tmp_path)
    counts, rows = task.counts(samples), task.collate(samples)
    assert counts.dtype == np.int64
    assert rows.dtype == np.int32
    assert rows.shape == (counts.sum(), 2)
    assert len({*counts.tolist()}) > 3
    for sample, part in zip(samples, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
        ids, mask, segments = np.frombuffer(sample, np.int32).reshape(3, 384)
        assert (part == np.stack([ids, segments], 1)[mask == 1]).all()
    out = np.zeros((len(rows) + 9, 2), np.int32)
    assert np.shares_memory(task.collate(samples, out), out)
    assert (out[: len(rows)] == rows).all()


def test_responses_are_the_384_logit_pairs_that_the_script_reads(tmp_path: Path) -> None:
    task = SquadTask({"generated": 3})
    counts = np.array([5, 384, 2])
    outputs = (
        np.random.default_rng(1).standard_normal((400, 2)).astype(np.float16)
    )  # 9 rows of a bucket's rest
    responses = task.respond(outputs, np.arange(3), counts)
    assert responses.sizes is None
    logits = responses.blob.view("<f4").reshape(3, 384, 2)
    assert (logits[0, :5] == outputs[:5]).all()
    assert (logits[0, 5:] == -10000).all()
    assert (logits[1] == outputs[5:389]).all()
    assert (logits[2, :2] == outputs[389:391]).all()
    assert (logits[2, 2:] == -10000).all()


def test_the_onnx_file_gets_padded_inputs_and_its_outputs_lose_the_padding(tmp_path: Path) -> None:
    task, samples = prepared(tmp_path)
    counts, rows = task.counts(samples), task.collate(samples)
    inputs = task.onnx_inputs(rows, counts)
    whole = np.stack([np.frombuffer(sample, np.int32).reshape(3, 384) for sample in samples])
    for i, name in enumerate(("input_ids", "input_mask", "segment_ids")):
        assert inputs[name].dtype == np.int64
        assert (inputs[name] == whole[:, i]).all()
    logits = np.random.default_rng(2).standard_normal((2, len(samples), 384)).astype(np.float32)
    named = {"output_start_logits": logits[0], "output_end_logits": logits[1]}
    found, same_counts = task.onnx_outputs(named, counts)
    assert same_counts is counts
    at = int(counts[0])
    assert (found[at : at + int(counts[1])] == logits[:, 1, : counts[1]].T).all()


def test_generated_samples_have_lengths_like_squads(tmp_path: Path) -> None:
    task = SquadTask({"generated": 2000})
    library = task.prepare(tmp_path)
    assert library.count == 2000
    assert library.meta["generated"] is True
    assert "scorer" not in library.meta
    library.load(np.arange(2000))
    samples = library.samples(np.arange(2000))
    counts, rows = task.counts(samples), task.collate(samples)
    assert 175 < counts.mean() < 200
    assert 40 < counts.std() < 80
    assert counts.max() == 384
    assert (rows[:, 0] >= 101).all()
    assert (rows[:, 0] < 30522).all()
    assert rows[0].tolist() == [101, 0]
    assert rows[counts[0] - 1].tolist() == [102, 1]
    assert task.prepare(tmp_path).digest == library.digest


def test_warm_up_samples_are_of_the_true_size() -> None:
    samples = SquadTask({"generated": 1}).warm_up_samples(4)
    assert [sample.nbytes for sample in samples] == [4608] * 4
    assert len({bytes(sample) for sample in samples}) == 4


def test_calibration_lists_name_features_or_questions(tmp_path: Path) -> None:
    _, samples = prepared(tmp_path)
    (tmp_path / "features.txt").write_text("7\n2\n")
    _, listed = prepared(tmp_path, calibration=str(tmp_path / "features.txt"))
    assert listed == [samples[7], samples[2]]
    qas_ids = [f"{1:08x}{number:016x}" for number in (3, 0)]
    (tmp_path / "ids.txt").write_text("\n".join(qas_ids))
    task, listed = prepared(tmp_path, calibration=str(tmp_path / "ids.txt"))
    assert listed == [samples[3], samples[0]]
    assert "scorer" not in task.prepare(tmp_path / "cache").meta
    (tmp_path / "wrong.txt").write_text("1\n99999\n")
    with pytest.raises(TaskError, match="entry 2, '99999'"):
        prepared(tmp_path, calibration=str(tmp_path / "wrong.txt"))


def test_a_bad_data_set_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made_squad.write(folder, 6, 1)
    questions, vocab = folder / "dev-v1.1.json", folder / "vocab.txt"

    def why(**options: object) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("squad", {"path": str(folder), **options}).prepare(tmp_path / "cache")
        return str(caught.value)

    assert "the manifest says 10833" in why(count=10833)
    assert "no folder" in why(path=str(questions))
    good = questions.read_text()
    for text, part in (
        (good[:-9], "JSON"),
        ("[]", "damaged"),
        (good.replace('"question"', '"quest"'), "no 'question'"),
        (json.dumps({"data": []}), "no question"),
    ):
        questions.write_text(text)
        assert part in why()
    data = json.loads(good)
    data["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    questions.write_text(json.dumps(data))
    assert "has no answer, which is SQuAD v2.0" in why()
    questions.write_text(good)
    vocab.write_text("the\nof\n")
    assert "lacks [UNK], [SEP], [PAD], [CLS], [MASK]" in why()
    vocab.unlink()
    assert "vocab.txt is missing" in why()


def test_the_vocabulary_may_lie_where_the_reference_puts_it(tmp_path: Path) -> None:
    made = made_squad.write(tmp_path / "set", 3, 1)
    below = tmp_path / "set" / "bert_tf_v1_1_large_fp32_384_v2"
    below.mkdir()
    (tmp_path / "set" / "vocab.txt").rename(below / "vocab.txt")
    assert SquadTask(made).prepare(tmp_path / "cache").count >= 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"path": "x", "generated": 1},
        {"generated": -1},
        {"path": "x", "count": -1},
        {"generated": 1, "count": 1},
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(TaskError):
        open_task("squad", options)


def test_files_of_no_sense_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made = made_squad.write(folder, 3, 1)
    questions, vocab = folder / "dev-v1.1.json", folder / "vocab.txt"

    def why(**options: object) -> str:
        with pytest.raises(TaskError) as caught:
            open_task("squad", made | options).prepare(tmp_path / "cache")
        return str(caught.value)

    good, words = questions.read_text(), vocab.read_text().rstrip("\n").split("\n")
    questions.write_text("[" * 200_000)
    assert "dev-v1.1.json" in (text := why()) and "nested too deep" in text
    data = json.loads(good)
    data["data"][0]["paragraphs"][0]["context"] = ["a" * 1000]
    questions.write_text(json.dumps(data))
    assert "a list stands where a text must" in why()
    questions.write_text(good)
    listing = tmp_path / "list.txt"
    for word in ("9" * 5000, "root:" + "x" * 400):
        listing.write_text(word)
        assert "entry 1, " in why(calibration=str(listing)) and word[:60] not in why(calibration=str(listing))
    vocab.write_text("\n".join([*words, words[7]]) + "\n")
    assert (
        f"vocab.txt is not BERT's vocabulary: line {len(words) + 1}, {words[7]!r}, stands in line 8" in why()
    )
