"""THE ATTENTION: multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1; used by Kimi K2).

Keys and values of all heads are expanded from one small latent vector per token, so that only the latent and one
shared rotary key need to be cached: C + R numbers per token instead of H * (X + V). Each head's logit is the sum of a
part without position (N dimensions, from the latent) and a rotary part (R dimensions, the key's shared by all heads).
"""

from __future__ import annotations

import torch
from torch import nn

from nanokimi.config import KimiConfig
from nanokimi.model.attend import attend
from nanokimi.model.by_hand import latent_attention_by_hand
from nanokimi.model.cache import LayerCache
from nanokimi.model.layers import RMSNorm, rotate, yarn_temperature
from nanokimi.model.native_train import HeadSizes

Angles = tuple[torch.Tensor, torch.Tensor]


class MultiHeadLatentAttention(nn.Module):
    """Causal MLA over (B, T, D). Parameter names are DeepSeek-V3's."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_dim, self.latent_dim = config.v_head_dim, config.kv_lora_rank
        qk_dim = self.nope_dim + self.rope_dim
        hidden, eps = config.hidden_size, config.rms_norm_eps
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
        """The last query projection; its rows are heads, each N rows without position, then R rotary ones."""
        return self.q_proj if hasattr(self, "q_proj") else self.q_b_proj

    def forward(
        self,
        x_BTD: torch.Tensor,
        angles: Angles,
        cache: LayerCache | None = None,
        want_max_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output (B, T, D) and, if wanted, each head's largest scaled logit of a visible key (H,)."""
        q_low = x_BTD if hasattr(self, "q_proj") else self.q_a_layernorm(self.q_a_proj(x_BTD))
        q = self.q_up_proj(q_low)
        c_BTC, k_rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split([self.latent_dim, self.rope_dim], dim=-1)
        c_BSC = self.kv_a_layernorm(c_BTC)
        by_hand = latent_attention_by_hand(x_BTD) if cache is None else None
        if by_hand is not None:  # what follows, with a backward pass by hand
            sizes = HeadSizes(self.num_heads, self.nope_dim, self.rope_dim, self.value_dim)
            kv, turn_TR = self.kv_b_proj(c_BSC), torch.complex(*angles)
            out, largest_H = by_hand(q, kv, k_rope_BTR, turn_TR, sizes, self.scale)
            return self.o_proj(out), largest_H

        q_nope_BTHN, q_rope_BTHR = q.unflatten(-1, (self.num_heads, -1)).split(
            [self.nope_dim, self.rope_dim], dim=-1
        )
        q_rope_BTHR, k_rope_BSR = rotate(q_rope_BTHR, *angles), rotate(k_rope_BTR, *angles)
        if cache is not None:  # the point of MLA: C + R numbers per token are all that is kept
            (latents_BSL,) = cache.append(torch.cat((c_BSC, k_rope_BSR), dim=-1))
            if x_BTD.shape[1] == 1 and not want_max_logits:
                return self._decode(q_nope_BTHN, q_rope_BTHR, latents_BSL), None
            c_BSC, k_rope_BSR = latents_BSL.split([self.latent_dim, self.rope_dim], dim=-1)

        kv_BSHX = self.kv_b_proj(c_BSC).unflatten(-1, (self.num_heads, -1))
        k_nope_BSHN, v_BSHV = kv_BSHX.split([self.nope_dim, self.value_dim], dim=-1)
        k_rope_BSHR = k_rope_BSR.unsqueeze(2).expand(-1, -1, self.num_heads, -1)
        q_BHTX = torch.cat((q_nope_BTHN, q_rope_BTHR), dim=-1).transpose(1, 2)
        k_BHSX = torch.cat((k_nope_BSHN, k_rope_BSHR), dim=-1).transpose(1, 2)
        out_BHTV, max_logits_H = attend(
            q_BHTX, k_BHSX, v_BSHV.transpose(1, 2), self.scale, want_max_logits=want_max_logits
        )
        return self.o_proj(out_BHTV.transpose(1, 2).flatten(-2)), max_logits_H

    def _decode(
        self,
        q_nope_B1HN: torch.Tensor,
        q_rope_B1HR: torch.Tensor,
        latents_BSL: torch.Tensor,
    ) -> torch.Tensor:
        """Attend from one new token without expanding the cache ("absorption"); L = C + R.

        q . (U_k c) = (U_k^T q) . c, and the values' expansion is moved behind the weighted sum alike: the same
        function as the expanded form, for H * (2C + R) products per cached token instead of H * C * (N + V).
        """
        c_BSC = latents_BSL[..., : self.latent_dim]
        w_HXC = self.kv_b_proj.weight.to(c_BSC.dtype).view(self.num_heads, -1, self.latent_dim)
        k_up_HNC, v_up_HVC = w_HXC.split([self.nope_dim, self.value_dim], dim=1)
        q_latent_BHC = torch.einsum("bhn,hnc->bhc", q_nope_B1HN[:, 0], k_up_HNC)
        logits_BHS = torch.cat((q_latent_BHC, q_rope_B1HR[:, 0]), dim=-1) @ latents_BSL.transpose(1, 2)
        at_least_fp32 = torch.promote_types(logits_BHS.dtype, torch.float32)
        weights_BHS = (logits_BHS.to(at_least_fp32) * self.scale).softmax(dim=-1).to(c_BSC.dtype)
        out_BHV = torch.einsum("bhc,hvc->bhv", weights_BHS @ c_BSC, v_up_HVC)
        return self.o_proj(out_BHV.flatten(1)).unsqueeze(1)

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Multiply each head's logits by its gamma (Kimi K2, algorithm 1).

        Queries and keys without position share the factor as square roots; the rotary part takes it whole on the
        query's side, because the rotary key belongs to all heads and must stay as it is.
        """
        root_H11, gamma_H11 = gamma_H.sqrt()[:, None, None], gamma_H[:, None, None]
        q_HXQ = self.q_up_proj.weight.unflatten(0, (self.num_heads, -1))
        q_HXQ[:, : self.nope_dim] *= root_H11
        q_HXQ[:, self.nope_dim :] *= gamma_H11
        kv_HXC = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        kv_HXC[:, : self.nope_dim] *= root_H11
