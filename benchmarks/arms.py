"""The arms of the training benchmarks. Each is the body of a worker: set up, report `ready`, step until told to stop.

Peers are never vendored. nanoGPT is a checkout that the user names (`git clone https://github.com/karpathy/nanoGPT`);
its own train.py runs, unchanged; our clock is read when it prints an iteration. transformers comes from pip. Neither
touches the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import runpy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from turns import Turns

from nanokimi.config import OptimConfig, RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.rules import routed_scaling
from nanokimi.data.batches import sample_batch
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.profiling.bench import step_roofline, synthetic_config, synthetic_ids, synthetic_state
from nanokimi.profiling.roofline import MachineRates
from nanokimi.runtime.device import DTYPES
from nanokimi.train.step import train_step
from nanokimi.train.torch_compile import compile_step

# nanoGPT's README, "I only have a macbook", except when it evaluates and where it ends
NANOGPT_CPU_RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=1 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=1000000000 --lr_decay_iters=2000 --dropout=0.0 "
    "--eval_interval=1000000000 --dtype=float32"
)


def bench_config(name: str, overrides: list[str], threads: int) -> RunConfig:
    """A preset or file with overrides, resolved for random tokens on the CPU, with the gates' scale for the peer."""
    machine = ["--train.device", "cpu", "--train.threads", str(threads)]
    config = synthetic_config(load_config(name, [*overrides, *machine]))
    kimi = config.nanokimi.model
    scale = kimi.routed_scaling_factor or routed_scaling(kimi.n_routed_experts, kimi.num_experts_per_tok)
    model = replace(kimi, routed_scaling_factor=scale)
    return replace(config, nanokimi=replace(config.nanokimi, model=model))


def ours(turns: Turns, config: RunConfig) -> None:
    """Our `train_step`, all of it: batch, forward, backward, clip, update, QK-Clip, balance, telemetry.

    With `train.compile`, compiling is part of the set-up.
    """
    turns.start()
    state = synthetic_state(config)
    if config.train.compile:
        compile_step(state)
    turns.ready()
    while True:
        train_step(state)
        turns.step_done()


def nanogpt(
    turns: Turns,
    checkout: str,
    ids: tuple[np.ndarray, np.ndarray],
    vocab_size: int,
    at_end: Callable[[torch.nn.Module], dict[str, Any]] = lambda model: {},
) -> None:
    """nanoGPT's own train.py with its CPU recipe (fp32), on these training and validation tokens.

    `at_end` is called with its model when no more steps are wanted.
    """
    turns.start()

    def say(*words: object, **ignored: object) -> None:
        line = " ".join(map(str, words))
        if line.startswith("step 0:"):  # its one validation is over and the first iteration begins
            model = sys._getframe(1).f_globals["raw_model"]  # train.py's own
            turns.at_end = lambda: at_end(model)
            turns.ready()
        elif line.startswith("iter "):  # printed after reading the loss, at the end of each iteration
            turns.step_done()

    source = Path(checkout).resolve()
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as folder:
        data = Path(folder) / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        for part, tokens in zip(("train", "val"), ids, strict=True):
            tokens.astype(np.uint16).tofile(data / f"{part}.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
        for name in ("configurator.py", "config"):
            (Path(folder) / name).symlink_to(source / name)
        os.chdir(folder)
        sys.path.insert(0, str(source))
        sys.argv = ["train.py", *NANOGPT_CPU_RECIPE.split()]
        with contextlib.redirect_stdout(sys.stderr):  # model.py prints as well
            runpy.run_path(str(source / "train.py"), init_globals={"print": say})


def notebook(turns: Turns, path: str, text: str) -> None:
    """The notebook of earlier system 2 (Ace007-0/NanoKimi-vs.-NanoGPT), unchanged, on this text; times its "NanoKimi".

    It first trains a "NanoGPT", which gets a single step. Our clock is read when it prints or its optimizer steps.
    """
    turns.start()

    def say(*words: object, **ignored: object) -> None:
        line = " ".join(map(str, words)).strip()
        its = sys._getframe(1).f_globals  # the notebook's own names
        if line.startswith("Training "):
            its["eval_iters"], its["eval_interval"] = 1, 1_000_000_000
            its["max_iters"] = 1 if "NanoGPT" in line else 1_000_000_000
        elif line.startswith("NanoKimi | step 0"):  # its one validation is over
            parameters = sum(p.numel() for p in its["models"]["NanoKimi"][0].parameters())
            tokens = its["batch_size"] * its["block_size"]
            turns.at_end = lambda: {"parameters": parameters, "tokens": tokens}
            turns.ready()

    def after_step(optimizer: torch.optim.Optimizer, *ignored: Any) -> None:
        # The second of its two optimizers: the last thing that an iteration does.
        if type(optimizer).__name__ == "TrueMuon":
            turns.step_done()

    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        script = Path(folder) / "cells.py"
        script.write_text("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
        (Path(folder) / "input.txt").write_text(text, encoding="utf-8")
        os.chdir(folder)
        hook = register_optimizer_step_post_hook(after_step)
        try:
            runpy.run_path(str(script), init_globals={"print": say})
        finally:
            hook.remove()


def transformers(turns: Turns, config: RunConfig) -> None:
    """transformers' model of the arm's kind with fused AdamW: the same batches, loss, clip and weight count as ours.

    DeepseekV3ForCausalLM with its default experts, or GPT2LMHeadModel; with `train.compile` through torch.compile, too.
    """
    from transformers import DeepseekV3ForCausalLM

    peer_config = hf_parity().stock_config(config.nanokimi.model)
    turns.start()
    train, optim = config.train, config.family.optim
    kimi = config.model == "nanokimi"
    model = (DeepseekV3ForCausalLM(peer_config) if kimi else gpt2(config)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    if train.compile:
        model.compile()
    ids = synthetic_ids(model.config.vocab_size)
    turns.ready()
    index = 0
    while True:
        arrays = sample_batch(
            ids, seed=1, index=index, batch_size=train.batch_size, context_length=train.context_length
        )
        x_BT, y_BT = (torch.from_numpy(a) for a in arrays)
        with torch.autocast("cpu", dtype=DTYPES[train.dtype], enabled=train.dtype != "fp32"):
            logits_BTW = model(input_ids=x_BT, use_cache=False).logits
        F.cross_entropy(logits_BTW.float().flatten(0, 1), y_BT.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        index += 1
        turns.step_done()


def deepseek(model: LanguageModel) -> Any:
    """transformers' DeepseekV3ForCausalLM with our weights and its default experts."""
    from transformers import DeepseekV3ForCausalLM

    reference = DeepseekV3ForCausalLM(hf_parity().stock_config(model.config))
    reference.load_state_dict(hf_parity().deepseek_reference(model).state_dict())
    return reference


def gpt2(config: RunConfig) -> Any:
    """transformers' GPT2LMHeadModel with our NanoGPT's weights, without dropout; its biases cannot be left out."""
    return hf_parity().gpt2_reference(build_model(config.nanogpt.model, config.seed))


def hf_parity() -> Any:
    """tests/hf_parity.py: our configurations and weights under transformers' names."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import hf_parity

    return hf_parity


def roofline_ms(config: RunConfig, rates: MachineRates, peer: bool = False) -> float:
    """What a step of ours cannot be below; `peer`: with AdamW, as the peer takes it."""
    if peer:
        kimi = replace(config.nanokimi, optim=OptimConfig(name="adamw"))
        config = replace(config, nanokimi=kimi)
    return sum(step_roofline(synthetic_state(config), rates).values())


def with_dtype(config: RunConfig, dtype: Any) -> RunConfig:
    """The configuration in another precision."""
    return replace(config, train=replace(config.train, dtype=dtype))
