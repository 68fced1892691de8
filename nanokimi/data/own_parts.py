"""Settings of the dataset that have no effect on what it names, such as shares of a text that has its own parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nanokimi.config import DatasetConfig, RunConfig
from nanokimi.config.ignored import split_arm_words
from nanokimi.config.parsing import expand
from nanokimi.config.text_sources import text_name, text_sources
from nanokimi.data.folders import read_folder
from nanokimi.data.hub import hub_set
from nanokimi.data.mixture import as_if_alone
from nanokimi.data.nanogpt import META, is_nanogpt_folder
from nanokimi.data.sources import TALES, is_name
from nanokimi.data.tokenizers.foreign import is_foreign
from nanokimi.errors import UserError
from nanokimi.runtime.text import visible_line

SHARES = ("val_fraction", "test_fraction")


def fitted_to_data(config: RunConfig, rest: Sequence[str]) -> RunConfig:
    """The configuration with what its text decides. Raises UserError for a setting in `rest` that the text ignores."""
    named = {option.removeprefix("--").partition("=")[0] for option in expand(split_arm_words(rest)[0])}
    refuse_unused_shares(config.dataset, named)
    dataset, notes = without_unused(config.dataset, named)
    for note in notes:
        print(f"nanokimi: note: {visible_line(note)}", file=sys.stderr)
    return replace(config, dataset=dataset)


def unused_shares(dataset: DatasetConfig) -> tuple[str, ...]:
    """Which of `val_fraction` and `test_fraction` have no effect, because the data has parts of its own."""
    path = dataset.path
    if dataset.sources:
        unused = [set(unused_shares(as_if_alone(dataset, source))) for source in text_sources(dataset)]
        return tuple(share for share in SHARES if all(share in one for one in unused))
    if is_nanogpt_folder(path):
        return SHARES
    parts: set[str | None] = set()
    if found := hub_set(path, dataset.text_column, dataset.streaming):
        parts = {part for _, part in found.own_parts()}
    elif path and not is_name(path) and os.path.isdir(path):
        parts = {member.part for member in read_folder(Path(path)).members}
    if not parts - {None}:
        return ()
    return SHARES[1:] if "train|val" in parts else SHARES


def refuse_unused_shares(dataset: DatasetConfig, named: set[str]) -> None:
    """Raise UserError for a share, of the settings `named` on the command line, that would be ignored."""
    shares = {f"dataset.{share}" for share in SHARES} & named
    unused = {f"dataset.{share}" for share in unused_shares(dataset)} & shares if shares else set()
    if unused:
        raise UserError(
            f"--{min(unused)} has no effect: {text_name(dataset)} has its own parts for validation and test; leave it "
            "out"
        )


def without_unused(dataset: DatasetConfig, named: set[str]) -> tuple[DatasetConfig, list[str]]:
    """`dataset` without what a preset sets and this text has no use for, and a note for each such setting.

    The settings `named` on the command line stay, and are refused where they are read.
    """
    usual, notes = DatasetConfig(), []
    path = dataset.path
    named_paths = [path, *(source.path for source in text_sources(dataset))]
    of_tales = any(one.partition(":")[0] in TALES for one in named_paths)
    if (
        any(named_paths)
        and dataset.characters is not None
        and not of_tales
        and "dataset.characters" not in named
    ):
        notes.append(
            f"dataset.characters {dataset.characters} is for tales, so all of {text_name(dataset)} is read"
        )
        dataset = replace(dataset, characters=None)
    tokens = is_nanogpt_folder(path) and (Path(path) / META).is_file()
    other = dataset.tokenizer != usual.tokenizer and not is_foreign(dataset.tokenizer)
    if tokens and other and "dataset.tokenizer" not in named:
        notes.append(
            f"{path} holds tokens, so its own characters are used instead of dataset.tokenizer {dataset.tokenizer}"
        )
        dataset = replace(dataset, tokenizer=usual.tokenizer, vocab_size=usual.vocab_size)
    return dataset, notes
