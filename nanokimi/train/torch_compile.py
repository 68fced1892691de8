"""The training step's forward and backward passes by torch.compile, used only if they match the plain model's."""

from __future__ import annotations

import hashlib
import math

import torch

from nanokimi.errors import TrainingError
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.kernels.experts import traceable_experts, traceable_linear
from nanokimi.runtime.c_compiler import processor
from nanokimi.runtime.device import fenced_seconds, is_out_of_memory
from nanokimi.train.state import Record, TrainState, step_seed
from nanokimi.train.step import sequence_loss, training_batch

LARGEST_DIFFERENCE = {"fp32": (1e-3, 1e-2), "bf16": (0.02, 0.2), "fp16": (0.02, 0.2)}
"""The largest relative differences of the loss, and of the gradient as one vector, that rounding in another order can
cause. In half precision, rounding also makes a few tokens choose other experts."""


def compile_step(state: TrainState) -> Record:
    """Compile the forward and backward passes of `train_step`. Validation, stories and the audit are not compiled.

    Loss and gradient of the step's first micro-batch are compared with the plain model's, unless they are not finite or
    the model has dropout, whose random numbers differ. No weight or buffer changes. Whatever this process compiled
    before is discarded (and compiled again when called), because torch silently stops compiling after a few models.

    Raises:
        TrainingError: torch.compile fails on this machine, or computes something else.
    """
    start = fenced_seconds(state.device)
    state.compiled = None
    plain_loss, plain = probe(state)
    torch.compiler.reset()
    share_no_code_between_processors()
    torch.compiler.allow_in_graph(traceable_experts)
    torch.compiler.allow_in_graph(traceable_linear)
    state.kernels = accelerate_(state.model, state.optimizer, dtype=state.config.train.dtype, compiled=True)
    state.compiled = torch.compile(state.model, dynamic=False)
    try:
        loss, gradient = probe(state)
    except Exception as error:
        state.compiled = None
        if is_out_of_memory(error):
            raise
        reason = " ".join(next(iter(str(error).strip().splitlines()), "").split()) or type(error).__name__
        raise TrainingError(f"torch.compile fails here: {reason} (leave out train.compile)") from None
    difference = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(gradient, plain, strict=True)))
    size = math.sqrt(sum(float(a.square().sum()) for a in plain))
    differences = [abs(loss - plain_loss) / max(abs(plain_loss), 1e-6), difference / max(size, 1e-12)]
    comparable = math.isfinite(plain_loss + size) and not getattr(state.config.family.model, "dropout", 0.0)
    limits = LARGEST_DIFFERENCE[state.config.train.dtype]
    if comparable and not all(d <= limit for d, limit in zip(differences, limits, strict=True)):
        raise TrainingError(
            f"compiled, the step computes something else: loss {loss:.4f} instead of {plain_loss:.4f}, the gradient "
            f"{differences[1]:.0%} away; leave out train.compile"
        )
    seconds = fenced_seconds(state.device) - start
    state.compile_seconds += seconds
    return {"kind": "compiled", "seconds": seconds, "differences": differences if comparable else None}


def share_no_code_between_processors() -> None:
    """Take from torch's cache of compiled graphs only what was made for this processor, as far as torch uses it.

    A graph's code is for vectors of one length, which torch's key of a graph does not name: a cache folder that served
    another processor, or torch with another ATEN_CPU_CAPABILITY, gives code that reads and writes past its buffers.
    """
    used = f"{processor()}\n{torch.backends.cpu.get_cpu_capability()}"
    own = f"nanokimi-{hashlib.sha256(used.encode()).hexdigest()[:16]}"
    config = torch.compiler.config
    others = [tag for tag in config.cache_key_tag.split() if not tag.startswith("nanokimi-")]
    config.cache_key_tag = " ".join([*others, own])


def probe(state: TrainState) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient of the step's first micro-batch. With fp16 the gradient is scaled."""
    inputs_BT, targets_BT = (ids[: state.micro_batch_size] for ids in training_batch(state))
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    torch.manual_seed(step_seed(state.config.seed, state.step))
    loss = sequence_loss(state, inputs_BT, targets_BT)
    state.scaler.scale(loss).backward()
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    state.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(state.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return float(loss.detach()), gradients
