"""SentencePiece's bpe through a dictionary of words, because the ids of a word depend on the word alone.

A bpe model merges neighbouring pieces, the best pair first, and the leftmost of equal ones. If no piece holds the mark
of a space after its first character, no merge crosses the beginning of a word, and the merges within one word do not
depend on the others: the ids of a line are exactly the ids of its words, concatenated. This does not hold for unigram,
which adds up scores along the line in single precision: rounding may decide between two ways to cut the same word.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SPACE_MARK = "\u2581"
"""What SentencePiece writes for a space."""
CUT, END = b"\xff", b"\xfe"
"""Mark the ends of words and of texts: bytes that UTF-8 never contains."""
CHUNK_BYTES = 1 << 18
"""Bytes of text that are cut into words at a time (not tuned; more would not fit the processor's cache)."""
MEMO_BYTES = 1 << 25
"""About the most bytes that are kept; then the dictionary starts afresh, and frequent words soon return."""
ENTRY_BYTES = 160
"""Bytes of an entry besides its characters and ids: two bytes objects, and its place in the dictionary."""
CUTTABLE = re.compile(b"[ \n]")


def words_are_independent(pieces: Sequence[str]) -> bool:
    """Whether no piece reaches from one word into the next."""
    return not any(SPACE_MARK in piece[1:] for piece in pieces)


class WordMemo:
    """A bpe `processor` and a dictionary of the words that it has encoded; `fixed` are the ids of separators."""

    def __init__(self, processor: Any, fixed: dict[bytes, list[int]]) -> None:
        self.processor = processor
        self.separators = list(fixed)
        self.end = processor.vocab_size()
        known = {END: [self.end], b"": [], **fixed}
        self.fixed = {word: array("i", ids).tobytes() for word, ids in known.items()}
        self._forget()

    def _forget(self) -> None:
        # A new dictionary and not an emptied one, because another thread may be using the old one.
        self.ids_of, self.held = dict(self.fixed), 0

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of UTF-8 `texts`, concatenated, int32, and how many of them each text has."""
        data = END.join([*texts, b""])
        ids = np.concatenate([self._encode(chunk) for chunk in _chunks(data)])
        is_end = ids == self.end
        return ids[~is_end], np.diff(np.flatnonzero(is_end), prepend=-1) - 1

    def _encode(self, data: bytes) -> np.ndarray:
        for separator in (*self.separators, END):
            data = data.replace(separator, CUT + separator + CUT)
        words = data.replace(b" ", CUT + b" ").split(CUT)
        if self.held > MEMO_BYTES:
            self._forget()
        ids_of = self.ids_of
        if unseen := list(set(words).difference(ids_of)):
            for word, ids in zip(unseen, self.processor.encode(unseen, num_threads=1), strict=True):
                ids_of[word] = array("i", ids).tobytes()
                self.held += len(word) + 4 * len(ids) + ENTRY_BYTES
        return np.frombuffer(b"".join(map(ids_of.__getitem__, words)), dtype=np.int32)


def _chunks(data: bytes) -> Iterator[bytes]:
    """Cut text into pieces of about CHUNK_BYTES where words begin."""
    start = 0
    while found := CUTTABLE.search(data, start + CHUNK_BYTES):
        yield data[start : found.start()]
        start = found.start()
    yield data[start:]
