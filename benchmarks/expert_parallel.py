"""Bytes and time of training steps of several processes that share a layer's experts, over those that gather them.

    python benchmarks/expert_parallel.py [--config k2-1m] [--sizes 2,4] [--sharing N] [--any.setting VALUE ...]

Each size is a group of that many processes on this machine (gloo, CPU). Both ways train in the same processes and take
turns, a few steps each, and a ratio of times is formed within a round. Bytes are sums over the processes of what each
receives in a step, counted from torch's collectives and equal to `nanokimi.measure.communication.step_traffic` for the
tokens that travelled. The processes share this machine's cores and its memory as the network, so the times say what
this machine does, and little of GPUs. --sharing is `train.expert_parallel`; without it, all processes share.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import OtherLoad, finish, options_parser, spread, table
from communication import in_group, ready

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.measure.communication import Counting, Sharing, step_traffic
from nanokimi.model.build import build_model
from nanokimi.runtime import parallel
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.step import train_step

WAYS = ("gathered", "shared")


def measured(
    connection: Connection, place: dict[str, str], folder: str, sharing: int, rounds: int, steps: int
) -> None:
    """Train both ways by turns, and tell each way's bytes of a step, travelling tokens and milliseconds by round."""
    os.environ.update(place)
    world = parallel.join()
    config = load_config(str(Path(folder) / "config.yaml"))
    states, found = {}, {}
    for way, size in zip(WAYS, (1, sharing), strict=True):
        train = replace(config.train, expert_parallel=size)
        data = open_prepared(Path(folder) / "data")
        states[way] = build_state(replace(config, train=train), data, Path(folder))
        train_step(states[way])
        found[way] = counted_step(states[way], world.rank % sharing, sharing)
    for _ in range(rounds):
        for way, state in states.items():
            times = [train_step(state)["step_ms"] for _ in range(steps)]
            found[way].setdefault("step_ms", []).append(median(times))
    connection.send(found)
    parallel.leave()


def counted_step(state: TrainState, rank: int, sharing: int) -> dict[str, Any]:
    """Bytes that this process receives in a step, and tokens times chosen experts that others have."""
    pairs: list[int] = []

    def note(_: Any, __: Any, routed: Any) -> None:
        chosen_MK, counts_E = routed[0], routed[2].counts_E
        pairs.append(int((chosen_MK // (len(counts_E) // sharing) != rank).sum()))

    hooks = [router.register_forward_hook(note) for router in state.model.routers()]
    with Counting(state.world.size) as counting:
        train_step(state)
    for hook in hooks:
        hook.remove()
    passes = 2 if state.model.activation_checkpointing else 1
    return {
        **asdict(counting.found),
        "pairs": sum(pairs) // passes,
        "micro_batch_size": state.micro_batch_size,
    }


def measure(config: RunConfig, folder: Path, size: int, sharing: int, options: Any) -> dict[str, Any]:
    """Counted and expected bytes and the times of both ways, of one group."""
    from expert_parallel import measured  # this file by its name: a new process does not run the script again

    every = in_group(size, measured, str(folder), sharing, options.rounds, options.steps)
    family, train = config.family, config.train
    with torch.device("meta"):
        model = build_model(family.model, config.seed)
    result: dict[str, Any] = {"sharing": sharing}
    for way, together in zip(WAYS, (1, sharing), strict=True):
        ours = [found[way] for found in every]
        pairs = sum(one.pop("pairs") for one in ours)
        passes = train.batch_size // size // ours[0].pop("micro_batch_size")
        wide = 2 if train.dtype == "bf16" else 4
        how = Sharing(together, pairs, wide, train.activation_checkpointing)
        heads = family.model.num_attention_heads
        expected = step_traffic(model, family.optim, heads, size, passes=passes, sharing=how)
        times = [max(round_ms) for round_ms in zip(*(one.pop("step_ms") for one in ours), strict=True)]
        bytes_of = {name: sum(one[name] for one in ours) for name in ours[0]}
        total = sum(bytes_of.values())
        result[way] = {**bytes_of, "total": total, "over_formula": total / expected.total, "step_ms": times}
    result["bytes_ratio"] = result["shared"]["total"] / result["gathered"]["total"]
    both = zip(result["shared"]["step_ms"], result["gathered"]["step_ms"], strict=True)
    result["time_ratio"] = spread([ours / theirs for ours, theirs in both])
    return result


def main() -> None:
    """Measure each size of group."""
    parser = options_parser(__doc__, rounds=5, steps=4)
    parser.add_argument("--config", default="k2-1m")
    parser.add_argument("--sizes", default="2,4")
    parser.add_argument("--sharing", type=int, default=None)
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.config, options.sizes, options.rounds, options.steps = "smoke", "2", 1, 1
    record: dict[str, Any] = {}
    rows = []
    with OtherLoad() as load, tempfile.TemporaryDirectory() as place:
        config, folder = ready(options.config, overrides, Path(place))
        for size in map(int, options.sizes.split(",")):
            found = measure(config, folder, size, options.sharing or size, options)
            record[str(size)] = found
            for way in WAYS:
                shown = ("weights", "gradients", "tokens", "total")
                numbers = [f"{found[way][name]:,}" for name in shown]
                of_time = f"{median(found[way]['step_ms']):.0f}"
                rows.append([str(size), way, *numbers, f"{found[way]['over_formula']:.4f}", of_time])
            low, middle, high = (found["time_ratio"][name] for name in ("min", "median", "max"))
            ratios = ["", "ratio", "", "", "", f"{found['bytes_ratio']:.3f}", ""]
            rows.append([*ratios, f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    head = [
        "processes",
        "experts",
        "weights",
        "gradients",
        "tokens",
        "all bytes",
        "over the formula",
        "ms a step",
    ]
    print(table(head, rows))
    tokens = config.train.batch_size * config.train.context_length
    print(f"{options.config}, {tokens:,} tokens in a step of all processes")
    record = {"benchmark": "expert_parallel", "sizes": record, "tokens": tokens, "other_cores": load.cores}
    finish(options, record)


if __name__ == "__main__":
    main()
