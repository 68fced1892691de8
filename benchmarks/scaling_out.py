"""Make the tables of docs/scaling-out.md: what a step on many GPUs sends, takes and keeps, by `scaling_plan.py`.

python benchmarks/scaling_out.py            # write them into the document
python benchmarks/scaling_out.py --check    # change nothing; exit status 1 if it differs (a test calls it)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from scaling_plan import GPUS_OF_A_NODE as NODE
from scaling_plan import (
    NETWORKS,
    Plan,
    Traffic,
    activation_bytes,
    gathered_bytes,
    pass_tokens,
    passes,
    sequences,
    state_bytes,
    step_traffic,
    step_traffic_of_copies,
    step_traffic_of_experts,
    tokens_where_experts_pay,
)

from nanokimi.config import KimiConfig, OptimConfig, TrainConfig
from nanokimi.config.files import load_config
from nanokimi.config.rules import resolve
from nanokimi.measure import communication
from nanokimi.measure.cost import matrix_update_flops, model_cost
from nanokimi.model.build import build_model
from nanokimi.runtime.files import write_atomic

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "scaling-out.md"
BF16_RATE, UTILISATION = 989e12, 0.4
"""Dense bf16 products of an H200 per second, by its data sheet, and the share of them that docs/gpu.md has as its bar,
which nothing has measured yet."""
H200_BYTES = 141e9
K2 = KimiConfig(
    vocab_size=163840, hidden_size=7168, num_hidden_layers=61, num_attention_heads=64, q_lora_rank=1536,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, intermediate_size=18432,
    moe_intermediate_size=2048, n_routed_experts=384, num_experts_per_tok=8, routed_scaling_factor=2.827,
    max_position_embeddings=4096,
)  # fmt: skip
"""config.json of moonshotai/Kimi-K2-Base on the Hugging Face Hub."""
K2_TRAIN = TrainConfig(
    context_length=4096,
    batch_size=16384,
    micro_batch_size=1,
    activation_checkpointing=True,
    max_steps=1,
)
"""67M tokens a step in sequences of 4,096 (arXiv 2507.20534, section 2.5). One sequence at a time is our choice."""
PRESETS, GPUS, K2_GPUS = ("k2-27m", "k2-1b"), (8, 16, 32, 64, 256, 1024), (64, 128, 256, 512, 1024)
OF_ALL_SIZES = ("k2-0.25m", "k2-1m", "k2-5m", "k2-27m", "k2-100m", "k2-350m", "k2-1b")
SHARING = 128
"""GPUs that share a layer's experts in the plan for Kimi K2: three of its 384 experts each."""


def preset(name: str) -> Plan:
    """NanoKimi of a preset."""
    config = load_config(name)
    config = resolve(config, vocab_size=config.dataset.vocab_size, device="cuda", dtype="bf16", threads=1)
    return Plan(name, config.nanokimi.model, config.nanokimi.optim, config.train)


def plans() -> list[Plan]:
    """The presets, then Kimi K2."""
    return [*map(preset, PRESETS), Plan("Kimi K2", K2, OptimConfig(name="muonclip"), K2_TRAIN)]


# ---- seconds


def computing_seconds(plan: Plan, gpus: int) -> float:
    """Of forward and backward passes, with the forward pass once more where activations are recomputed."""
    tokens = sequences(plan, gpus) * plan.train.context_length
    again = 4 / 3 if plan.train.activation_checkpointing else 1
    flops = model_cost(plan.model, plan.train.context_length).train_flops_per_token
    return tokens * again * flops / (BF16_RATE * UTILISATION)


def muon_seconds(plan: Plan, gpus: int, experts: int | None = None) -> float:
    """Of Newton-Schulz in the busiest GPU: its experts, and its share of the other matrices, or the dearest of them.

    A layer's experts lie on as many GPUs as there are, or, with `experts`, on so many.
    """
    stacks, others = 0.0, [0.0]
    for unit in plan.units:
        for name, shape in unit.shapes.items():
            if not plan.muon(name, shape):
                continue
            flops = matrix_update_flops(*shape[-2:], plan.optim)
            if len(shape) == 3:
                stacks += unit.count * flops * -(-shape[0] // (experts or gpus))
            else:
                others += [flops] * unit.count
    return (stacks + max(sum(others) / gpus, max(others))) / (BF16_RATE * UTILISATION)


def seconds_of(messages: list[Traffic]) -> list[float]:
    """The least time of all messages, one after the other, over each network."""
    return [sum(message.seconds(network) for message in messages) for network in NETWORKS]


# ---- tables


def in_bytes(number: float) -> str:
    """Bytes with a unit, to three digits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return f"{number / 1e3:.3g} kB"


def in_time(seconds: float) -> str:
    """Seconds or milliseconds, to two digits, or all digits of whole ones."""
    number, unit = (seconds, "s") if seconds >= 0.9995 else (seconds * 1e3, "ms")
    return f"{number:,.0f} {unit}" if number >= 9.95 else f"{number:.2g} {unit}"


def lines(head: str, rows: list[list[str]]) -> str:
    """A table in Markdown; `head` has its titles between bars."""
    return "\n".join([head, "|---" * head.count(" |") + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def sizes_table() -> str:
    """What the models are made of."""
    rows = []
    for plan in plans():
        cost = model_cost(plan.model, plan.train.context_length)
        batch = plan.train.batch_size * plan.train.context_length
        millions = [
            cost.params_total,
            cost.params_active,
            *map(plan.numbers, ("stacks", "matrices", "adamw")),
        ]
        block = max(unit.numbers for unit in plan.units if not unit.root)
        millions += [block, next(unit.numbers for unit in plan.units if unit.root)]
        rows.append([plan.name, *(f"{number / 1e6:,.1f}M" for number in millions), f"{batch:,}"])
    head = "| | parameters | active | Muon: experts | Muon: other matrices | AdamW | largest block | root |"
    return lines(f"{head} tokens in a step |", rows)


def step_table(name: str) -> str:
    """A preset on more and more GPUs, every parameter cut over all of them."""
    plan, rows = preset(name), []
    for gpus in GPUS:
        messages = step_traffic(plan, gpus)
        sent = {message.what: in_bytes(message.sent) for message in messages}
        times = seconds_of(messages)
        inside = gpus <= NODE
        rows.append(
            [
                f"{gpus:,}",
                f"{sequences(plan, gpus) * gpus:,}",
                f"{passes(plan, gpus)} x {pass_tokens(plan, gpus):,}",
                in_time(computing_seconds(plan, gpus)),
                in_time(muon_seconds(plan, gpus)),
                *sent.values(),
                *([in_time(times[0]), "", ""] if inside else ["", *map(in_time, times)]),
                in_bytes(memory(plan, gpus)),
            ]
        )
    head = "| GPUs | batch | passes x tokens | computing | Newton-Schulz | sent: weights | gradients | Muon "
    return lines(f"{head}| agreement | NVLink | InfiniBand | Ethernet | memory |", rows)


def memory(plan: Plan, gpus: int) -> float:
    """What a step needs on each GPU at least."""
    own = state_bytes(plan, gpus) + gathered_bytes(plan.units)
    return own + activation_bytes(plan, pass_tokens(plan, gpus))


def copies_table() -> str:
    """Parameters cut over all GPUs beside a copy of the model in each node."""
    rows = []
    for plan in map(preset, PRESETS):
        for gpus in GPUS[1:]:
            both = [step_traffic(plan, gpus), step_traffic_of_copies(plan, gpus)]
            times = [in_time(seconds) for messages in both for seconds in seconds_of(messages)]
            # A copy's experts are on the GPUs of its node.
            of_muon = muon_seconds(plan, gpus), muon_seconds(plan, gpus, NODE)
            computing = [in_time(computing_seconds(plan, gpus) + seconds) for seconds in of_muon]
            memories = [in_bytes(state_bytes(plan, cut)) for cut in (gpus, NODE)]
            row = [times[0], times[2], times[1], times[3], *memories]
            rows.append([plan.name, f"{gpus:,}", *computing, *row])
    whats = ("computing", "InfiniBand", "Ethernet", "state")
    heads = (f"{what}: cut over all | a copy in each node" for what in whats)
    return lines(f"| | GPUs | {' | '.join(heads)} |", rows)


def experts_table() -> str:
    """How few tokens a GPU must have for its tokens to be cheaper to send than its experts' weights, and the bytes that
    all messages of a step then take, beside gathered experts and whole weights in each GPU.
    """
    rows = []
    for plan in [*map(preset, OF_ALL_SIZES), plans()[-1]]:
        gpus, sharing = (NODE, NODE) if plan.model is not K2 else (K2_GPUS[-1], SHARING)
        limit, tokens = tokens_where_experts_pay(plan), pass_tokens(plan, gpus)
        both = (step_traffic(plan, gpus), step_traffic_of_experts(plan, gpus, sharing))
        sent = [in_bytes(sum(message.sent for message in messages)) for messages in both]
        whole = in_bytes(sent_with_whole_weights(plan, gpus)) if plan.model is not K2 else ""
        row = [plan.name, f"{gpus:,}", f"{limit:,.0f}", f"{tokens:,}", f"{tokens / limit:.2f}"]
        rows.append([*row, *sent, whole])
    head = (
        "| | GPUs | pays below so many tokens in a pass | tokens in a pass | tokens, over gathered experts "
    )
    return lines(f"{head}| a step sends: gathered | shared | whole weights in each |", rows)


def sent_with_whole_weights(plan: Plan, gpus: int) -> float:
    """Bytes of a step of each GPU that has all weights (`train.shard` 1), on average."""
    with torch.device("meta"):
        model = build_model(plan.model, seed=0)
    heads, count = plan.model.num_attention_heads, passes(plan, gpus)
    return communication.step_traffic(model, plan.optim, heads, gpus, shard=1, passes=count).total / gpus


def k2_table() -> str:
    """Kimi K2's own size: cut over all GPUs, and with experts that groups of GPUs share."""
    plan, rows = plans()[-1], []
    for gpus in K2_GPUS:
        sharing = min(SHARING, gpus)
        rest = tuple(
            replace(unit, shapes={n: s for n, s in unit.shapes.items() if len(s) < 3}) for unit in plan.units
        )
        tokens = activation_bytes(plan, pass_tokens(plan, gpus))
        state = state_bytes(plan, gpus)
        own = replace(rest[-1], root=False, shapes=own_experts(plan, sharing)) if gpus > sharing else None
        shared = state + tokens + gathered_bytes((*rest, *([own] if own else [])))
        messages = [step_traffic(plan, gpus), step_traffic_of_experts(plan, gpus, sharing)]
        times = [seconds_of(each)[0] for each in messages]
        rows.append(
            [
                f"{gpus:,}",
                f"{passes(plan, gpus)}",
                in_time(computing_seconds(plan, gpus)),
                in_time(muon_seconds(plan, gpus)),
                in_bytes(state),
                in_bytes(memory(plan, gpus)),
                in_time(times[0]),
                in_bytes(shared) + ("" if shared < H200_BYTES else ": too much"),
                in_time(times[1]),
                in_time(next(m for m in messages[1] if m.what == "tokens").seconds(NETWORKS[0])),
            ]
        )
    head = "| GPUs | passes | computing | Newton-Schulz | state | cut over all: memory | messages "
    return lines(f"{head}| experts shared by {SHARING}: memory | messages | of these, tokens |", rows)


def own_experts(plan: Plan, sharing: int) -> dict[str, tuple[int, ...]]:
    """The experts of a layer that one of `sharing` GPUs computes with."""
    stacks = next(unit.shapes for unit in plan.units if any(len(s) == 3 for s in unit.shapes.values()))
    return {name: (s[0] // sharing, *s[1:]) for name, s in stacks.items() if len(s) == 3}


TABLES: dict[str, Callable[[], str]] = {
    "sizes": sizes_table,
    **{f"step-{name}": partial(step_table, name) for name in PRESETS},
    "copies": copies_table,
    "experts": experts_table,
    "k2": k2_table,
}


def filled(text: str) -> str:
    """The document with every table made again. Raises ValueError if a mark is missing or unknown."""
    marked = re.findall(r"<!-- table (\S+): made by benchmarks/scaling_out\.py -->", text)
    if sorted(marked) != sorted(TABLES):
        raise ValueError(f"{DOCUMENT.name} marks the tables {sorted(marked)}, expected {sorted(TABLES)}")
    for name, make in TABLES.items():
        begin, end = f"<!-- table {name}: made by benchmarks/scaling_out.py -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> int:
    """Write or check the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, and say whether it differs")
    check = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    differs = filled(text) != text
    if differs and not check:
        write_atomic(DOCUMENT, filled(text))
    if differs:
        print(f"{DOCUMENT.name}: {'differs from the formulas' if check else 'written'}", file=sys.stderr)
    return int(check and differs)


if __name__ == "__main__":
    raise SystemExit(main())
