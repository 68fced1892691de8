"""Valid files of each kind that strangers may send: what the fuzzers damage."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import sentencepiece
import tokenizers as hf
from conftest import TINY_KIMI, make_text

from nanokimi.config import DatasetConfig, KimiFamily, OptimConfig, RunConfig, SampleConfig, TrainConfig
from nanokimi.config.files import find_configs, preset_names, save_config
from nanokimi.config.rules import resolve
from nanokimi.data.store import PreparedData, open_prepared, prepare
from nanokimi.data.tokenizers.foreign import SentencePieceModel, TokenizersTokenizer
from nanokimi.data.tokenizers.own import build_tokenizer
from nanokimi.train.loop import train
from nanokimi.train.state import build_state

Files = dict[str, bytes]
CONTEXT = 4
STORIES = [f"Story {i}.\n" + make_text(120, seed=i).strip() for i in range(60)]
MANY = "\n<|endoftext|>\n".join(STORIES)
JSONL = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(STORIES)).encode()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for as long as it takes to read what is made in it."""
    with tempfile.TemporaryDirectory(prefix="nanokimi-fuzz-") as name:
        yield Path(name)


def write_files(folder: Path, files: dict[str, bytes | str]) -> None:
    """Fill `folder`; a text is the target of a link."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.symlink_to(content)


def files_of(folder: Path) -> Files:
    """The content of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@cache
def configurations() -> list[str]:
    """Presets, and a resolved configuration as a run writes it."""
    texts = [path.read_text() for name in preset_names() for path in find_configs(name)]
    with temporary_folder() as folder:
        save_config(RunConfig(train=TrainConfig(max_steps=5)), folder / "c.yaml")
        texts += [(folder / "c.yaml").read_text()] * 3
    yarn = "train:\n  max_steps: 5\nnanokimi:\n  model:\n    rope_scaling:\n      factor: 4.0\n  optim:\n    lr: 1e-3\n"
    return [*texts, yarn, ""]


GPT4 = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|\s*[\r\n]|\s+(?!\S)|\s+"


@cache
def foreign_tokenizers() -> Files:
    """tokenizer.json of three models, in which most parts of the library take part, and SentencePiece models."""
    lines = make_text(20_000).splitlines()
    found: Files = {}
    for kind, more in (
        ("bpe", dict(byte_fallback=True, normalization_rule_name="identity")),
        ("unigram", {}),
    ):
        out = io.BytesIO()
        common: dict[str, Any] = dict(
            hard_vocab_limit=False, character_coverage=1.0, num_threads=1, minloglevel=2
        )
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, vocab_size=350, model_type=kind, **common, **more
        )
        found[f"{kind}.model"] = out.getvalue()
    _, _, charsmap = found["unigram.model"].partition(b"nmt_nfkc\x12")
    # It begins with the three bytes of its length.
    charsmap = charsmap[3 : 3 + sum((byte & 127) << 7 * i for i, byte in enumerate(charsmap[:3]))]
    n, p, d = hf.normalizers, hf.pre_tokenizers, hf.decoders
    common = dict(vocab_size=300, show_progress=False, initial_alphabet=p.ByteLevel.alphabet())

    bpe = hf.Tokenizer(hf.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    split = p.Split(hf.Regex(GPT4), "isolated")
    bpe.pre_tokenizer = p.Sequence(
        [split, p.Digits(True), p.Punctuation(), p.UnicodeScripts(), p.ByteLevel(False)]
    )
    bpe.decoder, bpe.post_processor = d.ByteLevel(), hf.processors.ByteLevel(trim_offsets=True)
    bpe.train_from_iterator(lines, hf.trainers.BpeTrainer(special_tokens=["<pad>", "<unk>"], **common))
    bpe.add_special_tokens([hf.AddedToken("<|endoftext|>", lstrip=True, normalized=False)])
    bpe.add_tokens([hf.AddedToken("boy", single_word=True)])
    bpe.enable_truncation(8, stride=2)
    bpe.enable_padding(length=4, pad_to_multiple_of=8)

    words = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer, words.decoder = (
        n.BertNormalizer(),
        p.BertPreTokenizer(),
        d.WordPiece(),
    )
    words.post_processor = hf.processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [("[CLS]", 1)])
    words.train_from_iterator(
        lines, hf.trainers.WordPieceTrainer(special_tokens=["[UNK]", "[CLS]"], **common)
    )

    unigram = hf.Tokenizer(hf.models.Unigram())
    simple = [n.NFD(), n.StripAccents(), n.Strip(), n.Lowercase(), n.Prepend("\u2581"), n.Nmt(), n.NFC()]
    unigram.normalizer = n.Sequence([n.Precompiled(charsmap), n.Replace(hf.Regex(" {2,}"), " "), *simple])
    unigram.pre_tokenizer = p.Sequence([p.CharDelimiterSplit("|"), p.Metaspace()])
    fallback = [d.Replace("\u2581", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0), d.CTC("<pad>")]
    unigram.decoder = d.Sequence([d.Metaspace(), *fallback])
    unigram.train_from_iterator(lines, hf.trainers.UnigramTrainer(unk_token="<unk>", **common))

    trained = {"bpe": bpe, "words": words, "unigram": unigram}
    return found | {f"{name}.json": one.to_str().encode() for name, one in trained.items()}


@cache
def tokenizer_folders() -> list[Files]:
    """What each kind of tokenizer saves."""
    text = make_text(20_000)
    found: list[Any] = [
        build_tokenizer(DatasetConfig(tokenizer=name, vocab_size=320), [text], len(text), documents=documents)
        for name in ("char", "byte", "bpe", "unigram")
        for documents in (False, True)
    ]
    for name, content in foreign_tokenizers().items():
        found.append((TokenizersTokenizer if name.endswith(".json") else SentencePieceModel)(content))
    folders = []
    for tokenizer in found:
        with temporary_folder() as folder:
            tokenizer.save(folder)
            folders.append(files_of(folder))
    return folders


@cache
def store_folders() -> list[Files]:
    """Prepared data: one text or documents, each sort of tokenizer, and tales, whose probabilities are known."""
    kinds = "one.txt:char many.txt:char many.txt:byte one.txt:bpe tales:char many.txt:t.json one.txt:t.model".split()
    found = []
    with temporary_folder() as folder:
        texts = {"one.txt": make_text(3000).encode(), "many.txt": MANY.encode()}
        foreign = {"t.json": foreign_tokenizers()["bpe.json"], "t.model": foreign_tokenizers()["bpe.model"]}
        write_files(folder, {**texts, **foreign})
        for kind in kinds:
            path, tokenizer = (str(folder / name) if "." in name else name for name in kind.split(":"))
            sizes = {"tales:char": {"characters": 30_000}, "one.txt:bpe": {"vocab_size": 320}}.get(kind, {})
            dataset = DatasetConfig(
                path=path, tokenizer=tokenizer, cache=str(folder / "cache"), workers=1, **sizes
            )
            prepare(dataset, folder / kind, CONTEXT)
            found.append(files_of(folder / kind))
    return found


@cache
def stores_in_use() -> list[PreparedData]:
    """Two of them opened, for other texts to be scored with; their files stay mapped after the folder has gone."""
    opened = []
    for files in store_folders()[:2]:
        with temporary_folder() as folder:
            write_files(folder, dict(files))
            opened.append(open_prepared(folder))
    return opened


def parquet_file(table: Any, **options: Any) -> bytes:
    """A table as parquet."""
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, **options)
    return out.getvalue()


@cache
def parquet_files() -> list[bytes]:
    """Good tables, and tables whose columns are of the wrong type."""
    texts = [*STORIES, None, ""]
    count = len(texts)
    good = pa.table({"text": texts, "id": list(range(count))})
    raw = pa.array([b"\xff\xfe", b"ok"] * (count // 2))
    bad_utf8 = pa.Array.from_buffers(pa.string(), count, raw.buffers())
    huge = pa.array([2**62] * count)
    columns = [pa.array([value] * count) for value in (7, 0.5, True, ["a"], {"a": "b"}, [1.0, 2.0])]
    columns += [pa.nulls(count), raw, bad_utf8, pa.array([2**30] * count, pa.date32())]
    columns += [huge.cast(kind) for kind in (pa.timestamp("us"), pa.timestamp("ns"), pa.duration("s"))]
    columns += [pa.array(texts).dictionary_encode(), pa.array(texts, pa.large_string())]
    columns.append(pa.array([[("k", "v")]] * count, pa.map_(pa.string(), pa.string())))
    found = [parquet_file(good), parquet_file(good, compression="zstd"), parquet_file(good, row_group_size=7)]
    found += [parquet_file(good, compression="none", use_dictionary=False), parquet_file(good.slice(0, 0))]
    found += [parquet_file(pa.table({"text": column})) for column in columns]
    found.append(parquet_file(pa.table([pa.array(texts), pa.array(texts)], names=["text", "text"])))
    found.append(parquet_file(pa.table({"a.b": texts, "": texts, "te\nxt": texts})))
    return found


@cache
def nanogpt_files() -> Files:
    """A folder of nanoGPT's."""
    text = make_text(3000)
    stoi = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = np.array([stoi[character] for character in text], dtype=np.uint16)
    meta = {"vocab_size": len(stoi), "itos": {i: character for character, i in stoi.items()}, "stoi": stoi}
    parts = {"d/train.bin": ids[:2700].tobytes(), "d/val.bin": ids[2700:].tobytes()}
    return {**parts, "d/meta.pkl": pickle.dumps(meta, 4)}


@cache
def checkpoints() -> tuple[PreparedData, Files]:
    """The data and the folder of a tiny run that has taken three steps."""
    with temporary_folder() as folder:
        (folder / "text.txt").write_text(make_text(3000))
        dataset = DatasetConfig(path=str(folder / "text.txt"), cache=str(folder / "cache"))
        data = prepare(dataset, folder / "data", 8)
        for _ in train(fresh_state(data, folder / "run")):
            pass
        return data, files_of(folder / "run")


def fresh_state(data: PreparedData, folder: Path) -> Any:
    """A run at its beginning."""
    model = replace(TINY_KIMI, vocab_size=None, hidden_size=16, num_hidden_layers=2)
    kimi = KimiFamily(model=model, optim=OptimConfig(name="muonclip", lr=1e-2, warmup_steps=1))
    steps = TrainConfig(context_length=8, batch_size=2, max_steps=3, eval_every=3, save_every=2)
    sample = SampleConfig(prompts=("a",), max_new_tokens=2)
    config = RunConfig(seed=3, train=steps, nanokimi=kimi, sample=sample)
    config = resolve(config, vocab_size=data.tokenizer.vocab_size, device="cpu", dtype="fp32", threads=1)
    folder.mkdir(exist_ok=True)
    return build_state(config, data, folder)
