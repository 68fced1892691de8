"""Which path torch takes on CUDA, by compute capability. Read from torch's sources near 2.13; a real GPU decides."""

from __future__ import annotations

from typing import NamedTuple

import torch

Capability = tuple[int, int]
HALF = (torch.bfloat16, torch.float16)


class Query(NamedTuple):
    """What the choice of an attention kernel depends on."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    dtype: torch.dtype
    masked: bool = False
    dropout: float = 0.0
    causal: bool = False
    last_stride_of_v: int = 1


def attention_kernel(call: Query, capability: Capability) -> str:
    """cudnn, flash, efficient or math: the first that takes the call (aten/native/transformers/cuda/sdp_utils.cpp)."""
    order = ("cudnn", "flash", "efficient") if capability[0] in (9, 10) else ("flash", "efficient", "cudnn")
    takes = {"cudnn": takes_cudnn, "flash": takes_flash, "efficient": takes_efficient}
    return next((name for name in order if takes[name](call, capability)), "math")


def has_fast_half(dtype: torch.dtype, capability: Capability) -> bool:
    """Whether fused kernels exist for this half precision."""
    return dtype in HALF and (capability[0] >= 8 or dtype == torch.float16)


def takes_cudnn(call: Query, capability: Capability) -> bool:
    """cuDNN's fused attention."""
    sizes = (call.q[-1], call.v[-1])
    return (
        capability[0] >= 8
        and has_fast_half(call.dtype, capability)
        and all(size <= 128 and size % 8 == 0 for size in sizes)
        and call.k[-2] != 1
        and call.dropout == 0
        and call.last_stride_of_v == 1
    )


def takes_flash(call: Query, capability: Capability) -> bool:
    """FlashAttention: equal widths of keys and values, no mask, and as many keys as queries if causal."""
    return (
        capability[0] >= 8
        and has_fast_half(call.dtype, capability)
        and not call.masked
        and call.q[-1] == call.v[-1] <= 256
        and not (call.causal and call.q[-2] != call.k[-2])
    )


def takes_efficient(call: Query, capability: Capability) -> bool:
    """The memory-efficient kernel: rows of whole 16 bytes."""
    multiple = 8 if call.dtype in HALF and capability[0] >= 7 else 4 if capability[0] >= 8 else 1
    known = call.dtype in (torch.float16, torch.float32) or has_fast_half(call.dtype, capability)
    return known and call.q[-1] % multiple == 0 and call.v[-1] % multiple == 0


def groups_in_one_kernel(dtype: torch.dtype, capability: Capability) -> bool:
    """Whether a grouped product is one kernel. Otherwise torch reads the offsets and multiplies group after group."""
    return dtype == torch.bfloat16 and capability[0] in (9, 10)
