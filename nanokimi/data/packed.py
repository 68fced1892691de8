"""The bytes and the characters of a file, which may be packed with gzip or zstd, a block at a time."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nanokimi.data.formats import HEAD, compression_of, encoding_advice
from nanokimi.errors import UserError
from nanokimi.runtime.extras import how_to_install

BLOCK = 1 << 20
PACKED_BLOCK = 1 << 12
"""Bytes of a .zst file that are unpacked at a time; in the worst case they unpack to 128 MB."""
MAX_WINDOW = 1 << 31
"""The most that zstd may look back, in bytes: what `zstd --long=31` makes, its largest."""
AROUND = 1 << 15
"""Bytes on each side of a bad one that show what encoding it may be."""


def import_optional(name: str, wanted_by: object, extra: str = "data") -> Any:
    """Import a library that only some data, or another `extra`, needs. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        instead = ", or use --data tales, which needs nothing" if extra == "data" else ""
        raise UserError(
            f"{wanted_by} needs the library {name}, which is not installed: {how_to_install(extra)}{instead}"
        ) from None


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked. Raises UserError if it is missing, unreadable or damaged, also while read."""
    damaged: tuple[type[BaseException], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
    try:
        match compression_of(path):
            case ".gz":
                with gzip.open(path, "rb") as file:
                    yield file  # type: ignore[misc]
            case ".zst":
                zstandard = import_optional("zstandard", path)
                damaged += (zstandard.ZstdError,)
                with open(path, "rb") as packed:
                    yield io.BufferedReader(_ZstdReader(packed, zstandard), BLOCK)
            case _:
                with open(path, "rb") as file:
                    yield file
    except damaged as error:
        if "memory" in str(error):  # a window beyond the limit, or beyond what this process may use
            raise UserError(
                f"{path} cannot be unpacked ({error}): it was packed with a long window; unpack it, or pack it with "
                "plain zstd"
            ) from None
        raise UserError(f"{path} is damaged ({error}): make or download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file") from None


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[io.TextIOBase]:
    """The characters of a UTF-8 file, line ends as they are. Raises UserError that says where it is not UTF-8.

    With the encoding utf-8-sig, a byte-order mark at the beginning is no part of the text.
    """
    try:
        with open_bytes(path) as file:
            yield io.TextIOWrapper(io.BufferedReader(file, BLOCK), encoding=encoding, newline="\n")  # type: ignore[type-var]
    except UnicodeDecodeError:
        raise UserError(_locate_bad_byte(path)) from None


def read_blocks(path: Path) -> Iterator[str]:
    """The text of a file, about a million characters at a time."""
    with open_text(path) as file:
        while block := file.read(BLOCK):
            yield block


def head_of(path: Path) -> bytes:
    """The first bytes of a file, unpacked."""
    with open_bytes(path) as file:
        return file.read(HEAD)


def file_sha256(path: Path) -> str:
    """The hash of the file as it lies on disk."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


class _ZstdReader(io.RawIOBase):
    """Unpacks a zstd file; the library's own reader does not notice that a file was cut off."""

    def __init__(self, packed: IO[bytes], library: Any) -> None:
        self.packed = packed
        self.decompressor = library.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self.frame = self.decompressor.decompressobj()
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
                self.frame = self.decompressor.decompressobj()
            self.ready = memoryview(self.frame.decompress(block))
            self.fresh = False
        size = min(len(buffer), len(self.ready))
        buffer[:size] = self.ready[:size]
        self.ready = self.ready[size:]
        return size


def _locate_bad_byte(path: Path) -> str:
    """Say in one line where a file stops being UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, start = 0, 1, b""
    with open_bytes(path) as file:
        while True:
            block = file.read(BLOCK)
            start = start or block[:4]
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                around = error.object[max(error.start - AROUND, 0) : error.start + AROUND]
                advice = (
                    encoding_advice(start, around) if block else "it ends within a character: complete it"
                )
                return (
                    f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset "
                    f"{offset - pending + error.start} (line {line}) does not fit; {advice}"
                )
            if not block:
                return f"{path} is not UTF-8"
            offset += len(block)
            line += block.count(b"\n")
