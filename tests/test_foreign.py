"""Tokenizers made elsewhere: used as they are, checked for size, measured for loss."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers as library
from conftest import make_text

from nanokimi.config import DatasetConfig
from nanokimi.config.files import load_config
from nanokimi.data.store import as_validation_text, open_prepared, prepare
from nanokimi.data.tokenizers.foreign import SentencePieceModel, TokenizersTokenizer, read_foreign
from nanokimi.data.tokenizers.own import load_tokenizer
from nanokimi.errors import UserError
from nanokimi.runtime.extras import how_to_install

END = "<|endoftext|>"
TEXT = make_text(20_000)


def byte_level(
    path: Path, special: list[str] | None = None, lower: bool = False, vocab_size: int = 300
) -> Path:
    """A GPT-2-like tokenizer.json."""
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    if lower:
        tokenizer.normalizer = library.normalizers.Lowercase()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special or [],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.save(str(path))
    return path


def sentencepiece_model(path: Path, byte_fallback: bool = False, vocab_size: int = 400) -> Path:
    """A model with SentencePiece's own defaults: NFKC, a dummy space in front, spaces merged."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXT + "".join(map(chr, range(0x4E00, 0x4F00)))).splitlines()),
        model_writer=model,
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture
def documents(tmp_path: Path) -> DatasetConfig:
    path = tmp_path / "stories.txt"
    stories = [f"Story {i}.\n" + make_text(200, seed=i).strip() for i in range(100)]
    path.write_text(f"\n{END}\n".join(stories))
    return DatasetConfig(path=str(path), workers=1)


def test_tokenizer_json_gives_the_librarys_ids(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "tokenizer.json")
    ours, theirs = read_foreign(path), library.Tokenizer.from_file(str(path))
    for text in (TEXT[:500], "caf\u00e9 \U0001f600\r\n", "", " "):
        ids = ours.encode(text)
        assert ids.dtype == np.int32 and ids.tolist() == theirs.encode(text).ids
        assert ours.decode(ids) == text
    assert ours.vocab_size == 300 and ours.end_of_text_id is None


def test_its_own_end_of_text_is_used_and_never_read_out_of_a_text(tmp_path: Path) -> None:
    ours = read_foreign(byte_level(tmp_path / "tokenizer.json", special=["<pad>", END]))
    assert ours.end_of_text_id == 1
    ids = ours.encode(f"a{END}b<pad>")
    assert 1 not in ids and 0 not in ids and ours.decode(ids) == f"a{END}b<pad>"
    assert ours.decode([1]) == END


def test_sentencepiece_model_gives_the_librarys_ids(tmp_path: Path) -> None:
    path = sentencepiece_model(tmp_path / "m.model", byte_fallback=True, vocab_size=700)
    ours = read_foreign(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert isinstance(ours, SentencePieceModel) and ours.vocab_size == theirs.vocab_size()
    for text in (TEXT[:500], "caf\u00e9", ""):
        assert ours.encode(text).tolist() == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize("kind", ["json", "model"])
def test_any_id_decodes_and_stray_ones_become_the_replacement_character(tmp_path: Path, kind: str) -> None:
    make = byte_level if kind == "json" else sentencepiece_model
    ours = read_foreign(make(tmp_path / f"t.{kind}"))
    known = ours.encode("the cat").tolist()
    text = ours.decode(known)
    for stray in (-1, ours.vocab_size, 2**40):
        assert ours.decode([*known, stray, *known]) == f"{text}\ufffd{text}"
    assert ours.decode(range(ours.vocab_size)).encode() is not None
    with pytest.raises(UserError, match="surrogate"):
        ours.encode("a\ud800")


@pytest.mark.parametrize("kind", ["json", "model"])
def test_saved_with_the_data_it_comes_back(tmp_path: Path, documents: DatasetConfig, kind: str) -> None:
    make = byte_level if kind == "json" else sentencepiece_model
    path = make(tmp_path / f"t.{kind}")
    data = prepare(DatasetConfig(path=documents.path, tokenizer=str(path), workers=1), tmp_path / "out", 8)
    path.unlink()
    again = open_prepared(tmp_path / "out").tokenizer
    assert (again.name, again.vocab_size) == (data.tokenizer.name, data.tokenizer.vocab_size)
    assert again.vocab_size == read_foreign(make(path)).vocab_size + 1 and again.end_of_text_id is not None
    assert np.array_equal(again.encode(TEXT), data.tokenizer.encode(TEXT))
    for damaged in (b"", b"garbage"):
        stored = "tokenizer.foreign.json" if kind == "json" else "tokenizer.model"
        (tmp_path / "out" / stored).write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_tokenizer(tmp_path / "out")


def test_an_end_of_text_of_its_own_adds_no_id(tmp_path: Path, documents: DatasetConfig) -> None:
    path = byte_level(tmp_path / "tokenizer.json", special=[END])
    data = prepare(DatasetConfig(path=documents.path, tokenizer=str(path), workers=1), tmp_path / "out", 8)
    assert data.tokenizer.vocab_size == 300 and data.metadata["end_of_text_id"] == 0
    assert (np.asarray(data.train_ids) == 0).sum() == data.metadata["train_documents"]


def test_what_is_lost_is_measured_and_said(
    tmp_path: Path, documents: DatasetConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    lossless = byte_level(tmp_path / "a.json")
    data = prepare(DatasetConfig(path=documents.path, tokenizer=str(lossless), workers=1), tmp_path / "a", 8)
    assert data.metadata["changed_by_tokenizer"] == 0 and capsys.readouterr().err == ""
    lossy = byte_level(tmp_path / "b.json", lower=True)
    data = prepare(DatasetConfig(path=documents.path, tokenizer=str(lossy), workers=1), tmp_path / "b", 8)
    assert data.metadata["changed_by_tokenizer"] == data.metadata["units_encoded"] == 100
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "warning" in error and "does not give back 100 of 100 texts" in error
    own = prepare(documents, tmp_path / "c", 8)
    assert "changed_by_tokenizer" not in own.metadata


def test_what_is_lost_of_another_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own text may be one that the tokenizer gives back, and the text that is scored another one."""
    tokenizer = byte_level(tmp_path / "t.json", lower=True)
    pieces = [TEXT[start : start + 200].lower() for start in range(0, len(TEXT), 200)]
    records = [json.dumps({"text": piece}) for piece in pieces]
    (tmp_path / "low.jsonl").write_text("\n".join(records) + "\n")
    (tmp_path / "mixed.jsonl").write_text(
        "\n".join([records[0], '{"text": "ONE"}', '{"text": "Two"}']) + "\n"
    )
    dataset = DatasetConfig(path=str(tmp_path / "low.jsonl"), tokenizer=str(tokenizer), workers=1)
    data = prepare(dataset, tmp_path / "out", 8)
    assert data.metadata["changed_by_tokenizer"] == 0
    capsys.readouterr()
    as_validation_text(data, str(tmp_path / "low.jsonl"))
    assert capsys.readouterr().err == ""
    as_validation_text(data, str(tmp_path / "mixed.jsonl"))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "warning" in error and "does not give back 2 of 3 texts" in error


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    for name, what in (("t.json", "not a tokenizer.json"), ("t.model", "not a SentencePiece model")):
        path = tmp_path / name
        with pytest.raises(UserError, match="cannot be read"):
            read_foreign(path)
        for content in (b"", b"{}", b"garbage \xff"):
            path.write_bytes(content)
            with pytest.raises(UserError, match=what) as caught:
                read_foreign(path)
            assert "\n" not in str(caught.value)


def test_sizes_out_of_range_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = sentencepiece_model(tmp_path / "s.model", vocab_size=400)
    monkeypatch.setattr("nanokimi.data.tokenizers.foreign.MIN_PIECES", 100_000)
    with pytest.raises(UserError, match="pieces: expected 100000 to 262144"):
        read_foreign(small)
    monkeypatch.setattr("nanokimi.data.tokenizers.foreign.MIN_PIECES", 1)
    monkeypatch.setattr("nanokimi.data.tokenizers.foreign.MAX_PIECES", 299)
    with pytest.raises(UserError, match="has 300 pieces: expected 1 to 299"):
        read_foreign(byte_level(tmp_path / "t.json"))


def test_the_setting_takes_names_and_paths_only(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="dataset.tokenizer is words: expected one of char, byte, bpe, unigram"
    ):
        load_config("smoke", ["--dataset.tokenizer", "words"])
    assert load_config("smoke", ["--dataset.tokenizer", "x/t.json"]).dataset.tokenizer == "x/t.json"
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    with pytest.raises(UserError, match="nowhere.json is not a file"):
        prepare(DatasetConfig(path=str(path), tokenizer="nowhere.json"), tmp_path / "out", 8)


def test_the_library_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = byte_level(tmp_path / "t.json")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UserError, match="library tokenizers.*" + re.escape(how_to_install("data"))):
        read_foreign(path)
    assert TokenizersTokenizer.name == "tokenizer.json"
