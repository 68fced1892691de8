"""Tokenizers lose nothing, decode anything, and come back from disk as they were."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanokimi.config import DatasetConfig
from nanokimi.data.encoding import encode_texts
from nanokimi.data.tokenizers import own as tokenizers
from nanokimi.data.tokenizers import words
from nanokimi.data.tokenizers.own import (
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)
from nanokimi.errors import UserError

Name = Literal["char", "byte", "bpe", "unigram"]
NAMES: tuple[Name, ...] = ("char", "byte", "bpe", "unigram")
TRICKY = (
    ["<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<0x41>", "\0", "\n", "\r", "\r\n", "\t", " ", "  ", "\u2581"]
    + [
        "\u2047",
        "\u2585",
        "\ufeff",
        "\ufffd",
        "\u200b",
        "\u200d",
        "\u3000",
        "\u00a0",
        "\u0085",
        "\u2028",
        "\u0301",
    ]
    + [
        "\U0001f468\u200d\U0001f469",
        "\U0010ffff",
        "\uffff",
        "\ud7ff",
        "\ue000",
        "e\u0301",
        "\u00e9",
        "the",
        "cat ",
    ]
)
hostile_text = st.lists(st.sampled_from(TRICKY) | st.text(max_size=5), max_size=20).map("".join)


def story() -> str:
    """Enough text for 310 pieces, with tricky strings in it for SentencePiece to learn wrongly."""
    rng = np.random.default_rng(0)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "sang",
        "loudly",
        "until",
        "moon",
        "rose",
        *TRICKY[:20],
    ]
    return "\n".join(" ".join(rng.choice(words, size=12)) for _ in range(600))


STORY = story()


def build(name: Name, text: str = STORY, vocab_size: int = 310) -> Tokenizer:
    dataset = DatasetConfig(tokenizer=name, vocab_size=vocab_size)
    return build_tokenizer(dataset, [text], len(text), documents=False)


BUILT = {name: build(name) for name in NAMES}


@pytest.fixture(params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return BUILT[request.param]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=hostile_text)
@example(text="")
@example(text="".join(TRICKY))
@example(text=" ".join(TRICKY[::-1]))
def test_every_text_survives(name: Name, text: str) -> None:
    tokenizer = BUILT[name]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert not len(ids) or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text


def test_every_character_survives(tokenizer: Tokenizer) -> None:
    text = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 400) | st.integers(-(2**40), 2**40)))
def test_any_ids_decode_to_valid_text(name: Name, ids: list[int]) -> None:
    assert BUILT[name].decode(ids).encode("utf-8") is not None


def test_id_beyond_the_vocabulary_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    known = tokenizer.encode("cat").tolist()
    for stray in (tokenizer.vocab_size, -1, 2**40):
        assert tokenizer.decode([*known, stray, *known]) == "cat\ufffdcat"


def test_half_a_character_becomes_the_replacement_character() -> None:
    emoji = "\U0001f600"
    for name in ("byte", "bpe", "unigram"):
        tokenizer = BUILT[name]
        ids = tokenizer.encode(emoji)
        assert tokenizer.decode(ids[:2]) == "\ufffd"
        assert tokenizer.decode([*ids[:2], *tokenizer.encode("cat")]) == "\ufffdcat"


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate 0xd83d.* position 2"):
        tokenizer.encode("ab\ud83d")


@pytest.mark.parametrize("name", ["char", "bpe", "unigram"])
def test_lone_surrogate_in_the_training_text_is_refused(name: Name) -> None:
    with pytest.raises(UserError, match="surrogate"):
        build(name, STORY + "\udc00")


def test_bytes_are_utf8() -> None:
    assert BUILT["byte"].encode("a\u00e9").tolist() == [0x61, 0xC3, 0xA9]
    assert BUILT["byte"].vocab_size == 256


def test_characters_are_sorted_and_one_id_is_added() -> None:
    tokenizer = build("char", "banana\n")
    assert tokenizer.vocab_size == 5
    assert tokenizer.encode("\nabn").tolist() == [0, 1, 2, 3]


def test_unknown_character_is_its_code_point_in_base_vocab_size() -> None:
    tokenizer = CharTokenizer("".join(chr(97 + i) for i in range(9)))
    assert tokenizer.vocab_size == 10
    expected = [1, 9, *(int(digit) for digit in f"{ord('z'):07d}"), 2]
    assert tokenizer.encode("bzc").tolist() == expected
    assert tokenizer.decode(expected) == "bzc"


@pytest.mark.parametrize("distinct", [1, 2, 9, 65, 102, 103, 300, 1055, 1056])
def test_escape_has_the_fewest_digits_that_reach_every_character(distinct: int) -> None:
    tokenizer = CharTokenizer("".join(chr(0x4E00 + i) for i in range(distinct)))
    for unknown in ("\0", "\U0010ffff"):
        ids = tokenizer.encode(unknown)
        assert len(ids) == 1 + math.ceil(math.log(0x110000, distinct + 1))
        assert tokenizer.decode(ids) == unknown


def test_broken_escape_is_one_replacement_character() -> None:
    tokenizer = CharTokenizer("abcdefghi")
    escape, digits = 9, 7
    surrogate = [int(digit) for digit in f"{0xD800:07d}"]
    assert tokenizer.decode([0, escape]) == "a\ufffd"
    assert tokenizer.decode([escape, 0, 0]) == "\ufffd"
    assert tokenizer.decode([escape, *[9] * digits, 1]) == "\ufffdb"
    assert tokenizer.decode([escape, *surrogate, 1]) == "\ufffdb"
    assert tokenizer.decode([escape, 0, 0, 0, 0, 1000, 0, 0, 1]) == "\ufffdb"


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_sentencepiece_shortens_text_and_writes_line_ends_as_one_token(name: Name) -> None:
    tokenizer = BUILT[name]
    assert tokenizer.vocab_size == 310
    text = "the cat sat on the mat and sang"
    assert len(tokenizer.encode(text)) < len(text) / 1.5
    assert len(tokenizer.encode("\n")) == 1
    lines = tokenizer.encode("the cat\nsat").tolist()
    assert lines == [*tokenizer.encode("the cat"), *tokenizer.encode("\n"), *tokenizer.encode("sat")]


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_training_again_gives_the_same_model(name: Name) -> None:
    first, second = BUILT[name], build(name)
    assert isinstance(first, SentencePieceTokenizer) and isinstance(second, SentencePieceTokenizer)
    assert first.model == second.model


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_very_long_lines_are_learnt_from(name: Name) -> None:
    """SentencePiece silently drops lines above 4192 bytes: a text without line ends would train nothing."""
    rng = np.random.default_rng(0)
    long_line = " ".join(rng.choice(["loudly", "singing", "moonlight"], size=2000))
    tokenizer = build(name, long_line + "\nx y z", vocab_size=285)
    assert len(tokenizer.encode(" loudly singing")) <= 10


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_impossible_vocabulary_names_one_that_works(name: Name) -> None:
    text = "the cat sat on the mat. " * 30 + "a dog ran to the old red barn. " * 30
    with pytest.raises(UserError, match="dataset.vocab_size 5000 is too large") as caught:
        build(name, text, vocab_size=5000)
    largest = int(str(caught.value).split("set it to ")[1].split()[0])
    assert build(name, text, vocab_size=largest).vocab_size == largest
    with pytest.raises(UserError, match="too large"):
        build(name, text, vocab_size=largest + 1)


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_vocabulary_below_the_characters_names_what_is_needed(name: Name) -> None:
    text = "\n".join("".join(chr(0x4E00 + i) for i in range(200)) for _ in range(20))
    with pytest.raises(UserError, match="dataset.vocab_size 300 is too small.* need 457"):
        build(name, text, vocab_size=300)


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_text_without_sentences_is_refused_quietly(name: Name, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=f"no {name} tokenizer can be trained"):
        build(name, "\n\n")
    build(name)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_huge_text_is_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(f"line {i}" for i in range(1000))
    assert len(list(tokenizers._training_sentences([text], len(text)))) == 1000
    monkeypatch.setattr(tokenizers, "MAX_TRAINING_CHARS", len(text) // 3)
    kept = list(tokenizers._training_sentences([text], len(text)))
    assert kept[:2] == ["line 0", "line 4"] and kept[-1] == "line 996" and len(kept) == 250


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["", "a", "b" * 7, "\n", "\0", "\u2581", "\n\n", "c" * 23]), max_size=30),
    st.integers(1, 9),
)
def test_thinning_takes_every_kth_sentence_of_all_texts(parts: list[str], stride: int) -> None:
    """However the text is cut into units at line ends, and lines longer than a sentence may be count as several."""
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "MAX_SENTENCE_CHARS", 10)
        patch.setattr(tokenizers, "MAX_TRAINING_CHARS", 100)
        kept = list(tokenizers._training_sentences(text.splitlines(keepends=True), (stride - 1) * 100))
    lines = re.split("[\n\0\u2581]", text)
    sentences = [line[start : start + 10] for line in lines for start in range(0, len(line), 10)]
    assert kept == sentences[::stride]


@settings(max_examples=200, deadline=None)
@given(st.lists(hostile_text, max_size=5), st.integers(1, 60))
@example(texts=["".join(TRICKY), "", " ", "  the", "the  cat ", "\n the\n\n  cat\n"], chunk=3)
def test_remembered_words_are_what_sentencepiece_says(texts: list[str], chunk: int) -> None:
    """bpe: of all texts at once, in chunks cut anywhere, with a memory that is full at any time."""
    tokenizer = BUILT["bpe"]
    assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.memo is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "CHUNK_BYTES", chunk)
        patch.setattr(words, "MEMO_BYTES", 20 * chunk)
        ids, counts = encode_texts(tokenizer, [text.encode() for text in texts] or [b""])
    expected = [tokenizer.encode_sentences(text) for text in texts or [""]]
    assert ids.dtype == np.int32 and np.array_equal(ids, np.concatenate(expected))
    assert counts.tolist() == [len(one) for one in expected]


def test_every_character_is_remembered_as_sentencepiece_says() -> None:
    """Each alone, after a letter, after a space, and between its neighbours in one word of a million characters."""
    tokenizer = BUILT["bpe"]
    assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.memo is not None
    points = [chr(point) for point in range(0, 0x110000, 17) if not 0xD800 <= point < 0xE000]
    for text in ("\n".join(points), "x".join(points), " ".join(points), "".join(points)):
        assert np.array_equal(tokenizer.encode(text), tokenizer.encode_sentences(text))


def test_pieces_across_words_are_not_remembered() -> None:
    """A model with a piece such as "of_the" merges across words; unigram rounds along the line: neither is cut."""
    assert words.words_are_independent(["a", "\u2581", "\u2581the", "<0x0A>"])
    assert not words.words_are_independent(["a", "of\u2581the"])
    assert not words.words_are_independent(["\u2581\u2581"])
    unigram = BUILT["unigram"]
    assert isinstance(unigram, SentencePieceTokenizer) and unigram.memo is None


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MEMO_BYTES", 100_000)
    monkeypatch.setattr(words, "CHUNK_BYTES", 1000)
    tokenizer = build("bpe")
    assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.memo is not None
    text = " ".join(f"word{number}" for number in range(20_000))
    assert np.array_equal(tokenizer.encode(text), tokenizer.encode_sentences(text))
    assert tokenizer.memo.held < 200_000 and len(tokenizer.memo.ids_of) < 1500


def test_saved_tokenizer_comes_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = STORY[:2000] + "".join(TRICKY) + "\u0416"
    assert (loaded.name, loaded.vocab_size) == (tokenizer.name, tokenizer.vocab_size)
    assert np.array_equal(loaded.encode(text), tokenizer.encode(text))
    everything = list(range(-1, tokenizer.vocab_size + 1))
    assert loaded.decode(everything) == tokenizer.decode(everything)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["schema_version"] == 1 and stored["type"] == tokenizer.name


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema_version": 2, "type": "byte"}', '{"schema_version": 1, "type": "words"}']
    + ['{"schema_version": 1, "type": "char"}', '{"schema_version": 1, "type": "char", "characters": ""}']
    + ['{"schema_version": 1, "type": "char", "characters": 7}']
    + ['{"schema_version": 1, "type": "char", "characters": "\\ud800"}'],
)
def test_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        load_tokenizer(tmp_path)


def test_missing_or_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)
    BUILT["bpe"].save(tmp_path)
    model = tmp_path / "tokenizer.model"
    for damaged in (b"", b"garbage", model.read_bytes()[:-100]):
        model.write_bytes(damaged)
        with pytest.raises(UserError, match="tokenizer.model is damaged"):
            load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match="tokenizer.model cannot be read"):
        load_tokenizer(tmp_path)
