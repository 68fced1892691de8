"""data.json, the facts about prepared data: every number that is used later is looked at when the file is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nanokimi.errors import UserError
from nanokimi.runtime.files import parse_json, read_bytes

SCHEMA_VERSION = 1
MAX_VOCAB_SIZE = 0x110000 + 2
"""Every character, the escape and end-of-text."""
COUNTS = ("vocab_size", "train_tokens", "val_tokens", "val_text_bytes", "val_text_chars")
MAYBE_COUNTS = ("file_bytes", "chars", "train_text_bytes", "train_text_chars", "documents", "end_of_text_id")
"""Null where nothing was counted."""
DOCUMENT_COUNTS = ("train_documents", "val_documents")
REMOVED_COUNTS = (
    *("exact_duplicates_across_split", "near_duplicates_across_split"),
    *("documents_empty", "documents_left_out", "duplicates_in_train", "duplicates_in_val"),
)
CHANGED_COUNTS = ("changed_by_tokenizer", "units_encoded")
"""Both, where the tokenizer was made elsewhere."""
TEXTS = ("path", "sha256", "tokenizer", "store")


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a data.json. Raises UserError if it is missing, or holds what `prepare` never writes."""
    try:
        facts = parse_json(read_bytes(path))
        if not isinstance(facts, dict):
            raise ValueError("it is no object")
        _check(facts)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): prepare the data again") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again") from None
    return facts


def _check(facts: dict[str, Any]) -> None:
    if facts.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {facts.get('schema_version')}, not {SCHEMA_VERSION}")
    for name in TEXTS:
        if not isinstance(facts.get(name), str):
            raise ValueError(f"{name} is no text")
    for name in ("contiguous", "tokens_in_store"):
        if not isinstance(facts.get(name), bool):
            raise ValueError(f"{name} is not true or false")
    for name in COUNTS + (() if facts["contiguous"] else DOCUMENT_COUNTS):
        _require_count(facts, name, 1)
    for name in () if facts["contiguous"] else REMOVED_COUNTS:
        _require_count(facts, name, 0)
    for name in MAYBE_COUNTS:
        if name not in facts:
            raise ValueError(f"{name} is missing")
        if facts[name] is not None:
            _require_count(facts, name, 0)
    for name in CHANGED_COUNTS if any(name in facts for name in CHANGED_COUNTS) else ():
        _require_count(facts, name, 0)
    if facts["vocab_size"] > MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {facts['vocab_size']}, above {MAX_VOCAB_SIZE}")
    for name in ("bytes_per_token", *(["val_floor_nats"] if "val_floor_nats" in facts else [])):
        value = facts.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is no number above 0")
    if "val_floor_nats" in facts and facts["contiguous"]:
        raise ValueError("val_floor_nats is of documents, and there are none")


def _require_count(facts: dict[str, Any], name: str, least: int) -> None:
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**60:
        raise ValueError(f"{name} is no whole number of at least {least}")
