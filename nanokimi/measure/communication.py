"""Bytes that the processes of a group send in a training step: by a formula, and counted from torch's collectives.

All numbers are sums over the processes of what each has to receive, however a backend routes it. FSDP2
pads the rows of each parameter to a multiple of the number of processes, and sends the padding, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nanokimi.config import OptimConfig
from nanokimi.model.moe import Experts
from nanokimi.optim.build import matrix_groups
from nanokimi.optim.sharded import deal, numbers_of

WEIGHT_BYTES, AGREED_BYTES, COUNT_BYTES = 4, 8, 8
"""Weights and gradients are sent in fp32, what the processes agree on in float64, how many tokens come in int64."""


@dataclass
class Traffic:
    """Bytes of one step, over all processes."""

    weights: int = 0
    """All-gathers: of each block's weights before its forward and its backward pass, of the others once."""
    gradients: int = 0
    """Reduce-scatters, among the processes that share a copy of the weights."""
    copies: int = 0
    """All-reduces: gradients summed over the copies, in the last pass of a step."""
    matrices: int = 0
    """All-to-alls: rows of Muon's matrices to their owners, and orthogonalised rows back."""
    agreed: int = 0
    """All-gathers of losses, the gradient's norm, wishes, expert counts and largest logits."""
    tokens: int = 0
    """All-to-alls of shared experts: tokens to them and back, their gradients, and how many there are."""

    @property
    def total(self) -> int:
        """All of it."""
        of_weights = self.weights + self.gradients + self.copies + self.matrices
        return of_weights + self.agreed + self.tokens


@dataclass(frozen=True)
class Sharing:
    """How processes share experts (`train.expert_parallel`), and which tokens travel in a step."""

    processes: int = 1
    """Of a group, which shares a layer's experts."""
    pairs: int = 0
    """Tokens times the chosen experts that another process has, of all layers, processes and passes."""
    number_bytes: int = 4
    """Of one number of a token: 4 in fp32, 2 in bf16."""
    recomputed: bool = False
    """Whether the backward pass repeats the forward pass (`train.activation_checkpointing`)."""


GATHERED = Sharing()
"""No process keeps experts: each gathers all."""


def step_traffic(
    model: nn.Module,
    optim: OptimConfig,
    num_heads: int,
    size: int,
    *,
    shard: int | None = None,
    passes: int = 1,
    sharing: Sharing = GATHERED,
) -> Traffic:
    """What `size` processes send in a step of `passes` forward passes, by arithmetic. The model may be on meta.

    `shard` of them share a copy of the weights; None: all.
    """
    shard = shard or size
    copies = size // shard
    blocks = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
    stacks = stacks_to_share(model) if sharing.processes > 1 else []
    in_stacks = sum(padded(p, shard) for p in stacks)
    in_blocks = sum(padded(p, shard) for p in blocks.parameters()) - in_stacks
    everywhere = sum(padded(p, shard) for p in model.parameters()) - in_stacks
    ones = WEIGHT_BYTES * (shard - 1) * copies * passes
    # Each of the groups in a copy has all experts, of which a process gathers its own from the other groups.
    groups = shard // sharing.processes
    shared = sharing.processes * sum(padded(p[: len(p) // sharing.processes], groups) for p in stacks)
    ones_of_stacks = WEIGHT_BYTES * (groups - 1) * copies * passes
    matrices = []
    if optim.name in ("muon", "muonclip", "truemuon"):
        for group in matrix_groups(model, optim, num_heads):
            if group["algorithm"] == "muon":
                matrices += [(tuple(p.shape), group["blocks"]) for p in group["params"] if p.dim() == 2]
    owners = deal(tuple(matrices), size)
    # An owner receives the rows of its copy, and all processes of all copies receive theirs, but for its own.
    of_others = sum(
        (copies + 1) * shape[0] * shape[1] - 2 * numbers_of(shape, owner % shard, shard)
        for (shape, _), owner in zip(matrices, owners, strict=True)
    )
    config: Any = model.config
    routers = len(model.routers()) if hasattr(model, "routers") else 0  # type: ignore[operator]
    numbers = 5 + routers * (1 + getattr(config, "n_routed_experts", 0))
    numbers += config.num_hidden_layers * config.num_attention_heads if optim.clips else 0
    return Traffic(
        weights=ones * (everywhere + in_blocks) + ones_of_stacks * 2 * shared,
        gradients=ones * everywhere + ones_of_stacks * shared,
        copies=WEIGHT_BYTES * 2 * (copies - 1) * (everywhere + shared),
        matrices=WEIGHT_BYTES * of_others,
        agreed=AGREED_BYTES * numbers * size * (size - 1),
        tokens=token_bytes(config, sharing, size * passes * routers),
    )


def stacks_to_share(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of experts that processes may share."""
    return [p for module in model.modules() if isinstance(module, Experts) for p in module.parameters()]


def token_bytes(config: Any, sharing: Sharing, mixtures: int) -> int:
    """What shared experts cost: tokens go there and back in each forward and backward pass, and where that repeats the
    forward pass; before each forward pass of each of `mixtures` (layers, processes and passes), how many tokens come.
    """
    if sharing.processes == 1:
        return 0
    forward = 2 if sharing.recomputed else 1
    counts = config.n_routed_experts // sharing.processes * (sharing.processes - 1)
    of_tokens = sharing.pairs * config.hidden_size * sharing.number_bytes * 2 * (forward + 1)
    return of_tokens + COUNT_BYTES * counts * mixtures * forward


def padded(p: torch.Tensor, size: int) -> int:
    """Numbers of a parameter whose rows are padded to a multiple of `size`."""
    return -(-p.shape[0] // size) * size * (p.numel() // p.shape[0])


@dataclass
class Counting(TorchDispatchMode):
    """Counts, within its block, what this process receives by torch's collectives."""

    size: int
    found: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation, and count it if it is a collective."""
        name = str(func)
        if name.startswith("c10d."):
            self._count(name.split(".")[1], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "_allgather_base_":
            self.found.weights += _bytes(args[0]) - _bytes(args[1])
        elif name == "_reduce_scatter_base_":
            self.found.gradients += _bytes(args[1]) - _bytes(args[0])
        elif name == "allreduce_":
            # Each receives the others' part of the sum that it makes, and the sums that they make.
            copies = torch.distributed.ProcessGroup.unbox(args[1]).size()
            self.found.copies += 2 * sum(map(_bytes, args[0])) * (copies - 1) // copies
        elif name == "alltoall_base_":
            received = _bytes(args[0]) - _from_itself(*args[:4])
            # Muon's rows are sent as one vector of numbers.
            if args[0].dim() > 1 or not args[0].is_floating_point():
                self.found.tokens += received
            else:
                self.found.matrices += received
        elif name == "allgather_":
            self.found.agreed += sum(_bytes(x) for x in args[1]) * (self.size - 1)
        else:
            raise ValueError(f"a step has the collective {name}, which is not counted")


def _from_itself(received: torch.Tensor, _: torch.Tensor, group: Any, from_each: list[int]) -> int:
    """Bytes of what a process of a group received from itself in an all-to-all."""
    rank = torch.distributed.ProcessGroup.unbox(group).rank()
    return _bytes(received.split(from_each)[rank])


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
