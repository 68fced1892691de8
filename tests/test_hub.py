"""Hub data sets: loaded through `datasets` from local folders of the same form, and every failure in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanokimi.config import DatasetConfig
from nanokimi.data import hub
from nanokimi.data.sources import open_source
from nanokimi.data.store import prepare
from nanokimi.errors import UserError

END = "<|endoftext|>"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def write(folder: Path, **splits: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for split, texts in splits.items():
        lines = [json.dumps({"text": text, "n": 1}) for text in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return f"hf:{folder}"


def load(path: str, **settings: object) -> list[tuple[str, str | None]]:
    source = open_source(DatasetConfig(path=path, **settings))  # type: ignore[arg-type]
    assert source.documents is not None
    return [(document.text, document.part) for document in source.documents()]


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_its_own_are_used(tmp_path: Path, streaming: bool) -> None:
    """Published parts stay what they are; the one that is missing is taken from the part that nobody reports."""
    train = [("a", "train"), ("b", "train")]
    path = write(tmp_path / "both", train=["a", "b"], validation=["c"], test=["d"])
    assert load(path, streaming=streaming) == [*train, ("c", "val"), ("d", "test")]
    assert load(f"{path}:validation", streaming=streaming) == [("c", None)]
    path = write(tmp_path / "val", train=["a", "b"], validation=["c"])
    assert load(path, streaming=streaming) == [*train, ("c", "val|test")]
    path = write(tmp_path / "test", train=["a", "b"], test=["d"])
    assert load(path, streaming=streaming) == [("a", "train|val"), ("b", "train|val"), ("d", "test")]


@pytest.mark.parametrize(("held_out", "kept"), [("validation", "train"), ("test", "test")])
def test_the_missing_part_comes_out_of_one_other(tmp_path: Path, held_out: str, kept: str) -> None:
    texts = [" ".join(f"{name}{i}" for i in range(30)) for name in map(str, range(80))]
    path = write(tmp_path / "set", train=texts[:40], **{held_out: texts[40:]})
    data = prepare(DatasetConfig(path=path, tokenizer="byte", val_fraction=0.3), tmp_path / "out", 8)
    assert sum(data.metadata[f"{part}_documents"] for part in ("train", "val", "test")) == 80
    assert data.metadata[f"{kept}_documents"] == 40
    ids = {"train": data.train_ids, "test": data.test_ids}[kept]
    own = texts[:40] if kept == "train" else texts[40:]
    assert sorted(data.tokenizer.decode(ids).split(END)[:-1]) == sorted(own)


@pytest.mark.parametrize("streaming", [False, True])
def test_without_one_the_content_decides(tmp_path: Path, streaming: bool) -> None:
    assert load(write(tmp_path / "set", train=["a", "b"]), streaming=streaming) == [("a", None), ("b", None)]


def test_changed_content_is_another_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "set", train=["a", "b"])
    before = open_source(DatasetConfig(path=path)).fingerprint
    assert open_source(DatasetConfig(path=path)).fingerprint == before
    write(tmp_path / "set", train=["a", "other"])
    assert open_source(DatasetConfig(path=path)).fingerprint != before


def test_tinystories_v2_lines_become_stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stories"
    folder.mkdir()
    for split, name in hub.V2_FILES.items():
        (folder / name).write_text(
            f"{split} one.\n\nIt went on.\n<|endoftext|>\n{split} two.\n<|endoftext|>\n"
        )
    monkeypatch.setattr(hub, "TINYSTORIES", str(folder))
    expected = [
        (text, part)
        for split, part in (("train", "train"), ("validation", "val|test"))
        for text in (f"{split} one.\n\nIt went on.", f"{split} two.", "")
    ]
    assert load("tinystories-v2") == expected
    assert load("tinystories-v2", streaming=True) == expected


def test_tinystories_is_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.TINYSTORIES == "roneneldan/TinyStories"
    monkeypatch.setattr(hub, "TINYSTORIES", write(tmp_path / "set", train=["a"], validation=["b"])[3:])
    assert load("tinystories") == [("a", "train"), ("b", "val|test")]


def test_what_stands_in_a_held_out_part_is_removed_from_the_others(tmp_path: Path) -> None:
    """Training loses copies and near copies of validation and test documents, validation those of test documents."""
    first, second, third = (" ".join(f"{name}{i}" for i in range(60)) for name in "abc")
    other = [" ".join(f"{name}{i}" for i in range(40)) for name in "pqrs"]
    path = write(
        tmp_path / "set",
        train=[first, first + " more", second, second + " more", *other],
        validation=[first, second, "and " + second, third],
        test=[second],
    )
    data = prepare(DatasetConfig(path=path, tokenizer="byte"), tmp_path / "out", 8)
    parts = {"train": data.train_ids, "val": data.val_ids, "test": data.test_ids}
    found = {name: data.tokenizer.decode(ids).split(END)[:-1] for name, ids in parts.items()}
    assert found == {"train": other, "val": [first, third], "test": [second]}
    assert [data.metadata[f"{part}_documents"] for part in parts] == [4, 2, 1]
    assert (
        data.metadata["exact_duplicates_across_split"] == data.metadata["near_duplicates_across_split"] == 2
    )
    assert (
        data.metadata["exact_duplicates_of_test_in_val"]
        == data.metadata["near_duplicates_of_test_in_val"]
        == 1
    )
    removed = sum(count for name, count in data.metadata.items() if "_duplicates_" in name)
    assert data.metadata["documents"] == 13 == 7 + removed, (
        "every document is kept once, or counted as removed"
    )


def test_a_split_of_its_own_that_is_too_small_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "set", train=["a" * 300, "b" * 300], validation=["c" * 300])
    with pytest.raises(UserError, match="set has no document to (validate|test) with") as caught:
        prepare(DatasetConfig(path=path, tokenizer="byte"), tmp_path / "out", 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["tinystories", "tinystories-v2", "hf:owner/nothing", "hf:owner/nothing:train"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_without_a_network_one_line_names_tales(path: str, streaming: bool) -> None:
    with pytest.raises(UserError, match="cannot be loaded from the Hub.*--data tales") as caught:
        load(path, streaming=streaming)
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_missing_splits_and_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set", train=["a"])
    with pytest.raises(UserError, match="has no split 'test' .it has: train.*tales"):
        load(f"{path}:test")
    with pytest.raises(UserError, match="has no column 'story' .it has: text, n.*tales"):
        load(path, text_column="story")
    with pytest.raises(UserError, match="holds int, not text"):
        load(path, text_column="n")
    with pytest.raises(UserError, match="names no data set"):
        load("hf:justaname")


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"library datasets.*pip install .* -e '\.\[data\]'.*--data tales"):
        load("tinystories")
