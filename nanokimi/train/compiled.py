"""Forward and backward of the training step through torch.compile, taken only if they do what the plain model does."""

from __future__ import annotations

import torch

from nanokimi.errors import TrainingError
from nanokimi.model.by_hand import experts_by_hand
from nanokimi.model.moe import Experts
from nanokimi.runtime.device import fenced_seconds, is_out_of_memory
from nanokimi.train.state import Record, TrainState, step_seed
from nanokimi.train.step import sequence_loss, training_batch

LARGEST_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.03, "fp16": 0.03}
"""Relative, of the loss and of the gradient's norm: what rounding in another order can do, and no more."""


def compile_step(state: TrainState) -> Record:
    """Compile what `train_step` calls for forward and backward; validation, stories and the audit stay plain.

    Loss and gradient of the step's first micro-batch are compared with the plain model's. No weight changes.

    Raises:
        TrainingError: torch.compile fails on this machine, or computes something else.
    """
    start = fenced_seconds(state.device)
    plain = probe(state)
    torch.compiler.allow_in_graph(experts_by_hand)
    for module in state.model.modules():
        if isinstance(module, Experts) and state.config.train.dtype != "bf16":
            # Traced, torch's grouped product takes bf16 only: it stays outside.
            module.mixed = torch.compiler.disable(module.mixed)  # type: ignore[method-assign]
    state.compiled = torch.compile(state.model, dynamic=False)
    try:
        compiled = probe(state)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise TrainingError(
            f"torch.compile fails here ({reason}): leave out train.compile; on a CPU it needs a C++ compiler"
        ) from None
    differences = [abs(a - b) / max(abs(a), 1e-6) for a, b in zip(plain, compiled, strict=True)]
    dropout = getattr(state.config.arm.model, "dropout", 0.0)  # draws other numbers when compiled
    if max(differences) > LARGEST_DIFFERENCE[state.config.train.dtype] and dropout == 0:
        raise TrainingError(
            f"compiled, the step computes something else (loss {plain[0]:.4f}, compiled {compiled[0]:.4f}; gradient's "
            f"norm {plain[1]:.4f}, compiled {compiled[1]:.4f}): leave out train.compile"
        )
    state.compile_seconds = fenced_seconds(state.device) - start
    return {"kind": "compiled", "seconds": state.compile_seconds, "differences": differences}


def probe(state: TrainState) -> tuple[float, float]:
    """Loss and norm of the gradient of the step's first micro-batch."""
    inputs_BT, targets_BT = (ids[: state.micro_batch_size] for ids in training_batch(state))
    torch.manual_seed(step_seed(state.config.seed, state.step))
    loss = sequence_loss(state, inputs_BT, targets_BT)
    loss.backward()
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    state.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), float(norm)
