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
# Numbers in a batched call. More do not stay in a CPU's cache between products; a GPU's cache is left out of account,
# and so many keep it busy and take 64 MB in bf16.
LARGEST_BATCH, LARGEST_BATCH_ON_GPU = 1 << 21, 1 << 25
LARGEST = 1 << 19
"""Numbers in a matrix for C. Larger ones do not fit into a core's cache, and torch multiplies them with all threads."""

Stack = struct("count rows columns nesterov", "decay step keep", "weight momentum grad")


def fast_matrix_step(members: Sequence[Member], steps: int, dtype: torch.dtype | None) -> None:
    """`muon.matrix_step` by the faster of the two functions below that this machine has."""
    step = native_matrix_step if has_native_step() else batched_matrix_step
    step(members, steps, dtype)


def native_matrix_step(members: Sequence[Member], steps: int, dtype: torch.dtype | None) -> None:
    """`muon.matrix_step` in C, and in batches for parameters that C does not take. For machines with a native step.

    With None, each size has its fastest dtype.
    """
    in_c: list[Member] = []
    in_batches: list[Member] = []
    for member in members:
        chosen = dtype or fastest_dtype(matrices_of(member.parameter, member.group))
        takes = takes_native_step(member.parameter, chosen)
        (in_c if takes else in_batches).append(member)
    if in_c:
        native_muon_step(in_c, steps)
    batched_matrix_step(in_batches, steps, dtype)


def batched_matrix_step(members: Sequence[Member], steps: int, dtype: torch.dtype | None) -> None:
    """`muon.matrix_step` with one call for the parameters of a group, or for the matrices of a size.

    With None, each size has its fastest dtype.
    """
    directions: list[torch.Tensor] = []
    for _, same in groupby(members, key=lambda member: id(member.group)):
        its = list(same)
        params, group = [member.parameter for member in its], its[0].group
        grads, buffers = [p.grad for p in params if p.grad is not None], [m.momentum_buffer for m in its]
        directions += muon_directions(grads, buffers, group["momentum"], group["nesterov"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    updates = orthogonalised(directions, [member.group["blocks"] for member in members], steps, dtype)
    by_factor: dict[float, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for member, update in zip(members, updates, strict=True):
        params, own = by_factor.setdefault(-member.group["lr"] * member.scale, ([], []))
        params.append(member.parameter)
        own.append(update)
    for factor, (params, own) in by_factor.items():
        torch._foreach_add_(params, own, alpha=factor)


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
    for indices in (piece for same in by_size.values() for piece in batch_sized(same, stacks)):
        counts, size = [len(wide[i]) for i in indices], wide[indices[0]].shape[1:]
        chosen = dtype or fastest_dtype(wide[indices[0]])
        together = wide[indices[0]].new_empty(sum(counts), *size, dtype=chosen)
        torch._foreach_copy_(list(together.split(counts)), [wide[i] for i in indices])
        orthogonal = newton_schulz(together, steps, chosen)
        for i, part in zip(indices, orthogonal.split(counts), strict=True):
            results[i] = (part.mT if tall[i] else part).reshape(directions[i].shape)
    return results


def batch_sized(indices: list[int], stacks: list[torch.Tensor]) -> Iterator[list[int]]:
    """The indices in pieces of at most as many numbers as suit the device, but at least one stack."""
    largest = LARGEST_BATCH if stacks[0].device.type == "cpu" else LARGEST_BATCH_ON_GPU
    piece: list[int] = []
    for i in indices:
        if piece and sum(stacks[j].numel() for j in [*piece, i]) > largest:
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


def native_muon_step(members: Sequence[Member], steps: int) -> None:
    """One step of Muon in C on parameters for which `takes_native_step` is true, with `steps` of Newton-Schulz."""
    library = muon_library()
    assert library is not None, "has_native_step() is true"
    stacks, grads = (Stack * len(members))(), []
    for index, (p, group, momentum_buffer, scale) in enumerate(members):
        assert p.grad is not None and momentum_buffer.is_contiguous()
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
            momentum=momentum_buffer.data_ptr(),
            grad=grads[-1].data_ptr(),
        )
    require_memory(library.muon_step(stacks, len(members), steps, torch.get_num_threads()))
    # as torch's in-place operations do
    torch.autograd.graph.increment_version([member.parameter for member in members])


def has_native_step() -> bool:
    """Whether this machine can take the step in C: its processor multiplies in bf16, and there is a C compiler."""
    return cpu_has_fast_bf16() and muon_library() is not None


def muon_library() -> ctypes.CDLL | None:
    """The functions of muon.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "muon.c")


class Muon(reference.Muon):
    """`nanokimi.optim.muon.Muon` with the fast step, and with its arguments and errors."""

    matrix_step = staticmethod(fast_matrix_step)


class MuonClip(Clipping, Muon):
    """`nanokimi.optim.qk_clip.MuonClip` with the fast step, and with its arguments and errors."""
