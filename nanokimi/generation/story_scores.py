"""Scores of a generated text: how much it repeats itself, and how much it copies from the training text."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_ngrams(words: Sequence[object], n: int) -> float:
    """Share of distinct n-grams among a text's n-grams of words (arXiv 1510.03055); 1 means that none repeats."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(text: str, length: int = 4) -> float:
    """Share of runs of `length` words that occurred earlier in the text; 0 means that none does."""
    words = text.split()
    runs = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def copied_share(text: str, training_text: str, length: int = 24) -> float:
    """Share of the text's characters in stretches of `length` or more characters that are in the training text.

    A model that has memorized its corpus scores near 1. Common phrases are shorter than the default.
    """
    if len(text) < length:
        return 0.0
    copied = bytearray(len(text))
    for start in range(len(text) - length + 1):
        if text[start : start + length] in training_text:
            copied[start : start + length] = b"\1" * length
    return sum(copied) / len(text)
