"""THE PARTS of a variant by name: the settings that each one reads and requires, and what it costs.

To add an attention or an expert layer, write its module, its row here, and its row in ATTENTIONS of
model/variants/variant.py or in EXPERTS of model/variants/experts.py (docs/experiments.md has the recipe).

Costs follow the definitions of measure/cost.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nanokimi.config.checks import require
from nanokimi.config.schema import KimiConfig
from nanokimi.config.schema_variant import VariantConfig

POOLING_CHUNK = 32
"""Positions that latent attention pools at a time. The work for each position grows with this number."""


class PartCost(NamedTuple):
    """What one layer's attention or feed-forward layer costs."""

    total: int  # parameters
    active: int  # of these, matrix parameters that multiply one token
    flops: float = 0.0  # forward per token, in addition to 2 for each active parameter
    cache_per_token: int = 0  # numbers cached for each token of the context
    cache_fixed: int = 0  # numbers cached in addition, for a context of any length


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What can be said of an attention without building it."""

    reads: tuple[str, ...]
    """The settings that this attention reads and some other does not. Those that only others read are refused."""
    check: Callable[[VariantConfig, str], None]
    """Called with the model's settings and their path. Raises UserError if they do not fit."""
    rotary_width: Callable[[VariantConfig], int]
    """Dimensions of a head that RoPE rotates."""
    cost: Callable[[VariantConfig, int, bool], PartCost]
    """Called with the settings, the context length, and whether only visible keys count."""
    clip_width: Callable[[VariantConfig], int]
    """Columns of the queries if QK-Clip must compute the logits again, 0 if the forward pass returns them."""
    split_heads: bool = False
    """Whether Muon can treat the queries and keys of each head as a matrix of their own (optim.split_heads)."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What can be said of a mixture of experts without building it."""

    reads: tuple[str, ...]
    """The settings that this mixture reads and some other does not."""
    check: Callable[[VariantConfig, str], None]
    """As for an attention."""
    used: Callable[[VariantConfig], float]
    """Routed experts that multiply one token, on average."""
    router_bias: bool = False
    """Whether the router has a bias that balances the load (optim.router_bias_update_speed)."""


def head_width(model: VariantConfig) -> int:
    """Width of a head of mha, gqa and latent."""
    return model.head_dim or model.hidden_size // model.num_attention_heads


def has_qkv_bias(model: VariantConfig) -> bool:
    """Whether the queries, keys and values of mha, gqa and latent have biases."""
    return model.bias if model.qkv_bias is None else model.qkv_bias


def key_value_heads(model: VariantConfig) -> int:
    """Heads of keys and values. Fewer than of queries only if the attention reads num_key_value_heads."""
    attention = ATTENTIONS.get(model.attention)
    if attention is None or "num_key_value_heads" not in attention.reads:
        return model.num_attention_heads
    return model.num_key_value_heads or max(model.num_attention_heads // 2, 1)


def check_heads(model: VariantConfig, path: str) -> None:
    """Heads of one width must divide the residual stream, unless head_dim is given, and RoPE needs pairs."""
    require(
        model.head_dim is not None or model.hidden_size % model.num_attention_heads == 0,
        f"{path}.hidden_size {model.hidden_size} does not divide into num_attention_heads "
        f"{model.num_attention_heads}",
    )
    width = head_width(model)
    require(
        model.positions != "rope" or width % 2 == 0,
        f"{path}: heads are {width} wide, and rotation needs an even number",
    )
    groups = model.num_key_value_heads
    require(
        groups is None or model.num_attention_heads % groups == 0,
        f"{path}.num_attention_heads {model.num_attention_heads} does not divide into num_key_value_heads {groups}",
    )


def check_groups(model: VariantConfig, path: str) -> None:
    """Heads must divide into the groups that share keys and values."""
    check_heads(model, path)
    heads = model.num_attention_heads
    require(
        model.num_key_value_heads is not None or heads == 1 or heads % 2 == 0,
        f"{path}.num_key_value_heads is not given, and num_attention_heads {heads} has no half: name it",
    )


def check_mla(model: VariantConfig, path: str) -> None:
    """MLA needs RoPE for the key that all heads share, and RoPE needs pairs."""
    require(
        model.positions == "rope",
        f"{path}.attention mla needs {path}.positions rope: its shared key is rotary",
    )
    require(
        model.qk_rope_head_dim % 2 == 0,
        f"{path}.qk_rope_head_dim is {model.qk_rope_head_dim}: rotation needs an even number",
    )


def check_latent(model: VariantConfig, path: str) -> None:
    """Refuse RoPE, because learned queries have no position."""
    require(
        model.positions != "rope",
        f"{path}.positions rope does not fit {path}.attention latent: its learned queries have no position",
    )
    check_heads(model, path)


def visible_keys(context_length: int, causal: bool) -> float:
    """Keys that a query sees, averaged over the positions, or all of them if not `causal`."""
    return (context_length + 1) / 2 if causal else context_length


def gqa_cost(c: VariantConfig, context_length: int, causal: bool) -> PartCost:
    """Softmax attention with whole keys and values, in as many groups as there are (mha, gqa)."""
    own, shared = c.num_attention_heads * head_width(c), key_value_heads(c) * head_width(c)
    active, biases = projections(c, own, shared)
    return PartCost(active + biases, active, 4 * own * visible_keys(context_length, causal), 2 * shared)


def projections(c: VariantConfig, own: int, shared: int) -> tuple[int, int]:
    """Matrix parameters and biases of q_proj, k_proj, v_proj and o_proj: `own` columns of queries, `shared` of keys."""
    d = c.hidden_size
    biases = (d if c.bias else 0) + (own + 2 * shared if has_qkv_bias(c) else 0)
    return 2 * d * own + 2 * d * shared, biases


def mla_cost(c: VariantConfig | KimiConfig, context_length: int, causal: bool) -> PartCost:
    """Multi-head latent attention."""
    d, heads = c.hidden_size, c.num_attention_heads
    qk_dim = c.qk_nope_head_dim + c.qk_rope_head_dim
    query = d * heads * qk_dim if c.q_lora_rank is None else c.q_lora_rank * (d + heads * qk_dim)
    key_value = d * (c.kv_lora_rank + c.qk_rope_head_dim)
    key_value += c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
    active = query + key_value + heads * c.v_head_dim * d
    flops = 2 * heads * (qk_dim + c.v_head_dim) * visible_keys(context_length, causal)
    gains = c.kv_lora_rank + (c.q_lora_rank or 0)
    return PartCost(active + gains, active, flops, c.kv_lora_rank + c.qk_rope_head_dim)


def latent_cost(c: VariantConfig, context_length: int, causal: bool) -> PartCost:
    """Attention to pooled vectors. Within a chunk, each position weights the chunk's earlier positions again."""
    heads, latents = c.num_attention_heads, c.num_latents
    own = heads * head_width(c)
    active, biases = projections(c, own, own)
    active += latents * own
    pooled = chunk_pairs(context_length, causal) / context_length
    return PartCost(active + biases, active, 2 * latents * own * (pooled + 2), 0, latents * (own + heads))


def chunk_pairs(context_length: int, causal: bool) -> int:
    """Pairs of positions within the chunks in which latent attention pools."""
    whole, rest = divmod(context_length, POOLING_CHUNK)
    return sum(n * (n + 1) // 2 if causal else n * n for n in (*[POOLING_CHUNK] * whole, rest))


def check_chosen(model: VariantConfig, path: str) -> None:
    """A token cannot choose more experts than there are."""
    require(
        model.num_experts_per_tok <= model.n_routed_experts,
        f"{path}.num_experts_per_tok {model.num_experts_per_tok} is above n_routed_experts {model.n_routed_experts}",
    )


def check_capacity(model: VariantConfig, path: str) -> None:
    """A token cannot be taken by more experts than there are."""
    require(
        model.capacity_factor <= model.n_routed_experts,
        f"{path}.capacity_factor {model.capacity_factor} is above n_routed_experts {model.n_routed_experts}",
    )


def no_check(model: VariantConfig, path: str) -> None:
    """Everything fits."""


def clip_heads(c: VariantConfig) -> int:
    """Columns of the queries of mha and gqa."""
    return c.num_attention_heads * head_width(c)


ATTENTIONS: dict[str, Attention] = {
    "mha": Attention(
        reads=("head_dim", "qkv_bias"),
        check=check_heads,
        rotary_width=head_width,
        cost=gqa_cost,
        clip_width=clip_heads,
        split_heads=True,
    ),
    "gqa": Attention(
        reads=("head_dim", "qkv_bias", "num_key_value_heads"),
        check=check_groups,
        rotary_width=head_width,
        cost=gqa_cost,
        clip_width=clip_heads,
    ),
    "mla": Attention(
        reads=("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        check=check_mla,
        rotary_width=lambda c: c.qk_rope_head_dim,
        cost=mla_cost,
        clip_width=lambda c: c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim),
        split_heads=True,
    ),
    "latent": Attention(
        reads=("head_dim", "qkv_bias", "num_latents"),
        check=check_latent,
        rotary_width=head_width,
        cost=latent_cost,
        clip_width=lambda c: 0,
    ),
}

OF_EXPERTS = (
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
)
OF_CHOICE = ("num_experts_per_tok", "norm_topk_prob", "aux_loss_alpha")
EXPERTS: dict[str, Experts] = {
    "none": Experts(reads=(), check=no_check, used=lambda c: 0),
    "soft": Experts(reads=OF_EXPERTS, check=no_check, used=lambda c: c.n_routed_experts),
    "topk": Experts(
        reads=(*OF_EXPERTS, *OF_CHOICE), check=check_chosen, used=lambda c: c.num_experts_per_tok
    ),
    "sigmoid-bias": Experts(
        reads=(*OF_EXPERTS, *OF_CHOICE),
        check=check_chosen,
        used=lambda c: c.num_experts_per_tok,
        router_bias=True,
    ),
    "expert_choice": Experts(
        reads=(*OF_EXPERTS, "capacity_factor"), check=check_capacity, used=lambda c: c.capacity_factor
    ),
}


def ignored_by(part: str, chosen: str) -> tuple[str, ...]:
    """The settings that only other choices of a part ("attention" or "experts") read.

    A class of the user's may read any setting, so none is ignored.
    """
    table: dict[str, Attention] | dict[str, Experts] = ATTENTIONS if part == "attention" else EXPERTS
    if chosen not in table:
        return ()
    read = dict.fromkeys(name for row in table.values() for name in row.reads)
    return tuple(name for name in read if name not in table[chosen].reads)
