"""RMSNorm, attention and experts of a training step in C (kernels/), in bf16 on CPUs that multiply in it.

The plain forms are in `by_hand.py` and `attend.py`, which serve where there is no C compiler and under torch.compile.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.native import KERNELS, native_library, pointers, require_memory, struct

VECTOR = 16  # numbers; widths must be whole vectors

NormLayer = struct("rows width stride", "eps", "wide narrow gain scale")
AttentionLayer = struct("batch tokens heads nope rope value", "scale", "k_rope turn log_sums")
Heads = struct("batch token head", "", "numbers")
ExpertsLayer = struct(
    "tokens chosen experts width hidden", "", "choice gates gate up down x gate_rows up_rows"
)


def experts_kernel(width: int, hidden: int) -> ctypes.CDLL | None:
    """The functions for experts of these widths, if there are any on this machine."""
    if width % VECTOR or hidden % VECTOR or not cpu_has_fast_bf16():
        return None
    return native_library(KERNELS / "experts.c")


class NativeExperts(torch.autograd.Function):
    """sum_k gates[m, k] * SwiGLU of expert chosen[m, k] on token m: (M, D) in bf16 -> (M, D) in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
        x_MD: torch.Tensor,
        gates_MK: torch.Tensor,
        gate_EFD: torch.Tensor,
        up_EFD: torch.Tensor,
        down_EDF: torch.Tensor,
        chosen_MK: torch.Tensor,
    ) -> torch.Tensor:
        """`x_MD` in bf16; gates (M, K) and the experts' matrices in fp32."""
        (M, K), F = chosen_MK.shape, gate_EFD.shape[1]
        kept = [t.contiguous() for t in (chosen_MK, gates_MK, gate_EFD, up_EFD, down_EDF, x_MD)]
        kept += [x_MD.new_empty(M * K, F) for _ in range(2)]
        y_MD = torch.empty(x_MD.shape, dtype=torch.float32)
        ctx.save_for_backward(*kept)
        ctx.library = library
        require_memory(library.experts_forward(*_experts_layer(kept), *pointers(y_MD)))
        return y_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of tokens, gates and the three stacks of matrices."""
        kept = ctx.saved_tensors
        _, gates_MK, gate_EFD, up_EFD, down_EDF, x_MD, _, _ = kept
        grads = [
            torch.empty_like(t, dtype=torch.float32) for t in (x_MD, gates_MK, gate_EFD, up_EFD, down_EDF)
        ]
        arguments = pointers(grad_MD.float().contiguous(), *grads)
        require_memory(ctx.library.experts_backward(*_experts_layer(kept), *arguments))
        return None, grads[0].to(x_MD.dtype), *grads[1:], None


def _experts_layer(kept: Any) -> tuple[Any, int]:
    """The first arguments of both functions: the layer, and how many threads may work on it."""
    chosen_MK, _, gate_EFD, *_ = kept
    E, F, D = gate_EFD.shape
    layer = ExpertsLayer(*chosen_MK.shape, E, D, F, *(t.data_ptr() for t in kept))
    return ctypes.byref(layer), torch.get_num_threads()


def attention_kernel() -> ctypes.CDLL | None:
    """The functions for attention, if there are any on this machine."""
    return native_library(KERNELS / "attention.c") if cpu_has_fast_bf16() else None


class NativeAttention(torch.autograd.Function):
    """Causal softmax attention of queries (B, H, T, X) over keys (B, H, T, X) and values (B, H, T, V), all in bf16: the
    heads' outputs (B, H, T, V) and each head's largest scaled logit (H,). No tensor of T x T numbers is made."""

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors may lie anyhow, as long as the last axis lies in a row."""
        B, H, T, X = q.shape
        kept = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v)]
        log_sums = q.new_empty(B, H, T, dtype=torch.float32)
        ctx.save_for_backward(*kept, log_sums)
        ctx.library, ctx.layer = library, (B, T, H, X, 0, v.shape[-1], scale)
        out, largest_BH = q.new_empty(B, T, H, v.shape[-1]), log_sums.new_empty(B, H)
        arguments = [*_by_token(*kept), *_heads(out), *pointers(largest_BH)]
        require_memory(
            library.attention_forward(*_attention_layer(ctx.layer, None, None, log_sums), *arguments)
        )
        largest_H = largest_BH.amax(dim=0)
        ctx.mark_non_differentiable(largest_H)
        return out.transpose(1, 2), largest_H

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        *kept, log_sums = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grads = [x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in kept]
        arguments = _by_token(*kept, grad, *grads)
        require_memory(
            ctx.library.attention_backward(
                *_attention_layer(ctx.layer, None, None, log_sums), *arguments, None
            )
        )
        return None, *grads, None


class HeadSizes(NamedTuple):
    """How the columns of queries and of keys and values divide."""

    heads: int  # H
    nope: int  # N: without position
    rope: int  # R: rotary
    value: int  # V


class NativeLatentAttention(torch.autograd.Function):
    """The middle of MLA: from queries (B, T, H * (N + R)), expanded keys and values (B, T, H * (N + V)) and the shared
    rotary key (B, T, R), all in bf16, to the heads' outputs (B, T, H * V) and each head's largest scaled logit (H,)."""

    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
        q: torch.Tensor,
        kv: torch.Tensor,
        k_rope_BTR: torch.Tensor,
        turn_TR: torch.Tensor,
        sizes: HeadSizes,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`turn_TR` is cos + i sin of each pair's angle, (T, R / 2), in fp32."""
        B, T, H = q.shape[0], q.shape[1], sizes.heads
        turns = torch.view_as_real(turn_TR).flatten(1)
        assert turns.shape == (T, sizes.rope), f"{T} tokens, but angles of {len(turns)} positions"
        q, kv, k_rope_BTR, turns = (x.contiguous() for x in (q, kv, k_rope_BTR, turns))
        log_sums, largest_BH = turns.new_empty(B, H, T), turns.new_empty(B, H)
        ctx.save_for_backward(q, kv, k_rope_BTR, turns, log_sums)
        ctx.library, ctx.sizes, ctx.layer = library, sizes, (B, T, *sizes, scale)
        out = q.new_empty(B, T, H, sizes.value)
        arguments = [*_latent_heads(q, kv, sizes), *_heads(out), *pointers(largest_BH)]
        require_memory(
            library.attention_forward(*_attention_layer(ctx.layer, k_rope_BTR, turns, log_sums), *arguments)
        )
        largest_H = largest_BH.amax(dim=0)
        ctx.mark_non_differentiable(largest_H)
        return out.flatten(-2), largest_H

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, of keys and values, and of the rotary key."""
        q, kv, *rest = ctx.saved_tensors
        H, (B, T, R) = ctx.sizes.heads, rest[0].shape
        grad = grad.to(q.dtype).contiguous().unflatten(-1, (H, -1))
        q_grad, kv_grad = torch.empty_like(q), torch.empty_like(kv)
        k_rope_grad_BHTR = q.new_empty(B, H, T, R, dtype=torch.float32)
        inputs, grads = (_latent_heads(a, b, ctx.sizes) for a, b in ((q, kv), (q_grad, kv_grad)))
        arguments = [*inputs, *_heads(grad), *grads, *pointers(k_rope_grad_BHTR)]
        require_memory(ctx.library.attention_backward(*_attention_layer(ctx.layer, *rest), *arguments))
        return None, q_grad, kv_grad, k_rope_grad_BHTR.sum(dim=1).to(q.dtype), None, None, None


def _attention_layer(sizes: Any, *tensors: torch.Tensor | None) -> tuple[Any, int]:
    """The first arguments of both functions: the layer, and how many threads may work on it."""
    layer = AttentionLayer(*sizes, *(None if t is None else t.data_ptr() for t in tensors))
    return ctypes.byref(layer), torch.get_num_threads()


def _heads(*tensors: torch.Tensor) -> list[Any]:
    """Where heads' rows lie, each (B, T, H, size)."""
    assert all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in tensors)
    return [ctypes.byref(Heads(*x.stride()[:3], x.data_ptr())) for x in tensors]


def _by_token(*tensors: torch.Tensor) -> list[Any]:
    """The same for tensors (B, H, T, size)."""
    return _heads(*(x.transpose(1, 2) for x in tensors))


def _latent_heads(q: torch.Tensor, kv: torch.Tensor, sizes: HeadSizes) -> list[Any]:
    """The same for queries, keys and values of latent attention."""
    kv_BTHX = kv.unflatten(-1, (sizes.heads, -1))
    return _heads(q.unflatten(-1, (sizes.heads, -1)), kv_BTHX[..., : sizes.nope], kv_BTHX[..., sizes.nope :])


def norm_kernel() -> ctypes.CDLL | None:
    """The functions for RMSNorm to bf16, if there are any on this machine."""
    return native_library(KERNELS / "rms_norm.c") if cpu_has_fast_bf16() else None


class NativeRMSNorm(torch.autograd.Function):
    """x / rms(x) * weight: (..., D) in fp32 or bf16 -> (..., D) in bf16."""

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, x: torch.Tensor, weight_D: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`weight_D` in fp32. Of `x` only the last axis need lie in a row, if the others are evenly spaced."""
        x_MD = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.flatten(0, -2)
        x_MD = x_MD if x_MD.stride(-1) == 1 else x_MD.contiguous()
        kept = (x_MD, weight_D.contiguous(), torch.empty(len(x_MD), dtype=torch.float32))
        ctx.save_for_backward(*kept)
        ctx.library, ctx.eps = library, eps
        out = torch.empty(x.shape, dtype=torch.bfloat16)
        library.rms_norm_forward(*_norm_layer(kept, eps), *pointers(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and of the gain."""
        x_MD, weight_D, _ = ctx.saved_tensors
        x_grad, weight_grad_D = torch.empty(grad.shape, dtype=x_MD.dtype), torch.empty_like(weight_D)
        arguments = pointers(grad.to(torch.bfloat16).contiguous(), x_grad, weight_grad_D)
        require_memory(ctx.library.rms_norm_backward(*_norm_layer(ctx.saved_tensors, ctx.eps), *arguments))
        return None, x_grad, weight_grad_D, None


def _norm_layer(kept: Any, eps: float) -> tuple[Any, int]:
    """The first arguments of both functions: the layer, and how many threads may work on it."""
    x_MD, weight_D, scale_M = kept
    wide, narrow = (
        x_MD.data_ptr() if x_MD.dtype == dtype else None for dtype in (torch.float32, torch.bfloat16)
    )
    rest = (weight_D.data_ptr(), scale_M.data_ptr())
    return ctypes.byref(
        NormLayer(*x_MD.shape, x_MD.stride(0), eps, wide, narrow, *rest)
    ), torch.get_num_threads()
