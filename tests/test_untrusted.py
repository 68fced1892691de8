"""Files that may come from anyone: none runs code, writes outside, hangs, or ends in anything but one line.

Most of these were found by test_fuzz.py; each is here in its smallest form.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import PATIENCE, make_text
from fuzz_damage import DOUBLING, LAUGHS, LAUGHS_INSIDE
from fuzz_files import MANY, parquet_file
from rich.console import Console

from nanokimi import cli
from nanokimi.config import DatasetConfig, SampleConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.safe_yaml import MAX_BYTES, parse_yaml
from nanokimi.data import documents, records
from nanokimi.data.documents import read_documents
from nanokimi.data.nanogpt import is_nanogpt_folder
from nanokimi.data.packed import read_blocks
from nanokimi.data.plain_pickle import read_plain_pickle
from nanokimi.data.sources import open_source, read_text, with_absolute_paths
from nanokimi.data.store import as_validation_text, open_prepared, prepare
from nanokimi.data.tokenizers.foreign import read_foreign
from nanokimi.data.tokenizers.own import load_tokenizer
from nanokimi.errors import MAX_MESSAGE, UserError
from nanokimi.generation.text import TextStream
from nanokimi.model.build import build_model
from nanokimi.runtime.display import Display
from nanokimi.runtime.files import read_bytes, read_json, read_json_lines, refuse_links
from nanokimi.train.checkpoint import load_weights


class RunsCode:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def complaint(function: Any, *arguments: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable() and 10 < len(message) <= MAX_MESSAGE
    return message


# ---- code


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch {trap}']",
        "!!python/object/apply:os.system ['touch {trap}']",
        "dataset: !!python/object/new:os.system ['touch {trap}']",
        "? !!python/object/apply:os.mkdir ['{trap}']\n: 1",
        "dataset:\n  path: !!python/name:os.system x",
        "dataset:\n  path: !!python/module:os x",
    ],
)
def test_yaml_that_runs_code_is_refused(text: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "c.yaml").write_text(text.replace("{trap}", str(trap)))
    assert "not valid YAML" in complaint(load_config, str(tmp_path / "c.yaml"))
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--data", "x"]) == 2
    assert not trap.exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path: Path, tiny_config: Any) -> None:
    """torch.save's format is a zip of a pickle; a bare one is what older versions wrote."""
    model = build_model(replace(tiny_config().nanogpt.model, vocab_size=61, max_position_embeddings=16), 0)
    trap, path = tmp_path / "trap", tmp_path / "model.safetensors"
    hostile = {"head.weight": RunsCode(trap)}
    torch.save(hostile, path)
    assert "cannot read" in complaint(load_weights, model, path)
    path.write_bytes(pickle.dumps(hostile))
    assert "cannot read" in complaint(load_weights, model, path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.is_dir(), "the trap itself works"


def test_pickles_that_would_take_all_time_or_memory_are_refused() -> None:
    """Keys of 2^60 tuples to hash, a key so deep that hashing it crashes, and an object stored as number 2^31 - 1."""
    for key in (DOUBLING, b")" + b"\x85" * 500_000):
        for program in (b"}" + key + b"K\x01s.", b"}(" + key + b"K\x01u.", b"(" + key + b"K\x01d."):
            with pytest.raises(ValueError, match="instruction (EMPTY_TUPLE|TUPLE1)"):
                read_plain_pickle(b"\x80\x04" + program)
    with pytest.raises(ValueError, match="it is damaged .byte 3 stores an object as number 2147483647"):
        read_plain_pickle(b"\x80\x04]r\xff\xff\xff\x7f.")


# ---- configurations


def test_an_exponent_in_yaml_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text."""
    (tmp_path / "c.yaml").write_text("train: {max_steps: 5}\nnanokimi: {optim: {lr: 1e-3}}\n")
    lr = load_config(str(tmp_path / "c.yaml")).nanokimi.optim.lr
    assert isinstance(lr, float) and lr == 0.001


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 2001-99-99", "month must be"),
        ("seed: !!timestamp x", "YAML"),
        ("seed: !!int ''", "YAML"),
        ("seed: !!bool x", "YAML"),
        ("seed: !!float x", "YAML"),
        ("seed: " + "9" * 5000, "YAML"),
        ("seed: 0x" + "f" * 5000, "more than 38 digits"),
        ("train: {max_tokens: 0x" + "f" * 400 + "}", "more than 38 digits"),
        ("seed: " + "1:" * 500 + "1", "more than 38 digits"),
        ("seed: " + "[" * 2000, "nested"),
        ("seed: " + "[" * 90 + "]" * 90, "nested more than 20 levels"),
        ("seed: &a [*a]", "contains itself"),
        ("seed: &a [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]", "contains itself"),
        (LAUGHS + "seed: *a59", "expands to more than"),
        ("seed: " + LAUGHS_INSIDE, "expands to more than"),
        ("seed: 1\nseed: 2", "'seed' occurs twice"),
        ("train:\n  threads: 1\n  threads: 2", "'threads' occurs twice, the second time in line 3"),
        ("x" * (MAX_BYTES + 1), "longer than"),
        ("seed: 1\n---\nseed: 2", "single document"),
        ('"a\\nb\\x1b[2J": 1', "there is no setting 'a b?[2J'"),
        ("dataset: {path: '" + "x" * 20_000 + "'}\nnone_such: 1", "there is no setting 'none_such'"),
    ],
)
def test_hostile_yaml_is_one_line(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    start = time.process_time()  # this process's own: others may keep the machine busy
    assert part in complaint(load_config, str(tmp_path / "c.yaml"))
    assert time.process_time() - start < 5


def test_anchors_of_ordinary_size_are_fine() -> None:
    text = "a: &one {x: 1, y: [2, 3]}\nb: *one\nc: {<<: *one, x: 4}\n"
    one = {"x": 1, "y": [2, 3]}
    assert parse_yaml(text) == {"a": one, "b": one, "c": one | {"x": 4}}


@pytest.mark.parametrize(
    "option",
    [
        "--nanokimi.model.hidden_size=1000000000",
        "--nanokimi.model.num_hidden_layers=1000000000",
        "--nanokimi.model.n_routed_experts=100000",
        "--nanogpt.model.num_hidden_layers=1001",
        "--train.threads=100000",
        "--train.batch_size=1000000000000",
        "--seed=0x" + "f" * 5000,
        "--train.max_steps=0x" + "f" * 5000,
        "--train.max_tokens=0x" + "f" * 5000,
        "--sample.top_k=" + "9" * 400,
    ],
)
def test_numbers_that_would_only_fill_the_memory_are_refused(option: str) -> None:
    message = complaint(load_config, "smoke", [option])
    assert option.partition("=")[0].removeprefix("--") in message or "more than" in message


def test_an_option_of_no_kind_at_all_is_refused_in_words() -> None:
    assert "model is !!bool x: expected one of nanokimi" in complaint(
        load_config, "smoke", ["--model=!!bool x"]
    )


def test_a_model_that_no_machine_holds_is_refused() -> None:
    kimi = ["--nanokimi.model.moe_intermediate_size=1000000", "--nanokimi.model.hidden_size=100000"]
    assert "nanokimi.model would have about" in complaint(load_config, "smoke", kimi)
    gpt = ["--nanogpt.model.hidden_size=500000", "--nanogpt.model.num_attention_heads=2"]
    assert "nanogpt.model would have about" in complaint(load_config, "smoke", gpt)
    load_config("k2-1b")


def test_messages_are_one_printable_line_of_bounded_length() -> None:
    assert str(UserError("a\nb\tc\x1b[31m\x00\u202e\ud800")) == "a b c?[31m???"
    long = str(UserError("x" * 10**6 + " the end"))
    assert len(long) < MAX_MESSAGE and long.endswith("the end")


# ---- prepared data


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Prepared documents."""
    (tmp_path / "many.txt").write_text(MANY)
    prepare(DatasetConfig(path=str(tmp_path / "many.txt"), workers=1), tmp_path / "store", 4)
    return tmp_path / "store"


def with_facts(folder: Path, **changes: Any) -> str:
    """What is said of a store whose data.json was changed; None: the key is gone."""
    metadata = {**json.loads((folder / "data.json").read_text()), **changes}
    metadata = {key: value for key, value in metadata.items() if value != "gone"}
    (folder / "data.json").write_text(json.dumps(metadata))
    return complaint(open_prepared, folder)


@pytest.mark.parametrize(
    "name", ["vocab_size", "train_tokens", "val_tokens", "val_text_bytes", "val_documents"]
)
@pytest.mark.parametrize(
    "value", [None, "gone", 0, -1, 1.5, "3", True, [], 2**63, float("nan"), float("inf"), "\ud800"]
)
def test_facts_that_are_used_later_are_checked(store: Path, name: str, value: Any) -> None:
    assert "data.json is damaged" in with_facts(store, **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"contiguous": "yes"},
        {"contiguous": "gone"},
        {"bytes_per_token": 0},
        {"duplicates_in_train": "x"},
        {"val_floor_nats": "x"},
        {"contiguous": True, "val_floor_nats": 1.0},
        {"train_text_bytes": "gone"},
        {"store": 3},
        {"path": None},
        {"end_of_text_id": -1},
        {"changed_by_tokenizer": None, "units_encoded": 3},
        {"changed_by_tokenizer": 3},
    ],
)
def test_other_facts_are_checked(store: Path, changes: dict[str, Any]) -> None:
    assert "data.json is damaged" in with_facts(store, **changes)


def test_a_store_in_another_place_is_only_read(store: Path) -> None:
    """`store` may name any folder: what is there is refused, or read and never written."""
    for place in ("../../..", "/proc/self", "a\0b", "/dev"):
        assert "cannot be read" in with_facts(store, tokens_in_store=True, store=place)


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a": 1e999}', b"\xff", b"\xef\xbb\xbf{}", b"1" * 5000]
)
def test_json_that_is_none_of_ours_is_refused(store: Path, content: bytes) -> None:
    for name in ("data.json", "tokenizer.json"):
        before = (store / name).read_bytes()
        (store / name).write_bytes(content)
        assert f"{name} is damaged" in complaint(open_prepared, store)
        assert f"{name} is not valid JSON" in complaint(read_json, store / name)
        (store / name).write_bytes(before)


def test_ids_offsets_and_nats_are_checked(store: Path, tmp_path: Path) -> None:
    ids = np.fromfile(store / "train.bin", dtype="<u2")
    (ids + 60_000).tofile(store / "train.bin")
    assert "train.bin is damaged (it holds the id" in complaint(open_prepared, store)
    ids.tofile(store / "train.bin")
    offsets = np.fromfile(store / "train.idx", dtype="<u8")
    for place, value in ((1, 2**63), (0, 1), (-1, 5)):
        changed = offsets.copy()
        changed[place] = value
        changed.tofile(store / "train.idx")
        assert "offsets are out of order" in complaint(open_prepared, store)
    offsets.tofile(store / "train.idx")
    tales = prepare(DatasetConfig(path="tales", characters=20_000, workers=1), tmp_path / "tales", 4)
    assert tales.val_doc_nats is not None
    np.full(len(tales.val_doc_nats), np.nan).tofile(tmp_path / "tales" / "val.nats")
    assert "val.nats is damaged" in complaint(open_prepared, tmp_path / "tales")


@pytest.mark.parametrize("name", ["data.json", "tokenizer.json", "train.bin"])
def test_devices_and_pipes_are_not_read(store: Path, name: str) -> None:
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
        (store / name).unlink()
        make(store / name)
        assert "not a regular file" in complaint(open_prepared, store) or name == "train.bin"


# ---- data


def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(make_text())
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for path in (
        "\0",
        "\ud800",
        "x" * 5000,
        "/dev/zero",
        str(tmp_path / "pipe"),
        str(tmp_path / "loop" / "x"),
    ):
        assert not is_nanogpt_folder(path)
        complaint(open_source, DatasetConfig(path=path))
        complaint(read_text, path)
        tokenizer = DatasetConfig(path=str(tmp_path / "a.txt"), tokenizer=f"{path}.json")
        complaint(prepare, tokenizer, tmp_path / "out", 4)
    for path in ("\0", "\ud800"):
        complaint(with_absolute_paths, DatasetConfig(path=path))
        complaint(with_absolute_paths, DatasetConfig(path="a.txt", tokenizer=f"{path}.json"))
    for cache in ("~nobody-here/x", "\0", "\ud800", "x" * 5000, "/dev/null/x"):
        message = complaint(
            prepare, DatasetConfig(path=str(tmp_path / "a.txt"), cache=cache), tmp_path / "out", 4
        )
        assert "cache folder" in message
    assert "tales:SEED" in complaint(open_source, DatasetConfig(path="tales:" + "9" * 5000))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**30] * 60, pa.date32()),
        pa.array([2**62] * 60).cast(pa.timestamp("ns")),
        pa.array([b"x"] * 60),
        pa.array([["a"]] * 60),
        pa.array([{"a": "b"}] * 60),
        pa.array(list(range(60))).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_columns_that_are_no_text_are_refused(column: Any, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_file(pa.table({"text": column})))
    message = complaint(list, read_documents(tmp_path / "a.parquet", "text"))
    assert "'text' holds" in message and "not text" in message


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"\xff\xfe", b"ok"])
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pa.table({"text": pa.Array.from_buffers(pa.string(), 2, raw.buffers())}), path
    )
    assert "damaged" in complaint(list, read_documents(path, "text"))
    texts = pa.array(["one", None, "two"])
    for column in (
        texts,
        texts.cast(pa.large_string()),
        texts.dictionary_encode(),
        texts.cast(pa.string_view()),
    ):
        path.write_bytes(parquet_file(pa.table({"text": column})))
        assert list(read_documents(path, "text")) == ["one", "", "two"]


def test_deeply_nested_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": ' + "[" * 200_000 + "\n")
    assert "line 2 is not JSON" in complaint(list, read_documents(tmp_path / "a.jsonl", "text"))


def test_lines_and_documents_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (documents, records):
        monkeypatch.setattr(module, "MAX_DOCUMENT", 1000)
    (tmp_path / "a.txt").write_text("x" * 2000)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    for name in ("a.txt", "b.jsonl"):
        assert "a line of more than 1000" in complaint(list, read_documents(tmp_path / name, "text"))
    (tmp_path / "a.txt").write_text("short\n" * 500)
    assert "a document of more than 1000" in complaint(list, read_documents(tmp_path / "a.txt", "text"))


def test_a_zstd_bomb_is_unpacked_in_little_memory(tmp_path: Path) -> None:
    """64 KB that stand for 2 GB: one raw frame of run-length blocks, 128 KB for every 4 bytes."""
    block = (((1 << 17) << 3) | (1 << 1)).to_bytes(3, "little") + b"\n"
    header = b"\x28\xb5\x2f\xfd" + b"\x00\x58"  # no checksum, no size, a window of 2 MB
    (tmp_path / "a.txt.zst").write_bytes(header + block * 16_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    blocks = read_blocks(tmp_path / "a.txt.zst")
    assert all(len(next(blocks)) for _ in range(300))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


def test_a_tokenizer_that_makes_no_tokens_is_refused(tmp_path: Path) -> None:
    """It removes everything."""
    path = tokenizer_json(
        tmp_path, normalizer={"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
    )
    (tmp_path / "a.txt").write_text(make_text())
    dataset = DatasetConfig(path=str(tmp_path / "a.txt"), tokenizer=str(path), workers=1)
    assert "makes no tokens" in complaint(prepare, dataset, tmp_path / "out", 4)


def test_a_text_with_nothing_to_score_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    assert "no text to score" in complaint(
        as_validation_text, open_prepared(store), str(tmp_path / "empty.jsonl")
    )


# ---- tokenizers


def tokenizer_json(folder: Path, **changes: Any) -> Path:
    """A small tokenizer.json of whole words."""
    vocab = {f"w{i}": i for i in range(300)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    content = {"version": "1.0", "added_tokens": [], "model": model, **changes}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def test_a_pattern_that_panics_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Backtracking without end: the library gives up with a Rust panic, which is no Exception."""
    pattern = {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "x"}
    tokenizer = read_foreign(tokenizer_json(tmp_path, normalizer=pattern))
    start = time.process_time()  # this process's own: others may keep the machine busy
    assert "cannot encode the text" in complaint(tokenizer.encode, "a" * 1000)
    assert time.process_time() - start < 10


def test_a_text_that_a_tokenizer_cannot_encode_is_one_line(tmp_path: Path) -> None:
    vocab = {f"w{i}": i for i in range(300)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "missing"}
    tokenizer = read_foreign(tokenizer_json(tmp_path, model=model))
    assert "cannot encode the text" in complaint(tokenizer.encode, "unknown words")


def test_ids_beyond_what_makes_sense_are_refused(tmp_path: Path) -> None:
    for largest in (2**31, 2**32 - 1, 2**18):
        model = {
            "type": "WordLevel",
            "vocab": {f"w{i}": i for i in range(300)} | {"x": largest},
            "unk_token": "x",
        }
        path = tokenizer_json(tmp_path, model=model)
        assert "pieces: expected" in complaint(read_foreign, path)
        folder = tmp_path / str(largest)
        folder.mkdir()
        (folder / "tokenizer.json").write_text('{"schema_version": 1, "type": "tokenizer.json"}')
        (folder / "tokenizer.foreign.json").write_bytes(path.read_bytes())
        assert "pieces: expected" in complaint(load_tokenizer, folder)


@pytest.mark.parametrize("characters", [["a", "bc"], {"a": 1}, None, 7, "\ud800"])
def test_characters_that_are_no_text_are_refused(tmp_path: Path, characters: Any) -> None:
    stored = {"schema_version": 1, "type": "char", "characters": characters}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert "tokenizer.json is damaged" in complaint(load_tokenizer, tmp_path)


# ---- links and names


def test_preparing_through_links_changes_nothing_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.bin").write_bytes(b"mine")
    (tmp_path / "a.txt").write_text(make_text())
    dataset = DatasetConfig(path=str(tmp_path / "a.txt"), workers=1)
    (tmp_path / "linked").symlink_to(outside)
    prepare(dataset, tmp_path / "linked", 4)
    prepare(dataset, tmp_path / "inside", 4)
    for name in ("data.json", "train.bin", "tokenizer.json"):
        (tmp_path / "inside" / name).unlink()
        (tmp_path / "inside" / name).symlink_to(outside / "train.bin")
    prepare(dataset, tmp_path / "inside", 4)
    assert [p.name for p in outside.iterdir()] == ["train.bin"]
    assert (outside / "train.bin").read_bytes() == b"mine"
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["a.txt", "inside", "linked", "outside"], "nothing stays behind"
    assert not any(p.is_symlink() for p in (tmp_path / "inside").iterdir())


def test_names_in_a_data_folder_do_not_become_paths(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("..txt", "...jsonl.txt", "a\nb.txt", "\udcff.txt", "~.txt", "$HOME.txt"):
        (folder / name).write_text(MANY)
    (folder / "up").symlink_to("..")
    (folder / "zero.txt").symlink_to("/dev/zero")
    prepare(DatasetConfig(path=str(folder), workers=1), tmp_path / "out", 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]


def test_a_run_folder_with_links_or_pipes_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refuse_links(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "mine")
    assert "is a link" in complaint(refuse_links, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "run" / "state.json")
    assert "a device or a pipe" in complaint(refuse_links, tmp_path / "run")


# ---- readers


def test_readers_of_json_refuse_what_is_not_theirs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert "cannot read" in complaint(read_json_lines, path)
    path.write_text('{"a": 1}\n\n{"b": 2}\n')
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]
    for line in ("[1]", "{", "NaN", '{"a": NaN}', '{"a": -1e999}', "[" * 200_000, "\ufeff{}"):
        path.write_text('{"a": 1}\n' + line + "\n")
        assert "is damaged after 1 records" in complaint(read_json_lines, path)
    path.write_bytes(b'{"a": "\xff"}\n')
    assert "is damaged after 0 records" in complaint(read_json_lines, path)
    with pytest.raises(OSError, match="at most 3 are expected"):
        read_bytes(path, 3)


def test_the_command_line_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("dataset: {path: /dev/zero}\ntrain: {max_steps: 1}\n")
    command = [sys.executable, "-m", "nanokimi", "train", "--config", "c.yaml", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


# ---- what a terminal is told


HOSTILE_NAME = "Nano\x1b[31m\x9b2J\x00\u202eKimi\nnanokimi: all is well\r"
SHOWN_NAME = "Nano\u241b[31m[U+009B]2J\u2400[U+202E]Kimi nanokimi: all is well"


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would obey, but for line ends and tabs."""
    return {c for c in text if not c.isprintable() and c not in "\n\t"}


def test_a_runs_name_is_shown_and_not_obeyed(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that names a run; and, where the output is a terminal, what the run makes a model say."""
    run = make_run(sample=SampleConfig(prompts=("the dog",), max_new_tokens=3))
    config = replace(load_config(str(run / "config.yaml")), name=HOSTILE_NAME)
    save_config(config, run / "config.yaml")
    for verb in ("sample", "evaluate", "audit", "inspect"):
        assert cli.main([verb, str(run)]) == 0
        out, err = capsys.readouterr()
        assert SHOWN_NAME in out or verb == "inspect", out
        assert not obeyed(out + err), verb

    monkeypatch.setattr(TextStream, "push", lambda *_: "\x1b]0;title\x07")
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert cli.main(["sample", str(run)]) == 0
        out = capsys.readouterr().out
        assert ("\x1b]0;title\x07" in out) is not terminal, "a file gets the text as it is"
        assert ("\u241b]0;title\u2407" in out) is terminal


@pytest.mark.parametrize("live", [True, False])
def test_progress_shows_names_that_a_terminal_would_obey(live: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=live, width=200)
    with Display([HOSTILE_NAME], 8, console) as display:
        display.phase(HOSTILE_NAME, "auditing")
        display.note(HOSTILE_NAME, "a line\x1b[31m")
    said = stream.getvalue()
    assert "\u241b[31m[U+009B]2J\u2400[U+202E]Kimi" in said and "a line\u241b[31m" in said
    assert "\x1b[31m" not in said and not obeyed(said) & set("\x9b\0\u202e")


def test_the_reason_of_an_end_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a training that cannot go on, whose arm's name is a file's."""
    assert cli.say(f"nanokimi: {HOSTILE_NAME}", 1) == 1
    assert not obeyed(capsys.readouterr().err)
