"""Which optimizer gets which parameter: each exactly one, and no rule without a purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import AS_KIMI, TINY_GPT, TINY_KIMI, TINY_VARIANT
from torch import nn

from nanokimi.config import ModelConfig, OptimConfig
from nanokimi.model.build import build_model
from nanokimi.optim.build import build_optimizer
from nanokimi.optim.groups import RULES, adamw_groups, find_rule, muon_groups
from nanokimi.optim.muon import Muon
from nanokimi.optim.qk_clip import MuonClip

CONFIGS: dict[str, ModelConfig] = {
    "nanokimi": TINY_KIMI,
    "nanokimi with query latent": replace(TINY_KIMI, q_lora_rank=12, num_hidden_layers=3),
    "nanogpt": TINY_GPT,
    "nanogpt with bias": replace(TINY_GPT, bias=True),
    "variant": TINY_VARIANT,
    "variant with latents": replace(TINY_VARIANT, attention="latent", bias=True),
    "variant as Kimi": AS_KIMI,
    "variant with experts": replace(TINY_VARIANT, attention="gqa", experts="topk"),
}


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], set[str]]]:
    """Each group with the names of its members."""
    names = {p: name for name, p in model.named_parameters()}
    return [(group, {names[p] for p in group["params"]}) for group in groups]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muonclip"])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_is_in_exactly_one_group(config: str, optimizer: Any) -> None:
    model = build_model(CONFIGS[config], 0)
    built = build_optimizer(model, OptimConfig(name=optimizer), 2)
    members = [p for group in built.param_groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == set(model.parameters())


def test_every_rule_is_needed() -> None:
    """Over both models each rule is the first match of some parameter."""
    used = {
        find_rule(name)
        for config in CONFIGS.values()
        for name, _ in build_model(config, 0).named_parameters()
    }
    assert used == set(RULES)


def test_kimis_parameters_go_where_k2_puts_them() -> None:
    model = build_model(CONFIGS["nanokimi with query latent"], 0)
    groups = names_of(model, muon_groups(model.named_parameters()))
    by_algorithm = {group["algorithm"]: names for group, names in groups}
    assert len(groups) == 2
    expected = {name for name, p in model.named_parameters() if p.dim() == 1}
    assert by_algorithm["adamw"] == expected | {"model.embed_tokens.weight", "lm_head.weight"}
    for name in (
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.experts.gate_proj",
        "model.layers.1.mlp.shared_experts.down_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.2.self_attn.q_a_proj.weight",
        "model.layers.2.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.2.self_attn.o_proj.weight",
    ):
        assert name in by_algorithm["muon"]


@pytest.mark.parametrize("config", CONFIGS)
def test_router_can_be_handed_to_adamw(config: str) -> None:
    """Only the routers' matrices move, not `gate_proj` or anything else."""
    model = build_model(CONFIGS[config], 0)

    def adamw_names(**options: Any) -> set[str]:
        groups = names_of(model, muon_groups(model.named_parameters(), **options))
        return set().union(*(names for group, names in groups if group["algorithm"] == "adamw"))

    routers = {name for name, _ in model.named_parameters() if name.endswith("mlp.gate.weight")}
    assert bool(routers) == ("kimi" in config.lower() or "experts" in config)
    assert adamw_names(router="adamw") - adamw_names() == routers
    assert adamw_names() <= adamw_names(router="adamw")


@pytest.mark.parametrize("split", [False, True])
def test_rows_are_cut_as_the_projections_are_fused(split: bool) -> None:
    """NanoGPT's fused q, k, v always; MLA's up-projections into heads on request."""
    optim = OptimConfig(name="muon", split_heads=split)
    model = build_model(replace(TINY_KIMI, q_lora_rank=12), 0)
    groups = names_of(model, build_optimizer(model, optim, 2).param_groups)
    cut = {name for group, names in groups if group["blocks"] == 2 for name in names}
    heads = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in ("q_b", "kv_b")}
    assert cut == (heads if split else set())
    model = build_model(TINY_KIMI, 0)
    groups = names_of(model, build_optimizer(model, optim, 2).param_groups)
    cut = {name for group, names in groups if group["blocks"] == 2 for name in names}
    assert ("model.layers.0.self_attn.q_proj.weight" in cut) == split
    assert {group["blocks"] for group, _ in groups} <= {1, 2}
    model = build_model(TINY_GPT, 0)
    groups = names_of(model, build_optimizer(model, optim, 2).param_groups)
    cut = {name for group, names in groups if group["blocks"] == 3 for name in names}
    assert cut == {f"transformer.h.{i}.attn.c_attn.weight" for i in (0, 1)}


@pytest.mark.parametrize("optimizer", ["muon", "truemuon"])
def test_split_heads_cuts_the_queries_keys_and_values_of_mha(optimizer: str) -> None:
    model = build_model(replace(TINY_VARIANT, attention="mha"), 0)
    optim = OptimConfig(name=optimizer, split_heads=True)
    groups = names_of(model, build_optimizer(model, optim, 2).param_groups)
    cut = {name for group, names in groups if group["blocks"] == 2 for name in names}
    assert cut == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qkv"}


def test_split_heads_orthogonalises_each_head_alone() -> None:
    """After one step without decay, each head's rows have moved by a nearly orthogonal block of their own."""
    moved = {}
    for split in (False, True):
        model = build_model(TINY_KIMI, 0)
        weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
        before = weight.detach().clone()
        model(torch.arange(32)[None]).logits_BTW.square().mean().backward()
        weight.grad[:24] *= 100  # the first head's gradient drowns the second's
        optim = OptimConfig(name="muon", lr=1.0, weight_decay=0.0, split_heads=split, ns_dtype="fp32")
        build_optimizer(model, optim, 2).step()
        moved[split] = (weight.detach() - before).unflatten(0, (2, 24)).pow(2).mean(dim=(1, 2)).sqrt()
    assert moved[True].tolist() == pytest.approx([0.2, 0.2], rel=0.25)
    assert abs(float(moved[False][0] - moved[True][0])) > 0.01


@pytest.mark.parametrize("config", CONFIGS)
def test_adamw_groups_are_nanogpts(config: str) -> None:
    model = build_model(CONFIGS[config], 0)
    (decayed, decayed_names), (kept, kept_names) = names_of(
        model, adamw_groups(model.named_parameters(), 0.3)
    )
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert kept_names == {name for name, p in model.named_parameters() if p.dim() < 2}
    assert decayed_names == {name for name, p in model.named_parameters() if p.dim() >= 2}
    optimizer = build_optimizer(
        model, OptimConfig(name="adamw", weight_decay=0.3, betas=(0.7, 0.8), eps=1e-5), 2
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(group["betas"] == (0.7, 0.8) and group["eps"] == 1e-5 for group in optimizer.param_groups)


@pytest.mark.parametrize("config", CONFIGS)
def test_adamw_alone_has_a_rate_for_what_is_no_hidden_matrix(config: str) -> None:
    """The rate of each parameter is the one that it has under Muon; decay and the order stay nanoGPT's."""
    model = build_model(CONFIGS[config], 0)
    one, two = (
        build_optimizer(model, OptimConfig(name="adamw", lr=2e-3, adamw_lr=rate), 2).param_groups
        for rate in (None, 5e-4)
    )
    muon = build_optimizer(model, OptimConfig(name="muon", lr=2e-3, adamw_lr=5e-4), 2).param_groups
    rates = {id(p): group["peak_lr"] for group in muon for p in group["params"]}
    found = [(id(p), group["peak_lr"], group["weight_decay"]) for group in two for p in group["params"]]
    assert [(key, rate) for key, rate, _ in found] == [(key, rates[key]) for key, _, _ in found]
    assert {rate for _, rate, _ in found} == {2e-3, 5e-4}
    assert [(key, decay) for key, _, decay in found] == [
        (id(p), group["weight_decay"]) for group in one for p in group["params"]
    ]


def test_equal_rates_are_one_rate() -> None:
    """Dividing the groups changes no bit of what AdamW does."""
    weights = []
    for rate in (None, 3e-3):
        model = build_model(TINY_KIMI, 0)
        optimizer = build_optimizer(model, OptimConfig(name="adamw", lr=3e-3, adamw_lr=rate), 2)
        for _ in range(3):
            model(torch.arange(32)[None]).logits_BTW.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_norm_gains_are_decayed_under_muon() -> None:
    model = build_model(TINY_KIMI, 0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    build_optimizer(model, OptimConfig(name="muon", lr=0.1, weight_decay=0.5), 2).step()
    gain = model.get_parameter("model.norm.weight")
    torch.testing.assert_close(gain.detach(), torch.full_like(gain, 1 - 0.1 * 0.5))


def test_every_group_remembers_its_peak_rate() -> None:
    model = build_model(TINY_KIMI, 0)
    groups = build_optimizer(model, OptimConfig(name="muonclip", lr=2e-3, adamw_lr=5e-4), 2).param_groups
    assert {(g["algorithm"], g["lr"], g["peak_lr"]) for g in groups} == {
        ("muon", 2e-3, 2e-3),
        ("adamw", 5e-4, 5e-4),
    }
    groups = build_optimizer(model, OptimConfig(name="muon", lr=2e-3), 2).param_groups
    assert {g["peak_lr"] for g in groups} == {2e-3}
    groups = build_optimizer(model, OptimConfig(name="adamw", lr=3e-3), 2).param_groups
    assert [g["peak_lr"] for g in groups] == [3e-3, 3e-3]


def test_settings_reach_the_optimizer() -> None:
    model = build_model(TINY_KIMI, 0)
    settings = dict(weight_decay=0.2, momentum=0.8, nesterov=False, ns_steps=3, betas=(0.7, 0.8), eps=1e-5)
    clip = build_optimizer(
        model, OptimConfig(name="muonclip", qk_clip_tau=33.0, ns_dtype="bf16", **settings), 2
    )
    assert isinstance(clip, MuonClip) and clip.tau == 33.0 and clip.attentions == model.attentions()
    muon = build_optimizer(model, OptimConfig(name="muon", **settings), 2)
    assert type(muon) is Muon
    for optimizer, dtype in ((clip, torch.bfloat16), (muon, None)):
        for group in optimizer.param_groups:
            assert {key: group[key] for key in settings} == settings
            assert group["ns_dtype"] == dtype


def test_learned_latents_are_a_table_not_a_map() -> None:
    model = build_model(replace(TINY_VARIANT, attention="latent"), 0)
    groups = names_of(model, muon_groups(model.named_parameters()))
    adamw = set().union(*(names for group, names in groups if group["algorithm"] == "adamw"))
    assert "model.layers.0.self_attn.latents" in adamw
    assert "model.layers.0.self_attn.q_proj.weight" not in adamw


def test_foreign_parameters_that_are_no_matrices_go_to_adamw() -> None:
    """Vectors and convolutions whatever they are called, tables by their names; matrices and stacks to Muon."""
    shapes = {
        "block.scale": (3,),
        "conv.weight": (4, 3, 2, 2),
        "token_embedding.weight": (9, 4),
        "block.matrix": (3, 4),
        "block.stack": (2, 3, 4),
    }
    named = [(name, nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]
    names = {p: name for name, p in named}
    groups = muon_groups(named)
    by_algorithm = {group["algorithm"]: {names[p] for p in group["params"]} for group in groups}
    assert by_algorithm["adamw"] == {"block.scale", "conv.weight", "token_embedding.weight"}
    assert by_algorithm["muon"] == {"block.matrix", "block.stack"}
