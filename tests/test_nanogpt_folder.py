"""nanoGPT's own folders: the same ids, and a pickle that would run code is refused."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import DatasetConfig, RunConfig, TrainConfig
from nanokimi.config.files import load_config
from nanokimi.config.rules import validate
from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.parts import NANOGPT_NOTE
from nanokimi.data.plain_pickle import read_plain_pickle
from nanokimi.data.store import prepare
from nanokimi.data.summary import summary_text
from nanokimi.data.tokenizers.foreign import read_foreign
from nanokimi.errors import UserError

TEXT = make_text(3000) + "\u00e9"
CHARACTERS = sorted(set(TEXT))


def write(folder: Path, protocol: int = 4, meta: bool = True) -> DatasetConfig:
    """What nanoGPT's data/shakespeare_char/prepare.py writes."""
    folder.mkdir(exist_ok=True)
    stoi = {character: number for number, character in enumerate(CHARACTERS)}
    itos = dict(enumerate(CHARACTERS))
    cut = int(len(TEXT) * 0.9)
    for name, part in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
        np.array([stoi[character] for character in part], dtype=np.uint16).tofile(folder / f"{name}.bin")
    if meta:
        content = {"vocab_size": len(CHARACTERS), "itos": itos, "stoi": stoi}
        (folder / "meta.pkl").write_bytes(pickle.dumps(content, protocol))
    return DatasetConfig(path=str(folder))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ids_and_characters_are_used_as_they_are(tmp_path: Path, protocol: int) -> None:
    """With its published split, which is first 90% to train and the rest both to validate and to test."""
    data = prepare(replace(write(tmp_path / "gpt", protocol), split="nanogpt"), tmp_path / "out", 8)
    cut = int(len(TEXT) * 0.9)
    assert data.tokenizer.decode(data.train_ids) == TEXT[:cut]
    assert data.tokenizer.decode(data.val_ids) == TEXT[cut:]
    assert np.array_equal(data.train_ids, np.fromfile(tmp_path / "gpt" / "train.bin", dtype=np.uint16))
    assert data.metadata["val_text_chars"] == len(TEXT) - cut
    assert data.metadata["val_text_bytes"] == len(TEXT) - cut + 1
    assert np.array_equal(data.test_ids, data.val_ids) and data.metadata["test_text_chars"] == len(TEXT) - cut
    assert data.metadata["chars"] == len(TEXT), "the last part is counted once"
    assert data.metadata["train_text_bytes"] == cut == data.metadata["train_tokens"]
    assert data.tokenizer.vocab_size == len(CHARACTERS) + 1, "and the escape"


def test_the_test_part_is_the_second_half_of_val_bin(tmp_path: Path) -> None:
    dataset = write(tmp_path / "gpt")
    data = prepare(dataset, tmp_path / "out", 8)
    val = np.fromfile(tmp_path / "gpt" / "val.bin", dtype=np.uint16)
    assert np.array_equal(np.concatenate([data.val_ids, data.test_ids]), val)
    assert abs(len(data.val_ids) - len(data.test_ids)) <= 1
    assert np.array_equal(data.train_ids, np.fromfile(tmp_path / "gpt" / "train.bin", dtype=np.uint16))
    decoded = [data.tokenizer.decode(ids) for ids in (data.val_ids, data.test_ids)]
    assert [data.metadata[f"{part}_text_chars"] for part in ("val", "test")] == [
        len(text) for text in decoded
    ]
    assert data.metadata["test_text_bytes"] == len(decoded[1].encode())


def test_a_test_bin_is_the_test_part(tmp_path: Path) -> None:
    dataset = write(tmp_path / "gpt")
    before = prepare(dataset, tmp_path / "before", 8)
    ids = np.fromfile(tmp_path / "gpt" / "train.bin", dtype=np.uint16)[:150]
    ids.tofile(tmp_path / "gpt" / "test.bin")
    data = prepare(dataset, tmp_path / "out", 8)
    assert np.array_equal(data.test_ids, ids)
    assert len(data.val_ids) == len(before.val_ids) + len(before.test_ids)
    ids[:99].tofile(tmp_path / "gpt" / "test.bin")
    with pytest.raises(UserError, match="leaves 99 characters for the test part, which needs 100"):
        prepare(dataset, tmp_path / "again", 8)


def test_prepared_from_the_text_itself_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    # The last character of TEXT is in no training part.
    path.write_text(TEXT[:-1] + "." if "." in TEXT else TEXT)
    text = path.read_text()
    ours = prepare(DatasetConfig(path=str(path), split="nanogpt"), tmp_path / "ours", 8)
    folder = tmp_path / "gpt"
    folder.mkdir()
    characters = sorted(set(text))
    stoi = {character: number for number, character in enumerate(characters)}
    cut = int(len(text) * 0.9)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        np.array([stoi[character] for character in part], dtype=np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": dict(enumerate(characters)), "stoi": stoi}))
    theirs = prepare(DatasetConfig(path=str(folder), split="nanogpt"), tmp_path / "theirs", 8)
    assert np.array_equal(ours.train_ids, theirs.train_ids) and np.array_equal(ours.val_ids, theirs.val_ids)
    assert np.array_equal(ours.test_ids, theirs.test_ids) and np.array_equal(ours.test_ids, ours.val_ids)
    for name in ("chars", "split", *(f"{part}_text_bytes" for part in ("train", "val", "test"))):
        assert ours.metadata[name] == theirs.metadata[name], name


def test_nanogpts_split_is_said_and_refused_where_it_means_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = replace(write(tmp_path / "gpt"), split="nanogpt")
    data = prepare(dataset, tmp_path / "out", 8)
    assert NANOGPT_NOTE in capsys.readouterr().err and NANOGPT_NOTE in summary_text(data)
    (tmp_path / "some.jsonl").write_text('{"text": "a document"}\n')
    with pytest.raises(UserError, match="split nanogpt cuts a single text.*holds documents: leave it out"):
        prepare(replace(dataset, path=str(tmp_path / "some.jsonl")), tmp_path / "no", 8)
    for name in ("val_fraction", "test_fraction"):
        with pytest.raises(UserError, match=f"{name} has no effect with dataset.split nanogpt"):
            validate(RunConfig(dataset=replace(dataset, **{name: 0.2}), train=TrainConfig(max_steps=1)))


def test_nanogpts_split_takes_the_place_of_a_presets_shares() -> None:
    """The default preset for a text has shares, so its own recipe's split was refused."""
    config = load_config("shakespeare-char", ["--dataset.split", "nanogpt"])
    assert (config.dataset.val_fraction, config.dataset.test_fraction) == (0.1, None)
    with pytest.raises(UserError, match="val_fraction has no effect with dataset.split nanogpt"):
        load_config("shakespeare-char", ["--dataset.split", "nanogpt", "--val_fraction", "0.2"])


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    dataset = write(tmp_path / "gpt")
    first = prepare(dataset, tmp_path / "out", 8)
    ids = np.fromfile(tmp_path / "gpt" / "train.bin", dtype=np.uint16)
    ids[0] = (ids[0] + 1) % len(CHARACTERS)
    ids.tofile(tmp_path / "gpt" / "train.bin")
    assert prepare(dataset, tmp_path / "again", 8).train_ids[0] != first.train_ids[0]


def test_without_meta_a_tokenizer_must_be_named(tmp_path: Path) -> None:
    from test_foreign import byte_level

    dataset = write(tmp_path / "gpt", meta=False)
    with pytest.raises(UserError, match=r"no meta.pkl: name the tokenizer.*--dataset.tokenizer"):
        prepare(dataset, tmp_path / "out", 8)
    tokenizer = byte_level(tmp_path / "t.json")
    data = prepare(replace(dataset, tokenizer=str(tokenizer)), tmp_path / "out", 8)
    assert data.tokenizer.vocab_size == 300 and data.metadata["tokenizer"] == "tokenizer.json"


def test_end_of_text_adds_no_bytes(tmp_path: Path) -> None:
    """As nanoGPT's prepare.py for OpenWebText writes it. Its 13 characters made bits per byte too low."""
    from test_foreign import byte_level

    tokenizer = read_foreign(byte_level(tmp_path / "t.json", special=[END_OF_TEXT]))
    end = tokenizer.end_of_text_id
    assert end is not None and tokenizer.decode([end]) == END_OF_TEXT
    documents = [f"Story {number} of a caf\u00e9.\n" for number in range(40)]
    parts = {"train": documents[:20], "val": documents[20:30], "test": documents[30:]}
    (tmp_path / "gpt").mkdir()
    (tmp_path / "texts").mkdir()
    for name, part in parts.items():
        ids = [one for text in part for one in (*tokenizer.encode(text), end)]
        np.array(ids, dtype=np.uint16).tofile(tmp_path / "gpt" / f"{name}.bin")
        text = f"{END_OF_TEXT}\n".join(f"{document}\n" for document in part)
        (tmp_path / "texts" / f"{name}.txt").write_text(text, encoding="utf-8")
    theirs, ours = (
        prepare(
            DatasetConfig(path=str(tmp_path / name), tokenizer=str(tmp_path / "t.json")),
            tmp_path / f"{name}-out",
            8,
        )
        for name in ("gpt", "texts")
    )
    assert np.array_equal(theirs.test_ids, ours.test_ids)
    for name, part in parts.items():
        assert theirs.metadata[f"{name}_text_bytes"] == len("".join(part).encode("utf-8")), name
        assert theirs.metadata[f"{name}_text_chars"] == len("".join(part)), name
        assert ours.metadata[f"{name}_text_bytes"] == theirs.metadata[f"{name}_text_bytes"], name


def test_impossible_tokens_are_refused(tmp_path: Path) -> None:
    dataset = write(tmp_path / "gpt")
    np.array([len(CHARACTERS) + 1] * 50, dtype=np.uint16).tofile(tmp_path / "gpt" / "val.bin")
    with pytest.raises(UserError, match="holds the id .* and the tokenizer has"):
        prepare(dataset, tmp_path / "out", 8)
    for content in (b"", b"abc"):
        (tmp_path / "gpt" / "val.bin").write_bytes(content)
        with pytest.raises(UserError, match="expected 16-bit token ids"):
            prepare(dataset, tmp_path / "out", 8)
    with pytest.raises(UserError, match="leave out dataset.fraction"):
        prepare(replace(dataset, fraction=0.5), tmp_path / "out", 8)


class RunsCode:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    dataset = write(tmp_path / "gpt")
    hostile = pickle.dumps({"itos": RunsCode(trap)}, protocol)
    (tmp_path / "gpt" / "meta.pkl").write_bytes(hostile)
    with pytest.raises(UserError, match="meta.pkl cannot be used .it holds the instruction"):
        prepare(dataset, tmp_path / "out", 8)
    assert not trap.exists() and not (tmp_path / "out").exists()
    pickle.loads(hostile)
    assert trap.is_dir(), "the trap itself works"


@pytest.mark.parametrize("value", [OrderedDict(a=1), {1, 2}, (1, 2), 1.5, Path("x"), len, np.int64(3)])
def test_anything_but_plain_data_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="holds the instruction"):
        read_plain_pickle(pickle.dumps({"a": value}))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=5)
    ),
)


@settings(deadline=None)
@given(plain, st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(value: object, protocol: int) -> None:
    assert read_plain_pickle(pickle.dumps(value, protocol)) == value


@settings(deadline=None)
@given(
    st.binary(max_size=40)
    | plain.map(pickle.dumps).flatmap(lambda p: st.integers(0, len(p)).map(lambda n: p[:n]))
)
def test_damaged_pickles_raise_value_errors_only(data: bytes) -> None:
    try:
        read_plain_pickle(data)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"itos": {0: "a", 2: "b"}},
        {"itos": {0: "ab"}},
        {"itos": {0: "b", 1: "a"}},
        {"itos": ["a", 3]},
        [],
        {"itos": {}},
    ],
)
def test_other_metas_are_refused(tmp_path: Path, meta: object) -> None:
    dataset = write(tmp_path / "gpt")
    (tmp_path / "gpt" / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(UserError, match="meta.pkl cannot be used|at least one character"):
        prepare(dataset, tmp_path / "out", 8)
