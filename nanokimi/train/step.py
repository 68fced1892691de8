"""ONE TRAINING STEP, in order: batch, forward, backward, clip, update, QK-Clip, router balance.

Training time is measured only here. Batches and dropout are functions of (seed, step), so a resumed run repeats them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from nanokimi.errors import TrainingError
from nanokimi.model.build import LanguageModel
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.user_module import UserModule
from nanokimi.optim.qk_clip import Clipping
from nanokimi.optim.schedule import lr_scale
from nanokimi.runtime.device import (
    DTYPES,
    fenced_seconds,
    memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)
from nanokimi.runtime.parallel import is_sharded, local_of
from nanokimi.train.sharding import sum_over_copies
from nanokimi.train.state import Record, TrainState, step_seed, total_steps
from nanokimi.train.together import agree

LEAST_LOSS_SCALE = 1e-4
"""If gradients in fp16 overflow even with a smaller one, training cannot go on: those of a usual size are by then below
the smallest number of fp16, 6e-8."""


class NotFinite(TrainingError):
    """A loss or a gradient is infinite or not a number. Nothing has been updated."""


def train_step(state: TrainState) -> Record:
    """One optimizer step over all micro-batches: forward, backward, clip, update, QK-Clip, router balance.

    Raises NotFinite, before anything is updated, if the loss or the gradient is infinite or not a number.
    """
    optim = state.config.family.optim
    reset_peak_memory(state.device)
    start = fenced_seconds(state.device)
    # Dropout is a function of (seed, step), too; each process drops other numbers.
    torch.manual_seed(step_seed(state.config.seed, state.step, state.world.rank))
    scale = lr_scale(state.step, total_steps(state), optim)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale

    sums, outputs = forward_backward(state)
    state.scaler.unscale_(state.optimizer)
    if state.world.alone:
        norm = gradient_norm(state.model)
    else:
        sums, norm, outputs = agree(state, sums, outputs)
    clip_gradients_(state.model, optim.grad_clip, norm)
    # The one time that the host waits for numbers in a step: it must know that they are finite before the update.
    *numbers, grad_norm = torch.stack([*sums, norm.to(sums[0].dtype)]).tolist()
    mean_nll, mean_aux = (number / len(outputs) for number in numbers)
    skipped = will_be_skipped(state, mean_nll + mean_aux, grad_norm)

    # If memory runs out from here on, weights may be half updated. `recovery` then goes back to a checkpoint.
    state.updating = True
    extra = {}
    if isinstance(state.optimizer, Clipping):
        # It stays if the scaler skips this step.
        state.optimizer.heads_clipped = torch.zeros((), dtype=torch.int64)
    if needs_logits(state.optimizer):
        extra["max_logits_LH"] = torch.stack([o.max_logits_LH for o in outputs]).amax(dim=0)
    state.scaler.step(state.optimizer, **extra)  # with fp16, skips the update if a gradient overflowed
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    balance_experts_(state.model, outputs, optim.router_bias_update_speed)
    state.updating = False

    seconds = fenced_seconds(state.device) - start
    state.step += 1
    state.evaluated = False
    state.batches_skipped += skipped
    if not skipped:
        state.skipped_in_a_row = 0
    state.train_seconds += seconds
    state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory_bytes(state.device))
    for output in outputs:
        state.telemetry.add_forward(output)
    state.telemetry.add_step(state.optimizer)
    return {
        "kind": "train",
        "loss": mean_nll,
        **({"aux_loss": mean_aux} if mean_aux else {}),
        "lr": optim.lr * scale,
        "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
        "step_ms": seconds * 1e3,
        "memory_bytes": memory_bytes(state.device),
    }


def will_be_skipped(state: TrainState, loss: float, grad_norm: float) -> bool:
    """Whether the scaler will skip this update and halve its scale: with fp16, if a gradient overflowed.

    Raises NotFinite if the loss is infinite or not a number, or the gradient is, and a smaller scale cannot help.
    """
    if not math.isfinite(loss):
        raise NotFinite(f"the loss at step {state.step + 1} is {loss}")
    if math.isfinite(grad_norm):
        return False
    reason = f"the gradient at step {state.step + 1} is not finite"
    if not state.scaler.is_enabled():
        raise NotFinite(reason)
    scale = state.scaler.get_scale()
    if scale < LEAST_LOSS_SCALE:
        raise NotFinite(f"{reason}, even scaled by {scale:.1g} (--train.dtype bf16 or fp32 may help)")
    return True


def gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    """The norm of the gradient, on the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_gradients_(model: torch.nn.Module, limit: float | None, norm: torch.Tensor) -> None:
    """Scale the gradient, whose norm is given, down to a norm of at most `limit`."""
    # Most steps need no scaling. A CPU is spared a pass over the gradients; on a GPU, looking would wait.
    if limit is not None and (norm.device.type != "cpu" or float(norm) > limit):
        parameters = [with_own_gradient(p) for p in model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def with_own_gradient(p: torch.Tensor) -> torch.Tensor:
    """A parameter's rows in this process with their gradient, in the same memory: others may be sharded unlike it."""
    if not is_sharded(p):
        return p
    own = local_of(p.detach())
    own.grad = local_of(p.grad)
    return own


def forward_backward(state: TrainState) -> tuple[tuple[torch.Tensor, torch.Tensor], list[Any]]:
    """Accumulate gradients over the step's micro-batches.

    Returns the sums over micro-batches of the mean negative log-likelihood and of the auxiliary loss, both in nats and
    on the device, and the outputs without their logits.
    """
    want_max_logits = needs_logits(state.optimizer)
    inputs_BT, targets_BT = training_batch(state)
    micro = state.micro_batch_size
    passes = len(inputs_BT) // micro
    total_nll = torch.zeros((), device=state.device)
    total_aux = torch.zeros((), device=state.device)
    outputs: list[Any] = []
    for number, (x_BT, y_BT) in enumerate(zip(inputs_BT.split(micro), targets_BT.split(micro), strict=True)):
        if not state.world.alone:
            sum_over_copies(state.model, number == passes - 1)
        with autocast(state):
            output = state.forward(x_BT, want_max_logits=want_max_logits)
        nll = state.loss(output.logits_BTW, y_BT)
        loss = nll if output.aux_loss is None else nll + output.aux_loss
        output = output._replace(logits_BTW=None)  # large, and no longer needed
        state.scaler.scale(loss / passes).backward()
        total_nll += nll.detach()
        if output.aux_loss is not None:
            total_aux += output.aux_loss.detach()
        outputs.append(output._replace(aux_loss=None))
    return (total_nll, total_aux), outputs


def needs_logits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the update depends on the largest attention logits of the forward pass."""
    return isinstance(optimizer, Clipping) and optimizer.needs_logits


def autocast(state: TrainState) -> torch.autocast:
    """The configured precision of matrix products."""
    dtype = state.config.train.dtype
    return torch.autocast(state.device.type, dtype=DTYPES[dtype], enabled=dtype != "fp32")


def sequence_loss(state: TrainState, x_BT: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
    """The training loss of some sequences, with the graph that a backward pass needs."""
    with autocast(state):
        output = state.forward(x_BT, want_max_logits=needs_logits(state.optimizer))
    nll = state.loss(output.logits_BTW, y_BT)
    return nll if output.aux_loss is None else nll + output.aux_loss


def training_batch(state: TrainState) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of this step, (B, T) each, on the device; of several processes, each has its own rows."""
    inputs_BT, targets_BT = (torch.from_numpy(ids).to(state.device) for ids in state.batches.at(state.step))
    return inputs_BT, targets_BT


def balance_experts_(model: LanguageModel, outputs: list[Any], speed: float) -> None:
    """Adjust each router's bias by the load of the whole step (all micro-batches together)."""
    routers = [] if speed == 0 or isinstance(model, NanoGPT | UserModule) else model.routers()
    for layer, router in enumerate(routers):
        if not hasattr(router, "update_bias_"):
            continue  # balanced by a loss, or not at all
        router.update_bias_(torch.stack([o.routing[layer].counts_E for o in outputs]).sum(dim=0), speed)
