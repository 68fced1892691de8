"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

Q_L and Q_R are the eigenvectors of the averages of G G^T and G^T G. In their basis gradients are nearly uncorrelated,
so that Adam's separate rate for each number is appropriate. The update is then rotated back. Every few steps, one power
iteration and a QR decomposition (algorithm 4) make the bases follow the averages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nanokimi.optim.adamw import MatrixOptimizer, factor_shapes, stacked


class SOAP(MatrixOptimizer):
    """SOAP for 2-D weights and stacks of them. Groups with `algorithm="adamw"` are updated by AdamW.

    The first step only computes the bases. In the eigenbasis of a single gradient, that gradient is diagonal, and Adam
    would scale the rounding errors off the diagonal to the size of the gradient itself.

    Args:
        params: parameters or parameter groups, as for Muon.
        lr: learning rate, on AdamW's scale.
        weight_decay: decoupled: each step but the first multiplies weights by 1 - lr * weight_decay.
        betas, eps: Adam's.
        shampoo_beta: decay rate of the averages of G G^T and G^T G.
        precondition_every: steps between new bases.
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
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        super().__init__(
            params, defaults | dict(shampoo_beta=shampoo_beta, precondition_every=precondition_every)
        )

    def new_state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Adam's moments (the second in the eigenbasis), the averages and their bases."""
        left, right = factor_shapes(p, group["blocks"])
        dtype = torch.promote_types(p.dtype, torch.float32)
        state = {"step": torch.zeros((), dtype=torch.float32), "exp_avg": torch.zeros_like(p)}
        shape = (left[0], left[1], right[1])
        state["exp_avg_sq"] = torch.zeros(shape, dtype=dtype, device=p.device)
        for name, shape in (("left", left), ("right", right), ("left_basis", left), ("right_basis", right)):
            state[name] = torch.zeros(shape, dtype=dtype, device=p.device)
        return state

    def update(self, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor | None:
        """The direction of the step, or None in the first step."""
        state["step"] += 1
        step = int(state["step"]) - 1  # the first step does not move weights
        matrices = stacked(grad, group["blocks"])
        if step == 0:
            average_products_(matrices, state, group["shampoo_beta"])
            for side in ("left", "right"):
                state[f"{side}_basis"] = eigenvectors(state[side]).flip(-1).contiguous()
            return None
        (beta1, beta2), left, right = group["betas"], state["left_basis"], state["right_basis"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_((left.mT @ matrices @ right).square(), 1 - beta2)
        momentum = left.mT @ stacked(state["exp_avg"], group["blocks"]) @ right
        size = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = left @ (momentum / (1 - beta1**step) / size) @ right.mT
        average_products_(matrices, state, group["shampoo_beta"])
        if step % group["precondition_every"] == 0:
            update_bases_(state)
        return update.reshape(grad.shape).to(grad.dtype)


def eigenvectors(matrices: torch.Tensor) -> torch.Tensor:
    """The eigenvectors of symmetric matrices, in order of their eigenvalues. On the CPU where MPS lacks them."""
    if matrices.device.type == "mps":
        return torch.linalg.eigh(matrices.cpu()).eigenvectors.to(matrices.device)
    return torch.linalg.eigh(matrices).eigenvectors


def orthogonal_columns(matrices: torch.Tensor) -> torch.Tensor:
    """The Q of a QR decomposition. On the CPU where MPS lacks it."""
    if matrices.device.type == "mps":
        return torch.linalg.qr(matrices.cpu()).Q.to(matrices.device)
    return torch.linalg.qr(matrices).Q


def average_products_(matrices: torch.Tensor, state: dict[str, Any], beta: float) -> None:
    """Update the averages of G G^T and G^T G with a gradient."""
    state["left"].lerp_(matrices @ matrices.mT, 1 - beta)
    state["right"].lerp_(matrices.mT @ matrices, 1 - beta)


def update_bases_(state: dict[str, Any]) -> None:
    """One power iteration and a QR decomposition, with columns and second moments sorted by eigenvalue.

    QR makes each column orthogonal to those before it, so the large eigenvalues must come first.
    """
    for side, axis in (("left", -2), ("right", -1)):
        basis = state[f"{side}_basis"]
        product = state[side] @ basis
        order = (basis * product).sum(dim=-2).argsort(dim=-1, descending=True, stable=True)
        rotated = orthogonal_columns(product.gather(-1, order.unsqueeze(-2).expand_as(product)))
        # Contiguous, as it will be when it is loaded, so that its products have the same bits.
        state[f"{side}_basis"] = rotated.contiguous()
        index = order.unsqueeze(-1) if axis == -2 else order.unsqueeze(-2)
        moment = state["exp_avg_sq"]
        state["exp_avg_sq"] = moment.gather(axis, index.expand_as(moment))
