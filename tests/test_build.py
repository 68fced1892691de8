"""Building a store: any number of processes writes the same, a killed build goes on, the cache notices every change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, make_text

from nanokimi.config import DatasetConfig
from nanokimi.data import build, corpus, encoding, store, tasks
from nanokimi.data.build import prepare_store
from nanokimi.data.encoding import finished_record, plan_shards
from nanokimi.data.parts import PARTS
from nanokimi.data.store import as_validation_text, open_prepared, prepare
from nanokimi.errors import TrainingError, UserError

END = "<|endoftext|>"


def stories(count: int = 300) -> list[str]:
    return [f"Story {i}.\n" + make_text(300, seed=i).strip() for i in range(count)]


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetConfig:
    path = tmp_path / "stories.txt"
    path.write_text(f"\n{END}\n".join(stories()), encoding="utf-8")
    return DatasetConfig(path=str(path), tokenizer="byte", workers=1)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_BYTES", 10_000)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
def test_documents_come_back_with_an_end_of_text_each(
    dataset: DatasetConfig, tmp_path: Path, name: str
) -> None:
    data = prepare(replace(dataset, tokenizer=name, vocab_size=300), tmp_path / "out", 8)
    end = data.tokenizer.end_of_text_id
    assert end == data.tokenizer.vocab_size - 1 == data.metadata["end_of_text_id"]
    found = []
    for ids, offsets in (
        (data.train_ids, data.train_doc_offsets),
        (data.val_ids, data.val_doc_offsets),
        (data.test_ids, data.test_doc_offsets),
    ):
        assert offsets[0] == 0 and offsets[-1] == len(ids)
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            document = ids[int(start) : int(stop)]
            assert document[-1] == end and end not in document[:-1]
            found.append(data.tokenizer.decode(document[:-1]))
    assert sorted(found) == sorted(stories())
    assert data.tokenizer.decode([end, *data.tokenizer.encode("a"), end]) == f"{END}a{END}"
    assert data.tokenizer.encode(END).tolist().count(end) == 0, "in a text it is text"


def test_facts_count_the_documents_own_text(dataset: DatasetConfig, tmp_path: Path) -> None:
    """Bits per byte divide by the text, though the nats of end-of-text count: one token more for each document."""
    metadata = prepare(dataset, tmp_path / "out", 8).metadata
    sizes = [len(text.encode()) for text in stories()]
    total = {
        of: sum(metadata[f"{part}_{of}"] for part in PARTS) for of in ("text_bytes", "tokens", "documents")
    }
    assert total["text_bytes"] == sum(sizes) == metadata["chars"]
    assert total["tokens"] == sum(sizes) + len(sizes)
    assert total["documents"] == metadata["documents"] == len(sizes)
    assert metadata["file_bytes"] == Path(dataset.path).stat().st_size
    assert metadata["bytes_per_token"] == metadata["val_text_bytes"] / metadata["val_tokens"]


@pytest.mark.usefixtures("small_shards")
def test_two_processes_write_what_one_writes(dataset: DatasetConfig, tmp_path: Path) -> None:
    dataset = replace(dataset, tokenizer="bpe", vocab_size=300)
    one = prepare_store(replace(dataset, cache=str(tmp_path / "a")))
    two = prepare_store(replace(dataset, cache=str(tmp_path / "b"), workers=2))
    assert content(one) == content(two) and one.name == two.name
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [two.name, f"{two.name}.lock"]


def test_little_text_needs_no_other_process(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One takes longer to start than to encode it. More text has one for each core, and any text as many as are set."""
    started: list[int] = []
    real = tasks._workers
    monkeypatch.setattr(tasks, "_workers", lambda work, count: (started.append(count), real(work, count))[1])
    monkeypatch.setattr(build, "available_cores", lambda: 2)
    little = prepare_store(replace(dataset, cache=str(tmp_path / "a"), workers=None))
    assert started == []
    monkeypatch.setattr(encoding, "SHARD_BYTES", Path(dataset.path).stat().st_size // 2)
    more = prepare_store(replace(dataset, cache=str(tmp_path / "b"), workers=None))
    assert started and set(started) == {2}
    assert content(little) == content(more)


def test_shards_do_not_change_the_tokens(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_store(replace(dataset, cache=str(tmp_path / "a")))
    monkeypatch.setattr(encoding, "SHARD_BYTES", 777)
    monkeypatch.setattr(corpus, "BATCH_BYTES", 500)
    assert content(whole) == content(prepare_store(replace(dataset, cache=str(tmp_path / "b"))))


def test_shards_cover_every_unit_once() -> None:
    offsets = np.cumsum([0, 5, encoding.SHARD_BYTES * 3, 1, 1, encoding.SHARD_BYTES - 1, 2]).astype(np.uint64)
    shards = plan_shards(offsets, "train")
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert shards[0].start == 0 and shards[-1].stop == len(offsets) - 1
    assert sum(shard.bytes for shard in shards) == offsets[-1]
    assert plan_shards(np.zeros(1, dtype=np.uint64), "val") == []


class Killed(BaseException):
    """Stands for the process ending."""


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_build_goes_on_and_rebuilds_torn_shards(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare_store(replace(dataset, cache=str(tmp_path / "whole")))
    dataset = replace(dataset, cache=str(tmp_path / "cache"))
    performed: list[str] = []
    real = tasks.perform

    def counting(work: Path, task: dict, limit: int) -> object:  # type: ignore[type-arg]
        if task["kind"] == "encode":
            performed.append(task["shard"]["part"] + str(task["shard"]["number"]))
            if len(performed) > limit:
                raise Killed
        return real(work, task)

    monkeypatch.setattr(tasks, "perform", lambda work, task: counting(work, task, 4))
    with pytest.raises(Killed):
        prepare_store(dataset)
    (work,) = tmp_path.glob("cache/*.build")
    finished = sorted(path.name for path in (work / "shards").glob("*.json"))
    assert finished == [f"train-0000{i}.json" for i in range(4)]
    (work / "shards" / "train-00001.ids").write_bytes(b"torn")
    (work / "shards" / "train-00002.json").write_text("{")
    performed.clear()
    monkeypatch.setattr(tasks, "perform", lambda work, task: counting(work, task, 10**9))
    assert content(prepare_store(dataset)) == content(expected)
    assert performed[:3] == ["train1", "train2", "train4"], "whole shards are kept, torn ones made again"
    assert not work.exists()


def test_a_torn_reading_is_done_again(dataset: DatasetConfig, tmp_path: Path) -> None:
    expected = prepare_store(replace(dataset, cache=str(tmp_path / "a")))
    corpus = tmp_path / "b" / f"{expected.name}.build" / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "train.txt").write_text("half a st")
    assert content(prepare_store(replace(dataset, cache=str(tmp_path / "b")))) == content(expected)


@pytest.mark.usefixtures("small_shards")
def test_killed_for_real_and_started_again(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of a parallel build: the next call completes what was begun."""
    many = [f"Story {i}.\n" + make_text(2000, seed=i) for i in range(400)]
    Path(dataset.path).write_text(f"\n{END}\n".join(many))
    program = (
        "import sys; from nanokimi.config import DatasetConfig; from nanokimi.data import encoding, build; "
        "encoding.SHARD_BYTES = 10_000; "
        "build.prepare_store(DatasetConfig(path=sys.argv[1], tokenizer='bpe', vocab_size=300, workers=2,"
        "cache=sys.argv[2]))"
    )
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", program, dataset.path, str(cache)])
    deadline = time.monotonic() + PATIENCE
    while len(list(cache.glob("*.build/shards/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (work,) = cache.glob("*.build")
    time.sleep(0.3)
    before = {path.name: path.stat().st_mtime_ns for path in (work / "shards").glob("*.json")}
    assert len(before) >= 3
    dataset = replace(dataset, tokenizer="bpe", vocab_size=300)
    done: list[str] = []
    every: list[str] = []
    real = tasks.perform
    monkeypatch.setattr(tasks, "perform", lambda work, task: (done.append(task["kind"]), real(work, task))[1])
    resumed = prepare_store(replace(dataset, cache=str(cache)))
    assert "overlap" not in done, "reading and overlap were done before"
    monkeypatch.setattr(
        tasks, "perform", lambda work, task: (every.append(task["kind"]), real(work, task))[1]
    )
    assert content(resumed) == content(prepare_store(replace(dataset, cache=str(tmp_path / "fresh"))))
    assert 0 < done.count("encode") <= every.count("encode") - len(before), "finished shards are kept"


def test_a_worker_that_dies_is_one_line(
    dataset: DatasetConfig, monkeypatch: pytest.MonkeyPatch, small_shards: None
) -> None:
    real = tasks._workers

    def dying(work: Path, count: int) -> object:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        return real(work, count)

    monkeypatch.setattr(tasks, "_workers", dying)
    with pytest.raises(TrainingError, match="prepares the data ended with exit code 1"):
        prepare_store(replace(dataset, workers=2))


def test_the_cache_is_hit_by_the_same_content_and_missed_by_any_change(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_store(dataset)
    copy = tmp_path / "elsewhere.txt"
    shutil.copy(dataset.path, copy)
    with monkeypatch.context() as patch:
        patch.setattr(build, "read_source", None)  # a hit reads nothing but the file's hash
        assert prepare_store(dataset) == first
        assert prepare_store(replace(dataset, path=str(copy))) == first
        same = replace(dataset, workers=2, vocab_size=500, test_fraction=dataset.val_fraction)
        assert prepare_store(same) == first, "none of them changes the tokens"
    others = [
        replace(dataset, tokenizer="char"),
        replace(dataset, val_fraction=0.2),
        replace(dataset, test_fraction=0.2),
        replace(dataset, fraction=0.5),
    ]
    stores = {prepare_store(other) for other in others}
    assert len(stores | {first}) == 5
    before = Path(dataset.path).stat()
    text = Path(dataset.path).read_text()
    Path(dataset.path).write_text(text.replace("Story 7.", "Story X."))
    os.utime(dataset.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time: other content
    assert Path(dataset.path).stat().st_size == before.st_size
    assert prepare_store(dataset) not in stores | {first}


def test_a_damaged_store_is_built_again(dataset: DatasetConfig) -> None:
    first = prepare_store(dataset)
    expected = content(first)
    (first / "train.bin").write_bytes(expected["train.bin"][:-2])
    assert content(prepare_store(dataset)) == expected
    (first / "data.json").unlink()
    assert content(prepare_store(dataset)) == expected


def test_two_builders_wait_for_each_other(dataset: DatasetConfig, tmp_path: Path) -> None:
    program = (
        "import sys; from nanokimi.config import DatasetConfig; from nanokimi.data import build; "
        "real = build.build; "
        "build.build = lambda *a: (print('building', flush=True), sys.stdin.readline(), real(*a)); "
        "build.prepare_store(DatasetConfig(path=sys.argv[1], tokenizer='byte', workers=1, cache=sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, dataset.path, str(tmp_path / "cache")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    first = subprocess.Popen(command, text=True, **pipes)
    assert first.stdout is not None and first.stdout.readline() == "building\n"
    second = subprocess.Popen(command, text=True, **pipes)
    assert second.stderr is not None and "another process prepares the same data" in second.stderr.readline()
    outputs = [process.communicate("go on\n", timeout=PATIENCE) for process in (first, second)]
    assert outputs == [("", ""), ("", "")] and (first.returncode, second.returncode) == (0, 0)


def test_large_stores_stay_in_the_cache(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = prepare(dataset, tmp_path / "small", 8)
    monkeypatch.setattr(store, "COPY_BYTES", 1000)
    large = prepare(dataset, tmp_path / "large", 8)
    assert np.array_equal(small.train_ids, large.train_ids) and np.array_equal(small.val_ids, large.val_ids)
    assert np.array_equal(small.val_doc_offsets, large.val_doc_offsets)
    names = sorted(path.name for path in (tmp_path / "large").iterdir())
    assert names == ["data.json", "tokenizer.json"]
    shutil.rmtree(large.metadata["store"])
    assert np.array_equal(open_prepared(tmp_path / "small").train_ids, small.train_ids)
    with pytest.raises(UserError, match=r"train\.bin cannot be read.*prepare the data again"):
        open_prepared(tmp_path / "large")


def test_the_cache_is_where_it_is_told_to_be(
    dataset: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    assert prepare_store(dataset).parent == own_cache.resolve()
    assert prepare_store(replace(dataset, cache=str(tmp_path / "here"))).parent == tmp_path / "here"
    monkeypatch.delenv("NANOKIMI_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare_store(dataset).parent == tmp_path / ".cache" / "nanokimi"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache folder .* cannot be made.*dataset.cache"):
        prepare_store(replace(dataset, cache=str(tmp_path / "file" / "x")))


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(
    dataset: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, documents: bool) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "join_shards", full)
        with pytest.raises(UserError, match="cannot be written .No space left"):
            prepare_store(dataset)
    assert build.is_whole(prepare_store(dataset))


def test_contiguous_text_in_pieces_is_encoded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of a text do not depend on how it is cut for encoding: as in nanoGPT, it is one stream."""
    path = tmp_path / "text.txt"
    path.write_text(make_text(30_000))
    dataset = DatasetConfig(path=str(path), tokenizer="bpe", vocab_size=300, workers=1)
    whole = prepare(replace(dataset, cache=str(tmp_path / "a")), tmp_path / "whole", 8)
    monkeypatch.setattr(corpus, "PIECE_CHARS", 500)
    cut = prepare(replace(dataset, cache=str(tmp_path / "b")), tmp_path / "cut", 8)
    (work,) = (tmp_path / "b").glob("*[!k]")
    assert np.array_equal(whole.train_ids, cut.train_ids) and np.array_equal(whole.val_ids, cut.val_ids)
    assert len(whole.train_doc_offsets) == 0 and work.is_dir()
    assert np.array_equal(whole.test_ids, cut.test_ids)
    for ids, start, stop in ((whole.train_ids, 0, 24), (whole.val_ids, 24, 27), (whole.test_ids, 27, 30)):
        assert np.array_equal(ids, whole.tokenizer.encode(make_text(30_000)[start * 1000 : stop * 1000]))


def test_another_text_is_scored_document_by_document(dataset: DatasetConfig, tmp_path: Path) -> None:
    data = prepare(dataset, tmp_path / "out", 8)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "one"}\n{"text": ""}\n{"text": "tw\\u00f6"}\n')
    scored = as_validation_text(data, str(other))
    assert data.tokenizer.decode(scored.val_ids) == f"one{END}tw\u00f6{END}"
    assert (scored.metadata["val_text_bytes"], scored.metadata["val_text_chars"]) == (7, 6)
    assert scored.val_doc_offsets.tolist() == [0, 4, 9]


def test_the_floor_of_tales_is_summed_over_the_stories_of_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    from nanokimi.data import sources

    told = [types.SimpleNamespace(text=text, log_probability=-float(i)) for i, text in enumerate(stories())]
    tales = types.SimpleNamespace(VERSION=1, iterate_stories=lambda seed, start, world: iter(told[start:]))
    monkeypatch.setattr(sources.importlib, "import_module", lambda name: tales)
    data = prepare(DatasetConfig(path="tales:3", tokenizer="byte", workers=1), tmp_path / "out", 8)
    nats = {story.text: -story.log_probability for story in told}
    for part in ("val", "test"):
        ids, offsets = getattr(data, f"{part}_ids"), getattr(data, f"{part}_doc_offsets")
        texts = [data.tokenizer.decode(ids[a : b - 1]) for a, b in zip(offsets, offsets[1:], strict=False)]
        found = getattr(data, f"{part}_doc_nats")
        assert len(texts) > 5 and found.tolist() == [nats[text] for text in texts]
        assert data.metadata[f"{part}_floor_nats"] == pytest.approx(sum(nats[text] for text in texts))
    assert data.metadata["path"] == "tales:3"
    (tmp_path / "other.txt").write_text("another text")
    other = as_validation_text(data, str(tmp_path / "other.txt"))
    assert "val_floor_nats" not in other.metadata and other.val_doc_nats is None, (
        "another text, no known floor"
    )


def test_records_are_checked_against_the_files(dataset: DatasetConfig, tmp_path: Path) -> None:
    shard = encoding.Shard("val", 0, 0, 1, 1)
    assert finished_record(shard, tmp_path) is None
    for content in ("", "[]", "{}", json.dumps({"digest": "0"})):
        (tmp_path / "val-00000.json").write_text(content)
        (tmp_path / "val-00000.ids").write_bytes(b"")
        (tmp_path / "val-00000.lengths").write_bytes(b"")
        assert finished_record(shard, tmp_path) is None
