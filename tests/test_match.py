"""Twins of equal size, budgets of equal cost, and what is said of a pair that agrees in nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_GPT, TINY_KIMI

from nanokimi.compare.match import (
    MATCH_FILE,
    agreement,
    describe_agreement,
    describe_match,
    fewer_steps,
    in_steps,
    matched_arms,
    solve,
    steps_of,
)
from nanokimi.compare.size import nearest, parameters, solve_size, solve_width
from nanokimi.config import GPTConfig, RunConfig, TrainConfig
from nanokimi.config.parsing import settings, with_changes
from nanokimi.config.rules import validate
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.model.build import build_model
from nanokimi.model.gpt import GPTBlock
from nanokimi.runtime.files import read_json, write_json
from nanokimi.study.study import StudyArm, job_of
from nanokimi.train import step as one_step
from nanokimi.train.run_folder import set_up


def counted(model: GPTConfig) -> int:
    """Active parameters by hand: every matrix that multiplies a token; the tied head once."""
    named = build_model(model, 0).named_parameters()
    return sum(
        p.numel() for name, p in named if p.dim() == 2 and "position" not in name and "wpe" not in name
    )


@pytest.mark.parametrize("target", [100, 996, 4001])
def test_the_nearest_width_is_the_best_of_all(target: int) -> None:
    widths = range(4, 4000, 4)
    best = min(widths, key=lambda w: abs(3 * w + 7 - target))
    assert nearest(lambda w: 3 * w + 7, target) == best


def test_a_width_is_solved_as_a_search_would() -> None:
    count = parameters("active_params", 16)
    for target in (20_000, 31_234, 90_000):
        found = solve_width(TINY_GPT, count, target)
        tried = [replace(TINY_GPT, intermediate_size=w) for w in range(4, 4000, 4)]
        assert found.model == min(tried, key=lambda one: abs(count(one) - target))
        assert found.gap == pytest.approx(counted(found.model) / target - 1)
        kimi = solve_width(TINY_KIMI, count, target)
        assert abs(kimi.gap) < 0.02, "a step of one expert is small beside the whole"
        met = TINY_KIMI.num_experts_per_tok + TINY_KIMI.n_shared_experts
        assert kimi.model.intermediate_size == pytest.approx(met * kimi.model.moe_intermediate_size, rel=0.25)


@pytest.mark.parametrize("quantity", ["active_params", "total_params"])
def test_a_model_of_another_size_keeps_its_shape(quantity: str) -> None:
    """Ten times the parameters come from the hidden size, not from feed-forward layers of absurd width."""
    count = parameters(quantity, 16)
    for model in (TINY_GPT, TINY_KIMI):
        found = solve_size(model, count, 10 * count(model))
        assert abs(found.gap) <= 0.02 and "hidden_size" in found.changes
        assert found.model.hidden_size % model.num_attention_heads == 0
        ratio = found.model.intermediate_size / found.model.hidden_size
        assert ratio == pytest.approx(model.intermediate_size / model.hidden_size, rel=0.5)
        near = solve_size(model, count, 1.04 * count(model))
        assert abs(near.gap) <= 0.02 and "hidden_size" not in near.changes


def test_the_dearer_arm_gets_fewer_steps() -> None:
    assert fewer_steps(500, [2.0, 5.0, 2.5]) == [500, 200, 400]
    assert fewer_steps(3, [1.0, 100.0]) == [3, 1]


def test_a_shorter_run_warms_up_for_the_same_share_of_it() -> None:
    """Otherwise the more expensive arm would train with another schedule than the one that its search found."""
    config = RunConfig(model="nanokimi", train=TrainConfig(max_steps=200))
    config = with_changes(config, {"nanokimi.optim.warmup_steps": 33})
    assert in_steps(config, 200, 134) == {"train.max_steps": 134, "nanokimi.optim.warmup_steps": 22}
    assert in_steps(config, 200, 200)["nanokimi.optim.warmup_steps"] == 33
    short = job_of(StudyArm("NanoKimi", config), 0, "seed", 134).config
    assert settings(short)["nanokimi.optim.warmup_steps"] == 22
    same = job_of(StudyArm("NanoKimi", config), 0, "seed", 200)
    assert same == job_of(StudyArm("NanoKimi", config), 0, "seed"), "not trained twice"


def test_steps_of_a_budget() -> None:
    def steps(**train: object) -> int:
        return steps_of(RunConfig(train=TrainConfig(context_length=16, batch_size=8, **train)), 1000)  # type: ignore[arg-type]

    assert steps(max_steps=7) == 7
    assert steps(max_epochs=1.0) == 8 and steps(max_tokens=128 * 5 + 1.0) == 6
    with pytest.raises(UserError, match="max_steps"):
        steps(max_seconds=3.0)


def test_what_is_said() -> None:
    first = {"tokens": 100, "params_active": 1004, "params_total": 2000, "flops": 3e9, "train_seconds": 2.0}
    second = {"tokens": 100, "params_active": 1000, "params_total": 1000, "flops": 2e9, "train_seconds": 0.0}
    said = describe_agreement(agreement(first, second))
    expected = "Matched in tokens, active parameters (+0.4%); unmatched in "
    expected += "total parameters (2.00x), training FLOPs (1.50x)"
    assert said == expected


@pytest.fixture
def prepared(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> tuple[RunConfig, PreparedData]:
    folder = tmp_path / "run"
    folder.mkdir()
    return set_up(tiny_config(), folder)


def test_compare_asks_for_a_quantity_and_remembers(
    prepared: tuple[RunConfig, PreparedData], tmp_path: Path
) -> None:
    config, data = prepared
    for quantity in ("active_params", "total_params"):
        asked = replace(config, compare=replace(config.compare, match=quantity))
        arms = matched_arms(asked, data, tmp_path)
        (tmp_path / MATCH_FILE).unlink()
        count = parameters(quantity, 16)
        assert count(arms["NanoGPT"].family.model) == pytest.approx(count(config.nanokimi.model), rel=0.02)
        assert arms["NanoKimi"].nanokimi == config.nanokimi
    asked = replace(config, compare=replace(config.compare, match="flops"))
    arms = matched_arms(asked, data, tmp_path)
    assert arms["NanoGPT"].train.max_steps == 12 and arms["NanoKimi"].train.max_steps < 12
    changed = read_json(tmp_path / MATCH_FILE)
    assert changed["asked"] == "flops" and changed["changes"]["NanoKimi"]["train.max_steps"] < 12
    changed["changes"]["NanoGPT"]["train.max_steps"] = 9
    write_json(tmp_path / MATCH_FILE, changed)
    assert matched_arms(asked, data, tmp_path)["NanoGPT"].train.max_steps == 9, (
        "resuming solves nothing again"
    )
    longer = replace(asked, train=replace(asked.train, max_steps=24))
    assert matched_arms(longer, data, tmp_path)["NanoGPT"].train.max_steps == 24, (
        "another budget, another answer"
    )
    assert matched_arms(config, data, tmp_path)["NanoGPT"].train.max_steps == 12


def test_the_size_of_a_model_with_experts_in_every_layer_can_be_solved() -> None:
    model = replace(TINY_KIMI, first_k_dense_replace=0)
    count = parameters("active_params", 16)
    solved = solve_size(model, count, 1.02 * count(model))
    assert abs(solved.gap) < 0.05 and "intermediate_size" not in solved.changes


def test_seconds_are_measured(
    prepared: tuple[RunConfig, PreparedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm of six times the layers gets a sixth of the steps, by a clock that only moves while a layer is at work."""
    config, data = prepared
    clock, forward = [0.0], GPTBlock.forward

    def takes_a_second(*args: Any, **kwargs: Any) -> Any:
        clock[0] += 1.0
        return forward(*args, **kwargs)

    monkeypatch.setattr(one_step, "fenced_seconds", lambda _: clock[0])
    monkeypatch.setattr(GPTBlock, "forward", takes_a_second)
    gpt = replace(config, model="nanogpt", train=replace(config.train, max_steps=1000))
    deep = replace(gpt, nanogpt=replace(gpt.nanogpt, model=replace(gpt.nanogpt.model, num_hidden_layers=12)))
    found = solve("seconds", {"nanogpt": gpt, "nanokimi": validate(deep)}, data)
    assert found["nanogpt"]["train.max_steps"] == 1000
    assert found["nanokimi"]["train.max_steps"] == fewer_steps(1000, [2.0, 12.0])[1] < 170


def test_every_report_says_what_is_matched(prepared: tuple[RunConfig, PreparedData]) -> None:
    config, _ = prepared
    run = {"tokens": 1, "params_active": 10, "params_total": 20, "train_seconds": 1.0, "steps": 1}
    run |= {"name": "NanoKimi", "flops": 5}
    other = {**run, "name": "NanoGPT", "params_total": 40, "flops": 5.2, "train_seconds": 0.5}
    said = describe_match(config, [run, other])
    assert said["asked"] is None
    assert said["sentence"] == (
        "NanoKimi against NanoGPT: Matched in tokens, active parameters; unmatched in total parameters (0.50x), "
        "training FLOPs (0.96x), training time (2.00x)."
    )
    asked = replace(config, compare=replace(config.compare, match="total_params"))
    assert describe_match(asked, [run, other])["sentence"].startswith(
        "Matched as asked in total parameters; the largest remaining gap is 50.00%."
    )


def test_a_size_that_depends_on_no_width_is_left_alone() -> None:
    """As of a class of the user's in every layer: the width once ran away to four million."""
    model = replace(TINY_GPT, intermediate_size=16)
    solved = solve_width(model, lambda one: 50.0, 100.0)
    assert (solved.model, solved.changes, solved.gap) == (model, {}, -0.5)


def test_a_size_that_depends_on_no_width_is_solved_by_the_hidden_size() -> None:
    """As of a user's experts in every layer, with `compare --match`: it ended in a traceback."""
    model = replace(TINY_KIMI, first_k_dense_replace=0)
    found = solve_size(model, lambda one: 10.0 * one.hidden_size, 20.0 * model.hidden_size)
    assert found.changes == {"hidden_size": 2 * model.hidden_size} and found.gap == 0
    same = solve_size(model, lambda one: 50.0, 50.0)
    assert same.changes == {} and same.gap == 0, "the size is right as it is"
