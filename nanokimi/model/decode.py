"""The next token of one sequence by the fastest way that a model and a machine have."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from nanokimi.model.cache import Cache
from nanokimi.model.folded import FoldedKimi
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.native_decode import native_gpt, native_kimi

# Parameters; beyond, reading weights takes the time, and folding makes more of them.
LARGEST_FOLDED = 30_000_000

DecodeStep = Callable[[int, Cache], torch.Tensor]


def decode_step(model: nn.Module) -> DecodeStep:
    """A function (token id, cache that holds everything before it) -> logits (W,) of what comes next.

    The fastest one for this model and device: on the CPU in C, where there is a compiler. For a small NanoKimi it keeps
    folded copies of the weights as they are now.
    """
    weight = next(model.parameters())
    fp32_on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    if (
        isinstance(model, NanoKimi)
        and fp32_on_cpu
        and sum(p.numel() for p in model.parameters()) <= LARGEST_FOLDED
    ):
        folded = FoldedKimi(model)
        return native_kimi(folded) or folded
    if isinstance(model, NanoGPT) and fp32_on_cpu and (native := native_gpt(model)) is not None:
        return native

    def plain(token: int, cache: Cache) -> torch.Tensor:
        return cast(
            torch.Tensor, model(torch.tensor([[token]], device=weight.device), cache).logits_BTW[0, -1]
        )

    return plain
