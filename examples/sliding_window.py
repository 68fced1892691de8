"""Your own parts in a run: an attention with a sliding window, and a feed-forward layer with Swish.

    nanokimi train --data text.txt --plugin examples/sliding_window.py:SlidingWindowAttention
    nanokimi sample runs/... --plugin examples/sliding_window.py:SlidingWindowAttention
    nanokimi compare --data text.txt --arms NanoGPT --plugin examples/sliding_window.py:SlidingWindowAttention \\
        --plugin examples/sliding_window.py:SwishLayer

nanokimi/model/variants/variant.py describes the interface. The audit of every run checks whether your part is causal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import VariantConfig
from nanokimi.model.cache import LayerCache
from nanokimi.model.layers import rotate

WINDOW = 16  # tokens that a query sees, including its own


class SlidingWindowAttention(nn.Module):
    """Multi-head attention in which each token sees only the last WINDOW tokens."""

    plugs_into = "attention"
    uses_cache = True

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self,
        x_BTD: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: LayerCache | None = None,
        want_max_logits: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D), and each head's largest logit (H,) if wanted."""
        q_BTHX, k_BSHX, v_BSHX = self.qkv_proj(x_BTD).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if angles is not None:
            q_BTHX, k_BSHX = rotate(q_BTHX, *angles), rotate(k_BSHX, *angles)
        if cache is not None:  # it keeps more than the window, for simplicity
            k_BSHX, v_BSHX = cache.append(k_BSHX, v_BSHX)
        q_BHTX, k_BHSX, v_BHSX = (x.transpose(1, 2) for x in (q_BTHX, k_BSHX, v_BSHX))
        T, S = q_BHTX.shape[2], k_BHSX.shape[2]
        ages_TS = torch.arange(S - T, S, device=x_BTD.device)[:, None] - torch.arange(S, device=x_BTD.device)
        visible_TS = (ages_TS >= 0) & (ages_TS < WINDOW)
        logits_BHTS = q_BHTX.float() @ k_BHSX.float().mT * self.head_dim**-0.5
        logits_BHTS = logits_BHTS.masked_fill(~visible_TS, float("-inf"))
        out_BHTX = logits_BHTS.softmax(dim=-1).to(v_BHSX.dtype) @ v_BHSX
        max_logits_H = logits_BHTS.detach().amax(dim=(0, 2, 3)) if want_max_logits else None
        return self.o_proj(out_BHTX.transpose(1, 2).flatten(-2)), max_logits_H

    def flops_per_token(self, context_length: int) -> float:
        """Two products with each key in the window, for logits and values; nanokimi counts the matrices itself."""
        seen = sum(min(position + 1, WINDOW) for position in range(context_length)) / context_length
        return 4 * self.num_heads * self.head_dim * seen

    @torch.no_grad()
    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """What muonclip needs: multiply each head's logits by its gamma, shared by queries and keys."""
        for parameter in self.qkv_proj.parameters():
            qkv_3HX = parameter.view(3, self.num_heads, -1)
            qkv_3HX[:2] *= gamma_H.sqrt()[:, None]


class SwishLayer(nn.Module):
    """Two matrices around x * sigmoid(x), replacing the experts of every block that has them."""

    plugs_into = "feed_forward"

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.moe_intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.up_proj(x_BTD)))
