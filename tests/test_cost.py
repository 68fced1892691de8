"""Costs from the configuration alone equal costs that are counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig, TrainConfig
from nanokimi.measure.cost import model_cost, optimizer_flops
from nanokimi.model.build import build_model
from nanokimi.model.cache import Cache
from nanokimi.optim.build import build_optimizer

CONFIGS: dict[str, KimiConfig | GPTConfig] = {
    "nanokimi": TINY_KIMI,
    "query latent, two shared experts": replace(
        TINY_KIMI, q_lora_rank=12, n_shared_experts=2, num_hidden_layers=4, v_head_dim=10
    ),
    "no dense layer, no shared expert": replace(
        TINY_KIMI, first_k_dense_replace=0, n_shared_experts=0, n_routed_experts=7, num_experts_per_tok=3
    ),
    "dense layers only": replace(TINY_KIMI, first_k_dense_replace=5, num_attention_heads=3),
    "tied head": replace(TINY_KIMI, tie_word_embeddings=True),
    "nanogpt": TINY_GPT,
    "nanogpt with bias": replace(TINY_GPT, bias=True, num_hidden_layers=3, intermediate_size=50),
}
REFERENCE_KIMI = KimiConfig(
    vocab_size=8192,
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    intermediate_size=672,
    moe_intermediate_size=224,
    n_routed_experts=16,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    routed_scaling_factor=1.412,
    max_position_embeddings=256,
)
REFERENCE_GPT = GPTConfig(
    vocab_size=8192,
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=256,
)
PUBLISHED = dict(qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=512)
K2 = KimiConfig(
    vocab_size=163840,
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=64,
    q_lora_rank=1536,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=384,
    num_experts_per_tok=8,
    **PUBLISHED,
)
V3 = replace(K2, vocab_size=129280, num_attention_heads=128, n_routed_experts=256, first_k_dense_replace=3)
MOONLIGHT = KimiConfig(
    vocab_size=163840,
    hidden_size=2048,
    num_hidden_layers=27,
    num_attention_heads=16,
    intermediate_size=11264,
    moe_intermediate_size=1408,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    **PUBLISHED,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    """Active ones are counted by name: matrices, without look-up tables, K of E experts."""
    config = CONFIGS[name]
    model = build_model(config, 0)
    cost = model_cost(config, 32)
    assert cost.params_total == sum(p.numel() for p in model.parameters())
    active = 0
    for key, p in model.named_parameters():
        tied = isinstance(config, GPTConfig) or config.tie_word_embeddings
        if p.dim() < 2 or key in (
            "transformer.wpe.weight",
            *(() if tied else ("model.embed_tokens.weight",)),
        ):
            continue
        if ".experts." in key:
            assert isinstance(config, KimiConfig)
            active += p.numel() * config.num_experts_per_tok // config.n_routed_experts
        else:
            active += p.numel()  # a tied table once, as the head
    assert cost.params_active == active


def test_reference_pair() -> None:
    """Numbers of the specification, checked there against Hugging Face."""
    kimi = model_cost(REFERENCE_KIMI, 256)
    assert kimi.params_total == 26_855_168
    assert kimi.params_active == 7_892_992
    assert kimi.forward_flops_per_token == 17_101_824
    assert kimi.train_flops_per_token == 51_305_472
    assert model_cost(REFERENCE_KIMI, 256, causal=False).train_flops_per_token == 55_222_272
    assert kimi.cache_numbers_per_token == 8 * (64 + 32)
    gpt = model_cost(REFERENCE_GPT, 256)
    assert gpt.params_active == 8_388_608
    assert gpt.train_flops_per_token == 53_489_664


@pytest.mark.parametrize(
    ("config", "attention", "active", "total"),
    [
        (K2, 101_124_096, 31.69e9, 1026.4e9),
        (V3, 187_107_328, 36.63e9, 671.0e9),
        (MOONLIGHT, 13_763_072, 2.58e9, 15.96e9),
    ],
)
def test_published_models(config: KimiConfig, attention: int, active: float, total: float) -> None:
    """An attention layer's parameters are what one more dense layer adds besides its SwiGLU and two norms."""
    dense = replace(config, first_k_dense_replace=99)
    more = replace(dense, num_hidden_layers=config.num_hidden_layers + 1)
    added = model_cost(more, 1).params_total - model_cost(dense, 1).params_total
    assert added - 3 * config.hidden_size * config.intermediate_size - 2 * config.hidden_size == attention
    cost = model_cost(config, 4096)
    assert cost.params_active == pytest.approx(active, rel=2e-3)
    assert cost.params_total == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_without_mask_are_those_torch_counts(name: str, length: int) -> None:
    """Looped experts (torch cannot count grouped ones), dense attention, values as wide as keys (no padding)."""
    config = CONFIGS[name]
    if isinstance(config, KimiConfig):
        config = replace(config, moe_intermediate_size=10, v_head_dim=24)
    model = build_model(config, 0)
    ids = torch.randint(61, (3, length), generator=torch.Generator().manual_seed(0))
    cost = model_cost(config, length, causal=False)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits = model(ids).logits_BTW
        with FlopCounterMode(display=False) as backward:
            logits.square().mean().backward()
    tokens = ids.numel()
    assert forward.get_total_flops() == cost.forward_flops_per_token * tokens
    assert forward.get_total_flops() + backward.get_total_flops() == cost.train_flops_per_token * tokens


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("name", CONFIGS)
def test_causal_flops_count_the_visible_pairs(name: str, length: int) -> None:
    """Pair by pair: each query with each key at or before it costs two products per dimension, scores and values."""
    config = CONFIGS[name]
    if isinstance(config, KimiConfig):
        widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        widths = 2 * config.hidden_size // config.num_attention_heads
    total = 0
    for query in range(length):
        for key in range(length):
            if key <= query:
                total += 2 * widths * config.num_attention_heads * config.num_hidden_layers
    cost = model_cost(config, length)
    assert cost.forward_flops_per_token * length == 2 * cost.params_active * length + total
    assert cost.train_flops_per_token == 3 * cost.forward_flops_per_token


@pytest.mark.parametrize("name", CONFIGS)
def test_cache_numbers_are_those_stored(name: str) -> None:
    config = CONFIGS[name]
    model = build_model(config, 0)
    cache = Cache(config.num_hidden_layers, 8)
    model(torch.zeros(1, 3, dtype=torch.int64), cache)
    stored = sum(layer.bytes_per_token for layer in cache.layers) / 4
    assert model_cost(config, 32).cache_numbers_per_token == stored


@pytest.mark.usefixtures("muon_in_torch")
@pytest.mark.parametrize("options", [{}, {"split_heads": True}, {"router": "adamw"}, {"ns_steps": 3}])
@pytest.mark.parametrize("name", CONFIGS)
def test_optimizer_flops_are_those_torch_counts(name: str, options: dict[str, Any]) -> None:
    """Over a whole step of the real optimizer, so that a matrix which the formula forgets shows."""
    config = CONFIGS[name]
    model = build_model(config, 0)
    optim = OptimConfig(name="muon", **options)
    optimizer = build_optimizer(model, optim, config.num_attention_heads)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    train = TrainConfig(context_length=8, batch_size=3)
    assert counter.get_total_flops() == optimizer_flops(shapes, optim, config, train) > 0
    assert optimizer_flops(shapes, OptimConfig(name="adamw"), config, train) == 0


QR = 8 / 3  # times m^3: torch does not count decompositions


@pytest.mark.usefixtures("muon_in_torch")
@pytest.mark.parametrize("optimizer_name", ["truemuon", "shampoo", "soap"])
@pytest.mark.parametrize("name", CONFIGS)
def test_optimizer_flops_of_the_others_are_those_torch_counts(name: str, optimizer_name: str) -> None:
    """Over three steps after the first, one of which finds new roots or bases."""
    config, train = CONFIGS[name], TrainConfig(context_length=8, batch_size=3)
    model = build_model(config, 0)
    every = {} if optimizer_name == "truemuon" else {"precondition_every": 3}
    optim = OptimConfig(name=optimizer_name, **every)
    optimizer = build_optimizer(model, optim, config.num_attention_heads)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    with FlopCounterMode(display=False) as counter:
        for _ in range(3):
            optimizer.step()
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    counted = float(counter.get_total_flops())
    if optimizer_name == "soap":
        states = optimizer.state.values()
        counted += sum(
            QR * len(s[k]) * s[k].shape[1] ** 3 for s in states for k in ("left", "right") if k in s
        )
    assert counted == pytest.approx(3 * optimizer_flops(shapes, optim, config, train), rel=1e-9)


def test_elementwise_and_foreign_optimizers_count_nothing() -> None:
    train = TrainConfig(context_length=8, batch_size=3)
    for name in ("adamw", "lion", "torch:NAdam"):
        assert optimizer_flops({"a.weight": (8, 8)}, OptimConfig(name=name), CONFIGS["nanogpt"], train) == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_muonclip_by_estimates_pays_no_logits(name: str) -> None:
    config, train = CONFIGS[name], TrainConfig(context_length=8, batch_size=3)
    shapes = {key: tuple(p.shape) for key, p in build_model(config, 0).named_parameters()}
    by_estimate = OptimConfig(name="muonclip", qk_clip_logits="rms")
    muon, clip = (optimizer_flops(shapes, o, config, train) for o in (OptimConfig(name="muon"), by_estimate))
    assert clip == muon


@pytest.mark.parametrize("name", CONFIGS)
def test_muonclip_pays_for_the_logits_that_it_looks_at(name: str) -> None:
    """QK-Clip computes every logit of the batch once more: 2 FLOPs for each product of a query and a key number."""
    config, train = CONFIGS[name], TrainConfig(context_length=8, batch_size=3)
    model = build_model(config, 0)
    ids = torch.zeros(3, 8, dtype=torch.int64)
    counts = []
    for want in (False, True):
        with FlopCounterMode(display=False) as counter:
            model(ids, want_max_logits=want)
        counts.append(counter.get_total_flops())
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    muon, clip = (optimizer_flops(shapes, OptimConfig(name=n), config, train) for n in ("muon", "muonclip"))
    assert clip - muon == counts[1] - counts[0] > 0
