"""The content of a SentencePiece model file, which is a protocol buffer: its pieces and its normalisation.

Only the few fields that are needed are read, so that the library of protocol buffers is not.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PIECE, TRAINER, NORMALIZER = 1, 2, 3
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SCORE_STEPS = 64


class Piece(NamedTuple):
    """A piece as a model file has it, and where in the file its score stands (-1: nowhere, it is 0)."""

    text: str
    score: float
    kind: int
    position: int


@dataclass(frozen=True)
class ModelFile:
    """What a SentencePiece model consists of."""

    pieces: list[Piece]
    is_bpe: bool
    charsmap: bytes
    """The compiled map of characters; empty: none."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def read_model(content: bytes) -> ModelFile:
    """Read a model file. Raises ValueError if it is damaged."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, start, value in _fields(content, 0, len(content)):
            if not isinstance(value, bytes):
                continue
            end = start + len(value)
            if number == PIECE:
                pieces.append(_piece(content, start, end))
            elif number == TRAINER:
                trainer = {n: v for n, _, v in _fields(content, start, end)}
            elif number == NORMALIZER:
                normalizer = {n: v for n, _, v in _fields(content, start, end)}
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged ({error})") from None
    charsmap = normalizer.get(2, b"")
    return ModelFile(
        pieces=pieces,
        is_bpe=trainer.get(3, 1) == 2,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def with_exact_scores(content: bytes) -> bytes:
    """A unigram model whose scores are whole multiples of 1 / SCORE_STEPS.

    Sums of such scores are exact in single precision, up to a quarter of a million, and so the same in double. The cut
    of a line then does not depend on rounding, and other implementations find the same.
    """
    data = bytearray(content)
    for piece in read_model(content).pieces:
        if piece.position >= 0:
            struct.pack_into("<f", data, piece.position, round(piece.score * SCORE_STEPS) / SCORE_STEPS)
    return bytes(data)


def has_exact_scores(model: ModelFile) -> bool:
    """Whether the scores of a unigram model add up without rounding."""
    return all(piece.score * SCORE_STEPS == round(piece.score * SCORE_STEPS) for piece in model.pieces)


def training_problem(name: str, vocab_size: int, error: str) -> str:
    """SentencePiece's complaint in one line that says what to set."""
    asked = f"dataset.vocab_size {vocab_size}"
    if too_high := re.search(r"value <= (\d+)", error):
        advice = f"set it to {too_high[1]} or less, or use char or byte"
        return f"{asked} is too large for a {name} tokenizer of this text: {advice}"
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return f"{asked} is too small for a {name} tokenizer of this text: its characters need {too_low[1]}"
    return f"no {name} tokenizer can be trained on this text ({error.strip()}): use a longer text, or char"


def _piece(content: bytes, start: int, end: int) -> Piece:
    text, score, kind, position = "", 0.0, NORMAL, -1
    for number, at, value in _fields(content, start, end):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,), position = struct.unpack("<f", value), at
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind, position)


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int | bytes]]:
    """The number of each field, where its value begins, and the value: a number, or its bytes."""
    while start < end:
        key, start = _varint(content, start)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            at = start
            value, start = _varint(content, start)
            yield number, at, value
            continue
        if kind == BYTES:
            length, start = _varint(content, start)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise IndexError(f"a field of kind {kind}")
        if start + length > end:
            raise IndexError("a field reaches beyond the end")
        yield number, start, content[start : start + length]
        start += length


def _varint(content: bytes, start: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = content[start]
        value, shift, start = value | (byte & 0x7F) << shift, shift + 7, start + 1
        if byte < 0x80:
            return value, start
        if shift > 63:
            raise IndexError("a number of more than 64 bits")
