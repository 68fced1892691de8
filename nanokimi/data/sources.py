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
from nanokimi.data.documents import Document, has_separators, read_documents
from nanokimi.data.folders import Member, read_folder
from nanokimi.data.formats import (
    COLUMN_FORMATS,
    POINTER,
    format_of,
    looks_like_json_lines,
    no_text,
    require_text_name,
    telling_name,
)
from nanokimi.data.hub import hub_set
from nanokimi.data.packed import file_sha256, head_of, read_blocks
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
    """Hash of the file, of the names and hashes of all files, or of the hashes of a mixture's texts."""
    text_file: Path | None = None
    """The file of one contiguous text, cut by position; None: documents."""
    documents: Callable[[], Iterator[Document]] | None = None
    """The documents, to be split by content."""
    require_unchanged: Callable[[], None] = lambda: None
    """Raises UserError if the files no longer have the hash in the fingerprint."""
    notes: tuple[str, ...] = ()
    """What the user should know about what is read: files that are left out, parts that are named."""
    parts_of: tuple[dict[str, str], ...] = ()
    """Of a mixture, the hashes of each text, as data.json holds them."""


def is_name(path: str) -> bool:
    """Whether a `dataset.path` is the name of a data set and not a file or folder."""
    return path in NAMES or path.startswith((*(f"{name}:" for name in TALES), "hf:"))


def with_absolute_paths(dataset: DatasetConfig) -> DatasetConfig:
    """`dataset` with absolute paths, so that it is found from any folder; ~ is the home folder."""
    if dataset.path and not is_name(dataset.path):
        dataset = replace(dataset, path=absolute(dataset.path))
    if dataset.tokenizer.endswith((".json", ".model")):
        dataset = replace(dataset, tokenizer=absolute(dataset.tokenizer))
    whole = (
        one if is_name(one["path"]) else {**one, "path": absolute(one["path"])} for one in dataset.sources
    )
    return replace(dataset, sources=tuple(whole)) if dataset.sources else dataset


def absolute(path: str) -> str:
    """The path from the root. A link at its end keeps its name, which says what the file holds.

    Raises UserError if there can be no such path.
    """
    try:
        if "\0" in path:
            raise ValueError("it holds a NUL")
        given = Path(path).expanduser()
        if given.name in ("", ".."):
            whole = given.resolve()
        else:
            whole = given.parent.resolve() / given.name
        # It is written into files in UTF-8; a link to a folder whose name is not keeps its own.
        usable = next((place for place in (whole, given.absolute()) if is_utf8(str(place))), None)
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a NUL in the name
        raise UserError(f"{path} cannot be a path ({error}): check it") from None
    if usable is None:
        raise UserError(f"the name {whole} is not UTF-8: rename it, or name it by a link from another folder")
    return str(usable)


def is_utf8(word: str) -> bool:
    """Whether a word, such as a path, can be written into a file in UTF-8."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
    require_readable(path)
    if path.is_dir():
        return _folder(path, column)
    require_text_name(path)
    kind = format_of(path)
    digest, size = file_sha256(path), path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty: name a file with text in it")
    _require_content(path, kind)

    def require_unchanged() -> None:
        if file_sha256(path) != digest:
            raise UserError(f"{path} changed while it was read: try again when nothing writes to it")

    facts: dict[str, Any] = {"file_bytes": size, "sha256": digest, "require_unchanged": require_unchanged}
    if kind not in COLUMN_FORMATS:
        _refuse_column(column, str(path))
        if not has_separators(path):
            name = Path(telling_name(path)).suffix if path.is_symlink() else path.suffix
            return Source({"text": digest, "name": name}, text_file=path, **facts)
    # The first formats had no need to be told apart: what one of them reads, no other does.
    fingerprint = {"documents": digest, "column": column}
    fingerprint |= {"format": kind} if kind in (".json", ".csv", ".tsv") else {}
    return Source(fingerprint, documents=lambda: map(Document, read_documents(path, column, kind)), **facts)


def _folder(path: Path, column: str) -> Source:
    """The files of a folder, as documents."""
    folder = read_folder(path)
    if not any(member.kind in COLUMN_FORMATS for member in folder.members):
        _refuse_column(column, str(path))
    files = [member.path for member in folder.members]
    for member in folder.members:
        _require_content(member.path, member.kind if format_of(member.path) else None)
    hashes = [(str(file.relative_to(path)), file_sha256(file)) for file in files]
    size = sum(file.stat().st_size for file in files)
    if not size:
        raise UserError(f"{path} is empty: name a file with text in it")
    digest = hashlib.sha256(repr(hashes).encode()).hexdigest()

    def documents() -> Iterator[Document]:
        for member in folder.members:
            yield from _documents_of(member, column)

    def require_unchanged() -> None:
        for file, (name, before) in zip(files, hashes, strict=True):
            if file_sha256(file) != before:
                raise UserError(
                    f"{path} changed ({name}) while it was read: try again when nothing writes to it"
                )

    fingerprint = {"documents": digest, "column": column}
    fingerprint |= {"parts": "named"} if any(member.part for member in folder.members) else {}
    return Source(
        fingerprint,
        size,
        digest,
        documents=documents,
        require_unchanged=require_unchanged,
        notes=tuple(folder.notes),
    )


def _documents_of(member: Member, column: str) -> Iterator[Document]:
    for text in read_documents(member.path, column, member.kind):
        yield Document(text, member.part, alone=member.alone)


def _require_content(path: Path, kind: str | None) -> None:
    """Refuse a file that is not what its name says. A kind of None is text of any other name."""
    head = head_of(path)
    if (kind != ".parquet" or head.startswith(POINTER)) and (reason := no_text(head)):
        raise UserError(f"{path} {reason}")
    if kind is None and looks_like_json_lines(head):
        raise UserError(
            f"{path} holds JSON lines: give it, or a link to it, a name that ends in .jsonl, or in .txt to train on "
            "them as they are"
        )


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


def has_columns(path: str) -> bool:
    """Whether what `dataset.path` names holds records, of which one column is the text."""
    if is_name(path):
        return path.partition(":")[0] not in TALES and path != "tinystories-v2"
    if os.path.isdir(path):
        return any(member.kind in COLUMN_FORMATS for member in read_folder(Path(path)).members)
    return format_of(Path(path)) in COLUMN_FORMATS


def require_readable(path: Path) -> None:
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
        if path.is_symlink():
            raise UserError(f"{path} is a link to a file that is not there: fetch it") from None
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
    require_readable(path)
    _require_content(path, ".txt")
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
