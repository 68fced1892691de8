"""Bytes that the processes of a group send in a training step, counted from torch's collectives, over the formula's.

    python benchmarks/communication.py [--config k2-1m] [--sizes 2,4] [--train.shard 2] [--any.setting VALUE ...]

Each size is a group of that many processes on this machine (gloo, CPU), which take two steps, of which the second is
counted. The formula is `nanokimi.measure.communication.step_traffic`; a ratio is what was counted divided by it, and is
1. The bytes are sums over the processes of what each receives. The time of a step is shown, too, and means little: the
processes share this machine's cores.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import OtherLoad, finish, options_parser, table

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.measure.communication import Counting, step_traffic
from nanokimi.model.build import build_model
from nanokimi.runtime import parallel
from nanokimi.runtime.parallel import World
from nanokimi.runtime.processes import start_process
from nanokimi.train.run_folder import set_up
from nanokimi.train.sharding import require_even_copies
from nanokimi.train.state import build_state, micro_batch
from nanokimi.train.step import train_step

WORDS = "the small boy found a red ball and gave it to his friend who was very happy but then a dog ran off".split()


def counted(connection: Connection, place: dict[str, str], folder: str) -> None:
    """Take two steps in the group, and tell the bytes and the milliseconds of the second."""
    os.environ.update(place)
    world = parallel.join()
    config = load_config(str(Path(folder) / "config.yaml"))
    state = build_state(config, open_prepared(Path(folder) / "data"), Path(folder))
    train_step(state)
    with Counting(world.size) as counting:
        record = train_step(state)
    connection.send({**asdict(counting.found), "step_ms": record["step_ms"]})
    parallel.leave()


def in_group(size: int, work: Callable[..., None], *arguments: Any) -> list[Any]:
    """What each of `size` processes tells that does `work`, a function of a module, in one group with the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    started = [start_process(work, {**address, "RANK": str(rank)}, *arguments) for rank in range(size)]
    found = [connection.recv() for _, connection in started]
    for process, _ in started:
        process.join()
    return found


def passes(config: RunConfig, size: int) -> int:
    """Forward passes of each of `size` processes in a step."""
    return config.train.batch_size // size // micro_batch(config.train, World(size=size))


def measure(config: RunConfig, size: int, folder: Path) -> dict[str, Any]:
    """Counted and expected bytes of one step of a group of this size."""
    from communication import counted  # this file by its name: a new process does not run the script again

    found = in_group(size, counted, str(folder))
    kinds = [name for name in found[0] if name != "step_ms"]
    bytes_of = {name: int(sum(process[name] for process in found)) for name in kinds}
    family = config.family
    with torch.device("meta"):
        model = build_model(family.model, config.seed)
    heads, shard = family.model.num_attention_heads, config.train.shard
    expected = step_traffic(model, family.optim, heads, size, shard=shard, passes=passes(config, size))
    total = sum(bytes_of.values())
    step_ms = max(process["step_ms"] for process in found)
    return {**bytes_of, "total": total, "ratio": total / expected.total, "step_ms": step_ms}


def ready(name: str, overrides: list[str], place: Path) -> tuple[RunConfig, Path]:
    """The configuration of a preset, in fp32 unless it is overridden, and a run folder with data, in which each process
    may train with one thread."""
    text, folder = place / "text.txt", place / "run"
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(WORDS), (20_000,), generator=generator).tolist()
    text.write_text(" ".join(WORDS[i] for i in chosen))
    fixed = {"dataset.path": str(text), "train.device": "cpu", "train.threads": "1"}
    if not any(word.startswith("--train.dtype") for word in overrides):
        fixed["train.dtype"] = "fp32"
    folder.mkdir()
    settings = [f"--{key}={value}" for key, value in fixed.items()]
    return set_up(load_config(name, [*settings, *overrides]), folder)[0], folder


def main() -> None:
    """Count for each size of group."""
    parser = options_parser(__doc__)
    parser.add_argument("--config", default="k2-1m")
    parser.add_argument("--sizes", default="2,4")
    options, overrides = parser.parse_known_args()
    if any("expert_parallel" in word for word in overrides):
        parser.error("what shared experts send depends on their tokens: see benchmarks/expert_parallel.py")
    if options.smoke:
        options.config, options.sizes = "smoke", "2"
    record, rows = {}, []
    with OtherLoad() as load, tempfile.TemporaryDirectory() as place:
        config, folder = ready(options.config, overrides, Path(place))
        sizes = [*map(int, options.sizes.split(","))]
        for size in sizes:
            require_even_copies(config.train, World(size=size))
        for size in sizes:
            found = measure(config, size, folder)
            record[str(size)] = found
            rows.append([str(size), *(f"{found[name]:,.0f}" for name in found if name != "ratio")])
            rows[-1].append(f"{found['ratio']:.4f}")
    with torch.device("meta"):
        params = sum(p.numel() for p in build_model(config.family.model, 0).parameters())
    kinds = [name for name in record[next(iter(record))] if name != "ratio"]
    if config.train.shard is not None:
        print(f"train.shard {config.train.shard}")
    print(table(["processes", *kinds, "over the formula"], rows))
    print(f"{params:,} parameters, {config.family.optim.name}")
    finish(
        options,
        {
            "benchmark": "communication",
            "sizes": record,
            "shard": config.train.shard,
            "params": params,
            "optimizer": config.family.optim.name,
            "other_cores": load.cores,
        },
    )


if __name__ == "__main__":
    main()
