"""Files that hold one document in each record: JSON lines, JSON, CSV, TSV and parquet.

A byte-order mark at the beginning of such a file is no part of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanokimi.data.packed import import_optional, open_text
from nanokimi.errors import UserError
from nanokimi.runtime.text import one_line

MAX_DOCUMENT = 1 << 28
"""The most characters that a document may have: it is held in memory."""
JSON_BLOCK = 1 << 20
SHOWN_NAMES = 500
"""Characters of a list of names that a message shows."""
SPACE = " \t\n\r"
NEAR_THE_END = 16
"""A word or number of JSON that is cut off is complained about this close to the end of what was read, at most."""
CUT_OFF = ("Unterminated string", "Invalid \\")
"""How json begins to say that a string goes on after what was read."""


def read_records(path: Path, column: str, kind: str) -> Iterator[str]:
    """The documents of a file of one of the COLUMN_FORMATS."""
    match kind:
        case ".jsonl":
            yield from _read_jsonl(path, column)
        case ".json":
            yield from _read_json(path, column)
        case ".parquet":
            yield from _read_parquet(path, column)
        case _:
            yield from _read_table(path, column, "," if kind == ".csv" else "\t")


def require_column(column: str, names: list[str], source: object) -> None:
    """Raise UserError if there is no such column."""
    if column not in names:
        raise UserError(
            f"{source} has no column '{column}' (it has: {', '.join(names)[:SHOWN_NAMES]}): name another with "
            "--dataset.text_column; --data tales needs none"
        )


def require_text(value: object, column: str, where: object) -> str:
    """A column's value as text; null is an empty document."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: column '{column}' holds {type(value).__name__}, not text: name another column"
        )
    return value


def lines(file: io.TextIOBase, path: Path) -> Iterator[str]:
    """The lines of a file. Raises UserError for one that is longer than any document."""
    while line := file.readline(MAX_DOCUMENT):
        if len(line) == MAX_DOCUMENT:
            raise UserError(f"{path} has a line of more than {MAX_DOCUMENT} characters: break it up")
        yield line


def _text_of(record: object, column: str, where: str) -> str:
    """The text of a record of JSON."""
    if not isinstance(record, dict) or column not in record:
        names = ", ".join(record)[:SHOWN_NAMES] if isinstance(record, dict) else "none"
        raise UserError(
            f"{where} has no column '{column}' (it has: {names}): name another with --dataset.text_column"
        )
    return require_text(record[column], column, where)


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with open_text(path, "utf-8-sig") as file:
        for number, line in enumerate(lines(file, path), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number} is not JSON ({error}): repair or remove it") from None
            yield _text_of(record, column, f"{path} line {number}")


def _read_json(path: Path, column: str) -> Iterator[str]:
    """An array of objects or of texts, or objects one after another; one of them at a time is in memory."""
    with open_text(path, "utf-8-sig") as file:
        values = _JsonValues(file, path)
        is_array = values.next() == "["
        for value in values.of_array() if is_array else values.in_sequence():
            if is_array and isinstance(value, str):
                yield value
            else:
                yield _text_of(value, column, f"{path} line {values.line}")


class _JsonValues:
    """The values of JSON text, of which only the one that is being read is in memory."""

    def __init__(self, file: io.TextIOBase, path: Path) -> None:
        self.file, self.path = file, path
        self.text = ""
        self.at = 0
        self.line = 1
        """Where the next value begins."""

    def in_sequence(self) -> Iterator[object]:
        """Values that stand one after another, with white space between them."""
        while self.next():
            yield self.value()

    def of_array(self) -> Iterator[object]:
        """The elements of an array, which is all that the text holds."""
        self.at += 1
        mark = self.next()
        while mark != "]":
            self.next()
            yield self.value()
            mark = self.next()
            if mark not in (",", "]"):
                raise self.wrong("an array needs a comma here, or its end")
            if mark == ",":
                self.at += 1
        self.at += 1
        if self.next():
            raise self.wrong("something follows the array")

    def next(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            start, size = self.at, len(self.text)
            while self.at < size and self.text[self.at] in SPACE:
                self.at += 1
            self.line += self.text.count("\n", start, self.at)
            if self.at < size:
                return self.text[self.at]
            if not self.fill():
                return ""

    def value(self) -> object:
        """The value that begins here. Raises UserError if it is not JSON."""
        decoder = json.JSONDecoder()
        while True:
            try:
                found, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.text) - NEAR_THE_END or error.msg.startswith(CUT_OFF)
                if not is_cut or not self.fill():
                    self.line += self.text.count("\n", self.at, error.pos)
                    raise self.wrong(error.msg) from None
            except (ValueError, RecursionError) as error:
                raise self.wrong(str(error)) from None
            else:
                self.line += self.text.count("\n", self.at, end)
                self.at = end
                return found

    def fill(self) -> bool:
        """Read more, at least as much as there is; False at the end."""
        rest = self.text[self.at :]
        if len(rest) > MAX_DOCUMENT:
            raise UserError(f"{self.path} has a record of more than {MAX_DOCUMENT} characters: break it up")
        more = self.file.read(max(JSON_BLOCK, len(rest)))
        self.text, self.at = rest + more, 0
        return bool(more)

    def wrong(self, reason: str) -> UserError:
        """What is wrong at this place."""
        return UserError(f"{self.path} line {self.line} is not JSON ({reason}): repair or remove it")


def _read_table(path: Path, column: str, delimiter: str) -> Iterator[str]:
    """A table whose first line names the columns."""
    csv.field_size_limit(MAX_DOCUMENT)
    with open_text(path, "utf-8-sig") as file:
        rows = csv.reader(lines(file, path), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            require_column(column, names, path)
            place = names.index(column)
            for row in rows:
                if row and len(row) != len(names):
                    raise UserError(
                        f"{path} line {rows.line_num} has {len(row)} columns, and the first line {len(names)}: put "
                        "text with commas, tabs or line ends in quotes"
                    )
                if row:
                    yield row[place]
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num} cannot be read ({error}): repair it") from None


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    parquet = import_optional("pyarrow.parquet", path)
    arrow = import_optional("pyarrow", path)
    try:
        with parquet.ParquetFile(path) as file:
            require_column(column, file.schema_arrow.names, path)
            kind = file.schema_arrow.types[file.schema_arrow.names.index(column)]
            if not _is_text(arrow, kind):
                raise UserError(f"{path}: column '{column}' holds {kind}, not text: name another column")
            # Few rows at a time, because a small file may hold the same long text very many times.
            for batch in file.iter_batches(batch_size=16, columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield require_text(text, column, path)
    except UserError:
        raise
    except (OSError, ValueError, arrow.ArrowException) as error:  # ValueError: text that is not UTF-8
        reason = one_line(error)
        raise UserError(f"{path} is not a parquet file, or is damaged ({reason}): make it again") from None


def _is_text(arrow: Any, kind: Any) -> bool:
    """Whether values of an Arrow type are text, or null."""
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        arrow.types.is_string,
        arrow.types.is_large_string,
        arrow.types.is_string_view,
        arrow.types.is_null,
    )
    return any(test(kind) for test in tests)
