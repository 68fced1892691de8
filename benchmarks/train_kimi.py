"""NanoKimi's training tokens per second, MuonClip included, over those of transformers' DeepseekV3 with fused AdamW.

    pip install transformers
    python benchmarks/train_kimi.py [--train.batch_size 32] [--any.setting VALUE ...]

The same architecture, batches and loss: the config's model (128 wide, 4 layers, 8 experts, 2 of them chosen, and a
shared one), 32 sequences of 64 tokens. Ours is the real `train_step` with Newton-Schulz, QK-Clip, router balancing and
telemetry; theirs is forward, backward, clipping and AdamW, with the experts implementation that it chooses itself. Each
in fp32 and in bf16 (autocast), and in the latter once more through torch.compile. The ratio is that of the fastest of
ours over the fastest of theirs that are not compiled, by round; "both compiled" and "neither compiled" stand beside it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata

import arms
from common import (
    CPU,
    OtherLoad,
    fastest,
    finish,
    options_parser,
    rates,
    rates_record,
    ratio,
    shown,
    training_report,
)
from turns import Worker, interleave

from nanokimi.profiling.roofline import native_dtypes


def main() -> None:
    """Run the rounds and print the table."""
    parser = options_parser(__doc__, rounds=7, steps=15)
    parser.add_argument("--config", default="shakespeare-char")
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.steps, overrides = 2, 1, [*overrides, "--train.batch_size", "4"]
    elif not any(word.startswith("--train.batch_size") for word in overrides):
        overrides += ["--train.batch_size", "32"]
    version = metadata.version("transformers")
    print(f"transformers {version}", file=sys.stderr)
    config = arms.bench_config(options.config, ["--model", "nanokimi", *overrides], options.threads)
    machine = rates(options.threads, options.smoke)
    workers, rooflines = [], {}
    with OtherLoad() as load:
        dtypes = native_dtypes(CPU)
        for dtype, compiled in [*((dtype, False) for dtype in dtypes), (dtypes[-1], True)]:
            mine = arms.with_dtype(config, dtype)
            mine = replace(mine, train=replace(mine.train, compile=compiled))
            for side, body in (("ours", arms.ours), ("transformers", arms.transformers)):
                name = f"{side}-{'compiled-' * compiled}{dtype}"
                workers.append(Worker(name, body, options.threads, config=mine))
                rooflines[name] = arms.roofline_ms(mine, machine, peer=side != "ours")
        seconds = interleave(workers, options.rounds, options.steps)
        plain = {name: times for name, times in seconds.items() if "compiled" not in name}
        best, peer = fastest(seconds, "ours"), fastest(plain, "transformers")
        alike = {
            "neither": ratio(seconds, peer, fastest(plain, "ours")),
            "both": ratio(seconds, *(f"{side}-compiled-{dtypes[-1]}" for side in ("transformers", "ours"))),
        }
        tokens = config.train.batch_size * config.train.context_length
        text, record = training_report(workers, seconds, tokens, rooflines, peer)
        for worker in workers:
            worker.finish()
    print(text)
    print("".join(f"\n{name} compiled: {shown(found)}" for name, found in alike.items()))
    finish(
        options,
        {
            "benchmark": "train_kimi",
            "ratio": record[best]["ratio"],
            "ratio_alike": alike,
            "best": best,
            "peer": peer,
            "arms": record,
        }
        | {"transformers": version, "rates": rates_record(machine), "other_cores": load.cores},
    )


if __name__ == "__main__":
    main()
