"""`sweep --inherit`: settings of an earlier search, each arm's rate tuned here, and what a comparison says of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import study_command, write_study_files

from nanokimi import cli
from nanokimi.compare.searched import search_file, search_records
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs, with_arm
from nanokimi.config.files import load_config
from nanokimi.report.records import Arm, Run
from nanokimi.report.search_note import search_note
from nanokimi.report.searched import make_searches
from nanokimi.runtime.files import read_json, write_json
from nanokimi.study.jobs import read_results
from nanokimi.study.tune import rounded

EARLIER = "k2-1m"
ARMS = ("NanoKimi", "NanoGPT")
FEW = ("--points", "3", "--rounds", "1", "--seeds", "1", "--workers", "1")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def earlier() -> dict[str, dict[str, Any]]:
    return dict(read_json(search_file(EARLIER))["arms"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two tiny models in `out`."""
    folder = write_study_files(tmp_path_factory.mktemp("inherited"), steps=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(folder / "cache"))
        assert cli.main(study_command(folder, "sweep", "--inherit", EARLIER, *FEW)) == 0
    return folder


@pytest.fixture
def found(toy: Path) -> dict[str, Any]:
    return dict(read_json(toy / "out" / "search.json"))


def studies() -> ModuleType:
    """benchmarks/studies.py, which is no package's."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import studies as module
    finally:
        sys.path.pop(0)
    return module


def with_arms_of(toy: Path, tmp_path: Path, found: dict[str, Any], *words: str) -> RunConfig:
    """The tiny configuration with the arms that the sweep found, as the preset of a study gets them."""
    record, preset = tmp_path / "record.json", tmp_path / "preset.yaml"
    write_json(record, found)
    preset.write_text((toy / "toy.yaml").read_text())
    given = ["--data", str(toy / "text.txt"), *words]
    for _ in range(2):  # the second time it replaces what it wrote
        config = load_config(str(preset), given)
        studies().write_arms(preset, studies().arms_block(str(record), config, found))
    assert preset.read_text().count("arms:") == 1
    return load_config(str(preset), given)


def records_of(config: RunConfig) -> list[dict[str, Any]]:
    """The arms of a report, with how they were found."""
    records = search_records(config, arm_configs(config))
    return [{"name": name, "search": record} for name, record in records.items()]


def test_every_setting_but_the_rate_is_that_of_the_earlier_search(
    found: dict[str, Any], earlier: dict[str, dict[str, Any]]
) -> None:
    assert tuple(found["arms"]) == ARMS
    for name, record in found["arms"].items():
        there = {"adamw_ratio": 1.0, **earlier[name]["best_values"]}  # a search without it had one rate
        assert {**record["best_values"], "lr": 0} == {**there, "lr": 0}
        assert record["kind"] == "inherited" and record["inherited_file"] == f"{EARLIER}.json"
        assert record["inherited_rate"] == there["lr"]
        best = record["best"]
        assert best["model.initializer_range"] == rounded(there["init_scale"] / math.sqrt(32))
        assert best["optim.warmup_steps"] == max(1, round(there["warmup"] * 8))
        assert best["optim.adamw_lr"] == rounded(there["adamw_ratio"] * best["optim.lr"])
        assert record["settings"]["train.batch_size"] == 8 and "optim.lr" not in record["settings"]
        losses = [trial["losses"] for trial in earlier[name]["table"]]
        one = {"file": f"{EARLIER}.json", "arm": name, "patterns": 1, "losses": losses}
        assert record["inherited_searches"] == [one]
        assert record["inherited_missing"] is None


def test_every_arm_is_trained_with_as_many_rates_around_its_own(toy: Path, found: dict[str, Any]) -> None:
    lines = list(read_results(toy / "out").values())
    trials = {record["trials"] for record in found["arms"].values()}
    assert len(trials) == 1 and trials < {3, 4}
    for name, record in found["arms"].items():
        run = {line["lr"]: line["val_loss"] for line in lines if line["arm"] == name}
        table = {row["values"]["lr"]: row["losses"][0] for row in record["table"]}
        assert table == run, "every line of the table is a run"
        inherited = record["inherited_rate"]
        assert list(table)[:3] == [rounded(inherited / 2), inherited, rounded(inherited * 2)]
        best = min(table, key=lambda rate: table[rate])
        assert record["best_values"]["lr"] == best and record["loss"] == table[best]
        assert record["interior"] == {"lr": min(table) < best < max(table)}


def test_it_goes_on_where_it_was_interrupted(
    toy: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOKIMI_CACHE", str(toy / "cache"))
    monkeypatch.setattr("nanokimi.study.pool.Worker", None)  # starting one would fail
    assert cli.main(study_command(toy, "sweep", "--inherit", EARLIER, *FEW)) == 0
    assert read_json(toy / "out" / "search.json")["arms"] == found["arms"]
    shown, page = capsys.readouterr().out, (toy / "out" / "search.html").read_text()
    for name, record in found["arms"].items():
        assert f"{name}: validation loss {record['loss']:.4f}" in shown
    assert shown.count("the inherited one") == page.count("the inherited one") == len(ARMS)


@pytest.mark.parametrize("words", [(), ("--train.max_steps", "null", "--train.max_tokens", "1e5")])
def test_a_comparison_says_what_was_inherited_and_what_was_tested(
    toy: Path, tmp_path: Path, found: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = with_arms_of(toy, tmp_path, found, *words)
    arms = records_of(config)
    assert tuple(arm["name"] for arm in arms) == ARMS
    longer = ["train.max_steps"] if words else []
    assert [arm["search"]["changed"] for arm in arms] == [longer, longer]
    for arm in arms:
        arm["search"]["interior"] = {"lr": True}
    note = search_note(arms)
    assert note.startswith(f"NOT SEARCHED AT THIS SIZE: every arm inherits the settings of {EARLIER}.json.")
    assert f"with {arms[0]['search']['trials']} rates for each arm" in note
    conditions = " The rates were tried with other values of train.max_steps." if longer else ""
    assert note.endswith(f"inside those tried for every arm.{conditions}")
    arms[1]["search"]["interior"] = {"lr": False}
    assert search_note(arms).endswith(f"AT THE EDGE of those tried for NanoGPT.{conditions}")


def test_a_comparison_says_if_an_arm_has_other_settings(
    toy: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    config = with_arms_of(toy, tmp_path, found)
    rate = search_note(records_of(with_arm(config, "NanoGPT: optim.lr=0.5")))
    assert rate.startswith("NOT AS SEARCHED") and rate.endswith("NanoGPT (optim.lr).")
    kept = search_note(records_of(with_arm(config, "NanoKimi: optim.grad_clip=0.5")))
    assert kept.startswith("NOT AS SEARCHED") and kept.endswith("NanoKimi (optim.grad_clip).")
    fewer, other = records_of(config)
    other["search"]["trials"] += 1
    assert search_note([fewer, other]) == "NOT THE SAME SEARCH: the arms differ in trials."
    searched = {**other, "search": read_json(search_file(EARLIER))["arms"]["NanoGPT"]}
    assert search_note([fewer, searched]).startswith("NOT THE SAME SEARCH: the arms differ in design")


def test_the_report_shows_where_the_other_settings_come_from(
    toy: Path, tmp_path: Path, found: dict[str, Any], earlier: dict[str, dict[str, Any]]
) -> None:
    arms = records_of(with_arms_of(toy, tmp_path, found))
    run = Run(seed=7, metadata={}, records=[])
    shown = make_searches(
        [Arm(name=arm["name"], slot=slot, metadata=arm, runs=(run,)) for slot, arm in enumerate(arms)]
    )
    assert shown["alike"].startswith("NOT SEARCHED AT THIS SIZE") and not shown["as_configured"]
    for entry in shown["entries"]:
        values = earlier[entry["arm"].name]["best_values"]
        assert [row["hyperparameter"] for row in entry["search"]["rows"]] == ["lr"]
        taken = dict(entry["search"]["left_out"])
        assert taken["weight_decay"] == f"{values['weight_decay']:g} from {EARLIER}.json"
        assert set(values) - {"lr"} <= set(taken)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--points", "4"), "--points is 4: --inherit needs an odd number"),
        (("--search",), "--search and --inherit exclude each other"),
        (("--trials", "4"), "--trials and --inherit exclude each other"),
        (("--vary", "optim.lr"), "--vary and --inherit exclude each other"),
        (("--arm", "Mine: from=nanogpt"), "k2-1m.json has no arm 'Mine'; it has NanoKimi, NanoGPT with Muon"),
        (
            ("--arm", "NanoGPT: from=nanogpt optim.name=muon"),
            "k2-1m.json searched 'NanoGPT' with adamw, and here it has muon",
        ),
        (
            ("--arm", "NanoKimi: from=nanokimi optim.name=adamw"),
            "'NanoKimi' with muonclip, and here it has adamw",
        ),
        (("--inherit", "k2-9m"), "--inherit k2-9m: there is no such file, and no search of that name"),
        (("--inherit", ""), "--inherit"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(
    tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study_files(tmp_path, steps=2)
    inherit = () if "--inherit" in more else ("--inherit", EARLIER)
    assert cli.main(study_command(folder, "sweep", *inherit, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "out").exists()
