"""What a file holds is decided by the name that was given and by its content, and is never guessed in silence."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import make_text

from nanokimi import cli
from nanokimi.config import DatasetConfig
from nanokimi.data import corpus
from nanokimi.data.build import prepare_store
from nanokimi.data.nanogpt import build_from_tokens
from nanokimi.data.sources import open_source, with_absolute_paths
from nanokimi.data.store import prepare
from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json

TEXTS = ["one story\n", "another, with commas", "the third"]


def documents_of(path: Path, column: str = "text") -> list[str]:
    dataset = with_absolute_paths(DatasetConfig(path=str(path), text_column=column))
    documents = open_source(dataset).documents
    assert documents is not None
    return [document.text for document in documents()]


def complaint(path: Path, column: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        documents_of(path, column)
    return str(caught.value)


def written(folder: Path, name: str) -> Path:
    """TEXTS in a file whose name says its format."""
    path = folder / name
    records = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    table = "id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS))
    content = {
        ".jsonl": lines,
        ".ndjson": lines,
        ".json": json.dumps(records, indent=1),
        ".csv": table,
        ".tsv": table.replace(",", "\t", 1).replace(',"', '\t"'),
    }
    ending = Path(name.removesuffix(".gz")).suffix
    if ending == ".parquet":
        pyarrow.parquet.write_table(pa.table({"text": TEXTS}), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(content[ending].encode()))
    else:
        path.write_text(content[ending])
    return path


NAMES = ["a.jsonl", "a.ndjson", "a.json", "a.json.gz", "a.csv", "a.tsv", "a.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_records_are_documents(name: str, tmp_path: Path) -> None:
    assert documents_of(written(tmp_path, name)) == TEXTS
    assert "no column 'story'" in complaint(tmp_path / name, "story")


@pytest.mark.parametrize("name", NAMES)
def test_a_link_says_the_format(name: str, tmp_path: Path) -> None:
    """As in the caches of Hub data sets, of DVC and of git-annex, whose files are named after their hashes."""
    (tmp_path / "blob").mkdir()
    written(tmp_path, name).rename(tmp_path / "blob" / "3f2a")
    (tmp_path / "link").mkdir()
    os.symlink("../blob/3f2a", tmp_path / "link" / name)
    assert documents_of(tmp_path / "link" / name) == documents_of(tmp_path / "link") == TEXTS


def test_a_pipe_and_a_lost_link_are_named_as_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is a device or a pipe" in complaint(tmp_path / "pipe.txt")
    os.symlink("gone", tmp_path / "lost.txt")
    assert "is a link to a file that is not there" in complaint(tmp_path / "lost.txt")


def test_json_is_read_whatever_its_form_and_located_where_it_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanokimi.data.records.JSON_BLOCK", 7)
    path = tmp_path / "a.json"
    for content in (json.dumps(TEXTS), json.dumps([{"text": text} for text in TEXTS])):
        path.write_text(content)
        assert documents_of(path) == TEXTS
    path.write_text("\n".join(json.dumps({"text": text}, indent=2) for text in TEXTS))
    assert documents_of(path) == TEXTS
    path.write_text('[{"text": "fine"},\n {"text": oops}]')
    assert "line 2 is not JSON" in complaint(path)
    path.write_text('["cut off')
    assert "is not JSON" in complaint(path)


def test_a_byte_order_mark_is_no_part_of_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "x"}).encode())
    assert documents_of(tmp_path / "a.jsonl") == ["x"]


def test_what_is_no_text_is_refused_by_name_and_by_content(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "a.zip", "b")
    (tmp_path / "train.bin").write_bytes(bytes(100))
    (tmp_path / "blob").write_bytes((tmp_path / "a.zip").read_bytes())
    (tmp_path / "text").write_bytes(np.arange(500, dtype="<u4").tobytes())
    assert ".zip is not read: unpack it" in complaint(tmp_path / "a.zip")
    assert ".tar is not read: unpack it" in complaint(tmp_path / "a.tar.gz")
    assert "name that" in complaint(tmp_path / "train.bin")
    assert "is a zip archive, whatever its name" in complaint(tmp_path / "blob")
    assert "are NUL" in complaint(tmp_path / "text")
    (tmp_path / "lines").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert "holds JSON lines" in complaint(tmp_path / "lines")


def test_latin1_is_advised_only_where_it_is_likely(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Die Bären hören müde zu. ".encode("latin1") * 20)
    assert "iconv -f latin1 -t" in complaint_of_blocks(path)
    path.write_bytes("从前有一个小女孩。".encode("gb18030") * 20)
    assert "gb18030" in complaint_of_blocks(path) and "-f latin1" not in complaint_of_blocks(path)


def complaint_of_blocks(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare_store(DatasetConfig(path=str(path), tokenizer="byte"))
    return str(caught.value)


def test_a_folder_of_other_text_is_documents_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    for name in ("a.md", "b.py", "notes"):
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n" + bytes(80))
    assert documents_of(tmp_path) == ["# a.md", "# b.py", "# notes"]
    source = open_source(DatasetConfig(path=str(tmp_path)))
    assert len(source.notes) == 1 and "1 of 4 files are left out" in source.notes[0]
    assert "picture.png" in source.notes[0]


def test_files_named_as_parts_are_the_parts(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, start in (("X-train.jsonl", 0), ("X-valid.jsonl", 1000)):
        lines = [json.dumps({"text": f"story {start + i}"}) for i in range(200)]
        (folder / name).write_text("\n".join(lines))
    data = prepare(DatasetConfig(path=str(folder), tokenizer="byte"), tmp_path / "out", 4)
    metadata = data.metadata
    assert "1 of train, 1 of val" in metadata["notes"][0]
    whole = data.tokenizer.decode(data.val_ids.tolist()) + data.tokenizer.decode(data.test_ids.tolist())
    assert "story 1000" in whole and "story 0" not in whole
    (folder / "more.jsonl").write_text('{"text": "no part"}')
    assert "more.jsonl is not" in open_source(DatasetConfig(path=str(folder))).notes[0]


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_ids_of_nanogpt_have_the_width_that_they_were_written_with(dtype: str, tmp_path: Path) -> None:
    ids = np.arange(256).repeat(8)
    for name in ("train.bin", "val.bin"):
        ids.astype(dtype).tofile(tmp_path / name)
    (tmp_path / "store").mkdir()
    import pickle

    characters = [chr(i) for i in range(256)]
    with open(tmp_path / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": 256, "itos": dict(enumerate(characters))}, file)
    build_from_tokens(DatasetConfig(path=str(tmp_path)), tmp_path / "store")
    metadata = read_json(tmp_path / "store" / "data.json")
    assert metadata["train_tokens"] == len(ids)


def test_settings_that_tokens_ignore_are_refused(tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        np.arange(100, dtype="<u2").tofile(tmp_path / name)
    for changed, words in (
        ({"tokenizer": "bpe"}, "holds tokens already"),
        ({"text_column": "x"}, "no columns"),
    ):
        with pytest.raises(UserError, match=words):
            prepare_store(DatasetConfig(path=str(tmp_path), **changed))  # type: ignore[arg-type]


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(make_text())
    read = corpus.read_blocks

    def grows(name: Path) -> object:
        with open(name, "a") as file:
            file.write("more")
        return read(name)

    monkeypatch.setattr(corpus, "read_blocks", grows)
    dataset = DatasetConfig(path=str(path), tokenizer="byte")
    with pytest.raises(UserError, match="changed while it was read"):
        prepare_store(dataset)
    monkeypatch.undo()
    before = path.read_text()
    store = read_json(prepare_store(dataset) / "data.json")
    assert store["chars"] == len(before) and path.read_text() == before


def test_a_finished_store_is_found_in_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(make_text())
    dataset = DatasetConfig(path=str(tmp_path / "a.txt"), tokenizer="byte", cache=str(tmp_path / "cache"))
    store = prepare_store(dataset)

    def refuse(*_: object) -> None:
        raise AssertionError("the cache was locked")

    monkeypatch.setattr("nanokimi.data.build.locked", refuse)
    assert prepare_store(dataset) == store


def test_home_is_found_and_names_that_are_not_utf8_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text(make_text())
    assert with_absolute_paths(DatasetConfig(path="~/a.txt")).path == str(tmp_path / "a.txt")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")
    Path(name).write_text(make_text())
    for words in (["--data", name], ["--data", str(tmp_path / "a.txt"), "--out", name + "x"]):
        assert cli.main(["prepare", "--dataset.tokenizer", "byte", *words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "UTF-8" in lines[0], lines
