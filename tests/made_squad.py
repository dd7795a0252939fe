"""A small made SQuAD v1.1 data set in the reference's layout: dev-v1.1.json and vocab.txt in one folder."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = ["ka", "lo", "mi", "ru", "te", "sa", "no", "vi", "du", "pe"]
MARKS = list(".,;:!?'\"()-$%&#/")
# What tokenizers stumble over: accents, letters that lower case joins or splits, Chinese, hyphens, other
# spaces, marks that vanish, and words that no vocabulary has.
ODD_WORDS = [
    "Ca\u0301fe\u0301", "Na\u00efve", "\u039b\u039f\u0393\u039f\u03a3", "\u4e2d\u6587", "Kalo-Miru", "(Teno)",
    "$12.5", "\u0130STANBUL", "[MASK]", "ka\u00a0lo", "mi\u200bru", "\u201csano\u201d", "stra\u00dfe",
    "\U0001f600",
]  # fmt: skip
# Words a paragraph: the last needs three windows of 384 tokens.
PARAGRAPH_WORDS = (60, 90, 140, 200, 420)
ODD_SHARE = 0.04


def words_of(rng: random.Random, count: int) -> list[str]:
    """Made words of one to three syllables, some with a mark, some odd."""
    found = []
    for _ in range(count):
        word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))
        word = word.capitalize() if rng.random() < 0.2 else word
        word += rng.choice([".", ",", "'s", ")"]) if rng.random() < 0.15 else ""
        found.append(rng.choice(ODD_WORDS) if rng.random() < ODD_SHARE else word)
    return found


def vocabulary() -> list[str]:
    """Special tokens, marks, letters, syllables, pairs of them; each to begin a word and to go on with it."""
    letters = list(string.ascii_lowercase + string.digits + "\u03bb\u03bf\u03b3\u4e2d")
    stems = letters + SYLLABLES + [a + b for a in SYLLABLES[:5] for b in SYLLABLES[5:]]
    return [*SPECIAL, *MARKS, "the", "\u201c", "\u201d", *stems, *(f"##{stem}" for stem in stems)]


def questions(count: int, seed: int) -> dict[str, Any]:
    """`count` questions in SQuAD's layout, three a paragraph, each with one to three answers."""
    rng = random.Random(seed)
    paragraphs: list[dict[str, Any]] = []
    for number in range(count):
        if number % 3 == 0:
            length = PARAGRAPH_WORDS[len(paragraphs) % len(PARAGRAPH_WORDS)]
            context = rng.choice(["", " "]) + " ".join(words_of(rng, length)).replace(" te", "\n te")
            paragraphs.append({"context": context, "qas": []})
        context = paragraphs[-1]["context"]
        starts = [0] + [at + 1 for at, char in enumerate(context[:-40]) if char == " "]
        texts = []
        for _ in range(rng.randint(1, 3)):
            start = rng.choice(starts)
            texts.append({"answer_start": start, "text": context[start : start + rng.randint(5, 40)].strip()})
        asked = " ".join(words_of(rng, rng.choice([5, 9, 14, 60])))
        paragraphs[-1]["qas"].append(
            {"id": f"{seed:08x}{number:016x}", "question": f"{asked}?", "answers": texts}
        )
    return {"version": "1.1", "data": [{"title": "made", "paragraphs": paragraphs}]}


def write(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Write a data set of `count` questions (with long paragraphs: more features); the task's options."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    made = json.dumps(questions(count, seed))
    (folder / "dev-v1.1.json").write_text(made, encoding="utf-8")
    return {"path": str(folder)}
