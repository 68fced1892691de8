"""THE OPTIMIZER: Muon, momentum orthogonalised by Newton-Schulz (Jordan et al. 2024; Moonlight, arXiv 2502.16982).

A matrix's momentum U S V^T is replaced by roughly U V^T, so that every direction of the matrix moves equally far. The
update is scaled to the size of an AdamW update (RMS 0.2), so AdamW's learning rate and weight decay carry over.
Only the last two axes are a matrix: a stack of experts (E, F, D) is E matrices, each orthogonalised on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch

from nanokimi.optim.adamw import adamw_step_, loss_of, require_matrices
from nanokimi.optim.native_muon import Member, native_muon_step, takes_native_step
from nanokimi.runtime.device import cpu_has_fast_bf16

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SMALLEST_BF16 = 32  # rows or columns
# Numbers in a batched call: more do not stay in a CPU's cache from product to product.
LARGEST_BATCH = 1 << 21
UPDATE_RMS = 0.2  # what AdamW's updates typically have (Moonlight, section 2.2)


def newton_schulz(matrices: torch.Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Orthogonalise each matrix of (..., m, n): singular values end between about 0.7 and 1.2 (not at 1).

    `dtype` is that of the iteration; None takes the faster one for this device and size. Rounding matters little,
    since the coefficients trade exactness for speed anyway. Returned in the dtype of `matrices`.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices.reshape(-1, *matrices.shape[-2:]).to(dtype or fastest_dtype(matrices))
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller side makes the smaller Gram matrix
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b A + c A^2) X
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)


def fastest_dtype(matrices: torch.Tensor) -> torch.dtype:
    """bf16 where the hardware multiplies in it, else fp32; tiny matrices gain nothing (docs/performance.md)."""
    device = matrices.device.type
    native = device == "cuda" or (device == "cpu" and cpu_has_fast_bf16())
    return torch.bfloat16 if native and min(matrices.shape[-2:]) >= SMALLEST_BF16 else torch.float32


def muon_directions(
    grads: list[torch.Tensor], momentum_buffers: list[torch.Tensor], momentum: float, nesterov: bool
) -> list[torch.Tensor]:
    """Update the running averages of gradients in place and return the matrices to orthogonalise."""
    torch._foreach_lerp_(momentum_buffers, grads, 1 - momentum)
    return list(torch._foreach_lerp(grads, momentum_buffers, momentum)) if nesterov else momentum_buffers


def update_scale(rows: int, columns: int) -> float:
    """Factor that gives an orthogonal (rows, columns) matrix AdamW's update size (Moonlight, eq. 4)."""
    return UPDATE_RMS * max(rows, columns) ** 0.5


def orthogonalised(
    directions: list[torch.Tensor], blocks: list[int], steps: int, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    """Newton-Schulz of matrices (..., m, n), those of one size together in batched calls, in the call's dtype.

    `blocks[i]` cuts matrix i by rows into that many matrices (the q, k and v of a fused projection, or heads).
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    stacks = [d.reshape(-1, d.shape[-2] // n, d.shape[-1]) for d, n in zip(directions, blocks, strict=True)]
    tall = [stack.shape[-2] > stack.shape[-1] for stack in stacks]
    wide = [stack.mT if is_tall else stack for stack, is_tall in zip(stacks, tall, strict=True)]
    for index, stack in enumerate(wide):  # a matrix and a transposed one of its size go together
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
    """The indices in pieces of at most LARGEST_BATCH numbers, and of at least one stack."""
    piece: list[int] = []
    for i in indices:
        if piece and sum(stacks[j].numel() for j in [*piece, i]) > LARGEST_BATCH:
            yield piece
            piece = []
        piece.append(i)
    yield piece


def matrices_of(p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """A parameter as the stack of matrices (..., m, n) that are orthogonalised each on its own."""
    return p.unflatten(-2, (group["blocks"], -1))


class Muon(torch.optim.Optimizer):
    """Muon for 2-D weights and stacks of them; with `algorithm="adamw"` groups, AdamW for everything else.

    Args:
        params: parameters or parameter groups. A group may set `algorithm` ("muon" or "adamw"), `blocks` (row blocks
            that are matrices of their own), and any of the options below.
        lr: learning rate, on AdamW's scale.
        weight_decay: decoupled; each step multiplies weights by 1 - lr * weight_decay.
        momentum, nesterov: of the gradient average.
        ns_steps, ns_dtype: Newton-Schulz iterations and their dtype (None: the faster one).
        betas, eps: of the groups with `algorithm="adamw"`.

    Raises:
        ValueError: a parameter of a Muon group has fewer than two axes, or its rows do not divide into `blocks`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: torch.dtype | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        defaults: dict[str, Any] = dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps
        )
        defaults |= dict(ns_dtype=ns_dtype, betas=betas, eps=eps, algorithm="muon", blocks=1)
        super().__init__(params, defaults)
        require_matrices(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Gradients are left as they are."""
        loss = loss_of(closure)
        self._muon_step([g for g in self.param_groups if g["algorithm"] == "muon"])
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                adamw_step_(self.state, group)
        return loss

    def _muon_step(self, groups: list[dict[str, Any]]) -> None:
        # matrices of one size are batched across groups, so groups must agree on how to orthogonalise
        by_recipe: dict[tuple[int, torch.dtype | None], list[dict[str, Any]]] = {}
        for group in groups:
            by_recipe.setdefault((group["ns_steps"], group["ns_dtype"]), []).append(group)
        for (steps, dtype), alike in by_recipe.items():
            members = [(p, group) for group in alike for p in group["params"] if p.grad is not None]
            for p, _ in members:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            in_c = [m for m in members if takes_native_step(m[0], dtype or fastest_dtype(matrices_of(*m)))]
            if in_c and native_muon_step(in_c, *self._buffers_and_scales(in_c), steps):
                taken = {id(p) for p, _ in in_c}
                members = [(p, group) for p, group in members if id(p) not in taken]
            self._plain_step(members, steps, dtype)

    def _buffers_and_scales(self, members: list[Member]) -> tuple[list[torch.Tensor], list[float]]:
        """Each parameter's average of gradients, and the factor of its update."""
        buffers = [self.state[p]["momentum_buffer"] for p, _ in members]
        return buffers, [update_scale(p.shape[-2] // group["blocks"], p.shape[-1]) for p, group in members]

    def _plain_step(self, members: list[Member], steps: int, dtype: torch.dtype | None) -> None:
        """What kernels/muon.c does, in torch: for other processors and devices, dtypes and sizes."""
        buffers, scales = self._buffers_and_scales(members)
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
