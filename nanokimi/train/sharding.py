"""A model of which each of several processes holds some rows (FSDP2), and which runs can be trained so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nanokimi.config import RunConfig, TrainConfig
from nanokimi.errors import UserError
from nanokimi.model.build import LanguageModel
from nanokimi.model.user_module import UserModule
from nanokimi.optim.sharded import OF_WHOLE, SHARDABLE
from nanokimi.runtime.device import choose_device
from nanokimi.runtime.parallel import World, current, mesh_of_processes
from nanokimi.train.expert_parallel import require_experts_to_share, share_experts_

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def require_shareable(config: RunConfig) -> None:
    """Raise UserError, naming the setting, if a run cannot be trained by the present group of processes."""
    world, train, optim = current(), config.train, config.family.optim
    require_even_copies(train, world)
    require_experts_to_share(config, world, sharers(train, world))
    if world.alone:
        return
    of = f"with {world.size} processes"
    if train.batch_size % world.size:
        raise UserError(
            f"train.batch_size is {train.batch_size}, which {world.size} processes cannot share evenly: make it a "
            f"multiple of {world.size}, or start another number of processes"
        )
    may_if_whole = optim.name in OF_WHOLE
    if optim.name not in SHARDABLE and not (may_if_whole and sharers(train, world) == 1):
        keep_all = ", or say --train.shard 1, with which each has all weights" if may_if_whole else ""
        raise UserError(
            f"optim.name is {optim.name}, which needs each parameter whole in one process: {of} use one of "
            f"{', '.join(SHARDABLE)}{keep_all}"
        )
    if optim.clips and optim.qk_clip_logits == "rms":
        raise UserError(
            f"optim.qk_clip_logits is rms, which reads whole weights in every step: {of} use exact"
        )
    if train.max_seconds is not None:
        raise UserError(
            f"train.max_seconds would end each process by a clock of its own: {of} give max_steps, max_tokens, "
            "max_epochs or max_flops"
        )
    if train.compile:
        raise UserError(f"train.compile is for one process: leave it out {of}")
    if train.dtype == "fp16":
        raise UserError(
            f"train.dtype is fp16, whose scale of the loss is one process's: {of} use bf16 or fp32"
        )
    require_device_each(train.device, world)


def require_even_copies(train: TrainConfig, world: World) -> None:
    """Raise UserError if the processes cannot hold whole copies of the weights, each shared by `train.shard` of them.

    One process alone is no exception: it would have all weights, whatever the setting says.
    """
    if train.shard is None or world.size % train.shard == 0:
        return
    wrong = f"train.shard is {train.shard}, "
    if world.alone:
        raise UserError(
            f"{wrong}but this is one process: start a multiple of {train.shard} with torchrun, or say "
            "--train.shard null"
        )
    fitting = ", ".join(str(n) for n in range(1, world.size + 1) if world.size % n == 0)
    raise UserError(
        f"{wrong}which does not divide {world.size} processes: use one of {fitting}, or null, with which all share one "
        "copy of the weights"
    )


def require_splittable(model: nn.Module, title: str) -> None:
    """Raise UserError if FSDP2 cannot split a user's model over the present group, or would train another one."""
    if current().alone:
        return
    named, size = list(model.named_parameters()), current().size
    kinds = sorted({str(p.dtype).removeprefix("torch.") for _, p in named if p.requires_grad})
    if len(kinds) > 1:
        raise UserError(
            f"{title} has parameters in {' and '.join(kinds)}, which {size} processes cannot gather together: make all "
            "of one dtype, or train it with one process"
        )
    at: dict[int, str] = {}
    for name, p in named:
        shown = name.removeprefix("module.")
        if p.dim() == 0:
            raise UserError(
                f"{title}: the parameter {shown} has no axis, so {size} processes cannot split it: give it one, as "
                "torch.ones(1) has, or train it with one process"
            )
        other = at.setdefault(p.data_ptr(), shown) if p.numel() else shown
        if other != shown:
            raise UserError(
                f"{title}: the parameters {other} and {shown} share memory, which {size} processes would not keep: "
                "make them one parameter, or train it with one process"
            )


def require_device_each(name: str, world: World) -> None:
    """Raise UserError if the processes of this machine cannot each have a device of this kind."""
    if name == "mps" or (name == "auto" and choose_device(name).type == "mps"):
        raise UserError(
            f"train.device is {name}{', here mps' if name == 'auto' else ''}, which has no collectives: start nanokimi "
            "without torchrun, or say cpu"
        )
    if name.startswith("cuda:") and name != "cuda:0":
        raise UserError(f"train.device is {name}, but each of {world.size} processes has its own: say cuda")
    count = torch.cuda.device_count()
    wants_gpu = name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())
    if wants_gpu and world.local_size > count:
        what = f"start torchrun with --nproc-per-node {count}" if count else "say train.device cpu"
        raise UserError(f"this machine has {count} CUDA devices for {world.local_size} processes: {what}")


def device_of(name: str, world: World) -> torch.device:
    """This process's own device of the kind that the configuration names."""
    device = torch.device(name)
    return torch.device("cuda", world.local_rank) if device.type == "cuda" and not world.alone else device


def sharers(train: TrainConfig, world: World) -> int:
    """How many processes share one copy of the weights."""
    return world.size if world.alone or train.shard is None else train.shard


def mesh_of(train: TrainConfig, device: torch.device) -> DeviceMesh:
    """The present group as (replicate, shard): copies of the weights, and the processes that share one.

    Processes next to each other share a copy, so that with as many as a machine has, weights stay within it. A single
    copy has no "replicate" dimension, because FSDP2 would sum gradients over it nonetheless.
    """
    world, shard = current(), sharers(train, current())
    copies = {} if shard == world.size else {"replicate": world.size // shard}
    return mesh_of_processes(device, copies | {"shard": shard})


def shard_(model: LanguageModel, train: TrainConfig, device: torch.device) -> None:
    """Split every parameter by rows over the processes of a copy: those of a block are put together when it computes.

    The inside of a user's module is unknown, so its parameters are put together all at once. Experts that processes
    share (`train.expert_parallel`) stay where they are.
    """
    from torch.distributed.fsdp import fully_shard

    for p in model.parameters():
        p.data = p.data.contiguous()  # FSDP2 takes no transposed ones, which a user's module may have
    mesh = mesh_of(train, device)
    if train.expert_parallel > 1:
        share_experts_(model, device, mesh, train.expert_parallel)
    for block in [] if isinstance(model, UserModule) else blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of one of our models: its outermost list of modules."""
    return list(next(child for child in model.modules() if isinstance(child, nn.ModuleList)))


def sum_over_copies(model: Any, now: bool) -> None:
    """Whether the next backward pass sums gradients over the copies of the weights, besides within each.

    It need not before the last one of a step: until then, FSDP2 keeps what a copy has found.
    """
    model.set_requires_all_reduce(now)
