"""Splits that never move, and near duplicates found as a naive comparison of all pairs finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import DatasetConfig
from nanokimi.data import overlap
from nanokimi.data.corpus import Corpus, read_source
from nanokimi.data.documents import Document
from nanokimi.data.overlap import (
    THRESHOLD,
    BandTable,
    SeenShingles,
    band_keys,
    content_hash,
    is_chosen,
    near_duplicates,
    repeated,
    shingle_sets,
    shingles,
    similarity,
)
from nanokimi.data.parts import HASHES, PARTS, Ranges
from nanokimi.data.sources import Source
from nanokimi.errors import UserError

HASH_OF_NANOKIMI, FIRST_BAND = 11537591145596966607, 9895071679649054693


def words(seed: int, count: int = 60) -> list[str]:
    generator = np.random.default_rng(seed)
    return [f"w{number}" for number in generator.integers(0, 4000, count)]


def naive_similarity(first: str, second: str) -> float:
    """Jaccard over Python's own sets of word tuples."""
    sets = []
    for text in (first, second):
        split = text.split()
        sets.append({tuple(split[i : i + 5]) for i in range(max(len(split) - 4, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def read(texts: list[str], folder: Path, **settings: float) -> Corpus:
    source = Source({}, documents=lambda: iter([Document(text) for text in texts]))
    return read_source(source, DatasetConfig(path="some", **settings), folder, lambda done: None)  # type: ignore[arg-type]


def sides(corpus: Corpus) -> dict[str, str]:
    return {text: part for part in PARTS for _, text in corpus.units(part)}


TEXTS = [f"document number {i}" for i in range(200)]
LONG = [f"document number {i}, " + " ".join(words(i, 30)) for i in range(200)]


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(LONG),
    st.integers(60, 200),
    st.sampled_from([0.1, 0.3]),
    st.sampled_from([None, 0.15, 0.4]),
)
def test_more_documents_never_move_one(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], count: int, val: float, test: float | None
) -> None:
    """Every document is in exactly one part, wherever it stands and whatever comes beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    shares = {"val_fraction": val} if test is None else {"val_fraction": val, "test_fraction": test}
    few, many = read(texts[:count], folder / "few", **shares), read(texts, folder / "many", **shares)
    assert "split_widened" not in few.metadata
    assert sum(len(few.hashes(part)) for part in PARTS) == count == len(sides(few))
    assert sides(few).items() <= sides(many).items()
    assert sorted(sides(many)) == sorted(texts)


def test_neither_fraction_moves_a_document_between_the_other_parts(tmp_path: Path) -> None:
    """What is reported stays the same text when more is set aside for tuning, and the other way round."""
    plain = sides(read(LONG, tmp_path / "a", val_fraction=0.1, test_fraction=0.2))
    more_val = sides(read(LONG, tmp_path / "b", val_fraction=0.4, test_fraction=0.2))
    more_test = sides(read(LONG, tmp_path / "c", val_fraction=0.1, test_fraction=0.5))
    for one, moved, kept in ((more_val, "val", "test"), (more_test, "test", "val")):
        assert {t for t in LONG if one[t] == kept} == {t for t in LONG if plain[t] == kept}
        changed = {(plain[t], one[t]) for t in LONG if one[t] != plain[t]}
        assert changed == {("train", moved)}


@given(st.integers(0, HASHES - 1), st.floats(1e-6, 0.5), st.floats(1e-6, 0.49))
def test_a_hash_is_in_one_range(content: int, val: float, test: float) -> None:
    ranges = Ranges.of(DatasetConfig(val_fraction=val, test_fraction=test))
    assert ranges.val_below <= ranges.test_from
    below, above = content / HASHES < val, 1 - content / HASHES <= test
    if abs(content / HASHES - val) > 1e-12 and abs(1 - content / HASHES - test) > 1e-12:
        assert ranges.part_of(content) == ("val" if below else "test" if above else "train")
    assert ranges.part_of(content, "train|val") == ("val" if content < ranges.val_below else "train")
    assert ranges.part_of(content, "val|test") == ("val" if content < HASHES // 2 else "test")
    assert [ranges.part_of(content, part) for part in PARTS] == list(PARTS)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=3, max_size=12))
def test_few_documents_give_one_each_to_validation_and_test(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[int]
) -> None:
    """A text of a few kilobytes works; the lowest hashes validate, the highest test, and none is in two parts."""
    texts = [f"{number} " + " ".join(words(number, 40)) for number in sorted(numbers)]
    corpus = read(texts, tmp_path_factory.mktemp("few") / "c")
    found = sides(corpus)
    by_hash = sorted(texts, key=lambda text: content_hash(text.encode()))
    places = [PARTS.index(found[text]) for text in by_hash]
    order = [(1, 0, 2)[place] for place in places]  # val, train, test
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert corpus.metadata["documents"] == len(texts) == len(found)


def test_small_documents_are_added_until_there_are_a_hundred_bytes(tmp_path: Path) -> None:
    corpus = read(TEXTS[:40], tmp_path / "c", val_fraction=0.01)
    assert corpus.metadata["split_widened"]
    for part in ("val", "test"):
        sizes = np.diff(np.array(corpus.offsets(part)).astype(int))
        assert sizes.sum() >= 100 > sizes.sum() - sizes.min()


def test_the_split_has_its_size_and_the_fraction_is_independent_of_it(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(20_000)]
    hashes = [content_hash(text.encode()) for text in texts]
    assert abs(sum(is_chosen(h, 0.1) for h in hashes) - 2000) < 4 * 45
    half = read(texts, tmp_path / "half", fraction=0.5)
    sizes = {part: len(half.hashes(part)) for part in PARTS}
    assert abs(sizes["train"] - 8000) < 4 * 70
    assert abs(sizes["val"] - 1000) < 4 * 31 and abs(sizes["test"] - 1000) < 4 * 31
    assert half.metadata["documents_left_out"] == 20_000 - half.metadata["documents"]
    tenth = sides(read(texts, tmp_path / "tenth", fraction=0.1))
    assert tenth.items() <= sides(half).items(), "a smaller fraction is part of a larger one"


def test_copies_are_on_one_side_and_counted(tmp_path: Path) -> None:
    corpus = read([*TEXTS, *TEXTS, TEXTS[0], "  \n", ""], tmp_path / "c")
    assert sides(corpus) == sides(read(TEXTS, tmp_path / "d"))
    assert sum(corpus.metadata[f"duplicates_in_{part}"] for part in PARTS) == 201
    assert corpus.metadata["documents_empty"] == 2
    assert repeated(np.array([3, 3, 3, 1], dtype=np.uint64)) == 2


def test_a_side_without_documents_is_refused(tmp_path: Path) -> None:
    message = "some has no document to .*of 2 documents, 0 are empty.*use more documents"
    with pytest.raises(UserError, match=message) as caught:
        read(LONG[:2], tmp_path / "c")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="some has no document to .*of 3 documents, 0 are empty"):
        read(["too", "short", "for a score"], tmp_path / "e")
    with pytest.raises(UserError, match="no document to train on.*of 2 documents, 2 are empty"):
        read(["", " "], tmp_path / "d")


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="document 2 of some .*surrogate 0xd800.* position 1"):
        read(["fine", "a\ud800"], tmp_path / "c")


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(1, 70))
def test_similarity_is_that_of_python_sets(seed: int, changes: int, count: int) -> None:
    first = words(seed, count)
    second = list(first)
    for place in np.random.default_rng(seed + 1).integers(0, count, changes):
        second[place] = "other"
    texts = " ".join(first), " \n".join(second)
    assert similarity(shingles(texts[0]), shingles(texts[1])) == pytest.approx(naive_similarity(*texts))


@settings(deadline=None)
@given(
    st.lists(
        st.text(alphabet="ab \n\u00e9\u2003", max_size=40) | st.just("a b c d e f a b c d e f"), min_size=1
    )
)
def test_many_texts_at_once_have_the_shingles_of_each(texts: list[str]) -> None:
    found = shingle_sets([text.encode() for text in texts])
    for one, text in zip(found.each(), texts, strict=True):
        assert one.dtype == np.uint32 and np.array_equal(one, shingles(text))


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1), st.integers(0, 10**6), st.sampled_from([1 << 10, 1 << 29]))
def test_the_bitmap_never_denies_a_shingle(sizes: list[int], seed: int, limit: int) -> None:
    """Its share is never below the true one, however full it is, and near it if it may be large enough."""
    texts = [" ".join(words(seed + i, size)) for i, size in enumerate(sizes)]
    held = [shingles(text) for text in texts[::2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "MAX_BITS", limit)
        seen = SeenShingles.build(held, sum(map(len, held)))
    shares = seen.shares(shingle_sets([text.encode() for text in texts]))
    true = [np.isin(shingles(text), np.concatenate(held)).mean() for text in texts]
    assert (shares >= true).all()
    strangers = shingle_sets([" ".join(words(seed + 10**7, 3000)).encode()])
    assert limit == 1 << 10 or seen.shares(strangers)[0] < 0.3


def test_near_duplicates_are_those_of_all_pairs() -> None:
    """300 documents, each changed by 0 to 5 words: what is removed is what comparing every pair would remove."""
    originals = [words(seed, 150) for seed in range(300)]
    validation = [" ".join(one) for one in originals]
    training = []
    for number, one in enumerate(originals):
        changed = list(one)
        for place in np.random.default_rng(number).choice(150, number % 6, replace=False):
            changed[place] = "changed"
        training.append((number, " ".join(changed)))
    training += [(1000 + seed, " ".join(words(5000 + seed, 150))) for seed in range(300)]
    numbers, texts = zip(*((n, t.encode()) for n, t in training), strict=True)
    table = BandTable.build(band_keys([shingles(text) for text in validation]))
    found = near_duplicates(numbers, texts, table, validation.__getitem__)
    sets = [shingles(text) for text in validation]
    seen = SeenShingles.build(sets, sum(map(len, sets)))
    assert near_duplicates(numbers, texts, table, validation.__getitem__, seen) == found
    expected = [n for n, t in training if n < 1000 and naive_similarity(t, validation[n]) >= THRESHOLD]
    assert found == expected and 100 < len(found) < 290


def test_a_proposal_at_the_threshold_is_nearly_certain() -> None:
    """Of 400 pairs at a similarity of 0.8 to 0.82, the bands propose at least 98%; of unrelated ones hardly any."""
    proposed = pairs = 0
    for seed in range(400):
        first = shingles(" ".join(words(seed, 220)))
        shared = int(len(first) * 0.9)
        second = np.sort(np.concatenate([first[:shared], first[shared:] ^ np.uint32(12345)]))
        assert 0.79 < similarity(first, second) < 0.83
        keys = band_keys([first, second])
        proposed += bool((keys[0] == keys[1]).any())
        pairs += 1
    assert proposed >= 0.98 * pairs
    strangers = band_keys([shingles(" ".join(words(seed))) for seed in range(200)])
    assert len(np.unique(strangers)) == strangers.size


def test_very_short_documents_are_compared_whole() -> None:
    table = BandTable.build(band_keys([shingles("one two"), shingles("three")]))
    texts = ["one two", "three"]
    new = [b"one two", b"two one", b"three four", b"three"]
    assert near_duplicates([7, 8, 9, 10], new, table, texts.__getitem__) == [7, 10]
    assert near_duplicates([], [], table, texts.__getitem__) == []


def test_boilerplate_is_checked_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_CANDIDATES", 3)
    same = shingles("the same few words again and again")
    table = BandTable.build(band_keys([same] * 50))
    ((row, candidates),) = table.candidates(band_keys([same]))
    assert (row, candidates) == (0, [0, 1, 2])


def test_hashes_are_the_same_everywhere() -> None:
    """Frozen: another value would move documents of every cached data set to the other side."""
    assert content_hash(b"nanokimi") == HASH_OF_NANOKIMI
    assert int(band_keys([shingles("a b c d e f g")])[0, 0]) == FIRST_BAND
