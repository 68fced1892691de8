"""NanoGPT's sampling tokens per second over nanoGPT's own model.generate and transformers' generate with its cache.

    git clone https://github.com/karpathy/nanoGPT; pip install transformers
    python benchmarks/sample_gpt.py --nanogpt nanoGPT [--contexts 64 256] [--any.setting VALUE ...]

Batch 1, fp32, 256 new tokens after a prompt of one, as nanoGPT's sample.py draws them (temperature 0.8, top-k 200),
on the same weights: 4 layers, 4 heads, 128 wide, vocabulary 65. nanoGPT caches nothing and, beyond its context, crops
what it reads by one token each time; ours keeps the newer half of a full window and reads it again; GPT2LMHeadModel
can do neither, so it is left out where the sample is longer than the context. Where nothing is cropped, all must
write the same greedy tokens. A roofline: a forward pass over everything read (no cache) at the fp32 rate, or the
weights once for each token (cache) at the rate for a buffer of that size.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import arms
import torch
from common import (
    CPU,
    OtherLoad,
    commit_of,
    finish,
    options_parser,
    rates,
    rates_record,
    ratio,
    shown,
    spread,
    table,
)
from turns import Turns, Worker, interleave

from nanokimi.config import RunConfig
from nanokimi.generation.engine import generate
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import build_model
from nanokimi.profiling.roofline import MachineRates, read_bandwidth

PROMPT = [0]
TEMPERATURE, TOP_K = 0.8, 200  # sample.py's


def ours(turns: Turns, config: RunConfig, new_tokens: int) -> None:
    """One step is one sample of ours; at the end a greedy one."""
    turns.start()
    model = build_model(config.family.model, config.seed).eval()
    turns.at_end = lambda: {"greedy": list(generate(model, PROMPT, new_tokens, temperature=0.0))}
    turns.ready()
    while True:
        list(generate(model, PROMPT, new_tokens, temperature=TEMPERATURE, top_k=TOP_K))
        turns.step_done()


def nanogpt(turns: Turns, config: RunConfig, new_tokens: int, checkout: str) -> None:
    """The same by nanoGPT's model.py with our weights: its module names are ours."""
    turns.start()
    sys.path.insert(0, str(Path(checkout).resolve()))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    c = config.nanogpt.model
    sizes = (c.max_position_embeddings, c.vocab_size, c.num_hidden_layers, c.num_attention_heads)
    model = GPT(GPTConfig(*sizes, c.hidden_size, dropout=0.0, bias=c.bias)).eval()
    model.load_state_dict(build_model(c, config.seed).state_dict())
    prompt_1T = torch.tensor([PROMPT])

    def story(top_k: int) -> list[int]:
        with torch.no_grad():
            ids_1T = model.generate(prompt_1T, new_tokens, temperature=TEMPERATURE, top_k=top_k)
        return list(ids_1T[0, len(PROMPT) :].tolist())

    turns.at_end = lambda: {"greedy": story(1)}
    turns.ready()
    while True:
        story(TOP_K)
        turns.step_done()


def transformers(turns: Turns, config: RunConfig, new_tokens: int) -> None:
    """The same by GPT2LMHeadModel with our weights and its cache."""
    arms.hf_parity()  # imports the library
    turns.start()
    model = arms.gpt2(config).eval()
    prompt_1T = torch.tensor([PROMPT])
    common = {"attention_mask": torch.ones_like(prompt_1T), "max_new_tokens": new_tokens, "use_cache": True}
    drawn = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "top_p": 1.0}

    def story(**how: Any) -> list[int]:
        with torch.inference_mode():
            ids_1T = model.generate(prompt_1T, **common, **how)
        return list(ids_1T[0, len(PROMPT) :].tolist())

    turns.at_end = lambda: {"greedy": story(do_sample=False)}
    turns.ready()
    while True:
        story(**drawn)
        turns.step_done()


def rooflines_ms(config: RunConfig, new_tokens: int, rates: MachineRates) -> tuple[float, float]:
    """Milliseconds that a story cannot be below: without a cache, and with one."""
    model = config.nanogpt.model
    assert model.max_position_embeddings is not None
    lengths = [min(len(PROMPT) + i, model.max_position_embeddings) for i in range(new_tokens)]
    flops = sum(length * model_cost(model, length).forward_flops_per_token for length in lengths)
    weights = 4 * model_cost(model, 1).params_active
    seconds = weights * new_tokens / read_bandwidth(weights, CPU)
    return flops / rates.flops_per_second["fp32"] * 1e3, seconds * 1e3


def at_context(
    config: RunConfig, options: Any, machine: MachineRates, context: int
) -> tuple[list[list[str]], dict[str, Any]]:
    """All arms in turns at one context: rows of the table, and the same as a record."""
    model = replace(config.nanogpt.model, max_position_embeddings=context)
    config = replace(config, nanogpt=replace(config.nanogpt, model=model))
    new, story = options.new_tokens, {"config": config, "new_tokens": options.new_tokens}
    workers = [Worker("ours", ours, options.threads, **story)]
    workers.append(Worker("nanogpt", nanogpt, options.threads, checkout=options.nanogpt, **story))
    fits = len(PROMPT) + new - 1 <= context
    if fits:
        workers.append(Worker("transformers", transformers, options.threads, **story))
    seconds = interleave(workers, options.rounds, options.steps)
    greedy = {worker.name: worker.finish()["greedy"] for worker in workers}
    assert not fits or all(ids == greedy["ours"] for ids in greedy.values()), greedy
    without, cached = rooflines_ms(config, new, machine)
    rows, record = [], {}
    for worker in workers:
        times, name = seconds[worker.name], worker.name
        found: dict[str, Any] = {
            "tokens_per_second": spread([new / s for s in times]),
            "roofline_ms": without if name == "nanogpt" else cached,
            "ours_over_it": ratio(seconds, name, "ours"),
            "setup_seconds": worker.setup_seconds,
            "first_story_seconds": worker.first_step_seconds,
        }
        milliseconds = shown(spread([s * 1e3 for s in times]), ".0f")
        rows.append([str(context), name, shown(found["tokens_per_second"], ",.0f"), milliseconds])
        rows[-1] += [f"{found['roofline_ms']:.1f}", shown(found["ours_over_it"])]
        record[name] = found
    return rows, {"arms": record, "same_greedy_tokens": new if fits else None}


def main() -> None:
    """Each context, and the table."""
    parser = options_parser(__doc__, rounds=7, steps=1)
    parser.add_argument("--nanogpt", required=True, help="a checkout of nanoGPT")
    parser.add_argument("--config", default="shakespeare-char")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--new_tokens", type=int, default=256)
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.new_tokens, options.contexts = 2, 16, [8, 16]
    config = arms.bench_config(options.config, ["--model", "nanogpt", *overrides], options.threads)
    machine = rates(options.threads, options.smoke)
    rows, record = [], {}
    with OtherLoad() as load:
        for context in options.contexts:
            more, record[str(context)] = at_context(config, options, machine, context)
            rows += more
    header = ["context", "arm", "tokens/s", "ms per story", "roofline ms", "times as fast is ours"]
    print(table(header, rows))
    finish(
        options,
        {"benchmark": "sample_gpt", "contexts": record, "nanogpt": commit_of(options.nanogpt)}
        | {"transformers": metadata.version("transformers"), "rates": rates_record(machine)}
        | {"other_cores": load.cores},
    )


if __name__ == "__main__":
    main()
