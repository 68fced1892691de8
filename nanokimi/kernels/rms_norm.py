"""RMSNorm with its own backward pass, in torch and in C (rms_norm.c)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nanokimi.kernels.structs import KERNELS, pointers, require_memory, struct
from nanokimi.runtime.c_compiler import native_library

NormLayer = struct("rows width stride", "eps", "wide narrow gain scale")


def fused_rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`layers.rms_norm` that keeps one tensor less for the backward pass than autograd does."""
    return FusedRMSNorm.apply(x, weight_D, eps, x.dtype)


def fused_rms_norm_to_bf16(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`layers.rms_norm` with a result in bf16, to which the next operation of a training step in bf16 casts anyway."""
    return FusedRMSNorm.apply(x, weight_D, eps, torch.bfloat16)


def native_rms_norm_to_bf16(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`fused_rms_norm_to_bf16` in C, for `x` in fp32 or bf16 and a gain in fp32."""
    return NativeRMSNorm.apply(norm_library(), x, weight_D, eps)


def norm_library() -> ctypes.CDLL | None:
    """The functions of rms_norm.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "rms_norm.c")


class FusedRMSNorm(torch.autograd.Function):
    """x / rms(x) * weight, computed in at least fp32 and returned in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (wide * scale).mul_(weight_D).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and of the gain."""
        x, weight_D, scale = ctx.saved_tensors
        D, wide = x.shape[-1], scale.dtype
        grad_MD, x_MD, scale_M1 = grad.to(wide).reshape(-1, D), x.to(wide).reshape(-1, D), scale.view(-1, 1)
        # torch's fused backward pass of LayerNorm, with mean 0. It subtracts the gradient's mean, which is added back.
        x_grad_MD, weight_grad_D, _ = torch.ops.aten.native_layer_norm_backward(
            grad_MD, x_MD, [D], torch.zeros_like(scale_M1), scale_M1, weight_D, None, [True, True, False]
        )
        x_grad_MD.add_(((grad_MD @ weight_D).div_(D)[:, None]).mul_(scale_M1))
        return x_grad_MD.view_as(x).to(x.dtype), weight_grad_D, None, None


class NativeRMSNorm(torch.autograd.Function):
    """x / rms(x) * weight: (..., D) in fp32 or bf16 -> (..., D) in bf16."""

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, x: torch.Tensor, weight_D: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """`weight_D` is in fp32. Only the last axis of `x` must be contiguous, if its rows are evenly spaced."""
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
    """The first arguments of both functions: the layer and the number of threads."""
    x_MD, weight_D, scale_M = kept
    wide, narrow = (
        x_MD.data_ptr() if x_MD.dtype == dtype else None for dtype in (torch.float32, torch.bfloat16)
    )
    rest = (weight_D.data_ptr(), scale_M.data_ptr())
    return ctypes.byref(
        NormLayer(*x_MD.shape, x_MD.stride(0), eps, wide, narrow, *rest)
    ), torch.get_num_threads()
