"""Faster mixtures of experts: grouped products, blocks of rows, and C (experts.c).

Grouped: torch's grouped matrix product instead of a loop over experts. Blocks and C: from tokens to tokens, including
gates, with their own backward pass. Blocks are for bf16 on a CPU, and for GPUs on which torch's grouped product is a
loop that reads the counts on the host: their number can be fixed, so that the host waits for nothing.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nanokimi.kernels.structs import KERNELS, pointers, require_memory, struct
from nanokimi.model.moe import mix_experts
from nanokimi.runtime.c_compiler import native_library

VECTOR = 16  # numbers; widths must be multiples of it
ExpertsLayer = struct(
    "tokens chosen experts width hidden", "", "choice gates gate up down x gate_rows up_rows"
)
Matrices = tuple[torch.Tensor, ...]
"""Of SwiGLU experts: gate (E, F, D), up (E, F, D), down (E, D, F)."""


def grouped_linear(x_PD: torch.Tensor, counts_E: torch.Tensor, weight_EFD: torch.Tensor) -> torch.Tensor:
    """`moe.expert_linear` as one grouped product, which does not copy the counts to the host."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    dtype = product_dtype(x_PD)
    return F.grouped_mm(x_PD.to(dtype), weight_EFD.to(dtype).mT, offs=ends_E)


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which autocast multiplies, or that of `x` without autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def can_group(element_size: int, *matrices: torch.Tensor) -> bool:
    """Whether torch's grouped product takes these matrices: their rows must be multiples of 16 bytes."""
    return all(size * element_size % 16 == 0 for matrix in matrices for size in matrix.shape[1:])


def blocked_experts(
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: Matrices,
) -> torch.Tensor:
    """`moe.mix_experts` in blocks of rows, multiplied in bf16."""
    plan = BlockPlan.of(chosen_MK, counts_E)
    return BlockedExperts.apply(x_MD.to(torch.bfloat16), gates_MK, *matrices, plan)


def traceable_experts(
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: Matrices,
) -> torch.Tensor:
    """`blocked_experts` with the largest possible number of blocks, in the dtype of autocast, if it is on.

    torch.compile needs fixed sizes, and on a GPU the host would have to wait for the number that is needed.
    """
    plan = BlockPlan.of(chosen_MK, counts_E, fixed=True)
    return BlockedExperts.apply(x_MD.to(product_dtype(x_MD)), gates_MK, *matrices, plan)


def experts_on_gpu(
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: Matrices,
    *,
    grouped: bool,
) -> torch.Tensor:
    """`moe.mix_experts` without a read of the device.

    With `grouped`, torch's grouped product of bf16 is one kernel here. As for other dtypes, there are blocks of rows,
    or, for a few tokens (decoding), copies of their experts' matrices.
    """
    if chosen_MK.numel() <= len(counts_E):
        return experts_of_each(x_MD, chosen_MK, gates_MK, matrices)
    if grouped and product_dtype(x_MD) == torch.bfloat16:
        return mix_experts(x_MD, chosen_MK, gates_MK, counts_E, matrices, linear=grouped_linear)
    return traceable_experts(x_MD, chosen_MK, gates_MK, counts_E, matrices).to(x_MD.dtype)


def experts_of_each(
    x_MD: torch.Tensor, chosen_MK: torch.Tensor, gates_MK: torch.Tensor, matrices: Matrices
) -> torch.Tensor:
    """`moe.mix_experts` with a copy of the expert's matrices for each token-expert pair."""
    M, K = chosen_MK.shape
    dtype = product_dtype(x_MD)
    gate_PFD, up_PFD, down_PDF = (w.index_select(0, chosen_MK.flatten()).to(dtype) for w in matrices)
    x_PD1 = x_MD.to(dtype).repeat_interleave(K, dim=0).unsqueeze(-1)
    hidden_PF1 = F.silu(torch.bmm(gate_PFD, x_PD1)) * torch.bmm(up_PFD, x_PD1)
    y_MKD = torch.bmm(down_PDF, hidden_PF1).view(M, K, -1)
    return (y_MKD.to(gates_MK.dtype) * gates_MK.unsqueeze(-1)).sum(dim=1).to(x_MD.dtype)


def linear_on_gpu(
    x_PD: torch.Tensor, counts_E: torch.Tensor, weight_EFD: torch.Tensor, *, grouped: bool
) -> torch.Tensor:
    """`moe.expert_linear` without a read of the device; `grouped` as for `experts_on_gpu`."""
    dtype = product_dtype(x_PD)
    if grouped and dtype == torch.bfloat16:
        return grouped_linear(x_PD, counts_E, weight_EFD)
    experts = torch.arange(len(counts_E), device=x_PD.device)
    chosen_P = experts.repeat_interleave(counts_E.long(), output_size=len(x_PD))
    return traceable_linear(x_PD.to(dtype), chosen_P[:, None], counts_E, weight_EFD)


def traceable_linear(
    x_PD: torch.Tensor, chosen_P1: torch.Tensor, counts_E: torch.Tensor, weight_EFD: torch.Tensor
) -> torch.Tensor:
    """Each row times the matrix of the expert that it chose, in blocks of rows whose number is fixed."""
    return BlockedLinear.apply(x_PD, weight_EFD, BlockPlan.of(chosen_P1, counts_E, fixed=True))


def native_experts(
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: Matrices,
) -> torch.Tensor:
    """`moe.mix_experts` in C, multiplied in bf16; gates and matrices are in fp32, with widths that divide by VECTOR."""
    return NativeExperts.apply(experts_library(), x_MD.to(torch.bfloat16), gates_MK, *matrices, chosen_MK)


def experts_library() -> ctypes.CDLL | None:
    """The functions of experts.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "experts.c")


@torch.no_grad()
def largest_by_maxima(scores: torch.Tensor, count: int) -> torch.Tensor:
    """`moe.largest`, one maximum at a time, which on a CPU is faster than topk for a few of many."""
    left, found = scores.clone(), []
    for _ in range(count):
        found.append(left.max(dim=-1, keepdim=True).indices)
        left.scatter_(-1, found[-1], float("-inf"))
    return torch.cat(found, dim=-1)


class BlockPlan(NamedTuple):
    """The row of each token-expert pair. Each expert owns whole blocks of rows, the last of them padded."""

    row_MK: torch.Tensor  # the row of token m's k-th expert
    token_R: torch.Tensor  # the token of each row; 0 in rows of padding
    owner_L: torch.Tensor  # the expert of each block
    rows: int  # of a block

    @classmethod
    def of(cls, chosen_MK: torch.Tensor, counts_E: torch.Tensor, fixed: bool = False) -> BlockPlan:
        """The plan for a choice of experts and the number of times each was chosen.

        For example, let blocks have 2 rows, and let tokens 0, 1 and 2 choose experts 1, 0 and 1. Expert 0 owns block 0,
        which holds token 1 and a row of padding, and expert 1 owns block 1, which holds tokens 0 and 2:

            row_MK = [[2], [0], [3]]    token_R = [1, 0, 0, 2]    owner_L = [0, 1]

        Blocks of padding alone may follow. With `fixed` there are always as many blocks as any choice could need, so
        that no size depends on the choice.
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
        device = chosen_MK.device
        sorted_row_P = torch.arange(M * K, device=device) + shift_E.repeat_interleave(
            counts_E, output_size=M * K
        )
        row_P = torch.empty_like(order_P).index_copy_(0, order_P, sorted_row_P)
        token_R = order_P.new_zeros(blocks * rows).index_copy_(0, sorted_row_P, order_P // K)
        blocks_L = torch.arange(blocks, device=device)
        owner_L = torch.searchsorted(ends_E, blocks_L, right=True).clamp_(max=E - 1)
        return cls(row_P.view(M, K), token_R, owner_L, rows)


def block_rows(pairs: int, experts: int) -> int:
    """Rows of a block. Large blocks need fewer copies of the experts' matrices, small ones less padding."""
    share = pairs // experts
    return 64 if share < 256 else 128 if share < 1024 else 256


def gathered(rows_RD: torch.Tensor, row_MK: torch.Tensor, factor_MK: torch.Tensor | None) -> torch.Tensor:
    """sum_k factor[m, k] * rows[row[m, k]], (M, D), in at least fp32."""
    total = None
    for k in range(row_MK.shape[1]):
        part = rows_RD.index_select(0, row_MK[:, k])
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        if factor_MK is not None:
            part.mul_(factor_MK[:, k, None])
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


class BlockedExperts(torch.autograd.Function):
    """sum_k gates[m, k] * SwiGLU of expert chosen[m, k] on token m: (M, D) -> (M, D), in at least fp32.

    Batched products of blocks of rows with copies of their experts' matrices. Tokens are gathered and never added by
    index, so the result does not depend on the number of threads.
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
        """`x_MD` has the dtype of the products; gates (M, K) and the experts' matrices are in at least fp32."""
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
        factor_R = gates_MK.new_zeros(len(plan.token_R), dtype=dtype)  # 0 in rows of padding
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
        gate_grad_EFD, up_grad_EFD, down_grad_EDF = (
            summed_by_owner(grad, plan, E).to(ctx.dtype)
            for grad in (torch.bmm(gate_grad_LRF.mT, x_LRD), torch.bmm(up_grad_LRF.mT, x_LRD), down_grad_LDF)
        )
        x_grad_MD = gathered(x_grad_RD, plan.row_MK, None).to(dtype)
        return x_grad_MD, gates_grad_MK, gate_grad_EFD, up_grad_EFD, down_grad_EDF, None


def summed_by_owner(grad: torch.Tensor, plan: BlockPlan, experts: int) -> torch.Tensor:
    """The sum of the blocks' gradients for each expert, (L, m, n) -> (E, m, n), by a product: deterministic."""
    owner_EL = F.one_hot(plan.owner_L, experts).to(grad.dtype).T.contiguous()
    return (owner_EL @ grad.flatten(1)).unflatten(1, grad.shape[1:])


class BlockedLinear(torch.autograd.Function):
    """Each row times its expert's matrix: (P, D) -> (P, F), in blocks of rows, in the dtype of the rows."""

    @staticmethod
    def forward(ctx: Any, x_PD: torch.Tensor, weight_EFD: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
        """The plan is for one expert of each row."""
        x_LRD = x_PD.index_select(0, plan.token_R).unflatten(0, (-1, plan.rows))
        weight = weight_EFD.to(x_PD.dtype)
        y_RF = torch.bmm(x_LRD, weight.index_select(0, plan.owner_L).mT).flatten(0, 1)
        ctx.save_for_backward(x_LRD, weight)
        ctx.plan, ctx.dtype = plan, weight_EFD.dtype
        return y_RF.index_select(0, plan.row_MK[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PF: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the rows and of the stack of matrices."""
        (x_LRD, weight_EFD), plan = ctx.saved_tensors, ctx.plan
        row_P = plan.row_MK[:, 0]
        grad_RF = grad_PF.new_zeros(len(plan.token_R), grad_PF.shape[1], dtype=x_LRD.dtype)  # 0 in padding
        grad_RF.index_copy_(0, row_P, grad_PF.to(x_LRD.dtype))
        grad_LRF = grad_RF.unflatten(0, (-1, plan.rows))
        x_grad_RD = torch.bmm(grad_LRF, weight_EFD.index_select(0, plan.owner_L)).flatten(0, 1)
        weight_grad = summed_by_owner(torch.bmm(grad_LRF.mT, x_LRD), plan, len(weight_EFD))
        return x_grad_RD.index_select(0, row_P), weight_grad.to(ctx.dtype), None


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
        """`x_MD` is in bf16; gates (M, K) and the experts' matrices are in fp32."""
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
    """The first arguments of both functions: the layer and the number of threads."""
    chosen_MK, _, gate_EFD, *_ = kept
    E, F, D = gate_EFD.shape
    layer = ExpertsLayer(*chosen_MK.shape, E, D, F, *(t.data_ptr() for t in kept))
    return ctypes.byref(layer), torch.get_num_threads()
