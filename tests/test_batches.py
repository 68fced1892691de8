"""Batches are a pure function of (seed, index); validation scores each token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.data.batches import iterate_validation, sample_batch


def draw(ids: np.ndarray, seed: int = 0, index: int = 0, batch: int = 8, context: int = 4) -> np.ndarray:
    """The inputs of a batch; over arange ids, its first column is the offsets."""
    return sample_batch(ids, seed=seed, index=index, batch_size=batch, context_length=context)[0]


def test_rows_are_windows_of_the_text_and_targets_come_one_later() -> None:
    ids = np.random.default_rng(0).permutation(1000).astype(np.uint16)
    inputs, targets = sample_batch(ids, seed=3, index=5, batch_size=50, context_length=7)
    assert inputs.dtype == targets.dtype == np.int64 and inputs.shape == targets.shape == (50, 7)
    where = {int(token): place for place, token in enumerate(ids)}
    for row, target in zip(inputs, targets, strict=True):
        start = where[int(row[0])]
        assert row.tolist() == ids[start : start + 7].tolist()
        assert target.tolist() == ids[start + 1 : start + 8].tolist()


def test_batch_depends_on_seed_and_index_and_nothing_else() -> None:
    ids = np.arange(100_000)
    first = draw(ids, seed=1, index=7)
    np.random.seed(0)
    draw(ids, seed=1, index=8)
    assert np.array_equal(first, draw(ids, seed=1, index=7))
    assert not np.array_equal(first, draw(ids, seed=2, index=7))
    assert not np.array_equal(first, draw(ids, seed=1, index=8))


def test_batches_do_not_overlap_as_random_streams() -> None:
    """With the index in a low counter word, batch i + 1 would repeat draws of batch i."""
    offsets = np.concatenate([draw(np.arange(2**40 // 2**20), index=i, batch=64)[:, 0] for i in range(200)])
    neighbours = [
        np.intersect1d(offsets[64 * i : 64 * i + 64], offsets[64 * i + 64 :][:64]) for i in range(199)
    ]
    assert sum(map(len, neighbours)) < 20


@pytest.mark.parametrize(("length", "context"), [(2, 1), (20, 4), (20, 19), (300, 250)])
def test_every_offset_is_drawn_about_equally(length: int, context: int) -> None:
    rows = [draw(np.arange(length), index=i, batch=500, context=context)[:, 0] for i in range(40)]
    counts = np.bincount(np.concatenate(rows))
    assert len(counts) == length - context, "offsets 0 to length - context - 1"
    expected = 20_000 / len(counts)
    assert abs(counts - expected).max() < 5 * expected**0.5 + 1


def test_text_without_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens hold no window of 4"):
        draw(np.arange(4), context=4)


def test_large_seed_and_index_work() -> None:
    assert draw(np.arange(1000), seed=2**63 - 1, index=2**40).shape == (8, 4)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9))
def test_each_validation_token_is_a_target_once(length: int, context: int, batch: int) -> None:
    train = np.array([7, 8, 9_999], dtype=np.uint16)
    val = np.arange(length, dtype=np.uint16)
    batches = list(iterate_validation(train, val, context, batch))
    assert np.concatenate([targets.ravel() for _, targets in batches]).tolist() == list(range(length))
    inputs = np.concatenate([inputs.ravel() for inputs, _ in batches])
    assert inputs.tolist() == [9_999, *range(length - 1)]
    shapes = [targets.shape for _, targets in batches]
    assert all(inputs.shape == targets.shape for inputs, targets in batches)
    full, rest = divmod(length, context)
    windows = [(batch, context)] * (full // batch) + ([(full % batch, context)] if full % batch else [])
    assert shapes == windows + ([(1, rest)] if rest else [])
    assert all(part.dtype == np.int64 for pair in batches for part in pair)


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 20))
def test_batch_size_of_validation_changes_no_window(length: int, context: int) -> None:
    train, val = np.array([5]), np.arange(100, 100 + length)

    def windows(batch: int) -> list[tuple[list[int], list[int]]]:
        rows = (zip(*pair, strict=True) for pair in iterate_validation(train, val, context, batch))
        return [(x.tolist(), y.tolist()) for batch_rows in rows for x, y in batch_rows]

    assert windows(1) == windows(3) == windows(1000)
