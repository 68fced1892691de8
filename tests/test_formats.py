"""The format is that of the name as given, what is no text is refused, and a store holds what its hash says."""

from __future__ import annotations

import csv
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import make_text

from nanokimi import cli
from nanokimi.cli.evaluate import evaluation_text
from nanokimi.config import DatasetConfig
from nanokimi.data import build, folders, records, sources
from nanokimi.data.build import find_store, prepare_store
from nanokimi.data.sources import open_source, with_absolute_paths
from nanokimi.data.store import as_validation_text, prepare
from nanokimi.errors import UserError

STORIES = [make_text(200 + 7 * i, seed=i).strip() + f"\nnumber {i}" for i in range(30)]
LINES = "".join(json.dumps({"id": i, "text": story}) + "\n" for i, story in enumerate(STORIES))
END = "\n<|endoftext|>\n"


def texts(path: Path, **settings: str) -> list[str]:
    """The documents of a path as the command line reads it."""
    source = open_source(with_absolute_paths(DatasetConfig(path=str(path), **settings)))  # type: ignore[arg-type]
    assert source.documents is not None, "it is read as one text"
    return [document.text for document in source.documents()]


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(with_absolute_paths(DatasetConfig(path=str(path))))
    return str(caught.value)


def table(path: Path, delimiter: str, rows: list[list[object]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


WRITE: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_text(LINES),
    "mark.jsonl": lambda path: path.write_text("\ufeff" + LINES, encoding="utf-8"),
    "a.ndjson": lambda path: path.write_text(LINES),
    "lines.json": lambda path: path.write_text(LINES),
    "array.json": lambda path: path.write_text(json.dumps([{"text": one} for one in STORIES], indent=1)),
    "texts.json": lambda path: path.write_text(json.dumps(STORIES)),
    "a.csv": lambda path: table(path, ",", [["id", "text"], *([i, one] for i, one in enumerate(STORIES))]),
    "a.tsv": lambda path: table(path, "\t", [["text", "id"], *([one, i] for i, one in enumerate(STORIES))]),
}


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_records_of_every_usual_name_are_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, linked: bool, block: int
) -> None:
    """Also through a link to a file whose own name says nothing, and wherever a block of JSON ends."""
    monkeypatch.setattr(records, "JSON_BLOCK", block)
    path = tmp_path / name
    WRITE[name](path)
    if linked:
        path.rename(tmp_path / "blob")
        path.symlink_to("blob")
    assert texts(path) == STORIES


def test_a_link_without_an_ending_is_read_as_its_target(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "latest").symlink_to("a.jsonl")
    assert texts(tmp_path / "latest") == STORIES
    (tmp_path / "raw.txt").symlink_to("a.jsonl")
    assert open_source(DatasetConfig(path=str(tmp_path / "raw.txt"))).text_file, "the given name decides"


@pytest.mark.parametrize(
    "text", ["", "[", '[{"text": "a"}', '[{"text": "a"},]', '[{"text": "a"} 3]', "[] []"]
)
@pytest.mark.parametrize("more", ["", '{"text": "b'])
def test_broken_json_is_one_line(tmp_path: Path, text: str, more: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n" + text + more)
    if text + more:
        with pytest.raises(UserError, match="a.json line 2 is not JSON"):
            texts(path)


def test_rows_that_do_not_fit_the_first_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,whole\n2,once, upon a time\n")
    with pytest.raises(UserError, match="line 3 has 3 columns, and the first line 2"):
        texts(tmp_path / "a.csv")
    with pytest.raises(UserError, match="no column 'story' .it has: id, text"):
        texts(tmp_path / "a.csv", text_column="story")


def test_formats_with_the_same_bytes_have_stores_of_their_own(tmp_path: Path) -> None:
    found = {}
    for name in ("a.csv", "a.tsv", "a.json", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
        source = open_source(DatasetConfig(path=str(tmp_path / name)))
        found[name] = json.dumps(source.fingerprint)
    assert len(set(found.values())) == 4
    assert "format" not in found["a.jsonl"], "stores of earlier versions are found"


def test_what_is_no_text_is_refused_by_name_or_content(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.txt", "w") as archive:
        archive.writestr("a.txt", "hello")
    content = {
        "train.bin": (b"\5\0\7\0" * 50, "folder with train.bin and val.bin"),
        "a.tar.gz": (b"x", "unpack it"),
        "a.parquet.gz": (b"x", "unpack it"),
        "blob": (LINES.encode(), "holds JSON lines"),
        "ids": (b"\5\0\7\0" * 50, "50% of its first 200 bytes are NUL"),
        "g.txt": (b"\x1f\x8b\x08 more", "ends in .gz"),
        "p.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "gbk.txt": ("\u4e2d\u6587\u7684\u6545\u4e8b\n".encode("gbk") * 50, "find out its encoding"),
        "latin.txt": ("un caf\u00e9 \u00e0 la cr\u00e8me\n".encode("latin1") * 50, "iconv -f latin1"),
        "damaged.txt": ("\u4e2d\u6587".encode() * 50 + b"\xff", "repair that place"),
    }
    for name, (data, _) in content.items():
        (tmp_path / name).write_bytes(data)
    assert "zip archive" in refusal(tmp_path / "z.txt")
    for name, (_, message) in content.items():
        with pytest.raises(UserError) as caught:
            source = open_source(DatasetConfig(path=str(tmp_path / name)))
            "".join(sources.read_blocks(source.text_file or tmp_path))
        assert message in str(caught.value) and (name == "latin.txt" or "latin1" not in str(caught.value))
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    assert "link to a file that is not there" in refusal(tmp_path / "gone.jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert "a device or a pipe" in refusal(tmp_path / "pipe")


def test_other_text_stays_text(tmp_path: Path) -> None:
    for name in ("README", "a.md", "a.py", "a.b.c"):
        (tmp_path / name).write_text("plain text\n" * 20)
        assert open_source(DatasetConfig(path=str(tmp_path / name))).text_file == tmp_path / name


def test_a_zstd_window_of_256_megabytes_is_read(tmp_path: Path) -> None:
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # does not know the size
    (tmp_path / "a.jsonl.zst").write_bytes(frame.compress(LINES.encode()) + frame.flush())
    assert texts(tmp_path / "a.jsonl.zst") == STORIES


# ---- folders


def test_a_folder_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text(LINES)
    (data / "b.json").write_text('["one more"]')
    (data / "README.md").write_text("about " * 5000)
    (data / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (data / ".hidden").write_text("x")
    assert texts(data) == [*STORIES, "one more"]
    made = prepare(DatasetConfig(path=str(data), tokenizer="byte", workers=1), tmp_path / "out", 8)
    assert "2 of 4 files are left out" in capsys.readouterr().err
    assert "README.md and p.png" in made.metadata["notes"][0]


def test_a_folder_of_other_text_is_one_document_a_file(tmp_path: Path) -> None:
    for i, story in enumerate(STORIES):
        (tmp_path / f"{i:02}.{'md' if i % 2 else 'py'}").write_text(story)
    assert texts(tmp_path) == STORIES
    (tmp_path / "requirements.txt").write_text("torch")
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "x.pyc").write_bytes(b"\0" * 100)
    assert texts(tmp_path) == [*STORIES, "torch"], "the source code outweighs the requirements"


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_files_named_after_parts_are_those_parts(tmp_path: Path, ending: str) -> None:
    def write(name: str, stories: list[str]) -> None:
        lines = "".join(json.dumps({"text": story}) + "\n" for story in stories)
        (data / f"{name}{ending}").write_text(lines if ending == ".jsonl" else END.join(stories))

    data = tmp_path / "data"
    data.mkdir()
    dataset = DatasetConfig(path=str(data), tokenizer="byte", workers=1)
    write("X-train", STORIES[:20])
    write("X-valid", STORIES[20:])
    store, notes, _ = find_store(dataset)
    train = open_prepared_store(dataset, tmp_path)
    assert train["train"] == STORIES[:20] and sorted(train["val"] + train["test"]) == sorted(STORIES[20:])
    assert "named after (1 of train, 1 of val); half of val is for test" in notes[0]
    write("X-test", ["a test of its own, long enough to be one " * 4])
    assert open_prepared_store(dataset, tmp_path)["val"] == STORIES[20:]
    write("more", ["something else"])
    assert "more" in find_store(dataset).notes[0] and "split by their content" in find_store(dataset).notes[0]


def open_prepared_store(dataset: DatasetConfig, folder: Path) -> dict[str, list[str]]:
    """The documents of each part."""
    data = prepare(dataset, folder / "out", 8)
    parts = {"train": data.train_ids, "val": data.val_ids, "test": data.test_ids}
    return {name: data.tokenizer.decode(ids).split("<|endoftext|>")[:-1] for name, ids in parts.items()}


def test_a_part_that_is_one_text_is_cut_by_position(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    train, held_out = "\n".join(STORIES[:20]), "\n".join(STORIES[20:])
    (data / "train.txt").write_text(train)
    (data / "val.txt").write_text(held_out)
    dataset = DatasetConfig(path=str(data), tokenizer="byte", workers=1)
    found = open_prepared_store(dataset, tmp_path)
    assert found["train"] == [train] and len(found["val"]) == len(found["test"]) == 1
    assert "".join(found["val"] + found["test"]) == held_out
    (data / "val.txt").rename(data / "test.txt")
    found = open_prepared_store(dataset, tmp_path)
    assert "".join(found["train"] + found["val"]) == train and found["test"] == [held_out]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a-train.txt", "train"),
        ("dev/x.txt", "val"),
        ("wiki.valid.tokens", "val"),
        ("test-00001.parquet", "test"),
    ]
    + [("train-test.txt", None), ("training.txt", None), ("retrain.txt", None), ("test/train1.txt", "train")],
)
def test_words_for_parts_stand_alone_in_a_name(name: str, part: str | None) -> None:
    assert folders.part_of_name(Path(name)) == part


# ---- tokens, hashes, caches


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_wider_ids_of_nanogpt_are_the_same_tokens(tmp_path: Path, dtype: type) -> None:
    text = "\n".join(STORIES)
    characters = sorted(set(text))
    ids = np.array([characters.index(one) for one in text], dtype=dtype)
    folder = tmp_path / "gpt"
    folder.mkdir()
    ids[:-1000].tofile(folder / "train.bin")
    ids[-1000:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": dict(enumerate(characters))}))
    dataset = DatasetConfig(path=str(folder))
    data = prepare(dataset, tmp_path / "out", 8)
    assert data.tokenizer.decode(np.concatenate([data.train_ids, data.val_ids, data.test_ids])) == text
    for setting in ({"tokenizer": "bpe"}, {"text_column": "story"}, {"characters": 5}):
        with pytest.raises(UserError, match="holds tokens|no columns"):
            prepare_store(replace(dataset, **setting))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The store would hold the longer text under the hash of the shorter one."""
    path = tmp_path / name
    path.write_text(LINES)
    original = build.read_source

    def read_source(*arguments: object) -> object:
        with open(path, "a") as file:
            file.write('{"text": "appended"}\n')
        return original(*arguments)  # type: ignore[arg-type]

    dataset = DatasetConfig(path=str(path), tokenizer="byte", workers=1, cache=str(tmp_path / "cache"))
    monkeypatch.setattr(build, "read_source", read_source)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare_store(dataset)
    monkeypatch.undo()
    assert not list((tmp_path / "cache").rglob("data.json"))
    path.write_text(LINES)
    assert json.loads((prepare_store(dataset) / "data.json").read_text())["file_bytes"] == len(LINES)


def test_a_finished_store_is_found_in_a_cache_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    dataset = DatasetConfig(path=str(tmp_path / "a.jsonl"), tokenizer="byte", workers=1)
    store = prepare_store(dataset)
    # A read-only cache has no place for a lock, and root may write anyway.
    monkeypatch.setattr(build, "locked", None)
    assert prepare_store(dataset) == store


# ---- names, and evaluation


def test_home_and_names_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("hello you " * 500)
    moved = with_absolute_paths(DatasetConfig(path="~/a.txt", tokenizer="~/t.json"))
    assert (moved.path, moved.tokenizer) == (str(tmp_path / "a.txt"), str(tmp_path / "t.json"))
    assert cli.main(["prepare", "--data=~/a.txt", "--out=~/out", "--config", "smoke"]) == 0
    assert (tmp_path / "out" / "data.json").exists() and not (tmp_path / "~").exists()
    for words in (["--data", "caf\udce9.txt"], ["--data", "a.txt", "--out", "o\udce9"]):
        capsys.readouterr()
        assert cli.main(["prepare", *words]) == 2
        error = capsys.readouterr().err
        assert "is not UTF-8" in error and error.count("\n") == 1


def test_a_folder_whose_name_is_not_utf8_is_used_by_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for given in (tmp_path / "link" / "a.txt", tmp_path / "link"):
        assert with_absolute_paths(DatasetConfig(path=str(given))).path == str(given)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="is not UTF-8: rename it, or name it by a link"):
        with_absolute_paths(DatasetConfig(path="a.txt"))


def test_another_text_is_read_for_an_evaluation_as_for_training(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(STORIES))
    run = prepare(DatasetConfig(path=str(tmp_path / "a.txt"), tokenizer="byte"), tmp_path / "out", 8)
    (tmp_path / "b.jsonl").write_text(LINES)
    scored = as_validation_text(run, str(tmp_path / "b.jsonl"))
    assert scored.tokenizer.decode(scored.val_ids) == "".join(STORIES), "and not the JSON"
    assert len(scored.val_doc_offsets) == len(STORIES) + 1
    (tmp_path / "c.jsonl").write_text(LINES.replace('"text"', '"story"'))
    for column, usual in ((None, "story"), ("story", "text")):
        scored = as_validation_text(run, str(tmp_path / "c.jsonl"), column, usual)
        assert scored.metadata["val_text_chars"] == len("".join(STORIES))
    assert len(as_validation_text(run, str(tmp_path / "a.txt"), None, "story").val_doc_offsets) == 0
    with pytest.raises(UserError, match="has no columns"):
        as_validation_text(run, str(tmp_path / "a.txt"), "story")


def test_the_table_of_an_evaluation_holds_its_numbers() -> None:
    scores = {f"test_{name}": 1.5 for name in ("loss", "perplexity", "bits_per_byte", "bits_per_char")}
    record = {"name": "NanoGPT", "seed": 3, "folder": "runs/one", "test_tokens": 12345, **scores}
    head, line, note = evaluation_text([record | {"split_note": "beware"}], "test").splitlines()
    assert head.split()[0] == "model" and note == "beware"
    assert line.split() == ["NanoGPT", "3", "12,345", "1.5000", "1.50", "1.5000", "1.5000", "runs/one"]
