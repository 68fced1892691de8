"""NanoKimi's training tokens per second over those of earlier system 2: the notebook of NanoKimi-vs.-NanoGPT.

    git clone https://github.com/Ace007-0/NanoKimi-vs.-NanoGPT seed
    python benchmarks/train_seed.py --notebook seed/model_comparison.py.ipynb [--any.setting VALUE ...]

Its cells run unchanged, on random text of 65 characters. Its "NanoKimi" (4 layers, 4 heads, 64 wide, batch 16 x 32, 4
experts of 64, every one applied to every token; TrueMuon and AdamW; fp32) against ours of that width with 4 experts
of 64, all 4 chosen, no shared one, a first layer with a dense part of 256, MuonClip, in fp32 and in bf16. The models
are not the same (ours has MLA, RMSNorm and rotary positions): parameters stand beside. The seed's roofline counts 6
FLOPs for each parameter and token at the fp32 rate, and no Newton-Schulz.
"""

from __future__ import annotations

from pathlib import Path

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
    training_report,
)
from turns import Worker, interleave

from nanokimi.measure.cost import model_cost
from nanokimi.profiling.roofline import native_dtypes

SAME_SIZE = {
    "train.batch_size": 16,
    "train.context_length": 32,
    "nanokimi.model.hidden_size": 64,
    "nanokimi.model.kv_lora_rank": 32,
    "nanokimi.model.qk_nope_head_dim": 16,
    "nanokimi.model.qk_rope_head_dim": 8,
    "nanokimi.model.v_head_dim": 16,
    "nanokimi.model.intermediate_size": 256,
    "nanokimi.model.moe_intermediate_size": 64,
    "nanokimi.model.n_routed_experts": 4,
    "nanokimi.model.num_experts_per_tok": 4,
    "nanokimi.model.n_shared_experts": 0,
}


def main() -> None:
    """Run the rounds and print the table."""
    parser = options_parser(__doc__, rounds=7, steps=30)
    parser.add_argument("--notebook", required=True, help="the seed's model_comparison.py.ipynb")
    parser.add_argument("--config", default="shakespeare-char")
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.steps = 2, 2
    settings = [word for name, value in SAME_SIZE.items() for word in (f"--{name}", str(value))]
    config = arms.bench_config(
        options.config, ["--model", "nanokimi", *settings, *overrides], options.threads
    )
    machine = rates(options.threads, options.smoke)
    letters = np.random.default_rng(0).integers(0, 65, 1_000_000)
    text = "".join(chr(ord("0") + letter) for letter in letters)
    workers, rooflines = [], {}
    with OtherLoad() as load:
        for dtype in native_dtypes(CPU):
            mine = arms.with_dtype(config, dtype)
            rooflines[f"ours-{dtype}"] = arms.roofline_ms(mine, machine)
            workers.append(Worker(f"ours-{dtype}", arms.ours, options.threads, config=mine))
        workers.append(Worker("seed", arms.notebook, options.threads, path=options.notebook, text=text))
        seconds = interleave(workers, options.rounds, options.steps)
        seed = {worker.name: worker.finish() for worker in workers}["seed"]
    tokens = config.train.batch_size * config.train.context_length
    assert seed["tokens"] == tokens, (seed["tokens"], tokens)
    rooflines["seed"] = 6 * seed["parameters"] * tokens / machine.flops_per_second["fp32"] * 1e3
    shown, record = training_report(workers, seconds, tokens, rooflines, "seed")
    best = fastest(seconds, "ours")
    cost = model_cost(config.nanokimi.model, config.train.context_length)
    print(shown)
    print(
        f"parameters: ours {cost.params_total:,}, {cost.params_active:,} active; seed {seed['parameters']:,}"
    )
    finish(
        options,
        {"benchmark": "train_seed", "ratio": record[best]["ratio"], "best": best, "arms": record}
        | {"params_total": cost.params_total, "params_active": cost.params_active}
        | {"seed_params": seed["parameters"], "seed_commit": commit_of(str(Path(options.notebook).parent))}
        | {"rates": rates_record(machine), "other_cores": load.cores},
    )


if __name__ == "__main__":
    main()
