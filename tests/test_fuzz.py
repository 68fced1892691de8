"""Damaged files of strangers are loaded or refused in one line; what was loaded is then used as the package uses it.

A plain run tries the same few cases every time. `make fuzz CASES=20000` tries that many of each kind, new ones each
time, and keeps those that fail in .hypothesis, where the next run begins. A case that kills the process, or that takes
more than HANG_SECONDS, is left in the folder `case` below pytest's temporary folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fuzz_damage as damage
import fuzz_files as valid
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanokimi.config import DatasetConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.parsing import all_keys
from nanokimi.data.batches import iterate_validation, sample_batch
from nanokimi.data.sources import with_absolute_paths
from nanokimi.data.store import as_validation_text, open_prepared, prepare
from nanokimi.data.summary import bytes_of_ids, summary_text, token_counts
from nanokimi.data.tokenizers.foreign import read_foreign
from nanokimi.data.tokenizers.own import load_tokenizer
from nanokimi.errors import MAX_MESSAGE, TrainingError, UserError
from nanokimi.runtime.files import read_json_lines, refuse_links, seal
from nanokimi.train.checkpoint import load_newest_checkpoint, load_weights, roll_back
from nanokimi.train.step import NotFinite, train_step

CASES = int(os.environ.get("FUZZ_CASES", 0))
SLOW_SECONDS, HANG_SECONDS = 10, 40
CASE_MEGABYTES, MORE_ADDRESS_GIGABYTES = 600, 8
SECRET = b"untouched\n"
SAMPLES = [
    "the small boy found a red ball.\n",
    "",
    " ",
    "caf\u00e9 \U0001f600\r\n\0\u2581x<|endoftext|>",
    "a" * 300,
    "zq" * 40,
]


@dataclass(frozen=True)
class Case:
    """Files to load (a text is the target of a link), and how to call the loader."""

    # Those of the smallest failure are left in the folder `case`.
    files: dict[str, bytes | str] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)


@st.composite
def config_cases(draw: st.DrawFn) -> Case:
    """A damaged YAML file, or a hostile name or option."""
    keys, base = all_keys(), draw(st.sampled_from(valid.configurations()))
    hostile = st.sampled_from([*damage.STRINGS, *damage.YAML_PIECES]) | st.text(max_size=8)
    option = st.tuples(st.sampled_from(keys), hostile)
    options = option.map(lambda kv: [f"--{kv[0]}={kv[1]}"]) | option.map(lambda kv: [f"--{kv[0]}", kv[1]])
    match draw(st.integers(0, 11)):
        case 0:
            return Case({}, {"name": draw(st.sampled_from(damage.STRINGS) | st.text(max_size=8))})
        case 1 | 2:
            chosen = draw(
                st.lists(options | hostile.map(lambda value: [f"--{value}"]), min_size=1, max_size=3)
            )
            return Case({"config.yaml": base.encode()}, {"overrides": sum(chosen, [])})
        case 3:
            return Case({"config.yaml": draw(damage.to_bytes(base.encode()) | damage.to_yaml("", keys))})
    return Case({"config.yaml": draw(damage.to_yaml(base, keys))})


def load_a_config(root: Path, case: Case) -> None:
    """What could be read is written, and read again to the same values."""
    name = case.options.get("name", str(root / "case" / "config.yaml"))
    config = load_config(name, case.options.get("overrides", []))
    save_config(config, root / "out" / "config.yaml")
    assert load_config(str(root / "out" / "config.yaml")) == config, "another configuration came back"
    with_absolute_paths(config.dataset)


@st.composite
def tokenizer_cases(draw: st.DrawFn) -> Case:
    """A damaged file, read as dataset.tokenizer or as what a run saved."""
    ids = st.integers(-2, 400) | st.sampled_from([-(2**31), 2**31, 2**62, 100_000])
    texts = st.sampled_from(SAMPLES) | st.text(max_size=30)
    options = {"texts": [draw(texts), draw(texts)], "ids": draw(st.lists(ids, max_size=12))}
    if draw(st.booleans()):
        return Case(draw(damage.to_folder(draw(st.sampled_from(valid.tokenizer_folders())))), options)
    name, content = draw(st.sampled_from(sorted(valid.foreign_tokenizers().items())))
    foreign = f"tokenizer{Path(name).suffix}"
    return Case({foreign: draw(damage.to_file(name, content))}, {**options, "foreign": foreign})


def load_a_tokenizer(root: Path, case: Case) -> None:
    """Read it, encode, decode, save, read again."""
    foreign = case.options.get("foreign")
    tokenizer = read_foreign(root / "case" / foreign) if foreign else load_tokenizer(root / "case")
    use_tokenizer(tokenizer, case.options["texts"], case.options["ids"])
    tokenizer.save(root / "out")
    again = load_tokenizer(root / "out")
    assert (again.vocab_size, again.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)


def use_tokenizer(tokenizer: Any, texts: list[str], ids: list[int]) -> None:
    """Encode and decode; ids must lie within the vocabulary, decoded text must be text."""
    size, end = tokenizer.vocab_size, tokenizer.end_of_text_id
    assert 0 < size <= 1_200_000, f"vocab_size {size}"
    assert end is None or 0 <= end < size, f"end_of_text_id {end}"
    for text in texts:
        encoded = tokenizer.encode(text)
        assert encoded.dtype == np.int32 and encoded.ndim == 1
        assert not len(encoded) or 0 <= encoded.min() <= encoded.max() < size, "an id outside the vocabulary"
        tokenizer.decode(encoded).encode("utf-8")
    tokenizer.decode(ids).encode("utf-8")
    tokenizer.decode(np.array([0, size - 1, size])).encode("utf-8")


def store_cases() -> st.SearchStrategy[Case]:
    """One file of a prepared folder damaged."""
    return st.sampled_from(valid.store_folders()).flatmap(damage.to_folder).map(Case)


def load_a_store(root: Path, case: Case) -> None:
    """Open it and do what training, evaluation and the summary do with it."""
    data = open_prepared(root / "case")
    vocab_size, metadata = data.tokenizer.vocab_size, data.metadata
    use_tokenizer(data.tokenizer, SAMPLES, [0, 1, -1, 2**31])
    for ids in (data.train_ids, data.val_ids):
        assert len(ids) and int(ids.max()) < vocab_size, "an id outside the vocabulary"
        assert len(token_counts(ids, vocab_size)) == vocab_size
        data.tokenizer.decode(ids[:200]).encode("utf-8")
    if len(data.train_ids) > valid.CONTEXT:
        sample_batch(data.train_ids, seed=1, index=0, batch_size=2, context_length=valid.CONTEXT)
    scored = iterate_validation(data.train_ids, data.val_ids, 64, 8, data.val_doc_offsets)
    assert sum(int(batch.counts.sum()) for batch in scored) == len(data.val_ids)
    assert all(1.5 / metadata[name] > 0 for name in ("val_text_bytes", "val_text_chars", "val_tokens"))
    if data.val_doc_nats is not None:
        assert np.isfinite(data.val_doc_nats).all() and float(metadata["val_floor_nats"]) >= 0
    summary_text(data)
    assert len(bytes_of_ids(data.tokenizer)) == vocab_size
    json.dumps(metadata, allow_nan=False)


SOURCES = [
    *damage.STRINGS,
    *damage.LINKS,
    "tales:" + "9" * 5000,
    *"tales:x tales:-1 hf: hf:x hf:../.. case".split(),
]
SETTINGS: dict[str, list[Any]] = {
    "tokenizer": ["byte", "bpe", "x.json", "\0.model", "/dev/zero", "x" * 5000 + ".json", "tokenizer.json"],
    "text_column": ["text", "id", "", "a.b", "te\nxt", "\0", "\ud800"],
    "fraction": [0.5, 1e-300],
    "val_fraction": [0.4, 1e-300, 1 - 1e-16],
    "cache": ["~nobody-here/x", "\0", "x" * 5000, "/dev/null/x"],
}


@st.composite
def format_cases(draw: st.DrawFn) -> Case:
    """A file or folder of one of the formats, and settings that fit it, mostly."""
    many = valid.MANY.encode()
    plain = draw(st.sampled_from([("txt", many), ("txt", many[:2000]), ("jsonl", valid.JSONL)]))
    content: dict[str, bytes | str]
    match draw(st.sampled_from("plain plain parquet parquet archive folder nanogpt nanogpt name".split())):
        case "plain":
            path = f"data.{plain[0]}"
            content = {path: draw(damage.to_file(path, plain[1]))}
        case "parquet":
            path, base = "data.parquet", draw(st.sampled_from(valid.parquet_files()))
            content = {path: draw(damage.to_bytes(base))}
        case "archive":
            suffix = draw(st.sampled_from([".gz", ".zst"]))
            path = f"data.{plain[0]}{suffix}"
            content = {path: draw(damage.to_archive(plain[1], suffix))}
        case "folder":
            path, parquet = "d", valid.parquet_files()[0]
            content = draw(
                damage.to_folder({"d/a.txt": many, "d/sub/b.jsonl": valid.JSONL, "d/c.parquet": parquet})
            )
        case "nanogpt":
            path, content = "d", draw(damage.to_folder(valid.nanogpt_files()))
        case _:
            path, content = "data.txt", {"data.txt": many}
            return Case(content, {"path": draw(st.sampled_from(SOURCES)), "settings": {}})
    chosen = draw(
        st.fixed_dictionaries({}, optional={k: st.sampled_from([None, *v]) for k, v in SETTINGS.items()})
    )
    chosen = {
        key: value for key, value in chosen.items() if value is not None and draw(st.integers(0, 2)) == 0
    }
    if chosen.get("tokenizer") == "tokenizer.json":
        content["tokenizer.json"] = valid.foreign_tokenizers()["bpe.json"]
    if chosen.get("tokenizer") == "bpe":
        chosen["vocab_size"] = 300
    return Case(content, {"file": path, "settings": chosen})


def load_a_format(root: Path, case: Case) -> None:
    """Prepare it, and look at what came out."""
    path = case.options.get("path", str(root / "case" / case.options.get("file", "")))
    chosen = {"workers": 1, "cache": str(root / "cache"), **case.options["settings"]}
    dataset = with_absolute_paths(DatasetConfig(path=path, **chosen))
    if chosen.get("tokenizer") == "tokenizer.json":
        dataset = replace(dataset, tokenizer=str(root / "case" / "tokenizer.json"))
    elif path.startswith("tales"):
        dataset = replace(dataset, characters=20_000)
    shutil.rmtree(root / "cache", ignore_errors=True)
    for base in () if path.startswith("tales") else valid.stores_in_use():
        with contextlib.suppress(UserError):
            other = as_validation_text(base, path)
            assert len(other.val_ids) and 1.5 / other.metadata["val_text_bytes"] > 0
    try:
        data = prepare(dataset, root / "out" / "data", valid.CONTEXT)
    except UserError:
        assert not os.listdir(root / "out"), "a refused source leaves something behind"
        raise
    assert np.array_equal(open_prepared(root / "out" / "data").val_ids, data.val_ids)
    assert int(max(data.train_ids.max(), data.val_ids.max())) < data.tokenizer.vocab_size
    data.tokenizer.decode(data.val_ids[:500]).encode("utf-8")
    assert 1.5 / data.metadata["val_text_bytes"] > 0


@st.composite
def checkpoint_cases(draw: st.DrawFn) -> Case:
    """A run folder with one file of its checkpoint, or its final weights, damaged."""
    found = {name: data for name, data in valid.checkpoints()[1].items() if not name.startswith("samples")}
    if draw(st.integers(0, 2)):  # else there is an older checkpoint to fall back on
        found = {name: data for name, data in found.items() if "step-00000002" not in name}
    metrics = found.pop("metrics.jsonl")
    changed = {"metrics.jsonl": metrics, **draw(damage.to_folder(found))}
    if draw(st.integers(0, 20)) == 0:
        odd = draw(st.sampled_from(["step-99999999", "step-", "step-x", "step-00000004"]))
        changed[f"checkpoints/{odd}"] = b""
    return Case(changed, {"sealed": draw(st.integers(0, 3)) > 0, "allow_changes": draw(st.booleans())})


def load_a_checkpoint(root: Path, case: Case) -> None:
    """Resume from it and train one step; read its final weights."""
    folder, data = root / "case", valid.checkpoints()[0]
    refuse_links(folder)
    if case.options["sealed"]:  # whoever changes a file on purpose changes its checksum, too
        for path in folder.glob("checkpoints/step-*"):
            with contextlib.suppress(OSError, UnicodeError):
                (path / "checksums.json").unlink(missing_ok=True)
                seal(path)
    state = valid.fresh_state(data, folder)
    with contextlib.suppress(UserError):
        load_weights(state.model, folder / "model.safetensors")
    with contextlib.suppress(UserError):
        roll_back(state)
    state = valid.fresh_state(data, folder)
    if not load_newest_checkpoint(state, allow_changes=case.options["allow_changes"]):
        return
    metrics = folder / "metrics.jsonl"
    assert not metrics.exists() or metrics.stat().st_size <= 1 << 20, "metrics.jsonl grew"
    assert 0 <= state.step <= 10**9 and 0 <= state.best_step <= 10**9
    assert state.train_seconds + 1 >= 1 and state.best_val_loss + 1 > 0
    assert 0 <= state.peak_memory_bytes <= 1 << 60
    assert 0 < state.micro_batch_size <= 2
    assert 0 <= state.skipped_in_a_row <= state.batches_skipped
    with contextlib.suppress(TrainingError, NotFinite):
        train_step(state)
    state.telemetry.drain(state.model, 100.0)
    if metrics.exists():
        read_json_lines(metrics)


def peak_megabytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_case(load: Callable[[Path, Case], None], root: Path, case: Case) -> bool:
    """Load one case; True if it was accepted. Raises whatever is neither success nor a proper UserError."""
    for name in ("case", "out"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    valid.write_files(root / "case", case.files)
    # The time is this process's own: others may keep the machine busy.
    before, start = peak_megabytes(), time.process_time()
    try:
        load(root, case)
        accepted = True
    except UserError as error:
        accepted, message = False, str(error)
        assert message.isprintable() and 10 <= len(message) <= MAX_MESSAGE, "it is not one short line"
    assert time.process_time() - start < SLOW_SECONDS, "it takes too long"
    assert peak_megabytes() - before < CASE_MEGABYTES, "it takes too much memory"
    canary = root / "canary"
    assert os.listdir(canary) == ["file"] and (canary / "file").read_bytes() == SECRET, (
        "written outside the folder"
    )
    assert not os.path.exists("PWNED"), "code was run"
    return accepted


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that cases run in, and beside it what they must not touch; the process may grow by so much."""
    for name in ("canary", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "canary" / "file").write_bytes(SECRET)
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NANOKIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        most = psutil.Process().memory_info().vms + (MORE_ADDRESS_GIGABYTES << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_AS, limits)


KINDS: dict[str, tuple[int, Callable[[], st.SearchStrategy[Case]], Callable[[Path, Case], None]]] = {
    "config": (240, config_cases, load_a_config),
    "checkpoint": (40, checkpoint_cases, load_a_checkpoint),
    "store": (120, store_cases, load_a_store),
    "formats": (70, format_cases, load_a_format),
    "tokenizers": (80, tokenizer_cases, load_a_tokenizer),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_loaded_or_refused(kind: str, root: Path) -> None:
    few, cases, load = KINDS[kind]
    repeatable: dict[str, Any] = {} if CASES else {"derandomize": True, "database": None}
    tried = {True: 0, False: 0}

    @settings(max_examples=CASES or few, deadline=None, suppress_health_check=list(HealthCheck), **repeatable)
    @given(cases())
    def one_case(case: Case) -> None:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            tried[try_case(load, root, case)] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()

    one_case()
    assert tried[True] and tried[False], "the damage is too small, or too great, to try anything"
    print(f"{kind}: {tried[True]} accepted, {tried[False]} refused")
