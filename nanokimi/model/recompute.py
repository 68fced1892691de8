"""Activation checkpointing: the backward pass computes a block's activations again instead of keeping them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *arguments: Any) -> Any:
    """`block(*arguments)`, computed again in the backward pass.

    The last argument says whether the largest logits are wanted. They are returned once and have no gradient, so the
    second time they are not.
    """
    if torch.compiler.is_compiling():  # it removes what is not used, and cannot trace the iterator
        return checkpoint(block, *arguments, use_reentrant=False)
    *inputs, want_max_logits = arguments
    wanted = iter([want_max_logits])
    return checkpoint(lambda *given: block(*given, next(wanted, False)), *inputs, use_reentrant=False)
