"""Reading one local text file and cutting it into parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import DatasetConfig
from nanokimi.data.parts import MIN_PART, split_positions
from nanokimi.data.sources import read_text
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


def cuts(characters: int, **settings: object) -> tuple[int, int, int]:
    """The sizes of the parts."""
    val, test = split_positions(characters, DatasetConfig(path="some", **settings))  # type: ignore[arg-type]
    return val, test - val, characters - test


def test_nanogpts_split_is_its_own_cut_of_tinyshakespeare() -> None:
    val, test = split_positions(1_115_394, DatasetConfig(split="nanogpt"))
    assert val == test == int(1_115_394 * 0.9) == 1_003_854, "validation and test are the same text"


def test_one_text_is_cut_into_training_validation_and_test_in_this_order() -> None:
    assert cuts(10_000) == (8000, 1000, 1000)
    assert cuts(10_000, val_fraction=0.2) == (6000, 2000, 2000), "test is as large as validation"
    assert cuts(10_000, val_fraction=0.2, test_fraction=0.05) == (7500, 2000, 500)


def test_split_does_not_suffer_from_floating_point() -> None:
    assert int(10_000 * (1 - 0.8 - 0.1)) == 999, "the trap that this test is about"
    assert cuts(10_000, val_fraction=0.8, test_fraction=0.1) == (1000, 8000, 1000)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.booleans())
def test_split_loses_nothing_and_leaves_no_part_small(
    size: int, val: float, test: float, nanogpt: bool
) -> None:
    if val + test >= 0.9999:
        return
    settings = {"split": "nanogpt"} if nanogpt else {"val_fraction": val, "test_fraction": test}
    val, test = (0.1, 0.1) if nanogpt else (val, test)
    try:
        parts = split_positions(size, DatasetConfig(path="some", **settings))  # type: ignore[arg-type]
    except UserError as error:
        assert size * min(val, test) < MIN_PART and "\n" not in str(error)
    else:
        sizes = parts[0], (size if nanogpt else parts[1]) - parts[0], size - parts[1]
        assert min(sizes[1:]) >= MIN_PART and sizes[0] > 0
        assert abs(sizes[1] - size * val) <= 1 and abs(sizes[2] - size * test) <= 1


def test_a_small_text_is_refused_with_the_length_that_is_enough() -> None:
    """One of a few kilobytes is cut; below a thousand characters a score would say nothing."""
    assert cuts(1000) == (800, 100, 100)
    with pytest.raises(UserError, match="some has 999 characters.* need 100 each, so at least 1,000 in all"):
        cuts(999)
    with pytest.raises(UserError, match="at least 5,000 in all"):
        cuts(4999, val_fraction=0.3, test_fraction=0.02)
    with pytest.raises(UserError, match="some has 0 characters"):
        cuts(0, split="nanogpt")
