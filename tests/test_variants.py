"""The composable model: its end points are NanoGPT and NanoKimi, and every combination of parts behaves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import AS_KIMI, TINY_GPT, TINY_KIMI, TINY_VARIANT
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import GPTConfig, VariantConfig, variant_parts
from nanokimi.generation.engine import generate
from nanokimi.measure.audit import audit
from nanokimi.model.build import build_model
from nanokimi.model.cache import Cache
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.variants.variant import Variant

ATTENTIONS: dict[str, dict[str, Any]] = {
    "mha": {},
    "mha rope": {"positions": "rope"},
    "mha bias": {"bias": True},
    "gqa": {"attention": "gqa", "num_key_value_heads": 2},
    "gqa rope": {"attention": "gqa", "num_key_value_heads": 1, "positions": "rope", "bias": True},
    "mla": {"attention": "mla", "positions": "rope"},
    "mla q": {"attention": "mla", "positions": "rope", "q_lora_rank": 12, "norm": "rmsnorm"},
    "mha narrow": {"head_dim": 12, "bias": True, "qkv_bias": False},
    "latent": {"attention": "latent"},
    "latent narrow": {"attention": "latent", "head_dim": 10, "qkv_bias": True},
    "latent bias": {"attention": "latent", "bias": True, "num_latents": 5},
}
FEEDS: dict[str, dict[str, Any]] = {
    **{form: {"feed_forward": form} for form in ("gelu", "relu", "relu2", "swiglu")},
    "relu head bias": {"feed_forward": "relu", "lm_head_bias": True},
    "soft": {"experts": "soft"},
    "soft swiglu shared": {"experts": "soft", "feed_forward": "swiglu", "n_shared_experts": 1},
    "topk": {"experts": "topk", "aux_loss_alpha": 0.01},
    "topk swiglu": {"experts": "topk", "feed_forward": "swiglu", "n_shared_experts": 2},
    "topk raw": {"experts": "topk", "norm_topk_prob": False, "routed_scaling_factor": 3.0},
    "sigmoid-bias": {"experts": "sigmoid-bias", "feed_forward": "swiglu", "first_k_dense_replace": 1},
    "sigmoid-bias relu2": {"experts": "sigmoid-bias", "feed_forward": "relu2", "n_shared_experts": 1},
}
CHOICE = {"experts": "expert_choice"}
PARTS = {**ATTENTIONS, **FEEDS}


def test_every_attention_and_mixture_is_tried_here() -> None:
    """ATTENTIONS and FEEDS above are what the tests of parts, costs and caches run over."""
    tried = {changes.get("attention", "mha") for changes in ATTENTIONS.values()}
    tried |= {changes.get("experts", "none") for changes in (*FEEDS.values(), CHOICE)}
    for name in (*variant_parts.ATTENTIONS, *variant_parts.EXPERTS):
        assert name in tried, (
            f"{name} is in config/variant_parts.py: add settings of it to ATTENTIONS or FEEDS here"
        )


def variant(**changes: Any) -> VariantConfig:
    return replace(TINY_VARIANT, **changes)


def some_ids(rows: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(model: torch.nn.Module, size: float = 0.3) -> Any:
    """The model with weights far from their initial ones, biases and norm gains included."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    for name, buffer in model.named_buffers():
        if "bias" in name:
            buffer += 0.2 * torch.randn(buffer.shape, generator=generator).to(buffer.dtype)
    return model


# ---- the end points


def weights_from_gpt(gpt: NanoGPT) -> dict[str, torch.Tensor]:
    """NanoGPT's weights under a variant's names."""
    weights = {"model.embed_positions.weight": gpt.transformer.wpe.weight}
    for name, value in gpt.state_dict().items():
        layer = name.split(".")[2] if name.startswith("transformer.h.") else ""
        kind = name.rpartition(".")[2]
        here = f"model.layers.{layer}"
        if ".c_attn." in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                weights[f"{here}.self_attn.{part}_proj.{kind}"] = rows
            continue
        renamed = {
            "transformer.wte": "model.embed_tokens",
            "transformer.wpe": "model.embed_positions",
            "transformer.ln_f": "model.norm",
            f"transformer.h.{layer}.ln_1": f"{here}.input_layernorm",
            f"transformer.h.{layer}.ln_2": f"{here}.post_attention_layernorm",
            f"transformer.h.{layer}.attn.c_proj": f"{here}.self_attn.o_proj",
            f"transformer.h.{layer}.mlp.c_fc": f"{here}.mlp.up_proj",
            f"transformer.h.{layer}.mlp.c_proj": f"{here}.mlp.down_proj",
        }
        stem = name.rpartition(".")[0]
        weights[f"{renamed.get(stem, stem)}.{kind}"] = value
    return weights


GPT_AS_VARIANT = replace(
    VariantConfig(), vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_the_defaults_are_nanogpt(bias: bool, eps: float) -> None:
    config = replace(TINY_GPT, bias=bias, layer_norm_epsilon=eps)
    gpt = shaken(NanoGPT(config))
    mine = Variant(replace(GPT_AS_VARIANT, max_position_embeddings=32, bias=bias, norm_eps=eps))
    mine.load_state_dict(weights_from_gpt(gpt))
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in gpt.parameters())
    ids = some_ids()
    ours, theirs = mine(ids, want_max_logits=True), gpt(ids, want_max_logits=True)
    torch.testing.assert_close(ours.logits_BTW, theirs.logits_BTW, rtol=1e-6, atol=1e-6 * 20)
    torch.testing.assert_close(ours.max_logits_LH, theirs.max_logits_LH, rtol=1e-6, atol=1e-6)
    for output in (ours, theirs):
        F.cross_entropy(output.logits_BTW.flatten(0, 1), ids.flatten()).backward()
    gradients = {name: p.grad for name, p in gpt.named_parameters()}
    gpt.load_state_dict({name: gradients.get(name, gpt.lm_head.weight.grad) for name in gpt.state_dict()})
    for name, expected in weights_from_gpt(gpt).items():
        mine_grad = mine.get_parameter(name).grad
        torch.testing.assert_close(mine_grad, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_in_float64_the_defaults_are_nanogpt_to_the_last_digits() -> None:
    gpt = shaken(NanoGPT(TINY_GPT)).double()
    mine = Variant(replace(GPT_AS_VARIANT, max_position_embeddings=32)).double()
    mine.load_state_dict(weights_from_gpt(gpt))
    difference = mine(some_ids()).logits_BTW - gpt(some_ids()).logits_BTW
    assert difference.abs().max() < 1e-12


def test_untouched_settings_have_nanogpts_sizes_and_initial_spread() -> None:
    ours, theirs = VariantConfig(), GPTConfig()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "dropout", "bias"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.norm_eps == theirs.layer_norm_epsilon
    sizes = {"vocab_size": 61, "max_position_embeddings": 32}
    mine, gpt = Variant(replace(ours, **sizes)), NanoGPT(replace(theirs, **sizes))
    for name, expected in weights_from_gpt(gpt).items():
        found = mine.state_dict()[name]
        assert found.shape == expected.shape
        assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.1, abs=1e-9)
        assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=2e-3)


def test_with_kimis_parts_it_is_nanokimi_bit_for_bit() -> None:
    kimi = shaken(NanoKimi(replace(TINY_KIMI, q_lora_rank=12)), 0.05)
    mine = Variant(replace(AS_KIMI, q_lora_rank=12))
    mine.load_state_dict(kimi.state_dict())  # the names are the same
    ids = some_ids()
    ours, theirs = mine(ids, want_max_logits=True), kimi(ids, want_max_logits=True)
    assert torch.equal(ours.logits_BTW, theirs.logits_BTW)
    assert torch.equal(ours.aux_loss, theirs.aux_loss)
    assert torch.equal(ours.max_logits_LH, theirs.max_logits_LH)
    for first, second in zip(ours.routing, theirs.routing, strict=True):
        assert torch.equal(first.counts_E, second.counts_E)
    for output in (ours, theirs):
        (F.cross_entropy(output.logits_BTW.flatten(0, 1), ids.flatten()) + output.aux_loss).backward()
    for (name, mine_p), (other, kimi_p) in zip(mine.named_parameters(), kimi.named_parameters(), strict=True):
        assert name == other and torch.equal(mine_p.grad, kimi_p.grad), name


def test_with_kimis_parts_the_same_seed_gives_nanokimis_initial_weights() -> None:
    mine, kimi = build_model(AS_KIMI, 5).state_dict(), build_model(TINY_KIMI, 5).state_dict()
    assert mine.keys() == kimi.keys()
    for name, value in mine.items():
        assert float(value.float().std()) == pytest.approx(float(kimi[name].float().std()), rel=0.15), name


# ---- every part


@pytest.mark.parametrize("name", PARTS)
def test_no_part_reads_the_future_or_another_row(name: str) -> None:
    layers = 1 + PARTS[name].get("first_k_dense_replace", 0)
    model = shaken(build_model(variant(**PARTS[name], num_hidden_layers=layers, dropout=0.1), 0)).double()
    result = audit(model, vocab_size=61, context=40, batch_size=8, max_cuts=8)
    assert result.causal, result.where
    model.eval()  # the audit measures in fp32, where other tokens may move a sum's order; in float64 nothing shows
    ids, other = some_ids(2, 40), some_ids(2, 40, seed=9)
    for cut in (1, 13, 39):
        mixed = torch.cat((torch.cat((ids[:1, :cut], other[:1, cut:]), dim=1), other[1:]))
        before, after = (model(given).logits_BTW[0, :cut] for given in (ids, mixed))
        torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shared", [0, 1])
def test_the_audit_catches_expert_choice(shared: int) -> None:
    """At its initial weights, as a run would begin."""
    model = build_model(variant(**CHOICE, n_shared_experts=shared), 0)
    result = audit(model, vocab_size=61, context=16)
    assert not result.causal and result.where is not None and "sees" in result.where


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("cuts", [(1,), (33,), (5, 6, 7, 40), tuple(range(1, 44))], ids=str)
def test_reading_in_pieces_with_a_cache_gives_the_same_logits(name: str, cuts: tuple[int, ...]) -> None:
    """Prefill, prefill that goes on, and token by token, across the borders of latent attention's chunks."""
    model = shaken(build_model(variant(**PARTS[name]), 0), 0.1).double().eval()
    ids = some_ids(2, 44)
    whole, cache, found = model(ids).logits_BTW, Cache(2, 44), []
    for start, end in zip((0, *cuts), (*cuts, 44), strict=True):
        found.append(model(ids[:, start:end], cache).logits_BTW)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*ATTENTIONS, "topk", "soft", "sigmoid-bias relu2"])
def test_writing_with_and_without_a_cache_gives_the_same_tokens(name: str) -> None:
    model = shaken(build_model(variant(**PARTS[name]), 0), 0.2)
    assert model.can_cache
    cached, plain = (
        list(generate(model, [1, 2, 3], 60, temperature=0.9, seed=4, use_cache=use)) for use in (True, False)
    )
    assert cached == plain and len(set(cached)) > 3


def test_expert_choice_writes_without_a_cache() -> None:
    """Token by token it would be another function than the one trained."""
    model = shaken(build_model(variant(**CHOICE), 0), 0.2)
    assert not model.can_cache
    cached, plain = (
        list(generate(model, [1, 2, 3], 30, temperature=0.9, seed=4, use_cache=use)) for use in (True, False)
    )
    assert cached == plain


@pytest.mark.parametrize("name", [*PARTS, "choice"])
def test_the_same_seed_gives_the_same_numbers_and_recomputing_changes_none(name: str) -> None:
    config = variant(**({**PARTS, "choice": CHOICE}[name]), dropout=0.2)
    results = []
    for recompute in (False, False, True):
        model = build_model(config, 3).train()
        model.activation_checkpointing = recompute
        torch.manual_seed(0)
        output = model(some_ids())
        loss = output.logits_BTW.square().mean() + (0 if output.aux_loss is None else output.aux_loss)
        loss.backward()
        results.append([output.logits_BTW, *(p.grad for p in model.parameters())])
    for first, second, third in zip(*results, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


@pytest.mark.parametrize("name", [*PARTS, "choice"])
def test_every_parameter_is_initialised_and_learns(name: str) -> None:
    config = variant(**({**PARTS, "choice": CHOICE}[name]))
    model = build_model(config, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    output = model(some_ids())
    loss = F.cross_entropy(output.logits_BTW.flatten(0, 1), some_ids(seed=1).flatten())
    assert float(loss.detach()) == pytest.approx(math.log(61), rel=0.02)
    (loss + (0 if output.aux_loss is None else output.aux_loss)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", [*ATTENTIONS, "topk swiglu", "soft"])
def test_residual_outputs_start_smaller_unless_the_initialization_is_flat(name: str) -> None:
    scaled, flat = (
        build_model(
            variant(**PARTS[name], hidden_size=64, num_hidden_layers=8, initialization=kind), 0
        ).state_dict()
        for kind in ("gpt2", "flat")
    )
    for key, value in scaled.items():
        if value.dim() < 2 or key.endswith("latents"):
            continue
        small = "o_proj" in key or "down_proj" in key
        assert float(flat[key].std()) == pytest.approx(0.02, rel=0.15), key
        assert float(value.std()) == pytest.approx(0.02 / 4 if small else 0.02, rel=0.15), key


@pytest.mark.parametrize("name", [*PARTS, "choice"])
def test_it_trains_in_bf16(name: str) -> None:
    model = build_model(variant(**({**PARTS, "choice": CHOICE}[name])), 0)
    wide = model(some_ids(), want_max_logits=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(some_ids(), want_max_logits=True)
    error = (narrow.logits_BTW.float() - wide.logits_BTW).norm() / wide.logits_BTW.norm()
    assert error < 0.05  # a near-tie of a router may fall the other way
    assert narrow.max_logits_LH.dtype == torch.float32
    narrow.logits_BTW.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_one_batch_can_be_learnt_by_heart_by_every_attention() -> None:
    ids = some_ids(2, 16)
    for name, changes in ATTENTIONS.items():
        model = build_model(variant(**changes, num_hidden_layers=1), 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(80):
            loss = F.cross_entropy(model(ids[:, :-1]).logits_BTW.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.3, name


@settings(max_examples=15, deadline=None)
@given(
    attention=st.sampled_from(list(ATTENTIONS)),
    feed=st.sampled_from(list(FEEDS)),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    tied=st.booleans(),
    dense=st.integers(0, 3),
    cut=st.integers(1, 39),
)
def test_any_combination_is_causal_and_caches(
    attention: str, feed: str, norm: Any, tied: bool, dense: int, cut: int
) -> None:
    parts = {**ATTENTIONS[attention], **FEEDS[feed], "norm": norm, "tie_word_embeddings": tied}
    model = shaken(build_model(variant(**{**parts, "first_k_dense_replace": dense}), 0), 0.1).double().eval()
    ids, other = some_ids(2, 40), some_ids(2, 40, seed=9)
    whole, cache = model(ids).logits_BTW, Cache(2, 40)
    changed = model(torch.cat((ids[:, :cut], other[:, cut:]), dim=1)).logits_BTW
    torch.testing.assert_close(changed[:, :cut], whole[:, :cut], rtol=1e-11, atol=1e-11)
    pieces = [model(ids[:, :cut], cache).logits_BTW, model(ids[:, cut:], cache).logits_BTW]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-9)
