"""A mixture: several texts, such as languages, that share the training tokens and are scored one by one.

Each text is read and split as if it were alone. Documents of one text stand together in every part, in the order of
`dataset.sources`, so that a part is a row of stretches, one for each text. Training draws a text for each window by the
weights, and then a place in its stretch (`batches.Mixture`). No window holds two texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.config.text_sources import TextSource, alone, shares_of, text_sources
from nanokimi.data.batches import Mixture
from nanokimi.data.cache import store_key
from nanokimi.data.corpus import Corpus
from nanokimi.data.documents import Document
from nanokimi.data.encoding import Shard
from nanokimi.data.hub import hub_set
from nanokimi.data.nanogpt import is_nanogpt_folder
from nanokimi.data.parts import PARTS, split_positions
from nanokimi.data.records import MAX_DOCUMENT
from nanokimi.data.sources import TALES, Source, open_source, read_text
from nanokimi.errors import UserError

Facts = dict[str, Any]


def open_mixture(dataset: DatasetConfig) -> Source:
    """All texts of `dataset.sources` as one source of documents. Raises UserError for one that cannot be read."""
    named = text_sources(dataset)
    ones = [as_if_alone(dataset, source) for source in named]
    for name in ("characters", "streaming"):
        usual = getattr(DatasetConfig, name)
        if getattr(dataset, name) != usual and all(getattr(one, name) == usual for one in ones):
            what = "tales" if name == "characters" else "data sets of the Hub"
            raise UserError(f"dataset.{name} is for {what}, and dataset.sources has none: leave it out")
    opened = [_opened(one, source) for one, source in zip(ones, named, strict=True)]
    # each of whose documents has a known probability
    of_worlds = all(one.path.partition(":")[0] in TALES for one in ones)

    def documents() -> Iterator[Document]:
        for number, (one, source) in enumerate(zip(ones, opened, strict=True)):
            with naming(named[number]):
                for document in _documents_of(one, source):
                    yield document._replace(source=number, nats=document.nats if of_worlds else None)

    def require_unchanged() -> None:
        for source in opened:
            source.require_unchanged()

    sizes = [source.file_bytes for source in opened]
    texts = tuple({"sha256": hash_of(source), "source": store_key(source.fingerprint)} for source in opened)
    return Source(
        {
            "mixture": [
                [one.name, one.weight, own.fingerprint] for one, own in zip(named, opened, strict=True)
            ]
        },
        file_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        sha256=store_key({"texts": texts}),  # without the weights: what is scored is the same text with any
        documents=documents,
        require_unchanged=require_unchanged,
        notes=tuple(note for source in opened for note in source.notes),
        parts_of=texts,
    )


def hash_of(source: Source) -> str:
    """The hash of a text as data.json notes it."""
    return source.sha256 or store_key(source.fingerprint)


def as_if_alone(dataset: DatasetConfig, source: TextSource) -> DatasetConfig:
    """The settings of one text; `characters` and `streaming` are for those that they apply to."""
    one = alone(dataset, source)
    if source.path.partition(":")[0] not in TALES:
        one = replace(one, characters=None)
    return one if hub_set(one.path, one.text_column, one.streaming) else replace(one, streaming=False)


@contextmanager
def naming(source: TextSource) -> Iterator[None]:
    """Say in an error of the block which text it is about, and where its column is named."""
    try:
        yield
    except UserError as error:
        said = str(error).replace("--dataset.text_column", "its text_column").partition("; --data tales")[0]
        raise UserError(f"dataset.sources, {source.name}: {said}") from None


def _opened(one: DatasetConfig, source: TextSource) -> Source:
    if is_nanogpt_folder(one.path):
        raise UserError(
            f"dataset.sources, {source.name} ({one.path}) holds tokens, which cannot be mixed: name its text"
        )
    with naming(source):
        return open_source(one)


def _documents_of(one: DatasetConfig, source: Source) -> Iterator[Document]:
    """The documents of a text; those of one without separators are its three parts, cut by position."""
    if source.documents is not None:
        yield from source.documents()
        return
    assert source.text_file is not None, "a source is a text or documents"
    text = read_text(Path(source.text_file))
    if len(text) > MAX_DOCUMENT:
        raise UserError(
            f"{one.path} is one text of more than {MAX_DOCUMENT} characters: separate its documents by lines "
            "'<|endoftext|>' to mix it with others"
        )
    val, test = split_positions(len(text), one)
    for part, piece in zip(PARTS, (text[:val], text[val:test], text[test:]), strict=True):
        yield Document(piece, part)


def require_each_part(dataset: DatasetConfig, units: dict[str, list[int]], when: str = "") -> None:
    """Raise UserError if a text has no document for a part; `units` counts its documents by part."""
    words = {"train": "to train on", "val": "to validate with", "test": "to test with"}
    for number, source in enumerate(text_sources(dataset)):
        for part in PARTS:
            if not units[part][number]:
                raise UserError(
                    f"dataset.sources, {source.name} ({source.path}) has no document {words[part]}{when}: use more of "
                    "it, or larger fractions"
                )


def borders_of(corpus: Corpus, part: str) -> list[int]:
    """The numbers of the units at which a text begins in a part, and of the end; empty if it is no mixture."""
    units = corpus.metadata.get("source_units")
    return [int(border) for border in np.cumsum([0, *units[part]])] if units else []


def weighted_texts(corpus: Corpus, dataset: DatasetConfig) -> Iterator[str]:
    """The training documents, each as often as the weights ask for, to train a tokenizer on.

    There are as many characters as without weights. Documents that count less than once are left out evenly.
    """
    borders, chars = borders_of(corpus, "train"), corpus.metadata["source_chars"]
    for number, share in enumerate(shares_of(text_sources(dataset))):
        times = share * sum(chars) / chars[number]
        seen = given = 0.0
        for _, text in corpus.units("train", borders[number], borders[number + 1]):
            seen += len(text)
            while given < times * seen:
                yield text
                given += len(text)


def describe_sources(
    dataset: DatasetConfig,
    source: Source,
    corpus: Corpus,
    shards: list[Shard],
    records: dict[str, list[dict[str, Any]]],
) -> list[Facts]:
    """For data.json: each text's share of the training tokens, hash, and sizes in each part."""
    named = text_sources(dataset)
    found: list[Facts] = [
        {"name": one.name, "path": one.path, "text_column": one.text_column, "share": share, **facts}
        for one, share, facts in zip(named, shares_of(named), source.parts_of, strict=True)
    ]
    for part in PARTS:
        borders = borders_of(corpus, part)
        own = [shard for shard in shards if shard.part == part]
        for number, facts in enumerate(found):
            mine = [
                record
                for shard, record in zip(own, records[part], strict=True)
                if borders[number] <= shard.start < borders[number + 1]
            ]
            for kind, key in (("tokens", "tokens"), ("text_bytes", "bytes"), ("text_chars", "chars")):
                facts[f"{part}_{kind}"] = sum(record[key] for record in mine)
            facts[f"{part}_documents"] = sum(record["units"] for record in mine)
    kept = {part: [facts[f"{part}_documents"] for facts in found] for part in PARTS}
    require_each_part(dataset, kept, " that is not in another part, too")
    return found


def mixture_of(sources: list[Facts]) -> Mixture | None:
    """How training draws windows, from the texts in data.json; None if there is one text."""
    if not sources:
        return None
    sizes = np.array([facts["train_tokens"] for facts in sources], dtype=np.int64)
    return Mixture(np.cumsum(sizes) - sizes, sizes, np.array([facts["share"] for facts in sources]))


def require_long_enough(sources: list[Facts], context_length: int) -> None:
    """Raise UserError if a text has too few training tokens for one window."""
    for facts in sources:
        if facts["train_tokens"] < context_length + 2:
            raise UserError(
                f"dataset.sources, {facts['name']} ({facts['path']}) has {facts['train_tokens']} training tokens, and "
                f"train.context_length {context_length} needs {context_length + 2}: use more of it, or a shorter "
                "context"
            )
