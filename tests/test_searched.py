"""What has changed since a search: of an arm's own settings, and of what all arms share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanokimi.compare.run import compare
from nanokimi.compare.searched import read_search, require_other_seeds, search_file, search_records
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs, with_arm
from nanokimi.config.files import load_config
from nanokimi.config.fixed import config_of, fixed_settings
from nanokimi.config.parsing import with_changes
from nanokimi.errors import UserError
from nanokimi.report.search_note import search_note

ARMS = ("NanoKimi", "NanoGPT with Muon", "NanoGPT")


def changed(config: RunConfig) -> dict[str, list[str]]:
    """What has changed since the search of the configuration's arms."""
    return {arm: one["changed"] for arm, one in search_records(config, arm_configs(config)).items()}


def note(config: RunConfig) -> str:
    """The sentence below the verdict."""
    records = search_records(config, arm_configs(config))
    return search_note([{"name": arm, "search": record} for arm, record in records.items()])


def with_search(tmp_path: Path, settings: dict[str, Any] | None) -> RunConfig:
    """The default preset with a search that recorded these fixed settings for NanoGPT, and none for the others."""
    content = json.loads(search_file("tales").read_text())
    for record in content["arms"].values():
        del record["settings"]
    if settings is not None:
        content["arms"]["NanoGPT"]["settings"] = settings
    path = tmp_path / "search.json"
    path.write_text(json.dumps(content))
    return load_config("tales", ["--compare.search", str(path)])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.batch_size", "16"),
        ("train.context_length", "64"),
        ("train.max_steps", "100"),
        ("dataset.tokenizer", "unigram"),
        ("dataset.vocab_size", "2048"),
        ("dataset.characters", "100000"),
        ("dataset.path", "tales"),
    ],
)
def test_what_all_arms_share_is_listed_for_all(setting: str, value: str) -> None:
    config = load_config("tales", [f"--{setting}", value])
    found = changed(config)
    if setting == "train.max_steps":  # the warm-up's steps are those of the longer run
        found = {arm: [key for key in keys if key != "optim.warmup_steps"] for arm, keys in found.items()}
    assert found == dict.fromkeys(ARMS, [setting])


@pytest.mark.parametrize(
    ("setting", "value", "arms"),
    [
        ("nanokimi.model.n_routed_experts", "16", ["NanoKimi"]),
        ("nanokimi.model.q_lora_rank", "32", ["NanoKimi"]),
        ("nanokimi.optim.router_bias_update_speed", "0", ["NanoKimi"]),
        ("nanogpt.model.num_hidden_layers", "6", ["NanoGPT with Muon", "NanoGPT"]),
        ("nanogpt.optim.grad_clip", "0.5", ["NanoGPT with Muon", "NanoGPT"]),
    ],
)
def test_a_size_or_setting_that_was_not_searched_is_listed_for_its_arms(
    setting: str, value: str, arms: list[str]
) -> None:
    config = load_config("tales", [f"--{setting}", value])
    own = setting.partition(".")[2]
    assert changed(config) == {arm: [own] if arm in arms else [] for arm in ARMS}
    assert note(config).startswith("NOT AS SEARCHED") and f"{arms[0]} ({own})" in note(config)


def test_a_part_that_was_replaced_after_the_search_is_listed_alone() -> None:
    """The arm is of another family then, whose other settings have other names."""
    config = with_arm(load_config("tales"), "NanoGPT: model.norm=rmsnorm")
    assert arm_configs(config)["NanoGPT"].model == "variant"
    assert changed(config) == {**dict.fromkeys(ARMS, []), "NanoGPT": ["model.norm"]}
    config = with_arm(load_config("tales"), "NanoKimi: model.experts=none")
    assert changed(config)["NanoKimi"][0] == "model.experts"


@pytest.mark.parametrize(
    ("preset", "options", "keys"),
    [
        ("shakespeare-fast", {"dataset.split": "three"}, ["dataset.split"]),
        ("smoke", {"dataset.split": "nanogpt"}, ["dataset.split"]),
        ("smoke", {"dataset.val_fraction": 0.2}, ["dataset.test_fraction", "dataset.val_fraction"]),
        ("smoke", {"dataset.test_fraction": 0.2}, ["dataset.test_fraction"]),
        ("smoke", {"dataset.test_fraction": 0.1}, []),
    ],
)
def test_another_cut_of_the_searched_text_is_told(
    preset: str, options: dict[str, Any], keys: list[str]
) -> None:
    """Otherwise the reported text holds the text that the settings were chosen on, and nothing says so."""
    config = with_changes(load_config(preset, ["--data", "a/tinyshakespeare.txt"]), options)
    assert {arm: sorted(found) for arm, found in changed(config).items()} == dict.fromkeys(ARMS, keys)
    chosen = "the settings may have been chosen on text that is now in the test part" in note(config)
    assert chosen == bool(keys)
    other = with_changes(config, {"dataset.path": "mine.txt"})
    assert changed(other) == dict.fromkeys(ARMS, ["dataset.path"])
    records = search_records(config, arm_configs(config))
    with_own = [{"name": arm, "search": record} for arm, record in records.items()] + [{"name": "Mine"}]
    assert ("now in the test part" in search_note(with_own)) == bool(keys), (
        "also beside an arm without a search"
    )


def test_a_search_that_did_not_record_the_cut_says_nothing_of_it(tmp_path: Path) -> None:
    fixed = fixed_settings(arm_configs(load_config("tales"))["NanoGPT"], ())
    kept = {key: value for key, value in fixed.items() if key != "dataset.split"}
    config = with_changes(with_search(tmp_path, kept), {"dataset.val_fraction": 0.3})
    assert changed(config)["NanoGPT"] == []


def test_a_model_that_cannot_be_compared_is_listed_as_a_whole() -> None:
    config = load_config("tales")
    arms = arm_configs(config)
    arms["NanoKimi"] = replace(arms["NanoKimi"], model="module", module=arms["NanoKimi"].module)
    found = search_records(config, arms)["NanoKimi"]["changed"]
    assert "model" in found and "optim.name" in found
    assert not [key for key in found if key.startswith(("train.", "dataset."))]


def test_a_search_that_recorded_no_fixed_settings_is_still_read(tmp_path: Path) -> None:
    config = with_search(tmp_path, None)
    assert changed(config) == dict.fromkeys(ARMS, [])
    assert changed(with_changes(config, {"train.batch_size": 16})) == dict.fromkeys(ARMS, [])
    assert changed(with_changes(config, {"nanogpt.optim.lr": 1.0}))["NanoGPT"] == ["optim.lr"]


def test_precision_counts_where_both_are_known(tmp_path: Path) -> None:
    arm = arm_configs(load_config("tales"))["NanoGPT"]
    fixed = fixed_settings(arm, {"optim.lr"})
    config = with_search(tmp_path, {**fixed, "train.dtype": "fp32"})
    assert "train.dtype" not in changed(config)["NanoGPT"], "auto is not known before the run"
    assert "train.dtype" in changed(with_changes(config, {"train.dtype": "bf16"}))["NanoGPT"]
    assert "train.dtype" not in changed(with_changes(config, {"train.dtype": "fp32"}))["NanoGPT"]


def test_fixed_settings_are_those_that_were_not_searched_and_name_no_folder() -> None:
    config = with_changes(load_config("tales"), {"dataset.tokenizer": "some/folder/tokenizer.json"})
    arm = replace(config, model="nanogpt")
    found = fixed_settings(arm, {"optim.lr", "model.initializer_range"})
    assert found["model"] == "nanogpt" and found["nanogpt.model.hidden_size"] == 96
    assert found["train.batch_size"] == 8 and found["dataset.tokenizer"] == "tokenizer.json"
    left_out = ("optim.lr", "model.initializer_range", "model.vocab_size", "model.max_position_embeddings")
    assert not found.keys() & {f"nanogpt.{key}" for key in left_out}
    assert fixed_settings(config_of(found), {"optim.lr", "model.initializer_range"}) == found


def test_a_setting_that_no_version_has_any_more_is_ignored(tmp_path: Path) -> None:
    fixed = fixed_settings(arm_configs(load_config("tales"))["NanoGPT"], ())
    config = with_search(tmp_path, {**fixed, "nanogpt.model.flavour": "sour"})
    assert changed(config)["NanoGPT"] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"train.batch_size": "many"},
        {"nanogpt.model": 5},
        {"model": 7},
        ["model"],
        {"nanokimi.model.rope_scaling": None, "nanokimi.model.rope_scaling.factor": 2.0},
    ],
)
def test_damaged_fixed_settings_are_refused_in_one_line(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(UserError, match="is not a search.json"):
        read_search(with_search(tmp_path, settings))


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("table"),
        lambda record: record.pop("seeds"),
        lambda record: record.pop("space"),
        lambda record: record.update(interior=[True]),
        lambda record: record["table"][0].update(losses=["low"]),
        lambda record: record["table"].append({"values": {}}),
        lambda record: record.update(patterns=-1),
    ],
)
def test_a_search_that_no_report_can_be_made_of_is_refused_before_training(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    """It took the whole comparison to find out; and a negative number of patterns made the intervals narrower."""
    content = json.loads(search_file("tales").read_text())
    damage(content["arms"]["NanoGPT"])
    (tmp_path / "search.json").write_text(json.dumps(content))
    config = load_config("tales", ["--compare.search", str(tmp_path / "search.json")])
    with pytest.raises(UserError, match="is not a search.json"):
        require_other_seeds(config, [1])


def test_a_seed_that_settings_were_chosen_by_does_not_judge_them(tmp_path: Path) -> None:
    config = load_config("tales", ["--seed", "2335"])
    require_other_seeds(config, [2335, 2336])
    require_other_seeds(with_changes(config, {"compare.search": None}), [2337])
    with pytest.raises(UserError, match=r"'NanoKimi' were chosen by the loss with seed 2337 \(tales.json\)"):
        require_other_seeds(config, [2335, 2336, 2337])
    with pytest.raises(UserError, match="name another --seed"):
        compare(with_changes(config, {"compare.seeds": 3}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
