"""Exact match and F1 of SQuAD v1.1, as the reference's accuracy-squad.py and evaluate-v1.1.py give them.

No library fits: those with the metric need torch or fetch it from a network, and the metric's definition
(lower case, no punctuation, no articles, words counted) is a few lines.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.accuracy import AccuracyError, AccuracyScore, first_answers
from workers.library import Library
from workers.tasks.bert_words import ANSWER_DROPS, bert_words

# accuracy-squad.py: n_best_size and max_answer_length of its call of write_predictions, its max_seq_length,
# and what it fills up a response with that has fewer positions.
BEST = 20
MOST_ANSWER_TOKENS = 30
MAX_TOKENS = 384
NO_LOGIT = -10000.0
# What it answers where no span is possible.
NO_ANSWER = "empty"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Span(NamedTuple):
    """The best span of a feature: its two logits' sum, first and last position."""

    score: float
    first: int
    last: int


def score(
    path: Path, library: Library, expected_count: int, only: Collection[int] | None = None
) -> AccuracyScore:
    """F1 in percent over the questions of the first `expected_count` features.

    With `only` some features all questions count, those without an answer as wrong, as in the script.
    """
    digest = hashlib.sha256()
    logits = read_logits(path, expected_count, digest, only)
    features = library.array("features")[:expected_count]
    spans = best_spans(logits, features, library.array("may_start")[:expected_count])
    if only is not None:
        spans = [span if number in only else None for number, span in enumerate(spans)]
    truth = json.loads(library.array("truth").tobytes())
    asked = truth["questions"]
    if expected_count < library.count:
        asked = asked[: int(features[:, 0].max()) + 1]
    texts = answers(spans, features, truth)
    exact = f1 = 0.0
    for number, question in enumerate(asked):
        found, wanted = texts.get(number, NO_ANSWER), question["answers"]
        exact += max(plain(found) == plain(one) for one in wanted)
        f1 += max(word_f1(found, one) for one in wanted)
    exact, f1 = 100.0 * exact / len(asked), 100.0 * f1 / len(asked)
    total = expected_count if only is None else len(only)
    line = json.dumps({"exact_match": exact, "f1": f1})
    return AccuracyScore("F1", f1, "percent", None, total, line, digest.hexdigest())


def read_logits(path: Path, count: int, digest: Any, only: Collection[int] | None = None) -> np.ndarray:
    """float32 (count, 384, 2); AccuracyError names a response that cannot be one."""
    logits = np.full((count, MAX_TOKENS, 2), NO_LOGIT, np.float32)
    for qsl_idx, data in first_answers(path, count, digest, only):
        if not data or len(data) % 8 or len(data) > MAX_TOKENS * 8:
            wanted = f"float32 logits of up to {MAX_TOKENS} tokens have {MAX_TOKENS * 8}, 8 a token"
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} has {len(data)} bytes, {wanted}")
        found = np.frombuffer(data, "<f4").reshape(-1, 2)
        if not np.isfinite(found).all():
            raise AccuracyError(f"{path}: the response to sample {qsl_idx} holds numbers that are no logits")
        logits[qsl_idx, : len(found)] = found
    return logits


def best_spans(logits: np.ndarray, features: np.ndarray, may_start: np.ndarray) -> list[Span | None]:
    """The best span of each feature among its 20 best starts and 20 best ends; None if none is possible.

    A span begins where this window shows most of what is around, ends inside the paragraph and has at most 30
    tokens. Of equals the first counts, by rank of the start, then of the end, as in the script's stable sort.
    """
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :BEST]
    starts, ends = ranked[:, :, 0], ranked[:, :, 1]
    each = np.arange(len(logits))[:, None]
    first = features[:, 1:2] + 2  # [CLS], question, [SEP]
    inside = (ends >= first) & (ends < first + features[:, 3:4])
    length = ends[:, None, :] - starts[:, :, None] + 1
    possible = may_start[each, starts][:, :, None] & inside[:, None, :]
    possible &= (length > 0) & (length <= MOST_ANSWER_TOKENS)
    start_logits = logits[each, starts, 0].astype(np.float64)
    end_logits = logits[each, ends, 1].astype(np.float64)
    sums = np.where(possible, start_logits[:, :, None] + end_logits[:, None, :], -np.inf)
    sums, possible = sums.reshape(len(sums), -1), possible.reshape(len(sums), -1)
    best = sums.argmax(axis=1)
    found: list[Span | None] = []
    for i, at in enumerate(best.tolist()):
        span = Span(float(sums[i, at]), int(starts[i, at // BEST]), int(ends[i, at % BEST]))
        found.append(span if possible[i, at] else None)
    return found


def answers(spans: list[Span | None], features: np.ndarray, truth: dict[str, Any]) -> dict[int, str]:
    """The text of each question's best span, by the question's number."""
    best: dict[int, tuple[Span, int]] = {}
    for number, (span, question) in enumerate(zip(spans, features[:, 0].tolist(), strict=True)):
        if span is not None and (question not in best or span.score > best[question][0].score):
            best[question] = span, number
    texts = {}
    for question, (span, number) in best.items():
        paragraph = truth["paragraphs"][truth["questions"][question]["paragraph"]]
        _, query, start, _ = features[number].tolist()
        first, last = (position - query - 2 + start for position in (span.first, span.last))
        words = paragraph["word_of_token"]
        shown = " ".join(paragraph["words"][words[first] : words[last] + 1])
        tokens = " ".join(paragraph["tokens"][first : last + 1]).replace(" ##", "").replace("##", "")
        texts[question] = as_written(" ".join(tokens.split()), shown)
    return texts


def as_written(found: str, shown: str) -> str:
    """The part of the text `shown` that the tokens `found` stand for; all of it where that cannot be told.

    Cut into words as the tokens were, `shown` has to have as many characters besides spaces as before; then
    the n-th is the n-th (accuracy-squad.py, get_final_text).
    """
    cut = " ".join(bert_words(shown, ANSWER_DROPS))
    at = cut.find(found)
    places = [place for place, char in enumerate(shown) if char != " "]
    if not found or at < 0 or len(places) != len(cut.replace(" ", "")):
        return shown
    first = at - cut.count(" ", 0, at)
    last = first + len(found.replace(" ", "")) - 1
    return shown[places[first] : places[last] + 1]


def plain(text: str) -> str:
    """Lower case, without punctuation, articles and spare spaces: how SQuAD compares answers."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def word_f1(found: str, wanted: str) -> float:
    """The harmonic mean of precision and recall of the words that two answers share."""
    mine, theirs = plain(found).split(), plain(wanted).split()
    shared = (Counter(mine) & Counter(theirs)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(mine), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)
