"""Prepared data on disk: token ids of both parts, the tokenizer and the facts about the text, in one folder.

The folder is written beside its final place and renamed when complete: it exists whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.data.sources import read_text, split_text
from nanokimi.data.tokenizers import MODEL_FILE, TOKENIZER_FILE, Tokenizer, build_tokenizer, load_tokenizer
from nanokimi.errors import UserError

SCHEMA_VERSION = 1
FACTS_FILE, TRAIN_FILE, VAL_FILE = "data.json", "train.bin", "val.bin"
OWN_FILES = {FACTS_FILE, TRAIN_FILE, VAL_FILE, TOKENIZER_FILE, MODEL_FILE}


@dataclass(frozen=True)
class PreparedData:
    """A text as training and validation need it; the ids are memory-mapped, read-only, unsigned integers."""

    tokenizer: Tokenizer
    train_ids: np.ndarray
    val_ids: np.ndarray
    facts: dict[str, Any]
    """What `prepare` measured: sizes, the file's sha256, bytes per token (the content of data.json)."""


def prepare(dataset: DatasetConfig, folder: Path, context_length: int) -> PreparedData:
    """Read, split and encode the text of `dataset` into `folder`, replacing what an earlier call wrote."""
    if not dataset.path:
        raise UserError("dataset.path is not set: name a text file with --data")
    folder = Path(folder)
    _require_replaceable(folder)
    text = read_text(dataset.path)
    train_text, val_text = split_text(text, dataset.val_fraction)
    tokenizer = build_tokenizer(dataset, train_text)
    train_ids, val_ids = tokenizer.encode(train_text), tokenizer.encode(val_text)
    assert len(val_ids) > 0, "split_text promises a validation text, and every text has a token"
    if len(train_ids) < context_length + 2:
        characters_per_token = len(train_text) / len(train_ids)
        needed = math.ceil((context_length + 2) * characters_per_token / (1 - dataset.val_fraction))
        raise UserError(
            f"{dataset.path} is too short: it has {len(train_ids)} training tokens, and "
            f"train.context_length {context_length} needs {context_length + 2}; use a text of about {needed} "
            "characters, or a shorter context"
        )
    file_bytes = text.encode("utf-8")
    facts = {
        "schema_version": SCHEMA_VERSION,
        "path": str(dataset.path),
        "file_bytes": len(file_bytes),
        "sha256": hashlib.sha256(file_bytes).hexdigest(),
        "chars": len(text),
        "train_text_bytes": len(train_text.encode("utf-8")),
        "train_text_chars": len(train_text),
        "val_text_bytes": len(val_text.encode("utf-8")),
        "val_text_chars": len(val_text),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": len(train_ids),
        "val_tokens": len(val_ids),
        "bytes_per_token": len(val_text.encode("utf-8")) / len(val_ids),
    }
    _write_folder(folder, tokenizer, train_ids, val_ids, facts)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Open what `prepare` wrote; raise UserError if it is missing or damaged."""
    path = Path(folder) / FACTS_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {facts['schema_version']}, not {SCHEMA_VERSION}")
        vocab_size = int(facts["vocab_size"])
        train_tokens, val_tokens = int(facts["train_tokens"]), int(facts["val_tokens"])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the data again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again") from None
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder} mixes two data sets: the tokenizer has {tokenizer.vocab_size} ids, {FACTS_FILE} says "
            f"{vocab_size}; prepare the data again"
        )
    return PreparedData(
        tokenizer=tokenizer,
        train_ids=_open_ids(Path(folder) / TRAIN_FILE, vocab_size, train_tokens),
        val_ids=_open_ids(Path(folder) / VAL_FILE, vocab_size, val_tokens),
        facts=facts,
    )


def as_validation_text(data: PreparedData, path: str) -> PreparedData:
    """Another text in the place of the validation part, all of it, in the tokens of `data`."""
    text = read_text(path)
    facts = data.facts | {
        "path": path,
        "val_text_bytes": len(text.encode("utf-8")),
        "val_text_chars": len(text),
    }
    return replace(data, val_ids=data.tokenizer.encode(text), facts=facts)


def _id_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def _open_ids(path: Path, vocab_size: int, tokens: int) -> np.ndarray:
    dtype = _id_dtype(vocab_size)
    expected = tokens * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected:
            raise UserError(f"{path} has {size} bytes, {FACTS_FILE} says {expected}: prepare the data again")
        return np.memmap(path, dtype=dtype, mode="r", shape=(tokens,))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the data again") from None


def _require_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but prepared data."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the prepared data")
    foreign = sorted({entry.name for entry in folder.iterdir()} - OWN_FILES) if folder.exists() else []
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, which is no prepared data: name another folder")


def _write_folder(
    folder: Path, tokenizer: Tokenizer, train_ids: np.ndarray, val_ids: np.ndarray, facts: dict[str, Any]
) -> None:
    """Write everything beside `folder`, then move it into place; a failure leaves `folder` as it was."""
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    replaced = folder.parent / f".{folder.name}.{os.getpid()}.replaced"
    dtype = _id_dtype(tokenizer.vocab_size)
    try:
        partial.mkdir(parents=True)
        tokenizer.save(partial)
        train_ids.astype(dtype).tofile(partial / TRAIN_FILE)
        val_ids.astype(dtype).tofile(partial / VAL_FILE)
        (partial / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
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
        shutil.rmtree(replaced, ignore_errors=True)
