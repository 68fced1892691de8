"""Decode tokens per second over transformers' generate with its cache, and what each cached token costs.

    pip install transformers
    python benchmarks/decode.py [--config shakespeare-char] [--any.setting VALUE ...]

Batch 1, greedy, fp32, 256 new tokens after a prompt of 8, on the same weights: transformers' DeepseekV3ForCausalLM
gets ours. Time to read the prompt is included on both sides. Both must write the same tokens; where they diverge, the
two best logits must be closer than rounding. Then one more token is timed at position 100 and at 4,000, alternating.
The difference is divided by the time in which the machine reads that much cache, at the measured rate of memory, and
at that of a buffer of the cache's size, which stays in the processor's own caches.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from importlib import metadata
from typing import Any

import arms
import torch
from common import CPU, OtherLoad, finish, options_parser, ratio, shown, spread, table
from turns import Turns, Worker, interleave

from nanokimi.config import RunConfig
from nanokimi.generation.engine import generate
from nanokimi.kernels.decode import decode_step
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.model.cache import Cache
from nanokimi.profiling.roofline import MEMORY_BYTES, read_bandwidth

PROMPT = [1, 5, 9, 13, 17, 21, 25, 29]
NEAR, FAR = 100, 4000
ROUNDING = 1e-3  # logits this close may be ranked either way


def ours(turns: Turns, config: RunConfig, new_tokens: int) -> None:
    """One step is one sample of ours."""
    turns.start()
    model = build_model(config.family.model, config.seed).eval()
    ids: list[int] = []
    turns.at_end = lambda: {"ids": ids}
    turns.ready()
    while True:
        ids = list(generate(model, PROMPT, new_tokens, temperature=0.0))
        turns.step_done()


def theirs(turns: Turns, config: RunConfig, new_tokens: int) -> None:
    """One step is one sample of transformers'."""
    turns.start()
    model = arms.deepseek(build_model(config.family.model, config.seed)).eval()
    prompt_1T = torch.tensor([PROMPT])
    mask_1T = torch.ones_like(prompt_1T)
    ids: list[int] = []
    turns.at_end = lambda: {"ids": ids}
    turns.ready()
    while True:
        with torch.inference_mode():
            out_1T = model.generate(
                prompt_1T, attention_mask=mask_1T, max_new_tokens=new_tokens, do_sample=False, use_cache=True
            )
        ids = out_1T[0, len(PROMPT) :].tolist()
        turns.step_done()


def agreement(config: RunConfig, mine: list[int], other: list[int]) -> dict[str, Any]:
    """How many tokens agree from the beginning; if not all, how close the two candidates' logits are."""
    assert len(mine) == len(other), f"{len(mine)} and {len(other)} tokens"
    same = next((i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b), len(mine))
    if same == len(mine):
        return {"same": same, "of": len(mine)}
    with torch.inference_mode():
        model = build_model(config.family.model, config.seed).eval()
        logits_W = model(torch.tensor([PROMPT + mine[:same]])).logits_BTW[0, -1]
    gap = float((logits_W[mine[same]] - logits_W[other[same]]).abs())
    assert gap < ROUNDING, f"token {same} differs by {gap} in its logit: these are not the same models"
    return {"same": same, "of": len(mine), "logit_gap_where_they_part": gap}


@torch.inference_mode()
def added_per_token(model: LanguageModel, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of one more token at NEAR and at FAR, for each round."""
    layers, step = model.config.num_hidden_layers, decode_step(model)
    caches = {}
    for position in (NEAR, FAR):
        caches[position] = Cache(layers, FAR + 1)
        model(torch.arange(position)[None] % 7, caches[position])
    seconds: dict[int, list[float]] = {NEAR: [], FAR: []}
    for number in range(-1, rounds):
        for position in (NEAR, FAR) if number % 2 else (FAR, NEAR):
            start = time.perf_counter()
            for _ in range(steps):
                for layer in caches[position].layers:  # always the same position
                    layer.length = position
                step(1, caches[position])
            if number >= 0:
                seconds[position].append((time.perf_counter() - start) / steps)
    return seconds[NEAR], seconds[FAR]


def with_positions(config: RunConfig, positions: int) -> RunConfig:
    """NanoKimi with this many positions."""
    model = replace(config.nanokimi.model, max_position_embeddings=positions)
    return replace(config, nanokimi=replace(config.nanokimi, model=model))


def main() -> None:
    """Both parts, and the table."""
    parser = options_parser(__doc__, rounds=9, steps=1)
    parser.add_argument("--config", default="shakespeare-char")
    parser.add_argument("--new_tokens", type=int, default=256)
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.new_tokens = 2, 16
    version = metadata.version("transformers")
    print(f"transformers {version}", file=sys.stderr)
    config = arms.bench_config(options.config, overrides, options.threads)
    config, new = with_positions(config, max(512, options.new_tokens + len(PROMPT))), options.new_tokens
    with OtherLoad() as load:
        bodies = (("ours", ours), ("transformers", theirs))
        workers = [Worker(n, b, options.threads, config=config, new_tokens=new) for n, b in bodies]
        seconds = interleave(workers, options.rounds, options.steps)
        stories = {worker.name: worker.finish()["ids"] for worker in workers}
        torch.set_num_threads(options.threads)
        near, far = added_per_token(
            build_model(with_positions(config, FAR + 1).nanokimi.model, 0).eval(),
            options.rounds,
            5 if options.smoke else 50,
        )
        cache_bytes = (FAR - NEAR) * 4 * model_cost(config.nanokimi.model, FAR).cache_numbers_per_token
        rates = [read_bandwidth(size, CPU, 0.5) for size in (MEMORY_BYTES, cache_bytes)]
    same = agreement(config, stories["ours"], stories["transformers"])
    speeds = {name: spread([new / s for s in times]) for name, times in seconds.items()}
    over = ratio(seconds, "transformers", "ours")
    rooflines = [cache_bytes / rate * 1e3 for rate in rates]
    added = spread([(b - a) * 1e3 for a, b in zip(near, far, strict=True)])
    over_rooflines = [{name: ms / roofline for name, ms in added.items()} for roofline in rooflines]
    rows = [
        [name, shown(speed, ",.0f"), shown(ratio(seconds, "transformers", name))]
        for name, speed in speeds.items()
    ]
    print(table(["arm", "tokens/s", "times transformers"], rows))
    print(f"\nsame tokens: {same}")
    print(
        f"one token at {NEAR}: {min(near) * 1e3:.3f} ms, at {FAR}: {min(far) * 1e3:.3f} ms; added {shown(added, '.3f')}"
    )
    places = ("memory", "its caches")
    for what, rate, roofline, times in zip(places, rates, rooflines, over_rooflines, strict=True):
        speed = f"{cache_bytes / 1e6:.1f} MB at {rate / 1e9:.0f} GB/s of {what}"
        print(f"roofline {roofline:.3f} ms: {speed}; {shown(times)} times")
    finish(
        options,
        {"benchmark": "decode", "ratio": over, "tokens_per_second": speeds, "agreement": same}
        | {
            "added_ms": added,
            "added_roofline_ms": dict(zip(("memory", "caches"), rooflines, strict=True)),
            "added_over_roofline": dict(zip(("memory", "caches"), over_rooflines, strict=True)),
            "cache_bytes": cache_bytes,
        }
        | {
            "read_gb_per_s": [rate / 1e9 for rate in rates],
            "transformers": version,
            "other_cores": load.cores,
        },
    )


if __name__ == "__main__":
    main()
