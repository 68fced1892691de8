"""AdamW, for a whole model or for all but its hidden matrices, and a base class for optimizers of those matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

from nanokimi.runtime.parallel import local_of


def adamw_step_(states: dict[Any, Any], group: dict[str, Any]) -> None:
    """One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) on a parameter group, by torch's kernels."""
    params = [p for p in group["params"] if p.grad is not None]
    if not params:
        return
    fused = group.get("fused", has_fused(params[0].device))
    for p in params:
        # torch's fused kernels count steps on the device; the others read the number, which would wait for a device.
        of_step = p.device if fused else torch.device("cpu")
        if not states[p]:
            states[p].update(
                step=torch.zeros((), dtype=torch.float32, device=of_step),
                exp_avg=torch.zeros_like(p),
                exp_avg_sq=torch.zeros_like(p),
            )
        elif states[p]["step"].device != of_step:  # loaded from a checkpoint
            states[p]["step"] = states[p]["step"].to(of_step)
    of_each = [states[p] for p in params]
    # Of sharded parameters each process updates its rows; torch takes no list of parameters that are sharded unlike.
    adamw(
        [local_of(p.detach()) for p in params],
        [local_of(p.grad) for p in params],
        [local_of(s["exp_avg"]) for s in of_each],
        [local_of(s["exp_avg_sq"]) for s in of_each],
        [],
        [s["step"] for s in of_each],
        fused=fused,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def has_fused(device: torch.device) -> bool:
    """Whether AdamW is torch's fused one on this device."""
    return device.type in ("cpu", "cuda")


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """The loss that the closure of an optimizer's step computes, if there is a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class AdamW(torch.optim.AdamW):
    """torch's AdamW, bit for bit, with a step that does not import torch's compiler (see `leave_the_compiler_out`)."""

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)
        self._step_supports_amp_scaling = False  # unlike torch's fused step, ours does not unscale gradients

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            adamw_step_(self.state, group)
        return loss


def leave_the_compiler_out() -> None:
    """Keep torch's optimizers from importing torch.compile, which takes each process seconds and 70 MB.

    Some of their methods import it when they are first called, to wrap themselves so that they are not traced. We call
    optimizers outside of compiled code, so the unwrapped methods are stored where the wrapped ones would be cached.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            vars(plain).setdefault("__dynamo_disable", plain)


def require_matrices(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a group for matrices has a vector, or rows that do not divide into its `blocks`."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if group["algorithm"] != "adamw" and (p.dim() < 2 or p.shape[-2] % group["blocks"] != 0):
                raise ValueError(
                    f"{type(optimizer).__name__} cannot update a parameter of shape {tuple(p.shape)} in "
                    f'{group["blocks"]} blocks: it needs matrices; put vectors in a group with algorithm="adamw"'
                )


class MatrixOptimizer(torch.optim.Optimizer):
    """Base class: `update` for matrices, AdamW for groups with `algorithm="adamw"`.

    As in Muon, the last two axes are a matrix: a stack (E, F, D) is E matrices, and a group's `blocks` divides the rows
    of each into that many matrices. The functions below work on such stacks (S, m, n).

    Raises:
        ValueError: a parameter of a matrix group has fewer than two axes, or its rows do not divide into `blocks`.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults | dict(algorithm="matrix", blocks=1))
        require_matrices(self)

    def new_state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The state of a matrix parameter before the first step."""
        raise NotImplementedError

    def update(self, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor | None:
        """Update `state`; return the direction that lr multiplies, or None to leave the weights unchanged."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, without changing the gradients."""
        loss = loss_of(closure)
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                adamw_step_(self.state, group)
                continue
            for p in group["params"]:
                if p.grad is None:
                    continue
                # Where several processes have all weights each, these are whole all the same.
                own, grad, state = local_of(p.detach()), local_of(p.grad), self.state[p]
                state.update({name: local_of(value) for name, value in state.items()})
                if not state:
                    state.update(self.new_state(own, group))
                update = self.update(grad, state, group)
                if update is not None:
                    own.mul_(1 - group["lr"] * group["weight_decay"])
                    own.add_(update, alpha=-group["lr"])
        return loss


def stacked(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """(..., m, n) as a stack of matrices (S, m / blocks, n), in fp32 at least."""
    stack = x.reshape(-1, x.shape[-2] // blocks, x.shape[-1])
    return stack.to(torch.promote_types(x.dtype, torch.float32))


def factor_shapes(p: torch.Tensor, blocks: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of the left (S, m, m) and right (S, n, n) factors of a parameter's matrices."""
    rows, columns = p.shape[-2] // blocks, p.shape[-1]
    count = p.numel() // (rows * columns)
    return (count, rows, rows), (count, columns, columns)
