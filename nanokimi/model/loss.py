"""The training loss of every model, next-token cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def next_token_loss(logits_BTW: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood of the targets, in nats, computed in fp32."""
    return F.cross_entropy(logits_BTW.float().flatten(0, 1), targets_BT.flatten())
