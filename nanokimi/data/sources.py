"""What `dataset.path` may name, and reading a whole file exactly.

Nothing is cleaned or normalised: line ends, a byte-order mark and NUL characters are kept, so that the bytes
of the text are the bytes of the file and a score per byte means what it says.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanokimi.config import DatasetConfig
from nanokimi.data.documents import (
    Document,
    file_sha256,
    format_of,
    has_separators,
    read_blocks,
    read_documents,
    supported_files,
)
from nanokimi.data.hub import hub_set
from nanokimi.errors import UserError

TALES = ("tales", "tales-short")
"""The built-in story worlds."""
NAMES = (*TALES, "tinystories", "tinystories-v2")
DEFAULT_CHARACTERS = 20_000_000
"""Characters of tales, enough for the presets of a few minutes (not tuned)."""


@dataclass(frozen=True)
class Source:
    """A text, or documents, that can be read repeatedly."""

    fingerprint: dict[str, Any]
    """Two sources with the same fingerprint hold the same text."""
    file_bytes: int | None = None
    """Size on disk; None if it does not come from files."""
    sha256: str | None = None
    """Hash of the file, or of the names and hashes of all files."""
    text_file: Path | None = None
    """The file of one contiguous text, cut by position; None: documents."""
    documents: Callable[[], Iterator[Document]] | None = None
    """The documents, to be split by content."""


def is_name(path: str) -> bool:
    """Whether a `dataset.path` is the name of a data set and not a file or folder."""
    return path in NAMES or path.startswith((*(f"{name}:" for name in TALES), "hf:"))


def with_absolute_paths(dataset: DatasetConfig) -> DatasetConfig:
    """`dataset` with absolute paths, so that it is found from any folder."""
    if dataset.path and not is_name(dataset.path):
        dataset = replace(dataset, path=_absolute(dataset.path))
    if dataset.tokenizer.endswith((".json", ".model")):
        dataset = replace(dataset, tokenizer=_absolute(dataset.tokenizer))
    return dataset


def _absolute(path: str) -> str:
    try:
        return str(Path(path).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a NUL in the name
        raise UserError(f"{path} cannot be a path ({error}): check it") from None


def open_source(dataset: DatasetConfig) -> Source:
    """What `dataset.path` names. Raises UserError if it does not exist, or if a setting does not apply to it."""
    path = dataset.path
    if not path:
        raise UserError("dataset.path is not set: name a text file with --data")
    if dataset.characters is not None and path.partition(":")[0] not in TALES:
        raise UserError(f"dataset.characters is for tales only: leave it out with --data {path}")
    if path.partition(":")[0] in TALES:
        source = _tales(dataset)
    elif found := hub_set(path, dataset.text_column, dataset.streaming):
        _refuse_split(dataset)
        return Source(found.fingerprint(), documents=found.documents)
    else:
        source = _local(Path(path), dataset.text_column)
    if dataset.streaming:
        raise UserError(f"dataset.streaming is for Hub data sets only: leave it out with --data {path}")
    if source.text_file is not None and dataset.fraction < 1:
        raise UserError(
            f"dataset.fraction takes part of the documents, and {path} is a single one (it has no lines "
            "'<|endoftext|>'): leave it out"
        )
    if source.text_file is None:
        _refuse_split(dataset)
    return source


def _refuse_split(dataset: DatasetConfig) -> None:
    """Refuse nanoGPT's split, which is by position, for documents."""
    if dataset.split == "nanogpt":
        raise UserError(
            f"dataset.split nanogpt cuts a single text, or takes a folder's train.bin and val.bin, and {dataset.path} "
            "holds documents: leave it out"
        )


def _local(path: Path, column: str) -> Source:
    """A file or a folder."""
    _require_readable(path)
    if path.is_dir():
        files = supported_files(path)
        hashes = [(str(file.relative_to(path)), file_sha256(file)) for file in files]
        digest = hashlib.sha256(repr(hashes).encode()).hexdigest()
    else:
        files, digest = [path], file_sha256(path)
    size = sum(file.stat().st_size for file in files)
    if not size:
        raise UserError(f"{path} is empty: name a file with text in it")
    if not path.is_dir() and format_of(path) is None:
        files_kind = ".txt"  # any other name is taken for a text file
    else:
        files_kind = "" if path.is_dir() else str(format_of(path))
    if files_kind == ".txt":
        _refuse_column(column, str(path))
    if files_kind == ".txt" and not has_separators(path):
        return Source({"text": digest, "name": path.suffix}, size, digest, text_file=path)

    def documents() -> Iterator[Document]:
        for file in files:
            yield from map(Document, read_documents(file, column, files_kind or None))

    return Source({"documents": digest, "column": column}, size, digest, documents=documents)


def _tales(dataset: DatasetConfig) -> Source:
    """Stories of a built-in world until there are enough characters."""
    _refuse_column(dataset.text_column, dataset.path)
    name, _, seed_text = dataset.path.partition(":")
    seed_text = seed_text or "0"
    if not seed_text.isdecimal() or len(seed_text) > 18:
        raise UserError(
            f"dataset.path is {dataset.path}: expected {name} or {name}:SEED, a number of up to 18 digits"
        )
    seed, wanted = int(seed_text), dataset.characters or DEFAULT_CHARACTERS
    try:
        tales = importlib.import_module("nanokimi.tales")
    except ModuleNotFoundError:
        raise UserError("this version of nanokimi has no tales: name a text file with --data") from None

    def documents() -> Iterator[Document]:
        written = 0
        for story in tales.iterate_stories(seed, 0, name):
            yield Document(story.text, nats=-float(story.log_probability))
            written += len(story.text)
            if written >= wanted:
                return

    fingerprint = {"tales": tales.VERSION, "seed": seed, "characters": wanted}
    fingerprint |= {} if name == "tales" else {"world": name}
    return Source(fingerprint, documents=documents)


def _refuse_column(column: str, path: str) -> None:
    """Refuse a text column for files that have no columns."""
    if column != DatasetConfig.text_column:
        raise UserError(f"dataset.text_column is {column}, and {path} has no columns: leave it out")


def _require_readable(path: Path) -> None:
    """Refuse what is missing or cannot be opened."""
    if os.path.isdir(path):
        return
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is a device or a pipe: write what it gives to a file")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {_suggest(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): check the path and its permissions") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """Open without blocking: opening a pipe would wait until somebody writes into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: str | Path) -> str:
    """Return the whole text of the UTF-8 file `path`, unchanged; raise UserError if it is not such a file."""
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name one text file in it")
    _require_readable(path)
    text = "".join(read_blocks(path))
    if not text:
        raise UserError(f"{path} is empty: name a file with text in it")
    return text


def _suggest(path: Path) -> str:
    """What to do about a missing file."""
    try:
        neighbours = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return f"there is no folder {path.parent} either, check the path"
    close = difflib.get_close_matches(path.name, neighbours, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "check the path"
