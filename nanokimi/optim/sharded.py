"""Muon and QK-Clip when each process holds some rows of every parameter (FSDP2): both need whole matrices.

A stack of experts (E, F, D) is split on E, so each process has whole matrices and orthogonalises its own. Every other
matrix has an owner. It receives the rows of all processes, orthogonalises the matrix once, and sends each process its
rows back. Matrices are dealt so that all owners have about as much to compute. Momentum and weights are not moved.

Where processes hold several copies of the weights (`train.shard`), a matrix still has one owner among all processes: it
takes the rows of its own copy, and sends the updates to all copies, which therefore get the same bits. Each copy
computing its own would send a little less between machines, but with a whole copy in each process (DDP) none would
compute less than a process alone, and for models of plain matrices Newton-Schulz would soon take most of a step. Stacks
of experts are computed in each copy: they are most of the numbers, and sending them would take longer between machines
than computing them does (docs/scaling-out.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from nanokimi.optim.muon import Member, Muon, muon_direction
from nanokimi.optim.qk_clip import Clipping, RescalableAttention
from nanokimi.runtime.parallel import copies_of, is_sharded, like, local_of, whole

MatrixStep = Callable[[Sequence[Member], int, torch.dtype | None], None]
SHARDABLE = ("adamw", "lion", "muon", "muonclip", "truemuon")
"""Optimizers that treat every number alike, or whose matrices are put together here."""
OF_WHOLE = ("shampoo", "shampooclip", "soap")
"""Optimizers that compute with what a process holds of a matrix, which must be all of it (`train.shard` 1)."""


def take_shards_(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer of sharded parameters orthogonalise whole matrices and clip whole heads."""
    if isinstance(optimizer, Muon):
        optimizer.matrix_step = partial(sharded_matrix_step, optimizer.matrix_step)
    if isinstance(optimizer, Clipping):
        optimizer.attentions = [WholeAttention(attention) for attention in optimizer.attentions]


def sharded_matrix_step(
    inner: MatrixStep, members: Sequence[Member], steps: int, dtype: torch.dtype | None
) -> None:
    """`muon.matrix_step` for parameters that are sharded on their first axis. `inner` orthogonalises whole matrices.

    All processes must call this with the same members.
    """
    stacks = [local_member(member) for member in members if member.parameter.dim() > 2]
    inner([member for member in stacks if member.parameter.numel()], steps, dtype)
    matrices = [member for member in members if member.parameter.dim() == 2]
    if not matrices:
        return
    rows = [local_member(member) for member in matrices]
    directions = [
        muon_direction(p.grad, buffer, group["momentum"], group["nesterov"])
        for p, group, buffer, _ in rows
        if p.grad is not None
    ]
    blocks = [member.group["blocks"] for member in matrices]
    shapes = [tuple(member.parameter.shape) for member in matrices]
    copies = copies_of(matrices[0].parameter)
    updates = orthogonalised_by_owners(inner, directions, shapes, blocks, copies, steps, dtype)
    for (p, group, _, scale), update in zip(rows, updates, strict=True):
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * scale)


def local_member(member: Member) -> Member:
    """A sharded parameter's rows in this process as a parameter of their own, in the same memory."""
    p = local_of(member.parameter.detach())
    p.grad = local_of(member.parameter.grad)
    return Member(p, member.group, local_of(member.momentum_buffer), member.scale)


def orthogonalised_by_owners(
    inner: MatrixStep,
    parts: Sequence[torch.Tensor],
    shapes: Sequence[tuple[int, ...]],
    blocks: Sequence[int],
    copies: int,
    steps: int,
    dtype: torch.dtype | None,
) -> list[torch.Tensor]:
    """This process's rows of orthogonalised matrices, of which `parts` are its rows and `shapes` the whole sizes.

    There may be several copies of every matrix, each of which neighbouring processes share.
    """
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shard = size // copies
    near = range(rank // shard * shard, (rank // shard + 1) * shard)  # those that share this process's copy
    owners = deal(tuple(zip(shapes, blocks, strict=True)), size)
    dealt = [[i for i, owner in enumerate(owners) if owner == r] for r in range(size)]
    mine = dealt[rank]
    of_owners = [sum(parts[i].numel() for i in its) for its in dealt]
    of_mine = [[numbers_of(shapes[i], place, shard) for i in mine] for place in range(shard)]
    # To each owner the rows of its matrices; from each process its rows of ours. An owner needs one copy, its own.
    sent = torch.cat([parts[i].reshape(-1) for r in near for i in dealt[r]] or [parts[0].new_empty(0)])
    here = [of_owners[r] if r in near else 0 for r in range(size)]
    received = exchanged(sent, here, [sum(of_mine[r % shard]) if r in near else 0 for r in range(size)])
    pieces = iter(received.split([n for numbers in of_mine for n in numbers]))
    by_process = [[next(pieces) for _ in mine] for _ in near]
    whole_ones = [torch.cat(its).view(shapes[i]) for i, *its in zip(mine, *by_process, strict=True)]

    updates = orthogonalised(inner, whole_ones, [blocks[i] for i in mine], steps, dtype)

    split = [
        update.reshape(-1).split([numbers[n] for numbers in of_mine]) for n, update in enumerate(updates)
    ]
    # To each process of every copy the rows that it holds.
    sent = torch.cat([its[r % shard] for r in range(size) for its in split] or [received])
    back = exchanged(sent, [sum(of_mine[r % shard]) for r in range(size)], of_owners)
    ordered = [i for its in dealt for i in its]
    pieces = iter(back.split([parts[i].numel() for i in ordered]))
    found = {i: next(pieces).view_as(parts[i]) for i in ordered}
    return [found[i] for i in range(len(parts))]


def orthogonalised(
    inner: MatrixStep,
    matrices: Sequence[torch.Tensor],
    blocks: Sequence[int],
    steps: int,
    dtype: torch.dtype | None,
) -> list[torch.Tensor]:
    """Newton-Schulz of whole matrices by Muon's own step: taken from zero, without momentum, it is the update alone."""
    groups = {n: dict(lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, blocks=n) for n in set(blocks)}
    members = []
    for matrix, n in zip(matrices, blocks, strict=True):
        p = torch.zeros_like(matrix)
        p.grad = matrix
        members.append(Member(p, groups[n], torch.zeros_like(matrix), -1.0))
    inner(members, steps, dtype)
    return [member.parameter for member in members]


def exchanged(
    sent: torch.Tensor,
    to_each: list[int],
    from_each: list[int],
    group: torch.distributed.ProcessGroup | None = None,
) -> torch.Tensor:
    """What the processes of a group (None: all) sent to this one, in their order, after sending them their rows."""
    received = sent.new_empty(sum(from_each), *sent.shape[1:])
    torch.distributed.all_to_all_single(received, sent, from_each, to_each, group)
    return received


def numbers_of(shape: tuple[int, ...], rank: int, size: int) -> int:
    """How many numbers of a matrix a process holds, of the `size` that share a copy of it.

    FSDP2 gives each the same count of rows, and the last ones less.
    """
    each = -(-shape[0] // size)
    return max(min(shape[0] - rank * each, each), 0) * shape[1]


@cache
def deal(matrices: tuple[tuple[tuple[int, ...], int], ...], size: int) -> list[int]:
    """The owner of each matrix (shape, blocks): the dearest first, each to the process that has least to compute."""
    loads = [0] * size
    owners = [0] * len(matrices)
    costs = [newton_schulz_cost(shape, blocks) for shape, blocks in matrices]
    for i in sorted(range(len(matrices)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def newton_schulz_cost(shape: tuple[int, ...], blocks: int) -> int:
    """Multiplications in one step of Newton-Schulz: two products with the longer side, one of the shorter alone."""
    short, long = sorted((shape[-2] // blocks, shape[-1]))
    return blocks * short * short * (2 * long + short)


class WholeAttention:
    """An attention whose sharded weights are put together for as long as its heads are rescaled."""

    def __init__(self, attention: RescalableAttention) -> None:
        self.attention: Any = attention

    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """As the attention does. All processes must call this with the same factors; if all are 1, nothing is sent."""
        if bool((gamma_H == 1).all()):
            return
        with whole_parameters_(self.attention):
            device = next(self.attention.parameters()).device
            self.attention.rescale_heads_(gamma_H.to(device))


@contextmanager
def whole_parameters_(module: nn.Module) -> Iterator[None]:
    """Let a module have whole parameters within the block. Each process then keeps its rows of what became of them."""
    places = [
        (owner, name, p)
        for owner in module.modules()
        for name, p in owner.named_parameters(recurse=False)
        if is_sharded(p)
    ]
    for owner, name, p in places:
        owner._parameters[name] = nn.Parameter(whole(p.detach()), requires_grad=False)
    try:
        yield
        for owner, name, p in places:
            changed = owner._parameters[name]
            assert changed is not None
            local_of(p.detach()).copy_(local_of(like(changed.detach(), p)))
    finally:
        for owner, name, p in places:
            owner._parameters[name] = p
