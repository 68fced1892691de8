"""THE OPTIMIZER: Muon, momentum orthogonalised by Newton-Schulz (Jordan et al. 2024; Moonlight, arXiv 2502.16982).

A matrix's momentum U S V^T is replaced by approximately U V^T, so that the matrix moves equally far in every direction.
The update is scaled to the size of an AdamW update, so AdamW's learning rate and weight decay carry over. The last two
axes are a matrix: a stack of experts (E, F, D) is E matrices, each orthogonalised on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from nanokimi.optim.adamw import adamw_step_, loss_of, require_matrices

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
UPDATE_RMS = 0.2  # typical of AdamW's updates (Moonlight, section 2.2)


class Member(NamedTuple):
    """A parameter with a gradient, and what its step needs."""

    parameter: torch.Tensor
    group: dict[str, Any]
    momentum_buffer: torch.Tensor  # the running average of its gradient
    scale: float  # the factor of its orthogonal matrices


def newton_schulz(matrices: torch.Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Orthogonalise each matrix of (..., m, n). Its singular values end between about 0.7 and 1.2, not at exactly 1.

    The iteration runs in `dtype` (None: that of `matrices`), and the result has the dtype of `matrices`. Rounding
    matters little, because the coefficients trade accuracy for speed anyway.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices.reshape(-1, *matrices.shape[-2:]).to(dtype or matrices.dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the shorter side gives the smaller Gram matrix
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b A + c A^2) X
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)


def muon_direction(
    grad: torch.Tensor, momentum_buffer: torch.Tensor, momentum: float, nesterov: bool
) -> torch.Tensor:
    """Update the running average of gradients in place and return the matrix to orthogonalise."""
    momentum_buffer.lerp_(grad, 1 - momentum)
    return grad.lerp(momentum_buffer, momentum) if nesterov else momentum_buffer


def update_scale(rows: int, columns: int) -> float:
    """Factor that gives an orthogonal (rows, columns) matrix AdamW's update size (Moonlight, eq. 4)."""
    return UPDATE_RMS * max(rows, columns) ** 0.5


def matrix_step(members: Sequence[Member], steps: int, dtype: torch.dtype | None) -> None:
    """One step of Muon, in place. `steps` and `dtype` are of Newton-Schulz (None: the function chooses)."""
    for p, group, momentum_buffer, scale in members:
        assert p.grad is not None
        direction = muon_direction(p.grad, momentum_buffer, group["momentum"], group["nesterov"])
        update = newton_schulz(matrices_of(direction, group), steps, dtype)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def matrices_of(p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """A parameter or its gradient as a stack of matrices (..., m, n), each of which is orthogonalised on its own."""
    return p.unflatten(-2, (group["blocks"], -1))


class Muon(torch.optim.Optimizer):
    """Muon for 2-D weights and stacks of them. Groups with `algorithm="adamw"` are updated by AdamW.

    Args:
        params: parameters or parameter groups. A group may set `algorithm` ("muon" or "adamw"), `blocks` (the number
            of matrices that its rows divide into), and any of the options below.
        lr: learning rate, on AdamW's scale.
        weight_decay: decoupled: each step multiplies weights by 1 - lr * weight_decay.
        momentum, nesterov: of the gradient average.
        ns_steps, ns_dtype: Newton-Schulz iterations and their dtype (None: that of the matrices, or the fastest with
            the step of `kernels`).
        scale_updates: whether orthogonal matrices are scaled to AdamW's update size.
        betas, eps: of the groups with `algorithm="adamw"`.

    Raises:
        ValueError: a parameter of a Muon group has fewer than two axes, or its rows do not divide into `blocks`.
    """

    matrix_step = staticmethod(matrix_step)
    """`kernels` may replace it by a faster function with the same arguments."""

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
        scale_updates: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        defaults: dict[str, Any] = dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps
        )
        defaults |= dict(ns_dtype=ns_dtype, scale_updates=scale_updates, betas=betas, eps=eps)
        defaults |= dict(algorithm="muon", blocks=1)
        super().__init__(params, defaults)
        require_matrices(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, without changing the gradients."""
        loss = loss_of(closure)
        self._muon_step([g for g in self.param_groups if g["algorithm"] == "muon"])
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                adamw_step_(self.state, group)
        return loss

    def _muon_step(self, groups: list[dict[str, Any]]) -> None:
        # Matrices of one size are batched across groups, so groups must agree on how to orthogonalise.
        by_recipe: dict[tuple[int, torch.dtype | None], list[dict[str, Any]]] = {}
        for group in groups:
            by_recipe.setdefault((group["ns_steps"], group["ns_dtype"]), []).append(group)
        for (steps, dtype), alike in by_recipe.items():
            pairs = [(p, group) for group in alike for p in group["params"] if p.grad is not None]
            self.matrix_step([self._member(p, group) for p, group in pairs], steps, dtype)

    def _member(self, p: torch.Tensor, group: dict[str, Any]) -> Member:
        if not self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        scale = update_scale(p.shape[-2] // group["blocks"], p.shape[-1]) if group["scale_updates"] else 1.0
        return Member(p, group, self.state[p]["momentum_buffer"], scale)
