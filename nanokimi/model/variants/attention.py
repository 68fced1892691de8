"""Softmax attention with keys and values for each head (mha), or shared by groups of heads (gqa)."""

from __future__ import annotations

import torch
from torch import nn

from nanokimi.config import KimiConfig, VariantConfig
from nanokimi.config.variant_parts import has_qkv_bias, head_width, key_value_heads
from nanokimi.model.attention import Angles
from nanokimi.model.cache import LayerCache
from nanokimi.model.layers import rotate
from nanokimi.model.sdpa import attend


class GroupedQueryAttention(nn.Module):
    """Causal softmax attention. G groups of heads share keys and values (GQA, arXiv 2305.13245); G = H: multi-head."""

    attend = staticmethod(attend)
    """`kernels` may replace it by a faster function with the same arguments."""
    uses_cache = True
    projections = "separate"
    """How `optim.rms_logits` finds the queries and keys."""

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        width, qkv_bias = config.hidden_size, has_qkv_bias(config)
        self.num_heads, self.num_groups = config.num_attention_heads, key_value_heads(config)
        self.head_dim, self.dropout = head_width(config), config.dropout
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(width, self.num_groups * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(width, self.num_groups * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, width, bias=config.bias)

    def forward(
        self,
        x_BTD: torch.Tensor,
        angles: Angles | None = None,
        cache: LayerCache | None = None,
        want_max_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D) and, if wanted, each head's largest scaled logit of a visible key (H,).

        Queries and keys are rotated by `angles` (RoPE); None leaves them unchanged.
        """
        q_BTHX, k_BSGX, v_BSGX = (
            proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if angles is not None:
            q_BTHX, k_BSGX = rotate(q_BTHX, *angles), rotate(k_BSGX, *angles)
        if cache is not None:
            k_BSGX, v_BSGX = cache.append(k_BSGX, v_BSGX)
        shared_by = self.num_heads // self.num_groups
        k_BHSX, v_BHSX = (x.transpose(1, 2).repeat_interleave(shared_by, dim=1) for x in (k_BSGX, v_BSGX))
        dropout = self.dropout if self.training else 0.0
        out_BHTX, max_logits_H = self.attend(
            q_BTHX.transpose(1, 2),
            k_BHSX,
            v_BHSX,
            self.scale,
            dropout=dropout,
            want_max_logits=want_max_logits,
        )
        return self.o_proj(out_BHTX.transpose(1, 2).flatten(-2)), max_logits_H

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Multiply each head's logits by its gamma.

        If each head has its own key, query and key are each multiplied by the square root. A key that is shared with
        other heads is left alone, and the query takes the whole factor.
        """
        own_key = self.num_groups == self.num_heads
        factor_H1 = (gamma_H.sqrt() if own_key else gamma_H)[:, None]
        for projection in (self.q_proj, self.k_proj) if own_key else (self.q_proj,):
            for parameter in projection.parameters():  # the weight, and the bias if there is one
                rows_HX = parameter.view(self.num_heads, -1)
                rows_HX *= factor_H1


def as_kimi(c: VariantConfig) -> KimiConfig:
    """A variant's configuration in the form that Kimi K2's own parts are built from."""
    return KimiConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        q_lora_rank=c.q_lora_rank,
        kv_lora_rank=c.kv_lora_rank,
        qk_nope_head_dim=c.qk_nope_head_dim,
        qk_rope_head_dim=c.qk_rope_head_dim,
        v_head_dim=c.v_head_dim,
        moe_intermediate_size=c.moe_intermediate_size,
        n_routed_experts=c.n_routed_experts,
        n_shared_experts=c.n_shared_experts,
        num_experts_per_tok=c.num_experts_per_tok,
        norm_topk_prob=c.norm_topk_prob,
        routed_scaling_factor=c.routed_scaling_factor,
        rms_norm_eps=c.norm_eps,
        rope_theta=c.rope_theta,
        max_position_embeddings=c.max_position_embeddings,
    )
