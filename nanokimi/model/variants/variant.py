"""Variant: a decoder whose norm, positions, attention, feed-forward and experts are chosen by VariantConfig.

With the defaults it is NanoGPT and with all of Kimi K2's parts NanoKimi, logit for logit. The steps of the ladder and
the earlier systems are in between. Parameters have Kimi's (Hugging Face's) names throughout.

A user's own part (see `nanokimi.runtime.plugins`) is an nn.Module built by NAME(config: VariantConfig) with

    plugs_into = "attention": forward(x_BTD, angles, cache, want_max_logits) -> (y_BTD, max_logits_H or None).
        angles: cos and sin (T, head width / 2) for `nanokimi.model.layers.rotate`, or None with learned positions.
        cache: None, or a LayerCache in generation if the class says `uses_cache = True`; otherwise the whole window
        is read again for each token. A forward(x_BTD) -> y_BTD, without angles and cache, will do. max_logits_H and
        a method rescale_heads_(gamma_H) are needed for QK-Clip, and for its estimated logits `projections =
        "separate"`, num_heads, scale, q_proj and k_proj.
    plugs_into = "feed_forward": forward(x_BTD) -> y_BTD, or (y_BTD, Routing) with the router as `gate`. It is used in
        every block but the first first_k_dense_replace.

Its nn.Linear layers are initialised like all others (see `initial`), and it initialises its other parameters itself. An
optional method flops_per_token(context_length) -> float says what a forward pass costs besides its matrices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from nanokimi.config import VariantConfig
from nanokimi.config.rules_variant import has_experts, is_plugin, rotary_width
from nanokimi.errors import UserError
from nanokimi.model.attention import Angles, MultiHeadLatentAttention
from nanokimi.model.cache import Cache, LayerCache
from nanokimi.model.kimi import balance_loss, run_blocks
from nanokimi.model.layers import RMSNorm, Rotary
from nanokimi.model.output import Output, Routing
from nanokimi.model.variants.attention import GroupedQueryAttention, as_kimi
from nanokimi.model.variants.experts import EXPERTS
from nanokimi.model.variants.feed_forward import dense_layer
from nanokimi.model.variants.initial import initialise_
from nanokimi.model.variants.latent import LatentAttention
from nanokimi.runtime.plugins import load_plugin, place_of
from nanokimi.runtime.text import one_line


def make_norm(config: VariantConfig) -> nn.LayerNorm | RMSNorm:
    """The configured norm over the width of the residual stream."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


ATTENTIONS: dict[str, Callable[[VariantConfig], nn.Module]] = {
    "mha": GroupedQueryAttention,
    "gqa": GroupedQueryAttention,
    "mla": lambda config: MultiHeadLatentAttention(as_kimi(config)),
    "latent": LatentAttention,
}
"""The module of each attention; config/variant_parts.py has its settings, checks and costs under the same name."""


def make_attention(config: VariantConfig) -> Any:
    """The configured attention."""
    if is_plugin(config.attention):
        return build_plugin(config.attention, config, "attention")
    return ATTENTIONS[config.attention](config)


def make_feed_forward(config: VariantConfig, layer: int) -> Any:
    """The configured feed-forward layer or mixture of experts of a block."""
    if not has_experts(config, layer):
        return dense_layer(config)
    if is_plugin(config.experts):
        return build_plugin(config.experts, config, "feed_forward")
    return EXPERTS[config.experts](config)


def build_plugin(name: str, config: VariantConfig, place: str) -> nn.Module:
    """An instance of a user's class. Raises UserError if it is meant for another place or cannot be built."""
    found = load_plugin(name)
    if place_of(found) != place:
        raise UserError(f"{name} plugs into {place_of(found)}, not into {place}")
    try:
        return cast(nn.Module, found(config))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        reason = one_line(error)
        raise UserError(
            f"{name} cannot be built from a VariantConfig: {type(error).__name__}: {reason}"
        ) from None


def takes_one_argument(part: nn.Module) -> bool:
    """Whether a user's part has forward(x), without angles and cache."""
    kinds = [one.kind for one in inspect.signature(part.forward).parameters.values()]
    one = inspect.Parameter
    positional = (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds) == 1 and one.VAR_POSITIONAL not in kinds


class VariantBlock(nn.Module):
    """x += attention(norm(x)), then x += feed_forward(norm(x)), with dropout on both branches."""

    def __init__(self, config: VariantConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = make_attention(config)
        self.takes_only_x = is_plugin(config.attention) and takes_one_argument(self.self_attn)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = make_feed_forward(config, layer)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: torch.Tensor, angles: Angles | None, cache: LayerCache | None, want_max_logits: bool
    ) -> tuple[torch.Tensor, Routing | None, torch.Tensor | None]:
        """Return the new residual stream, the routing (None without experts) and the largest logits (H,)."""
        read_BTD = self.input_layernorm(x_BTD)
        if self.takes_only_x:
            attended_BTD, max_logits_H = self.self_attn(read_BTD), None
        else:
            attended_BTD, max_logits_H = self.self_attn(read_BTD, angles, cache, want_max_logits)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        fed = self.mlp(self.post_attention_layernorm(x_BTD))
        y_BTD, routing = fed if isinstance(fed, tuple) else (fed, None)
        return x_BTD + self.dropout(y_BTD), routing, max_logits_H


class VariantDecoder(nn.Module):
    """Embeddings, blocks and final norm, named as in the `model.` part of Hugging Face's models."""

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        if config.vocab_size is None or config.max_position_embeddings is None:
            raise ValueError("to build a variant, set VariantConfig.vocab_size and max_position_embeddings")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions: nn.Embedding | None = None
        self.rotary: Rotary | None = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary = Rotary(
                rotary_width(config), config.rope_theta, config.max_position_embeddings, None
            )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(VariantBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config)


class Variant(nn.Module):
    """Token ids (B, T) to logits (B, T, W)."""

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.model = VariantDecoder(config)
        vocab_size = self.model.embed_tokens.num_embeddings
        self.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=config.lm_head_bias)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the initial weights."""
        initialise_(self, self.config)

    @property
    def can_cache(self) -> bool:
        """Whether decoding with a cache gives the logits that the whole text gives."""
        blocks = [cast(VariantBlock, block) for block in self.model.layers]
        return all(
            getattr(block.self_attn, "uses_cache", False)  # a user's attention may have no such attribute
            and not getattr(block.mlp, "needs_whole_text", False)
            for block in blocks
        )

    def forward(
        self, ids_BT: torch.Tensor, cache: Cache | None = None, want_max_logits: bool = False
    ) -> Output:
        """Logits of the next token at each position. With a cache, `ids_BT` continue the tokens in it."""
        start, T = cache.length if cache is not None else 0, ids_BT.shape[1]
        x_BTD = self.model.embed_tokens(ids_BT)
        if self.model.embed_positions is not None:
            x_BTD = x_BTD + self.model.embed_positions(torch.arange(start, start + T, device=ids_BT.device))
        x_BTD = self.model.dropout(x_BTD)
        angles = self.model.rotary(start, T) if self.model.rotary is not None else None
        recompute = self.activation_checkpointing and self.training
        x_BTD, routing, max_logits = run_blocks(
            self.model.layers, x_BTD, angles, cache, want_max_logits, recompute
        )
        logits_BTW = self.lm_head(self.model.norm(x_BTD))
        aux_loss = balance_loss(routing, self.config.aux_loss_alpha)
        return Output(logits_BTW, aux_loss, routing, self._stacked(max_logits) if want_max_logits else None)

    def _stacked(self, max_logits: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """(L, H), or None if a user's attention does not return them."""
        found = [max_logits_H for max_logits_H in max_logits if max_logits_H is not None]
        if len(found) == len(max_logits):
            return torch.stack(found)
        if hasattr(self.attentions()[0], "rescale_heads_"):
            raise UserError(
                f"{self.config.attention} has rescale_heads_ for QK-Clip, but gives no largest logits"
            )
        return None

    def routers(self) -> list[Any]:
        """The router of each mixture-of-experts layer, in the order of `Output.routing`."""
        blocks = [cast(VariantBlock, block) for block in self.model.layers]
        return [block.mlp.gate for block in blocks if hasattr(block.mlp, "gate")]

    def attentions(self) -> list[Any]:
        """The attention of each layer, in the order of `Output.max_logits_LH`."""
        return [cast(VariantBlock, block).self_attn for block in self.model.layers]
