"""The documents of files: those of text between separators here, those of records (one each) in `records`.

Nothing is cleaned or normalised: line ends, a byte-order mark and NUL characters are kept. In a text, lines that are
exactly `<|endoftext|>` separate documents (as in TinyStories and tales); such a line, and the line end before
it, belong to no document. A text without them is one document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nanokimi.data.formats import format_of
from nanokimi.data.packed import BLOCK, open_bytes, read_blocks
from nanokimi.data.records import MAX_DOCUMENT, read_records
from nanokimi.errors import UserError

END_OF_TEXT = "<|endoftext|>"
SEPARATOR_LINES = (END_OF_TEXT, END_OF_TEXT + "\n", END_OF_TEXT + "\r\n")
LONG_DOCUMENT = (
    f"the data holds a document of more than {{}} characters: separate documents by lines '{END_OF_TEXT}', or name the "
    "file on its own"
)


class Document(NamedTuple):
    """A text and what its source knows about it."""

    text: str
    part: str | None = None
    """The part, if the data set has a split of its own: train, val or test, or "train|val" or "val|test" if the content
    decides between two; None if the content alone decides."""
    nats: float | None = None
    """Its exact negative log-probability, if the source is a known distribution."""
    alone: bool = False
    """Whether it is all the text there is for its two parts, which are then cut by position."""
    source: int = 0
    """Which text of a mixture it is from."""


def has_separators(path: Path) -> bool:
    """Whether any line of a text file separates documents."""
    with open_bytes(path) as file:
        rest = b"\n"
        while block := file.read(BLOCK):
            text = rest + block
            if END_OF_TEXT.encode() in text:
                lines = text.split(b"\n")
                if any(line.removesuffix(b"\r") == END_OF_TEXT.encode() for line in lines[1:-1]):
                    return True
            rest = b"\n" + text.rpartition(b"\n")[2][: 2 * len(END_OF_TEXT)]
            if len(rest) > 2 * len(END_OF_TEXT):
                rest = b"\nx"  # the line is longer than a separator, so its text no longer matters
        return rest[1:].removesuffix(b"\r") == END_OF_TEXT.encode()


def split_lines(lines: Iterator[str]) -> Iterator[str]:
    """Join lines (with their line ends) to documents at the separators; without any, all are one document."""
    current: list[str] = []
    line_end = ""
    size = 0
    for line in lines:
        if line in SEPARATOR_LINES:
            line_end = "\r\n" if line.endswith("\r\n") else "\n"
            yield "".join(current).removesuffix(line_end)
            current, size = [], 0
        else:
            current.append(line)
            size += len(line)
            if size > MAX_DOCUMENT:
                raise UserError(LONG_DOCUMENT.format(MAX_DOCUMENT))
    yield "".join(current).removesuffix(line_end)


def split_blocks(blocks: Iterable[str], name: object) -> Iterator[str]:
    """Do what `split_lines` does for a text in blocks, much faster: it does not look at each line."""
    document: list[str] = []  # whole lines of the one that is being read
    begun: list[str] = []  # the line at the end of the last block
    line_end = ""
    for block in blocks:
        head, newline, rest = block.rpartition("\n")
        if newline:
            *whole, (last, _) = _cut_at_separators("".join([*begun, head, newline]))
            for text, line_end in whole:
                yield _joined([*document, text], line_end, name)
                document = []
            document.append(last)
            begun = []
        begun.append(rest)
        if sum(map(len, document)) + sum(map(len, begun)) > MAX_DOCUMENT:
            _joined([*document, *begun], "", name)
    if "".join(begun) in SEPARATOR_LINES:
        yield _joined(document, "\n", name)
        document, begun, line_end = [], [], "\n"
    yield _joined([*document, *begun], line_end, name)


def _cut_at_separators(text: str) -> Iterator[tuple[str, str]]:
    """The text before each separator in some whole lines, with the line end; then the text after the last."""
    start = at = 0
    while (at := text.find(END_OF_TEXT, at)) >= 0:
        after = at + len(END_OF_TEXT)
        line_end = "\r\n" if text.startswith("\r\n", after) else "\n"
        if text.startswith(line_end, after) and (at == 0 or text[at - 1] == "\n"):
            yield text[start:at], line_end
            start = after = after + len(line_end)
        at = after
    yield text[start:], ""


def _joined(parts: list[str], line_end: str, name: object) -> str:
    """Join a document. Raises UserError if it, or a line of it, is too long."""
    text = "".join(parts)
    if len(text) > MAX_DOCUMENT:
        if max(map(len, text.splitlines(keepends=True))) >= MAX_DOCUMENT:
            raise UserError(f"{name} has a line of more than {MAX_DOCUMENT} characters: break it up")
        raise UserError(LONG_DOCUMENT.format(MAX_DOCUMENT))
    return text.removesuffix(line_end)


def read_documents(path: Path, column: str, kind: str | None = None) -> Iterator[str]:
    """The documents of one file, whose format its name says if `kind` does not: a .txt if neither says another."""
    kind = kind or format_of(path) or ".txt"
    return split_blocks(read_blocks(path), path) if kind == ".txt" else read_records(path, column, kind)
