"""Prepared data: right numbers, read-only, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from nanokimi.config import DatasetConfig
from nanokimi.data.store import PreparedData, open_prepared, prepare, val_openings
from nanokimi.errors import UserError

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
# The Cyrillic letter and the emoji stand in the validation part only, the Danish ones in the test part.
TRAIN, VAL, TEST = (
    "The quick brown fox\r\njumps over the lazy dog. " * 18,
    "A caf\u00e9, a \u0416, and a \U0001f600. " * 6,
    "Nothing but \u00e6 and \u00f8. " * 6,
)
PARTS = ("train", "val", "test")
Name = Literal["char", "byte", "bpe", "unigram"]
NAMES: tuple[Name, ...] = ("char", "byte", "bpe", "unigram")


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetConfig:
    path = tmp_path / "fox.txt"
    text = TRAIN + VAL + TEST
    path.write_bytes(text.encode("utf-8"))
    fractions = {"val_fraction": len(VAL) / len(text), "test_fraction": len(TEST) / len(text)}
    return DatasetConfig(path=str(path), vocab_size=286, **fractions)


def texts_of(prepared: PreparedData) -> dict[str, str]:
    """The text of each part."""
    ids = (prepared.train_ids, prepared.val_ids, prepared.test_ids)
    return {part: prepared.tokenizer.decode(one) for part, one in zip(PARTS, ids, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_all_parts_come_back_as_text(dataset: DatasetConfig, tmp_path: Path, name: Name) -> None:
    prepared = prepare(replace(dataset, tokenizer=name), tmp_path / "out", 8)
    found = texts_of(prepared)
    assert "".join(found.values()) == TRAIN + VAL + TEST
    assert abs(len(found["val"]) - len(VAL)) <= 1 and abs(len(found["test"]) - len(TEST)) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_those_of_the_text(dataset: DatasetConfig, tmp_path: Path, name: Name) -> None:
    prepared = prepare(replace(dataset, tokenizer=name), tmp_path / "out", 8)
    data = Path(str(dataset.path)).read_bytes()
    metadata = prepared.metadata
    found, ids = texts_of(prepared), (prepared.train_ids, prepared.val_ids, prepared.test_ids)
    assert metadata["path"] == dataset.path and metadata["tokenizer"] == name
    assert metadata["sha256"] == hashlib.sha256(data).hexdigest()
    assert metadata["file_bytes"] == len(data) == sum(metadata[f"{part}_text_bytes"] for part in PARTS)
    assert (
        metadata["chars"] == len(TRAIN + VAL + TEST) == sum(metadata[f"{part}_text_chars"] for part in PARTS)
    )
    for part, tokens in zip(PARTS, ids, strict=True):
        assert metadata[f"{part}_text_bytes"] == len(found[part].encode())
        assert metadata[f"{part}_text_chars"] == len(found[part])
        assert metadata[f"{part}_tokens"] == len(tokens)
    assert metadata["split"] == "three"
    assert metadata["vocab_size"] == prepared.tokenizer.vocab_size
    assert math.isclose(metadata["bytes_per_token"], len(found["val"].encode()) / len(prepared.val_ids))


def test_tokenizer_knows_only_the_training_part(dataset: DatasetConfig, tmp_path: Path) -> None:
    prepared = prepare(dataset, tmp_path / "out", 8)
    train = prepared.tokenizer.decode(prepared.train_ids)
    assert prepared.tokenizer.vocab_size == len(set(train)) + 1
    assert len(prepared.tokenizer.encode("\u0416")) > 1 and len(prepared.tokenizer.encode("\u00e6")) > 1
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["characters"] == "".join(
        sorted(set(train))
    )


def test_opening_again_gives_the_same_and_ids_cannot_be_written(
    dataset: DatasetConfig, tmp_path: Path
) -> None:
    first = prepare(dataset, tmp_path / "out", 8)
    again = open_prepared(tmp_path / "out")
    assert again.metadata == first.metadata
    assert np.array_equal(again.train_ids, first.train_ids) and np.array_equal(again.val_ids, first.val_ids)
    assert isinstance(again.train_ids, np.memmap) and again.train_ids.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        again.train_ids[0] = 1


def test_large_vocabulary_gets_wider_ids(tmp_path: Path) -> None:
    """66,000 characters and the escape do not fit 16 bits."""
    text = "".join(chr(point) for point in range(0x10000, 0x10000 + 66_000)) + "ab"
    path = tmp_path / "wide.txt"
    path.write_text(text, encoding="utf-8")
    prepared = prepare(DatasetConfig(path=str(path), val_fraction=0.002), tmp_path / "out", 8)
    assert prepared.train_ids.dtype == np.uint32 and prepared.train_ids.max() > 65_535
    assert "".join(texts_of(prepared).values()) == text


def test_preparing_again_replaces_the_old_data(dataset: DatasetConfig, tmp_path: Path) -> None:
    prepare(replace(dataset, tokenizer="bpe"), tmp_path / "out", 8)
    prepare(replace(dataset, tokenizer="byte"), tmp_path / "out", 8)
    assert open_prepared(tmp_path / "out").tokenizer.name == "byte"
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    expected = ["data.json", "test.bin", "tokenizer.json", "train.bin", "val.bin"]
    assert found == expected, "no model of the old tokenizer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.txt", "out"]


def test_folder_with_other_files_is_left_alone(dataset: DatasetConfig, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="thesis.tex"):
        prepare(dataset, tmp_path / "home", 8)
    with pytest.raises(UserError, match="is a file"):
        prepare(dataset, tmp_path / "home" / "thesis.tex", 8)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("existing", [False, True])
def test_failure_while_writing_leaves_no_trace(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    """The disk is full at the last file, or at the last rename: what was there before is there still."""
    folder = tmp_path / "out"
    if existing:
        prepare(dataset, folder, 8)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if existing else {}
    real_write, real_replace = Path.write_text, os.replace

    def failing_write(self: Path, data: str, encoding: str) -> int:
        if self.name == "data.json":
            raise OSError(28, "No space left on device")
        return real_write(self, data, encoding=encoding)

    def failing_replace(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(28, "No space left on device")
        real_replace(source, target)

    for owner, name, failing in ((Path, "write_text", failing_write), (os, "replace", failing_replace)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(UserError, match="cannot be written .No space left"):
                prepare(replace(dataset, tokenizer="byte"), folder, 8)
        assert sorted(path.name for path in tmp_path.iterdir()) == (
            ["fox.txt", "out"] if existing else ["fox.txt"]
        )
        assert before == ({path.name: path.read_bytes() for path in folder.iterdir()} if existing else {})


def test_data_of_an_earlier_version_has_no_test_part_and_says_so(
    dataset: DatasetConfig, tmp_path: Path
) -> None:
    """What version 1 wrote is opened, to sample and to score the validation part."""
    new = prepare(dataset, tmp_path / "out", 8)
    for path in (tmp_path / "out").glob("test.*"):
        path.unlink()
    metadata = {name: fact for name, fact in new.metadata.items() if not name.startswith(("test", "split"))}
    (tmp_path / "out" / "data.json").write_text(json.dumps({**metadata, "schema_version": 1}))
    old = open_prepared(tmp_path / "out")
    assert np.array_equal(old.scored("val").ids, new.val_ids) and len(old.test_ids) == 0
    assert old.fingerprint != new.fingerprint
    with pytest.raises(UserError, match="without a test part.*--part val, or train again"):
        old.scored("test")


def test_the_fingerprint_knows_the_test_part(dataset: DatasetConfig, tmp_path: Path) -> None:
    one = prepare(dataset, tmp_path / "out", 8)
    other = replace(one, test_ids=one.test_ids[::-1])
    assert one.fingerprint != other.fingerprint


def test_unset_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset.path is not set"):
        prepare(DatasetConfig(), tmp_path / "out", 8)


def test_short_text_is_refused_with_a_length_that_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    dataset = DatasetConfig(path=str(path))
    path.write_text("a" * 20)
    with pytest.raises(UserError, match="has 20 characters.* at least 1,000 in all"):
        prepare(dataset, tmp_path / "out", 8)
    path.write_text("a" * 1010)
    with pytest.raises(UserError, match="808 training tokens.* needs 1026") as caught:
        prepare(dataset, tmp_path / "out", 1024)
    assert not (tmp_path / "out").exists()
    needed = int(str(caught.value).split("about ")[1].split()[0])
    path.write_text("a" * needed)
    assert len(prepare(dataset, tmp_path / "out", 1024).train_ids) >= 1026
    path.write_text("a" * (needed - 2))
    with pytest.raises(UserError, match="too short"):
        prepare(dataset, tmp_path / "out", 1024)


def test_missing_and_damaged_data_are_refused(dataset: DatasetConfig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(UserError, match="data.json cannot be read"):
        open_prepared(folder)
    prepare(dataset, folder, 8)
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match="train.bin has .* bytes"):
        open_prepared(folder)
    (folder / "train.bin").unlink()
    with pytest.raises(UserError, match="train.bin cannot be read"):
        open_prepared(folder)
    prepare(dataset, folder, 8)
    (folder / "tokenizer.json").write_text('{"schema_version": 1, "type": "byte"}')
    with pytest.raises(UserError, match="mixes two data sets"):
        open_prepared(folder)
    for content in ("", "[]", "{}", '{"schema_version": 9}', '{"schema_version": 1}'):
        (folder / "data.json").write_text(content)
        with pytest.raises(UserError, match="data.json is damaged"):
            open_prepared(folder)


@pytest.mark.skipif(
    not SHAKESPEARE.exists(), reason="../shared/data/tinyshakespeare.txt is not on this machine"
)
def test_shakespeare_has_nanogpts_numbers(tmp_path: Path) -> None:
    """nanoGPT's data/shakespeare_char: 65 characters, 1,003,854 training and 111,540 validation tokens."""
    prepared = prepare(DatasetConfig(path=str(SHAKESPEARE), split="nanogpt"), tmp_path / "out", 64)
    assert prepared.tokenizer.vocab_size == 65 + 1
    assert (len(prepared.train_ids), len(prepared.val_ids)) == (1_003_854, 111_540)
    assert np.array_equal(prepared.test_ids, prepared.val_ids)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("many", [False, True])
def test_a_story_may_begin_as_the_validation_text_does(many: bool, tokenizer: str, tmp_path: Path) -> None:
    stories = [
        f"  The owl\nsleeps until {n} o'clock, and then it hunts for mice all night.\n" for n in range(200)
    ]
    (tmp_path / "a.txt").write_text(("<|endoftext|>\n" if many else "").join(stories))
    dataset = DatasetConfig(path=str(tmp_path / "a.txt"), tokenizer=tokenizer, vocab_size=300)
    (opening,) = val_openings(prepare(dataset, tmp_path / "data", 8))
    assert len(opening.split()) == 10 and opening == opening.strip() and "<|" not in opening
    assert opening in "".join(stories)
    assert not many or opening.startswith("The owl")
