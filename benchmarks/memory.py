"""Peak training memory above the idle process, over transformers' with the same model, batch, dtype and optimizer.

    pip install transformers
    python benchmarks/memory.py [--config k2-27m] [--train.batch_size 8] [--any.setting VALUE ...]

AdamW on both sides, in fp32 and in bf16 (autocast). Each measurement is a fresh process. Idle is its resident memory
with everything imported and used once, and nothing built; the peak is its highest (VmHWM), including building and
--steps training steps. The arms alternate; a ratio is ours divided by theirs, and below 1 means less memory.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from statistics import median
from typing import Any

import arms
from common import OtherLoad, finish, options_parser, shown, spread, table
from turns import CPU, Worker

from nanokimi.config import OptimConfig, RunConfig
from nanokimi.measure.cost import model_cost
from nanokimi.profiling.roofline import native_dtypes

BODIES = {"ours": arms.ours, "transformers": arms.transformers}


def peak_above_idle(name: str, config: RunConfig, threads: int, steps: int) -> dict[str, float]:
    """Megabytes of one arm in a fresh process."""
    worker = Worker(name, BODIES[name], threads, watched=True, config=config)
    if steps > 1:
        worker.turn(steps - 1)
    found = worker.finish()
    idle, peak = found["idle_bytes"] / 1e6, found["peak_bytes"] / 1e6
    return {"idle_mb": idle, "peak_mb": peak, "above_mb": peak - idle}


def main() -> None:
    """Measure both arms in each precision, several times."""
    parser = options_parser(__doc__, rounds=3, steps=3)
    parser.add_argument("--config", default="k2-27m")
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.steps, options.config = 1, 1, "shakespeare-char"
    if not any(word.startswith("--train.batch_size") for word in overrides):
        overrides += ["--train.batch_size", "1" if options.smoke else "8"]
    version = metadata.version("transformers")
    print(f"transformers {version}", file=sys.stderr)
    config = arms.bench_config(options.config, overrides, options.threads)
    config = replace(config, nanokimi=replace(config.nanokimi, optim=OptimConfig(name="adamw")))
    found: dict[str, list[dict[str, float]]] = {}
    with OtherLoad() as load:
        for number in range(options.rounds):
            for dtype in native_dtypes(CPU):
                for name in BODIES if number % 2 == 0 else reversed(BODIES):
                    mine = arms.with_dtype(config, dtype)
                    one = peak_above_idle(name, mine, options.threads, options.steps)
                    found.setdefault(f"{name}-{dtype}", []).append(one)
    rows, record = [], {}
    for arm, each in found.items():
        peer = found["transformers-" + arm.rpartition("-")[2]]
        over = spread([a["above_mb"] / b["above_mb"] for a, b in zip(each, peer, strict=True)])
        middle: dict[str, Any] = {key: median(one[key] for one in each) for key in each[0]}
        rows.append([arm, *(f"{middle[key]:,.0f}" for key in middle), shown(over)])
        record[arm] = {**middle, "ratio": over}
    print(table(["arm", "idle MB", "peak MB", "above idle MB", "over transformers"], rows))
    total = model_cost(config.nanokimi.model, config.train.context_length).params_total
    shape = {"params": total, "batch_size": config.train.batch_size, "context": config.train.context_length}
    print(f"{total:,} parameters, batch {shape['batch_size']} x {shape['context']}")
    finish(
        options,
        {"benchmark": "memory", "arms": record, **shape, "transformers": version, "other_cores": load.cores},
    )


if __name__ == "__main__":
    main()
