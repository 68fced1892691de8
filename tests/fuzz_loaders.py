"""What is fuzzed: for each loader valid files, ways to damage them, and the public functions that must cope.

A loader's `load` may succeed or raise UserError. After success, what was loaded is used as the package would use it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import (
    STRINGS,
    YAML_VALUES,
    Link,
    any_bytes,
    any_json,
    damaged,
    damaged_pickle,
    damaged_protobuf,
    damaged_safetensors,
    damaged_yaml,
    packed,
    read_fields,
)
from hypothesis import strategies as st

from nanokimi.errors import UserError

CONTEXT = 4
KEPT = tempfile.TemporaryDirectory(prefix="nanokimi-fuzz-")
"""For what is mapped while cases run; goes when the process ends."""
SAMPLES = (
    "the small boy found a red ball.\n",
    "",
    " ",
    "caf\u00e9 \U0001f600\r\n\0\u2581x<|endoftext|>",
    "a" * 300,
    "zq" * 40,
)


@dataclass(frozen=True)
class Case:
    """Files to load, and how to call the loader."""

    files: dict[str, bytes | Link]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """For the smallest example."""
        return sum(len(f.target if isinstance(f, Link) else f) for f in self.files.values()) + len(
            repr(self.options)
        )

    def write(self, folder: Path) -> None:
        """Put the files into `folder`, which is emptied first."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Link):
                path.symlink_to(content.target)
            else:
                path.write_bytes(content)


@dataclass(frozen=True)
class Loader:
    """One of the five."""

    bases: tuple[Callable[[], Any], ...]
    """What makes the valid files; they are kept."""
    cases: Callable[[], st.SearchStrategy[Case]]
    load: Callable[[Path, Case], None]
    """Called with a folder that holds the case's files as `case/`; may write into `out/` there."""


def make_text(characters: int = 3000, seed: int = 0) -> str:
    """Sentences of random words."""
    words = "the small boy found a red ball and gave it to his friend who was very happy but then a dog ran off".split()
    chosen = random.Random(seed)
    text = ""
    while len(text) < characters:
        text += " ".join(chosen.choices(words, k=7)) + ".\n"
    return text[:characters]


def stories(count: int = 60) -> list[str]:
    """Documents, all different."""
    return [f"Story {i}.\n" + make_text(120, seed=i).strip() for i in range(count)]


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


LINKS = ("../canary/file", "../../canary", "/dev/zero", "/dev/null", "/etc/passwd", "nowhere", "loop", ".")


@st.composite
def change_one(
    draw: st.DrawFn, files: dict[str, bytes], how: Callable[[str, bytes], st.SearchStrategy[bytes]]
) -> dict[str, bytes | Link]:
    """`files` with one, rarely two, of them damaged, removed, exchanged or a link."""
    result: dict[str, bytes | Link] = dict(files)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(files)))
        kind = draw(st.sampled_from(["damage"] * 12 + ["remove", "link", "exchange", "extra"]))
        if kind == "damage":
            result[name] = draw(how(name, files[name]))
        elif kind == "remove":
            result.pop(name, None)
        elif kind == "link":
            result[name] = Link(draw(st.sampled_from(LINKS)))
        elif kind == "exchange":
            result[name] = files[draw(st.sampled_from(sorted(files)))]
        else:
            result[
                draw(
                    st.sampled_from(["x", ".hidden", "tokenizer.model", "new\nline.txt", "..txt", "..jsonl"])
                )
            ] = b"x"
    return result


# ---- config


@cache
def config_bases() -> list[str]:
    """Presets and a resolved configuration as a run writes it."""
    from nanokimi.config import RunConfig, TrainConfig
    from nanokimi.config.files import find_configs, preset_names, save_config

    texts = [path.read_text() for name in preset_names() for path in find_configs(name)]
    with tempfile.TemporaryDirectory() as folder:
        save_config(RunConfig(train=TrainConfig(max_steps=5)), Path(folder) / "c.yaml")
        texts += [(Path(folder) / "c.yaml").read_text()] * 3
    yarn = "train:\n  max_steps: 5\nnanokimi:\n  model:\n    rope_scaling:\n      factor: 4.0\n  optim:\n    lr: 1e-3\n"
    return [*texts, yarn, ""]


@st.composite
def config_cases(draw: st.DrawFn) -> Case:
    """A damaged YAML file, or a hostile name or option."""
    from nanokimi.config.files import all_keys

    keys = all_keys()
    base = draw(st.sampled_from(config_bases()))
    kind = draw(st.sampled_from(["yaml"] * 8 + ["bytes", "options", "options", "name"]))
    options: dict[str, Any] = {}
    data = base.encode()
    if kind == "yaml":
        data = draw(damaged_yaml(base, keys))
    elif kind == "bytes":
        data = draw(any_bytes(data) | damaged_yaml("", keys))
    elif kind == "name":
        options["name"] = draw(st.sampled_from(STRINGS) | st.text(max_size=8))
    else:
        values = st.sampled_from([*STRINGS, *YAML_VALUES]) | st.text(max_size=8)
        option = st.one_of(
            st.tuples(st.sampled_from(keys), values).map(lambda kv: [f"--{kv[0]}={kv[1]}"]),
            st.tuples(st.sampled_from(keys), values).map(lambda kv: [f"--{kv[0]}", kv[1]]),
            values.map(lambda value: [f"--{value}"]),
        )
        options["overrides"] = sum(draw(st.lists(option, min_size=1, max_size=3)), [])
    return Case({"config.yaml": data}, options)


def load_a_config(root: Path, case: Case) -> None:
    """Read it; what could be read is written, and read again to the same values."""
    from nanokimi.config.files import load_config, save_config
    from nanokimi.data.sources import with_absolute_paths

    config = load_config(
        case.options.get("name", str(root / "case" / "config.yaml")), case.options.get("overrides", [])
    )
    (root / "out").mkdir(exist_ok=True)
    save_config(config, root / "out" / "config.yaml")
    assert load_config(str(root / "out" / "config.yaml")) == config, "another configuration came back"
    with_absolute_paths(config.dataset)


# ---- tokenizers


@cache
def foreign_files() -> dict[str, bytes]:
    """tokenizer.json of several kinds, and SentencePiece models."""
    import sentencepiece
    import tokenizers as library

    lines = make_text(20_000).splitlines()
    found: dict[str, bytes] = {}
    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    settings = dict(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    special = ["<pad>", "<|endoftext|>"]
    bpe.train_from_iterator(lines, library.trainers.BpeTrainer(special_tokens=special, **settings))
    piece = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    piece.normalizer = library.normalizers.BertNormalizer()
    piece.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    piece.decoder = library.decoders.WordPiece()
    piece.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 1)]
    )
    piece.train_from_iterator(
        lines, library.trainers.WordPieceTrainer(special_tokens=["[UNK]", "[CLS]"], **settings)
    )
    unigram = library.Tokenizer(library.models.Unigram())
    unigram.normalizer = library.normalizers.Sequence(
        [library.normalizers.NFKC(), library.normalizers.Replace("x", "y")]
    )
    unigram.pre_tokenizer = library.pre_tokenizers.Metaspace()
    unigram.decoder = library.decoders.Metaspace()
    unigram.train_from_iterator(lines, library.trainers.UnigramTrainer(unk_token="<unk>", **settings))
    for name, tokenizer in (("bpe", bpe), ("wordpiece", piece), ("unigram", unigram)):
        found[f"{name}.json"] = tokenizer.to_str().encode()
    words = {f"w{i}": i for i in range(300)} | {"the": 300, "[UNK]": 301}
    model: dict[str, Any] = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    small = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    found["wordlevel.json"] = json.dumps(small).encode()
    text = make_text(20_000) + "".join(map(chr, range(0x4E00, 0x4F00)))
    for kind in ("bpe", "unigram"):
        for name, extra in (
            ("nfkc", {}),
            ("bytes", {"byte_fallback": True, "normalization_rule_name": "identity"}),
        ):
            out = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text.splitlines()), model_writer=out, vocab_size=620, model_type=kind,
                hard_vocab_limit=False, character_coverage=1.0, minloglevel=2, num_threads=1, **extra
            )  # fmt: skip
            found[f"{kind}-{name}.model"] = out.getvalue()
    found["everything.json"] = json_with_everything(found["bpe-nfkc.model"])
    return found


def json_with_everything(model: bytes) -> bytes:
    """A tokenizer.json in which most parts of the library take part."""
    import tokenizers as library

    normalizer = next(value for number, _, value in read_fields(model) if number == 3)
    charsmap = next(value for number, _, value in normalizer if number == 2)
    n, p, d = library.normalizers, library.pre_tokenizers, library.decoders
    bytes_256 = {f"<0x{byte:02X}>": byte for byte in range(256)}
    letters = {letter: 256 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz \u2581")}
    merges = [("t", "h"), ("th", "e")]
    vocab = bytes_256 | letters | {"th": 290, "the": 291, "<unk>": 292}
    whole = library.Tokenizer(
        library.models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    whole.normalizer = n.Sequence(
        [n.Precompiled(charsmap), n.NFD(), n.StripAccents(), n.Strip(), n.Lowercase(), n.Prepend("\u2581")]
        + [n.Replace(library.Regex(" {2,}"), " "), n.Nmt(), n.NFC()]
    )
    gpt4 = "'(?:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
    whole.pre_tokenizer = p.Sequence(
        [p.Split(library.Regex(gpt4), "isolated"), p.Digits(True), p.Punctuation(), p.CharDelimiterSplit("|")]
        + [p.UnicodeScripts()]
    )
    whole.decoder = d.Sequence(
        [d.Replace("\u2581", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0), d.CTC("<pad>")]
    )
    whole.post_processor = library.processors.ByteLevel(trim_offsets=True)
    whole.add_special_tokens(["<pad>", library.AddedToken("<|endoftext|>", lstrip=True, normalized=False)])
    whole.add_tokens([library.AddedToken("boy", single_word=True)])
    whole.enable_truncation(8, stride=2)
    whole.enable_padding(length=4, pad_to_multiple_of=8)
    return whole.to_str().encode()


@cache
def tokenizer_folders() -> list[dict[str, bytes]]:
    """What each kind of tokenizer saves."""
    from nanokimi.config import DatasetConfig
    from nanokimi.data.tokenizers.foreign import SentencePieceModel, TokenizersTokenizer
    from nanokimi.data.tokenizers.own import Tokenizer, build_tokenizer

    text = make_text(20_000)
    tokenizers: list[Tokenizer] = [
        build_tokenizer(DatasetConfig(tokenizer=name, vocab_size=320), [text], len(text), documents=documents)
        for name in ("char", "byte", "bpe", "unigram")
        for documents in (False, True)
    ]
    for name, content in foreign_files().items():
        tokenizers.append((TokenizersTokenizer if name.endswith(".json") else SentencePieceModel)(content))
    found = []
    for tokenizer in tokenizers:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            found.append(files_of(Path(folder)))
    return found


def damage_tokenizer_file(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """In the way that fits the file."""
    return damaged_protobuf(content) if name.endswith(".model") else any_json(content)


@st.composite
def tokenizer_cases(draw: st.DrawFn) -> Case:
    """A damaged file, read as dataset.tokenizer or as what a run saved."""
    texts = [draw(st.sampled_from(SAMPLES) | st.text(max_size=30)) for _ in range(2)]
    ids = draw(
        st.lists(st.integers(-2, 400) | st.sampled_from([-(2**31), 2**31, 2**62, 100_000]), max_size=12)
    )
    options = {"texts": texts, "ids": ids}
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(foreign_files())))
        content = draw(damage_tokenizer_file(name, foreign_files()[name]))
        suffix = "." + name.rpartition(".")[2]
        return Case({"tokenizer" + suffix: content}, options | {"foreign": "tokenizer" + suffix})
    files = draw(change_one(draw(st.sampled_from(tokenizer_folders())), damage_tokenizer_file))
    return Case(files, options)


def load_a_tokenizer(root: Path, case: Case) -> None:
    """Read it, encode, decode, save, read again."""
    from nanokimi.data.tokenizers.foreign import read_foreign
    from nanokimi.data.tokenizers.own import load_tokenizer

    foreign = case.options.get("foreign")
    tokenizer = read_foreign(root / "case" / foreign) if foreign else load_tokenizer(root / "case")
    use_tokenizer(tokenizer, case.options["texts"], case.options["ids"])
    (root / "out").mkdir(exist_ok=True)
    tokenizer.save(root / "out")
    again = load_tokenizer(root / "out")
    assert (again.vocab_size, again.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)


def use_tokenizer(tokenizer: Any, texts: list[str], ids: list[int]) -> None:
    """Encode and decode; ids must lie within the vocabulary, decoded text must be text."""
    assert 0 < tokenizer.vocab_size <= 1_200_000, f"vocab_size {tokenizer.vocab_size}"
    end = tokenizer.end_of_text_id
    assert end is None or 0 <= end < tokenizer.vocab_size, f"end_of_text_id {end}"
    for text in texts:
        encoded = tokenizer.encode(text)
        assert encoded.dtype == np.int32 and encoded.ndim == 1
        assert not len(encoded) or 0 <= encoded.min() <= encoded.max() < tokenizer.vocab_size, (
            "an id of no piece"
        )
        tokenizer.decode(encoded).encode("utf-8")
    tokenizer.decode(ids).encode("utf-8")
    tokenizer.decode(np.array([0, tokenizer.vocab_size - 1, tokenizer.vocab_size])).encode("utf-8")


# ---- store


@cache
def store_folders() -> list[dict[str, bytes]]:
    """Prepared data of each kind."""
    from nanokimi.config import DatasetConfig
    from nanokimi.data.store import prepare

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one.txt").write_text(make_text())
        (folder / "many.txt").write_text("\n<|endoftext|>\n".join(stories()))
        (folder / "t.json").write_bytes(foreign_files()["bpe.json"])
        (folder / "t.model").write_bytes(foreign_files()["unigram-bytes.model"])
        common: dict[str, Any] = {"cache": str(folder / "cache"), "workers": 1}
        for number, (path, tokenizer) in enumerate(
            [
                ("one.txt", "char"),
                ("many.txt", "char"),
                ("many.txt", "byte"),
                ("one.txt", "bpe"),
                ("tales", "char"),
            ]
            + [("many.txt", str(folder / "t.json")), ("one.txt", str(folder / "t.model"))]
        ):
            extra: dict[str, Any] = {"characters": 30_000} if path == "tales" else {}
            extra |= {"vocab_size": 320} if tokenizer == "bpe" else {}
            dataset = DatasetConfig(
                path=path if path == "tales" else str(folder / path), tokenizer=tokenizer, **common, **extra
            )
            prepare(dataset, folder / f"out{number}", CONTEXT)
            found.append(files_of(folder / f"out{number}"))
    return found


def damage_store_file(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Facts and tokenizer as JSON, ids as bytes."""
    return damage_tokenizer_file(name, content) if name.endswith((".json", ".model")) else any_bytes(content)


@st.composite
def store_cases(draw: st.DrawFn) -> Case:
    """One file of a prepared folder damaged."""
    files = draw(change_one(draw(st.sampled_from(store_folders())), damage_store_file))
    return Case(files, {"texts": list(SAMPLES), "ids": [0, 1, -1, 2**31]})


def load_a_store(root: Path, case: Case) -> None:
    """Open it and do what training, evaluation and the summary do with it."""
    from nanokimi.data.batches import iterate_validation, sample_batch
    from nanokimi.data.store import open_prepared
    from nanokimi.data.summary import bytes_of_ids, summary_text, token_counts

    data = open_prepared(root / "case")
    vocab_size = data.tokenizer.vocab_size
    use_tokenizer(data.tokenizer, case.options["texts"], case.options["ids"])
    for ids in (data.train_ids, data.val_ids):
        assert len(ids) and int(ids.max()) < vocab_size, "an id of no piece"
        assert len(token_counts(ids, vocab_size)) == vocab_size
        data.tokenizer.decode(ids[:200]).encode("utf-8")
    if len(data.train_ids) > CONTEXT:
        sample_batch(data.train_ids, seed=1, index=0, batch_size=2, context_length=CONTEXT)
    scored = iterate_validation(data.train_ids, data.val_ids, 64, 8, data.val_doc_offsets)
    assert sum(int(batch.counts.sum()) for batch in scored) == len(data.val_ids)
    metadata = data.metadata
    for name in ("val_text_bytes", "val_text_chars", "val_tokens"):
        assert 1.5 / metadata[name] > 0, name
    if data.val_doc_nats is not None:
        assert (
            np.isfinite(data.val_doc_nats).all()
            and float(metadata["val_floor_nats"]) / metadata["val_tokens"] >= 0
        )
    summary_text(data)
    assert len(bytes_of_ids(data.tokenizer)) == vocab_size
    json.dumps(metadata, allow_nan=False)


# ---- formats


def parquet_file(table: Any, **options: Any) -> bytes:
    """A table as parquet."""
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, **options)
    return out.getvalue()


@cache
def parquet_bases() -> list[bytes]:
    """Good tables, and tables whose columns are of the wrong type."""
    import pyarrow as pa

    texts = [*stories(), None, ""]
    count = len(texts)
    good = pa.table({"text": texts, "id": list(range(count))})
    raw = pa.array([b"\xff\xfe", b"ok"] * (count // 2)).cast(pa.binary())
    bad_utf8 = pa.Array.from_buffers(pa.string(), count, raw.buffers())
    huge = pa.array([2**62] * count)
    columns = [
        *(
            pa.array(range(count)),
            pa.array([0.5] * count),
            pa.array([True] * count),
            pa.nulls(count),
            raw,
            bad_utf8,
        ),
        *(
            huge.cast(pa.timestamp("us")),
            huge.cast(pa.timestamp("ns")),
            pa.array([2**30] * count, pa.date32()),
        ),
        *(huge.cast(pa.duration("s")), pa.array([["a"]] * count)),
        *(
            pa.array([{"a": "b"}] * count),
            pa.array(texts).dictionary_encode(),
            pa.array(texts, pa.large_string()),
        ),
        *(
            pa.array([[("k", "v")]] * count, pa.map_(pa.string(), pa.string())),
            pa.array([[1.0, 2.0]] * count),
        ),
    ]
    found = [parquet_file(good), parquet_file(good, compression="zstd"), parquet_file(good, row_group_size=7)]
    found += [parquet_file(good, compression="none", use_dictionary=False), parquet_file(good.slice(0, 0))]
    found += [parquet_file(pa.table({"text": column})) for column in columns]
    found.append(parquet_file(pa.table([pa.array(texts), pa.array(texts)], names=["text", "text"])))
    found.append(parquet_file(pa.table({"a.b": texts, "": texts, "te\nxt": texts})))
    return found


@cache
def nanogpt_files() -> dict[str, bytes]:
    """A folder of nanoGPT's."""
    text = make_text()
    characters = sorted(set(text))
    ids = np.array([characters.index(c) for c in text], dtype=np.uint16)
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {c: i for i, c in enumerate(characters)},
    }
    return {
        "d/train.bin": ids[:2700].tobytes(),
        "d/val.bin": ids[2700:].tobytes(),
        "d/meta.pkl": pickle.dumps(meta, 4),
    }


def jsonl(column: str = "text") -> bytes:
    """Lines of objects."""
    return "".join(json.dumps({column: text, "n": i}) + "\n" for i, text in enumerate(stories())).encode()


@st.composite
def damaged_jsonl(draw: st.DrawFn) -> bytes:
    """Some lines damaged as JSON, or no objects."""
    lines = jsonl().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = draw(
            any_json(lines[at]) | st.sampled_from([b"", b"[]", b"1", b'"x"', b"null", b"\0", b"{}"])
        )
    return draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(lines)


@st.composite
def format_cases(draw: st.DrawFn) -> Case:
    """A file or folder of one of the formats, and settings that fit it, mostly."""
    kind = draw(
        st.sampled_from(
            [
                "txt",
                "stories",
                "jsonl",
                "parquet",
                "parquet",
                "packed",
                "folder",
                "nanogpt",
                "nanogpt",
                "path",
            ]
        )
    )
    options: dict[str, Any] = {}
    files: dict[str, bytes | Link] = {}
    path = f"data.{kind}"
    many = "\n<|endoftext|>\n".join(stories()).encode()
    if kind in ("txt", "stories"):
        files[path := "data.txt"] = draw(any_bytes(many if kind == "stories" else make_text().encode()))
    elif kind == "jsonl":
        files[path] = draw(damaged_jsonl())
    elif kind == "parquet":
        base = draw(st.sampled_from(parquet_bases()))
        files[path] = draw(st.just(base) | damaged(base) | damaged(base))
    elif kind == "packed":
        name, plain = draw(
            st.sampled_from(
                [("txt", many), ("jsonl", jsonl()), ("txt", make_text().encode()), ("parquet", b"PAR1")]
            )
        )
        suffix = draw(st.sampled_from([".gz", ".zst"]))
        files[path := f"data.{name}{suffix}"] = draw(packed(plain, suffix))
    elif kind == "folder":
        base_files = {"d/a.txt": many, "d/sub/b.jsonl": jsonl(), "d/c.parquet": parquet_bases()[0]}
        files, path = draw(change_one(base_files, lambda _, data: any_bytes(data))), "d"
        for _ in range(draw(st.integers(0, 2))):
            odd = st.sampled_from(
                ["..txt", "...jsonl", "a\nb.txt", "x.txt.gz", "\udcff.txt", ".hidden.txt", "loop.txt", "sub2"]
            )
            files["d/" + draw(odd)] = draw(st.just(many) | st.sampled_from(LINKS).map(Link))
    elif kind == "nanogpt":
        files = draw(
            change_one(
                nanogpt_files(),
                lambda n, data: damaged_pickle(data) if n.endswith("pkl") else any_bytes(data),
            )
        )
        path = "d"
    else:
        files["data.txt"] = many
        names = [
            *STRINGS,
            "tales:" + "9" * 5000,
            "tales:x",
            "tales:-1",
            "hf:",
            "hf:x",
            "hf:../..",
            "/dev/zero",
            "/dev/null",
            "case",
        ]
        options["path"] = draw(st.sampled_from(names))
    settings: dict[str, Any] = {}
    for key, values in (
        (
            "tokenizer",
            ["byte", "bpe", "x.json", "\0.model", "/dev/zero", "x" * 5000 + ".json", "tokenizer.json"],
        ),
        ("text_column", ["text", "id", "", "a.b", "te\nxt", "\0", "\ud800"]),
        ("fraction", [0.5, 1e-300]),
        ("val_fraction", [0.4, 1e-300, 1 - 1e-16]),
        ("cache", ["~nobody-here/x", "\0", "x" * 5000, "/dev/null/x"]),
    ):
        if draw(st.integers(0, 5)) == 0:
            settings[key] = draw(st.sampled_from(values))
    if settings.get("tokenizer") == "tokenizer.json":
        files["tokenizer.json"] = foreign_files()["bpe.json"]
    if settings.get("tokenizer") == "bpe":
        settings["vocab_size"] = 300
    return Case(files, options | {"file": path, "settings": settings})


@cache
def other_data() -> list[Any]:
    """Data of a text and of documents, in whose tokens other texts are scored."""
    from nanokimi.data.store import open_prepared

    folder = Path(KEPT.name)
    for number in (0, 1):
        Case(dict(store_folders()[number])).write(folder / str(number))
    return [open_prepared(folder / str(number)) for number in (0, 1)]


def load_a_format(root: Path, case: Case) -> None:
    """Prepare it, and look at what came out."""
    from nanokimi.config import DatasetConfig
    from nanokimi.data.sources import with_absolute_paths
    from nanokimi.data.store import as_validation_text, open_prepared, prepare

    settings = {"workers": 1, "cache": str(root / "cache"), **case.options["settings"]}
    path = case.options.get("path", str(root / "case" / case.options["file"]))
    dataset = with_absolute_paths(DatasetConfig(path=path, **settings))
    if settings.get("tokenizer") == "tokenizer.json":
        dataset = replace(dataset, tokenizer=str(root / "case" / "tokenizer.json"))
    elif path.startswith("tales"):
        dataset = replace(dataset, characters=20_000)
    shutil.rmtree(root / "cache", ignore_errors=True)
    for base in () if path.startswith("tales") else other_data():
        with contextlib.suppress(UserError):
            other = as_validation_text(base, path)
            assert len(other.val_ids) and 1.5 / other.metadata["val_text_bytes"] > 0
    try:
        data = prepare(dataset, root / "out" / "data", CONTEXT)
    except UserError:
        left = os.listdir(root / "out") if (root / "out").exists() else []
        assert not left, f"a refused source leaves {left[0]}"
        raise
    assert np.array_equal(open_prepared(root / "out" / "data").val_ids, data.val_ids)
    assert int(max(data.train_ids.max(), data.val_ids.max())) < data.tokenizer.vocab_size, "an id of no piece"
    data.tokenizer.decode(data.val_ids[:500]).encode("utf-8")
    assert 1.5 / data.metadata["val_text_bytes"] > 0


# ---- checkpoints


@cache
def checkpoint_files() -> tuple[Any, dict[str, bytes]]:
    """(data, files) of a tiny run that has taken three steps."""
    import torch

    from nanokimi.config import DatasetConfig
    from nanokimi.data.store import prepare
    from nanokimi.train.loop import train

    torch.set_num_threads(1)
    folder = Path(KEPT.name)
    (folder / "text.txt").write_text(make_text())
    data = prepare(
        DatasetConfig(path=str(folder / "text.txt"), cache=str(folder / "cache")), folder / "data", 8
    )
    state = fresh_state(data, folder / "run")
    for _ in train(state):
        pass
    return data, files_of(folder / "run")


def fresh_state(data: Any, folder: Path) -> Any:
    """A run at its beginning."""
    from conftest import TINY_KIMI

    from nanokimi.config import KimiArm, OptimConfig, RunConfig, SampleConfig, TrainConfig
    from nanokimi.config.rules import resolve
    from nanokimi.train.state import build_state

    optim = OptimConfig(name="muonclip", lr=1e-2, warmup_steps=1)
    train = TrainConfig(
        context_length=8, batch_size=2, max_steps=3, eval_every=3, save_every=2, keep_checkpoints=2
    )
    kimi = KimiArm(
        model=replace(TINY_KIMI, vocab_size=None, hidden_size=16, num_hidden_layers=2), optim=optim
    )
    config = RunConfig(
        seed=3, train=train, nanokimi=kimi, sample=SampleConfig(prompts=("a",), max_new_tokens=2)
    )
    config = resolve(config, vocab_size=data.tokenizer.vocab_size, device="cpu", dtype="fp32", threads=1)
    folder.mkdir(exist_ok=True)
    return build_state(config, data, folder)


def damage_checkpoint_file(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Tensors and JSON."""
    if name.endswith(".safetensors"):
        return damaged_safetensors(content)
    return any_json(content) if name.endswith(".json") else any_bytes(content)


@st.composite
def checkpoint_cases(draw: st.DrawFn) -> Case:
    """A run folder with one file of its checkpoint, or its final weights, damaged."""
    files = {name: data for name, data in checkpoint_files()[1].items() if not name.startswith("samples")}
    if draw(st.integers(0, 2)):  # else there is an older checkpoint to fall back on
        files = {name: data for name, data in files.items() if "step-00000002" not in name}
    changed = draw(
        change_one({n: d for n, d in files.items() if n != "metrics.jsonl"}, damage_checkpoint_file)
    )
    if draw(st.integers(0, 20)) == 0:
        changed[
            "checkpoints/" + draw(st.sampled_from(["step-99999999", "step-", "step-x", "step-00000004"]))
        ] = b""
    options = {"sealed": draw(st.integers(0, 3)) > 0, "allow_changes": draw(st.booleans())}
    return Case({"metrics.jsonl": files["metrics.jsonl"], **changed}, options)


def load_a_checkpoint(root: Path, case: Case) -> None:
    """Resume from it and train one step; read its final weights. (The one place that knows how a run is resumed.)"""
    from nanokimi.errors import TrainingError
    from nanokimi.runtime.files import read_json_lines, refuse_links, seal
    from nanokimi.train.checkpoint import load_newest_checkpoint, load_weights, roll_back
    from nanokimi.train.step import NotFinite, train_step

    folder, data = root / "case", checkpoint_files()[0]
    refuse_links(folder)
    if case.options["sealed"]:  # whoever changes a file on purpose changes its checksum, too
        for path in folder.glob("checkpoints/step-*"):
            with contextlib.suppress(OSError):
                (path / "checksums.json").unlink(missing_ok=True)
                seal(path)
    state = fresh_state(data, folder)
    with contextlib.suppress(UserError):
        load_weights(state.model, folder / "model.safetensors")
    with contextlib.suppress(UserError):
        roll_back(fresh_state(data, folder))
    state = fresh_state(data, folder)
    if load_newest_checkpoint(state, allow_changes=case.options["allow_changes"]):
        metrics = folder / "metrics.jsonl"
        assert not metrics.exists() or metrics.stat().st_size <= 1 << 20, "metrics.jsonl grew"
        assert 0 <= state.step <= 10**9 and 0 <= state.best_step <= 10**9, "step"
        assert state.train_seconds + 1 >= 1 and state.best_val_loss + 1 > 0, "seconds or best loss"
        assert 0 <= state.peak_memory_bytes <= 1 << 60, "peak_memory_bytes"
        assert 0 < state.micro_batch_size <= 2, "micro_batch_size"
        assert 0 <= state.skipped_in_a_row <= state.batches_skipped, "batches_skipped"
        try:
            train_step(state)
        except (TrainingError, NotFinite):
            pass
        state.telemetry.drain(state.model, 100.0)
        if metrics.exists():
            read_json_lines(metrics)


LOADERS = {
    "config": Loader((config_bases,), config_cases, load_a_config),
    "checkpoint": Loader((checkpoint_files,), checkpoint_cases, load_a_checkpoint),
    "store": Loader((store_folders,), store_cases, load_a_store),
    "formats": Loader((parquet_bases, nanogpt_files, other_data), format_cases, load_a_format),
    "tokenizers": Loader((foreign_files, tokenizer_folders), tokenizer_cases, load_a_tokenizer),
}
