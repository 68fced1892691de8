"""A variant's costs from its configuration alone equal costs that are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import AS_KIMI, TINY_GPT, TINY_KIMI
from test_variants import ATTENTIONS, CHOICE, FEEDS, GPT_AS_VARIANT, variant
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanokimi.config import OptimConfig, TrainConfig, VariantConfig
from nanokimi.measure.cost import model_cost, optimizer_flops
from nanokimi.model.build import build_model
from nanokimi.model.cache import Cache
from nanokimi.optim.build import build_optimizer
from nanokimi.runtime.plugins import forget_plugins, name_plugin

PARTS = {**ATTENTIONS, **FEEDS, "choice": CHOICE}
CONFIGS: dict[str, VariantConfig] = {
    **{name: variant(**changes) for name, changes in PARTS.items()},
    "untied rmsnorm": variant(norm="rmsnorm", tie_word_embeddings=False, num_hidden_layers=3),
    "latent and soft": variant(
        attention="latent", experts="soft", first_k_dense_replace=1, intermediate_size=40
    ),
    "as kimi": AS_KIMI,
}
EXAMPLE = Path(__file__).parent.parent / "examples" / "sliding_window.py"


@pytest.fixture
def plugged() -> Iterator[VariantConfig]:
    """The worked example's parts."""
    names = [name_plugin(f"{EXAMPLE}:{name}").name for name in ("SlidingWindowAttention", "SwishLayer")]
    yield variant(attention=names[0], experts=names[1], first_k_dense_replace=1)
    forget_plugins()


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    """Active ones are counted by name: matrices, without look-up tables; of the experts those that a token meets."""
    config = CONFIGS[name]
    model, cost = build_model(config, 0), model_cost(config, 32)
    assert cost.params_total == sum(p.numel() for p in model.parameters())
    met = {"soft": config.n_routed_experts, "expert_choice": config.capacity_factor}
    active = 0.0
    for key, p in model.named_parameters():
        looked_up = key == "model.embed_positions.weight" or (
            key == "model.embed_tokens.weight" and not config.tie_word_embeddings
        )
        if p.dim() < 2 or looked_up:
            continue
        share = met.get(config.experts, config.num_experts_per_tok) / config.n_routed_experts
        active += p.numel() * (share if ".experts." in key else 1)
    assert cost.params_active == active


def test_the_end_points_cost_what_the_textbook_models_do() -> None:
    assert model_cost(AS_KIMI, 20) == model_cost(TINY_KIMI, 20)
    gpt = replace(GPT_AS_VARIANT, max_position_embeddings=32)
    for bias in (False, True):
        ours, theirs = replace(gpt, bias=bias), replace(TINY_GPT, bias=bias)
        assert model_cost(ours, 20) == model_cost(theirs, 20)
        assert model_cost(ours, 20, causal=False) == model_cost(theirs, 20, causal=False)


@pytest.mark.parametrize("length", [1, 8, 40])
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_without_mask_are_those_torch_counts(name: str, length: int) -> None:
    """Looped experts (torch cannot count grouped ones), dense attention, values as wide as keys (no padding)."""
    config = CONFIGS[name]
    config = replace(config, moe_intermediate_size=10, v_head_dim=24, max_position_embeddings=40)
    model = build_model(config, 0)
    ids = torch.zeros(4, length, dtype=torch.int64)
    ids.random_(61, generator=torch.Generator().manual_seed(0))
    cost = model_cost(config, length, causal=False)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            output = model(ids)
        with FlopCounterMode(display=False) as backward:
            output.logits_BTW.square().mean().backward()
    assert forward.get_total_flops() == pytest.approx(cost.forward_flops_per_token * ids.numel(), rel=1e-12)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(cost.train_flops_per_token * ids.numel(), rel=1e-12)


@pytest.mark.parametrize("length", [1, 31, 33, 70])
def test_causal_flops_of_pooling_count_the_pairs_within_a_chunk(length: int) -> None:
    """Position by position: values taken in again since the chunk began, then reading, for every latent."""
    config = variant(attention="latent", max_position_embeddings=100)
    pairs = sum(position % 32 + 1 for position in range(length))
    total = config.num_hidden_layers * config.num_latents * config.hidden_size * (2 * pairs + 4 * length)
    cost = model_cost(config, length)
    assert cost.forward_flops_per_token * length == pytest.approx(2 * cost.params_active * length + total)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_cache_numbers_are_those_stored(name: str) -> None:
    config = CONFIGS[name]
    cache = Cache(config.num_hidden_layers, 8)
    build_model(config, 0)(torch.zeros(1, 3, dtype=torch.int64), cache)
    cost = model_cost(config, 32)
    assert cost.cache_numbers_per_token == sum(layer.bytes_per_token for layer in cache.layers) / 4
    assert cost.cache_numbers_fixed == sum(x.numel() for layer in cache.layers for x in layer.state)


@pytest.mark.usefixtures("muon_in_torch")
@pytest.mark.parametrize("name", CONFIGS)
def test_optimizer_flops_are_those_torch_counts(name: str) -> None:
    config = CONFIGS[name]
    model, optim = build_model(config, 0), OptimConfig(name="muon")
    optimizer = build_optimizer(model, optim, config.num_attention_heads)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    train = TrainConfig(context_length=8, batch_size=3)
    assert counter.get_total_flops() == optimizer_flops(shapes, optim, config, train) > 0


@pytest.mark.parametrize("name", ATTENTIONS)
def test_muonclip_pays_for_the_logits_that_it_looks_at(name: str) -> None:
    config, train = CONFIGS[name], TrainConfig(context_length=8, batch_size=3)
    model = build_model(config, 0)
    counts = []
    for want in (False, True):
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(3, 8, dtype=torch.int64), want_max_logits=want)
        counts.append(counter.get_total_flops())
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    muon, clip = (optimizer_flops(shapes, OptimConfig(name=n), config, train) for n in ("muon", "muonclip"))
    assert clip - muon == counts[1] - counts[0]


def test_a_plugged_part_is_counted_and_adds_what_it_states(plugged: VariantConfig) -> None:
    model, cost = build_model(plugged, 0), model_cost(plugged, 20)
    assert cost.params_total == sum(p.numel() for p in model.parameters())
    assert cost.params_active == sum(
        p.numel() for key, p in model.named_parameters() if p.dim() == 2 and "positions" not in key
    )
    seen = sum(min(t + 1, 16) for t in range(20))
    assert cost.forward_flops_per_token * 20 == pytest.approx(2 * 20 * cost.params_active + 2 * 4 * 32 * seen)
