"""How far logits moved, and how far rounding may move them."""

from __future__ import annotations

import torch

TOLERANCES = {torch.float32: (5e-5, 1e-7), torch.float64: (1e-8, 1e-12)}
"""Relative to the scale of a position, and absolute in nats."""
LARGEST_SCALE = 30.0
"""Nats. Larger deviations of a logit are clamped, so that a few huge ones cannot widen the tolerance."""


def movement(logits_BTW: torch.Tensor, reference_BTW: torch.Tensor) -> torch.Tensor:
    """Largest change over the vocabulary (B, T), infinite for a logit that becomes NaN."""
    change_BTW = logits_BTW - reference_BTW
    change_BT = torch.linalg.vector_norm(change_BTW, ord=float("inf"), dim=-1)
    if bool(change_BT.isfinite().all()):
        return change_BT
    same_BTW = (logits_BTW == reference_BTW) | (logits_BTW.isnan() & reference_BTW.isnan())
    return change_BTW.abs().nan_to_num(nan=float("inf")).masked_fill(same_BTW, 0.0).amax(dim=-1)


def tolerances(logits_BTW: torch.Tensor, moving_X: torch.Tensor | None) -> torch.Tensor:
    """How much rounding may move logits, (B, T): a share of each position's scale.

    The scale is the mean deviation from the median over the columns `moving_X`. These leave out columns that are equal
    for all inputs (mostly masked ones). Deviations are clamped to LARGEST_SCALE.
    """
    share, least = TOLERANCES[torch.float64 if logits_BTW.dtype == torch.float64 else torch.float32]
    if moving_X is None or not len(moving_X):
        return torch.full_like(logits_BTW[..., 0], least)
    some_NX = logits_BTW.flatten(0, 1)[:, moving_X.to(logits_BTW.device)]
    some_NX = some_NX.masked_fill(~some_NX.isfinite(), float("nan"))
    deviation_NX = (some_NX - some_NX.nanmedian(dim=1, keepdim=True).values).abs()
    scale_N = deviation_NX.clamp(max=LARGEST_SCALE).nanmean(dim=1).nan_to_num()
    scale_N = scale_N.clamp(min=1e-3 * float(scale_N.median()))
    return (share * scale_N).clamp(min=least).view(logits_BTW.shape[:2])
