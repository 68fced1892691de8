"""Costs of a variant, part by part; `cost` has the definitions and the sum."""

from __future__ import annotations

import torch

from nanokimi.config import VariantConfig
from nanokimi.config.rules_variant import dense_width, has_experts, is_plugin
from nanokimi.config.variant_parts import ATTENTIONS, EXPERTS, PartCost
from nanokimi.model.variants.variant import build_plugin


def variant_parts(config: VariantConfig, context_length: int, causal: bool) -> list[PartCost]:
    """The costs of embeddings, norms and head together, then of each layer's attention and feed-forward."""
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
    return ATTENTIONS[c.attention].cost(c, context_length, causal)


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
    used = int(EXPERTS[c.experts].used(c) * expert)
    return PartCost(always + c.n_routed_experts * expert, always + used)


def plugin_cost(name: str, c: VariantConfig, place: str, context_length: int) -> PartCost:
    """A part of the user's: all its matrices count as active, and the FLOPs that it states are added."""
    with torch.device("meta"):
        part = build_plugin(name, c, place)
    sizes = [(p.numel(), p.dim()) for p in part.parameters()]
    flops = float(getattr(part, "flops_per_token", lambda _: 0.0)(context_length))
    return PartCost(sum(n for n, _ in sizes), sum(n for n, dim in sizes if dim >= 2), flops)
