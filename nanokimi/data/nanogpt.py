"""Folders that nanoGPT's data/*/prepare.py wrote: train.bin and val.bin of ids, and perhaps meta.pkl.

nanoGPT writes ids of 16 bits; others write 32 or 64. The files do not say which. Read as narrower ids than they are,
they would be ids with a 0 after each, or three of them; so they are read as the widest in which all are in the
vocabulary.

The ids are used as they are. A meta.pkl holds the sorted characters that they stand for, which makes our character
tokenizer; without one, the ids are some other tokenizer's (GPT-2's, mostly), which the user has to name.

The test part is test.bin, if there is one, or else the second half of val.bin, whose first half is then for validation;
with `dataset.split: nanogpt`, all of val.bin is both, as in nanoGPT.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.data.encoding import id_dtype
from nanokimi.data.packed import file_sha256
from nanokimi.data.parts import MIN_PART, PARTS
from nanokimi.data.plain_pickle import read_plain_pickle
from nanokimi.data.sources import is_name
from nanokimi.data.tokenizers.foreign import is_foreign
from nanokimi.data.tokenizers.own import CharTokenizer, Tokenizer, read_named
from nanokimi.errors import UserError
from nanokimi.runtime.files import read_bytes

FILES = ("train.bin", "val.bin")
TEST = "test.bin"
META = "meta.pkl"
NAME_TOKENIZER = "--dataset.tokenizer path/to/tokenizer.json"
BLOCK_TOKENS = 1 << 22
WIDTHS = tuple(np.dtype(name) for name in ("<u8", "<u4", "<u2"))
"""Types of ids, the widest first; the last is nanoGPT's own."""
MAX_DECODED_TOKENS = 100_000_000
"""A longer training part is not decoded to count its bytes and characters; both are null then."""


def is_nanogpt_folder(path: str) -> bool:
    """Whether `path` is a folder with train.bin and val.bin."""
    return bool(path) and not is_name(path) and all(os.path.isfile(Path(path) / name) for name in FILES)


def parts_note(dataset: DatasetConfig) -> str:
    """What the parts of a folder are."""
    if dataset.split == "nanogpt":
        return f"{dataset.path}: train.bin is for training, val.bin both for validation and test"
    whole = (Path(dataset.path) / TEST).is_file()
    parts = (
        "val.bin for validation, test.bin for test" if whole else "val.bin half for validation, half for test"
    )
    return f"{dataset.path}: train.bin is for training, {parts}"


def refuse_settings(dataset: DatasetConfig) -> None:
    """Raise UserError for a setting that would be ignored."""
    if dataset.fraction < 1 or dataset.characters is not None or dataset.streaming:
        raise UserError(
            f"{dataset.path} holds tokens, which are used whole: leave out dataset.fraction, characters and streaming"
        )
    if dataset.text_column != DatasetConfig.text_column:
        raise UserError(
            f"dataset.text_column is {dataset.text_column}, and {dataset.path} has no columns: leave it out"
        )
    if dataset.tokenizer != DatasetConfig.tokenizer and not is_foreign(dataset.tokenizer):
        raise UserError(
            f"{dataset.path} holds tokens already, and dataset.tokenizer {dataset.tokenizer} cannot make others: type "
            f"{'--dataset.tokenizer char' if (Path(dataset.path) / META).is_file() else NAME_TOKENIZER}"
        )


def tokens_identity(dataset: DatasetConfig) -> dict[str, Any]:
    """Hashes of the files that are used, and the bytes of an id if it is not nanoGPT's own width."""
    folder = Path(dataset.path)
    hashes = {name: file_sha256(folder / name) for name in _files(folder)}
    width = _id_type(folder, _tokenizer(folder, dataset.tokenizer).vocab_size).itemsize
    return hashes | ({"width": width} if width != WIDTHS[-1].itemsize else {})


def build_from_tokens(dataset: DatasetConfig, target: Path) -> None:
    """Fill `target` with a store of the folder's tokens. Raises UserError if they are not what nanoGPT writes."""
    folder = Path(dataset.path)
    tokenizer = _tokenizer(folder, dataset.tokenizer)
    parts = _parts(folder, dataset.split, tokenizer.vocab_size)
    for name, ids in parts.items():
        with open(target / f"{name}.bin", "wb") as file:
            for block in _blocks(ids):
                block.astype(id_dtype(tokenizer.vocab_size)).tofile(file)
    tokenizer.save(target)
    sizes: dict[str, tuple[int, int] | tuple[None, None]] = {
        name: _text_size(ids, tokenizer)
        if name != "train" or len(ids) <= MAX_DECODED_TOKENS
        else (None, None)
        for name, ids in parts.items()
    }
    for name in PARTS[1:]:
        if (sizes[name][1] or 0) < MIN_PART:
            raise UserError(
                f"{folder} leaves {sizes[name][1]} characters for the {name} part, which needs {MIN_PART}: make "
                "val.bin longer, or test.bin, if there is one"
            )
    once = PARTS[:2] if dataset.split == "nanogpt" else PARTS
    chars = [sizes[name][1] for name in once]
    metadata: dict[str, Any] = {
        "file_bytes": sum(
            path.stat().st_size for name in (*FILES, TEST) if (path := folder / name).is_file()
        ),
        "sha256": file_sha256(folder / "train.bin"),
        "split": dataset.split,
        "chars": None if None in chars else sum(filter(None, chars)),
        **{f"{name}_text_bytes": size for name, (size, _) in sizes.items()},
        **{f"{name}_text_chars": size for name, (_, size) in sizes.items()},
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        **{f"{name}_tokens": len(ids) for name, ids in parts.items()},
        "bytes_per_token": (sizes["val"][0] or 0) / len(parts["val"]),
        "end_of_text_id": None,
        "contiguous": True,
        "documents": 1,
    }
    (target / "data.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _parts(folder: Path, split: str, vocab_size: int) -> dict[str, np.ndarray]:
    """The ids of each part."""
    id_type = _id_type(folder, vocab_size)
    train, val = (_read_ids(folder / name, id_type, vocab_size) for name in FILES)
    if split == "nanogpt":
        return {"train": train, "val": val, "test": val}
    if (folder / TEST).is_file():
        return {"train": train, "val": val, "test": _read_ids(folder / TEST, id_type, vocab_size)}
    half = len(val) // 2
    return {"train": train, "val": val[:half], "test": val[half:]}


def _tokenizer(folder: Path, named: str) -> Tokenizer:
    path = folder / META
    if is_foreign(named):
        return read_named(Path(named))
    if not path.is_file():
        raise UserError(f"{folder} has no {META}: name the tokenizer of its ids with {NAME_TOKENIZER}")
    try:
        meta = read_plain_pickle(read_bytes(path))
        pieces = [meta["itos"][number] for number in range(len(meta["itos"]))]
        if not all(isinstance(piece, str) and len(piece) == 1 for piece in pieces):
            raise ValueError("its itos holds more than single characters")
        if pieces != sorted(set(pieces)):
            raise ValueError("its characters are not sorted, as nanoGPT's are")
        return CharTokenizer("".join(pieces))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): expected the meta.pkl of nanoGPT's characters"
        ) from None


def _files(folder: Path) -> list[str]:
    """The names of the files that are used."""
    return [*FILES, *(name for name in (TEST, META) if (folder / name).is_file())]


def _id_type(folder: Path, vocab_size: int) -> np.dtype:
    """The widest type in which all ids of all files are in the vocabulary; nanoGPT's own if there is none."""
    paths = [folder / name for name in _files(folder) if name != META]
    for dtype in WIDTHS[:-1]:
        if all(_fits(path, dtype, vocab_size) for path in paths):
            return dtype
    return WIDTHS[-1]


def _fits(path: Path, dtype: np.dtype, vocab_size: int) -> bool:
    """Whether a file can be read as ids of this type."""
    size = path.stat().st_size
    if not size or size % dtype.itemsize:
        return False
    return all(int(block.max()) < vocab_size for block in _blocks(np.memmap(path, dtype=dtype, mode="r")))


def _read_ids(path: Path, dtype: np.dtype, vocab_size: int) -> np.ndarray:
    size = path.stat().st_size
    if not size or size % dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes: expected {8 * dtype.itemsize}-bit token ids, as nanoGPT writes them"
        )
    ids = np.memmap(path, dtype=dtype, mode="r")
    largest = max(int(block.max()) for block in _blocks(ids))
    if largest >= vocab_size:
        raise UserError(
            f"{path} holds the id {largest}, and the tokenizer has {vocab_size}: name the right one (ids may have 16, "
            "32 or 64 bits, without a header)"
        )
    return ids


def _text_size(ids: np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
    """UTF-8 bytes and characters that the ids stand for, without end-of-text, as for documents.

    To within a character for every 4 million tokens.
    """
    pieces = (piece for block in _blocks(ids) for piece in _without(tokenizer.end_of_text_id, block))
    texts = map(tokenizer.decode, pieces)
    sizes = [(len(text.encode("utf-8")), len(text)) for text in texts]
    return sum(one for one, _ in sizes), sum(two for _, two in sizes)


def _without(end: int | None, ids: np.ndarray) -> Iterator[np.ndarray]:
    """The runs of ids between those that are `end`."""
    ends = np.flatnonzero(ids == end) if end is not None else np.zeros(0, dtype=np.int64)
    starts = (0, *(int(place) + 1 for place in ends))
    return (ids[start:stop] for start, stop in zip(starts, (*ends.tolist(), len(ids)), strict=True))


def _blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[start : start + BLOCK_TOKENS] for start in range(0, len(ids), BLOCK_TOKENS))
