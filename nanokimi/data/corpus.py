"""A source, read once: the text of its three parts on disk, in units that can be encoded independently.

A unit is a document or, in one contiguous text, a piece of it that ends where a line ends. Memory holds 16 bytes for
each document and one block of text.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.config.text_sources import text_name
from nanokimi.data.documents import Document
from nanokimi.data.overlap import content_hash, is_chosen, repeated
from nanokimi.data.packed import read_blocks
from nanokimi.data.parts import MIN_PART, PARTS, Ranges, fractions, split_positions
from nanokimi.data.sources import Source
from nanokimi.errors import UserError
from nanokimi.runtime.files import write_json

PIECE_CHARS = 1 << 18
MAX_PIECE_CHARS = 1 << 22
"""A longer stretch without a line end (in characters) is cut anywhere."""
BATCH_BYTES = 1 << 18
"""Bytes of text that are read, and processed, at a time."""
METADATA_FILE = "corpus.json"

Report = Callable[[int], None]


@dataclass(frozen=True)
class Corpus:
    """What `read_source` wrote."""

    folder: Path
    metadata: dict[str, Any]

    @property
    def contiguous(self) -> bool:
        """Whether it is one text and not documents."""
        return bool(self.metadata["contiguous"])

    def offsets(self, part: str) -> np.ndarray:
        """Byte offsets of the units of a part, and its size as the last."""
        return np.memmap(self.folder / f"{part}.offsets", dtype="<u8", mode="r")

    def keep(self, part: str) -> np.ndarray:
        """Which units are used: a bool for each."""
        path = self.folder / f"{part}.keep"
        return (
            np.fromfile(path, dtype=bool)
            if path.exists()
            else np.ones(len(self.offsets(part)) - 1, dtype=bool)
        )

    def hashes(self, part: str) -> np.ndarray:
        """Content hashes of the documents of a part."""
        return np.fromfile(self.folder / f"{part}.hashes", dtype="<u8")

    def batches(
        self, part: str, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[list[int], list[bytes]]]:
        """The numbers and the texts, in UTF-8, of the units that are kept, about BATCH_BYTES of them at a time."""
        keep = self.keep(part)[start:stop]
        offsets = np.array(self.offsets(part)[start : start + len(keep) + 1])
        first = 0
        with open(self.folder / f"{part}.txt", "rb") as file:
            file.seek(int(offsets[0]))
            while first < len(keep):
                last = int(np.searchsorted(offsets, int(offsets[first]) + BATCH_BYTES, side="right")) - 1
                last = min(max(last, first + 1), len(keep))
                data = file.read(int(offsets[last] - offsets[first]))
                ends = (offsets[first : last + 1] - offsets[first]).tolist()
                used = np.flatnonzero(keep[first:last]).tolist()
                if used:
                    yield [start + first + i for i in used], [data[ends[i] : ends[i + 1]] for i in used]
                first = last

    def units(self, part: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, str]]:
        """(number, text) of the units that are kept, from `start` to before `stop`."""
        for numbers, texts in self.batches(part, start, stop):
            for number, text in zip(numbers, texts, strict=True):
                yield number, text.decode("utf-8")

    def text_of(self, parts: Sequence[str]) -> Callable[[int], str]:
        """A function from a unit's number, counted through `parts`, to its text."""
        texts = [np.memmap(self.folder / f"{part}.txt", dtype=np.uint8, mode="r") for part in parts]
        offsets = [self.offsets(part) for part in parts]
        starts = np.cumsum([0, *(len(one) - 1 for one in offsets)])

        def text(number: int) -> str:
            place = int(np.searchsorted(starts, number, side="right")) - 1
            start, stop = offsets[place][number - starts[place] :][:2]
            return bytes(texts[place][int(start) : int(stop)]).decode("utf-8")

        return text


@dataclass
class _Part:
    """The files of one part while they are written."""

    text: IO[bytes]
    ends: array[int] = field(default_factory=lambda: array("Q", [0]))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    nats: array[float] = field(default_factory=lambda: array("d"))
    chars: int = 0
    units_of: Counter[int] = field(default_factory=Counter)
    """Documents of each text of a mixture."""
    chars_of: Counter[int] = field(default_factory=Counter)

    def add(self, data: bytes, chars: int, source: int = 0) -> None:
        self.text.write(data)
        self.ends.append(self.ends[-1] + len(data))
        self.chars += chars
        self.units_of[source] += 1
        self.chars_of[source] += chars

    def save(self, folder: Path, name: str) -> None:
        for suffix, numbers in (("offsets", self.ends), ("hashes", self.hashes), ("nats", self.nats)):
            if len(numbers):
                with open(folder / f"{name}.{suffix}", "wb") as file:
                    numbers.tofile(file)


def read_source(source: Source, dataset: DatasetConfig, folder: Path, report: Report) -> Corpus:
    """Read `source` into `folder`, unless that is done; `report` receives the bytes of text so far.

    Raises UserError if the files changed meanwhile: their hash, which the store is found by, would be another text's.
    """
    path = folder / METADATA_FILE  # written last: a folder without it is incomplete
    if path.exists():
        return Corpus(folder, json.loads(path.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    ranges = Ranges.of(dataset)
    parts, metadata = _read(source, dataset, ranges, folder, report)
    if wider := _widened(ranges, parts, metadata):
        parts, metadata = _read(source, dataset, wider, folder, report)
        metadata["split_widened"] = True
    source.require_unchanged()
    if source.text_file is None:
        _require_documents(dataset, parts, metadata)
    for name, part in parts.items():
        part.save(folder, name)
        metadata |= {f"{name}_text_bytes": part.ends[-1], f"{name}_text_chars": part.chars}
    write_json(path, metadata)
    return Corpus(folder, metadata)


def _read(
    source: Source, dataset: DatasetConfig, ranges: Ranges, folder: Path, report: Report
) -> tuple[dict[str, _Part], dict[str, Any]]:
    """Read everything once, and write the text of each part."""
    with ExitStack() as files:
        parts = {name: _Part(files.enter_context(open(folder / f"{name}.txt", "wb"))) for name in PARTS}
        if source.text_file is not None:
            return parts, _read_text(source.text_file, dataset, parts, report)
        return parts, _read_documents(source, dataset, ranges, parts, report)


def _widened(ranges: Ranges, parts: dict[str, _Part], metadata: dict[str, Any]) -> Ranges | None:
    """Other ranges, if a part got too little and the documents have no split of their own."""
    if metadata["contiguous"] or metadata["own_split"] or "source_units" in metadata:
        return None
    if parts["train"].ends[-1] and min(parts["val"].ends[-1], parts["test"].ends[-1]) >= MIN_PART:
        return None
    hashes = np.concatenate([np.array(part.hashes, dtype=np.uint64) for part in parts.values()])
    sizes = np.concatenate([np.diff(np.array(part.ends, dtype=np.int64)) for part in parts.values()])
    return ranges.widened(hashes, sizes)


def _require_documents(dataset: DatasetConfig, parts: dict[str, _Part], metadata: dict[str, Any]) -> None:
    """Refuse parts that are empty or too small."""
    for name, what, least in (
        ("train", "train on", 1),
        ("val", "validate with", MIN_PART),
        ("test", "test with", MIN_PART),
    ):
        if parts[name].ends[-1] < least:
            raise UserError(
                f"{text_name(dataset)} has no document to {what}, or less than {least} bytes of them: of "
                f"{metadata['documents_read']} documents, {metadata['documents_empty']} are empty, "
                f"{metadata['documents_left_out']} are outside dataset.fraction {dataset.fraction}, and of the others "
                "validation and test need at least one each; use more documents, or other fractions"
            )


def _read_text(path: Path, dataset: DatasetConfig, parts: dict[str, _Part], report: Report) -> dict[str, Any]:
    """One text, cut by position, in pieces. In nanoGPT's split the validation part is also the test part."""
    starts = split_positions(sum(len(block) for block in read_blocks(path)), dataset)
    done = 0
    for name, blocks in itertools.groupby(_blocks_by_part(path, starts), key=lambda block: block[0]):
        for piece in cut_pieces(text for _, text in blocks):
            data = piece.encode("utf-8")
            for part in ("val", "test") if dataset.split == "nanogpt" and name == "test" else (name,):
                parts[part].add(data, len(piece))
            done += len(data)
            report(done)
    return {"contiguous": True, "documents": 1}


def _blocks_by_part(path: Path, starts: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """The blocks of a text with the part that each belongs to; `starts` are those of validation and test."""
    done = 0
    for block in read_blocks(path):
        cuts = [0, *(min(max(start - done, 0), len(block)) for start in starts), len(block)]
        for name, (start, stop) in zip(PARTS, pairwise(cuts), strict=True):
            if start < stop:
                yield name, block[start:stop]
        done += len(block)


def cut_pieces(blocks: Iterable[str]) -> Iterator[str]:
    """The text of `blocks` in pieces of about PIECE_CHARS.

    A cut lies between a line end and a character other than white space, where common tokenizers cut as well.
    """
    pending = ""
    for block in blocks:
        pending += block
        start = 0
        while len(pending) - start > PIECE_CHARS:
            cut = _line_start(pending, start + PIECE_CHARS // 2, min(start + MAX_PIECE_CHARS, len(pending)))
            if cut is None and len(pending) - start < MAX_PIECE_CHARS:
                break
            cut = start + MAX_PIECE_CHARS if cut is None else cut
            yield pending[start:cut]
            start = cut
        pending = pending[start:]
    if pending:
        yield pending


def cut_if_alone(document: Document, dataset: DatasetConfig) -> list[Document]:
    """A document or, if it is all that two parts have, what each of them gets: it is cut where a line begins."""
    if not document.alone:
        return [document]
    first, second = str(document.part).split("|")
    share = 1 - fractions(dataset)[0] if first == "train" else Fraction(1, 2)
    cut = int(len(document.text) * share)
    cut = _line_start(document.text, cut, len(document.text)) or cut
    pieces = ((document.text[:cut], first), (document.text[cut:], second))
    return [document._replace(text=text, part=part, alone=False) for text, part in pieces]


def _line_start(text: str, start: int, stop: int) -> int | None:
    """The first place from `start` where a line begins with a character other than white space."""
    while (end := text.find("\n", start, stop - 1)) >= 0:
        if not text[end + 1].isspace():
            return end + 1
        start = end + 1
    return None


def _read_documents(
    source: Source, dataset: DatasetConfig, ranges: Ranges, parts: dict[str, _Part], report: Report
) -> dict[str, Any]:
    """Write each document to the part that its content, or its data set, determines."""
    assert source.documents is not None, "a source is a text or documents"
    own_split = False
    counts = {"documents_read": 0, "documents_empty": 0, "documents_left_out": 0}
    done = 0
    documents = itertools.chain.from_iterable(cut_if_alone(one, dataset) for one in source.documents())
    for number, document in enumerate(documents, start=1):
        counts["documents_read"] = number
        try:
            data = document.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"document {number} of {text_name(dataset)} holds half a character (lone surrogate "
                f"{ord(document.text[error.start]):#06x}) at position {error.start}: remove it"
            ) from None
        if not document.text.strip():
            counts["documents_empty"] += 1
            continue
        if dataset.fraction < 1 and not is_chosen(content_hash(data, b"fraction"), dataset.fraction):
            counts["documents_left_out"] += 1
            continue
        content = content_hash(data)
        own_split = own_split or document.part is not None
        part = parts[ranges.part_of(content, document.part)]
        part.add(data, len(document.text), document.source)
        part.hashes.append(content)
        if document.nats is not None:
            part.nats.append(document.nats)
        done += len(data)
        if number % 256 == 0:
            report(done)
    report(done)
    mixed = range(len(dataset.sources))
    by_source = {
        "source_units": {name: [part.units_of[i] for i in mixed] for name, part in parts.items()},
        "source_chars": [parts["train"].chars_of[i] for i in mixed],
    }
    return {
        "contiguous": False,
        "own_split": own_split,
        **(by_source if mixed else {}),
        "documents": sum(len(part.hashes) for part in parts.values()),
        **counts,
        **{f"duplicates_in_{name}": repeated(np.array(part.hashes)) for name, part in parts.items()},
    }
