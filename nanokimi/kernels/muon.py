"""A faster step of Muon: matrices of one size in batched calls, and in C (muon.c).

The C code is for processors that multiply in bf16. It passes over each matrix's memory once. `Muon` and `MuonClip` here
differ from those of `optim` only in this step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from nanokimi.kernels.structs import KERNELS, require_memory, struct
from nanokimi.optim import muon as reference
from nanokimi.optim.muon import Member, matrices_of, newton_schulz
from nanokimi.optim.qk_clip import Clipping
from nanokimi.runtime.c_compiler import native_library
from nanokimi.runtime.device import cpu_has_fast_bf16

SMALLEST_BF16 = 32  # rows or columns
# Numbers in a batched call. More do not stay in a CPU's cache between products.
LARGEST_BATCH = 1 << 21
LARGEST = 1 << 19
"""Numbers in a matrix for C. Larger ones do not fit into a core's cache, and torch multiplies them with all threads."""

Stack = struct("count rows columns nesterov", "decay step keep", "weight momentum grad")


def fast_matrix_step(
    members: Sequence[Member],
    buffers: Sequence[torch.Tensor],
    scales: Sequence[float],
    steps: int,
    dtype: torch.dtype | None,
) -> None:
    """`muon.matrix_step`, in C where possible, else in batches. With None, each size has its fastest dtype."""
    in_c = [takes_native_step(p, dtype or fastest_dtype(matrices_of(p, group))) for p, group in members]

    def those(takes: bool) -> tuple[list[Member], list[torch.Tensor], list[float]]:
        places = [i for i, is_in_c in enumerate(in_c) if is_in_c is takes]
        return [members[i] for i in places], [buffers[i] for i in places], [scales[i] for i in places]

    if any(in_c) and native_muon_step(*those(True), steps):
        members, buffers, scales = those(False)
    batched_matrix_step(members, buffers, scales, steps, dtype)


def batched_matrix_step(
    members: Sequence[Member],
    buffers: Sequence[torch.Tensor],
    scales: Sequence[float],
    steps: int,
    dtype: torch.dtype | None,
) -> None:
    """`muon.matrix_step` with one call for the parameters of a group, or for the matrices of a size."""
    directions: list[torch.Tensor] = []
    for _, same in groupby(zip(members, buffers, strict=True), key=lambda one: id(one[0][1])):
        its = list(same)
        params, group = [p for (p, _), _ in its], its[0][0][1]
        averages, grads = [buffer for _, buffer in its], [p.grad for p in params if p.grad is not None]
        directions += muon_directions(grads, averages, group["momentum"], group["nesterov"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    updates = orthogonalised(directions, [group["blocks"] for _, group in members], steps, dtype)
    for (p, group), update, scale in zip(members, updates, scales, strict=True):
        p.add_(update, alpha=-group["lr"] * scale)


def muon_directions(
    grads: list[torch.Tensor], momentum_buffers: list[torch.Tensor], momentum: float, nesterov: bool
) -> list[torch.Tensor]:
    """`muon.muon_direction` of many parameters at once."""
    torch._foreach_lerp_(momentum_buffers, grads, 1 - momentum)
    return list(torch._foreach_lerp(grads, momentum_buffers, momentum)) if nesterov else momentum_buffers


def orthogonalised(
    directions: list[torch.Tensor], blocks: list[int], steps: int, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    """Newton-Schulz of matrices (..., m, n) in `dtype`, with batched calls for those of one size.

    The rows of matrix i are divided into `blocks[i]` matrices (q, k and v of a fused projection, or heads).
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    stacks = [d.reshape(-1, d.shape[-2] // n, d.shape[-1]) for d, n in zip(directions, blocks, strict=True)]
    tall = [stack.shape[-2] > stack.shape[-1] for stack in stacks]
    wide = [stack.mT if is_tall else stack for stack, is_tall in zip(stacks, tall, strict=True)]
    for index, stack in enumerate(wide):  # also matrices whose transpose has this size
        by_size.setdefault((stack.shape[-2], stack.shape[-1]), []).append(index)
    results = list(directions)
    for indices in (piece for same in by_size.values() for piece in cache_sized(same, stacks)):
        counts, size = [len(wide[i]) for i in indices], wide[indices[0]].shape[1:]
        chosen = dtype or fastest_dtype(wide[indices[0]])
        together = wide[indices[0]].new_empty(sum(counts), *size, dtype=chosen)
        for i, part in zip(indices, together.split(counts), strict=True):
            part.copy_(wide[i])
        orthogonal = newton_schulz(together, steps, chosen)
        for i, part in zip(indices, orthogonal.split(counts), strict=True):
            results[i] = (part.mT if tall[i] else part).reshape(directions[i].shape)
    return results


def cache_sized(indices: list[int], stacks: list[torch.Tensor]) -> Iterator[list[int]]:
    """The indices in pieces of at most LARGEST_BATCH numbers, but at least one stack."""
    piece: list[int] = []
    for i in indices:
        if piece and sum(stacks[j].numel() for j in [*piece, i]) > LARGEST_BATCH:
            yield piece
            piece = []
        piece.append(i)
    yield piece


def fastest_dtype(matrices: torch.Tensor) -> torch.dtype:
    """bf16 where the hardware multiplies in it, except for tiny matrices (docs/performance.md), else fp32."""
    device = matrices.device.type
    native = device == "cuda" or (device == "cpu" and cpu_has_fast_bf16())
    return torch.bfloat16 if native and min(matrices.shape[-2:]) >= SMALLEST_BF16 else torch.float32


def takes_native_step(p: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the step of this parameter can be taken in C, with Newton-Schulz in `dtype`."""
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
    """One step of Muon in C on parameters for which `takes_native_step` is true; False if there is no C here.

    Args:
        members: the parameters, each with its group.
        buffers: the running average of each parameter's gradient, updated in place.
        scales: the factor of each parameter's orthogonal matrices, which gives them AdamW's update size.
        steps: iterations of Newton-Schulz.
    """
    library = muon_library() if cpu_has_fast_bf16() else None
    if library is None:
        return False
    stacks, grads = (Stack * len(members))(), []
    for index, ((p, group), buffer, scale) in enumerate(zip(members, buffers, scales, strict=True)):
        assert p.grad is not None and buffer.is_contiguous()
        grads.append(p.grad.contiguous())
        rows, columns, lr = p.shape[-2] // group["blocks"], p.shape[-1], group["lr"]
        stacks[index] = Stack(
            count=p.numel() // (rows * columns),
            rows=rows,
            columns=columns,
            nesterov=group["nesterov"],
            decay=group["momentum"],
            step=lr * scale,
            keep=1 - lr * group["weight_decay"],
            weight=p.data_ptr(),
            momentum=buffer.data_ptr(),
            grad=grads[-1].data_ptr(),
        )
    require_memory(library.muon_step(stacks, len(members), steps, torch.get_num_threads()))
    torch.autograd.graph.increment_version([p for p, _ in members])  # as torch's in-place operations do
    return True


def muon_library() -> ctypes.CDLL | None:
    """The functions of muon.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "muon.c")


class Muon(reference.Muon):
    """`nanokimi.optim.muon.Muon` with the fast step, and with its arguments and errors."""

    matrix_step = staticmethod(fast_matrix_step)


class MuonClip(Clipping, Muon):
    """`nanokimi.optim.qk_clip.MuonClip` with the fast step, and with its arguments and errors."""

    matrix_step = staticmethod(fast_matrix_step)
