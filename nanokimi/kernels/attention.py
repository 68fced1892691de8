"""Attention on GPUs, and in bf16 on a CPU, where torch's fused kernel has a slow backward pass (docs/performance.md).

On a CPU: eager, three batched operations, for short sequences. Fused: the core of MLA, including rotation, with its own
backward pass. C (attention.c): softmax attention and MLA, neither with a T x T matrix. All of them find the largest
logits without computing the logits a second time. On a GPU attention is torch's fused kernel, as in the reference, and
the largest logits take few, large products.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nanokimi.kernels.structs import KERNELS, pointers, require_memory, struct
from nanokimi.model.attention import (
    Angles,
    HeadSizes,
    keys_and_values,
    latent_attention,
    rotated_queries,
)
from nanokimi.model.layers import rotate
from nanokimi.model.sdpa import attend, causal_attention
from nanokimi.runtime.c_compiler import native_library

LONGEST_EAGER = 1024  # tokens; with more, a T x T matrix for each head takes too much memory
HALF_PRECISION = (torch.bfloat16, torch.float16)
LOGITS_AT_ONCE, FEWEST_QUERIES = 1 << 25, 64  # on a GPU: 128 MB in fp32, or more for the fewest queries
AttentionLayer = struct("batch tokens heads nope rope value", "scale", "k_rope rotations log_sums")
Heads = struct("batch token head", "", "numbers")


def eager_attend(
    q_BHTX: torch.Tensor,
    k_BHSX: torch.Tensor,
    v_BHSV: torch.Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    want_max_logits: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sdpa.attend`, by `eager_attention` where that is faster."""
    if not is_whole_bf16(q_BHTX, k_BHSX, dropout) or q_BHTX.shape[2] > LONGEST_EAGER:
        return attend(q_BHTX, k_BHSX, v_BHSV, scale, dropout=dropout, want_max_logits=want_max_logits)
    return eager_attention(q_BHTX, k_BHSX, v_BHSV, scale)


def native_attend(
    q_BHTX: torch.Tensor,
    k_BHSX: torch.Tensor,
    v_BHSV: torch.Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    want_max_logits: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sdpa.attend`, in C where that is faster."""
    if not is_whole_bf16(q_BHTX, k_BHSX, dropout):
        return attend(q_BHTX, k_BHSX, v_BHSV, scale, dropout=dropout, want_max_logits=want_max_logits)
    return NativeAttention.apply(attention_library(), q_BHTX, k_BHSX, v_BHSV.to(q_BHTX.dtype), scale)


def is_whole_bf16(q_BHTX: torch.Tensor, k_BHSX: torch.Tensor, dropout: float) -> bool:
    """Whether queries and keys are of the same tokens and in bf16, without dropout."""
    return (
        q_BHTX.dtype == k_BHSX.dtype == torch.bfloat16
        and q_BHTX.shape[2] == k_BHSX.shape[2]
        and dropout == 0.0
    )


def attend_on_gpu(
    q_BHTX: torch.Tensor,
    k_BHSX: torch.Tensor,
    v_BHSV: torch.Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    want_max_logits: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sdpa.attend`, with `max_logits_on_gpu`."""
    max_logits_H = max_logits_on_gpu(q_BHTX, k_BHSX, scale) if want_max_logits else None
    return causal_attention(q_BHTX, k_BHSX, v_BHSV, scale, dropout), max_logits_H


@torch.no_grad()
def max_logits_on_gpu(
    q_BHTX: torch.Tensor, k_BHSX: torch.Tensor, scale: float, chunk: int | None = None
) -> torch.Tensor:
    """`sdpa.causal_max_logits` (H,), `chunk` queries at a time (None: as many as LOGITS_AT_ONCE allows).

    CUDA multiplies half precision with sums and results in fp32, which is as exact: products of such numbers are.
    """
    B, H, queries, X = q_BHTX.shape
    keys, device = k_BHSX.shape[2], q_BHTX.device
    chunk = min(chunk or max(FEWEST_QUERIES, LOGITS_AT_ONCE // (B * H * keys)), queries)
    unseen_CC = torch.full((chunk, chunk), float("-inf"), device=device).triu_(1)
    q_NTX, k_NSX = q_BHTX.reshape(B * H, queries, X), k_BHSX.reshape(B * H, keys, X)
    if not (device.type == "cuda" and q_NTX.dtype == k_NSX.dtype and q_NTX.dtype in HALF_PRECISION):
        q_NTX, k_NSX = q_NTX.float(), k_NSX.float()
    max_H = q_BHTX.new_full((H,), float("-inf"), dtype=torch.float32)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, queries, chunk):
            stop = min(start + chunk, queries)
            rows, seen = stop - start, keys - queries + stop
            logits_NRS = fp32_product(q_NTX[:, start:stop], k_NSX[:, :seen].mT)
            logits_NRS[..., seen - rows :] += unseen_CC[:rows, :rows]  # earlier keys are visible to all
            max_H = torch.maximum(max_H, logits_NRS.amax(dim=(1, 2)).view(B, H).amax(dim=0))
    return max_H * scale


def fp32_product(q_NTX: torch.Tensor, k_NXS: torch.Tensor) -> torch.Tensor:
    """q k in fp32."""
    if q_NTX.dtype == torch.float32:
        return torch.bmm(q_NTX, k_NXS)
    return torch.bmm(q_NTX, k_NXS, out_dtype=torch.float32)


def eager_latent_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    angles: Angles,
    sizes: HeadSizes,
    scale: float,
    want_max_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attention.latent_attention` with `eager_attend`, which torch.compile can trace."""
    q_BHTX = rotated_queries(q, angles, sizes)
    k_BHTX, v_BHTV = keys_and_values(kv, rotate(k_rope_BTR, *angles), sizes)
    out_BHTV, max_logits_H = eager_attend(q_BHTX, k_BHTX, v_BHTV, scale, want_max_logits=want_max_logits)
    return out_BHTV.transpose(1, 2).flatten(-2), max_logits_H


def fused_latent_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    angles: Angles,
    sizes: HeadSizes,
    scale: float,
    want_max_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attention.latent_attention` with its own backward pass, for sequences up to LONGEST_EAGER."""
    if q.shape[1] > LONGEST_EAGER:
        return latent_attention(q, kv, k_rope_BTR, angles, sizes, scale, want_max_logits)
    return FusedLatentAttention.apply(q, kv, k_rope_BTR, torch.complex(*angles), sizes, scale)


def native_latent_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    k_rope_BTR: torch.Tensor,
    angles: Angles,
    sizes: HeadSizes,
    scale: float,
    want_max_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attention.latent_attention` in C, for queries, keys and values in bf16."""
    library, rotation_TR = attention_library(), torch.complex(*angles)
    return NativeLatentAttention.apply(library, q, kv, k_rope_BTR, rotation_TR, sizes, scale)


def attention_library() -> ctypes.CDLL | None:
    """The functions of attention.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "attention.c")


def eager_attention(
    q_BHTX: torch.Tensor, k_BHTX: torch.Tensor, v_BHTV: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, softmax and weighted sum as three batched operations, and each head's largest logit, (H,) in fp32.

    Logits are rounded to the dtype of the queries (bf16: by up to 0.4%), which the fused kernel avoids.
    """
    B, H, T, X = q_BHTX.shape
    unseen_TT = torch.full((T, T), float("-inf"), dtype=q_BHTX.dtype, device=q_BHTX.device).triu_(1)
    with torch.autocast(q_BHTX.device.type, enabled=False):
        q_PTX, k_PTX = q_BHTX.reshape(B * H, T, X), k_BHTX.reshape(B * H, T, X)
        logits_PTT = torch.baddbmm(unseen_TT, q_PTX, k_PTX.mT, alpha=scale)
        out_PTV = logits_PTT.softmax(dim=-1) @ v_BHTV.reshape(B * H, T, -1).to(q_BHTX.dtype)
        max_logits_H = logits_PTT.detach().amax(dim=(1, 2)).view(B, H).amax(dim=0).float()
    return out_PTV.view(B, H, T, -1), max_logits_H


def rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """The pairs of the last axis of `x` (B, T, ..., R), rotated by complex factors that broadcast to theirs."""
    # Always copied, because complex numbers must start at an even offset.
    wide = x.to(rotation.real.dtype, copy=True).contiguous().unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(wide) * rotation).flatten(-2)


class FusedLatentAttention(torch.autograd.Function):
    """The middle of MLA: from queries (B, T, H * (N + R)), expanded keys and values (B, T, H * (N + V)) and the shared
    rotary key (B, T, R) to the heads' outputs (B, T, H * V) and each head's largest scaled logit (H,)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        kv: torch.Tensor,
        k_rope_BTR: torch.Tensor,
        rotation_TR: torch.Tensor,
        sizes: HeadSizes,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`rotation_TR` is cos + i sin of each pair's angle, (T, R / 2)."""
        B, T, (H, N, R, V) = q.shape[0], q.shape[1], sizes
        q_BTHX, kv_BTHX = q.unflatten(-1, (H, -1)), kv.unflatten(-1, (H, -1))
        q_BHTX, k_BHTX = (q.new_empty(B, H, T, N + R) for _ in range(2))
        q_BHTX[..., :N] = q_BTHX[..., :N].transpose(1, 2)
        q_BHTX[..., N:] = rotated(q_BTHX[..., N:], rotation_TR[:, None]).transpose(1, 2)
        k_BHTX[..., :N] = kv_BTHX[..., :N].transpose(1, 2)
        k_BHTX[..., N:] = rotated(k_rope_BTR, rotation_TR)[:, None]
        v_PTV = kv_BTHX[..., N:].transpose(1, 2).reshape(B * H, T, V)
        q_PTX, k_PTX = q_BHTX.flatten(0, 1), k_BHTX.flatten(0, 1)
        unseen_TT = torch.full((T, T), float("-inf"), dtype=q.dtype).triu_(1)
        logits_PTT = torch.baddbmm(unseen_TT, q_PTX, k_PTX.mT, alpha=scale)
        max_logits_H = logits_PTT.amax(dim=(1, 2)).view(B, H).amax(dim=0).to(rotation_TR.real.dtype)
        weights_PTT = logits_PTT.softmax(dim=-1)
        ctx.save_for_backward(q_PTX, k_PTX, v_PTV, weights_PTT, rotation_TR)
        ctx.sizes, ctx.scale = sizes, scale
        ctx.mark_non_differentiable(max_logits_H)
        out_BHTV = torch.bmm(weights_PTT, v_PTV).view(B, H, T, V)
        return out_BHTV.transpose(1, 2).reshape(B, T, H * V), max_logits_H

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, of keys and values, and of the rotary key."""
        q_PTX, k_PTX, v_PTV, weights_PTT, rotation_TR = ctx.saved_tensors
        B, T, (H, N, R, V) = grad.shape[0], grad.shape[1], ctx.sizes
        grad_PTV = grad.unflatten(-1, (H, V)).transpose(1, 2).reshape(B * H, T, V)
        weights_grad_PTT = torch.bmm(grad_PTV, v_PTV.mT)
        logits_grad_PTT = torch._softmax_backward_data(weights_grad_PTT, weights_PTT, -1, weights_PTT.dtype)
        logits_grad_PTT.mul_(ctx.scale)
        q_grad_BHTX = torch.bmm(logits_grad_PTT, k_PTX).view(B, H, T, -1)
        k_grad_BHTX = torch.bmm(logits_grad_PTT.mT, q_PTX).view(B, H, T, -1)
        inverse_TR = rotation_TR.conj()
        q_grad, kv_grad = grad.new_empty(B, T, H, N + R), grad.new_empty(B, T, H, N + V)
        q_grad[..., :N] = q_grad_BHTX[..., :N].transpose(1, 2)
        q_grad[..., N:] = rotated(q_grad_BHTX[..., N:], inverse_TR).transpose(1, 2)
        kv_grad[..., :N] = k_grad_BHTX[..., :N].transpose(1, 2)
        kv_grad[..., N:] = torch.bmm(weights_PTT.mT, grad_PTV).view(B, H, T, V).transpose(1, 2)
        k_rope_grad_BTR = rotated(k_grad_BHTX[..., N:].sum(dim=1, dtype=rotation_TR.real.dtype), inverse_TR)
        return q_grad.flatten(-2), kv_grad.flatten(-2), k_rope_grad_BTR.to(grad.dtype), None, None, None


class NativeAttention(torch.autograd.Function):
    """Causal softmax attention of queries (B, H, T, X) over keys (B, H, T, X) and values (B, H, T, V), all in bf16: the
    heads' outputs (B, H, T, V) and each head's largest scaled logit (H,). No tensor of T x T numbers is made."""

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each tensor, only the last axis must be contiguous."""
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
        rotation_TR: torch.Tensor,
        sizes: HeadSizes,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`rotation_TR` is cos + i sin of each pair's angle, (T, R / 2), in fp32."""
        B, T, H = q.shape[0], q.shape[1], sizes.heads
        rotations = torch.view_as_real(rotation_TR).flatten(1)
        assert rotations.shape == (T, sizes.rope), f"{T} tokens, but angles of {len(rotations)} positions"
        q, kv, k_rope_BTR, rotations = (x.contiguous() for x in (q, kv, k_rope_BTR, rotations))
        log_sums, largest_BH = rotations.new_empty(B, H, T), rotations.new_empty(B, H)
        ctx.save_for_backward(q, kv, k_rope_BTR, rotations, log_sums)
        ctx.library, ctx.sizes, ctx.layer = library, sizes, (B, T, *sizes, scale)
        out = q.new_empty(B, T, H, sizes.value)
        arguments = [*_latent_heads(q, kv, sizes), *_heads(out), *pointers(largest_BH)]
        require_memory(
            library.attention_forward(
                *_attention_layer(ctx.layer, k_rope_BTR, rotations, log_sums), *arguments
            )
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
    """The first arguments of both functions: the layer and the number of threads."""
    layer = AttentionLayer(*sizes, *(None if t is None else t.data_ptr() for t in tensors))
    return ctypes.byref(layer), torch.get_num_threads()


def _heads(*tensors: torch.Tensor) -> list[Any]:
    """Addresses and strides of heads (B, T, H, size)."""
    assert all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in tensors)
    return [ctypes.byref(Heads(*x.stride()[:3], x.data_ptr())) for x in tensors]


def _by_token(*tensors: torch.Tensor) -> list[Any]:
    """Addresses and strides of heads (B, H, T, size)."""
    return _heads(*(x.transpose(1, 2) for x in tensors))


def _latent_heads(q: torch.Tensor, kv: torch.Tensor, sizes: HeadSizes) -> list[Any]:
    """Addresses and strides of the queries, keys and values of latent attention."""
    kv_BTHX = kv.unflatten(-1, (sizes.heads, -1))
    return _heads(q.unflatten(-1, (sizes.heads, -1)), kv_BTHX[..., : sizes.nope], kv_BTHX[..., sizes.nope :])
