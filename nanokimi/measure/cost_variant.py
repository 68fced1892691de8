"""What a variant costs, part by part; `cost` has the definitions and puts the parts together."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nanokimi.config import VariantConfig
from nanokimi.config.rules_variant import (
    dense_width,
    has_experts,
    has_qkv_bias,
    head_width,
    is_plugin,
    key_value_heads,
)
from nanokimi.model.variants.latent import CHUNK
from nanokimi.model.variants.variant import build_plugin


class PartCost(NamedTuple):
    """One layer's part: an attention or a feed-forward layer."""

    total: int  # parameters
    active: int  # of them, matrix parameters that multiply one token
    flops: float = 0.0  # forward per token, besides 2 for each active parameter
    cache_per_token: int = 0  # numbers kept for each token of the context
    cache_fixed: int = 0  # numbers kept however long it is


def variant_parts(config: VariantConfig, context_length: int, causal: bool) -> list[PartCost]:
    """Embeddings, norms and head as one part, then each layer's attention and feed-forward."""
    c = config
    assert c.vocab_size is not None and c.max_position_embeddings is not None, "resolve() fills these in"
    d, layers = c.hidden_size, c.num_hidden_layers
    norm = d * (2 if c.norm == "layernorm" and c.bias else 1)
    outer = c.vocab_size * d * (1 if c.tie_word_embeddings else 2) + (2 * layers + 1) * norm
    outer += c.vocab_size if c.lm_head_bias else 0
    if c.positions == "learned":
        outer += c.max_position_embeddings * d
    parts = [PartCost(outer, c.vocab_size * d)]
    attention = attention_cost(c, context_length, causal)
    for layer in range(layers):
        parts += [attention, feed_forward_cost(c, context_length, has_experts(c, layer))]
    return parts


def attention_cost(c: VariantConfig, context_length: int, causal: bool) -> PartCost:
    """One layer's attention."""
    if is_plugin(c.attention):
        return plugin_cost(c.attention, c, "attention", context_length)
    d, heads = c.hidden_size, c.num_attention_heads
    visible = (context_length + 1) / 2 if causal else context_length
    if c.attention == "mla":
        qk_dim = c.qk_nope_head_dim + c.qk_rope_head_dim
        query = d * heads * qk_dim if c.q_lora_rank is None else c.q_lora_rank * (d + heads * qk_dim)
        key_value = d * (c.kv_lora_rank + c.qk_rope_head_dim)
        key_value += c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
        active = query + key_value + heads * c.v_head_dim * d
        flops = 2 * heads * (qk_dim + c.v_head_dim) * visible
        cache = c.kv_lora_rank + c.qk_rope_head_dim
        return PartCost(active + c.kv_lora_rank + (c.q_lora_rank or 0), active, flops, cache)
    own, shared = heads * head_width(c), key_value_heads(c) * head_width(c)
    active = 2 * d * own + 2 * d * shared
    biases = (d if c.bias else 0) + (own + 2 * shared if has_qkv_bias(c) else 0)
    if c.attention == "latent":
        j = c.num_latents
        active += j * own
        # Positions weighed anew at each position.
        taken_in = chunk_pairs(context_length, causal) / context_length
        return PartCost(active + biases, active, 2 * j * own * (taken_in + 2), 0, j * (own + heads))
    return PartCost(active + biases, active, 4 * own * visible, 2 * shared)


def chunk_pairs(context_length: int, causal: bool) -> int:
    """Pairs of positions within the chunks in which latent attention pools."""
    whole, rest = divmod(context_length, CHUNK)
    return sum(n * (n + 1) // 2 if causal else n * n for n in (*[CHUNK] * whole, rest))


def feed_forward_cost(c: VariantConfig, context_length: int, experts: bool) -> PartCost:
    """One layer's dense feed-forward layer or mixture of experts."""
    d, matrices = c.hidden_size, 3 if c.feed_forward == "swiglu" else 2
    if not experts:
        active = matrices * d * dense_width(c)
        biases = dense_width(c) + d if c.bias and c.feed_forward != "swiglu" else 0
        return PartCost(active + biases, active)
    if is_plugin(c.experts):
        return plugin_cost(c.experts, c, "feed_forward", context_length)
    expert = matrices * d * c.moe_intermediate_size
    always = c.n_shared_experts * expert + d * c.n_routed_experts
    used = {"soft": c.n_routed_experts, "expert_choice": c.capacity_factor}.get(
        c.experts, c.num_experts_per_tok
    )
    return PartCost(always + c.n_routed_experts * expert, always + int(used * expert))


def plugin_cost(name: str, c: VariantConfig, place: str, context_length: int) -> PartCost:
    """A part of the user's: its matrices all count as active, and the FLOPs that it states are added."""
    with torch.device("meta"):
        part = build_plugin(name, c, place)
    sizes = [(p.numel(), p.dim()) for p in part.parameters()]
    flops = float(getattr(part, "flops_per_token", lambda _: 0.0)(context_length))
    return PartCost(sum(n for n, _ in sizes), sum(n for n, dim in sizes if dim >= 2), flops)
