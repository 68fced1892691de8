"""Expert parallelism: processes that share the experts of a layer, and send each token to the experts that it chose.

Of N processes in a group each holds E / N whole experts of every layer. All of them compute other rows of the batch, so
a token whose expert lies elsewhere travels there and its result back, forward and backward. Nothing is dropped, and the
numbers are those of one process. `Experts.mix` is replaced by `mix_shared_experts`, which computes with whatever was
there before; the rest of the model knows nothing of it.

Where there are more processes than a group has, the same experts lie on several of them, cut again by FSDP2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nanokimi.config import KimiConfig, RunConfig, VariantConfig
from nanokimi.config.schema import ModelConfig
from nanokimi.errors import UserError
from nanokimi.kernels.experts import product_dtype
from nanokimi.model.moe import Experts, by_expert, mix_experts
from nanokimi.optim.sharded import exchanged
from nanokimi.runtime.parallel import World, local_of, mesh_of_processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Mix = Callable[..., torch.Tensor]
OF_ONE_TOKEN = ("topk", "sigmoid-bias")
"""Mixtures of variants in which a token goes to a few experts: the others need all of them, or all tokens."""


def require_experts_to_share(config: RunConfig, world: World, sharers: int) -> None:
    """Raise UserError if `train.expert_parallel` does not suit the processes that share the weights, or the model."""
    wanted, experts = config.train.expert_parallel, experts_to_share(config.family.model)
    if wanted == 1:
        return
    setting = f"train.expert_parallel is {wanted}"
    if world.alone:
        raise UserError(
            f"{setting}, but this is one process: start a multiple of {wanted} with torchrun, or say "
            "--train.expert_parallel 1"
        )
    if not experts:
        raise UserError(
            f"{setting}, but {config.title} has no mixture of SwiGLU experts of which each token chooses a few: say "
            "--train.expert_parallel 1"
        )
    shared = (sharers, "processes" if sharers == world.size else "processes of a copy (train.shard)")
    for count, what in (shared, (experts, f"experts of a layer (n_routed_experts of {config.title})")):
        if count % wanted:
            raise UserError(
                f"{setting}, which does not divide the {count} {what}: use a number that does, or 1"
            )


def sharing_where_possible(arms: dict[str, RunConfig]) -> dict[str, RunConfig]:
    """The arms of a comparison; those without experts to share have `train.expert_parallel` 1.

    If that is all of them, the setting stays, so that they are refused as a run is.
    """
    sharing = {name for name, arm in arms.items() if experts_to_share(arm.family.model)}
    if not sharing:
        return arms
    return {
        name: arm if name in sharing else replace(arm, train=replace(arm.train, expert_parallel=1))
        for name, arm in arms.items()
    }


def experts_to_share(model: ModelConfig) -> int:
    """Experts of a layer that processes can share; 0 if the model has none."""
    if isinstance(model, VariantConfig):
        fits = model.experts in OF_ONE_TOKEN and model.feed_forward == "swiglu"
    else:
        fits = isinstance(model, KimiConfig)
    if not fits or model.first_k_dense_replace >= model.num_hidden_layers:  # type: ignore[union-attr]
        return 0
    return model.n_routed_experts  # type: ignore[union-attr]


def share_experts_(model: nn.Module, device: torch.device, of_others: DeviceMesh, size: int) -> None:
    """Spread the experts of every layer over groups of `size` processes, which are neighbours by their numbers.

    `of_others` is the mesh of all other weights: (replicate, shard) or (shard,). Of a stack (E, F, D), each process
    gets whole experts: its part of E on the axis "ep", and of these, by FSDP2, its part on the axis "dp", where "dp"
    and "ep" together are "shard".
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    *copies, shard = zip(of_others.mesh_dim_names or (), of_others.shape, strict=True)
    mesh = mesh_of_processes(device, dict(copies) | {"dp": shard[1] // size, "ep": size})
    of_fsdp = mesh[tuple(name for name in mesh.mesh_dim_names or () if name != "ep")]
    for experts in [module for module in model.modules() if isinstance(module, Experts)]:
        for name, p in list(experts.named_parameters(recurse=False)):
            own = distribute_tensor(p.detach(), mesh["ep"], [Shard(0)], src_data_rank=None)
            setattr(experts, name, nn.Parameter(own))
        fully_shard(experts, mesh=of_fsdp)
        vars(experts)["mix"] = partial(mix_shared_experts, experts.mix, mesh.get_group("ep"))


def mix_shared_experts(
    inner: Mix,
    group: torch.distributed.ProcessGroup,
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """`moe.mix_experts` by all processes of a group, each of which must call this with its own tokens.

    `matrices` are sharded on E, and `inner` computes with those of this process. Tokens are sent in the dtype in which
    they are multiplied.
    """
    own, dtype, size = tuple(map(local_of, matrices)), product_dtype(x_MD), group.size()
    for matrix in own:
        if matrix.requires_grad:
            # Summed over the tokens of the group, where FSDP2, which takes the mean over groups, expects their mean.
            matrix.register_hook(lambda grad: grad / size)

    def experts(x_PD: torch.Tensor) -> torch.Tensor:
        counts_E_here = counts_E.long()
        equal = [len(counts_E) // size] * size
        arriving_NE = exchanged(counts_E_here, equal, equal, group).view(size, -1)
        # The one time that the host waits for numbers in a layer.
        to_each, from_each = torch.stack([counts_E_here.view(size, -1).sum(1), arriving_NE.sum(1)]).tolist()
        x_RD = Exchange.apply(x_PD.to(dtype), to_each, from_each, group)
        y_RD = by_own_experts(inner, x_RD, arriving_NE, own)
        return Exchange.apply(y_RD.to(dtype), from_each, to_each, group)

    return by_expert(experts, x_MD, chosen_MK, gates_MK).to(x_MD.dtype)


def by_own_experts(
    inner: Mix, x_RD: torch.Tensor, arriving_NE: torch.Tensor, own: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """This process's experts on the tokens that arrived, (R, D), sorted by their senders and then by their experts."""
    N, E = arriving_NE.shape
    rows, device = len(x_RD), x_RD.device
    every_NE = torch.arange(E, device=device).repeat(N)
    chosen_R1 = every_NE.repeat_interleave(arriving_NE.flatten(), output_size=rows).unsqueeze(1)
    gates_R1 = torch.ones(rows, 1, dtype=torch.promote_types(x_RD.dtype, torch.float32), device=device)
    # Where no token arrived, the gradients must be zeros nevertheless: FSDP2 sums them with the other processes.
    mix = inner if rows else mix_experts
    return mix(x_RD, chosen_R1, gates_R1, arriving_NE.sum(0).to(gates_R1.dtype), own)


class Exchange(torch.autograd.Function):
    """Rows (P, D) to the processes of a group, and theirs to this one (R, D); gradients travel the other way."""

    @staticmethod
    def forward(
        ctx: Any,
        x_PD: torch.Tensor,
        to_each: list[int],
        from_each: list[int],
        group: torch.distributed.ProcessGroup,
    ) -> torch.Tensor:
        """The rows for each process lie together, in the order of the processes, and so do those that arrive."""
        ctx.back = (from_each, to_each, group)
        return exchanged(x_PD.contiguous(), to_each, from_each, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the rows that were sent."""
        return exchanged(grad_RD.contiguous(), *ctx.back), None, None, None
