"""Whether what a run was prepared from is still the same. A run reads its own copy, so nothing else would tell."""

from __future__ import annotations

import os
from pathlib import Path

from nanokimi.config import DatasetConfig
from nanokimi.config.text_sources import PLACE, shares_of, text_sources
from nanokimi.data.cache import store_key
from nanokimi.data.hub import hub_set
from nanokimi.data.mixture import as_if_alone
from nanokimi.data.nanogpt import is_nanogpt_folder, tokens_identity
from nanokimi.data.packed import file_sha256
from nanokimi.data.sources import TALES, is_name, open_source
from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.foreign import FOREIGN, is_foreign, is_own_file
from nanokimi.errors import UserError


def changed_source(dataset: DatasetConfig, data: PreparedData, folder: Path) -> str | None:
    """The text or the tokenizer's file that has changed since `data` was prepared in `folder`, or None.

    What is gone, or cannot be read or reached, is not needed: the run goes on with its copy.
    """
    named = text_sources(dataset)
    shares = shares_of(named) if named else []
    asked = [(one.name, share) for one, share in zip(named, shares, strict=True)]
    if asked != [(facts["name"], facts["share"]) for facts in data.sources]:
        return PLACE
    ones = [as_if_alone(dataset, source) for source in named] or [dataset]
    for one, facts in zip(ones, data.sources or [data.metadata], strict=True):
        now = source_sha256(one)
        if now is not None and now != facts["sha256"]:
            return one.path
        before = facts.get("source")  # an earlier version did not keep it
        if before is not None and (found := source_key(one)) is not None and found != before:
            return one.path
    if is_foreign(dataset.tokenizer) and os.path.isfile(dataset.tokenizer):
        kept = [folder / kind.file for kind in FOREIGN.values() if (folder / kind.file).is_file()]
        own = is_own_file(Path(dataset.tokenizer))
        if kept and not own and file_sha256(Path(dataset.tokenizer)) != file_sha256(kept[0]):
            return dataset.tokenizer
    return None


def source_key(dataset: DatasetConfig) -> str | None:
    """A hash of all files of a nanoGPT folder, or of the revision of a set of the Hub; None for others, or if unknown.

    `source_sha256` is enough for the others.
    """
    try:
        if is_nanogpt_folder(dataset.path):
            return store_key(tokens_identity(dataset))
        found = hub_set(dataset.path, dataset.text_column, dataset.streaming)
        return store_key(found.fingerprint()) if found else None
    except (UserError, OSError):
        return None


def source_sha256(dataset: DatasetConfig) -> str | None:
    """The hash of a text as `prepare` notes it; None if it cannot be had at once."""
    if is_nanogpt_folder(dataset.path):
        return file_sha256(Path(dataset.path) / "train.bin")
    is_tales = dataset.path.partition(":")[0] in TALES
    if not is_tales and (is_name(dataset.path) or not os.path.exists(dataset.path)):
        return None
    try:
        source = open_source(dataset)
    except UserError:
        return None
    return source.sha256 or store_key(source.fingerprint)
