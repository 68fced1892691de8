"""The three parts of every text: training, validation (to choose settings by) and test (which is reported).

A document's part follows from a hash of its text alone: the lowest hashes are for validation, the highest for test. So
no document moves when others come or go, and `dataset.val_fraction` never moves one into or out of the test part. One
contiguous text is cut by position: training, validation, test. nanoGPT's published split has two parts, the first
nine tenths and the last one; there validation and test are the same text, and every output says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.errors import UserError

PARTS = ("train", "val", "test")
MIN_PART = 100
"""The least characters of one text (bytes of documents) in validation and test; less would say nothing."""
HASHES = 1 << 64
NANOGPT_NOTE = (
    "split nanogpt: the text that is reported is also the one that settings were chosen on, so the losses of tuned "
    "runs are too good"
)


def fractions(dataset: DatasetConfig) -> tuple[Fraction, Fraction]:
    """The shares of validation and test, exactly as the decimal numbers that the user wrote."""
    val = Fraction(str(dataset.val_fraction))
    return val, val if dataset.test_fraction is None else Fraction(str(dataset.test_fraction))


def own_part(name: str, names: Collection[str]) -> str:
    """The part of a document in the split `name` of a data set with the splits `names`: see `Ranges.part_of`.

    Train gives validation documents if the set has none of its own, and validation gives test documents.
    """
    if name == "train" and "val" not in names:
        return "train|val"
    return "val|test" if name == "val" and "test" not in names else name


@dataclass(frozen=True)
class Ranges:
    """Hashes below `val_below` are for validation, those from `test_from` for test, those between for training."""

    val_below: int
    test_from: int

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Ranges:
        """Return the ranges that the configuration asks for."""
        val, test = fractions(dataset)
        return cls(int(val * HASHES), HASHES - int(test * HASHES))

    def part_of(self, content: int, own: str | None = None) -> str:
        """The part of a document with this hash.

        `own` is the part that the document's data set says: "train", "val" or "test"; "train|val" or "val|test", if one
        of the three is missing in its split; None if it has no split.
        """
        if own is None:
            if content >= self.test_from:
                return "test"
            own = "train|val"
        if own == "train|val":
            return "val" if content < self.val_below else "train"
        if own == "val|test":
            return "val" if content < HASHES // 2 else "test"
        return own

    def widened(self, hashes: np.ndarray, sizes: np.ndarray) -> Ranges | None:
        """The ranges that give validation and test MIN_PART bytes each, and training a document; None if none do.

        They give up documents of their own only if training would have none. Only sets of few documents need this, and
        only in those can new documents move an old one (back to training).
        """
        distinct, places = np.unique(hashes, return_inverse=True)
        bytes_of = np.bincount(places, weights=sizes)
        low = int(np.searchsorted(np.cumsum(bytes_of), MIN_PART))
        high = len(distinct) - 1 - int(np.searchsorted(np.cumsum(bytes_of[::-1]), MIN_PART))
        if not low + 1 < high:
            return None
        narrow = Ranges(int(distinct[low]) + 1, int(distinct[high]))
        wide = Ranges(max(self.val_below, narrow.val_below), min(self.test_from, narrow.test_from))
        left = (distinct >= wide.val_below) & (distinct < wide.test_from)
        return wide if left.any() else narrow


def split_positions(characters: int, dataset: DatasetConfig) -> tuple[int, int]:
    """Where validation begins in one text of so many characters, and where test does (for nanoGPT: at the same place).

    nanoGPT's cut is its int(0.9 * n), in whole numbers. Raises UserError if the text is too short to be cut.
    """
    val, test = fractions(dataset)
    if dataset.split == "nanogpt":
        val, test = Fraction(1, 10), Fraction(0)
    starts = int(characters * (1 - val - test)), int(characters * (1 - test))
    if dataset.split == "nanogpt":
        starts = starts[0], starts[0]
    needed = math.ceil(MIN_PART / min(val, test or val))
    if characters < needed or not starts[0]:
        raise UserError(
            f"{dataset.path} has {characters:,} characters: validation and test need {MIN_PART} each, so at least "
            f"{needed:,} in all with dataset.val_fraction {float(val):g} and dataset.test_fraction "
            f"{float(test or val):g}; use a longer text, or larger fractions"
        )
    return starts


def split_note(metadata: dict[str, Any]) -> str | None:
    """What every output with numbers measured on this data must say; None for nothing."""
    return NANOGPT_NOTE if metadata.get("split") == "nanogpt" else None
