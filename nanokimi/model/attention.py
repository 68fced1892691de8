"""THE ATTENTION of Kimi K2: multi-head latent attention (MLA, from DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values of all heads are expanded from one small latent vector per token, so that only the latent and one
shared rotary key need to be cached: C + R numbers per token instead of H * (X + V). Each head's logit is the sum of a
part without position (N dimensions, from the latent) and a rotary part (R dimensions, whose key all heads share).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from nanokimi.config import KimiConfig
from nanokimi.model.cache import LayerCache
from nanokimi.model.layers import RMSNorm, rotate, yarn_temperature
from nanokimi.model.sdpa import attend

Angles = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


class HeadSizes(NamedTuple):
    """How the columns of queries and of expanded keys and values are divided."""

    heads: int  # H
    nope: int  # N: no position
    rope: int  # R: rotary
    value: int  # V


def latent_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    angles: Angles,
    sizes: HeadSizes,
    scale: float,
    want_max_logits: bool,
    attend: Attend = attend,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The core of MLA: rotate, then attend.

    Args:
        q: queries (B, T, H * (N + R)).
        kv: keys without position and values, expanded from the latents, (B, T, H * (N + V)).
        k_rope_BTR: the key that all heads share, not yet rotated.
        angles: cos and sin of each token's position, (T, R / 2).
        attend: softmax attention, `sdpa.attend` or what replaces it.

    Returns:
        The heads' outputs (B, T, H * V) and, if wanted, each head's largest scaled logit of a visible key (H,).
    """
    q_BHTX = rotated_queries(q, angles, sizes)
    k_BHTX, v_BHTV = keys_and_values(kv, rotate(k_rope_BTR, *angles), sizes)
    out_BHTV, max_logits_H = attend(q_BHTX, k_BHTX, v_BHTV, scale, want_max_logits=want_max_logits)
    return out_BHTV.transpose(1, 2).flatten(-2), max_logits_H


def rotated_queries(q: torch.Tensor, angles: Angles, sizes: HeadSizes) -> torch.Tensor:
    """Split queries (B, T, H * (N + R)) into heads (B, H, T, N + R) and rotate the last R dimensions."""
    q_nope_BTHN, q_rope_BTHR = q.unflatten(-1, (sizes.heads, -1)).split([sizes.nope, sizes.rope], dim=-1)
    return torch.cat((q_nope_BTHN, rotate(q_rope_BTHR, *angles)), dim=-1).transpose(1, 2)


def keys_and_values(
    kv: torch.Tensor, k_rope_BSR: torch.Tensor, sizes: HeadSizes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split (B, S, H * (N + V)) into keys (B, H, S, N + R) and values (B, H, S, V).

    Each head's key is its own part and the rotary part that all heads share, which is already rotated.
    """
    k_nope_BSHN, v_BSHV = kv.unflatten(-1, (sizes.heads, -1)).split([sizes.nope, sizes.value], dim=-1)
    k_rope_BSHR = k_rope_BSR.unsqueeze(2).expand(-1, -1, sizes.heads, -1)
    k_BSHX = torch.cat((k_nope_BSHN, k_rope_BSHR), dim=-1)
    return k_BSHX.transpose(1, 2), v_BSHV.transpose(1, 2)


class MultiHeadLatentAttention(nn.Module):
    """Causal MLA over (B, T, D). Parameter names are DeepSeek-V3's."""

    core = staticmethod(latent_attention)
    """`kernels` may replace it by a faster function with the same arguments."""
    uses_cache = True
    projections = "latent"
    """How `optim.rms_logits` finds the queries and keys."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_dim, self.latent_dim = config.v_head_dim, config.kv_lora_rank
        self.sizes = HeadSizes(self.num_heads, self.nope_dim, self.rope_dim, self.value_dim)
        qk_dim = self.nope_dim + self.rope_dim
        hidden = config.hidden_size
        eps = config.rms_norm_eps if config.latent_norm_eps is None else config.latent_norm_eps
        self.has_query_latent = config.q_lora_rank is not None
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, self.num_heads * qk_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, self.num_heads * qk_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.latent_dim + self.rope_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(self.latent_dim, eps)
        self.kv_b_proj = nn.Linear(
            self.latent_dim, self.num_heads * (self.nope_dim + self.value_dim), bias=False
        )
        self.o_proj = nn.Linear(self.num_heads * self.value_dim, hidden, bias=False)
        self.scale = qk_dim**-0.5
        if config.rope_scaling is not None:
            yarn = config.rope_scaling
            self.scale *= yarn_temperature(yarn.factor, yarn.mscale_all_dim) ** 2

    @property
    def q_up_proj(self) -> nn.Linear:
        """The last query projection. Each head has N rows without position, then R rotary rows."""
        return self.q_b_proj if self.has_query_latent else self.q_proj

    def forward(
        self,
        x_BTD: torch.Tensor,
        angles: Angles,
        cache: LayerCache | None = None,
        want_max_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output (B, T, D) and, if wanted, each head's largest scaled logit of a visible key (H,)."""
        q = self.q_up_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)) if self.has_query_latent else x_BTD)
        c_BTC, k_rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split([self.latent_dim, self.rope_dim], dim=-1)
        c_BTC = self.kv_a_layernorm(c_BTC)
        if cache is None:
            kv = self.kv_b_proj(c_BTC)
            out, max_logits_H = self.core(q, kv, k_rope_BTR, angles, self.sizes, self.scale, want_max_logits)
        else:
            # The point of MLA: only C + R numbers per token are cached.
            (latents_BSL,) = cache.append(torch.cat((c_BTC, rotate(k_rope_BTR, *angles)), dim=-1))
            q_BHTX = rotated_queries(q, angles, self.sizes)
            out, max_logits_H = self._attend_to_cache(q_BHTX, latents_BSL, want_max_logits)
        return self.o_proj(out), max_logits_H

    def _attend_to_cache(
        self, q_BHTX: torch.Tensor, latents_BSL: torch.Tensor, want_max_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The heads' outputs (B, T, H * V) and, if wanted, the largest logits; L = C + R, latent and rotated key.

        `core` is for training: its keys are those of the queries' own tokens, and it rotates both. Here the keys are
        rotated already, and there may be more of them than queries.
        """
        if q_BHTX.shape[2] == 1 and not want_max_logits:
            return self._attend_absorbed(q_BHTX, latents_BSL), None
        c_BSC, k_rope_BSR = latents_BSL.split([self.latent_dim, self.rope_dim], dim=-1)
        k_BHSX, v_BHSV = keys_and_values(self.kv_b_proj(c_BSC), k_rope_BSR, self.sizes)
        out_BHTV, max_logits_H = attend(q_BHTX, k_BHSX, v_BHSV, self.scale, want_max_logits=want_max_logits)
        return out_BHTV.transpose(1, 2).flatten(-2), max_logits_H

    def _attend_absorbed(self, q_BH1X: torch.Tensor, latents_BSL: torch.Tensor) -> torch.Tensor:
        """Attend from one new token without expanding the cache, with absorbed weights, (B, 1, H * V).

        q . (U_k c) = (U_k^T q) . c, and the values are likewise expanded after the weighted sum. This computes what
        the expanded form computes with H * (2C + R) products per cached token instead of H * C * (N + V).
        """
        c_BSC = latents_BSL[..., : self.latent_dim]
        w_HXC = self.kv_b_proj.weight.to(c_BSC.dtype).view(self.num_heads, -1, self.latent_dim)
        k_up_HNC, v_up_HVC = w_HXC.split([self.nope_dim, self.value_dim], dim=1)
        q_nope_BHN, q_rope_BHR = q_BH1X.squeeze(2).split([self.nope_dim, self.rope_dim], dim=-1)
        q_latent_BHC = torch.einsum("bhn,hnc->bhc", q_nope_BHN, k_up_HNC)
        logits_BHS = torch.cat((q_latent_BHC, q_rope_BHR), dim=-1) @ latents_BSL.transpose(1, 2)
        at_least_fp32 = torch.promote_types(logits_BHS.dtype, torch.float32)
        weights_BHS = (logits_BHS.to(at_least_fp32) * self.scale).softmax(dim=-1).to(c_BSC.dtype)
        out_BHV = torch.einsum("bhc,hvc->bhv", weights_BHS @ c_BSC, v_up_HVC)
        return out_BHV.flatten(1).unsqueeze(1)

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Multiply each head's logits by its gamma (Kimi K2, algorithm 1).

        Without position, queries and keys are each multiplied by the square root. In the rotary part, the query takes
        the whole factor, because its key is shared by all heads and must not change.
        """
        root_H11, gamma_H11 = gamma_H.sqrt()[:, None, None], gamma_H[:, None, None]
        q_HXQ = self.q_up_proj.weight.unflatten(0, (self.num_heads, -1))
        q_HXQ[:, : self.nope_dim] *= root_H11
        q_HXQ[:, self.nope_dim :] *= gamma_H11
        kv_HXC = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        kv_HXC[:, : self.nope_dim] *= root_H11
