"""Splits by content, exact duplicates, and near duplicates across the split.

A document's part is decided by a hash of its text alone (see `parts`), so two copies are always in the same one. Near
duplicates (Jaccard similarity of word 5-grams of at least 0.8) may fall on both sides of a split:
MinHash (Broder, 1997) with locality-sensitive banding proposes pairs, and the similarity is then computed exactly.

Only held-out documents (validation and test) are indexed in memory: 20 numbers of 8 bytes and an index of 4 for each
(about 240 bytes), and some bits for each of their shingles. Training documents stream past them. A training document
with less than 0.8 of its shingles in held-out documents cannot be a near duplicate: a bitmap of all held-out shingles
shows that, so most training documents need no MinHash.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHINGLE_WORDS = 5
THRESHOLD = 0.8
BANDS, ROWS = 20, 6
"""1 - (1 - s^6)^20: a pair at s = 0.8 is proposed with probability 0.998, one at 0.3 with 0.014."""
MAX_CANDIDATES = 64
"""Pairs checked for one training document, lowest index first, so that boilerplate cannot take quadratic time."""
BITS_PER_SHINGLE = 4
"""The bitmap has at least so many, so an absent shingle is taken for a present one with probability below 1/4."""
MAX_BITS = 1 << 29
"""64 MB: with more than 130 million shingles the bitmap fills up and excludes fewer, which only costs time."""
MIX = np.uint64(0x9E3779B97F4A7C15)


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
    probability 2^-32, too rarely to change a similarity noticeably.
    """
    words = np.array([zlib.crc32(word) for word in text.encode("utf-8", "replace").split()], dtype=np.uint64)
    count = max(len(words) - SHINGLE_WORDS + 1, 1)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SHINGLE_WORDS, len(words))):
        mixed = (mixed + words[offset : offset + count] + np.uint64(1)) * MIX
        mixed ^= mixed >> np.uint64(29)
    distinct: np.ndarray = np.unique((mixed >> np.uint64(16)).astype(np.uint32))
    return distinct


class ShingleSets(NamedTuple):
    """The concatenated shingles of many texts, and where each text's begin."""

    hashes: np.ndarray
    starts: np.ndarray

    def each(self) -> list[np.ndarray]:
        """One array for each text."""
        return np.split(self.hashes, self.starts[1:])


def shingle_sets(texts: Sequence[bytes]) -> ShingleSets:
    """`shingles` of many texts at once, with the same hashes, in a few passes over all their words."""
    words_of = [text.split() for text in texts]
    counts = np.array([len(words) for words in words_of])
    total = int(counts.sum())
    crcs = np.zeros(total + SHINGLE_WORDS, dtype=np.uint64)
    crcs[:total] = np.fromiter(map(zlib.crc32, itertools.chain.from_iterable(words_of)), np.uint64, total)
    mixed = np.zeros(total, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        mixed += crcs[offset : offset + total] + np.uint64(1)
        mixed *= MIX
        mixed ^= mixed >> np.uint64(29)
    # Windows that reach into the next text are dropped; the text's number above the hash keeps texts apart.
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
    inside = np.repeat(np.cumsum(counts), counts) - np.arange(total) >= SHINGLE_WORDS
    keys = (owners << np.uint64(32) | (mixed >> np.uint64(16)) & np.uint64(0xFFFFFFFF))[inside]
    short = [
        shingles(texts[i].decode("utf-8")).astype(np.uint64) | np.uint64(i << 32)
        for i in np.flatnonzero(counts < SHINGLE_WORDS).tolist()
    ]
    keys = np.sort(np.concatenate([keys, *short]))
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    starts = np.searchsorted(keys, np.arange(len(texts), dtype=np.uint64) << np.uint64(32))
    return ShingleSets(keys.astype(np.uint32), starts)


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
    """The bands of the held-out documents, sorted, so that bisection finds a band's documents."""

    keys: np.ndarray
    documents: np.ndarray

    @classmethod
    def build(cls, keys: np.ndarray) -> BandTable:
        """From the (documents, BANDS) keys."""
        order = np.argsort(keys.ravel(), kind="stable")
        return cls(keys.ravel()[order], (order // BANDS).astype(np.uint32))

    def candidates(self, keys: np.ndarray) -> list[tuple[int, list[int]]]:
        """(row, held-out documents) for the rows of `keys` that share a band with any."""
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


@dataclass(frozen=True)
class SeenShingles:
    """A bitmap (Bloom filter with one hash) of the shingles of all held-out documents: it has false positives only."""

    bits: np.ndarray

    @classmethod
    def build(cls, blocks: Iterable[np.ndarray], count: int) -> SeenShingles:
        """Build it from blocks of about `count` hashes in all."""
        size = min(max(1 << (BITS_PER_SHINGLE * count - 1).bit_length(), 1 << 10), MAX_BITS)
        bits = np.zeros(size // 8, dtype=np.uint8)
        for block in blocks:
            slots = block & np.uint32(size - 1)
            np.bitwise_or.at(bits, slots >> 3, np.left_shift(1, slots & 7).astype(np.uint8))
        return cls(bits)

    def shares(self, sets: ShingleSets) -> np.ndarray:
        """The share of each text's shingles that are present, or an upper bound of it."""
        slots = sets.hashes & np.uint32(8 * len(self.bits) - 1)
        found = (self.bits[slots >> 3] >> (slots & 7).astype(np.uint8)) & 1
        sizes = np.diff(sets.starts, append=len(sets.hashes))
        shares: np.ndarray = np.add.reduceat(found, sets.starts, dtype=np.int64) / sizes
        return shares


def near_duplicates(
    numbers: Sequence[int],
    texts: Sequence[bytes],
    table: BandTable,
    held_out_text: Callable[[int], str],
    seen: SeenShingles | None = None,
) -> list[int]:
    """Those `numbers` whose UTF-8 texts nearly repeat a held-out document; `seen` only saves time."""
    if not texts:
        return []
    found = shingle_sets(texts)
    # Jaccard is shared / all <= shared / own, and rounding keeps that order.
    possible = range(len(texts)) if seen is None else np.flatnonzero(seen.shares(found) >= THRESHOLD).tolist()
    if not possible:
        return []
    each = found.each()
    sets = [each[place] for place in possible]
    return [
        numbers[possible[row]]
        for row, documents in table.candidates(band_keys(sets))
        if any(similarity(sets[row], shingles(held_out_text(d))) >= THRESHOLD for d in documents)
    ]
