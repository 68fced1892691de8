"""A mixture of story worlds: each has its entropy floor, and stories are judged in the first one."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fixture import write_comparison, write_report_json

from nanokimi import tales
from nanokimi.compare.verdict import floor_sentences
from nanokimi.config import DatasetConfig
from nanokimi.data.store import PreparedData, prepare
from nanokimi.measure.floor import floors, floors_by_source
from nanokimi.measure.story_world import world_of
from nanokimi.report import page
from nanokimi.report.records import read_comparison

WORLDS = {"long": "tales:3", "short": "tales-short:3"}


@pytest.fixture(scope="module")
def two_worlds(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    sources = tuple({"name": name, "path": path} for name, path in WORLDS.items())
    dataset = DatasetConfig(sources=sources, tokenizer="byte", characters=100_000, workers=1)
    return prepare(dataset, tmp_path_factory.mktemp("worlds") / "data", 256)


@pytest.mark.parametrize("part", ["val", "test"])
def test_each_world_has_the_floor_of_its_own_stories(two_worlds: PreparedData, part: str) -> None:
    data, found = two_worlds, floors_by_source(two_worlds, part)
    scored, begin = data.scored(part), 0
    assert list(found) == list(WORLDS)
    for one in data.sources:
        end = begin + one[f"{part}_tokens"]
        stories = data.tokenizer.decode(scored.ids[begin:end].tolist()).split(tales.END_OF_TEXT)[:-1]
        nats = -sum(tales.score(story, WORLDS[one["name"]].partition(":")[0]) for story in stories)
        assert len(stories) == one[f"{part}_documents"] > 3
        assert found[one["name"]] == pytest.approx(nats / one[f"{part}_tokens"], rel=1e-9)
        begin = end


def test_their_common_floor_is_a_bound_that_is_not_called_attainable(two_worlds: PreparedData) -> None:
    tokens = {one["name"]: one["test_tokens"] for one in two_worlds.sources}
    nats = sum(floor * tokens[name] for name, floor in floors_by_source(two_worlds).items())
    common = floors(two_worlds, 10**6)
    assert common["floor"] == pytest.approx(nats / sum(tokens.values()))
    assert common["attainable_floor"] is None
    arm = {"floor_gap": 0.1, "test_loss": 0.5, "test_sources": {"long": {}}}
    (sentence,) = floor_sentences([arm], {"5-gram": {"test_loss": None}})
    assert "which text it reads" in sentence and "windows" not in sentence


def test_stories_are_judged_in_the_first_world(two_worlds: PreparedData) -> None:
    assert world_of(two_worlds.metadata) == "tales"
    assert world_of({"path": "tales-short:7"}) == "tales-short"


def test_one_text_without_a_floor_takes_it_from_all(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        "\n".join(f'{{"text": "A story of {number} words."}}' for number in range(60)), encoding="utf-8"
    )
    sources = ({"name": "own", "path": str(tmp_path / "own.jsonl")}, {"name": "short", "path": "tales-short"})
    dataset = DatasetConfig(sources=sources, tokenizer="byte", characters=60_000, workers=1)
    data = prepare(dataset, tmp_path / "data", 64)
    assert floors_by_source(data) == {} and floors(data, 64)["floor"] is None
    assert "test_floor_nats" not in data.metadata


@pytest.mark.parametrize("floor", [0.1924, None])
def test_the_report_has_the_floor_of_each_text_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: float | None
) -> None:
    report = write_comparison(tmp_path)
    scores = {"tokens": 9, "loss": 0.3, "bits_per_byte": 0.1, "bits_per_char": 0.1}
    known = {} if floor is None else {"floor": floor}
    for one in (*report["runs"], *report["arms"]):
        one["test_sources"] = {"long": {**scores, **known}}
    sizes = {f"{part}_tokens": 50_000 for part in ("train", "val", "test")}
    report["data"]["sources"] = [{"name": "long", "path": "tales", "share": 1.0, **sizes}]
    write_report_json(tmp_path, report)
    monkeypatch.setattr(page, "svg", lambda *_: "")  # drawing takes longer than all else
    text = page.render(page.make_context(*read_comparison(tmp_path)))
    section = text[text.index("Text by text") :][:4000]
    assert ("Entropy floor" in section) == ("0.1924" in section) == (floor is not None)
