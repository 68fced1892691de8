"""NanoGPT's training tokens per second over nanoGPT's own train.py, with its CPU recipe, and over GPT2LMHeadModel.

    git clone https://github.com/karpathy/nanoGPT; pip install transformers
    python benchmarks/train_gpt.py --nanogpt nanoGPT [--transformers] [--dtype best] [--any.setting VALUE ...]

4 layers, 4 heads, 128 wide, context 64, batch 12, vocabulary 65, no dropout, AdamW, gradients clipped at 1. nanoGPT
trains in fp32, as it always does on a CPU. Ours takes the real `train_step`, in fp32, in bf16 or in both (`best`: the
ratio is that of the faster). With --transformers, GPT2LMHeadModel with fused AdamW takes part, in the same precisions
(autocast); it has biases, which nanoGPT's recipe leaves out. All arms sample a batch in every step.
"""

from __future__ import annotations

from importlib import metadata

import arms
import numpy as np
from common import (
    CPU,
    OtherLoad,
    commit_of,
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
    parser = options_parser(__doc__, rounds=7, steps=60)
    parser.add_argument("--nanogpt", required=True, help="a checkout of nanoGPT")
    parser.add_argument("--transformers", action="store_true", help="GPT2LMHeadModel takes part, too")
    parser.add_argument("--config", default="shakespeare-char")
    parser.add_argument("--dtype", default="best", choices=("best", "fp32", "bf16"))
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.steps = 2, 2
    config = arms.bench_config(options.config, ["--model", "nanogpt", *overrides], options.threads)
    assert (config.train.batch_size, config.train.context_length) == (12, 64), "nanoGPT's CPU recipe"
    machine = rates(options.threads, options.smoke)
    ids = np.random.default_rng(0).integers(0, 65, 1_000_000)
    source = {"checkout": options.nanogpt, "ids": (ids, ids[:100_000]), "vocab_size": 65}
    rooflines = {"nanogpt": arms.roofline_ms(arms.with_dtype(config, "fp32"), machine)}
    workers = []
    with OtherLoad() as load:
        for dtype in native_dtypes(CPU) if options.dtype == "best" else [options.dtype]:
            mine = arms.with_dtype(config, dtype)
            rooflines[f"ours-{dtype}"] = arms.roofline_ms(mine, machine)
            workers.append(Worker(f"ours-{dtype}", arms.ours, options.threads, config=mine))
            if options.transformers:
                rooflines[f"gpt2-{dtype}"] = rooflines[f"ours-{dtype}"]
                workers.append(Worker(f"gpt2-{dtype}", arms.transformers, options.threads, config=mine))
        workers.append(Worker("nanogpt", arms.nanogpt, options.threads, **source))
        seconds = interleave(workers, options.rounds, options.steps)
        text, record = training_report(workers, seconds, 12 * 64, rooflines, "nanogpt")
        for worker in workers:
            worker.finish()
    best, over = fastest(seconds, "ours"), {}
    print(text)
    if options.transformers:
        peer = fastest(seconds, "gpt2")
        over = {"peer": peer, **ratio(seconds, peer, best)}
        print(f"{best} over {peer}: {shown(over)}")
    finish(
        options,
        {"benchmark": "train_gpt", "ratio": record[best]["ratio"], "best": best, "arms": record}
        | {"over_transformers": over, "transformers": metadata.version("transformers") if over else None}
        | {"nanogpt": commit_of(options.nanogpt), "rates": rates_record(machine), "other_cores": load.cores},
    )


if __name__ == "__main__":
    main()
