"""An arm that replaces a part leaves the settings behind that only the old part read, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nanokimi.config import OptimConfig, RunConfig, VariantConfig, VariantFamily
from nanokimi.config.arms import arm_configs, with_arm
from nanokimi.config.files import load_config
from nanokimi.errors import UserError

SMOKE = load_config("smoke")
MODEL = VariantConfig(
    positions="rope",
    rope_theta=100.0,
    attention="mla",
    kv_lora_rank=8,
    experts="topk",
    n_routed_experts=5,
    aux_loss_alpha=0.1,
    bias=True,
)
OPTIM = OptimConfig(
    name="muonclip",
    momentum=0.8,
    qk_clip_tau=5.0,
    split_heads=True,
    router="adamw",
    schedule="wsd",
    decay_fraction=0.3,
)
BASE = replace(SMOKE, variant=VariantFamily(model=MODEL, optim=OPTIM))


def arm(**parts: dict[str, Any]) -> RunConfig:
    return arm_configs(replace(BASE, arms={"Mine": {"from": "variant", **parts}}))["Mine"]


def test_a_replaced_part_takes_its_settings_along() -> None:
    found = arm(model={"attention": "mha", "positions": "learned", "experts": "none"}).variant
    assert found.model == VariantConfig(bias=True)
    assert found.optim == replace(OPTIM, router="muon")


def test_what_the_new_part_reads_stays() -> None:
    found = arm(model={"experts": "soft"}).variant
    assert (found.model.n_routed_experts, found.model.aux_loss_alpha) == (5, 0.0)
    assert (found.model.kv_lora_rank, found.optim.router) == (8, "adamw")


def test_a_replaced_optimizer_takes_its_settings_along() -> None:
    found = arm(optim={"name": "muon"}).variant.optim
    assert found == replace(OPTIM, name="muon", qk_clip_tau=OptimConfig().qk_clip_tau)
    found = arm(optim={"name": "adamw", "schedule": "constant"}).variant.optim
    assert found == OptimConfig(schedule="constant")


def test_the_command_line_does_the_same() -> None:
    config = with_arm(BASE, "Mine: from=variant optim.name=lion model.experts=none")
    found = arm_configs(config)["Mine"].variant
    assert (found.optim.momentum, found.optim.qk_clip_tau) == (
        OptimConfig().momentum,
        OptimConfig().qk_clip_tau,
    )
    assert found.model.n_routed_experts == VariantConfig().n_routed_experts


def test_what_the_arm_itself_says_is_still_refused() -> None:
    with pytest.raises(UserError, match=r"momentum has no effect"):
        arm(optim={"name": "adamw", "momentum": 0.7})
    with pytest.raises(UserError, match=r"n_routed_experts has no effect"):
        arm(model={"experts": "none", "n_routed_experts": 4})
