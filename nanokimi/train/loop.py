"""THE TRAINING LOOP: evaluate, save, step, until the budget is spent. See `step` and `evaluation`.

`train` is a generator of records, so that one loop serves both `nanokimi train`, which runs it to the end, and
`nanokimi compare`, which takes a few steps of each model in turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from nanokimi.errors import TrainingError
from nanokimi.measure.evaluate import Cancelled
from nanokimi.runtime.device import is_out_of_memory
from nanokimi.runtime.files import append_json_line
from nanokimi.runtime.text import one_line
from nanokimi.train.checkpoint import save_checkpoint, save_weights
from nanokimi.train.evaluation import anything_due, evaluate_and_sample
from nanokimi.train.finite import named_if_not_finite
from nanokimi.train.recovery import recover_from_non_finite, recover_from_out_of_memory
from nanokimi.train.state import Record, TrainState, total_steps
from nanokimi.train.step import NotFinite, train_step
from nanokimi.train.together import refresh_whole_model
from nanokimi.train.torch_compile import compile_step

# Without save_every, at most this much work is lost if the process is killed: a share of the run's steps, and seconds.
MOST_WORK_LOST = (0.05, 60.0)


def train(state: TrainState) -> Iterator[Record]:
    """Train to the end of the budget, yielding each record after writing it to metrics.jsonl."""
    while True:
        last = state.step >= total_steps(state)  # n + 1 turns, so that the end shares this code
        if state.world.alone:
            yield from evaluate_unless_stopped(state, last)
        else:
            yield from evaluated_by_main(state, last)
        state.finished = last and state.evaluated
        if state.finished or state.stopping or due_for_saving(state):
            save_checkpoint(state)
        if state.finished and state.world.is_main:
            save_weights(state.whole_model, state.folder / "model.safetensors")
        if state.finished or state.stopping:
            return
        yield from write(state, step_and_recover(state))


def evaluate_unless_stopped(state: TrainState, last: bool) -> Iterator[Record]:
    """Evaluate if it is due. If a request to stop cuts the evaluation short, undo it, so that it can be repeated."""
    metrics = state.folder / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    telemetry, best = state.telemetry.state(), (state.best_val_loss, state.best_step)
    untracked: list[Record] = []  # what a tracker has been told cannot be undone
    try:
        yield from write(state, evaluate_and_sample(state, last), untracked.append)
        state.evaluated = True
    except Cancelled:
        if metrics.exists():
            os.truncate(metrics, size)
        untracked.clear()
        state.telemetry.load(telemetry, state.model)
        state.best_val_loss, state.best_step = best
    finally:
        for record in untracked:
            state.track(record)


def evaluated_by_main(state: TrainState, last: bool) -> Iterator[Record]:
    """`evaluate_unless_stopped` in the main process, on a whole copy of the model. The others learn what came of it."""
    if not anything_due(state, last):
        state.evaluated = True
        return
    refresh_whole_model(state)
    if state.world.is_main:
        yield from evaluate_unless_stopped(state, last)
    found = state.world.from_main(lambda: (state.evaluated, state.best_val_loss, state.best_step))
    state.evaluated, state.best_val_loss, state.best_step = found
    state.stop_agreed = any(state.world.gathered(state.should_stop))
    state.stop_requested = state.stop_requested or state.stop_agreed


def due_for_saving(state: TrainState) -> bool:
    """Whether to save now: every `save_every` steps (or often enough to lose little work), and at each new best."""
    if state.step == 0 or state.step == state.saved_step:
        return False
    if state.best_step == state.step:
        return True
    every = state.config.train.save_every
    if every is not None:
        return state.step % every == 0
    share, seconds = MOST_WORK_LOST
    unsaved = state.step - max(state.saved_step, 0)
    waited = time.monotonic() - state.saved_at
    too_long = waited * (1 + 1 / unsaved) > seconds
    if not state.world.alone:  # clocks differ: one process's wish is agreed on in the next step
        state.save_wished, too_long = too_long, state.save_agreed
    return unsaved >= max(int(share * total_steps(state)), 1) or too_long


def step_and_recover(state: TrainState) -> Iterator[Record]:
    """One training step, with a record of kind "event" for each problem that was overcome.

    With `train.compile`, the step is compiled first, and again whenever recovery has changed what was compiled.
    """
    again = True
    while again:
        compiling = state.config.train.compile and state.compiled is None
        if compiling:
            yield {"kind": "compiling"}
        record, again = attempt(state, compiling)
        yield record


def attempt(state: TrainState, compiling: bool) -> tuple[Record, bool]:
    """Compile the step or take it, and recover if that fails: a record, and whether the step has still to be taken."""
    not_finite = None
    try:
        return (compile_step(state), True) if compiling else (train_step(state), False)
    except NotFinite as error:
        not_finite = str(error)
    except (RuntimeError, MemoryError) as error:
        if state.updating and cannot_be_computed(error):
            raise TrainingError(
                f"the update at step {state.step + 1} cannot be computed ({one_line(error)}): lower the learning rate "
                "(what was saved before is whole)"
            ) from None
        if not is_out_of_memory(error):
            raise
        if not state.world.alone:
            smaller = "on more processes" if state.shard == state.world.size else "and a larger --train.shard"
            raise TrainingError(
                f"process {state.world.rank} of {state.world.size} ran out of memory at step {state.step + 1}, and the "
                f"others cannot go on without it; what was saved is whole: continue with --resume {smaller}, or "
                "with --allow-changes and a smaller --train.micro_batch_size or --train.activation_checkpointing true"
            ) from None
    # After the except clauses, because only here has Python released the tensors of the failed step.
    if not_finite is not None:
        return recover_from_non_finite(state, not_finite), False
    return recover_from_out_of_memory(state)


def cannot_be_computed(error: Exception) -> bool:
    """Whether numbers of an update are too large: for a decomposition, or a rate beyond the largest number of fp32."""
    failed = isinstance(error, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
    return failed or "without overflow" in str(error)


def write(
    state: TrainState, records: Iterable[Record], track: Callable[[Record], None] | None = None
) -> Iterator[Record]:
    """Append records to metrics.jsonl, each with the run's progress at that moment, and pass them on.

    Only the main process writes. It tells `track` (None: the run's trackers) of each record.
    """
    track = track or state.track
    for record in records:
        stamp = {"step": state.step, "tokens": state.tokens, "flops": state.flops}
        stamped = {"kind": record["kind"], **stamp, "train_seconds": state.train_seconds, **record}
        if state.world.is_main:
            with named_if_not_finite(stamped, f"the record '{record['kind']}' after step {state.step}"):
                append_json_line(state.folder / "metrics.jsonl", stamped)
            track(stamped)
        yield stamped
