"""Two-sided preconditioning: Shampoo (Gupta et al., arXiv 1802.09568, algorithm 1) with Adam's step size.

For a matrix with gradients G, L is an average of G G^T, R an average of G^T G and M the momentum; the update is along
L^-1/4 M R^-1/4. With a single gradient U S V^T in L and R, that would be U V^T, as in Muon. Every few steps, the roots
are computed by matrix products alone, with a coupled Newton iteration (Anil et al., arXiv 2002.09018).

It replaces the "Muon" of an earlier nanoKimi (seed 0). There, accumulators lost 99.9% of their history at every step,
the exponent -1/2 on both sides inverted the spectrum, and the momentum was never written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nanokimi.optim.adamw import MatrixOptimizer, factor_shapes, stacked
from nanokimi.optim.muon import update_scale

ROOT_ITERATIONS = 20  # enough for eigenvalues down to RIDGE of the norm (tests/test_shampoo.py)
RIDGE = 1e-6  # smaller eigenvalues are lost in the rounding of fp32


def inverse_root(
    matrices: torch.Tensor, p: int = 4, *, ridge: float = RIDGE, iterations: int = ROOT_ITERATIONS
) -> torch.Tensor:
    """A^(-1/p) of each symmetric positive semidefinite matrix A in (..., n, n), p a power of two.

    A is divided by its Frobenius norm, and `ridge` is added to its diagonal. In the coupled Newton iteration (Guo and
    Higham 2006; Anil et al., algorithm 2), M starts at z A / |A| and X at z^(1/p) I. With T = ((p + 1) I - M) / p, the
    updates X <- X T and M <- T^p M keep M = X^p A while M converges to I. An eigenvalue far below 1 grows by
    (1 + 1/p)^p in each iteration, 2.44 for p = 4. For a zero matrix, I is returned.
    """
    if p < 1 or p & (p - 1):
        raise ValueError(f"p is {p}: it must be a power of two")
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    norm = torch.linalg.matrix_norm(matrices, keepdim=True)
    size = torch.where(norm > 0, norm, 1.0)
    z = (1 + p) / 2
    m = z * (matrices / size + ridge * identity)
    x = z ** (1 / p) * identity.expand_as(matrices)
    for _ in range(iterations):
        t = ((p + 1) * identity - m) / p
        x = x @ t
        power = t
        for _ in range(p.bit_length() - 1):
            power = power @ power
        m = power @ m
    return torch.where(norm > 0, x * size ** (-1 / p), identity)


class Shampoo(MatrixOptimizer):
    """Shampoo for 2-D weights and stacks of them. Groups with `algorithm="adamw"` are updated by AdamW.

    Args:
        params: parameters or parameter groups, as for Muon.
        lr: learning rate, on AdamW's scale.
        weight_decay: decoupled: each step multiplies weights by 1 - lr * weight_decay.
        betas, eps: Adam's, bias-corrected. The momentum that is preconditioned also uses the first beta.
        shampoo_beta: decay rate of L and R, bias-corrected.
        precondition_every: steps between new roots, beginning with the first step.
        handover_steps: None gives each matrix's update the length of Adam's ("grafting"). With a number, the update
            changes linearly over that many steps from Adam's to 0.2 sqrt(max(m, n)) L^-1/4 M R^-1/4, which has Muon's
            scale and at most Muon's length. The share of either depends on the number of the step alone.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        shampoo_beta: float = 0.95,
        precondition_every: int = 10,
        handover_steps: int | None = None,
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        defaults |= dict(shampoo_beta=shampoo_beta, precondition_every=precondition_every)
        super().__init__(params, defaults | dict(handover_steps=handover_steps))

    def new_state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Adam's moments, L and R, and their roots."""
        left, right = factor_shapes(p, group["blocks"])
        dtype = torch.promote_types(p.dtype, torch.float32)
        state = {"step": torch.zeros((), dtype=torch.float32)}  # on the CPU, because it is read at every step
        state |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        for name, shape in (("left", left), ("right", right), ("left_root", left), ("right_root", right)):
            state[name] = torch.zeros(shape, dtype=dtype, device=p.device)
        return state

    def update(self, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        """The direction of the step."""
        state["step"] += 1
        step, beta = int(state["step"]), group["shampoo_beta"]
        adam = adam_direction(grad, state, step, group)
        matrices = stacked(grad, group["blocks"])
        state["left"].lerp_(matrices @ matrices.mT, 1 - beta)
        state["right"].lerp_(matrices.mT @ matrices, 1 - beta)
        if (step - 1) % group["precondition_every"] == 0:
            for side in ("left", "right"):
                state[f"{side}_root"] = inverse_root(state[side] / (1 - beta**step))
        momentum = stacked(state["exp_avg"], group["blocks"]) / (1 - group["betas"][0] ** step)
        preconditioned = state["left_root"] @ momentum @ state["right_root"]
        if group["handover_steps"] is None:
            preconditioned *= frobenius(stacked(adam, group["blocks"])) / frobenius(preconditioned)
            return preconditioned.reshape(grad.shape).to(grad.dtype)
        preconditioned *= muon_size(preconditioned)
        share = min((step - 1) / group["handover_steps"], 1.0)
        return adam.lerp(preconditioned.reshape(grad.shape).to(grad.dtype), share)


def frobenius(matrices: torch.Tensor) -> torch.Tensor:
    """The Frobenius norm of each matrix, (S, 1, 1), never 0, so that it can be a divisor."""
    lengths = torch.linalg.matrix_norm(matrices, keepdim=True)
    return lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def muon_size(matrices: torch.Tensor) -> torch.Tensor:
    """Factors (S, 1, 1) that give matrices with singular values of 1 the size of AdamW's updates, and no matrix more.

    The roots may be some steps old. In a direction in which no gradient had been before, they would multiply by 1,000.
    """
    rows, columns = matrices.shape[-2:]
    return update_scale(rows, columns) * (min(rows, columns) ** 0.5 / frobenius(matrices)).clamp_max(1.0)


def adam_direction(
    grad: torch.Tensor, state: dict[str, Any], step: int, group: dict[str, Any]
) -> torch.Tensor:
    """Update Adam's two moments in place and return its direction (Kingma and Ba, arXiv 1412.6980)."""
    (beta1, beta2), eps = group["betas"], group["eps"]
    state["exp_avg"].lerp_(grad, 1 - beta1)
    state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
    size = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(eps)
    return state["exp_avg"] / (1 - beta1**step) / size
