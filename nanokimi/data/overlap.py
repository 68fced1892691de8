"""Which documents are the same, or nearly: splits by content, exact duplicates, and near duplicates across the split.

A document's side is decided by a hash of its text alone, so it never moves as data grows, and two copies are always
on the same side. Near duplicates (Jaccard similarity of word 5-grams of at least 0.8) may fall on both sides:
MinHash (Broder, 1997) with locality-sensitive banding proposes pairs, and the similarity is then computed exactly.

Only the validation side is held in memory, 20 numbers of 8 bytes and an index of 4 for each of its documents (about
240 bytes); training documents stream past it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE_WORDS = 5
THRESHOLD = 0.8
BANDS, ROWS = 20, 6
"""1 - (1 - s^6)^20: a pair at s = 0.8 is proposed with probability 0.998, one at 0.3 with 0.014."""
MAX_CANDIDATES = 64
"""Pairs checked for one training document, lowest index first, so that boilerplate cannot take quadratic time."""


def content_hash(text: bytes, purpose: bytes = b"split") -> int:
    """64 bits of BLAKE2b; a different `purpose` gives independent bits."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=purpose).digest(), "little")


def is_chosen(content: int, fraction: float) -> bool:
    """Whether a document with this hash belongs to the part of this size."""
    return content / 2**64 < fraction


def repeated(hashes: np.ndarray) -> int:
    """How many documents are copies of an earlier one."""
    return len(hashes) - len(np.unique(hashes))


def shingles(text: str) -> np.ndarray:
    """The distinct word 5-grams of a text as sorted 32-bit hashes; a shorter text is one shingle.

    CRC-32 of each word, mixed along the window by a polynomial over 2^64: two shingles of one corpus collide with
    probability 2^-32, which moves no similarity that matters.
    """
    words = np.array([zlib.crc32(word) for word in text.encode("utf-8", "replace").split()], dtype=np.uint64)
    count = max(len(words) - SHINGLE_WORDS + 1, 1)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SHINGLE_WORDS, len(words))):
        mixed = (mixed + words[offset : offset + count] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    distinct: np.ndarray = np.unique((mixed >> np.uint64(16)).astype(np.uint32))
    return distinct


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard: shared shingles over all shingles."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def band_keys(sets: Sequence[np.ndarray]) -> np.ndarray:
    """The band hashes of each shingle set, (sets, BANDS) uint64; similar sets share one with high probability."""
    generator = np.random.Generator(np.random.Philox(key=2107))
    multipliers = generator.integers(2**32, size=BANDS * ROWS, dtype=np.uint32) | np.uint32(1)
    shifts = generator.integers(2**32, size=BANDS * ROWS, dtype=np.uint32)
    rows = np.empty((len(sets), BANDS * ROWS), dtype=np.uint32)
    for place, one in enumerate(sets):
        low = np.full(BANDS * ROWS, 0xFFFFFFFF, dtype=np.uint32)
        for start in range(0, len(one), 4096):  # a book has millions of shingles
            hashed = multipliers[:, None] * one[None, start : start + 4096] + shifts[:, None]
            np.minimum(low, hashed.min(axis=1), out=low)
        rows[place] = low
    mixed: np.ndarray = np.tile(np.arange(BANDS, dtype=np.uint64), (len(sets), 1))
    for row in rows.reshape(len(sets), BANDS, ROWS).transpose(2, 0, 1):
        mixed = (mixed + row + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(32)
    return mixed


@dataclass(frozen=True)
class BandTable:
    """The bands of the validation documents, sorted, so that a band's documents are found by bisection."""

    keys: np.ndarray
    documents: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray) -> BandTable:
        """From the (documents, BANDS) keys."""
        order = np.argsort(keys.ravel(), kind="stable")
        return cls(keys.ravel()[order], (order // BANDS).astype(np.uint32))

    def candidates(self, keys: np.ndarray) -> list[tuple[int, list[int]]]:
        """(row, validation documents) for the rows of `keys` that share a band with any."""
        left = np.searchsorted(self.keys, keys.ravel(), side="left")
        right = np.searchsorted(self.keys, keys.ravel(), side="right")
        left, right = left.reshape(keys.shape), right.reshape(keys.shape)
        found = []
        for row in np.flatnonzero((right > left).any(axis=1)):
            spans = [
                self.documents[a : min(b, a + MAX_CANDIDATES)]
                for a, b in zip(left[row], right[row], strict=True)
                if b > a
            ]
            found.append((int(row), np.unique(np.concatenate(spans))[:MAX_CANDIDATES].tolist()))
        return found


def near_duplicates(
    texts: Iterable[tuple[int, str]], table: BandTable, validation_text: Callable[[int], str]
) -> list[int]:
    """The numbers of those (number, text) that are nearly the same as some validation document."""
    numbered = [(number, shingles(text)) for number, text in texts]
    if not numbered:
        return []
    sets = [one for _, one in numbered]
    return [
        numbered[row][0]
        for row, documents in table.candidates(band_keys(sets))
        if any(similarity(sets[row], shingles(validation_text(d))) >= THRESHOLD for d in documents)
    ]
