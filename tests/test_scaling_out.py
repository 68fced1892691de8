"""docs/scaling-out.md says what its formulas give, and they say what FSDP2 sends and autograd keeps."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig, TrainConfig
from nanokimi.measure import communication
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import build_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
try:
    import scaling_out
    import scaling_plan
finally:
    sys.path.pop(0)

MODELS = [replace(TINY_KIMI, num_hidden_layers=3, q_lora_rank=24), TINY_GPT]


def plan_of(model: KimiConfig | GPTConfig, **train: Any) -> Any:
    settings = dict(context_length=16, batch_size=16, max_steps=1)
    return scaling_plan.Plan(
        "tiny", model, OptimConfig(name="muonclip"), TrainConfig(**{**settings, **train})
    )


def test_the_document_says_what_the_formulas_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling_out.py", "--check"])
    assert scaling_out.main() == 0, "run: python benchmarks/scaling_out.py"
    text = scaling_out.DOCUMENT.read_text(encoding="utf-8")
    at = text.index("| k2-27m | 26.")
    changed = text[:at] + text[at:].replace("26.", "27.", 1)
    assert scaling_out.filled(changed) == text
    with pytest.raises(ValueError, match="expected"):
        scaling_out.filled(text.replace("table k2:", "table k3:"))


def test_sizes_are_those_of_the_models() -> None:
    for plan in scaling_out.plans():
        total = model_cost(plan.model, plan.train.context_length).params_total
        assert sum(unit.count * unit.numbers for unit in plan.units) == plan.numbers("all") == total
        assert sum(map(plan.numbers, ("stacks", "matrices", "adamw"))) == total
    assert 1.02e12 < total < 1.04e12, "Kimi K2 has a trillion"


class Counted(TorchDispatchMode):
    """Bytes of the whole tensors that FSDP2's collectives are given, and calls, by kind."""

    KINDS = {"_allgather_base_": ("all-gather", 0), "_reduce_scatter_base_": ("reduce-scatter", 1)}

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.calls = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind, at = self.KINDS[func._schema.name.partition("::")[2]]
            self.bytes[kind] += args[at].numel() * args[at].element_size()
            self.calls[kind] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[int]:
    """The first of so many processes; what it sends goes nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    distributed.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 8], indirect=True)
@pytest.mark.parametrize("config", MODELS, ids=["nanokimi", "nanogpt"])
def test_fsdp_sends_what_the_formula_says(config: KimiConfig | GPTConfig, processes: int) -> None:
    """Two micro-batches. Of 4 experts on 8 processes half is padding."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build_model(config, seed=0)
    mesh = init_device_mesh("cpu", (processes,))
    for block in next(child for child in model.modules() if isinstance(child, torch.nn.ModuleList)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    plan = plan_of(config, batch_size=2 * processes, micro_batch_size=1)
    assert scaling_plan.passes(plan, processes) == 2
    with Counted() as counted:
        for _ in range(2):
            model(torch.zeros(1, 16, dtype=torch.long)).logits_BTW.sum().backward()
    expected = {
        message.kind: (message.bytes, message.calls)
        for message in scaling_plan.step_traffic(plan, processes)
        if message.what in ("weights", "gradients")
    }
    assert {kind: (counted.bytes[kind], counted.calls[kind]) for kind in counted.bytes} == expected


def test_padding_is_what_uneven_rows_cost() -> None:
    assert [scaling_plan.padded((16, 3, 5), n) for n in (1, 16, 64, 10)] == [240, 240, 960, 300]


def test_the_least_time_of_a_message() -> None:
    """16 GPUs in two nodes: half of a gather comes into each over 400 GB/s; within it, 15/16 at 450 GB/s."""
    gather = scaling_plan.Traffic("x", "all-gather", 8e9, 1, 16, 8)
    infiniband, ethernet = scaling_plan.NETWORKS
    assert gather.sent == 7.5e9
    assert gather.seconds(infiniband) == pytest.approx(max(7.5 / 450, 4 / 400))
    assert gather.seconds(ethernet) == pytest.approx(4 / 12.5)
    assert replace(gather, kind="all-reduce").seconds(ethernet) == pytest.approx(8 / 12.5)
    # Of an exchange each GPU has half a GB, half of which leaves the node, as do those of its 7 neighbours.
    exchange = replace(gather, kind="exchange")
    assert exchange.sent == pytest.approx(0.5e9 * 15 / 16)
    assert exchange.seconds(ethernet) == pytest.approx(8 * 0.25 / 12.5)
    # One GPU of each of two nodes, while its 7 neighbours do the same with theirs.
    copies = scaling_plan.Traffic("x", "all-reduce", 1e9, 1, 2, 1)
    assert copies.seconds(ethernet) == pytest.approx(8 * 2 * 0.5 / 12.5)
    alone = scaling_plan.Traffic("x", "all-gather", 8e9, 1, 8, 8)
    assert alone.seconds(ethernet) == pytest.approx(7 / 450)


def kept_bytes(config: KimiConfig | GPTConfig, rows: int) -> int:
    """What autograd keeps for the backward pass of so many rows of 32 tokens, in bf16, weights included."""
    model, kept = build_model(config, seed=0), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros(rows, 32, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        model(ids)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("config", MODELS, ids=["nanokimi", "nanogpt"])
def test_a_block_keeps_at_least_what_the_formula_says(config: KimiConfig | GPTConfig) -> None:
    """Of two depths and two batches, only a block's own tokens are left. A CPU's forms keep a little more in fp32."""
    deeper = replace(config, num_hidden_layers=config.num_hidden_layers + 1)
    many, few = (kept_bytes(deeper, rows) - kept_bytes(config, rows) for rows in (4, 2))
    counted = (many - few) / (2 * 32)
    assert 0.75 * counted < scaling_plan.block_bytes(config) <= counted


def test_experts_pay_below_the_tokens_where_both_send_the_same() -> None:
    """By the messages themselves: a batch of so many tokens a GPU, experts in two groups, against experts gathered."""
    plan = plan_of(MODELS[0])
    tokens = scaling_plan.tokens_where_experts_pay(plan)
    assert isinstance(plan.model, KimiConfig)
    model, gpus = plan.model, 4
    both = replace(plan, train=replace(plan.train, context_length=1, batch_size=math.floor(tokens) * gpus))
    (sent,) = [m.sent for m in scaling_plan.step_traffic_of_experts(both, gpus, gpus) if m.what == "tokens"]
    layers = model.num_hidden_layers - model.first_k_dense_replace
    stacks = 3 * model.n_routed_experts * model.hidden_size * model.moe_intermediate_size
    assert sent == pytest.approx(3 * 4 * layers * stacks * (gpus - 1) / gpus, rel=0.02)


@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_the_plan_counts_the_bytes_that_training_sends(gpus: int) -> None:
    """`measure.communication`, which tests compare with torch's collectives, sums over all processes.

    The plan deals Muon's matrices evenly; the trainer cannot quite.
    """
    for plan in scaling_out.plans()[:2]:
        with torch.device("meta"):
            model = build_model(plan.model, seed=0)
        heads, passes = plan.model.num_attention_heads, scaling_plan.passes(plan, gpus)
        sent = communication.step_traffic(model, plan.optim, heads, gpus, passes=passes)
        planned = {message.what: message.sent * gpus for message in scaling_plan.step_traffic(plan, gpus)}
        assert planned["weights"] == sent.weights and planned["gradients"] == sent.gradients
        assert planned["agreement"] == sent.agreed
        assert planned["Muon"] == pytest.approx(sent.matrices, rel=2e-3)


def test_the_table_of_who_holds_the_weights_says_what_the_formulas_give() -> None:
    """In docs/many-gpus.md, to the digits shown there."""
    text = (scaling_out.DOCUMENT.parent / "many-gpus.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| k2-.*$", text, re.M)]
    assert len(rows) == 8
    plans = {name: scaling_out.preset(name) for name in scaling_out.PRESETS}
    with torch.device("meta"):
        models = {name: build_model(plan.model, seed=0) for name, plan in plans.items()}
    for name, processes, said_shard, *said in rows:
        plan, model, gpus = plans[name], models[name], int(processes)
        shard = gpus if said_shard == "null" else int(said_shard)
        heads, passes = plan.model.num_attention_heads, scaling_plan.passes(plan, gpus)
        sent = communication.step_traffic(model, plan.optim, heads, gpus, shard=shard, passes=passes)
        each = [total / gpus for total in (sent.weights, sent.gradients, sent.copies, sent.matrices)]
        for found, expected in zip(said, [*each, scaling_plan.state_bytes(plan, shard)], strict=True):
            number, _, unit = found.partition(" ")
            digits = len(number.partition(".")[2])
            assert round(expected / {"": 1, "MB": 1e6, "GB": 1e9}[unit], digits) == float(number), (
                name,
                found,
            )


def test_the_plan_of_copies_counts_the_bytes_that_training_sends() -> None:
    plan, gpus, near = scaling_out.plans()[0], 32, 8
    with torch.device("meta"):
        model = build_model(plan.model, seed=0)
    heads, passes = plan.model.num_attention_heads, scaling_plan.passes(plan, gpus)
    sent = communication.step_traffic(model, plan.optim, heads, gpus, shard=near, passes=passes)
    planned = {
        message.what: message.sent * gpus for message in scaling_plan.step_traffic_of_copies(plan, gpus)
    }
    assert planned["weights"] == sent.weights and planned["gradients"] == sent.gradients
    assert planned["gradients of the copies"] == sent.copies
    assert planned["Muon"] + planned["Muon to all copies"] == pytest.approx(sent.matrices, rel=2e-3)


@pytest.mark.parametrize("experts", [8, 4])
def test_the_plan_of_shared_experts_counts_the_bytes_that_training_sends(experts: int) -> None:
    """If every expert is chosen equally often: a token then stays for one of its experts in as many as share them."""
    plan, gpus = scaling_out.preset("k2-1b"), 8
    with torch.device("meta"):
        model = build_model(plan.model, seed=0)
    heads, passes = plan.model.num_attention_heads, scaling_plan.passes(plan, gpus)
    layers = plan.model.num_hidden_layers - plan.model.first_k_dense_replace
    pairs = gpus * passes * scaling_plan.pass_tokens(plan, gpus) * plan.model.num_experts_per_tok * layers
    sharing = communication.Sharing(experts, pairs * (experts - 1) // experts, 2, recomputed=True)
    sent = communication.step_traffic(model, plan.optim, heads, gpus, passes=passes, sharing=sharing)
    planned = Counter[str]()
    for message in scaling_plan.step_traffic_of_experts(plan, gpus, experts):
        planned[message.what.removesuffix(" of experts")] += message.sent * gpus
    assert planned["weights"] == sent.weights and planned["gradients"] == sent.gradients
    assert planned["tokens"] < sent.tokens == pytest.approx(planned["tokens"], rel=1e-3), "and the counts"
