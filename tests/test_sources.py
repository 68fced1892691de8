"""Reading one local text file and cutting it in two."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.data.sources import read_text, split_text
from nanokimi.errors import UserError


def write(folder: Path, data: bytes, name: str = "story.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_text(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    "text", ["a\r\nb\rc\n", "\ufeffwith a mark", "a\0b", "\U0001f600 e\u0301 \u2028", " \n\t ", "no newline"]
)
def test_text_is_the_file_unchanged(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text.encode("utf-8"))
    assert read_text(path) == text
    assert read_text(str(path)) == text


def test_missing_file_names_close_neighbours(tmp_path: Path) -> None:
    write(tmp_path, b"x", "tinyshakespeare.txt")
    write(tmp_path, b"x", "zebra")
    message = complaint(tmp_path / "tinyshakespear.txt")
    assert "tinyshakespeare.txt" in message.split("exist")[1]
    assert "zebra" not in message


def test_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'nowhere'}" in complaint(tmp_path / "nowhere" / "a.txt")


def test_folder_empty_file_and_impossible_name_are_refused(tmp_path: Path) -> None:
    assert "folder" in complaint(tmp_path)
    assert "empty" in complaint(write(tmp_path, b""))
    with pytest.raises(UserError, match="cannot be read"):
        read_text("a\0b")


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in complaint(write(tmp_path, b"x") / "inner.txt")


def test_other_encodings_are_located_and_named(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, "one\ntwo\ncaf\u00e9 and more".encode("latin1")))
    assert "offset 11" in message and "line 3" in message and "iconv -f latin1 -t utf-8" in message
    assert "iconv -f utf-16" in complaint(write(tmp_path, "hello".encode("utf-16")))


def test_encoded_surrogate_is_not_utf8(tmp_path: Path) -> None:
    assert "offset 1 " in complaint(write(tmp_path, b"a\xed\xa0\x80"))


def test_split_is_nanogpts_for_tinyshakespeare() -> None:
    train, val = split_text("x" * 1_115_394, 0.1)
    assert (len(train), len(val)) == (1_003_854, 111_540)


def test_split_does_not_suffer_from_floating_point() -> None:
    assert int(10 * (1 - 0.9)) == 0, "the trap that this test is about"
    assert split_text("0123456789", 0.9) == ("0", "123456789")
    assert split_text("x" * 1000, 0.001)[1] == "x"


@settings(deadline=None)
@given(st.text(min_size=2), st.floats(0.001, 0.999))
def test_split_loses_nothing_and_leaves_no_side_empty(text: str, fraction: float) -> None:
    try:
        train, val = split_text(text, fraction)
    except UserError:
        assert len(text) * min(fraction, 1 - fraction) < 1
    else:
        assert train + val == text and train and val
        assert abs(len(val) - len(text) * fraction) <= 1


@pytest.mark.parametrize(("text", "fraction"), [("", 0.1), ("a", 0.1), ("a", 0.9), ("abc", 0.9)])
def test_split_refuses_an_empty_side(text: str, fraction: float) -> None:
    with pytest.raises(UserError, match="too few"):
        split_text(text, fraction)
