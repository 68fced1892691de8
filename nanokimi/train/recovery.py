"""Recovery from running out of memory (make room, repeat the step) and from numbers that are not finite (as set)."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from nanokimi.errors import TrainingError
from nanokimi.runtime.device import is_out_of_memory, release_memory
from nanokimi.runtime.files import write_atomic, write_json
from nanokimi.runtime.parallel import local_of
from nanokimi.train.checkpoint import restart, roll_back, save_checkpoint
from nanokimi.train.metrics import tensors_in
from nanokimi.train.state import Record, TrainState, fresh_scaler, step_seed
from nanokimi.train.step import forward_backward, sequence_loss, training_batch

SKIPPED_IN_A_ROW = 10  # after so many, the fault is in the weights and not in the batches


def recover_from_out_of_memory(state: TrainState) -> tuple[Record, bool]:
    """Make room after memory ran out in a step. Returns an event, and whether the same step can be taken again at once.

    Forward and backward passes change no weight, so their step is simply repeated. If memory ran out during the update
    (`state.updating`), weights may be half updated, and the run goes back to its newest checkpoint or its beginning.

    Raises TrainingError, naming what would fit, if no more room can be made.
    """
    forget_gradients(state)
    state.compiled = None  # it was compiled for the old sizes
    gc.collect()
    release_memory(state.device)
    detail = f"out of memory at step {state.step + 1}: {make_room(state)}"
    again = not state.updating
    if not again:
        restart(state)
        detail += f", from step {state.step} on, because the update was half done"
    return {"kind": "event", "event": "out_of_memory", "detail": detail}, again


def forget_gradients(state: TrainState) -> None:
    """Drop the gradients of a failed step, and that the scaler (fp16) may have unscaled them already."""
    state.optimizer.zero_grad(set_to_none=True)
    if state.scaler.is_enabled():
        scale = state.scaler.state_dict()
        state.scaler = fresh_scaler(state.config.train.dtype, state.device)
        state.scaler.load_state_dict(scale)


def make_room(state: TrainState) -> str:
    """Halve the micro-batch. At one sequence, recompute activations. Then give up. Returns what was done, in words."""
    micro, batch = state.micro_batch_size, state.config.train.batch_size
    if micro > 1:
        state.micro_batch_size = max(n for n in range(1, micro // 2 + 1) if batch % n == 0)
        passes = batch // state.micro_batch_size
        return f"{passes} passes of {state.micro_batch_size} sequences make the same batch, instead of {micro} at once"
    if not state.model.activation_checkpointing:
        state.model.activation_checkpointing = True
        return "activations are recomputed in the backward pass instead of kept"
    raise TrainingError(
        f"out of memory at step {state.step + 1} with one sequence at a time and activations recomputed: "
        f"{context_that_fits(state)}"
    )


def context_that_fits(state: TrainState) -> str:
    """Try shorter and shorter sequences, and say which one fits."""
    inputs_BT, targets_BT = (ids[:1] for ids in training_batch(state))
    length = inputs_BT.shape[1] // 2
    while length >= 8:
        fits = True
        try:
            sequence_loss(state, inputs_BT[:, :length], targets_BT[:, :length]).backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        state.optimizer.zero_grad(set_to_none=True)
        release_memory(state.device)
        if fits:
            return f"train.context_length {length} goes through; or use a smaller model"
        length //= 2
    weights = sum(p.numel() * p.element_size() for p in state.model.parameters())
    return (
        f"not even 8 tokens fit beside {weights / 1e6:,.0f} MB of weights, as much for gradients and up to twice as "
        "much for the optimizer: use a smaller model, or allow more memory"
    )


def recover_from_non_finite(state: TrainState, reason: str) -> Record:
    """After a loss or gradient that is not finite, save the batch, then stop, skip or roll back as configured.

    Raises TrainingError, with everything saved, if configured to stop or after ten skipped steps in a row.
    """
    forget_gradients(state)
    module = first_non_finite_module(state)
    forget_gradients(state)
    folder = state.folder / "nonfinite" / f"step-{state.step + 1:08d}"
    if state.world.is_main:
        keep_batch(state, folder, {"step": state.step + 1, "reason": reason, "first_not_finite": module})
    policy = state.config.train.on_nonfinite
    if policy == "stop" or state.skipped_in_a_row >= SKIPPED_IN_A_ROW:
        save_checkpoint(state)
        after = f" after {state.skipped_in_a_row} skipped steps in a row" if state.skipped_in_a_row else ""
        raise TrainingError(
            f"{reason}{after}; first not finite: {module}; the run is saved and the batch is in {folder}: lower the "
            "learning rate, or continue with --resume --on-nonfinite skip (or rollback)"
        )
    start, updates = state.step, state.step - state.batches_skipped
    if policy == "rollback":
        start, updates = roll_back(state)
    state.step += 1
    state.evaluated = False
    state.batches_skipped = state.step - updates
    state.skipped_in_a_row += 1
    if policy == "skip":
        detail = f"{reason}; first not finite: {module}; this update is skipped"
        return {"kind": "event", "event": "nonfinite_skipped", "detail": detail}
    detail = f"{reason}; first not finite: {module}; weights go back to those of step {start}"
    return {"kind": "event", "event": "nonfinite_rolled_back", "detail": detail}


def keep_batch(state: TrainState, folder: Path, report: dict[str, Any]) -> None:
    """Write this step's whole batch and a report into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs_BT, targets_BT = (torch.from_numpy(ids).contiguous() for ids in state.batches.whole(state.step))
    write_atomic(folder / "batch.safetensors", save({"inputs": inputs_BT, "targets": targets_BT}))
    write_json(folder / "report.json", report)


def first_non_finite_module(state: TrainState) -> str:
    """Repeat the step's forward and backward passes, and name the first module with a bad output or gradient.

    Of several processes, the first that finds one names it. The gradient of a parameter is the sum of theirs.
    """
    modules, parameters = zip(*state.world.gathered(first_found_here(state)), strict=True)
    return next(filter(None, (*modules, *parameters)), "the loss itself")


def first_found_here(state: TrainState) -> tuple[str | None, str | None]:
    """The first module with a bad output or gradient in this process, and the first parameter with a bad gradient."""
    found: list[str] = []
    hooks: list[Any] = []

    def watch(name: str, module: torch.nn.Module) -> None:
        def check_output(_: torch.nn.Module, __: Any, output: Any) -> None:
            for tensor in filter(torch.is_floating_point, tensors_in(output)):
                if not tensor.isfinite().all():
                    broken = [
                        n
                        for n, p in module.named_parameters(recurse=False)
                        if not local_of(p).isfinite().all()
                    ]
                    found.append(f"{name}, whose {broken[0]} is not finite already" if broken else name)
                elif tensor.requires_grad:
                    tensor.register_hook(lambda gradient: check_gradient(gradient))

        def check_gradient(gradient: torch.Tensor) -> None:
            if not gradient.isfinite().all():
                found.append(f"the gradient of {name}'s output")

        hooks.append(module.register_forward_hook(check_output))

    for name, module in state.model.named_modules():
        watch(name or type(module).__name__, module)
    compiled, state.compiled = state.compiled, None  # hooks need the modules of the plain model
    try:
        torch.manual_seed(step_seed(state.config.seed, state.step, state.world.rank))
        state.optimizer.zero_grad(set_to_none=True)
        forward_backward(state)
    finally:
        state.compiled = compiled
        for hook in hooks:
            hook.remove()
    gradients = ((name, p.grad) for name, p in state.model.named_parameters() if p.grad is not None)
    bad = (f"the gradient of {name}" for name, grad in gradients if not local_of(grad).isfinite().all())
    return next(iter(found), None), next(bad, None)
