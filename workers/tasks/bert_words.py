"""How BERT's tokenizers cut a text into words before WordPiece; the question answering task and its scorer.

The definition is that of the reference's own tokenizers: transformers 2.4.0 (its Dockerfile) for the samples,
NVIDIA's tokenization.py for the answers. The `tokenizers` library's BertNormalizer is close but not the same
(0.23.3, measured over Unicode): it has no final sigma (LOGOS in Greek gets other pieces), cuts [MASK] out of
the middle of a word and knows older character tables, so only its WordPiece is used.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container
from functools import cache

# Character categories that are dropped: all "other" ones for the samples; the scorer's tokenizer, older,
# keeps private and unassigned characters.
SAMPLE_DROPS = ("Cc", "Cf", "Cn", "Co", "Cs")
ANSWER_DROPS = ("Cc", "Cf")

# The blocks of Chinese characters, each of which is a word by itself (google-research/bert, tokenization.py).
_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def bert_words(text: str, drops: tuple[str, ...], never_split: Container[str] = ()) -> list[str]:
    """Lower-case words without accents; punctuation marks are words of their own, as `never_split` are."""
    pieces = []
    for word in "".join([_cleaned(char, drops) for char in text]).split():
        # The order matters: str.lower knows where a word ends, which Greek needs.
        plain = unicodedata.normalize("NFD", word.lower())
        pieces += [word] if word in never_split else [_set_apart(char) for char in plain]
        pieces.append(" ")
    return "".join(pieces).split()


@cache
def _cleaned(char: str, drops: tuple[str, ...]) -> str:
    """A character, or what stands for it: nothing, a space, itself between spaces."""
    category = unicodedata.category(char)
    if char in " \t\n\r" or category == "Zs":
        return " "
    if char in "\0\ufffd" or category in drops:
        return ""
    return f" {char} " if any(first <= ord(char) <= last for first, last in _CHINESE) else char


@cache
def _set_apart(char: str) -> str:
    """Nothing for an accent, punctuation between spaces, else the character."""
    category = unicodedata.category(char)
    if category == "Mn":
        return ""
    # ASCII's signs ($, +, ^, `, ...) count as punctuation, whatever their category.
    signs = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return f" {char} " if signs or category.startswith("P") else char
