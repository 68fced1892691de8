"""The estimate of attention logits from weights alone: right rows, right scale, how far it is from the exact ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI, TINY_VARIANT
from torch import nn

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig
from nanokimi.errors import UserError
from nanokimi.model.build import build_model
from nanokimi.model.layers import RMSNorm
from nanokimi.optim.build import build_optimizer
from nanokimi.optim.rms_logits import can_estimate, head_estimates, rms_logits

CONFIGS: dict[str, KimiConfig | GPTConfig] = {
    "nanokimi": replace(TINY_KIMI, num_attention_heads=4),
    "nanokimi with query latent": replace(TINY_KIMI, num_attention_heads=4, q_lora_rank=12, v_head_dim=20),
    "nanogpt": replace(TINY_GPT, num_attention_heads=4),
    "nanogpt with bias": replace(TINY_GPT, num_attention_heads=4, bias=True),
}
IDS = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(5))


class Grouped(nn.Module):
    """Grouped-query attention, as far as the estimate looks at it: four heads, two of keys."""

    projections: str | None = "separate"

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 4, 0.5
        self.q_proj, self.k_proj = nn.Linear(16, 4 * 6, bias=False), nn.Linear(16, 2 * 6, bias=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_lengths_are_those_of_evenly_spread_inputs(name: str) -> None:
    """Queries and keys of Gaussian inputs, through the model's own norms and projections, have the lengths taken."""
    model = build_model(CONFIGS[name], 0)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    attention, block = model.attentions()[1], None
    for module in model.modules():
        if attention in list(module.children()):
            block = module
    assert block is not None
    norm = block.ln_1 if hasattr(block, "ln_1") else block.input_layernorm
    x = torch.randn(20_000, 32, generator=generator)
    heads = 4
    if name.startswith("nanogpt"):
        q, k, _ = attention.c_attn(norm(x)).unflatten(-1, (3, heads, -1)).unbind(1)
        lengths = q.square().sum(-1).mean(0).sqrt() * k.square().sum(-1).mean(0).sqrt()
    else:
        low = x if attention.q_up_proj is getattr(attention, "q_proj", None) else None
        inputs = (
            norm(x)
            if low is not None
            else attention.q_a_layernorm(torch.randn(20_000, 12, generator=generator))
        )
        q = attention.q_up_proj(inputs).unflatten(-1, (heads, -1))
        rope = attention.kv_a_proj_with_mqa(norm(x))[:, 16:]
        latent = attention.kv_a_layernorm(torch.randn(20_000, 16, generator=generator))
        k = attention.kv_b_proj(latent).unflatten(-1, (heads, -1))[..., :16]

        def rms(v: torch.Tensor) -> torch.Tensor:
            return v.square().sum(-1).mean(0).sqrt()

        lengths = rms(q[..., :16]) * rms(k) + rms(q[..., 16:]) * rms(rope)
    torch.testing.assert_close(head_estimates(attention, norm), attention.scale * lengths, rtol=0.03, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_rescaling_a_head_rescales_its_estimate_alone(name: str) -> None:
    model = build_model(CONFIGS[name], 0)
    for attention in model.attentions():
        if getattr(getattr(attention, "c_attn", None), "bias", None) is not None:
            nn.init.normal_(attention.c_attn.bias, std=0.1)
    before = rms_logits(model)
    assert before.shape == (2, 4) and (before > 0).all()
    gamma = torch.tensor([0.25, 1.0, 3.0, 0.5])
    model.attentions()[1].rescale_heads_(gamma)
    torch.testing.assert_close(rms_logits(model), before * torch.stack([torch.ones(4), gamma]))


def test_grouped_queries_share_keys() -> None:
    attention, norm = Grouped(), RMSNorm(16, 1e-6)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    before = head_estimates(attention, norm)
    with torch.no_grad():
        attention.k_proj.weight[:6] *= 3
    ratio = head_estimates(attention, norm) / before
    torch.testing.assert_close(ratio, torch.tensor([3.0, 3.0, 1.0, 1.0]))
    q = (attention.q_proj.weight * norm.weight).unflatten(0, (4, 6))[2].norm()
    k = (attention.k_proj.weight * norm.weight).unflatten(0, (2, 6))[1].norm()
    torch.testing.assert_close(before[2], 0.5 * q * k)


@pytest.mark.parametrize("name", CONFIGS)
def test_estimates_lie_near_the_exact_logits_of_a_fresh_model(name: str) -> None:
    """Within a factor of 2.5; too high for MLA's heads of 24 numbers, in which no query finds a parallel key."""
    model = build_model(replace(CONFIGS[name], initializer_range=0.2), 0)
    exact = model(IDS, want_max_logits=True).max_logits_LH
    ratio = rms_logits(model) / exact
    assert ((0.4 < ratio) & (ratio < 2.5)).all()
    assert (float(ratio.median()) > 1) == name.startswith("nanokimi")


def test_muonclip_clips_by_the_estimate_and_needs_no_logits() -> None:
    model = build_model(replace(CONFIGS["nanokimi"], initializer_range=0.3), 0)
    estimates = rms_logits(model)
    tau = float(estimates.flatten().median())
    optim = OptimConfig(name="muonclip", lr=1e-12, weight_decay=0.0, qk_clip_tau=tau, qk_clip_logits="rms")
    optimizer = build_optimizer(model, optim, 4)
    model(IDS).logits_BTW.square().mean().backward()
    optimizer.step()
    assert not optimizer.needs_logits and optimizer.heads_clipped == int((estimates > tau).sum()) > 0
    torch.testing.assert_close(rms_logits(model), estimates.clamp_max(tau))


def test_latent_attention_is_refused_by_name_of_the_setting() -> None:
    """Its queries are learned, so the estimate says nothing of them."""
    model = build_model(replace(TINY_VARIANT, attention="latent"), 0)
    assert not can_estimate(model)
    with pytest.raises(UserError, match="qk_clip_logits rms"):
        build_optimizer(model, OptimConfig(name="muonclip", qk_clip_logits="rms"), 2)


def test_unknown_attentions_are_not_guessed() -> None:
    class Model(nn.Module):
        def __init__(self, attention: nn.Module, norm: str) -> None:
            super().__init__()
            self.block = nn.Module()
            self.block.add_module("self_attn", attention)
            self.block.add_module(norm, nn.LayerNorm(16))

        def attentions(self) -> list[nn.Module]:
            return [self.block.self_attn]

    assert can_estimate(Model(Grouped(), "input_layernorm"))
    for model in (Model(Grouped(), "other_norm"), Model(nn.Linear(16, 16), "ln_1")):
        assert not can_estimate(model)
    other = Grouped()
    other.projections = None
    with pytest.raises(ValueError, match="no query and key projections"):
        rms_logits(Model(other, "ln_1"))
