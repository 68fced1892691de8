"""One arm of speed.py in a process of its own: `arm.py NAME SECONDS NANOGPT-CHECKOUT tiny|full FOUND`.

It writes what it has found to the file FOUND: the speed of a step as soon as it is known, so that it is not lost if
what follows fails or takes too long, and at the end everything.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import rows
import torch
import torch.nn.functional as F
from digits import rounded
from sizes import peak_of, sized

from nanokimi.config import RunConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.measure.cost import model_cost
from nanokimi.measure.evaluate import evaluate
from nanokimi.measure.speed import generation_latency
from nanokimi.profiling import roofline
from nanokimi.profiling.bench import synthetic_ids, synthetic_state, time_parts
from nanokimi.runtime.device import synchronize
from nanokimi.runtime.files import write_atomic
from nanokimi.runtime.gpu import describe_gpu
from nanokimi.train.state import TrainState
from nanokimi.train.step import train_step
from nanokimi.train.torch_compile import compile_step

CUDA = torch.device("cuda", 0)
WARM_UP, ROUND, LEAST_ROUNDS = (2, 1, 2) if rows.PRETEND else (10, 10, 3)
EVALUATED_TOKENS = 600 if rows.PRETEND else 200_000
SHOWN_KERNELS = 15


def rates(tiny: bool, seconds: float) -> dict[str, Any]:
    """What the GPU can do at best in large products and in reading its memory."""
    if tiny:
        roofline.GPU_SIZE, roofline.GPU_MEMORY_BYTES = 64, 1_000_000
    found = roofline.measure_machine(CUDA, min(seconds, 0.5))
    peak = peak_of(describe_gpu(CUDA))
    return {**vars(found), "datasheet_bf16_flops_per_second": peak}


def timed(step: Callable[[], object], tokens: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of a step over rounds of several, the device waited for once a round."""
    begin = time.perf_counter()
    step()
    synchronize(CUDA)
    first = time.perf_counter() - begin
    for _ in range(WARM_UP):
        step()
    torch.cuda.reset_peak_memory_stats()  # building and compiling are no part of a step
    spent: list[float] = []
    while len(spent) < LEAST_ROUNDS or sum(spent) < seconds:
        synchronize(CUDA)
        begin = time.perf_counter()
        for _ in range(ROUND):
            step()
        synchronize(CUDA)
        spent.append(time.perf_counter() - begin)
    per_step = [each / ROUND for each in spent]
    middle = statistics.median(per_step)
    return {
        "tokens_per_second": tokens / middle,
        "step_ms": middle * 1e3,
        "step_ms_range": [min(per_step) * 1e3, max(per_step) * 1e3],
        "steps": len(per_step) * ROUND,
        "first_step_seconds": first,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }


def utilisation(config: RunConfig, tokens_per_second: float) -> dict[str, Any]:
    """Parameters, and the share of the GPU's rate that the model's own FLOPs are."""
    cost = model_cost(config.family.model, config.train.context_length)
    known = peak_of(describe_gpu(CUDA))
    peak = known or roofline.matmul_rate(torch.bfloat16, CUDA)
    return {
        "params_active": cost.params_active,
        "params_total": cost.params_total,
        "train_flops_per_token": cost.train_flops_per_token,
        "utilisation": tokens_per_second * cost.train_flops_per_token / peak,
        "utilisation_of": "datasheet" if known else "measured",
    }


def ours(
    name: str, tiny: bool, seconds: float, compiled: bool, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The whole `train_step`; where it is not compiled also its parts, kernels, decoding and evaluation."""
    config = sized(tiny, name, compile=compiled)
    if tiny:
        roofline.GPU_SIZE = 64
    state = synthetic_state(config)
    if compiled:
        compile_step(state)
    train = config.train
    found = timed(lambda: train_step(state), train.batch_size * train.context_length, seconds)
    found |= utilisation(config, found["tokens_per_second"])
    found |= {"compile_seconds": state.compile_seconds, "kernels": [vars_of(c) for c in state.kernels]}
    keep(found)
    return found if compiled else found | details(state, seconds)


def details(state: TrainState, seconds: float) -> dict[str, Any]:
    """Parts of a step, kernels, decoding, evaluation.

    One that fails (out of memory, or a machine that lets nobody profile) is named under "failed", and the others stay.
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def decoding() -> dict[str, float]:
        prefill, decode = generation_latency(state.model, state.config.train.context_length)
        return {"prefill_ms": prefill.median_ms, "decode_ms_per_token": decode.median_ms}

    measures: dict[str, Callable[[], Any]] = {
        "parts_ms": lambda: time_parts(state, min(seconds, 2.0)).parts_ms,
        "decoding": decoding,
        "evaluated_tokens_per_second": lambda: evaluation_speed(state),
        "profile": lambda: profile(state),
    }
    for name, measure in measures.items():
        try:
            value = measure()
        except Exception as error:
            failed[name] = rows.in_short(error)
        else:
            found |= value if name == "decoding" else {name: value}
    return found | ({"failed": failed} if failed else {})


def vars_of(choice: Any) -> str:
    """A choice of implementation in one string."""
    return f"{choice.mechanism}: {choice.form}"


def profile(state: TrainState) -> list[dict[str, Any]] | None:
    """Where the device's time in three steps goes, kernel by kernel, the longest first; None without a profiler."""
    if rows.PRETEND:
        return None
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiled:
        for _ in range(3):
            train_step(state)
        synchronize(CUDA)
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) or 1
    return [
        {
            "kernel": event.key[:100],
            "ms_per_step": event.self_device_time_total / 3e3,
            "share": event.self_device_time_total / total,
            "calls_per_step": event.count / 3,
        }
        for event in events[:SHOWN_KERNELS]
    ]


def evaluation_speed(state: TrainState) -> float:
    """Tokens scored per second on random text, in fp32 as always."""
    config, ids = state.config, synthetic_ids(state.config.family.model.vocab_size or 0)
    facts = dict.fromkeys(("val_text_bytes", "val_text_chars"), EVALUATED_TOKENS)
    data = PreparedData(ByteTokenizer(), ids, ids[:EVALUATED_TOKENS], metadata=facts)
    spent = []
    for _ in range(2):  # the first warms up
        synchronize(CUDA)
        begin = time.perf_counter()
        evaluate(state.model, data, config.train.context_length, config.train.eval_batch_size)
        spent.append(time.perf_counter() - begin)
    return EVALUATED_TOKENS / spent[-1]


def peer_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[..., Any], config: RunConfig
) -> Callable[[], object]:
    """The step of nanoGPT's bench.py: bf16, its random batch, no clipping, the loss read each time."""
    train = config.train
    vocab_size = config.nanogpt.model.vocab_size or 0
    shape = (train.batch_size, train.context_length)
    x_BT, y_BT = (torch.randint(vocab_size, shape, device=CUDA) for _ in range(2))

    def step() -> float:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(model, x_BT, y_BT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def nanogpt(checkout: str, tiny: bool, seconds: float, compiled: bool) -> dict[str, Any]:
    """nanoGPT's model.py with its own optimizer, of NanoGPT's size."""
    sys.path.insert(0, checkout)
    with contextlib.redirect_stdout(sys.stderr):
        import model as theirs

        config = sized(tiny, "nanogpt")
        ours_ = config.nanogpt.model
        sizes = dict(
            n_layer=ours_.num_hidden_layers, n_head=ours_.num_attention_heads, n_embd=ours_.hidden_size
        )
        made = theirs.GPTConfig(
            block_size=config.train.context_length,
            vocab_size=ours_.vocab_size,
            dropout=0.0,
            bias=False,
            **sizes,
        )
        torch.backends.cuda.matmul.allow_tf32 = True  # as bench.py
        peer = theirs.GPT(made).to(CUDA)
        rates_ = dict(weight_decay=1e-2, learning_rate=1e-4, betas=(0.9, 0.95))
        optimizer = peer.configure_optimizers(**rates_, device_type="cuda")
    called = torch.compile(peer) if compiled else peer
    step = peer_step(called, optimizer, lambda m, x, y: m(x, y)[1], config)
    tokens = config.train.batch_size * config.train.context_length
    found = timed(step, tokens, seconds)
    return found | utilisation(config, found["tokens_per_second"])


def transformers(name: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """transformers' class of a model's kind with fused AdamW, of the same size as ours."""
    from transformers import DeepseekV3ForCausalLM, GPT2Config, GPT2LMHeadModel

    config = sized(tiny, "nanokimi" if name == "deepseek" else "nanogpt")
    gpt = config.nanogpt.model
    if name == "deepseek":
        from hf_parity import stock_config

        kimi = config.nanokimi.model
        scale = routed_scaling(kimi.n_routed_experts, kimi.num_experts_per_tok)
        peer: Any = DeepseekV3ForCausalLM(stock_config(replace(kimi, routed_scaling_factor=scale)))
    else:
        peer = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=gpt.vocab_size, n_positions=config.train.context_length, n_embd=gpt.hidden_size,
                n_layer=gpt.num_hidden_layers, n_head=gpt.num_attention_heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
    peer = peer.to(CUDA).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=not rows.PRETEND)

    def loss_of(model: Any, x_BT: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = model(input_ids=x_BT, use_cache=False).logits
        return F.cross_entropy(logits_BTW.float().flatten(0, 1), y_BT.flatten())

    tokens = config.train.batch_size * config.train.context_length
    found = timed(peer_step(peer, optimizer, loss_of, config), tokens, seconds)
    return found | utilisation(config, found["tokens_per_second"])


def main(name: str, seconds: str, checkout: str, size: str, file: str) -> None:
    """Run an arm and write what it found."""

    def keep(found: dict[str, Any]) -> None:
        write_atomic(Path(file), json.dumps(rounded(found)))

    tiny = size == "tiny"
    model, _, form = name.rpartition("-")
    compiled = form == "compiled"
    if name == "rates":
        work = partial(rates, tiny, float(seconds))
    elif model in ("nanogpt", "nanokimi"):
        work = partial(ours, model, tiny, float(seconds), compiled, keep)
    elif model == "nanogpt-peer":
        work = partial(nanogpt, checkout, tiny, float(seconds), compiled)
    else:
        work = partial(transformers, model.removeprefix("transformers-"), tiny, float(seconds))
    keep(work())


if __name__ == "__main__":
    main(*sys.argv[1:])
