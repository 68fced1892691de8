"""NanoGPT: the baseline, GPT-2 as nanoGPT builds it. Only the softmax attention itself is in another file (`sdpa`).

Learned positions, pre-norm blocks with LayerNorm, multi-head attention, exact GELU, head tied to the embedding.
Module names are GPT-2's (`transformer.h.0.attn.c_attn`), so that weights carry over; config words are those of
Hugging Face's newer models.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import GPTConfig
from nanokimi.model.cache import Cache, LayerCache
from nanokimi.model.output import Output
from nanokimi.model.recompute import recomputed
from nanokimi.model.sdpa import attend


class CausalSelfAttention(nn.Module):
    """Multi-head attention with one fused projection to queries, keys and values."""

    attend = staticmethod(attend)
    """`kernels` may replace it by a faster function with the same arguments."""
    projections = "fused"
    """How `optim.rms_logits` finds the queries and keys."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_attention_heads, config.dropout
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.bias)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    @property
    def scale(self) -> float:
        """The factor of the logits before the softmax."""
        return (self.c_proj.in_features // self.num_heads) ** -0.5

    def forward(
        self, x_BTD: torch.Tensor, cache: LayerCache | None = None, want_max_logits: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D) and, if wanted, each head's largest scaled logit of a visible key (H,)."""
        q_BTHX, k_BSHX, v_BSHX = self.c_attn(x_BTD).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if cache is not None:
            k_BSHX, v_BSHX = cache.append(k_BSHX, v_BSHX)
        q_BHTX, k_BHSX, v_BHSX = (x.transpose(1, 2) for x in (q_BTHX, k_BSHX, v_BSHX))
        dropout = self.dropout if self.training else 0.0
        out_BHTX, max_logits_H = self.attend(
            q_BHTX, k_BHSX, v_BHSX, self.scale, dropout=dropout, want_max_logits=want_max_logits
        )
        return self.c_proj(out_BHTX.transpose(1, 2).flatten(-2)), max_logits_H

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Multiply each head's logits by its gamma: its queries and its keys each by the square root."""
        factor_H1 = gamma_H.sqrt()[:, None]
        for parameter in self.c_attn.parameters():  # the weight, and the bias if there is one
            qkv_3HX = parameter.view(3, self.num_heads, -1)
            qkv_3HX[:2] *= factor_H1


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, hidden, bias=config.bias)
        self.c_proj = nn.Linear(hidden, config.hidden_size, bias=config.bias)
        self.approximate = "tanh" if config.activation_function == "gelu_new" else "none"

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(F.gelu(self.c_fc(x_BTD), approximate=self.approximate))


class GPTBlock(nn.Module):
    """x += attention(norm(x)), then x += mlp(norm(x)), with dropout on both branches."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: torch.Tensor, cache: LayerCache | None, want_max_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the new residual stream and, if wanted, the largest logits (H,)."""
        attended_BTD, max_logits_H = self.attn(self.ln_1(x_BTD), cache, want_max_logits)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        return x_BTD + self.dropout(self.mlp(self.ln_2(x_BTD))), max_logits_H


class GPTDecoder(nn.Module):
    """Embeddings, blocks and final norm, named as in the `transformer.` part of GPT-2."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size is None or config.max_position_embeddings is None:
            raise ValueError("to build NanoGPT, set GPTConfig.vocab_size and max_position_embeddings")
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(GPTBlock(config) for _ in range(config.num_hidden_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=config.bias)


class NanoGPT(nn.Module):
    """Token ids (B, T) to logits (B, T, W)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.transformer = GPTDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, self.transformer.wte.num_embeddings, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """As in GPT-2: zero biases, normal weights, those of residual outputs divided by the root of their number."""
        std, residuals = self.config.initializer_range, 2 * self.config.num_hidden_layers
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(
                    module.weight, std=std / math.sqrt(residuals) if name.endswith("c_proj") else std
                )
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)

    def forward(
        self, ids_BT: torch.Tensor, cache: Cache | None = None, want_max_logits: bool = False
    ) -> Output:
        """Logits of the next token at each position. With a cache, `ids_BT` continue the tokens in it."""
        start = cache.length if cache is not None else 0
        positions_T = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.transformer.wte(ids_BT) + self.transformer.wpe(positions_T)
        x_BTD = self.transformer.drop(x_BTD)
        max_logits = []
        for layer, block in enumerate(self.transformer.h):
            layer_cache = cache.layers[layer] if cache is not None else None
            if self.activation_checkpointing and self.training:
                x_BTD, max_logits_H = recomputed(block, x_BTD, layer_cache, want_max_logits)
            else:
                x_BTD, max_logits_H = block(x_BTD, layer_cache, want_max_logits)
            max_logits.append(max_logits_H)
        logits_BTW = self.lm_head(self.transformer.ln_f(x_BTD))
        return Output(logits_BTW, max_logits_LH=torch.stack(max_logits) if want_max_logits else None)

    def attentions(self) -> list[CausalSelfAttention]:
        """The attention of each layer, in the order of `Output.max_logits_LH`."""
        return [cast(GPTBlock, block).attn for block in self.transformer.h]
