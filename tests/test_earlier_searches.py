"""The noise of the searches that settings were inherited from: in a comparison's intervals, or said to be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanokimi.compare.earlier_searches import MISSING, SEARCHES, earlier_variances, patterns_of
from nanokimi.compare.searched import read_search, search_file, search_records
from nanokimi.compare.verdict import pairs_of, verdict
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.errors import UserError
from nanokimi.measure.stats import search_variance, t_quantile
from nanokimi.report.pairs import is_decided
from nanokimi.study.search import Design
from nanokimi.study.search_noise import noise_of_searches, searched_arm
from nanokimi.study.tuning_record import read_settled

ARMS = ("NanoKimi", "NanoGPT with Muon", "NanoGPT")
BASELINES: dict[str, dict[str, float | None]] = {"5-gram": {"test_loss": None}}
LOSSES = {
    "NanoKimi": [1.30, 1.31, 1.32],
    "NanoGPT with Muon": [1.335, 1.34, 1.36],
    "NanoGPT": [1.42, 1.40, 1.41],
}
Record = dict[str, Any]


def shipped(name: str) -> Record:
    """A search among the presets, whose records name the file that they inherit from and do not repeat its losses."""
    search: Record = json.loads(search_file(name).read_text())
    for record in search["arms"].values():
        for key in (SEARCHES, MISSING):
            record.pop(key, None)
    return search


def small(tmp_path: Path, name: str, search: Record) -> RunConfig:
    """k2-5m with this search, in a file of this name."""
    path = tmp_path / name
    path.write_text(json.dumps(search))
    return load_config("k2-5m", ["--dataset.path", "tales", "--compare.search", str(path)])


def records_of(config: RunConfig) -> dict[str, Record]:
    return search_records(config, arm_configs(config))


def judged(records: dict[str, Record]) -> tuple[list[Record], Record]:
    """The pairs and the verdict on LOSSES, which are those of validation, too."""
    arms = [
        {"name": name, "leaking": None, "seeds": [1, 2, 3], "search": record}
        | {"test_loss": sum(LOSSES[name]) / 3}
        for name, record in records.items()
    ]
    runs = [{"arm": name, "test_loss": loss, "val_loss": loss} for name in records for loss in LOSSES[name]]
    pairs = pairs_of(arms, runs)
    return pairs, verdict(arms, pairs, BASELINES, None)


def pair_of(pairs: list[Record], first: str, second: str) -> Record:
    return next(one for one in pairs if {one["first"], one["second"]} == {first, second})


def test_an_interval_has_the_noise_of_the_rates_tried_here_and_of_the_search_before() -> None:
    """Computed anew from the two files: s^2 / n, and two variances for each of the two arms."""
    now, before = shipped("k2-5m")["arms"], shipped("k2-1m")["arms"]
    records = records_of(load_config("k2-5m", ["--dataset.path", "tales"]))
    assert all([one["file"] for one in record[SEARCHES]] == ["k2-1m.json"] for record in records.values())
    pairs, found = judged(records)
    first, second = "NanoKimi", "NanoGPT with Muon"
    differences = [a - b for a, b in zip(LOSSES[first], LOSSES[second], strict=True)]
    mean = sum(differences) / 3
    extra = {
        table: sum(
            search_variance(
                [trial["losses"] for trial in file[arm]["table"]], LOSSES[arm], patterns=table == "before"
            )
            for arm in (first, second)
        )
        for table, file in (("now", now), ("before", before))
    }
    assert extra["before"] > 0

    def interval(noise: float) -> list[float]:
        seeds = sum((one - mean) ** 2 for one in differences) / 2 / 3
        half = t_quantile(0.975, 2) * (seeds + noise) ** 0.5
        return [mean - half, mean + half]

    one = pair_of(pairs, first, second)
    assert one["ci95"] == pytest.approx(interval(extra["now"] + extra["before"]))
    assert interval(extra["now"])[1] < 0 < one["ci95"][1], "without the earlier search it would exclude zero"
    assert one["noise_missing"] == [] and "missing" not in found["sentence"]


def test_patterns_are_counted_in_records_old_and_new() -> None:
    for rounds in range(4):
        words = Design(points=4, rounds=rounds).describe(2)
        assert patterns_of({"kind": "search", "design": words}) == rounds
    assert patterns_of({"kind": "search", "patterns": 3, "design": "other words"}) == 3
    assert patterns_of({"losses": []}) == 2, "who does not say it is counted with the usual number"
    grid = shipped("k2-5m")["arms"]["NanoKimi"]
    assert grid["kind"] == "inherited" and patterns_of(grid) == 0
    assert [patterns_of(shipped(name)["arms"]["NanoKimi"]) for name in ("tales", "k2-1m")] == [3, 1]


def test_arms_that_inherit_from_one_search_share_its_luck() -> None:
    records = records_of(load_config("k2-5m", ["--dataset.path", "tales"]))
    apart, _ = judged(records)
    shared = {**records, "NanoGPT": {**records["NanoGPT"], SEARCHES: records["NanoGPT with Muon"][SEARCHES]}}
    alike, _ = judged(shared)
    names = ("NanoGPT with Muon", "NanoGPT")
    low, high = pair_of(apart, *names)["ci95"]
    narrow = pair_of(alike, *names)["ci95"]
    assert low < narrow[0] and narrow[1] < high


def test_without_the_file_the_verdict_says_which_noise_is_missing_and_names_no_winner(tmp_path: Path) -> None:
    search = shipped("k2-5m")
    for record in search["arms"].values():
        record["inherited_file"] = "gone.json"
    pairs, found = judged(records_of(small(tmp_path, "mine.json", search)))
    far = pair_of(pairs, "NanoKimi", "NanoGPT")
    assert far["noise_missing"] == ["gone.json is not to be found"] and not is_decided(far)
    assert far["words"].startswith(
        "no verdict: lower by 0.1000, but the noise of an inherited search is missing"
    )
    assert "is better than" not in found["sentence"]
    assert "NanoKimi is lower than NanoGPT by 0.1000" in found["sentence"]
    assert "noise is missing from the interval: no winner" in found["sentence"]
    assert "too narrow: gone.json is not to be found." in found["sentence"]
    whole = records_of(load_config("k2-5m", ["--dataset.path", "tales"]))
    for records, winner in ((whole, "NanoKimi"), (records_of(small(tmp_path, "mine.json", search)), None)):
        two = {arm: record for arm, record in records.items() if arm != "NanoGPT with Muon"}
        assert judged(two)[1]["winner"] == winner


@pytest.mark.parametrize("place", ["beside", "working folder"])
def test_the_file_is_looked_for_beside_the_record_and_in_the_working_folder(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = shipped("k2-5m")
    for record in search["arms"].values():
        record["inherited_file"] = "elsewhere.json"
    folder = tmp_path if place == "beside" else tmp_path / "working"
    folder.mkdir(exist_ok=True)
    (folder / "elsewhere.json").write_text(json.dumps(shipped("k2-1m")))
    monkeypatch.chdir(folder)
    records = records_of(small(tmp_path, "mine.json", search))
    assert [len(record[SEARCHES]) for record in records.values()] == [1, 1, 1]


def test_a_file_of_that_name_with_other_settings_is_not_taken(tmp_path: Path) -> None:
    """Every sweep writes search.json, so a name alone says little."""
    search, other = shipped("k2-5m"), shipped("k2-1m")
    other["arms"]["NanoGPT"]["best_values"]["weight_decay"] = 0.5
    other["arms"]["NanoKimi"]["best_values"]["lr"] *= 2
    for record in search["arms"].values():
        record["inherited_file"] = "search.json"
    (tmp_path / "search.json").write_text(json.dumps(other))
    records = records_of(small(tmp_path, "mine.json", search))
    assert [record[MISSING] is None for record in records.values()] == [False, True, False]
    assert records["NanoGPT"][MISSING]["why"] == "search.json holds other settings than were inherited"
    itself = records_of(small(tmp_path, "search.json", search))
    assert itself["NanoGPT"][MISSING]["why"] == "search.json holds other settings than were inherited"
    assert itself["NanoKimi"][MISSING]["why"] == "search.json inherits from itself"


def test_a_record_that_holds_the_earlier_losses_needs_no_file(tmp_path: Path) -> None:
    search, losses = shipped("k2-5m"), [[2.0], [2.2], [None]]
    for record in search["arms"].values():
        record |= {"inherited_file": "gone.json", MISSING: None}
        record[SEARCHES] = [{"file": "gone.json", "arm": record["inherited_from"], "losses": losses}]
    records = records_of(small(tmp_path, "mine.json", search))
    assert [record[SEARCHES][0]["losses"] for record in records.values()] == [losses] * 3
    assert judged(records)[0][0]["noise_missing"] == []


def test_a_chain_is_followed_to_its_first_search_or_its_break(tmp_path: Path) -> None:
    """k2-5m inherits from middle.json, and that from k2-1m, or from a file that is gone."""
    last, middle = shipped("k2-5m"), shipped("k2-5m")
    for arm, record in last["arms"].items():
        record |= {
            "inherited_file": "middle.json",
            "inherited_rate": middle["arms"][arm]["best_values"]["lr"],
        }
    middle["arms"]["NanoGPT"]["inherited_file"] = "gone.json"
    (tmp_path / "middle.json").write_text(json.dumps(middle))
    records = records_of(small(tmp_path, "last.json", last))
    files = {arm: [one["file"] for one in record[SEARCHES]] for arm, record in records.items()}
    assert files["NanoKimi"] == ["middle.json", "k2-1m.json"] and files["NanoGPT"] == ["middle.json"]
    assert records["NanoGPT"][MISSING] == {
        "file": "gone.json",
        "arm": "NanoGPT",
        "why": "gone.json is not to be found",
    }
    assert records["NanoKimi"][MISSING] is None


def test_a_report_of_an_earlier_version_says_that_the_noise_is_missing() -> None:
    """Its records name the file, and nothing was read from there."""
    records = records_of(load_config("k2-5m", ["--dataset.path", "tales"]))
    old = {
        arm: {key: value for key, value in record.items() if key not in (SEARCHES, MISSING)}
        for arm, record in records.items()
    }
    pairs, _ = judged(old)
    assert [pair["noise_missing"] for pair in pairs] == [["k2-1m.json was not read"]] * 3


@pytest.mark.parametrize(
    "damage",
    [
        {SEARCHES: 5},
        {SEARCHES: [{"file": "a"}]},
        {SEARCHES: [{"file": "a", "arm": "b", "losses": [["low"]]}]},
        {"best_values": None},
        {"inherited_file": 7},
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path: Path, damage: Record) -> None:
    search = shipped("k2-5m")
    search["arms"]["NanoGPT"] |= damage
    with pytest.raises(UserError, match="is not a search.json"):
        read_search(small(tmp_path, "mine.json", search))


def test_a_study_with_inherited_settings_has_the_noise_of_the_earlier_search(tmp_path: Path) -> None:
    """`ladder --tuned` with a file of `sweep --inherit` had that of its few rates alone."""
    records, seeds = read_settled(search_file("k2-5m")), [1.30, 1.31, 1.32]
    rows = {
        name: {
            "name": name,
            "tuning": record,
            "search_variance": 1e-6,
            "inherited_variance": 0.0,
            "earlier_variances": earlier_variances(record, seeds),
        }
        for name, record in records.items()
    }
    kimi, gpt = rows["NanoKimi"], rows["NanoGPT"]
    assert searched_arm(kimi) is None, "its own name in another file is another search"
    table = shipped("k2-1m")["arms"]["NanoKimi"]["table"]
    expected = search_variance([trial["losses"] for trial in table], seeds, patterns=1)
    assert kimi["earlier_variances"] == {"NanoKimi of k2-1m.json": pytest.approx(expected)} and expected > 0
    both = sum(value for row in (kimi, gpt) for value in row["earlier_variances"].values())
    weights = {"NanoKimi": 1.0, "NanoGPT": -1.0}
    found = noise_of_searches(weights, {"NanoKimi": kimi, "NanoGPT": gpt})
    assert found == pytest.approx(2e-6 + both)
    shared = {"NanoKimi": kimi, "NanoGPT": {**gpt, "earlier_variances": kimi["earlier_variances"]}}
    assert noise_of_searches(weights, shared) == pytest.approx(2e-6), "the same luck cancels"
    unknown = {"NanoKimi": kimi, "NanoGPT": {**gpt, "earlier_variances": {"NanoGPT of x.json": None}}}
    assert noise_of_searches(weights, unknown) == float("inf")
    search = shipped("k2-5m")
    for record in search["arms"].values():
        record["inherited_file"] = "gone.json"
    (tmp_path / "mine.json").write_text(json.dumps(search))
    with pytest.raises(UserError, match=r"gone.json is not to be found: put that file beside it"):
        read_settled(tmp_path / "mine.json")
    for record in search["arms"].values():
        record["inherited_searches"] = [{"file": 1}]
    (tmp_path / "mine.json").write_text(json.dumps(search))
    with pytest.raises(UserError, match=r"mine.json is damaged: what it says of earlier searches"):
        read_settled(tmp_path / "mine.json")
