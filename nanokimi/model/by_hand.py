"""The fast path of NanoKimi on CPUs in bf16: RMSNorm, latent attention and experts with backward passes by hand.

Each is the same function as its plain form in `layers`, `attention` and `moe`, which the tests hold it against. What
is saved is not arithmetic but small operations and memory: on a CPU a step of a small model starts thousands of
operations, most of them casts and copies that autograd keeps the results of (docs/performance.md). Where there is a C
compiler, `kernels/` does the same still faster (`native_train.py`), and these serve torch.compile and other machines.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nanokimi.model.attend import LONGEST_WRITTEN_OUT
from nanokimi.model.native_train import (
    HeadSizes,
    NativeExperts,
    NativeLatentAttention,
    NativeRMSNorm,
    attention_kernel,
    experts_kernel,
    norm_kernel,
)


def takes_fast_path(x: torch.Tensor) -> bool:
    """Whether these functions are the faster ones: bf16 autocast on a CPU.

    Under torch.compile, which does by itself what the others do, only the experts.
    """
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


class RMSNormByHand(torch.autograd.Function):
    """x / rms(x) * weight in fp32 at least, returned in `dtype`."""

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
        # torch's fused pass for LayerNorm, told that the mean is 0; it takes the gradient's mean out, which is put back
        x_grad_MD, weight_grad_D, _ = torch.ops.aten.native_layer_norm_backward(
            grad_MD, x_MD, [D], torch.zeros_like(scale_M1), scale_M1, weight_D, None, [True, True, False]
        )
        x_grad_MD.add_(((grad_MD @ weight_D).div_(D)[:, None]).mul_(scale_M1))
        return x_grad_MD.view_as(x).to(x.dtype), weight_grad_D, None, None


def norm_by_hand(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of the last axis to bf16, in C where it can be."""
    fits = weight_D.dtype == torch.float32 and x.dtype in (torch.float32, torch.bfloat16)
    if fits and (library := norm_kernel()) is not None:
        return NativeRMSNorm.apply(library, x, weight_D, eps)
    return RMSNormByHand.apply(x, weight_D, eps, torch.bfloat16)


def latent_attention_by_hand(x_BTD: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """The middle of MLA (see LatentAttentionByHand), in C where it can be; None if the plain form is the faster one."""
    if not takes_fast_path(x_BTD) or torch.compiler.is_compiling():
        return None
    if (library := attention_kernel()) is not None:
        return partial(NativeLatentAttention.apply, library)
    return LatentAttentionByHand.apply if x_BTD.shape[1] <= LONGEST_WRITTEN_OUT else None


def turned(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """The pairs of the last axis of `x` (B, T, ..., R), turned by complex factors that broadcast to theirs."""
    # A copy in any case: complex numbers must begin at an even place.
    wide = x.to(turn.real.dtype, copy=True).contiguous().unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(wide) * turn).flatten(-2)


class LatentAttentionByHand(torch.autograd.Function):
    """The middle of MLA: from queries (B, T, H * (N + R)), expanded keys and values (B, T, H * (N + V)) and the shared
    rotary key (B, T, R) to the heads' outputs (B, T, H * V) and each head's largest scaled logit (H,)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        kv: torch.Tensor,
        k_rope_BTR: torch.Tensor,
        turn_TR: torch.Tensor,
        sizes: HeadSizes,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Heads' outputs and their largest logits; `turn_TR` is cos + i sin of each pair's angle, (T, R / 2)."""
        B, T, (H, N, R, V) = q.shape[0], q.shape[1], sizes
        q_BTHX, kv_BTHX = q.unflatten(-1, (H, -1)), kv.unflatten(-1, (H, -1))
        q_BHTX, k_BHTX = (q.new_empty(B, H, T, N + R) for _ in range(2))
        q_BHTX[..., :N] = q_BTHX[..., :N].transpose(1, 2)
        q_BHTX[..., N:] = turned(q_BTHX[..., N:], turn_TR[:, None]).transpose(1, 2)
        k_BHTX[..., :N] = kv_BTHX[..., :N].transpose(1, 2)
        k_BHTX[..., N:] = turned(k_rope_BTR, turn_TR)[:, None]
        v_PTV = kv_BTHX[..., N:].transpose(1, 2).reshape(B * H, T, V)
        q_PTX, k_PTX = q_BHTX.flatten(0, 1), k_BHTX.flatten(0, 1)
        unseen_TT = torch.full((T, T), float("-inf"), dtype=q.dtype).triu_(1)
        logits_PTT = torch.baddbmm(unseen_TT, q_PTX, k_PTX.mT, alpha=scale)
        max_logits_H = logits_PTT.amax(dim=(1, 2)).view(B, H).amax(dim=0).to(turn_TR.real.dtype)
        weights_PTT = logits_PTT.softmax(dim=-1)
        ctx.save_for_backward(q_PTX, k_PTX, v_PTV, weights_PTT, turn_TR)
        ctx.sizes, ctx.scale = sizes, scale
        ctx.mark_non_differentiable(max_logits_H)
        out_BHTV = torch.bmm(weights_PTT, v_PTV).view(B, H, T, V)
        return out_BHTV.transpose(1, 2).reshape(B, T, H * V), max_logits_H

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, of keys and values, and of the rotary key."""
        q_PTX, k_PTX, v_PTV, weights_PTT, turn_TR = ctx.saved_tensors
        B, T, (H, N, R, V) = grad.shape[0], grad.shape[1], ctx.sizes
        grad_PTV = grad.unflatten(-1, (H, V)).transpose(1, 2).reshape(B * H, T, V)
        weights_grad_PTT = torch.bmm(grad_PTV, v_PTV.mT)
        logits_grad_PTT = torch._softmax_backward_data(weights_grad_PTT, weights_PTT, -1, weights_PTT.dtype)
        logits_grad_PTT.mul_(ctx.scale)
        q_grad_BHTX = torch.bmm(logits_grad_PTT, k_PTX).view(B, H, T, -1)
        k_grad_BHTX = torch.bmm(logits_grad_PTT.mT, q_PTX).view(B, H, T, -1)
        back_TR = turn_TR.conj()
        q_grad, kv_grad = grad.new_empty(B, T, H, N + R), grad.new_empty(B, T, H, N + V)
        q_grad[..., :N] = q_grad_BHTX[..., :N].transpose(1, 2)
        q_grad[..., N:] = turned(q_grad_BHTX[..., N:], back_TR).transpose(1, 2)
        kv_grad[..., :N] = k_grad_BHTX[..., :N].transpose(1, 2)
        kv_grad[..., N:] = torch.bmm(weights_PTT.mT, grad_PTV).view(B, H, T, V).transpose(1, 2)
        k_rope_grad_BTR = turned(k_grad_BHTX[..., N:].sum(dim=1, dtype=turn_TR.real.dtype), back_TR)
        return q_grad.flatten(-2), kv_grad.flatten(-2), k_rope_grad_BTR.to(grad.dtype), None, None, None


class BlockPlan(NamedTuple):
    """Where each token-expert pair stands: an expert's rows are filled up to whole blocks, which it owns."""

    row_MK: torch.Tensor  # the row of token m's k-th expert
    token_R: torch.Tensor  # the token of each row; 0 in rows that only fill up
    owner_L: torch.Tensor  # the expert of each block
    rows: int  # of a block

    @classmethod
    def of(cls, chosen_MK: torch.Tensor, counts_E: torch.Tensor, fixed: bool = False) -> BlockPlan:
        """The plan for a choice of experts and the number of times each was chosen.

        With `fixed` there are always as many blocks as there may be, so that no size depends on the choice.
        """
        (M, K), E = chosen_MK.shape, len(counts_E)
        rows = block_rows(M * K, E)
        counts_E = counts_E.long()
        blocks_E = (counts_E + rows - 1).div(rows, rounding_mode="floor")
        ends_E = blocks_E.cumsum(0)
        few = max(4, E // 8)  # blocks come in multiples of it: each new size costs oneDNN a preparation
        blocks = M * K // rows + E if fixed else -(-int(ends_E[-1]) // few) * few
        order_P = chosen_MK.flatten().argsort(stable=True)  # pairs, grouped by expert
        shift_E = (ends_E - blocks_E) * rows - (counts_E.cumsum(0) - counts_E)
        sorted_row_P = torch.arange(M * K) + shift_E.repeat_interleave(counts_E, output_size=M * K)
        row_P = torch.empty_like(order_P).index_copy_(0, order_P, sorted_row_P)
        token_R = order_P.new_zeros(blocks * rows).index_copy_(0, sorted_row_P, order_P // K)
        owner_L = torch.searchsorted(ends_E, torch.arange(blocks), right=True).clamp_(max=E - 1)
        return cls(row_P.view(M, K), token_R, owner_L, rows)


def block_rows(pairs: int, experts: int) -> int:
    """Rows of a block: large blocks need fewer copies of the experts' matrices, small ones less filling up."""
    share = pairs // experts
    return 64 if share < 256 else 128 if share < 1024 else 256


def gathered(rows_RD: torch.Tensor, row_MK: torch.Tensor, factor_MK: torch.Tensor | None) -> torch.Tensor:
    """sum_k factor[m, k] * rows[row[m, k]], (M, D), in fp32 at least."""
    total = None
    for k in range(row_MK.shape[1]):
        part = rows_RD.index_select(0, row_MK[:, k])
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        if factor_MK is not None:
            part.mul_(factor_MK[:, k, None])
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


class ExpertsByHand(torch.autograd.Function):
    """sum_k gates[m, k] * SwiGLU of expert chosen[m, k] on token m: (M, D) -> (M, D), in fp32 at least.

    Batched products over blocks of rows, each block beside a copy of its expert's matrices. Tokens are only ever
    gathered, never added up by index, so that the result does not depend on threads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_MD: torch.Tensor,
        gates_MK: torch.Tensor,
        gate_EFD: torch.Tensor,
        up_EFD: torch.Tensor,
        down_EDF: torch.Tensor,
        plan: BlockPlan,
    ) -> torch.Tensor:
        """`x_MD` in the dtype to multiply in; gates (M, K) and the experts' matrices in fp32 at least."""
        matrices = [w.to(x_MD.dtype) for w in (gate_EFD, up_EFD, down_EDF)]
        gate_LFD, up_LFD, down_LDF = (w.index_select(0, plan.owner_L) for w in matrices)
        x_LRD = x_MD.index_select(0, plan.token_R).unflatten(0, (-1, plan.rows))
        gate_LRF, up_LRF = torch.bmm(x_LRD, gate_LFD.mT), torch.bmm(x_LRD, up_LFD.mT)
        y_RD = torch.bmm(F.silu(gate_LRF).mul_(up_LRF), down_LDF.mT).flatten(0, 1)
        ctx.save_for_backward(x_LRD, gate_LRF, up_LRF, gates_MK, *matrices)
        ctx.plan, ctx.dtype = plan, gate_EFD.dtype
        return gathered(y_RD, plan.row_MK, gates_MK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of tokens, gates and the three stacks of matrices."""
        x_LRD, gate_LRF, up_LRF, gates_MK, *matrices = ctx.saved_tensors
        plan, E = ctx.plan, len(matrices[0])
        dtype = x_LRD.dtype
        factor_R = gates_MK.new_zeros(len(plan.token_R), dtype=dtype)  # 0 in rows that only fill up
        factor_R.index_copy_(0, plan.row_MK.flatten(), gates_MK.flatten().to(dtype))
        factor_LR1 = factor_R.view(-1, plan.rows, 1)
        y_grad_LRD = grad_MD.to(dtype).index_select(0, plan.token_R).view_as(x_LRD)  # as if all gates were 1
        gate_LFD, up_LFD, down_LDF = (w.index_select(0, plan.owner_L) for w in matrices)
        hidden_grad_LRF = torch.bmm(y_grad_LRD, down_LDF)
        silu_LRF = F.silu(gate_LRF)
        hidden_LRF = silu_LRF * up_LRF
        gates_grad_R = (hidden_grad_LRF * hidden_LRF).sum(dim=-1, dtype=gates_MK.dtype).flatten()
        gates_grad_MK = gates_grad_R.index_select(0, plan.row_MK.flatten()).view_as(gates_MK)
        hidden_grad_LRF.mul_(factor_LR1)
        down_grad_LDF = torch.bmm(y_grad_LRD.mT, hidden_LRF.mul_(factor_LR1))
        gate_grad_LRF = torch.ops.aten.silu_backward(hidden_grad_LRF * up_LRF, gate_LRF)
        up_grad_LRF = silu_LRF.mul_(hidden_grad_LRF)
        x_grad_RD = torch.bmm(gate_grad_LRF, gate_LFD).baddbmm_(up_grad_LRF, up_LFD).flatten(0, 1)
        owner_EL = F.one_hot(plan.owner_L, E).to(dtype).T.contiguous()

        def owned(grad: torch.Tensor) -> torch.Tensor:
            return (owner_EL @ grad.flatten(1)).to(ctx.dtype).unflatten(1, grad.shape[1:])

        gate_grad, up_grad = (owned(torch.bmm(h.mT, x_LRD)) for h in (gate_grad_LRF, up_grad_LRF))
        x_grad_MD = gathered(x_grad_RD, plan.row_MK, None).to(dtype)
        return x_grad_MD, gates_grad_MK, gate_grad, up_grad, owned(down_grad_LDF), None


def experts_by_hand(
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    fixed: bool,
) -> torch.Tensor:
    """The experts on tokens (M, D), multiplying in bf16: in C where it can be; for `fixed` see BlockPlan.of."""
    x_MD, (_, F, D) = x_MD.to(torch.bfloat16), matrices[0].shape
    in_fp32 = all(w.dtype == torch.float32 for w in (gates_MK, *matrices))
    library = experts_kernel(D, F) if in_fp32 and not fixed else None
    if library is not None:
        return NativeExperts.apply(library, x_MD, gates_MK, *matrices, chosen_MK)
    return ExpertsByHand.apply(x_MD, gates_MK, *matrices, BlockPlan.of(chosen_MK, counts_E, fixed))
