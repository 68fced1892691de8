"""How a generated text reads, in numbers: how much it repeats itself, and how much it copies from training."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_ngrams(words: Sequence[object], n: int) -> float:
    """Share of a text's runs of n words that differ from each other (arXiv 1510.03055); 1 means that none repeats."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(text: str, length: int = 4) -> float:
    """Share of words that end a run of `length` words already seen in the text; 0 means no run returns."""
    words = text.split()
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def copied_share(text: str, training_text: str, length: int = 24) -> float:
    """Share of the text's characters that lie in a stretch of `length` or more characters found in training.

    A model that has learnt its corpus by heart scores near 1; common phrases are shorter than the default stretch.
    """
    if len(text) < length:
        return 0.0
    copied = bytearray(len(text))
    for start in range(len(text) - length + 1):
        if text[start : start + length] in training_text:
            copied[start : start + length] = b"\1" * length
    return sum(copied) / len(text)
