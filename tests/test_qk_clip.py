"""QK-Clip: after the step, the same inputs give at most tau; nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_GPT, TINY_KIMI, TINY_VARIANT
from torch import nn

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig
from nanokimi.model.attention import MultiHeadLatentAttention
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.model.gpt import CausalSelfAttention
from nanokimi.model.layers import rotate
from nanokimi.optim.build import build_optimizer
from nanokimi.optim.groups import muon_groups
from nanokimi.optim.qk_clip import MuonClip, ShampooClip, qk_clip_
from nanokimi.optim.rms_logits import rms_logits

CONFIGS: dict[str, KimiConfig | GPTConfig] = {
    "nanokimi": replace(TINY_KIMI, num_attention_heads=4),
    "nanokimi with query latent": replace(TINY_KIMI, num_attention_heads=4, q_lora_rank=12, v_head_dim=20),
    "nanogpt": replace(TINY_GPT, num_attention_heads=4),
    "nanogpt with bias": replace(TINY_GPT, num_attention_heads=4, bias=True),
}
IDS = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(5))


def query_rows(attention: nn.Module, head: int) -> list[tuple[str, slice]]:
    """Names and rows of all weights that belong to a head's queries and keys alone."""
    if isinstance(attention, CausalSelfAttention):
        X = attention.c_attn.in_features // attention.num_heads
        D = attention.c_attn.in_features
        slices = [slice(part + head * X, part + head * X + X) for part in (0, D)]
        names = ["c_attn.weight"] + ["c_attn.bias"] * (attention.c_attn.bias is not None)
        return [(name, rows) for name in names for rows in slices]
    assert isinstance(attention, MultiHeadLatentAttention)
    X = attention.nope_dim + attention.rope_dim
    Y = attention.nope_dim + attention.value_dim
    name = "q_proj.weight" if hasattr(attention, "q_proj") else "q_b_proj.weight"
    return [
        (name, slice(head * X, head * X + X)),
        ("kv_b_proj.weight", slice(head * Y, head * Y + attention.nope_dim)),
    ]


def driven(name: str, target: float = 500.0) -> LanguageModel:
    """A model in which the first two heads of each layer reach `target`, and the others a few units."""
    model = build_model(replace(CONFIGS[name], initializer_range=0.1), 0)
    if name == "nanogpt with bias":
        for attention in model.attentions():
            nn.init.normal_(attention.c_attn.bias, std=0.5)
    for layer, attention in enumerate(model.attentions()):  # a layer's logits depend on the layers before it
        before = model(IDS, want_max_logits=True).max_logits_LH[layer]
        assert (before > 0).all()
        wanted = torch.tensor([target, 1.3 * target, 3.0, 7.0])
        attention.rescale_heads_(wanted / before)
    return model


def optimizer_for(model: LanguageModel, tau: float) -> MuonClip:
    return MuonClip(
        muon_groups(model.named_parameters()),
        lr=0.0,
        attentions=model.attentions(),
        tau=tau,
        weight_decay=0.0,
    )


def clipped(name: str, tau: float) -> tuple[LanguageModel, dict[str, torch.Tensor], torch.Tensor, MuonClip]:
    """A driven model after one step at rate 0; its weights and its largest logits before; the optimizer."""
    model = driven(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    output = model(IDS, want_max_logits=True)
    F.cross_entropy(output.logits_BTW[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    optimizer = optimizer_for(model, tau)
    optimizer.step(max_logits_LH=output.max_logits_LH)
    return model, before, output.max_logits_LH, optimizer


@pytest.mark.parametrize("name", CONFIGS)
def test_the_driven_model_is_what_the_tests_need(name: str) -> None:
    largest = driven(name)(IDS, want_max_logits=True).max_logits_LH
    expected = torch.tensor([[500.0, 650.0, 3.0, 7.0]] * 2)
    torch.testing.assert_close(largest, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_clipped_heads_land_at_tau_in_every_layer(name: str) -> None:
    """Layer by layer on the inputs that the step saw: clipping one layer changes what the next one gets."""
    tau = 100.0
    model, before, largest, optimizer = clipped(name, tau)
    assert optimizer.heads_clipped == 4
    for layer, attention in enumerate(model.attentions()):
        reference = build_model(model.config, 0)
        reference.load_state_dict({**model.state_dict(), **before})
        prefix = [key for key, module in model.named_modules() if module is attention][0] + "."
        own = {key: p for key, p in model.state_dict().items() if key.startswith(prefix)}
        reference.load_state_dict({**reference.state_dict(), **own})
        after = reference(IDS, want_max_logits=True).max_logits_LH[layer]
        assert (after <= tau * (1 + 1e-5)).all()
        torch.testing.assert_close(after[:2], torch.tensor([tau, tau]), rtol=1e-5, atol=0)
        torch.testing.assert_close(after[2:], largest[layer, 2:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_first_layer_lands_at_tau_on_the_same_inputs(name: str) -> None:
    model, *_ = clipped(name, 60.0)
    after = model(IDS, want_max_logits=True).max_logits_LH[0]
    torch.testing.assert_close(after, torch.tensor([60.0, 60.0, 3.0, 7.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("logits", ["exact", "rms"])
@pytest.mark.parametrize("attention", ["mha", "gqa", "mla"])
def test_muonclip_clips_each_kind_of_attention(attention: str, logits: str) -> None:
    """By the exact logits or by the estimate: what was looked at ends at tau, in the first layer on the same inputs."""
    config = replace(TINY_VARIANT, attention=attention, positions="rope", initializer_range=0.3)
    if attention == "gqa":
        config = replace(config, num_attention_heads=4, num_key_value_heads=2)
    model = build_model(config, 0)

    def looked_at() -> torch.Tensor:
        return model(IDS, want_max_logits=True).max_logits_LH if logits == "exact" else rms_logits(model)

    before = looked_at()
    tau = 0.9 * float(before[0].min())
    optim = OptimConfig(name="muonclip", lr=1e-12, weight_decay=0.0, qk_clip_tau=tau, qk_clip_logits=logits)
    optimizer = build_optimizer(model, optim, config.num_attention_heads)
    model(IDS).logits_BTW.square().mean().backward()
    optimizer.step(max_logits_LH=before if logits == "exact" else None)
    assert isinstance(optimizer, MuonClip) and optimizer.heads_clipped == int((before > tau).sum())
    torch.testing.assert_close(looked_at()[0], torch.full_like(before[0], tau), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_rows_of_clipped_heads_change(name: str) -> None:
    """Bit for bit: other heads, values, latents, the shared rotary key, output projections, everything else."""
    model, before, *_ = clipped(name, 100.0)
    attentions = {key: module for key, module in model.named_modules() if module in set(model.attentions())}
    may_change = {key: torch.zeros(len(p), dtype=torch.bool) for key, p in before.items()}
    for prefix, attention in attentions.items():
        for head in (0, 1):
            for key, rows in query_rows(attention, head):
                may_change[f"{prefix}.{key}"][rows] = True
    assert sum(int(rows.any()) for rows in may_change.values()) >= 2
    for key, p in model.named_parameters():
        same = (p == before[key]).flatten(1).all(dim=1) if p.dim() > 1 else p == before[key]
        assert torch.equal(same, ~may_change[key]), key


@pytest.mark.parametrize("query_latent", [None, 12])
def test_both_score_parts_of_mla_scale_by_gamma(query_latent: int | None) -> None:
    config = replace(TINY_KIMI, num_attention_heads=3, q_lora_rank=query_latent)
    model = build_model(replace(config, initializer_range=0.3), 0).double()
    attention = model.attentions()[0]
    x = torch.randn(1, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = model.model.rotary(0, 6)

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        low = x if query_latent is None else attention.q_a_layernorm(attention.q_a_proj(x))
        q_nope, q_rope = attention.q_up_proj(low).unflatten(-1, (3, -1)).split([16, 8], dim=-1)
        latent, key = attention.kv_a_proj_with_mqa(x).split([16, 8], dim=-1)
        k_nope = attention.kv_b_proj(attention.kv_a_layernorm(latent)).unflatten(-1, (3, -1))[..., :16]
        rotary = torch.einsum("bthr,bsr->hts", rotate(q_rope, *angles), rotate(key, *angles))
        return torch.einsum("bthn,bshn->hts", q_nope, k_nope), rotary

    nope, rope = parts()
    gamma = torch.tensor([0.2, 1.0, 0.7], dtype=torch.float64)
    attention.rescale_heads_(gamma)
    for before, after in zip((nope, rope), parts(), strict=True):
        torch.testing.assert_close(after, before * gamma[:, None, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_scores_of_gpt_scale_by_gamma(bias: bool) -> None:
    attention = build_model(replace(TINY_GPT, bias=bias, initializer_range=0.3), 0).attentions()[0].double()
    if bias:
        nn.init.normal_(attention.c_attn.bias)
    x = torch.randn(1, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = attention.c_attn(x).unflatten(-1, (3, 2, -1)).unbind(2)
        return torch.einsum("bthx,bshx->hts", q, k), v

    scores, values = parts()
    gamma = torch.tensor([0.2, 1.0], dtype=torch.float64)
    attention.rescale_heads_(gamma)
    after, same_values = parts()
    torch.testing.assert_close(after, scores * gamma[:, None, None], rtol=1e-12, atol=1e-12)
    assert torch.equal(values, same_values)


def test_clip_follows_the_update_of_the_step() -> None:
    """Muon moves the weights first, then the clip scales what it left: the weights equal Muon's times the factor."""
    model, plain = driven("nanogpt"), driven("nanogpt")
    output = model(IDS, want_max_logits=True)
    for m in (model, plain):
        F.cross_entropy(m(IDS).logits_BTW[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    MuonClip(muon_groups(model.named_parameters()), lr=1e-2, attentions=model.attentions(), tau=100.0).step(
        max_logits_LH=output.max_logits_LH
    )
    MuonClip(muon_groups(plain.named_parameters()), lr=1e-2, attentions=plain.attentions(), tau=1e9).step(
        max_logits_LH=output.max_logits_LH
    )
    ours, theirs = (m.attentions()[0].c_attn.weight[:8] for m in (model, plain))
    torch.testing.assert_close(ours, theirs * 0.2**0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logits", ["exact", "rms"])
def test_shampooclip_is_shampoo_and_then_qk_clip(logits: Literal["exact", "rms"]) -> None:
    """By the logits before the update, whether they are the step's own or an estimate from the weights."""
    ends = []
    for name in ("shampooclip", "shampoo"):
        model = build_model(replace(CONFIGS["nanokimi"], initializer_range=0.1), 0)
        optim = OptimConfig(name=name, lr=1e-2, handover_steps=2)
        if optim.clips:
            optim = replace(optim, qk_clip_tau=0.01, qk_clip_logits=logits)
        optimizer = build_optimizer(model, optim, 4)
        output = model(IDS, want_max_logits=True)
        seen_LH = rms_logits(model) if logits == "rms" else output.max_logits_LH
        F.cross_entropy(output.logits_BTW.flatten(0, 1), IDS.flatten()).backward()
        if isinstance(optimizer, ShampooClip):
            assert optimizer.needs_logits == (logits == "exact")
            optimizer.step(max_logits_LH=output.max_logits_LH)
            assert int(optimizer.heads_clipped) == 8
        else:
            optimizer.step()
            qk_clip_(model.attentions(), seen_LH, 0.01)
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


@pytest.mark.parametrize("name", ["nanokimi", "nanogpt"])
def test_nothing_changes_below_tau(name: str) -> None:
    model, before, _, optimizer = clipped(name, 651.0)
    assert optimizer.heads_clipped == 0
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_negative_and_zero_logits_are_left_alone() -> None:
    """tau / S is negative or infinite there."""
    attention = build_model(CONFIGS["nanogpt"], 0).attentions()[0]
    before = attention.c_attn.weight.detach().clone()
    count = qk_clip_([attention], torch.tensor([[-500.0, -1.0, 0.0, 99.9]]), 100.0)
    assert count == 0 and torch.equal(attention.c_attn.weight, before)


def test_heads_clipped_counts_over_all_layers() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.gamma: list[float] = []

        def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
            self.gamma = gamma_H.tolist()

    recorders = [Recorder(), Recorder()]
    largest = [torch.tensor([400.0, 100.0, 50.0]), torch.tensor([200.0, 125.0])]  # layers may differ in heads
    assert qk_clip_(recorders, largest, 100.0) == 3
    assert recorders[0].gamma == pytest.approx([0.25, 1.0, 1.0])
    assert recorders[1].gamma == pytest.approx([0.5, 0.8])


def test_missing_logits_and_impossible_tau_are_refused() -> None:
    model = driven("nanogpt")
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    model(IDS).logits_BTW.sum().backward()
    optimizer = optimizer_for(model, 100.0)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    with pytest.raises(ValueError, match="needs max_logits_LH"):
        optimizer.step()
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    with pytest.raises(ValueError, match="tau is 0"):
        optimizer_for(model, 0.0)
    with pytest.raises(ValueError):  # one layer's logits for two layers
        optimizer.step(max_logits_LH=torch.ones(1, 4))


class ForeignAttention(nn.Module):
    """A user's attention, with its own names and its own split into heads."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = (project(x).unflatten(-1, (2, 4)).transpose(0, 1) for project in (self.to_q, self.to_k))
        logits = (q @ k.mT).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
        return (logits.softmax(-1) @ k).sum(0), logits.detach().amax(dim=(1, 2))

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        self.to_q.weight.mul_(gamma_H.repeat_interleave(4)[:, None])


def test_works_with_a_foreign_attention() -> None:
    torch.manual_seed(0)
    attention: Callable[..., tuple[torch.Tensor, torch.Tensor]] = ForeignAttention()
    x = 40 * torch.randn(10, 8)
    out, largest = attention(x)
    assert (largest > 50).all()
    out.sum().backward()
    optimizer = MuonClip(attention.parameters(), lr=0.0, attentions=[attention], tau=50.0)
    optimizer.step(max_logits_LH=[largest])
    torch.testing.assert_close(attention(x)[1], torch.tensor([50.0, 50.0]), rtol=1e-5, atol=0)
    assert optimizer.heads_clipped == 2
