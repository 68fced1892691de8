"""THE TRAINING LOOP: evaluate, save, step, until the budget is spent. See `step` and `evaluation`.

`train` is a generator of records, so that one loop serves `nanokimi train`, which runs it through, and
`nanokimi compare`, which takes a few steps of each model in turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from nanokimi.measure.evaluate import Cancelled
from nanokimi.runtime.device import is_out_of_memory
from nanokimi.runtime.files import append_json_line
from nanokimi.train.checkpoint import save_checkpoint, save_weights
from nanokimi.train.evaluation import evaluate_and_sample
from nanokimi.train.recovery import recover_from_non_finite, recover_from_out_of_memory
from nanokimi.train.state import Record, TrainState, total_steps
from nanokimi.train.step import NotFinite, train_step
from nanokimi.train.torch_compile import compile_step

LOSS_AT_MOST = (0.05, 60.0)  # without save_every: of the run, in steps; of the clock, in seconds


def train(state: TrainState) -> Iterator[Record]:
    """Train to the end of the budget, yielding each record after writing it to metrics.jsonl."""
    while True:
        last = state.step >= total_steps(state)  # n + 1 turns, so that the end shares this code
        yield from evaluate_unless_stopped(state, last)
        state.finished = last and state.evaluated
        if state.finished or state.should_stop or due_for_saving(state):
            save_checkpoint(state)
        if state.finished:
            save_weights(state.model, state.folder / "model.safetensors")
        if state.finished or state.should_stop:
            return
        yield from write(state, step_and_recover(state))


def evaluate_unless_stopped(state: TrainState, last: bool) -> Iterator[Record]:
    """Evaluate if it is due; an evaluation that a request to stop cuts short is undone, to be repeated."""
    metrics = state.folder / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    telemetry, best = state.telemetry.state(), (state.best_val_loss, state.best_step)
    try:
        yield from write(state, evaluate_and_sample(state, last))
        state.evaluated = True
    except Cancelled:
        if metrics.exists():
            os.truncate(metrics, size)
        state.telemetry.load(telemetry, state.model)
        state.best_val_loss, state.best_step = best


def due_for_saving(state: TrainState) -> bool:
    """Whether to save now: every `save_every` steps, or so often that little is lost; and at each new best."""
    if state.step == 0 or state.step == state.saved_step:
        return False
    if state.best_step == state.step:
        return True
    every = state.config.train.save_every
    if every is not None:
        return state.step % every == 0
    part, seconds = LOSS_AT_MOST
    unsaved = state.step - max(state.saved_step, 0)
    waited = time.monotonic() - state.saved_at
    return unsaved >= max(int(part * total_steps(state)), 1) or waited * (1 + 1 / unsaved) > seconds


def step_and_recover(state: TrainState) -> Iterator[Record]:
    """One training step; and a record of kind "event" for whatever had to be survived on the way.

    With `train.compile` it is compiled before, and anew after what torch.compile has seen has changed.
    """
    while True:
        record, broken = None, None
        compiling = state.config.train.compile and state.compiled is None
        if compiling:
            yield {"kind": "compiling"}
        try:
            record = compile_step(state) if compiling else train_step(state)
        except NotFinite as error:
            broken = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only out here has Python let go of the failed step's tensors.
        if record is not None:
            yield record
            if compiling:
                continue
            return
        if broken is not None:
            yield recover_from_non_finite(state, broken)
            return
        event, again = recover_from_out_of_memory(state)
        yield event
        if not again:
            return


def write(state: TrainState, records: Iterable[Record]) -> Iterator[Record]:
    """Append records to metrics.jsonl, each with where the run stood, and pass them on."""
    for record in records:
        stamp = {"step": state.step, "tokens": state.tokens, "flops": state.flops}
        stamped = {"kind": record["kind"], **stamp, "train_seconds": state.train_seconds, **record}
        append_json_line(state.folder / "metrics.jsonl", stamped)
        yield stamped
