"""How near `nanokimi train --dry-run` comes to what is then measured, on several configurations.

    python benchmarks/forecast_accuracy.py --data tinyshakespeare.txt --out runs/forecast [--only smoke,wide]

Each is forecast and then trained, in fresh processes of one thread. Clocks count the CPU seconds of the process, which
other work on the machine changes little. A ratio is the forecast over the measurement: above 1.00 it was too large.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.profiling import forecast as forecast_module
from nanokimi.train import step as step_module
from nanokimi.train.run import train_alone

WIDE = "--nanokimi.model.hidden_size 256 --nanokimi.model.num_hidden_layers 6 --nanokimi.model.intermediate_size 672"
WIDE += " --nanokimi.model.moe_intermediate_size 224 --nanokimi.model.num_attention_heads 8"
WIDE += " --train.batch_size 16 --train.context_length 256 --dataset.val_fraction 0.02 --train.max_steps 20"
CONFIGS = {
    "smoke": "--config smoke",
    "smoke-nanogpt": "--config smoke --model nanogpt",
    "char": "--config shakespeare-char --train.max_steps 150",
    "wide": f"--config shakespeare-char {WIDE}",
    "accumulated": f"--config shakespeare-char {WIDE} --train.micro_batch_size 4",
    "tales": "--config tales",
}


def in_cpu_seconds(call: Callable[..., Any], config: RunConfig, out: Path) -> tuple[Any, float]:
    """What `call` returns where clocks count this process's CPU seconds, and how many it took."""

    def seconds(device: torch.device) -> float:
        return time.process_time()

    for module in (step_module, forecast_module):
        vars(module)["fenced_seconds"] = seconds
    return call(config, out), time.process_time()


def row(name: str, data: str, out: Path) -> list[str]:
    """Forecast and train one configuration."""
    options = [*CONFIGS[name].split(), *(["--data", data] if name != "tales" else [])]
    config = load_config(options[1], [*options[2:], "--train.threads", "1"])
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found, _ = pool.apply(in_cpu_seconds, (partial(forecast_module.forecast, apart=False), config, out))
        result, whole = pool.apply(in_cpu_seconds, (train_alone, config, out))
    disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    cells = [name]
    for predicted, measured, unit in (
        (found.seconds["training"], result["train_seconds"], 1),
        (sum(found.seconds.values()), whole, 1),
        (found.peak_memory_bytes, result["peak_memory_bytes"], 1e6),
        (found.disk_bytes, disk, 1e6),
    ):
        cells += [f"{measured / unit:.0f}", f"{predicted / measured:.2f}"]
    return cells


def main() -> None:
    """Run the configurations and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", default=",".join(CONFIGS), help="names, separated by commas")
    known = parser.parse_args()
    print("| run | training s | ratio | whole s | ratio | peak MB | ratio | disk MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in known.only.split(","):
        print("| " + " | ".join(row(name, known.data, known.out / name)) + " |", flush=True)


if __name__ == "__main__":
    main()
