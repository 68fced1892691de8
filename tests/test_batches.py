"""Batches are a pure function of (seed, index); validation scores each token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.data.batches import iterate_validation, sample_batch, scored_windows


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


lengths = st.lists(st.integers(1, 70), min_size=1, max_size=12)


def rows(
    lengths: list[int] | None, tokens: int, context: int, batch: int
) -> dict[int, tuple[list[int], list[int], int]]:
    """By window: its inputs and targets without what it was filled up with, and how many of them do not count."""
    train, val = np.array([7, 8, 9_999], dtype=np.uint16), np.arange(tokens, dtype=np.uint16)
    offsets = None if lengths is None else np.cumsum([0, *lengths])
    windows = scored_windows(tokens, offsets, context)
    found = {}
    for one in iterate_validation(train, val, context, batch, offsets):
        assert one.inputs.dtype == one.targets.dtype == np.int64
        assert one.inputs.shape == one.targets.shape == one.counts.shape
        assert one.inputs.shape[1] == windows.widths[one.numbers].max(), "no column is filling only"
        assert one.inputs.size <= batch * context or len(one.numbers) == 1
        for number, inputs, targets, counts in zip(
            one.numbers, one.inputs, one.targets, one.counts, strict=True
        ):
            width, read = windows.widths[number], int(windows.scored[number] - windows.starts[number])
            assert counts.tolist() == [read <= place < width for place in range(len(counts))]
            assert int(number) not in found
            found[int(number)] = (inputs[:width].tolist(), targets[:width].tolist(), read)
    assert sorted(found) == list(range(len(windows)))
    return found


@settings(deadline=None)
@given(lengths, st.integers(1, 40), st.integers(1, 9))
def test_each_token_of_documents_is_a_target_once(lengths: list[int], context: int, batch: int) -> None:
    found = rows(lengths, sum(lengths), context, batch)
    scored = [token for number in sorted(found) for token in found[number][1][found[number][2] :]]
    assert scored == list(range(sum(lengths)))
    for inputs, targets, _ in found.values():
        assert inputs == [9_999 if token == 0 else token - 1 for token in targets] and len(inputs) <= context


@settings(deadline=None)
@given(lengths, st.integers(1, 40))
def test_windows_begin_with_documents_or_have_half_a_context_before(lengths: list[int], context: int) -> None:
    """A document that fits is one window of its own; of a longer one, a scored token has read more than half of T."""
    ends = np.cumsum([0, *lengths])
    windows = scored_windows(sum(lengths), ends, context)
    for start, scored, stop in zip(windows.starts, windows.scored, windows.stops, strict=True):
        document = int(np.searchsorted(ends, start, side="right")) - 1
        assert ends[document] <= start <= scored < stop <= ends[document + 1], "within one document"
        if scored == ends[document]:
            assert start == scored and stop - start == min(context, lengths[document])
        else:
            assert stop - start == context and scored - start + 1 > context / 2
    assert set(ends[:-1].tolist()) <= set(windows.scored.tolist())
    assert windows.tokens.sum() == sum(lengths) and (windows.widths <= context).all()
    whole = sum(min(length, context) + 2 * max(length - context, 0) + context for length in lengths)
    assert windows.widths.sum() <= whole, "what is read is bounded by twice what is scored and a window each"


def test_documents_that_are_empty_have_no_window() -> None:
    windows = scored_windows(5, np.array([0, 0, 3, 3, 5, 5]), 4)
    assert windows.starts.tolist() == [0, 3] and windows.stops.tolist() == [3, 5]


@settings(deadline=None)
@given(lengths, st.integers(1, 40))
def test_batch_size_of_validation_changes_no_window(lengths: list[int], context: int) -> None:
    for documents in (lengths, None):
        several = [rows(documents, sum(lengths), context, batch) for batch in (1, 3, 1000)]
        assert several[0] == several[1] == several[2]


def test_what_is_filled_up_is_little() -> None:
    """Windows of like length go together: of documents of 60 to 120 tokens, less than a twentieth is filling."""
    sizes = np.random.default_rng(0).integers(60, 121, 500)
    val, offsets = np.zeros(sizes.sum(), dtype=np.uint16), np.cumsum([0, *sizes])
    read = sum(one.inputs.size for one in iterate_validation(val, val, 128, 32, offsets))
    assert read < 1.05 * sizes.sum()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9))
def test_contiguous_text_is_cut_into_windows_that_do_not_overlap(
    length: int, context: int, batch: int
) -> None:
    train = np.array([7, 8, 9_999], dtype=np.uint16)
    val = np.arange(length, dtype=np.uint16)
    batches = list(iterate_validation(train, val, context, batch))
    assert np.concatenate([one.targets.ravel() for one in batches]).tolist() == list(range(length))
    inputs = np.concatenate([one.inputs.ravel() for one in batches])
    assert inputs.tolist() == [9_999, *range(length - 1)]
    full, rest = divmod(length, context)
    windows = [(batch, context)] * (full // batch) + ([(full % batch, context)] if full % batch else [])
    assert [one.targets.shape for one in batches] == windows + ([(1, rest)] if rest else [])
    assert all(one.counts.all() for one in batches)
