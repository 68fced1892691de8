"""Next-token cross-entropy of many logits, without three more copies of them.

With a large vocabulary, the logits are the largest tensor of a step. torch's cross-entropy keeps their log-softmax in
fp32 for the backward pass, which writes two more tensors of that size. Here large logits are processed in pieces that
fit into the cache, and only the gradient is kept, in the dtype of the logits.
"""

from __future__ import annotations

import math
from typing import Any

import torch

LARGE = 2_000_000  # logits; with fewer, torch's is as fast
PIECE = 500_000  # logits that fit into a CPU's cache
MOST_PIECES = 64  # with more, the calls would take the time
PIECE_ON_GPU = 1 << 26  # logits: 256 MB in fp32, and few kernels


def cross_entropy_in_pieces(logits_BTW: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """`loss.next_token_loss` for many logits that are not in fp16. Its backward pass can run only once."""
    loss: torch.Tensor = CrossEntropyInPieces.apply(logits_BTW.flatten(0, 1), targets_BT.flatten())
    return loss


def pieces_of(logits: int, device: torch.device) -> int:
    """How many pieces so many logits are processed in on a device."""
    if device.type == "cpu":
        return min(math.ceil(logits / PIECE), MOST_PIECES)
    return math.ceil(logits / PIECE_ON_GPU)


class CrossEntropyInPieces(torch.autograd.Function):
    """Loss and gradient, computed together for a piece of the tokens at a time."""

    @staticmethod
    def forward(ctx: Any, logits_MW: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """The mean loss. The gradient is computed as well and kept for `backward`."""
        tokens = len(targets_M)
        rows = math.ceil(tokens / pieces_of(logits_MW.numel(), logits_MW.device))
        gradient_MW = torch.empty_like(logits_MW)
        pieces = (logits_MW.split(rows), targets_M.split(rows), gradient_MW.split(rows))
        total = torch.zeros((), device=logits_MW.device)
        for logits_RW, targets_R, gradient_RW in zip(*pieces, strict=True):
            log_p_RW = logits_RW.log_softmax(dim=-1, dtype=torch.float32)
            total -= log_p_RW.gather(1, targets_R[:, None]).sum()
            p_RW = log_p_RW.exp_()
            p_RW.scatter_add_(1, targets_R[:, None], p_RW.new_full((len(targets_R), 1), -1.0))
            gradient_RW.copy_(p_RW.div_(tokens))
        ctx.save_for_backward(gradient_MW)
        return total / tokens

    @staticmethod
    def backward(ctx: Any, *scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient times that of the loss, in place, as it is used only once."""
        (gradient_MW,) = ctx.saved_tensors
        return gradient_MW.mul_(scale[0]), None
