"""Encode text in shards: each is written completely or not at all, so a build that was killed continues where it was.

The text alone decides what belongs to which shard, so any number of processes writes the same bytes. A shard is
three files: ids, lengths, and a record with a hash of the other two, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.data.corpus import Corpus
from nanokimi.data.parts import PARTS
from nanokimi.data.tokenizers.foreign import FOREIGN
from nanokimi.data.tokenizers.own import SentencePieceTokenizer, Tokenizer, WithEndOfText
from nanokimi.runtime.files import write_json

SHARD_BYTES = 8 << 20


@dataclass(frozen=True)
class Shard:
    """Units `start` to before `stop` of a part, and the bytes of text that they hold."""

    part: str
    number: int
    start: int
    stop: int
    bytes: int

    @property
    def name(self) -> str:
        """The name of its files, without their suffixes."""
        return f"{self.part}-{self.number:05d}"


def plan_shards(offsets: np.ndarray, part: str, borders: Sequence[int] = ()) -> list[Shard]:
    """Cut the units of a part into runs of about SHARD_BYTES of text; a run also ends before a unit of `borders`."""
    shards: list[Shard] = []
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, int(offsets[start]) + SHARD_BYTES, side="right")) - 1
        ends = [border for border in borders if border > start]
        stop = min(max(stop, start + 1), len(offsets) - 1, *ends)
        shards.append(Shard(part, len(shards), start, stop, int(offsets[stop] - offsets[start])))
        start = stop
    return shards


def id_dtype(vocab_size: int) -> np.dtype:
    """The width of ids on disk."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def encode_texts(tokenizer: Tokenizer, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of UTF-8 `texts`, concatenated and without end-of-text, and how many of them each text has."""
    inner = tokenizer.inner if isinstance(tokenizer, WithEndOfText) else tokenizer
    if isinstance(inner, SentencePieceTokenizer) and inner.memo is not None:
        return inner.memo.encode(texts)
    ids = [inner.encode(text.decode("utf-8")) for text in texts]
    return np.concatenate(ids), np.array([len(one) for one in ids])


def encode_shard(corpus: Corpus, tokenizer: Tokenizer, shard: Shard, folder: Path) -> dict[str, Any]:
    """Encode a shard's units, end-of-text after each document, and return its record."""
    dtype = id_dtype(tokenizer.vocab_size)
    end = None if corpus.contiguous else tokenizer.end_of_text_id
    may_lose = tokenizer.name in FOREIGN
    record: dict[str, Any] = {"tokens": 0, "chars": 0, "bytes": 0, "changed": 0}
    lengths: list[np.ndarray] = []
    digest = hashlib.blake2b(digest_size=16)
    partial = folder / f"{shard.name}.{os.getpid()}.partial"

    with open(partial, "wb") as file:
        for _, texts in corpus.batches(shard.part, shard.start, shard.stop):
            ids, counts = encode_texts(tokenizer, texts)
            record["chars"] += sum(len(text if text.isascii() else text.decode("utf-8")) for text in texts)
            record["bytes"] += sum(map(len, texts))
            record["changed"] += _changed(tokenizer, texts, ids, counts) if may_lose else 0
            if end is not None:
                ids, counts = np.insert(ids, np.cumsum(counts), end), counts + 1
            lengths.append(counts)
            data = ids.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
    all_lengths = np.concatenate([np.zeros(0, dtype=np.int64), *lengths]).astype("<u8")
    (folder / f"{shard.name}.lengths").write_bytes(all_lengths.tobytes())
    digest.update(all_lengths.tobytes())
    os.replace(partial, folder / f"{shard.name}.ids")
    record |= {"tokens": int(all_lengths.sum()), "units": len(all_lengths), "digest": digest.hexdigest()}
    write_json(folder / f"{shard.name}.json", record)
    return record


def _changed(tokenizer: Tokenizer, texts: list[bytes], ids: np.ndarray, counts: np.ndarray) -> int:
    """How many texts differ after encoding and decoding."""
    pieces = np.split(ids, np.cumsum(counts)[:-1])
    return sum(tokenizer.decode(one) != text.decode("utf-8") for one, text in zip(pieces, texts, strict=True))


def lossy_warning(tokenizer: str, changed: int, units: int) -> str:
    """What has to be said if a tokenizer changed some of the texts that it encoded."""
    return (
        f"the tokenizer {tokenizer} does not give back {changed} of {units} texts as they were: a score per byte is "
        "that of its own version of them"
    )


def finished_record(shard: Shard, folder: Path) -> dict[str, Any] | None:
    """The record of a shard that is complete in `folder`; None if it is missing or damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / f"{shard.name}.json").read_text(encoding="utf-8"))
        digest = hashlib.blake2b(digest_size=16)
        for suffix in ("ids", "lengths"):
            with open(folder / f"{shard.name}.{suffix}", "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return record if record["digest"] == digest.hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def join_shards(shards: list[Shard], folder: Path, target: Path, documents: bool) -> None:
    """Write the .bin of each part, and for documents its .idx: where each begins, and the end of the last."""
    for part in PARTS:
        position = 0
        with open(target / f"{part}.bin", "wb") as ids, open(target / f"{part}.idx", "wb") as index:
            index.write(np.zeros(1, dtype="<u8").tobytes())
            for shard in (one for one in shards if one.part == part):
                with open(folder / f"{shard.name}.ids", "rb") as file:
                    while block := file.read(1 << 20):
                        ids.write(block)
                ends = position + np.cumsum(np.fromfile(folder / f"{shard.name}.lengths", dtype="<u8"))
                index.write(ends.astype("<u8").tobytes())
                position = int(ends[-1]) if len(ends) else position
        if not documents:
            (target / f"{part}.idx").unlink()
