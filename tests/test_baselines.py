"""Count-based scores against naive references with dictionaries."""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.data.batches import Mixture, shared_out
from nanokimi.measure import baselines
from nanokimi.measure.baselines import gzip_bits, last_of, ngram_nats, unigram_nats


def naive_probability(train: list[int], context: list[int], token: int, vocab_size: int) -> float:
    """Witten-Bell by its definition, with a fresh count for every context."""
    if not context:
        return (train.count(token) + 1) / (len(train) + vocab_size)
    lower = naive_probability(train, context[1:], token, vocab_size)
    n = len(context)
    followers = Counter(train[i] for i in range(n, len(train)) if train[i - n : i] == context)
    if not followers:
        return lower
    distinct = len(followers)
    return (followers[token] + distinct * lower) / (followers.total() + distinct)


def naive_nats(train: list[int], val: list[int], vocab_size: int, order: int) -> float:
    text, nats = train + val, 0.0
    for i in range(len(train), len(text)):
        context = text[max(i - order + 1, 0) : i]
        nats -= math.log(naive_probability(train, context, text[i], vocab_size))
    return nats


tokens = st.lists(st.integers(0, 3), max_size=40)


@settings(deadline=None)
@given(tokens.filter(len), tokens, st.integers(1, 6))
def test_ngram_is_the_naive_one(train: list[int], val: list[int], order: int) -> None:
    found = ngram_nats(np.array(train, dtype=np.uint16), np.array(val, dtype=np.uint16), 5, order)
    assert found == pytest.approx(naive_nats(train, val, 5, order), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(tokens.filter(len), tokens, st.integers(1, 6))
def test_ngram_probabilities_sum_to_one(train: list[int], before: list[int], order: int) -> None:
    """Score every possible next token after `before`: the probabilities of its nats must sum to 1."""
    prefix = ngram_nats(np.array(train), np.array(before, dtype=int), 5, order)
    total = sum(
        math.exp(prefix - ngram_nats(np.array(train), np.array([*before, token]), 5, order))
        for token in range(5)
    )
    assert total == pytest.approx(1)


def test_unigram_by_hand() -> None:
    nats = unigram_nats(np.array([0, 0, 1], dtype=np.uint16), np.array([0, 1, 2], dtype=np.uint16), 3)
    assert nats == pytest.approx(-math.log(3 / 6) - math.log(2 / 6) - math.log(1 / 6))


def test_order_one_is_the_unigram() -> None:
    rng = np.random.default_rng(0)
    train, val = rng.integers(0, 50, 1000), rng.integers(0, 60, 100)
    assert ngram_nats(train, val, 60, order=1) == pytest.approx(unigram_nats(train, val, 60))


def test_large_vocabulary_and_unsigned_ids_do_not_overflow() -> None:
    """Keys pair a context with a token: five of 100,000 would need 83 bits if contexts were not dense."""
    rng = np.random.default_rng(0)
    text = rng.choice([0, 1, 70_000, 99_998, 99_999], size=3000).astype(np.uint32)
    train, val = text[:2900], text[2900:]
    reference = naive_nats(train.tolist(), val.tolist(), 100_000, 5)
    assert ngram_nats(train, val, 100_000, 5) == pytest.approx(reference, rel=1e-9)


def test_long_training_text_counts_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train, val = rng.integers(0, 4, 200), rng.integers(0, 4, 50)
    monkeypatch.setattr(baselines, "MAX_TRAINING_TOKENS", 60)
    reference = naive_nats(train[-60:].tolist(), val.tolist(), 4, 5)
    assert ngram_nats(train, val, 4) == pytest.approx(reference)


def mixture_of(sizes: list[int], shares: list[float]) -> Mixture:
    return Mixture(np.cumsum([0, *sizes[:-1]]), np.array(sizes), np.array(shares))


def test_a_mixture_counts_the_end_of_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last text of a mixture was once all that was counted, and the 5-gram was worse than the unigram."""
    rng = np.random.default_rng(0)
    first = np.tile([0, 1, 2, 3, 4], 100)
    second = np.tile([5, 6, 7, 8, 9], 60)
    train = np.concatenate([rng.permutation(first), first, second])
    mixture = mixture_of([1000, 300], [0.5, 0.5])
    monkeypatch.setattr(baselines, "MAX_TRAINING_TOKENS", 200)
    test = np.concatenate([first[:100], second[:100]])
    found = ngram_nats(train, test, 10, mixture=mixture)
    counted = [*first[-100:].tolist(), *second[-100:].tolist()]
    assert found == pytest.approx(naive_nats(counted, test.tolist(), 10, 5))
    assert found < 0.1 * unigram_nats(train, test, 10)
    assert ngram_nats(train, test, 10) > unigram_nats(train, test, 10), (
        "which the borders of texts have mended"
    )


def test_a_mixture_below_the_limit_is_counted_whole() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 4, 200), rng.integers(0, 4, 50)
    mixture = mixture_of([150, 50], [0.1, 0.9])
    assert ngram_nats(train, test, 4, mixture=mixture) == ngram_nats(train, test, 4)


@pytest.mark.parametrize(
    ("limit", "sizes", "shares", "taken"),
    [
        (100, [1000, 1000], [0.5, 0.5], [50, 50]),
        (100, [1000, 1000, 1000], [0.6, 0.2, 0.2], [60, 20, 20]),
        (100, [1000, 10, 1000], [0.25, 0.5, 0.25], [45, 10, 45]),
        (100, [70, 10, 30], [0.3, 0.4, 0.3], [60, 10, 30]),
        (200, [70, 10, 30], [0.9, 0.05, 0.05], [70, 10, 30]),
        (0, [70, 10], [0.9, 0.1], [0, 0]),
    ],
)
def test_tokens_are_shared_out(limit: int, sizes: list[int], shares: list[float], taken: list[int]) -> None:
    assert shared_out(limit, sizes, shares) == taken


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0.001, 1)), min_size=1, max_size=6),
)
def test_no_text_gives_more_than_it_has_nor_less_than_its_share(
    limit: int, texts: list[tuple[int, float]]
) -> None:
    sizes, weights = zip(*texts, strict=True)
    taken = shared_out(limit, sizes, weights)
    assert sum(taken) == min(limit, sum(sizes))
    for got, size, weight in zip(taken, sizes, weights, strict=True):
        assert min(size, limit * weight / sum(weights)) - 1 <= got <= size or sum(sizes) < limit


def test_the_end_of_each_text_is_taken() -> None:
    assert last_of([b"abcdef", b"uvwxyz"], [0.25, 0.75], 4) == [b"f", b"xyz"]
    assert last_of([b"abcdef", b"uv"], [0.5, 0.5], 0) == [b"", b""]


def test_context_reaches_back_into_the_training_text() -> None:
    """After 0 1 came always 2: that is known only with the last training tokens as context."""
    train = np.array([0, 1, 2] * 50 + [0, 1])
    assert ngram_nats(train, np.array([2]), 3) < 0.1 < ngram_nats(train[:-1], np.array([2]), 3)


def test_ngram_learns_structure_that_the_unigram_cannot_see() -> None:
    text = np.tile(np.arange(20), 100)
    followers: dict[int, set[int]] = defaultdict(set)
    for before, after in zip(text, text[1:], strict=False):
        followers[int(before)].add(int(after))
    assert all(len(after) == 1 for after in followers.values())
    assert ngram_nats(text[:1800], text[1800:], 20) < 0.1 * unigram_nats(text[:1800], text[1800:], 20)


def test_gzip_pays_for_news_and_not_for_repetition() -> None:
    noise = np.random.default_rng(0).bytes(8000)
    seen, fresh = noise[:4000], noise[4000:]
    assert 8 * 3900 < gzip_bits(seen, fresh) < 8 * 4100
    assert gzip_bits(seen, seen) < 8 * 200
    assert gzip_bits(b"", fresh) == 8 * (len(zlib.compress(fresh, 9)) - len(zlib.compress(b"", 9)))


def test_gzip_sees_only_the_last_window_of_the_training_text() -> None:
    noise = np.random.default_rng(0).bytes(40_000)
    assert gzip_bits(noise, noise[:4000]) > 8 * 3900
    assert gzip_bits(b"x" * 10_000_000 + noise[:20_000], noise[:4000]) < 8 * 300
