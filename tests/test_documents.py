"""Files of every format give the documents that were written into them, and every damage is one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import DatasetConfig
from nanokimi.data import documents, packed, sources
from nanokimi.data.corpus import MAX_PIECE_CHARS, PIECE_CHARS, cut_pieces
from nanokimi.data.documents import (
    has_separators,
    read_documents,
    split_blocks,
    split_lines,
)
from nanokimi.data.packed import read_blocks
from nanokimi.data.sources import open_source, with_absolute_paths
from nanokimi.errors import UserError
from nanokimi.runtime.extras import how_to_install

STORIES = ["One day,\na cat.\r\n\r\nIt sat.", "caf\u00e9 \U0001f600", " two\u2028lines \0", "last"]
END = "<|endoftext|>"
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write(path: Path, stories: list[str], column: str = "text") -> Path:
    """The stories as a file of the format that the name says."""
    pack = PACK[path.suffix if path.suffix in PACK else ""]
    if ".jsonl" in path.name:
        lines = [json.dumps({"id": 1, column: story}) for story in stories]
        path.write_bytes(pack("\n".join(lines).encode()))
    elif path.suffix == ".parquet":
        table = pyarrow.table({"id": list(range(len(stories))), column: stories})
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        path.write_bytes(pack(f"\n{END}\n".join(stories).encode()))
    return path


def complaint(path: Path, column: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        list(read_documents(path, column))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


NAMES = ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "A.TXT"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, STORIES)
    assert list(read_documents(path, "text")) == STORIES
    source = open_source(DatasetConfig(path=str(path)))
    assert source.documents is not None and source.text_file is None
    assert [document.text for document in source.documents()] == STORIES


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_another_column_can_be_named_and_a_missing_one_lists_what_there_is(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, STORIES, column="story")
    assert list(read_documents(path, "story")) == STORIES
    assert "it has: id, story" in complaint(path) and "text_column" in complaint(path)
    assert "not text" in complaint(path, "id")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_text_without_separators_is_one_contiguous_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [f"no {END} on a line of its own\nhere"])
    source = open_source(DatasetConfig(path=str(path)))
    assert source.text_file == path and source.documents is None
    assert "".join(read_blocks(path)) == f"no {END} on a line of its own\nhere"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.parquet"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [f"story {i}" for i in range(1000)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "damaged" in complaint(path)
    path.write_bytes(b"garbage!" + data)
    if name != "a.parquet":  # whose directory stands at its end
        assert "damaged" in complaint(path)


def test_packed_files_may_have_several_frames(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(PACK[suffix](b"one ") + PACK[suffix](b"two ") + PACK[suffix](b"x" * 3_000_000))
        assert "".join(read_blocks(path)) == "one two " + "x" * 3_000_000


def test_bad_lines_are_located(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": \n')
    assert "line 3 is not JSON" in complaint(path)
    path.write_text('{"text": "a"}\n[1]\n')
    assert "line 2 has no column 'text'" in complaint(path)
    path.write_text('{"text": null}\n{"text": 3}\n')
    assert "line 2: column 'text' holds int" in complaint(path)
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert "offset 27 (line 2)" in complaint(path) and "iconv -f latin1" in complaint(path)


def test_bad_bytes_are_located_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BLOCK", 4)
    path = tmp_path / "a.txt"
    for good in range(12):
        path.write_bytes(b"\xc3\xa9\n" * good + b"\xff and more")
        assert f"offset {3 * good} (line {good + 1})" in complaint(path)
    path.write_bytes(b"abc\xe2\x82")
    assert "offset 3 (line 1)" in complaint(path)


def test_a_folder_is_read_in_order_and_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "b" / ".git").mkdir(parents=True)
    write(tmp_path / "b" / "one.txt", ["whole\n"])
    write(tmp_path / "a.jsonl", ["first", "second"])
    write(tmp_path / "c.txt", ["third", "fourth"])
    write(tmp_path / "b" / ".git" / "no.txt", ["hidden"])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "x.parquet.gz").write_bytes(b"no such thing")
    source = open_source(DatasetConfig(path=str(tmp_path)))
    assert source.documents is not None
    assert [d.text for d in source.documents()] == ["first", "second", "whole\n", "third", "fourth"]
    before = source.fingerprint
    write(tmp_path / "c.txt", ["third", "fifth"])
    assert open_source(DatasetConfig(path=str(tmp_path))).fingerprint != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no text"):
        open_source(DatasetConfig(path=str(tmp_path / "empty")))


def lines_of(text: str) -> list[str]:
    return [line + "\n" for line in text.split("\n")[:-1]] + [text.split("\n")[-1]]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab\r\n<|", max_size=6), min_size=1), st.booleans())
def test_separated_documents_come_back(stories: list[str], last: bool) -> None:
    """A line end that belongs to the separator is no part of a document; all others are."""
    text = f"\n{END}\n".join(stories) + (f"\n{END}\n" if last else "")
    expected = [*stories, ""] if last else stories
    if len(expected) > 1:  # the end of a file ends a line as well
        expected = [*expected[:-1], expected[-1].removesuffix("\n")]
    assert list(split_lines(iter(lines_of(text)))) == expected


PARTS = (
    END,
    f"\n{END}\n",
    f"\r\n{END}\r\n",
    f"\n{END}\r\n",
    "\n",
    "\r",
    "\r\n",
    "<|",
    "a",
    END[:-1],
    "\u2028",
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.integers(1, 40))
def test_blocks_of_any_size_give_the_documents_of_lines(text: str, size: int) -> None:
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(split_blocks(blocks, "it")) == list(split_lines(iter(lines_of(text))))


def test_windows_line_ends_belong_to_the_separator() -> None:
    text = f"one\r\n{END}\r\ntwo\r\n{END}\r\n"
    assert list(split_lines(iter(lines_of(text)))) == ["one", "two", ""]


@pytest.mark.parametrize("size", [1, 2, 5, 13, 14, 40, 1 << 20])
@pytest.mark.parametrize(
    ("text", "expected"),
    [(END, True), (f"{END}\n", True), (f"a\n{END}", True), (f"a\n{END}\r\nb", True), (f"\n\n{END}\n\n", True)]
    + [(f"{END}{END}\n", False), (f"x{END}\n", False), (f"{END} \n", False), ("", False), ("a\n" * 50, False)]
    + [("x" * 60 + f"\n{END}\n", True), ("x" * 60 + END, False), (f"{END[:-1]}\n{END}x\n", False)],
)
def test_separators_are_found_wherever_a_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: bool, size: int
) -> None:
    monkeypatch.setattr(documents, "BLOCK", size)
    path = tmp_path / "a.txt"
    path.write_text(text, newline="")
    assert has_separators(path) == expected


def test_pieces_join_to_the_text_and_begin_lines() -> None:
    line = "a line of words, ending\n\n  then spaces\n"
    text = line * (3 * PIECE_CHARS // len(line))
    pieces = list(cut_pieces([text[:1000], text[1000:]]))
    assert "".join(pieces) == text and len(pieces) >= 3
    assert all(len(piece) < 2 * PIECE_CHARS for piece in pieces)
    assert all(piece[-1] == "\n" and not after[0].isspace() for piece, after in zip(pieces, pieces[1:]))  # noqa: B905
    assert list(cut_pieces(["short"])) == ["short"] and list(cut_pieces([])) == []
    endless = "x" * (MAX_PIECE_CHARS + 10)
    assert [len(piece) for piece in cut_pieces([endless])] == [MAX_PIECE_CHARS, 10]


def test_settings_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.txt", ["one text"]))
    for setting, message in (
        ({"fraction": 0.5}, "dataset.fraction takes part of the documents"),
        ({"streaming": True}, "dataset.streaming is for Hub data sets"),
        ({"characters": 5}, "dataset.characters is for tales only"),
        ({"text_column": "story"}, "has no columns"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(DatasetConfig(path=path, **setting))  # type: ignore[arg-type]


def test_a_missing_library_is_named_and_so_is_tales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", STORIES)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    message = complaint(path)
    assert "pyarrow" in message and how_to_install("data") in message and "--data tales" in message


def test_names_stay_names_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "tales",
        "tales:7",
        "tales-short",
        "tales-short:7",
        "tinystories",
        "tinystories-v2",
        "hf:a/b:c",
    ):
        assert with_absolute_paths(DatasetConfig(path=name)).path == name
    moved = with_absolute_paths(DatasetConfig(path="a.txt", tokenizer="t.json"))
    assert moved.path == str(tmp_path / "a.txt") and moved.tokenizer == str(tmp_path / "t.json")
    assert with_absolute_paths(DatasetConfig()).path == ""


def test_tales_take_a_seed_that_is_a_number() -> None:
    with pytest.raises(UserError, match="expected tales or tales:SEED"):
        open_source(DatasetConfig(path="tales:one"))


def test_tales_stop_when_there_are_enough_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written against the interface of nanokimi.tales, with a stand-in for its stories."""
    import types

    def iterate_stories(seed: int, start: int, name: str):  # type: ignore[no-untyped-def]
        number = start
        while True:
            yield types.SimpleNamespace(text=f"story {seed} {number:04d}", log_probability=-2.5)
            number += 1

    stand_in = types.SimpleNamespace(VERSION=3, END_OF_TEXT=END, iterate_stories=iterate_stories)
    monkeypatch.setattr(sources.importlib, "import_module", lambda name: stand_in)
    source = open_source(DatasetConfig(path="tales:7", characters=100))
    assert source.documents is not None
    found = list(source.documents())
    assert [d.text for d in found] == [f"story 7 {i:04d}" for i in range(9)]
    assert all(d.nats == 2.5 and d.part is None for d in found)
    assert source.fingerprint == {"tales": 3, "seed": 7, "characters": 100}
