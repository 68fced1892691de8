"""What a variant's configuration accepts, refuses, and tells apart from a setting that nothing reads."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nanokimi.config import FAMILIES, RunConfig, VariantConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.rules import is_resolved, resolve, validate
from nanokimi.config.variant_parts import ATTENTIONS, EXPERTS
from nanokimi.errors import UserError
from nanokimi.model.variants import experts as expert_modules
from nanokimi.model.variants import variant as attention_modules

V = "variant.model."
CHANGED: dict[str, Any] = {
    **{"num_key_value_heads": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8},
    **{"head_dim": 12, "qkv_bias": True},
    **{"qk_rope_head_dim": 8, "v_head_dim": 8, "num_latents": 3, "rope_theta": 10.0, "intermediate_size": 40},
    **{"moe_intermediate_size": 24, "n_routed_experts": 5, "n_shared_experts": 2, "num_experts_per_tok": 1},
    **{"first_k_dense_replace": 1, "norm_topk_prob": False, "routed_scaling_factor": 2.0},
    **{"aux_loss_alpha": 0.1, "capacity_factor": 1.5, "bias": True},
}


SMOKE = load_config("smoke")
BY_ATTENTION = sorted({name for row in ATTENTIONS.values() for name in row.reads})
BY_EXPERTS = sorted({name for row in EXPERTS.values() for name in row.reads})


def variant(**changes: Any) -> RunConfig:
    """The smoke preset with a variant."""
    return replace(SMOKE, variant=replace(SMOKE.variant, model=VariantConfig(**changes)))


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(variant(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts(attention: str = "mha", experts: str = "none") -> dict[str, Any]:
    """These parts, and what they need."""
    return {
        "attention": attention,
        "experts": experts,
        "positions": "rope" if attention == "mla" else "learned",
    }


def test_every_part_has_its_settings_and_its_module() -> None:
    """The two tables of each kind name the same parts in the same order; the message says which entry is missing."""
    settings, modules = "config/variant_parts.py", "model/variants"
    for kind, first, second in (
        ("ATTENTIONS", [*ATTENTIONS], [*attention_modules.ATTENTIONS]),
        ("EXPERTS", [name for name in EXPERTS if name != "none"], [*expert_modules.EXPERTS]),
    ):
        for name in first:
            assert name in second, f"{name} is in {kind} of {settings}, but not in {kind} of {modules}"
        for name in second:
            assert name in first, f"{name} is in {kind} of {modules}, but not in {kind} of {settings}"
        assert first == second, f"{kind} of {settings} and of {modules} are in different orders"


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_each_setting_is_taken_by_the_parts_that_read_it_and_refused_by_the_others(
    attention: str, experts: str
) -> None:
    validate(variant(**parts(attention, experts)))
    for names, row in ((BY_ATTENTION, ATTENTIONS[attention]), (BY_EXPERTS, EXPERTS[experts])):
        for name in names:
            changed = {**parts(attention, experts), name: CHANGED[name]}
            if name in row.reads:
                validate(variant(**changed))
            else:
                assert f"{V}{name} has no effect with" in refusal(**changed)


def test_the_table_of_readers_knows_every_setting_that_one_part_alone_reads() -> None:
    common = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "norm_eps", "dropout"}
    common |= {"max_position_embeddings", "norm", "positions", "attention", "feed_forward", "experts"}
    common |= {"tie_word_embeddings", "initialization", "initializer_range", "lm_head_bias"}
    of_several = {"rope_theta", "intermediate_size", "bias"}  # tested below
    assert {*BY_ATTENTION, *BY_EXPERTS} | common | of_several == {
        field.name for field in fields(VariantConfig)
    }


def test_the_help_of_a_setting_begins_with_the_attentions_that_read_it() -> None:
    (cls,) = ast.parse(inspect.getsource(VariantConfig)).body
    lines = cls.body  # type: ignore[attr-defined]
    meanings = {
        one.target.id: ast.literal_eval(other.value)
        for one, other in pairwise(lines)
        if isinstance(one, ast.AnnAssign)
    }
    for name in BY_ATTENTION:
        readers = ", ".join(attention for attention, row in ATTENTIONS.items() if name in row.reads)
        assert meanings[name].startswith(f"{readers}: "), (
            f"config/schema_variant.py: {name} is read by {readers}"
        )


def test_settings_that_hang_on_several_parts() -> None:
    assert "rope_theta has no effect" in refusal(rope_theta=10.0)
    validate(variant(positions="rope", rope_theta=10.0))
    assert "intermediate_size has no effect" in refusal(experts="topk", intermediate_size=40)
    validate(variant(experts="topk", first_k_dense_replace=1, intermediate_size=40))
    kimi = {"attention": "mla", "positions": "rope", "norm": "rmsnorm", "feed_forward": "swiglu"}
    assert "bias has no effect" in refusal(**kimi, bias=True)
    for part, other in (("attention", "mha"), ("norm", "layernorm"), ("feed_forward", "gelu")):
        validate(variant(**{**kimi, part: other}, bias=True))


def test_a_plugged_part_may_read_every_setting_of_its_slot() -> None:
    mine = {name: CHANGED[name] for name in BY_EXPERTS} | {"num_experts_per_tok": 3}
    validate(variant(experts="mine.py:Layer", **mine, intermediate_size=40))
    validate(variant(attention="mine.py:Attend", num_latents=3, num_key_value_heads=2))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"attention": "mqa"}, "expected one of mha, gqa, mla, latent, or FILE.py:NAME with --plugin"),
        ({"experts": "expert-choice"}, "expected one of none, soft, topk, sigmoid-bias, expert_choice"),
        ({"attention": "mine.py"}, "FILE.py:NAME"),
        ({"attention": "mine.py:not a name"}, "FILE.py:NAME"),
        ({"attention": "mla"}, "positions rope"),
        ({"attention": "latent", "positions": "rope"}, "positions rope does not fit"),
        ({"num_attention_heads": 3}, "does not divide into num_attention_heads 3"),
        ({"attention": "gqa", "num_key_value_heads": 3}, "does not divide into num_key_value_heads 3"),
        ({"attention": "gqa", "hidden_size": 96, "num_attention_heads": 3}, "has no half"),
        ({"positions": "rope", "hidden_size": 36}, "even number"),
        ({"attention": "mla", "positions": "rope", "qk_rope_head_dim": 7}, "even number"),
        ({"experts": "topk", "num_experts_per_tok": 9}, "above n_routed_experts 8"),
        ({"experts": "expert_choice", "capacity_factor": 8.5}, "above n_routed_experts 8"),
        ({"experts": "topk", "aux_loss_alpha": -1.0}, "0 or more"),
        ({"dropout": 1.0}, "below 1"),
        ({"max_position_embeddings": 3}, "below train.context_length"),
        ({"hidden_size": 1 << 20, "num_hidden_layers": 1000}, "billion parameters"),
        ({"num_latents": 1 << 30, "attention": "latent"}, "at most"),
        ({"num_hidden_layers": 0}, "above 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: dict[str, Any], part: str) -> None:
    message = refusal(**changes)
    assert part in message and "variant.model" in message


@pytest.mark.parametrize(
    ("model", "setting", "value"),
    [
        ({}, "router", "adamw"),
        ({}, "router_bias_update_speed", 0.1),
        ({"experts": "topk"}, "router_bias_update_speed", 0.1),
        ({"attention": "gqa"}, "split_heads", True),
    ],
)
def test_the_optimizers_settings_for_parts_that_are_not_there_are_refused(
    model: dict[str, Any], setting: str, value: object
) -> None:
    config = variant(**model)
    optim = replace(config.variant.optim, **{"name": "muon", setting: value})
    with pytest.raises(UserError, match=rf"variant\.optim\.{setting} has no effect"):
        validate(replace(config, variant=replace(config.variant, optim=optim)))


def test_a_variant_is_resolved_saved_and_read_back(tmp_path: Path) -> None:
    config = replace(variant(attention="latent", num_latents=3, dropout=0.1), model="variant")
    assert config.family is config.variant and list(config.families) == list(FAMILIES)
    whole = resolve(config, vocab_size=61, device="cpu", dtype="fp32", threads=1)
    assert whole.variant.model.vocab_size == 61
    assert whole.variant.model.max_position_embeddings == config.train.context_length
    save_config(whole, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml")) == whole and is_resolved(whole)


def test_a_run_saved_before_there_were_variants_is_still_resolved(tmp_path: Path) -> None:
    import yaml

    whole = resolve(load_config("smoke"), vocab_size=61, device="cpu", dtype="fp32", threads=1)
    path = tmp_path / "config.yaml"
    save_config(whole, path)
    content = yaml.safe_load(path.read_text())
    del content["variant"], content["arms"]
    path.write_text(yaml.safe_dump(content))
    assert is_resolved(load_config(str(path)))
    assert not is_resolved(load_config(str(path), ["--model", "variant"]))
