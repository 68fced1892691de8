"""Causal latent attention: learned queries pool the past into a few vectors, and tokens attend only to those.

Each head has J learned queries, the latents. At position t, a latent holds the average of the values of positions up to
t, weighted by a softmax over their logits (a cumulative softmax, different at every t). Token t then attends to the J
vectors of its own prefix. Decoding keeps J vectors per head and layer, whatever the length of the text. In return, what
is kept of a token is decided before it is known which later tokens will need it. The idea is the Perceiver's (arXiv
2103.03206). Two of the earlier systems used one average over the whole text at every position, which sees the future.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from nanokimi.config import VariantConfig
from nanokimi.config.variant_parts import POOLING_CHUNK, has_qkv_bias, head_width
from nanokimi.model.attention import Angles
from nanokimi.model.cache import LayerCache


class Pool(NamedTuple):
    """What each latent holds of the positions so far: a softmax that can be continued without overflow."""

    log_weight_BHJ: torch.Tensor  # log of the sum of exp(logit); minus infinity before the first position
    mean_BHJX: torch.Tensor  # mean of the values, with softmax weights


def pool_chunk(pool: Pool, logits_BHJT: torch.Tensor, v_BHTX: torch.Tensor) -> tuple[Pool, torch.Tensor]:
    """Pool the next positions; return the pool after the last and the means after each (B, H, J, T, X).

    The past enters the softmax as one more position, with the log weight as its logit and the mean as its value. Only
    differences of logits are exponentiated, and none is above 0.
    """
    T = logits_BHJT.shape[-1]
    past_BHJT1 = pool.log_weight_BHJ[..., None, None].expand(-1, -1, -1, T, 1)
    unseen_TT = torch.ones(T, T, dtype=torch.bool, device=v_BHTX.device).triu(1)
    new_BHJTT = logits_BHJT.unsqueeze(-2).masked_fill(unseen_TT, float("-inf"))
    weights_BHJTS = torch.cat((past_BHJT1, new_BHJTT), dim=-1).softmax(dim=-1)
    past_BHJTX = weights_BHJTS[..., :1] * pool.mean_BHJX.unsqueeze(-2)
    new_BHPX = weights_BHJTS[..., 1:].flatten(2, 3) @ v_BHTX  # P = J * T
    pooled_BHJTX = past_BHJTX + new_BHPX.unflatten(2, (-1, T))
    log_weight_BHJ = torch.cat((pool.log_weight_BHJ.unsqueeze(-1), logits_BHJT), dim=-1).logsumexp(dim=-1)
    return Pool(log_weight_BHJ, pooled_BHJTX[..., -1, :]), pooled_BHJTX


class LatentAttention(nn.Module):
    """Causal attention over (B, T, D) through J pooled vectors for each head."""

    uses_cache = True

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        width, qkv_bias = config.hidden_size, has_qkv_bias(config)
        self.num_heads, self.num_latents = config.num_attention_heads, config.num_latents
        self.head_dim = head_width(config)
        self.scale = self.head_dim**-0.5
        all_heads = self.num_heads * self.head_dim
        self.latents = nn.Parameter(torch.empty(self.num_latents, all_heads))
        self.q_proj = nn.Linear(width, all_heads, bias=qkv_bias)
        self.k_proj = nn.Linear(width, all_heads, bias=qkv_bias)
        self.v_proj = nn.Linear(width, all_heads, bias=qkv_bias)
        self.o_proj = nn.Linear(all_heads, width, bias=config.bias)

    @torch.no_grad()
    def init_own_weights(self) -> None:
        """Give latents the usual size of a query: nearly equal latents would pool the same average for a long time."""
        nn.init.normal_(self.latents)

    def forward(
        self,
        x_BTD: torch.Tensor,
        angles: Angles | None = None,
        cache: LayerCache | None = None,
        want_max_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D) and, if wanted, each head's largest scaled logit, pooling or reading (H,)."""
        assert angles is None, "a learned query stands at no position"
        q_BHTX, k_BHTX, v_BHTX = (
            proj(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        with torch.autocast(x_BTD.device.type, enabled=False):
            dtype = torch.promote_types(x_BTD.dtype, torch.float32)
            latents_HJX = self.latents.to(dtype).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
            logits_BHJT = latents_HJX @ k_BHTX.to(dtype).mT * self.scale
            pool = self._resume(cache, logits_BHJT)
            outs, tops = [], [logits_BHJT.detach().amax(dim=(0, 2, 3))] if want_max_logits else []
            for q, logits, v in zip(
                q_BHTX.to(dtype).split(POOLING_CHUNK, dim=2),
                logits_BHJT.split(POOLING_CHUNK, dim=3),
                v_BHTX.to(dtype).split(POOLING_CHUNK, dim=2),
                strict=True,
            ):
                pool, pooled_BHJTX = pool_chunk(pool, logits, v)
                read_BHJT = torch.einsum("bhtx,bhjtx->bhjt", q, pooled_BHJTX) * self.scale
                outs.append(torch.einsum("bhjt,bhjtx->bhtx", read_BHJT.softmax(dim=2), pooled_BHJTX))
                if want_max_logits:
                    tops.append(read_BHJT.detach().amax(dim=(0, 2, 3)))
            if cache is not None:
                cache.carry(x_BTD.shape[1], *pool)
            out_BHTX = torch.cat(outs, dim=2).to(q_BHTX.dtype)
        max_logits_H = torch.stack(tops).amax(dim=0).float() if want_max_logits else None
        return self.o_proj(out_BHTX.transpose(1, 2).flatten(-2)), max_logits_H

    def _resume(self, cache: LayerCache | None, logits_BHJT: torch.Tensor) -> Pool:
        """What the latents hold of the tokens in the cache."""
        if cache is not None and cache.state:
            return Pool(*cache.state)
        B, H, J, _ = logits_BHJT.shape
        return Pool(
            logits_BHJT.new_full((B, H, J), float("-inf")), logits_BHJT.new_zeros(B, H, J, self.head_dim)
        )

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Multiply each head's latents and queries by its gamma, and thereby its logits of pooling and of reading.

        The logits of reading change only approximately so, because the vectors that are read change, too.
        """
        for parameter in (self.latents.t(), *self.q_proj.parameters()):
            rows_HX = parameter.unflatten(0, (self.num_heads, -1))
            rows_HX *= gamma_H.view(-1, *[1] * (rows_HX.dim() - 1))
