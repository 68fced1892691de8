"""Texts that come in parts of their own, and with a tokenizer of their own: nothing that is typed is ignored."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_nanogpt_folder import write

from nanokimi import cli
from nanokimi.config import DatasetConfig
from nanokimi.data.changes import changed_source
from nanokimi.data.own_parts import unused_shares
from nanokimi.data.store import prepare


def jsonl(folder: Path, *names: str) -> Path:
    """A folder, or a set as of the Hub, with a file of 40 documents for each name."""
    folder.mkdir()
    for name in names:
        lines = [json.dumps({"text": " ".join(f"{name}{i}-{j}" for j in range(30))}) for i in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_share_of_a_text_with_its_own_parts_is_refused_only_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gpt")
    jsonl(tmp_path / "two", "train", "valid")
    jsonl(tmp_path / "tested", "train", "test")
    both, one = ("val_fraction", "test_fraction"), ("test_fraction",)
    expected = {"gpt": both, "two": both, "hf:./two": both, "tested": one, "hf:./tested": one}
    for path, unused in expected.items():
        assert unused_shares(DatasetConfig(path=path)) == unused
        for share in both:
            line = f"prepare --config smoke --print-config --data {path} --{share} 0.2"
            assert cli.main(shlex.split(line)) == (2 if share in unused else 0)
            err = capsys.readouterr().err
            assert share not in unused or f"--dataset.{share} has no effect: {path} has its own parts" in err
    of_the_preset = "prepare --config tales --print-config --data two"
    assert cli.main(shlex.split(of_the_preset)) == 0


def test_a_folder_of_tokens_is_read_with_its_own_characters_whatever_the_preset_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gpt")
    write(tmp_path / "bare", meta=False)
    for preset in ("smoke", "tales"):
        line = f"prepare --config {preset} --data gpt --context 8 --out {preset}"
        assert cli.main(shlex.split(line)) == 0
        printed = capsys.readouterr()
        assert "its own characters are used instead of dataset.tokenizer" in printed.err
        assert "half for validation, half for test" in printed.err
    for words in ("--data gpt --tokenizer byte", "--data bare"):
        assert cli.main(shlex.split(f"prepare --config smoke {words}")) == 2
        asked = "--dataset.tokenizer char" if "gpt" in words else "--dataset.tokenizer path/to/tokenizer.json"
        assert asked in capsys.readouterr().err


def test_any_changed_file_of_a_nanogpt_folder_is_noticed(tmp_path: Path) -> None:
    dataset = write(tmp_path / "gpt")
    data = prepare(dataset, tmp_path / "data", 8)
    assert changed_source(dataset, data, tmp_path / "data") is None
    path = tmp_path / "gpt" / "val.bin"
    np.fromfile(path, dtype=np.uint16)[::-1].tofile(path)
    assert changed_source(dataset, data, tmp_path / "data") == dataset.path
    before = {key: value for key, value in data.metadata.items() if key != "source"}
    assert changed_source(dataset, replace(data, metadata=before), tmp_path / "data") is None
    path.unlink()  # gone: the run goes on with its copy
    assert changed_source(dataset, data, tmp_path / "data") is None


def test_a_changed_set_of_the_hub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = jsonl(tmp_path / "set", "train", "test")
    dataset = DatasetConfig(path=f"hf:{folder}", tokenizer="byte")
    data = prepare(dataset, tmp_path / "data", 8)
    assert changed_source(dataset, data, tmp_path / "data") is None
    lines = (folder / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(lines[1:]))
    assert changed_source(dataset, data, tmp_path / "data") == dataset.path
