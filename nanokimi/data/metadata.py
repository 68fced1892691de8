"""data.json, the metadata of prepared data: every number that is used later is checked when the file is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nanokimi.errors import UserError
from nanokimi.runtime.files import parse_json, read_bytes

SCHEMA_VERSION = 2
"""Version 1 had no test part; such data is still read, to sample and to score the validation part."""
MAX_VOCAB_SIZE = 0x110000 + 2
"""Every character, the escape and end-of-text."""
COUNTS = ("vocab_size", "train_tokens", "val_tokens", "val_text_bytes", "val_text_chars")
TEST_COUNTS = ("test_tokens", "test_text_bytes", "test_text_chars")
MAYBE_COUNTS = ("file_bytes", "chars", "train_text_bytes", "train_text_chars", "documents", "end_of_text_id")
"""Null if they were not counted."""
DOCUMENT_COUNTS = ("train_documents", "val_documents")
REMOVED_COUNTS = (
    "exact_duplicates_across_split",
    "near_duplicates_across_split",
    "documents_empty",
    "documents_left_out",
    "duplicates_in_train",
    "duplicates_in_val",
)
TEST_REMOVED_COUNTS = (
    "exact_duplicates_of_test_in_val",
    "near_duplicates_of_test_in_val",
    "duplicates_in_test",
)
CHANGED_COUNTS = ("changed_by_tokenizer", "units_encoded")
"""Both are present if the tokenizer was made elsewhere."""
FLOORS = ("val_floor_nats", "test_floor_nats")
"""Both are present if the source is a known distribution."""
SPLITS = ("three", "nanogpt")
TEXTS = ("path", "sha256", "tokenizer", "store")
SOURCE_SUMS = tuple(
    f"{part}_{kind}"
    for part in ("train", "val", "test")
    for kind in ("tokens", "text_bytes", "text_chars", "documents")
)
"""What the texts of a mixture add up to."""


def read_metadata(path: Path) -> dict[str, Any]:
    """The content of a data.json. Raises UserError if it is missing, or holds what `prepare` never writes."""
    try:
        metadata = parse_json(read_bytes(path))
        if not isinstance(metadata, dict):
            raise ValueError("it is not an object")
        _check(metadata)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the data again") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again") from None
    return metadata


def _check(metadata: dict[str, Any]) -> None:
    version = metadata.get("schema_version")
    if isinstance(version, bool) or version not in (1, SCHEMA_VERSION):
        raise ValueError(f"schema_version is {version}, not {SCHEMA_VERSION}")
    for name in TEXTS:
        if not isinstance(metadata.get(name), str):
            raise ValueError(f"{name} is not text")
    for name in ("contiguous", "tokens_in_store"):
        if not isinstance(metadata.get(name), bool):
            raise ValueError(f"{name} is not true or false")
    counts: tuple[str, ...] = COUNTS + (() if metadata["contiguous"] else DOCUMENT_COUNTS)
    removed: tuple[str, ...] = () if metadata["contiguous"] else REMOVED_COUNTS
    if version == SCHEMA_VERSION:
        counts += TEST_COUNTS + (() if metadata["contiguous"] else ("test_documents",))
        removed += () if metadata["contiguous"] else TEST_REMOVED_COUNTS
        if metadata.get("split") not in SPLITS:
            raise ValueError(f"split is {metadata.get('split')}, not one of {', '.join(SPLITS)}")
    for name in counts:
        _require_count(metadata, name, 1)
    for name in removed:
        _require_count(metadata, name, 0)
    for name in MAYBE_COUNTS:
        if name not in metadata:
            raise ValueError(f"{name} is missing")
        if metadata[name] is not None:
            _require_count(metadata, name, 0)
    for name in CHANGED_COUNTS if any(name in metadata for name in CHANGED_COUNTS) else ():
        _require_count(metadata, name, 0)
    if "sources" in metadata:
        _check_sources(metadata)
    if metadata["vocab_size"] > MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {metadata['vocab_size']}, above {MAX_VOCAB_SIZE}")
    floors = [name for name in FLOORS if name in metadata]
    if floors and metadata["contiguous"]:
        raise ValueError(f"{floors[0]} is of documents, and there are none")
    if floors and version == SCHEMA_VERSION and len(floors) < len(FLOORS):
        raise ValueError(f"{floors[0]} stands alone: expected {' and '.join(FLOORS)}")
    for name in ("bytes_per_token", *floors):
        value = metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is not a number above 0")


def _check_sources(metadata: dict[str, Any]) -> None:
    """Check the texts of a mixture, whose sizes say where each begins."""
    sources = metadata["sources"]
    if not isinstance(sources, list) or not sources or not all(isinstance(one, dict) for one in sources):
        raise ValueError("sources is not a list of texts")
    for one in sources:
        for name in ("name", "path", "text_column", "sha256", "source"):
            if not isinstance(one.get(name), str):
                raise ValueError(f"sources: {name} is not text")
        if not isinstance(one.get("share"), float) or not 0 < one["share"] <= 1:
            raise ValueError("sources: share is not a number above 0, at most 1")
        for name in SOURCE_SUMS:
            _require_count(one, name, 1)
    for name in SOURCE_SUMS:
        if sum(one[name] for one in sources) != metadata[name]:
            raise ValueError(f"the texts of sources do not have {name} together")


def _require_count(metadata: dict[str, Any], name: str, least: int) -> None:
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
        raise ValueError(f"{name} is not a whole number of at least {least}")
