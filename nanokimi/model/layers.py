"""Small parts of Kimi's blocks: RMSNorm, SwiGLU and rotary positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import YarnConfig


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last axis of `x`, any shape, computed in at least fp32 and returned in its dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight_D.shape, weight_D.to(wide), eps).to(x.dtype)


class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of 1, then by a learned gain (arXiv 1910.07467)."""

    norm = staticmethod(rms_norm)
    """`kernels` may replace it by a faster function with the same arguments."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of `x`, any shape."""
        return self.norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x): a feed-forward layer that gates its own hidden units (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


def rotary_frequencies(dim: int, theta: float, yarn: YarnConfig | None) -> torch.Tensor:
    """Radians per position for each of the dim / 2 rotating pairs, in float32.

    With YaRN (arXiv 2309.00071, section 3.2), pairs that rotate slowly within the original context are slowed down by
    `factor`, fast pairs are left alone, and those in between are interpolated.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequencies = 1.0 / theta**exponents
    if yarn is None:
        return frequencies

    def pair_with(rotations: float) -> float:
        context = yarn.original_max_position_embeddings
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), dim - 1)
    slowed = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - slowed) + frequencies / yarn.factor * slowed


def yarn_temperature(factor: float, mscale: float) -> float:
    """YaRN's correction for attention over more positions than it was trained on (arXiv 2309.00071, eq. 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


class Rotary(nn.Module):
    """Tables of cos and sin for every position, computed once for the whole model (RoPE, arXiv 2104.09864)."""

    cos_SR: torch.Tensor
    sin_SR: torch.Tensor

    def __init__(self, dim: int, theta: float, max_positions: int, yarn: YarnConfig | None) -> None:
        super().__init__()
        angles_SR = torch.outer(torch.arange(max_positions).float(), rotary_frequencies(dim, theta, yarn))
        scale = 1.0
        if yarn is not None:
            scale = yarn_temperature(yarn.factor, yarn.mscale) / yarn_temperature(
                yarn.factor, yarn.mscale_all_dim
            )
        self.register_buffer("cos_SR", angles_SR.cos() * scale, persistent=False)
        self.register_buffer("sin_SR", angles_SR.sin() * scale, persistent=False)

    def forward(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each (count, R / 2), for `count` positions from `start`."""
        return self.cos_SR[start : start + count], self.sin_SR[start : start + count]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) of the last axis, the ones DeepSeek's weights expect, by the given angles.

    `x` is (B, T, R) or (B, T, H, R), `cos` and `sin` are (T, R / 2). Computed in at least fp32, returned in the dtype
    of `x`.
    """
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
