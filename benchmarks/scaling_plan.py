"""What a training step on many GPUs sends, computes and keeps, from sizes alone; `scaling_out.py` makes tables of it.

Sizes are counted on models without memory (torch's meta device). `step_traffic` gives the bytes that torch's
collectives are handed in a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig, TrainConfig
from nanokimi.model.build import build_model
from nanokimi.optim.build import OF_MATRICES
from nanokimi.optim.groups import assign

Shapes = dict[str, tuple[int, ...]]
FP32, BF16, FP64 = 4, 2, 8

# ---- the models


@dataclass(frozen=True)
class Unit:
    """What FSDP2 gathers and scatters together: one of `count` equal blocks, or the root (what is in no block)."""

    shapes: Shapes
    count: int = 1
    root: bool = False

    @property
    def numbers(self) -> int:
        """Parameters of one of them."""
        return sum(map(math.prod, self.shapes.values()))


@dataclass(frozen=True)
class Plan:
    """A model with its training: what decides bytes, seconds and memory."""

    name: str
    model: KimiConfig | GPTConfig
    optim: OptimConfig
    train: TrainConfig

    @property
    def units(self) -> tuple[Unit, ...]:
        """The blocks of each kind, then the root."""
        return units_of(self.model)

    def muon(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether Muon updates a parameter, rather than AdamW."""
        heads = self.model.num_attention_heads if self.optim.split_heads else 1
        return assign(name, shape, num_heads=heads, router=self.optim.router)[0] == "muon"

    def numbers(self, which: Literal["all", "stacks", "matrices", "adamw"]) -> int:
        """Parameters of the whole model: all; Muon's in stacks of experts; Muon's other matrices; AdamW's."""

        def belongs(name: str, shape: tuple[int, ...]) -> bool:
            kind = "adamw" if not self.muon(name, shape) else "stacks" if len(shape) == 3 else "matrices"
            return which in ("all", kind)

        return sum(
            unit.count * math.prod(shape)
            for unit in self.units
            for name, shape in unit.shapes.items()
            if belongs(name, shape)
        )


@cache
def units_of(config: KimiConfig | GPTConfig) -> tuple[Unit, ...]:
    """The blocks of each kind and the root, from a model with one block of each kind on the meta device."""
    dense = min(config.first_k_dense_replace, 1) if isinstance(config, KimiConfig) else 0
    small = {"first_k_dense_replace": dense} if isinstance(config, KimiConfig) else {}
    with torch.device("meta"):
        model = build_model(replace(config, num_hidden_layers=dense + 1, **small), seed=0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    blocks: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        for part in ("model.layers.", "transformer.h."):
            if name.startswith(part):
                blocks.setdefault(name.removeprefix(part).partition(".")[0], {})[name] = shape
    root = {
        name: shape for name, shape in shapes.items() if not any(name in block for block in blocks.values())
    }
    counts = [config.first_k_dense_replace] * dense if isinstance(config, KimiConfig) else []
    counts.append(config.num_hidden_layers - sum(counts))
    kinds = [Unit(block, count) for block, count in zip(blocks.values(), counts, strict=True)]
    return (*kinds, Unit(root, root=True))


# ---- bytes


@dataclass(frozen=True)
class Network:
    """Links of nodes of eight GPUs: bytes per second in one direction, of a GPU within its node and of a node."""

    name: str
    gpu_bytes: float
    node_bytes: float


GPUS_OF_A_NODE = 8
NVLINK = 450e9
NETWORKS = (
    Network("InfiniBand", NVLINK, 8 * 400e9 / 8),
    Network("Ethernet", NVLINK, 100e9 / 8),
)
"""NVIDIA's data sheets of the H200 (NVLink: 900 GB/s, both directions together) and of DGX H200 (8 x 400 Gbit/s of
InfiniBand for its GPUs); a 100 Gbit/s Ethernet port for a node, as its name says."""
FACTOR = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "exchange": 1}


@dataclass(frozen=True)
class Traffic:
    """One kind of message in a step, among `ranks` GPUs of which `in_node` share a node.

    `bytes` are those of the whole tensors, over all calls: of what a gather results in, of what is summed, of all that
    is exchanged.
    """

    what: str
    kind: Literal["all-gather", "reduce-scatter", "all-reduce", "exchange"]
    bytes: float
    calls: int
    ranks: int
    in_node: int

    @property
    def of_a_gpu(self) -> float:
        """The bytes that concern a GPU: all, by rings; of an exchange, its own share."""
        return self.bytes * FACTOR[self.kind] / (self.ranks if self.kind == "exchange" else 1)

    @property
    def sent(self) -> float:
        """Bytes that a GPU sends in a step, and receives."""
        return self.of_a_gpu * (self.ranks - 1) / self.ranks

    def seconds(self, network: Network) -> float:
        """The least time that the bytes need, within a node or into it, whichever is longer.

        A ring brings every byte into a node once, and an exchange once for each GPU. The GPUs of a node that are not of
        this group do the same in groups of their own.
        """
        others = GPUS_OF_A_NODE / self.in_node if self.ranks > self.in_node else 1.0
        copies = self.in_node if self.kind == "exchange" else 1
        into_node = self.of_a_gpu * copies * (1 - self.in_node / self.ranks)
        return max(
            self.sent / network.gpu_bytes if self.in_node > 1 else 0.0,
            others * into_node / network.node_bytes,
        )


def padded(shape: tuple[int, ...], shards: int) -> int:
    """Numbers that FSDP2 sends of a parameter: its first axis rounded up to a multiple of the shards."""
    return math.ceil(shape[0] / shards) * shards * math.prod(shape[1:])


def sequences(plan: Plan, gpus: int) -> int:
    """Sequences of each GPU in a step. Where the batch has fewer than there are GPUs, it must grow to one for each."""
    return max(plan.train.batch_size // gpus, 1)


def passes(plan: Plan, gpus: int) -> int:
    """Micro-batches of each GPU in a step."""
    each = sequences(plan, gpus)
    return math.ceil(each / min(plan.train.micro_batch_size or each, each))


def pass_tokens(plan: Plan, gpus: int) -> int:
    """Tokens of a GPU's micro-batch."""
    return sequences(plan, gpus) // passes(plan, gpus) * plan.train.context_length


def sharded(
    count: int, ranks: int, units: tuple[Unit, ...], of: str = "", in_node: int = GPUS_OF_A_NODE
) -> list[Traffic]:
    """FSDP2's messages of `count` micro-batches: weights are gathered and gradients scattered in fp32.

    A block's weights are gathered for its forward and again for its backward pass, the root's once for both.
    """
    near = min(ranks, in_node)
    sizes = [sum(padded(shape, ranks) for shape in unit.shapes.values()) for unit in units]
    twice = [unit.count * (1 if unit.root else 2) for unit in units]
    once = [unit.count for unit in units]

    def message(what: str, kind: Literal["all-gather", "reduce-scatter"], times: list[int]) -> Traffic:
        numbers = sum(size * n for size, n in zip(sizes, times, strict=True))
        return Traffic(what + of, kind, FP32 * numbers * count, sum(times) * count, ranks, near)

    return [message("weights", "all-gather", twice), message("gradients", "reduce-scatter", once)]


def muon_traffic(plan: Plan, ranks: int, units: tuple[Unit, ...], copies: int = 1) -> list[Traffic]:
    """Muon's matrices that are not in stacks of experts go to their owners, and their updates back, in fp32.

    Of several copies of the weights an owner takes its own, and sends updates to all.
    """
    numbers = sum(
        unit.count * math.prod(shape)
        for unit in units
        for name, shape in unit.shapes.items()
        if len(shape) == 2 and plan.muon(name, shape)
    )
    if not numbers or plan.optim.name not in OF_MATRICES:
        return []
    if copies == 1:
        return [Traffic("Muon", "exchange", 2 * FP32 * numbers, 2, ranks, min(ranks, GPUS_OF_A_NODE))]
    near = ranks // copies
    return [
        Traffic("Muon", "exchange", FP32 * numbers / copies, 1, near, min(near, GPUS_OF_A_NODE)),
        Traffic(
            "Muon to all copies", "exchange", FP32 * numbers * copies, 1, ranks, min(ranks, GPUS_OF_A_NODE)
        ),
    ]


def agreed_numbers(plan: Plan) -> int:
    """Numbers in the vector of a step that all exchange: two losses, the gradient's norm, whether to stop and to save;
    of each layer with experts its entropy and counts; of each head its largest logit, if QK-Clip needs it."""
    model = plan.model
    heads = model.num_hidden_layers * model.num_attention_heads if plan.optim.clips else 0
    if not isinstance(model, KimiConfig):
        return 5 + heads
    return 5 + (model.num_hidden_layers - model.first_k_dense_replace) * (1 + model.n_routed_experts) + heads


def agreement(plan: Plan, gpus: int) -> Traffic:
    """The one message about numbers of the step, in float64: a gather, so that all sum in the same order."""
    size = FP64 * agreed_numbers(plan) * gpus
    return Traffic("agreement", "all-gather", size, 1, gpus, min(gpus, GPUS_OF_A_NODE))


def step_traffic(plan: Plan, gpus: int) -> list[Traffic]:
    """What a step of `torchrun -m nanokimi train` sends: every parameter is cut over all GPUs.

    Not in it: when a head is clipped, the weights of its attention; after a step with a validation or a checkpoint, all
    weights once more, to the main process.
    """
    messages = sharded(passes(plan, gpus), gpus, plan.units)
    return [*messages, *muon_traffic(plan, gpus, plan.units), agreement(plan, gpus)]


def step_traffic_of_copies(plan: Plan, gpus: int) -> list[Traffic]:
    """The same if each node has a copy of the model, cut over its GPUs (`train.shard` 8); nodes sum their gradients."""
    near = min(gpus, GPUS_OF_A_NODE)
    within = sharded(passes(plan, gpus), near, plan.units)
    within += muon_traffic(plan, gpus, plan.units, copies=gpus // near)
    own = sum(unit.count * sum(padded(s, near) for s in unit.shapes.values()) for unit in plan.units) / near
    blocks = sum(unit.count for unit in plan.units)
    return [
        *within,
        Traffic("gradients of the copies", "all-reduce", FP32 * own, blocks, gpus // near, 1),
        agreement(plan, gpus),
    ]


def step_traffic_of_experts(plan: Plan, gpus: int, experts: int) -> list[Traffic]:
    """The same if groups of `experts` GPUs share the experts of a layer (`train.expert_parallel`), all chosen as often.

    Each GPU's own experts are cut over gpus / experts; all other parameters over all. Tokens go to the experts that
    they choose and their outputs back, in bf16, in the forward pass, in the backward pass, and where that recomputes.
    Not in it: how many tokens come, 8 bytes for each expert and pass.
    """
    assert isinstance(plan.model, KimiConfig)
    others = tuple(
        replace(unit, shapes={n: s for n, s in unit.shapes.items() if len(s) < 3}) for unit in plan.units
    )
    stacks = tuple(
        replace(unit, shapes={n: (s[0] // experts, *s[1:]) for n, s in unit.shapes.items() if len(s) == 3})
        for unit in plan.units
    )
    count, layers = passes(plan, gpus), plan.model.num_hidden_layers - plan.model.first_k_dense_replace
    times = 3 if plan.train.activation_checkpointing else 2
    rows = count * pass_tokens(plan, gpus) * plan.model.num_experts_per_tok
    tokens = 2 * times * layers * rows * plan.model.hidden_size * BF16 * experts
    found = [*sharded(count, gpus, others), *muon_traffic(plan, gpus, others)]
    if gpus > experts:
        found += sharded(count, gpus // experts, stacks, " of experts", max(GPUS_OF_A_NODE // experts, 1))
    calls, near = 2 * times * layers * count, min(experts, GPUS_OF_A_NODE)
    return [*found, Traffic("tokens", "exchange", tokens, calls, experts, near), agreement(plan, gpus)]


def tokens_where_experts_pay(plan: Plan) -> float:
    """Tokens in a GPU's micro-batch below which sending them to experts moves fewer bytes than gathering experts does.

    Gathered: a layer's experts twice, and scattered once, in fp32. Sent: as in `step_traffic_of_experts`.
    """
    assert isinstance(plan.model, KimiConfig)
    model = plan.model
    layer = 3 * model.n_routed_experts * model.hidden_size * model.moe_intermediate_size
    times = 3 if plan.train.activation_checkpointing else 2
    return 3 * FP32 * layer / (2 * times * model.num_experts_per_tok * model.hidden_size * BF16)


# ---- memory of a GPU


def state_bytes(plan: Plan, gpus: int) -> float:
    """Weights, gradients and the optimizer's state in fp32: Muon keeps one more number for each, AdamW two."""
    everything, of_adamw = plan.numbers("all"), plan.numbers("adamw")
    if plan.optim.name not in OF_MATRICES:
        of_adamw = everything
    return FP32 * (3 * everything + of_adamw) / gpus


def gathered_bytes(units: tuple[Unit, ...]) -> float:
    """What FSDP2 holds whole at most: the root's weights and gradients, two blocks' weights (the next one is fetched
    ahead), and a block's gradients with the copy of them that is being sent."""
    largest = max(unit.numbers for unit in units if not unit.root)
    return FP32 * (2 * next(unit.numbers for unit in units if unit.root) + 4 * largest)


def block_bytes(model: KimiConfig | GPTConfig, dense: bool = False) -> int:
    """Bytes that a block keeps of a token for its backward pass, in bf16 on a GPU, at least.

    The residual stream and what is normed are in fp32, the inputs of products in bf16.
    """
    D = model.hidden_size
    if isinstance(model, GPTConfig):
        hidden = model.intermediate_size or 4 * D
        return FP32 * 2 * D + BF16 * (D + 4 * D + D + 2 * hidden) + FP32 * model.num_attention_heads
    H, V, C = model.num_attention_heads, model.v_head_dim, model.kv_lora_rank
    X, A = model.qk_nope_head_dim + model.qk_rope_head_dim, model.q_lora_rank or 0
    attention = FP32 * (2 * D + A + C) + BF16 * (2 * D + A + C + H * (2 * X + 2 * V)) + FP32 * H
    if dense:
        return attention + BF16 * (2 * D + 4 * model.intermediate_size)
    E, K, F = model.n_routed_experts, model.num_experts_per_tok, model.moe_intermediate_size
    shared = BF16 * (2 * D + 4 * F * model.n_shared_experts) if model.n_shared_experts else 0
    return attention + FP32 * (D + 4 * E) + shared + K * (BF16 * (2 * D + 4 * F) + FP32 * D)


def activation_bytes(plan: Plan, tokens: int) -> float:
    """What a micro-batch of a GPU keeps: every block's, or, where they are recomputed, its inputs and one block's; and
    the logits with their gradient, in bf16."""
    model = plan.model
    dense = min(model.first_k_dense_replace, model.num_hidden_layers) if isinstance(model, KimiConfig) else 0
    a_block = block_bytes(model)
    kept = dense * block_bytes(model, dense=True) + (model.num_hidden_layers - dense) * a_block
    if plan.train.activation_checkpointing:
        kept = FP32 * model.hidden_size * model.num_hidden_layers + a_block
    assert model.vocab_size is not None
    return tokens * (kept + 2 * BF16 * model.vocab_size)
