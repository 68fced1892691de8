"""Prepared data on disk: token ids of all parts, the tokenizer and the metadata about the text, in one folder.

The tokens live in the cache (see `build`); a run's own folder holds a copy of small ones, so that it can be moved, and
refers to large ones. A folder is written beside its final place and renamed when complete, so it is never incomplete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.config.text_sources import text_name, text_title
from nanokimi.data.batches import Mixture
from nanokimi.data.build import METADATA_FILE, find_store
from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.encoding import id_dtype, lossy_warning
from nanokimi.data.metadata import SCHEMA_VERSION, read_metadata
from nanokimi.data.mixture import mixture_of, require_long_enough
from nanokimi.data.parts import PARTS, fractions, split_note
from nanokimi.data.sources import has_columns, open_source, read_text
from nanokimi.data.tokenizers.foreign import FOREIGN
from nanokimi.data.tokenizers.own import MODEL_FILE, TOKENIZER_FILE, Tokenizer, load_tokenizer
from nanokimi.errors import UserError
from nanokimi.runtime.text import visible_line

TOKENIZER_FILES = (TOKENIZER_FILE, MODEL_FILE, *(kind.file for kind in FOREIGN.values()))
TOKEN_FILES = tuple(f"{part}.{kind}" for part in PARTS for kind in ("bin", "idx", "nats"))
OWN_FILES = {METADATA_FILE, *TOKENIZER_FILES, *TOKEN_FILES, "summary.png"}
BLOCK_TOKENS = 1 << 20
HASHED_IDS = 500_000
COPY_BYTES = 64_000_000
OPENING_WORDS, OPENING_TOKENS = 10, 256
"""Stores of fewer bytes are copied into the run's folder."""


def _no_offsets() -> np.ndarray:
    return np.zeros(0, dtype=np.uint64)


def _no_ids() -> np.ndarray:
    return np.zeros(0, dtype=np.uint16)


class ScoredPart(NamedTuple):
    """A part that is scored, and the tokens before it."""

    before_ids: np.ndarray
    """Its first token is predicted from the last of these."""
    ids: np.ndarray
    doc_offsets: np.ndarray


@dataclass(frozen=True)
class PreparedData:
    """A text prepared for training and validation; the ids are memory-mapped, read-only, unsigned integers."""

    tokenizer: Tokenizer
    train_ids: np.ndarray
    val_ids: np.ndarray
    metadata: dict[str, Any]
    """What `prepare` measured: sizes, the file's sha256, bytes per token (the content of data.json)."""
    train_doc_offsets: np.ndarray = field(default_factory=_no_offsets)
    """Where each training document begins in `train_ids`, then the end of the last; empty for one contiguous text."""
    val_doc_offsets: np.ndarray = field(default_factory=_no_offsets)
    """Where each validation document begins in `val_ids`, in the form of `train_doc_offsets`."""
    val_doc_nats: np.ndarray | None = None
    """Each validation document's exact negative log-probability in nats, if its source knows it (tales)."""
    test_ids: np.ndarray = field(default_factory=_no_ids)
    """The part that is reported; empty in data of an earlier version; the validation part in nanoGPT's split."""
    test_doc_offsets: np.ndarray = field(default_factory=_no_offsets)
    """Where each test document begins in `test_ids`, in the form of `train_doc_offsets`."""
    test_doc_nats: np.ndarray | None = None
    """Each test document's exact negative log-probability in nats, if its source knows it."""
    tokenizer_sha256: str = ""
    """SHA-256 of the tokenizer's files."""

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The texts of a mixture, in the order in which they stand in every part; empty for a single text."""
        return list(self.metadata.get("sources", ()))

    @property
    def mixture(self) -> Mixture | None:
        """How training draws windows from the texts of a mixture; None for a single text."""
        return mixture_of(self.sources)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes by which a resumed run recognises its data; of more than 64 MB, 64 pieces are hashed."""
        tokens = hashlib.sha256()
        parts = (self.train_ids, self.val_ids, self.test_ids)
        for ids in parts if len(self.test_ids) else parts[:2]:
            tokens.update(f"{len(ids)} {ids.dtype.str} ".encode())
            for start in sorted({int(x) for x in np.linspace(0, max(len(ids) - HASHED_IDS, 0), 64)}):
                tokens.update(np.ascontiguousarray(ids[start : start + HASHED_IDS]).tobytes())
        for one in self.sources:
            tokens.update(f"{one['train_tokens']} {one['share']!r} ".encode())
        return {"tokens_sha256": tokens.hexdigest(), "tokenizer_sha256": self.tokenizer_sha256}

    @cached_property
    def scoring_sha256(self) -> str:
        """A hash of what scores depend on besides tokens: where documents begin, their entropies, text sizes."""
        facts = hashlib.sha256()
        for array in (
            *(self.train_doc_offsets, self.val_doc_offsets, self.test_doc_offsets),
            *(self.val_doc_nats, self.test_doc_nats),
        ):
            facts.update(b"none " if array is None else np.ascontiguousarray(array).tobytes() + b" ")
        sizes = {
            key: self.metadata.get(f"{part}_text_{key}")
            for part in ("val", "test")
            for key in ("bytes", "chars")
        }
        facts.update(json.dumps(sizes, sort_keys=True).encode())
        return facts.hexdigest()

    def scored(self, part: str) -> ScoredPart:
        """The validation or test part as an evaluation needs it.

        Raises UserError for the test part of data that has none.
        """
        if part == "val":
            return ScoredPart(self.train_ids, self.val_ids, self.val_doc_offsets)
        if not len(self.test_ids):
            raise UserError(
                f"{self.metadata['path']} was prepared without a test part, by an earlier version: evaluate with "
                "--part val, or train again in a new folder"
            )
        before = self.train_ids if self.metadata.get("split") == "nanogpt" else self.val_ids
        return ScoredPart(before, self.test_ids, self.test_doc_offsets)


def prepare(dataset: DatasetConfig, folder: Path, context_length: int) -> PreparedData:
    """Read, split and encode the text of `dataset` into `folder`, replacing what an earlier call wrote.

    An end-of-text token follows each document. It is a target like every other and its nats count, while scores per
    byte and per character divide by the documents' own text.
    """
    folder = Path(folder)
    _require_replaceable(folder)
    store, notes, source_key = find_store(dataset)
    for remark in notes:
        print(f"nanokimi: note: {visible_line(remark)}", file=sys.stderr)
    metadata: dict[str, Any] = json.loads((store / METADATA_FILE).read_text(encoding="utf-8"))
    if metadata["train_tokens"] < context_length + 2:
        advice = f"{context_length} needs {context_length + 2}; use a longer text, or a shorter context"
        if metadata["train_text_chars"]:
            characters_per_token = metadata["train_text_chars"] / metadata["train_tokens"]
            needed = math.ceil((context_length + 2) * characters_per_token / (1 - sum(fractions(dataset))))
            advice = (
                f"{context_length} needs {context_length + 2}; use a text of about {needed} characters, or a "
                "shorter context"
            )
        raise UserError(
            f"{text_name(dataset)} is too short: it has {metadata['train_tokens']} training tokens, and "
            f"train.context_length {advice}"
        )
    require_long_enough(metadata.get("sources", []), context_length)
    if "warning" in metadata:
        print(f"nanokimi: warning: {visible_line(metadata['warning'])}", file=sys.stderr)
    if note := split_note(metadata):
        print(f"nanokimi: {visible_line(note)}", file=sys.stderr)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "path": text_title(dataset),
        **metadata,
        "store": str(store),
        "source": source_key,
    }
    metadata |= {"notes": list(notes)} if notes else {}
    _write_folder(folder, store, metadata)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Open what `prepare` wrote; raise UserError if it is missing or damaged."""
    folder = Path(folder)
    metadata = read_metadata(folder / METADATA_FILE)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != metadata["vocab_size"]:
        raise UserError(
            f"{folder} mixes two data sets: the tokenizer has {tokenizer.vocab_size} ids, {METADATA_FILE} says "
            f"{metadata['vocab_size']}; prepare the data again"
        )
    # Not the tokenizer's own end-of-text: one that was made elsewhere has it for a single text, too.
    tokenizer.start_id = metadata["end_of_text_id"]
    tokens_folder = Path(metadata["store"]) if metadata["tokens_in_store"] else folder
    parts = {part: _open_part(tokens_folder, part, metadata) for part in PARTS}
    return PreparedData(
        tokenizer=tokenizer,
        train_ids=parts["train"].ids,
        val_ids=parts["val"].ids,
        metadata=metadata,
        train_doc_offsets=parts["train"].offsets,
        val_doc_offsets=parts["val"].offsets,
        val_doc_nats=parts["val"].nats,
        test_ids=parts["test"].ids,
        test_doc_offsets=parts["test"].offsets,
        test_doc_nats=parts["test"].nats,
        tokenizer_sha256=tokenizer_sha256(folder),
    )


class _Part(NamedTuple):
    """The files of one part."""

    ids: np.ndarray
    offsets: np.ndarray
    nats: np.ndarray | None


def _open_part(folder: Path, part: str, metadata: dict[str, Any]) -> _Part:
    """Open a part; the test part is empty where an earlier version prepared the data."""
    if part == "test" and metadata["schema_version"] == 1:
        return _Part(_no_ids(), _no_offsets(), None)
    ids = _open_ids(folder / f"{part}.bin", metadata["vocab_size"], metadata[f"{part}_tokens"])
    offsets = _no_offsets() if metadata["contiguous"] else _open_offsets(folder, part, metadata)
    nats = None
    if f"{part}_floor_nats" in metadata:
        path = folder / f"{part}.nats"
        nats = _open_array(path, np.dtype("<f8"), metadata[f"{part}_documents"])
        if not np.isfinite(nats).all():
            raise UserError(f"{path} is damaged (a number is not finite): prepare the data again")
    return _Part(ids, offsets, nats)


def val_openings(data: PreparedData) -> tuple[str, ...]:
    """The first words of the validation text, or of its first document: what a story may begin with.

    Of a mixture, those of each text.
    """
    sizes = [one["val_tokens"] for one in data.sources][:-1]
    starts = [int(start) for start in np.cumsum([0, *sizes])]
    return tuple(
        text_opening(data, start) or data.tokenizer.decode(data.val_ids[start : start + 1])
        for start in starts
    )


def text_opening(data: PreparedData, start: int) -> str:
    """The first words of the validation text from a token on, at most to the end of its document; "" if there are none.

    Within a document, a word or line that may have begun before is left out.
    """
    ids = data.val_ids[start : start + OPENING_TOKENS]
    starts = [int(offset) for offset in data.val_doc_offsets]
    end = next((offset for offset in starts if offset > start), None)
    if len(starts) > 1 and end is not None:
        ids = ids[: end - start]
    text = data.tokenizer.decode(ids)
    if start and start not in starts:
        line, newline, rest = text.partition("\n")
        text = rest if newline else line.partition(" ")[2]
    words = re.match(rf"\s*((?:\S+\s+){{0,{OPENING_WORDS - 1}}}\S+)", text.replace(END_OF_TEXT, ""))
    return words[1] if words else ""


def tokenizer_sha256(folder: Path) -> str:
    """One hash of the files of a tokenizer."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def as_validation_text(
    data: PreparedData, path: str, column: str | None = None, usual_column: str = DatasetConfig.text_column
) -> PreparedData:
    """Put another text, encoded with the tokenizer of `data`, in place of the validation part.

    `path` may be anything that `dataset.path` may be, and is read as `prepare` reads it. The text of records is in
    `column`; None: in `usual_column`, if there are records. If `data` is made of documents, each of the documents ends
    with end-of-text; otherwise the model knows none, and the documents are scored one by one without it. All tokens
    are held in memory.
    """
    end = data.tokenizer.end_of_text_id
    usual = usual_column if has_columns(path) else DatasetConfig.text_column
    source = open_source(DatasetConfig(path=path, text_column=column or usual))
    for remark in source.notes:
        print(f"nanokimi: note: {visible_line(remark)}", file=sys.stderr)
    if source.documents is None:
        texts = [read_text(path)]
    else:
        texts = [document.text for document in source.documents() if document.text.strip()]
    ids = [data.tokenizer.encode(text) for text in texts]
    if not any(map(len, ids)):
        raise UserError(f"{path} has no text to score: name a file with text in it")
    if data.tokenizer.name in FOREIGN:
        changed = sum(data.tokenizer.decode(one) != text for one, text in zip(ids, texts, strict=True))
        if changed:
            warning = lossy_warning(data.tokenizer.name, changed, len(texts))
            print(f"nanokimi: warning: {visible_line(warning)}", file=sys.stderr)
    contiguous = data.metadata.get("contiguous", True)
    if end is not None and not contiguous:
        ids = [np.append(one, np.int32(end)) for one in ids]
    of_the_old = ("val_floor_nats", "sources")
    metadata = {name: fact for name, fact in data.metadata.items() if name not in of_the_old} | {
        "path": path,
        "val_text_bytes": sum(len(text.encode("utf-8")) for text in texts),
        "val_text_chars": sum(len(text) for text in texts),
    }
    whole = contiguous and source.documents is None
    offsets = _no_offsets() if whole else np.cumsum([0, *map(len, ids)], dtype=np.uint64)
    return replace(
        data, val_ids=np.concatenate(ids), metadata=metadata, val_doc_offsets=offsets, val_doc_nats=None
    )


def _open_array(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    expected = count * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected:
            raise UserError(
                f"{path} has {size} bytes, {METADATA_FILE} says {expected}: prepare the data again"
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(count,))
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name of the store
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): prepare the data again") from None


def _open_ids(path: Path, vocab_size: int, count: int) -> np.ndarray:
    """Token ids. Raises UserError if one is beyond the vocabulary, on which a model would fail later."""
    dtype = id_dtype(vocab_size)
    ids = _open_array(path, dtype, count)
    with open(path, "rb") as file:  # mapped pages would count as this process's memory
        while len(block := np.fromfile(file, dtype=dtype, count=BLOCK_TOKENS)):
            if (largest := int(block.max())) >= vocab_size:
                raise UserError(f"{path} is damaged (it holds the id {largest}): prepare the data again")
    return ids


def _open_offsets(folder: Path, part: str, metadata: dict[str, Any]) -> np.ndarray:
    """Where the documents of a part begin. Raises UserError if they do not increase to its end."""
    path = folder / f"{part}.idx"
    offsets = _open_array(path, np.dtype("<u8"), metadata[f"{part}_documents"] + 1)
    ends = (int(offsets[0]), int(offsets[-1]))
    if ends != (0, metadata[f"{part}_tokens"]) or (offsets[1:] < offsets[:-1]).any():
        raise UserError(f"{path} is damaged (its offsets are out of order): prepare the data again")
    return offsets


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but prepared data."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the prepared data")
    foreign = sorted({entry.name for entry in folder.iterdir()} - OWN_FILES) if folder.exists() else []
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, which is not prepared data: name another folder")


def _write_folder(folder: Path, store: Path, metadata: dict[str, Any]) -> None:
    """Write everything beside `folder`, then move it into place; if that fails, `folder` stays as it was."""
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    replaced = folder.parent / f".{folder.name}.{os.getpid()}.replaced"
    tokens = [store / name for name in TOKEN_FILES if (store / name).exists()]
    refer = sum(path.stat().st_size for path in tokens) >= COPY_BYTES
    try:
        partial.mkdir(parents=True)
        for path in [store / name for name in TOKENIZER_FILES] + ([] if refer else tokens):
            if path.exists():
                shutil.copyfile(path, partial / path.name)
        content = json.dumps(metadata | {"tokens_in_store": refer}, indent=2) + "\n"
        (partial / METADATA_FILE).write_text(content, encoding="utf-8")
        if folder.exists():
            os.replace(folder, replaced)  # a folder cannot be renamed onto one that has files in it
        os.replace(partial, folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder} cannot be written ({reason}): check space and permissions") from None
    finally:
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.is_symlink():
            replaced.unlink()  # the link only: its target is not ours
        shutil.rmtree(replaced, ignore_errors=True)
