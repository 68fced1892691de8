"""What a model keeps of each token it has read, measured in its own cache, and what ordinary attention would keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nanokimi.inside.subject import blocks_of, reading
from nanokimi.model.attention import MultiHeadLatentAttention
from nanokimi.model.cache import Cache
from nanokimi.model.gpt import CausalSelfAttention
from nanokimi.model.variants.attention import GroupedQueryAttention

READ = 2
"""Tokens that are read to see what the cache holds of them."""


@dataclass(frozen=True)
class Kept:
    """A part of what one layer keeps of one token."""

    what: str
    numbers: int


@dataclass(frozen=True)
class CacheUse:
    """The cache of one sequence."""

    bytes_per_token: int
    """In all layers together, in the dtype of the weights."""
    bytes_fixed: int
    """Kept in addition, whatever the length of the text."""
    parts: tuple[Kept, ...] = ()
    """What one layer keeps of a token; empty if that is unknown."""
    ordinary_bytes_per_token: int | None = None
    """What plain attention with as many heads would keep, in all layers: keys and values, as wide as MLA's without the
    rotary part (docs/kimi-k2.md counts so, too). None if the attention's sizes are unknown."""
    ordinary_parts: tuple[Kept, ...] = ()


def cache_use(model: nn.Module) -> CacheUse | None:
    """Read two tokens and see what the cache holds of them. None for a model that has no cache."""
    if not getattr(model, "can_cache", True):
        return None
    layers = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    cache = Cache(layers, READ)
    with reading(model) as device:
        model(torch.zeros(1, READ, dtype=torch.long, device=device), cache)
    fixed = sum(x.numel() * x.element_size() for layer in cache.layers for x in layer.state)
    per_token = sum(layer.bytes_per_token for layer in cache.layers)
    attention: Any = blocks_of(model)[0].attention
    parts, ordinary = parts_of(attention)
    of_a_number = next(model.parameters()).element_size()
    return CacheUse(
        bytes_per_token=per_token,
        bytes_fixed=fixed,
        parts=parts,
        ordinary_bytes_per_token=layers * of_a_number * sum(part.numbers for part in ordinary) or None,
        ordinary_parts=ordinary,
    )


def parts_of(attention: Any) -> tuple[tuple[Kept, ...], tuple[Kept, ...]]:
    """What an attention keeps of a token, and what one with keys and values for each of its heads would keep."""
    if isinstance(attention, MultiHeadLatentAttention):
        # plain heads rotate what they have, and add no part
        heads, keys = attention.num_heads, attention.nope_dim
        latent = (
            Kept("latent", attention.latent_dim),
            Kept("rotary key, shared by the heads", attention.rope_dim),
        )
        return latent, (Kept("keys", heads * keys), Kept("values", heads * attention.value_dim))
    if isinstance(attention, CausalSelfAttention):
        width = attention.c_proj.in_features
        both = (Kept("keys", width), Kept("values", width))
        return both, both
    if isinstance(attention, GroupedQueryAttention):
        groups, heads = (n * attention.head_dim for n in (attention.num_groups, attention.num_heads))
        return (
            (Kept("keys", groups), Kept("values", groups)),
            (Kept("keys", heads), Kept("values", heads)),
        )
    return (), ()
