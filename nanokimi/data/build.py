"""Build a store from a source: read it, remove overlap between parts, choose the tokenizer, encode, move into place.

Each stage leaves its result in the work folder, so a build that was killed continues with the stage it was in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanokimi.config import DatasetConfig
from nanokimi.config.text_sources import text_name
from nanokimi.data import encoding
from nanokimi.data.cache import cache_folder, locked, store_key
from nanokimi.data.corpus import Corpus, read_source
from nanokimi.data.mixture import (
    borders_of,
    describe_sources,
    open_mixture,
    require_each_part,
    weighted_texts,
)
from nanokimi.data.nanogpt import (
    build_from_tokens,
    is_nanogpt_folder,
    parts_note,
    refuse_settings,
    tokens_identity,
)
from nanokimi.data.packed import file_sha256
from nanokimi.data.parts import PARTS, fractions
from nanokimi.data.sources import Source, open_source
from nanokimi.data.tasks import CORPUS, SHARDS, TOKENIZER, build_table, run_tasks
from nanokimi.data.tokenizers.foreign import FOREIGN, is_foreign, own_files
from nanokimi.data.tokenizers.own import Tokenizer, build_tokenizer, load_tokenizer
from nanokimi.errors import UserError
from nanokimi.runtime.files import write_json
from nanokimi.runtime.progress import byte_progress

BUILD_VERSION = 3
"""Part of each store's key: raise it when the same text and settings give another store."""
METADATA_FILE = "data.json"
HELD_OUT = ("val", "test")


class Found(NamedTuple):
    """A store in the cache, and what the user should know about its source."""

    path: Path
    notes: tuple[str, ...]
    source_key: str
    """A hash of what identifies the source."""


def prepare_store(dataset: DatasetConfig) -> Path:
    """The folder in the cache that holds `dataset`: see `find_store`."""
    return find_store(dataset).path


def find_store(dataset: DatasetConfig) -> Found:
    """The store that holds `dataset`, built if it is not in the cache yet.

    Raises UserError if the data cannot be read, changes while it is read, or the cache cannot be written.
    """
    source = None
    if is_nanogpt_folder(dataset.path):
        refuse_settings(dataset)
    else:
        source = open_mixture(dataset) if dataset.sources else open_source(dataset)
    notes = source.notes if source else (parts_note(dataset),)
    fingerprint = source.fingerprint if source else tokens_identity(dataset)
    identity = {
        "version": BUILD_VERSION,
        "source": fingerprint,
        "split": dataset.split,
        "parts": [str(share) for share in fractions(dataset)],
        "fraction": dataset.fraction,
        "tokenizer": tokenizer_identity(dataset),
    }
    if source is None:
        identity["text_sizes"] = "without end-of-text"
    key, source_key = store_key(identity), store_key(fingerprint)
    folder = cache_folder(dataset)
    store, work = folder / key, folder / f"{key}.build"
    if is_whole(store):  # found without the lock, so that a cache may be read-only
        return Found(store, notes, source_key)
    with locked(folder / f"{key}.lock"):
        if is_whole(store):
            return Found(store, notes, source_key)
        try:
            shutil.rmtree(store, ignore_errors=True)
            work.mkdir(exist_ok=True)
            partial = work / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            if source is None:
                build_from_tokens(dataset, partial)
            else:
                build(dataset, source, work, partial)
            require_same(dataset, source, identity, work)
            os.replace(partial, store)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{store} cannot be written ({reason}): check space and permissions") from None
        shutil.rmtree(work, ignore_errors=True)
    return Found(store, notes, source_key)


def require_same(dataset: DatasetConfig, source: Source | None, identity: dict[str, Any], work: Path) -> None:
    """Raise UserError if files changed since `identity` was found. (`read_source` checks those of a source.)"""
    now: dict[str, Any] = {"tokenizer": tokenizer_identity(dataset)}
    now |= {} if source else {"source": tokens_identity(dataset)}
    if identity | now != identity:
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(
            f"{text_name(dataset)}, or its tokenizer, changed while it was read: try again when nothing writes to it"
        )


def is_whole(store: Path) -> bool:
    """Whether a store's files have the sizes that its data.json says."""
    try:
        metadata = json.loads((store / METADATA_FILE).read_text(encoding="utf-8"))
        width = encoding.id_dtype(metadata["vocab_size"]).itemsize
        return all((store / f"{p}.bin").stat().st_size == metadata[f"{p}_tokens"] * width for p in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def tokenizer_identity(dataset: DatasetConfig) -> list[Any]:
    """What determines the tokenizer, besides the training text."""
    if is_foreign(dataset.tokenizer):
        path = Path(dataset.tokenizer)
        if not os.path.isfile(path):  # Path.is_file raises for names that no file can have
            raise UserError(f"dataset.tokenizer {path} is not a file: check the path")
        return ["file", path.suffix, *map(file_sha256, own_files(path))]
    if dataset.tokenizer == "unigram":
        return [dataset.tokenizer, dataset.vocab_size, "exact scores"]
    return [dataset.tokenizer, dataset.vocab_size] if dataset.tokenizer == "bpe" else [dataset.tokenizer]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(dataset: DatasetConfig, metadata: dict[str, Any]) -> int:
    """How many processes prepare the data: as many as asked for, else one per core, but one for little text.

    Of text that fits into one shard only the held-out parts could be encoded beside the rest, which another process can
    seldom do before it has even started.
    """
    little = sum(metadata[f"{part}_text_bytes"] for part in PARTS) <= encoding.SHARD_BYTES
    return dataset.workers or (1 if little else available_cores())


def build(dataset: DatasetConfig, source: Source, work: Path, target: Path) -> None:
    """Fill the folder `target` with the store of `source`, in the folder `work`."""
    with byte_progress("reading", source.file_bytes) as report:
        corpus = read_source(source, dataset, work / CORPUS, report)
    if dataset.sources:
        require_each_part(dataset, corpus.metadata["source_units"])
    workers = processes_for(dataset, corpus.metadata)
    counts = {} if corpus.contiguous else remove_overlap(corpus, work, workers)
    tokenizer = choose_tokenizer(corpus, dataset, work / TOKENIZER)
    shards = [
        shard
        for part in PARTS
        for shard in encoding.plan_shards(corpus.offsets(part), part, borders_of(corpus, part))
    ]
    records = encode(corpus, tokenizer, shards, work, workers)
    encoding.join_shards(shards, work / SHARDS, target, documents=not corpus.contiguous)
    metadata = describe(dataset, source, corpus, tokenizer, records) | counts
    if dataset.sources:
        metadata["sources"] = describe_sources(dataset, source, corpus, shards, records)
    if metadata.get("changed_by_tokenizer"):
        metadata["warning"] = encoding.lossy_warning(
            dataset.tokenizer, metadata["changed_by_tokenizer"], metadata["units_encoded"]
        )
    for part in HELD_OUT:
        if (path := work / CORPUS / f"{part}.nats").exists():
            nats = np.fromfile(path, dtype=np.float64)[corpus.keep(part)]
            nats.tofile(target / f"{part}.nats")
            metadata[f"{part}_floor_nats"] = float(nats.sum())
    tokenizer.save(target)
    (target / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def remove_overlap(corpus: Corpus, work: Path, workers: int) -> dict[str, int]:
    """Mark the training documents that repeat held-out ones and the validation documents that repeat test ones.

    Both exactly and nearly; returns how many there are of each sort.
    """
    done = corpus.folder / "overlap.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    for part in PARTS:  # left by a build that was stopped; all documents are checked again
        (corpus.folder / f"{part}.keep").unlink(missing_ok=True)
    tasks = [
        {
            "kind": "bands",
            "metadata": corpus.metadata,
            "part": s.part,
            "start": s.start,
            "stop": s.stop,
            "bytes": s.bytes,
        }
        for part in HELD_OUT
        for s in encoding.plan_shards(corpus.offsets(part), part)
    ]
    with byte_progress(
        "near duplicates", sum(corpus.metadata[f"{p}_text_bytes"] for p in HELD_OUT)
    ) as report:
        run_tasks(work, tasks, workers, report)
    counts, keep = {}, {}
    for part, against, name in (("val", ("test",), "_of_test_in_val"), ("train", HELD_OUT, "_across_split")):
        build_table(corpus.folder, against, tasks)
        exact = np.isin(corpus.hashes(part), np.concatenate([corpus.hashes(one) for one in against]))
        near = near_copies(corpus, part, against, work, workers)
        keep[part] = ~(exact | near)
        if not keep[part].any():
            raise UserError(
                f"every document of the {part} part is also in the {' or '.join(against)} part: use more documents"
            )
        counts[f"exact_duplicates{name}"] = int(exact.sum())
        counts[f"near_duplicates{name}"] = int((near & ~exact).sum())
    for task in tasks:
        for kind in ("bands", "shingles"):
            (corpus.folder / f"{kind}-{task['part']}-{task['start']}").unlink()
    for part, kept in keep.items():
        kept.tofile(corpus.folder / f"{part}.keep")
    write_json(done, counts)
    return counts


def near_copies(corpus: Corpus, part: str, against: Sequence[str], work: Path, workers: int) -> np.ndarray:
    """Which documents of a part nearly repeat one of the parts `against`: a bool for each."""
    shards = encoding.plan_shards(corpus.offsets(part), part)
    tasks = [
        {
            "kind": "overlap",
            "metadata": corpus.metadata,
            "part": part,
            "against": against,
            "start": s.start,
            "stop": s.stop,
            "bytes": s.bytes,
        }
        for s in shards
    ]
    with byte_progress("near duplicates", corpus.metadata[f"{part}_text_bytes"]) as report:
        found = run_tasks(work, tasks, workers, report)
    near = np.zeros(len(corpus.hashes(part)), dtype=bool)
    near[[number for numbers in found for number in numbers]] = True
    return near


def choose_tokenizer(corpus: Corpus, dataset: DatasetConfig, folder: Path) -> Tokenizer:
    """Build the tokenizer from the training text that is kept, or load it if that is done."""
    if not folder.exists():
        texts: Iterator[str] = (text for _, text in corpus.units("train"))
        if dataset.sources and dataset.tokenizer in ("bpe", "unigram"):  # others do not count
            texts = weighted_texts(corpus, dataset)
        tokenizer = build_tokenizer(
            dataset, texts, corpus.metadata["train_text_chars"], documents=not corpus.contiguous
        )
        partial = folder.with_name(f"{folder.name}.partial-tokenizer")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tokenizer.save(partial)
        os.replace(partial, folder)
    return load_tokenizer(folder)


def encode(
    corpus: Corpus, tokenizer: Tokenizer, shards: list[encoding.Shard], work: Path, workers: int
) -> dict[str, list[dict[str, Any]]]:
    """Encode the shards that are not complete yet; return the records of all, by part."""
    folder = work / SHARDS
    folder.mkdir(exist_ok=True)
    records = {shard.name: encoding.finished_record(shard, folder) for shard in shards}
    missing = [shard for shard in shards if records[shard.name] is None]
    tasks = [
        {"kind": "encode", "metadata": corpus.metadata, "shard": asdict(shard), "bytes": shard.bytes}
        for shard in missing
    ]
    with byte_progress("encoding", sum(shard.bytes for shard in missing)) as report:
        results = run_tasks(work, tasks, workers, report)
    records |= {shard.name: record for shard, record in zip(missing, results, strict=True)}
    return {part: [r for s in shards if s.part == part and (r := records[s.name])] for part in PARTS}


def describe(
    dataset: DatasetConfig,
    source: Source,
    corpus: Corpus,
    tokenizer: Tokenizer,
    records: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """The content of data.json: sizes of the text that is used, the tokenizer, and what the other stages counted.

    Bytes and characters are those of the text alone; tokens include one end-of-text after each document.
    """
    sums = {
        p: {k: sum(r[k] for r in records[p]) for k in ("bytes", "chars", "tokens", "units")} for p in PARTS
    }
    for part in PARTS:
        if not sums[part]["tokens"] or not sums[part]["bytes"]:
            raise UserError(f"the tokenizer {tokenizer.name} makes no tokens of the {part} text: use another")
    once = PARTS[:2] if dataset.split == "nanogpt" else PARTS  # its test part is its validation part
    metadata = {
        "file_bytes": source.file_bytes or sum(corpus.metadata[f"{part}_text_bytes"] for part in once),
        "sha256": source.sha256 or store_key(source.fingerprint),
        "split": dataset.split,
        "chars": sum(sums[part]["chars"] for part in once),
        **{f"{p}_text_{unit}": sums[p][unit] for p in PARTS for unit in ("bytes", "chars")},
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        **{f"{p}_tokens": sums[p]["tokens"] for p in PARTS},
        "bytes_per_token": sums["val"]["bytes"] / sums["val"]["tokens"],
        "end_of_text_id": None if corpus.contiguous else tokenizer.end_of_text_id,
    }
    metadata |= {
        name: corpus.metadata[name]
        for name in corpus.metadata
        if name.startswith(("doc", "dup", "contig", "split"))
    }
    if not corpus.contiguous:
        metadata |= {f"{part}_documents": sums[part]["units"] for part in PARTS}
    if tokenizer.name in FOREIGN:
        metadata["changed_by_tokenizer"] = sum(r["changed"] for part in once for r in records[part])
        metadata["units_encoded"] = sum(r["units"] for part in once for r in records[part])
    return metadata
