"""`nanokimi prepare`: the summary says what is in the data, and training finds it prepared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text
from matplotlib.figure import Figure

from nanokimi import cli
from nanokimi.config import DatasetConfig
from nanokimi.data import build, summary
from nanokimi.data.store import PreparedData, prepare
from nanokimi.data.summary import (
    bytes_of_ids,
    document_lengths,
    draw_summary,
    histogram,
    summary_text,
    token_counts,
)
from nanokimi.runtime.files import read_json

END = "<|endoftext|>"


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    texts = [make_text(100 + 10 * i, seed=i).strip() for i in range(80)]
    path.write_text(f"\n{END}\n".join([*texts, texts[0], ""]))
    return path


def test_prepare_prints_what_is_there_and_draws_it(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "--data", "stories.txt", "--dataset.tokenizer", "byte", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    metadata = read_json(tmp_path / "out" / "data.json")
    shown = [f"{metadata[f'{part}_documents']:,}" for part in ("train", "val", "test")]
    assert "{} train, {} validation, {} test".format(*shown) in printed
    tokens = [f"{metadata[f'{part}_tokens']:,}" for part in ("train", "val", "test")]
    assert "{} train, {} validation, {} test".format(*tokens) in printed
    assert "0 exact and 0 near duplicates" in printed and "1 empty" in printed
    assert f"{metadata['vocab_size']:,} (byte)" in printed and "257" in printed
    counts = [int(line.split()[-1]) for line in printed.splitlines() if re.search(r" to \d", line)]
    assert sum(counts) == metadata["documents"] == 81
    picture = (tmp_path / "out" / "summary.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 10_000
    assert printed.strip().endswith("summary.png")


def test_what_was_prepared_is_not_read_again(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["prepare", "--data", str(stories), "--config", "smoke"]
    assert cli.main([*arguments, "--out", "a"]) == 0
    monkeypatch.setattr(build, "build", None)
    assert cli.main(arguments) == 0
    default = tmp_path / "runs" / "prepare-stories-1"
    assert (tmp_path / "a" / "train.bin").read_bytes() == (default / "train.bin").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--config", "smoke"], "no text given"),
        (["--data", "nowhere.txt"], "does not exist"),
        (["--data", "stories.txt", "--dataset.fraction", "0"], "dataset.fraction"),
        (["--data", "stories.txt", "--dataset.workers", "0"], "dataset.workers"),
        (["--data", "stories.txt", "--dataset.text_column", ""], "dataset.text_column"),
        (["--data", "stories.txt", "--train.context_length", "9999999"], "too short"),
        (["--data", "tinystories"], "--data tales"),
        (["--data", "hf:nobody/nothing"], "--data tales"),
        (["--data", "tales:x"], "tales:SEED"),
    ],
)
def test_bad_input_is_one_line(
    stories: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1 and error.startswith("nanokimi: ")
    assert not (tmp_path / "runs").exists()


def panels(data: PreparedData, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The panels of the picture, each of which must show something."""
    figures: list[Figure] = []
    monkeypatch.setattr(summary, "png_of", lambda figure, dpi: figures.append(figure) or b"PNG")
    draw_summary(data, folder / "summary.png")
    assert (folder / "summary.png").read_bytes() == b"PNG"
    assert all(axes.has_data() and axes.get_title() for axes in figures[0].axes)
    return len(figures[0].axes)


def test_copies_of_a_document_are_counted_in_every_part(tmp_path: Path) -> None:
    """They fall on one side together, so a test part may be one story many times."""
    rows = [json.dumps({"text": f"Story {number % 40}: once upon a time."}) for number in range(400)]
    (tmp_path / "copies.jsonl").write_text("\n".join(rows))
    data = prepare(DatasetConfig(path=str(tmp_path / "copies.jsonl"), tokenizer="byte"), tmp_path / "out", 8)
    copies = [data.metadata[f"{part}_documents"] * 9 // 10 for part in ("train", "val", "test")]
    assert min(copies) > 0 and sum(copies) == 360
    train, val, test = copies
    assert f"{train} train, {val} validation, {test} test (exact, within their part)" in summary_text(data)


def test_numbers_of_the_summary(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare(DatasetConfig(path=str(stories), tokenizer="byte", workers=1), tmp_path / "out", 8)
    lengths = document_lengths(data)
    assert lengths.sum() == sum(data.metadata[f"{part}_tokens"] for part in ("train", "val", "test"))
    assert np.array_equal(token_counts(data.train_ids, 257), np.bincount(data.train_ids, minlength=257))
    sizes = bytes_of_ids(data.tokenizer)
    assert sizes[256] == 0 and set(sizes[:256]) == {1}
    bars = f"1 to 1 {'#' * 20} 1  2 to 3 {'#' * 40} 2  4 to 7 0  8 to 15 {'#' * 20} 1"
    assert histogram(np.array([1, 2, 3, 9])).split() == bars.split()
    single = prepare(DatasetConfig(path=__file__, workers=1), tmp_path / "single", 8)
    assert panels(data, tmp_path, monkeypatch) == 4
    assert panels(single, tmp_path, monkeypatch) == 3, "without the empty frame of its one document"
    assert "a single text" in summary_text(single) and "tokens per document" not in summary_text(single)
