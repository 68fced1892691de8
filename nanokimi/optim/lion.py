"""Lion, evolved sign momentum (Chen et al., arXiv 2302.06675, algorithm 2).

It replaces the "Muon" of an earlier nanoKimi (seed 3), which was said to be inspired by Lion. That optimizer averaged
the gradients but never used them: it subtracted an average of the weights from the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from nanokimi.optim.adamw import loss_of


class Lion(torch.optim.Optimizer):
    """Every weight moves by lr in the direction of the sign of an average of its gradients.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, 3 to 10 times below AdamW's, whose updates have an RMS of about 0.2 instead of 1.
        betas: (weight of the average in the update's direction, decay rate of the average).
        weight_decay: decoupled, and multiplied by lr, so 3 to 10 times above AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    def new_state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The state of a parameter before the first step."""
        return {"exp_avg": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, without changing the gradients."""
        loss = loss_of(closure)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p].update(self.new_state(p, group))
                average = self.state[p]["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(average.lerp(p.grad, 1 - beta1).sign_(), alpha=-group["lr"])
                average.lerp_(p.grad, 1 - beta2)
        return loss
