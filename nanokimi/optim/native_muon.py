"""Muon's step in C (kernels/muon.c), for processors that multiply in bf16: one pass over each matrix's memory."""

from __future__ import annotations

from typing import Any

import torch

from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.native import KERNELS, native_library, require_memory, struct

LARGEST = 1 << 19
"""Numbers in a matrix: larger ones leave a core's cache, and torch's products share their work among threads."""
Member = tuple[torch.Tensor, dict[str, Any]]  # a parameter with a gradient, and its group


Stack = struct("count rows columns nesterov", "decay step keep", "weight momentum grad")


def takes_native_step(p: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the step of this parameter is to be taken in C; `dtype` is that of Newton-Schulz."""
    return (
        p.device.type == "cpu"
        and p.dtype == torch.float32
        and p.is_contiguous()
        and dtype == torch.bfloat16
        and 0 < p.shape[-2] * p.shape[-1] <= LARGEST
    )


def native_muon_step(
    members: list[Member], buffers: list[torch.Tensor], scales: list[float], steps: int
) -> bool:
    """One step of Muon on parameters that `takes_native_step` allows; False if it cannot be taken on this machine.

    Args:
        members: the parameters, each with its group.
        buffers: the running average of each parameter's gradient, updated in place.
        scales: what an orthogonal matrix is multiplied by to have AdamW's update size, of each.
        steps: iterations of Newton-Schulz.
    """
    library = native_library(KERNELS / "muon.c") if cpu_has_fast_bf16() else None
    if library is None:
        return False
    stacks, grads = (Stack * len(members))(), []
    for index, ((p, group), buffer, scale) in enumerate(zip(members, buffers, scales, strict=True)):
        assert p.grad is not None and buffer.is_contiguous()
        grads.append(p.grad.contiguous())
        rows = p.shape[-2] // group["blocks"]
        count, lr = p.numel() // (rows * p.shape[-1]), group["lr"]
        stacks[index] = Stack(
            *(count, rows, p.shape[-1], group["nesterov"]),
            *(group["momentum"], lr * scale, 1 - lr * group["weight_decay"]),
            *(t.data_ptr() for t in (p, buffer, grads[-1])),
        )
    require_memory(library.muon_step(stacks, len(members), steps, torch.get_num_threads()))
    torch.autograd.graph.increment_version([p for p, _ in members])  # as torch's own operations in place do
    return True
