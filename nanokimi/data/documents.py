"""Read the documents of .txt, .jsonl and .parquet files, plain, gzip or zstd, one at a time.

Nothing is cleaned or normalised: line ends, a byte-order mark and NUL characters are kept. In a .txt, lines that are
exactly `<|endoftext|>` separate documents (as in TinyStories and tales); such a line, and the line end before
it, belong to no document. A .txt without them is one document.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from nanokimi.errors import UserError
from nanokimi.runtime.text import one_line

END_OF_TEXT = "<|endoftext|>"
COMPRESSIONS = (".gz", ".zst")
FORMATS = (".txt", ".jsonl", ".parquet")
SEPARATOR_LINES = (END_OF_TEXT, END_OF_TEXT + "\n", END_OF_TEXT + "\r\n")
BLOCK = 1 << 20
PACKED_BLOCK = 1 << 12
"""Bytes of a .zst file that are unpacked at a time; in the worst case they unpack to 128 MB."""
MAX_DOCUMENT = 1 << 28
"""The most characters that a document may have: it is held in memory."""
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


def format_of(path: Path) -> str | None:
    """The format that a file's name says, without compression; None if it cannot be read."""
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    suffix = Path(name).suffix
    compressed = name != path.name.lower()
    return suffix if suffix in FORMATS and not (compressed and suffix == ".parquet") else None


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked. Raises UserError if it is missing, unreadable or damaged, also while read."""
    damaged: tuple[type[BaseException], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as file:
                yield file  # type: ignore[misc]
        elif path.name.lower().endswith(".zst"):
            zstandard = import_optional("zstandard", path)
            damaged += (zstandard.ZstdError,)
            with open(path, "rb") as packed:
                yield io.BufferedReader(_ZstdReader(packed, zstandard.ZstdDecompressor()), BLOCK)
        else:
            with open(path, "rb") as file:
                yield file
    except damaged as error:
        raise UserError(f"{path} is damaged ({error}): make or download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file") from None


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOBase]:
    """The characters of a UTF-8 file, line ends as they are. Raises UserError that says where it is not UTF-8."""
    try:
        with open_bytes(path) as file:
            yield io.TextIOWrapper(io.BufferedReader(file, BLOCK), encoding="utf-8", newline="\n")  # type: ignore[type-var]
    except UnicodeDecodeError:
        raise UserError(_locate_bad_byte(path)) from None


def read_blocks(path: Path) -> Iterator[str]:
    """The text of a file, about a million characters at a time."""
    with open_text(path) as file:
        while block := file.read(BLOCK):
            yield block


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


def _lines(file: io.TextIOBase, path: Path) -> Iterator[str]:
    """The lines of a file. Raises UserError for one that is longer than any document."""
    while line := file.readline(MAX_DOCUMENT):
        if len(line) == MAX_DOCUMENT:
            raise UserError(f"{path} has a line of more than {MAX_DOCUMENT} characters: break it up")
        yield line


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
    """The documents of one file, whose format its name says if `kind` does not."""
    kind = kind or format_of(path)
    if kind == ".txt":
        yield from split_blocks(read_blocks(path), path)
    elif kind == ".jsonl":
        yield from _read_jsonl(path, column)
    elif kind == ".parquet":
        yield from _read_parquet(path, column)
    else:
        raise UserError(
            f"{path} is of no known format: expected {', '.join(FORMATS)}, the first two also with .gz or .zst"
        )


def supported_files(folder: Path) -> list[Path]:
    """The files of a folder, and of those in it, that can be read, sorted by path; hidden ones are left out."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and format_of(path))
    shown = [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
    if not shown:
        raise UserError(f"{folder} holds no text: expected files that end in {', '.join(FORMATS)}")
    return shown


def file_sha256(path: Path) -> str:
    """The hash of the file as it lies on disk."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def import_optional(name: str, wanted_by: object) -> Any:
    """Import a library that only some data needs. Raises UserError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{wanted_by} needs the library {name}, which is not installed: pip install 'nanokimi[data]', or use "
            "--data tales, which needs nothing"
        ) from None


class _ZstdReader(io.RawIOBase):
    """Unpacks a zstd file; the library's own reader does not notice that a file was cut off."""

    def __init__(self, packed: IO[bytes], library: Any) -> None:
        self.packed, self.library = packed, library
        self.frame = library.decompressobj()
        self.ready = memoryview(b"")
        self.fresh = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            block = self.frame.unused_data if self.frame.eof else b""
            block = block or self.packed.read(PACKED_BLOCK)
            if not block:
                if not self.frame.eof and not self.fresh:
                    raise EOFError("it ends too early")
                return 0
            if self.frame.eof:
                self.frame = self.library.decompressobj()
            self.ready = memoryview(self.frame.decompress(block))
            self.fresh = False
        size = min(len(buffer), len(self.ready))
        buffer[:size] = self.ready[:size]
        self.ready = self.ready[size:]
        return size


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    with open_text(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number} is not JSON ({error}): repair or remove it") from None
            if not isinstance(record, dict) or column not in record:
                names = ", ".join(record) if isinstance(record, dict) else "none"
                raise UserError(
                    f"{path} line {number} has no column '{column}' (it has: {names}): name another with "
                    "--dataset.text_column"
                )
            yield require_text(record[column], column, f"{path} line {number}")


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


def require_column(column: str, names: list[str], source: object) -> None:
    """Raise UserError if there is no such column."""
    if column not in names:
        raise UserError(
            f"{source} has no column '{column}' (it has: {', '.join(names)}): name another with --dataset.text_column; "
            "--data tales needs none"
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


def _locate_bad_byte(path: Path) -> str:
    """Say in one line where a file stops being UTF-8."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, start = 0, 1, b""
    with open_bytes(path) as file:
        while True:
            block = file.read(BLOCK)
            start = start or block[:2]
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                bad = offset - pending + error.start
                line += error.object.count(b"\n", 0, error.start)
                encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                return (
                    f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {bad} (line {line}) does "
                    f"not fit; convert it, for example with: iconv -f {encoding} -t utf-8"
                )
            if not block:
                return f"{path} is not UTF-8"
            offset += len(block)
            line += block.count(b"\n")
