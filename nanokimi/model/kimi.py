"""NanoKimi: Kimi K2's decoder (arXiv 2507.20534), small. Its parts are in `attention`, `moe` and `layers`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from nanokimi.config import KimiConfig
from nanokimi.model.attention import Angles, MultiHeadLatentAttention
from nanokimi.model.cache import Cache, LayerCache
from nanokimi.model.layers import RMSNorm, Rotary, SwiGLU
from nanokimi.model.moe import Experts, MixtureOfExperts, Router
from nanokimi.model.output import Output, Routing
from nanokimi.model.recompute import recomputed


class KimiBlock(nn.Module):
    """x += attention(norm(x)), then x += feed_forward(norm(x)). The first blocks are dense, the others have experts."""

    def __init__(self, config: KimiConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: SwiGLU | MixtureOfExperts
        if layer < config.first_k_dense_replace:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config)

    def forward(
        self, x_BTD: torch.Tensor, angles: Angles, cache: LayerCache | None, want_max_logits: bool
    ) -> tuple[torch.Tensor, Routing | None, torch.Tensor | None]:
        """Return the new residual stream, the routing (None in a dense block) and the largest logits (H,)."""
        attended_BTD, max_logits_H = self.self_attn(
            self.input_layernorm(x_BTD), angles, cache, want_max_logits
        )
        x_BTD = x_BTD + attended_BTD
        h_BTD, routing = self.post_attention_layernorm(x_BTD), None
        if isinstance(self.mlp, MixtureOfExperts):
            y_BTD, routing = self.mlp(h_BTD)
        else:
            y_BTD = self.mlp(h_BTD)
        return x_BTD + y_BTD, routing, max_logits_H


class KimiDecoder(nn.Module):
    """Embedding, blocks and final norm, named as in the `model.` part of Hugging Face's model."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        if config.vocab_size is None or config.max_position_embeddings is None:
            raise ValueError("to build NanoKimi, set KimiConfig.vocab_size and max_position_embeddings")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(KimiBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(
            config.qk_rope_head_dim, config.rope_theta, config.max_position_embeddings, config.rope_scaling
        )


def run_blocks(
    blocks: Iterable[nn.Module],
    x_BTD: torch.Tensor,
    angles: Angles | None,
    cache: Cache | None,
    want_max_logits: bool,
    recompute: bool,
) -> tuple[torch.Tensor, tuple[Routing, ...], list[torch.Tensor]]:
    """The residual stream after all blocks, the routing of those with experts, and each block's largest logits (H,).

    With `recompute`, the backward pass computes each block's activations again instead of keeping them.
    """
    routings, max_logits = [], []
    for layer, block in enumerate(blocks):
        arguments = (x_BTD, angles, None if cache is None else cache.layers[layer], want_max_logits)
        if recompute:
            x_BTD, routing, max_logits_H = recomputed(block, *arguments)
        else:
            x_BTD, routing, max_logits_H = block(*arguments)
        routings.append(routing)
        max_logits.append(max_logits_H)
    return x_BTD, tuple(routing for routing in routings if routing is not None), max_logits


def balance_loss(routing: tuple[Routing, ...], alpha: float) -> torch.Tensor | None:
    """The balance losses of all layers, weighted by `alpha`; None if there are none or the weight is 0."""
    if not routing or alpha == 0:
        return None
    return alpha * torch.stack([layer.balance_loss for layer in routing]).sum()


class NanoKimi(nn.Module):
    """Token ids (B, T) to logits (B, T, W)."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.model = KimiDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, self.model.embed_tokens.num_embeddings, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Norm gains are 1, all matrices normal with one standard deviation, as in Hugging Face's DeepSeek-V3.

        With `rescale_prenorm_residual`, the outputs of the two branches of each layer are smaller, as in GPT-2.
        """
        std = small = self.config.initializer_range
        if self.config.rescale_prenorm_residual:
            small /= math.sqrt(2 * self.config.num_hidden_layers)
        for module_name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Linear | nn.Embedding | Router | Experts):
                for name, parameter in module.named_parameters(module_name, recurse=False):
                    residual = "o_proj" in name or "down_proj" in name
                    nn.init.normal_(parameter, std=small if residual else std)

    def forward(
        self, ids_BT: torch.Tensor, cache: Cache | None = None, want_max_logits: bool = False
    ) -> Output:
        """Logits of the next token at each position. With a cache, `ids_BT` continue the tokens in it."""
        start = cache.length if cache is not None else 0
        angles = self.model.rotary(start, ids_BT.shape[1])
        x_BTD = self.model.embed_tokens(ids_BT)
        recompute = self.activation_checkpointing and self.training
        x_BTD, routing, max_logits = run_blocks(
            self.model.layers, x_BTD, angles, cache, want_max_logits, recompute
        )
        logits_BTW = self.lm_head(self.model.norm(x_BTD))
        aux_loss = balance_loss(routing, self.config.aux_loss_alpha)
        return Output(logits_BTW, aux_loss, routing, torch.stack(max_logits) if want_max_logits else None)

    def routers(self) -> list[Router]:
        """The router of each mixture-of-experts layer, in the order of `Output.routing`."""
        return [block.mlp.gate for block in self.model.layers if isinstance(block.mlp, MixtureOfExperts)]

    def attentions(self) -> list[MultiHeadLatentAttention]:
        """The attention of each layer, in the order of `Output.max_logits_LH`."""
        return [cast(KimiBlock, block).self_attn for block in self.model.layers]
