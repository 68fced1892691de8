"""Scores without a neural network: how well counts of tokens, or gzip, predict the test text.

They stand beside every loss. A model that is worse than the n-gram has not learnt, and one that is far better than any
text allows has seen the answers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nanokimi.data.batches import Mixture, shared_out

Text = TypeVar("Text", np.ndarray, bytes)

MAX_TRAINING_TOKENS = 20_000_000
"""The n-gram counts only so many training tokens, the last ones, because sorting them takes memory and time."""
GZIP_WINDOW_BYTES = 32 * 1024
"""How far back DEFLATE (RFC 1951) can look."""


def unigram_nats(train_ids: np.ndarray, val_ids: np.ndarray, vocab_size: int) -> float:
    """Return the total nats of `val_ids` under the training frequencies of tokens, each count plus one."""
    return float(-np.log(_unigram(train_ids, vocab_size)[val_ids]).sum())


def ngram_nats(
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    vocab_size: int,
    order: int = 5,
    report: Callable[[], None] = lambda: None,
    mixture: Mixture | None = None,
) -> float:
    """Return the total nats of `val_ids` under an interpolated Witten-Bell n-gram of `order` tokens.

    p_n(w|h) = (c(h,w) + T(h) p_{n-1}(w|h')) / (c(h) + T(h)), where h is the n-1 tokens before w, h' drops the
    oldest of them, c counts the last MAX_TRAINING_TOKENS of `train_ids`, and T(h) is how many different
    tokens followed h. p_1 is the add-one unigram, and for an h that is not in the training text p_n is p_{n-1}.
    The first validation tokens have the end of `train_ids` as context. `report` is called after each of the order - 1
    lengths of context. Of a `mixture`, c counts the last tokens of each text, as many as its share says: they stand one
    after another, so the end of all is the end of one.
    """
    if mixture is None:
        train_ids = train_ids[-MAX_TRAINING_TOKENS:]
    else:
        train_ids = np.concatenate(
            last_of(mixture.texts(train_ids), mixture.shares.tolist(), MAX_TRAINING_TOKENS)
        )
    before_val = train_ids[max(len(train_ids) - (order - 1), 0) :]
    tokens = np.concatenate([before_val, val_ids])
    probability = _unigram(train_ids, vocab_size)[tokens[len(before_val) :]]
    for counts, contexts in _count_orders(train_ids, tokens, len(before_val), vocab_size, order):
        known = contexts >= 0
        count, total, distinct = counts.look_up(contexts[known], tokens[len(before_val) :][known])
        probability[known] = (count + distinct * probability[known]) / (total + distinct)
        report()
    return float(-np.log(probability).sum())


def last_of(texts: Sequence[Text], shares: Sequence[float], limit: int) -> list[Text]:
    """Return the end of each text, in proportion to the shares and `limit` long together (see `shared_out`)."""
    sizes = shared_out(limit, [len(text) for text in texts], shares)
    return [text[len(text) - size :] for text, size in zip(texts, sizes, strict=True)]


def gzip_bits(train_bytes: bytes, val_bytes: bytes) -> int:
    """Return the bits that zlib at level 9 needs for `val_bytes` after the end of `train_bytes`."""
    seen = train_bytes[-GZIP_WINDOW_BYTES:]
    return 8 * (len(zlib.compress(seen + val_bytes, 9)) - len(zlib.compress(seen, 9)))


@dataclass(frozen=True)
class _Counts:
    """Counts of the tokens after each context of one length. Contexts are dense ids, keys context * vocab + token."""

    vocab_size: int
    keys: np.ndarray
    key_counts: np.ndarray
    totals: np.ndarray
    distinct: np.ndarray

    def look_up(self, contexts: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return c(h,w), c(h) and T(h) for pairs of a known context and any token."""
        place = _find(self.keys, contexts * self.vocab_size + tokens)
        count = np.where(place >= 0, self.key_counts[place], 0)
        return count, self.totals[contexts], self.distinct[contexts]


def _count_orders(
    train_ids: np.ndarray, tokens: np.ndarray, start: int, vocab_size: int, order: int
) -> Iterator[tuple[_Counts, np.ndarray]]:
    """Yield, for contexts of 1 to order - 1 tokens, the training counts and the contexts of tokens[start:].

    A context of k tokens is a pair of its k - 1 newest, as the dense id found before, and one older token. Dense
    ids keep context * vocab_size + token far below 2^63. A context that is not in the training text is -1.
    """
    train_contexts = np.zeros(len(train_ids), dtype=np.int64)
    contexts = np.zeros(len(tokens) - start, dtype=np.int64)
    positions = np.arange(start, len(tokens))
    for length in range(1, min(order, len(train_ids))):
        train_keys = train_contexts[1:] * vocab_size + train_ids[: len(train_ids) - length]
        context_keys, train_contexts = np.unique(train_keys, return_inverse=True)
        keys, key_counts = np.unique(train_contexts * vocab_size + train_ids[length:], return_counts=True)
        totals = np.bincount(train_contexts, minlength=len(context_keys))
        distinct = np.bincount(keys // vocab_size, minlength=len(context_keys))
        # An unknown context stays unknown: -1 makes the key negative, and no table has negative keys.
        contexts = _find(context_keys, contexts * vocab_size + tokens[positions - length])
        yield _Counts(vocab_size, keys, key_counts, totals, distinct), contexts


def _unigram(train_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.bincount(train_ids, minlength=vocab_size) + 1
    probabilities: np.ndarray = counts / counts.sum()
    return probabilities


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the index of each key in `sorted_keys`, or -1."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == keys, place, -1)
