"""SQuAD's JSON file to BERT's features: tokens, and the windows over a paragraph that is too long for one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from workers.tasks import TaskError
from workers.tasks.bert_words import SAMPLE_DROPS, bert_words
from workers.tasks.sources import read_json

# create_squad_data.py's parameters, as squad_QSL.py sets them.
MAX_TOKENS = 384
DOC_STRIDE = 128
MAX_QUERY_TOKENS = 64
# [CLS] before the question, [SEP] after it and after the paragraph.
MARKS = 3
# transformers 2.4.0 calls a longer word unknown.
LONGEST_WORD_CHARS = 100
SPECIAL = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
# What separates the words of a paragraph there; other spaces stay inside of a word.
_SPACES = re.compile("[ \t\r\n\u202f]+")


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, and for each the number of the word that it is of."""

    ids: list[int]
    texts: list[str]
    words: list[int]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph: its words as they stand there, and its tokens."""

    words: list[str]
    tokens: Tokens


@dataclass(frozen=True)
class Question:
    """A question about a paragraph (its number); `query` are its first 64 token ids."""

    id: str
    paragraph: int
    query: list[int]
    answers: list[str]


class Feature(NamedTuple):
    """A question with one window, of its number, over its paragraph; start and length in tokens."""

    question: int
    start: int
    length: int
    window: int


@dataclass
class QuestionSet:
    """A whole file's questions, paragraphs and features, in the reference's order."""

    paragraphs: list[Paragraph]
    questions: list[Question]
    cls: int
    sep: int
    features: list[Feature] = field(default_factory=list)

    def encode(self, feature: Feature) -> np.ndarray:
        """What the reference's SUT is given: input_ids, input_mask, segment_ids, int32 (3, 384)."""
        question = self.questions[feature.question]
        document = self.paragraphs[question.paragraph].tokens.ids
        query = len(question.query)
        total = query + feature.length + MARKS
        window = document[feature.start : feature.start + feature.length]
        sample = np.zeros((3, MAX_TOKENS), "<i4")
        sample[0, :total] = [self.cls, *question.query, self.sep, *window, self.sep]
        sample[1, :total] = 1
        sample[2, query + 2 : total] = 1
        return sample

    def truth(self, features: list[Feature]) -> dict[str, np.ndarray]:
        """What the scorer needs.

        truth: UTF-8 JSON of paragraphs (words, tokens, each token's word) and questions (id, paragraph,
        answers). features: int32 (n, 4), question, its tokens, start and length of the window. may_start:
        bool (n, 384), whether of all windows this one shows most of what is around the token.
        """
        paragraphs = [
            {"words": p.words, "tokens": p.tokens.texts, "word_of_token": p.tokens.words}
            for p in self.paragraphs
        ]
        questions = [{"id": q.id, "paragraph": q.paragraph, "answers": q.answers} for q in self.questions]
        text = json.dumps({"paragraphs": paragraphs, "questions": questions}, separators=(",", ":"))
        table = [(f.question, len(self.questions[f.question].query), f.start, f.length) for f in features]
        may_start = np.zeros((len(features), MAX_TOKENS), bool)
        for row, feature in zip(may_start, features, strict=True):
            question = self.questions[feature.question]
            query, document = len(question.query), len(self.paragraphs[question.paragraph].tokens.ids)
            best = widest_context(document_spans(document, query), document) == feature.window
            inside = best[feature.start : feature.start + feature.length]
            row[query + 2 : query + 2 + feature.length] = inside
        return {
            "truth": np.frombuffer(text.encode(), np.uint8),
            "features": np.array(table, np.int32),
            "may_start": may_start,
        }


def document_spans(document: int, query: int) -> list[tuple[int, int]]:
    """(start, length) of each window over a document of so many tokens, beside a question of `query`."""
    room = MAX_TOKENS - MARKS - query
    starts = [0] if document else []
    while starts and starts[-1] + room < document:
        starts.append(starts[-1] + min(room, DOC_STRIDE))
    return [(start, min(room, document - start)) for start in starts]


def widest_context(spans: list[tuple[int, int]], document: int) -> np.ndarray:
    """The number of the window in which each token has most context, int64 (document,).

    Context is the smaller of that to the left and to the right, plus a hundredth of the window's length
    (create_squad_data.py, _check_is_max_context); of equals the first.
    """
    at = np.arange(document)
    scores = np.full((len(spans), document), -np.inf)
    for row, (start, length) in zip(scores, spans, strict=True):
        inside = at[start : start + length]
        row[inside] = np.minimum(inside - start, start + length - 1 - inside) + 0.01 * length
    return scores.argmax(axis=0)


def read_questions(file: Path, vocab_file: Path) -> QuestionSet:
    """Read and tokenise a SQuAD v1.1 file; TaskError says where it is damaged."""
    vocab = read_vocab(vocab_file)
    contexts, asked = _read_json(file)
    documents = [[word for word in _SPACES.split(context) if word] for context in contexts]
    unknown = SPECIAL[0]
    model = WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=LONGEST_WORD_CHARS)
    tokenizer = Tokenizer(model)
    paragraphs = [
        Paragraph(words, tokens)
        for words, tokens in zip(documents, tokenise(tokenizer, documents), strict=True)
    ]
    queries = tokenise(tokenizer, [[question] for _, _, question, _ in asked])
    questions = [
        Question(qas_id, paragraph, query.ids[:MAX_QUERY_TOKENS], answers)
        for (qas_id, paragraph, _, answers), query in zip(asked, queries, strict=True)
    ]
    found = QuestionSet(paragraphs, questions, vocab["[CLS]"], vocab["[SEP]"])
    for number, question in enumerate(questions):
        document = len(paragraphs[question.paragraph].tokens.ids)
        for window, (start, length) in enumerate(document_spans(document, len(question.query))):
            found.features.append(Feature(number, start, length, window))
    if not found.features:
        raise TaskError(f"{file} holds no question about a paragraph with words", "path")
    return found


def tokenise(tokenizer: Tokenizer, texts: list[list[str]]) -> list[Tokens]:
    """Tokens of each text, which is a list of words as they stand there."""
    cut, origins = [], []
    for words in texts:
        parts = [bert_words(word, SAMPLE_DROPS, SPECIAL) for word in words]
        cut.append([part for found in parts for part in found])
        origins.append([number for number, found in enumerate(parts) for _ in found])
    encodings = tokenizer.encode_batch(cut, is_pretokenized=True, add_special_tokens=False)
    return [
        Tokens(
            encoding.ids, encoding.tokens, [origin[part] for part in encoding.word_ids if part is not None]
        )
        for encoding, origin in zip(encodings, origins, strict=True)
    ]


def read_vocab(file: Path) -> dict[str, int]:
    """A vocabulary, one token a line; TaskError if it lacks one that every sample needs."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} cannot be read ({error})", "path") from None
    if lines[-1] == "":
        lines.pop()
    vocab: dict[str, int] = {}
    for number, token in enumerate(lines):
        if vocab.setdefault(token, number) != number:
            twice = f"line {number + 1}, {token!r:.40}, stands in line {vocab[token] + 1} already"
            raise TaskError(f"{file} is not BERT's vocabulary: {twice}", "path")
    missing = [token for token in SPECIAL if token not in vocab]
    if missing:
        raise TaskError(f"{file} is not BERT's vocabulary: it lacks {', '.join(missing)}", "path")
    return vocab


def _read_json(file: Path) -> tuple[list[str], list[tuple[str, int, str, list[str]]]]:
    """The paragraphs' texts; of each question its id, the paragraph's number, its text and the answers."""
    held = read_json("squad", file)
    try:
        articles = held["data"]
        entries = [paragraph for article in articles for paragraph in article["paragraphs"]]
        contexts = [_text(entry["context"]) for entry in entries]
        asked = [_question(qa, number) for number, entry in enumerate(entries) for qa in entry["qas"]]
    except (ValueError, KeyError, TypeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise TaskError(f"{file} is damaged or no SQuAD v1.1 file ({why}); fetch it anew", "path") from None
    return contexts, asked


def _question(qa: dict[str, Any], paragraph: int) -> tuple[str, int, str, list[str]]:
    qas_id, answers = _text(qa["id"]), [_text(answer["text"]) for answer in qa["answers"]]
    if not answers:
        raise ValueError(f"question {qas_id} has no answer, which is SQuAD v2.0")
    return qas_id, paragraph, _text(qa["question"]), answers


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} stands where a text must")
    return value
