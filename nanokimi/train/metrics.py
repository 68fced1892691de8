"""THE METRICS: what is computed from a run that has ended, by its key in result.json.

To add one, define here how it is computed and in report/metrics.py, under the same key, how it is shown
(docs/experiments.md has the recipe). Losses and the scores derived from them come from measure/evaluate.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nanokimi.measure.cost import Cost, model_cost
from nanokimi.measure.evaluate import Evaluation
from nanokimi.measure.speed import Timing
from nanokimi.optim.schedule import describe_schedule
from nanokimi.runtime.files import read_json_lines
from nanokimi.train.state import TrainState


@dataclass(frozen=True)
class EndedRun:
    """A trained model and what is known of its training."""

    state: TrainState
    scores: Evaluation
    """Of the test part, or of the validation part while a study tunes, because then the test part must not be read."""
    cost: Cost
    step_ms: list[float]
    """Milliseconds of each training step."""
    idle_memory_bytes: int = 0
    prefill: Timing | None = None
    decode: Timing | None = None


def ended_run(state: TrainState, scores: Evaluation, **measured: Any) -> EndedRun:
    """An EndedRun from the state of a finished training. `measured` has the fields that take time to measure."""
    records = read_json_lines(state.folder / "metrics.jsonl")
    step_ms = [record["step_ms"] for record in records if record["kind"] == "train"]
    cost = model_cost(state.config.family.model, state.config.train.context_length)
    return EndedRun(state, scores, cost, step_ms, **measured)


METRICS: dict[str, Callable[[EndedRun], Any]] = {
    "params_total": lambda run: run.cost.params_total,
    "params_active": lambda run: run.cost.params_active,
    "flops_per_token": lambda run: run.cost.train_flops_per_token,
    "forward_flops_per_token": lambda run: run.cost.forward_flops_per_token,
    "optimizer_flops_per_step": lambda run: run.state.flops_per_step,
    "steps": lambda run: run.state.step,
    "tokens": lambda run: run.state.tokens,
    "train_seconds": lambda run: run.state.train_seconds,
    "compile_seconds": lambda run: run.state.compile_seconds or None,  # of the process that ended the run
    "tokens_per_second": lambda run: tokens_per_second(run),
    "ms_per_step": lambda run: statistics.median(run.step_ms) if run.step_ms else 0.0,
    "first_step_ms": lambda run: run.step_ms[0] if run.step_ms else 0.0,
    "best_val_loss": lambda run: run.state.best_val_loss,
    "best_step": lambda run: run.state.best_step,
    "batches_skipped": lambda run: run.state.batches_skipped,
    "micro_batch_size": lambda run: run.state.micro_batch_size,
    "peak_memory_bytes": lambda run: run.state.peak_memory_bytes,
    "idle_memory_bytes": lambda run: run.idle_memory_bytes,
    "optimizer_state_bytes": lambda run: optimizer_bytes(run.state.optimizer),
    "cache_bytes_per_token": lambda run: run.cost.cache_numbers_per_token * 4,
    "cache_bytes_fixed": lambda run: run.cost.cache_numbers_fixed * 4,
    "prefill_ms": lambda run: run.prefill and run.prefill.median_ms,
    "decode_ms_per_token": lambda run: run.decode and run.decode.median_ms,
    "optimizer": lambda run: run.state.config.family.optim.name,
    "lr": lambda run: run.state.config.family.optim.lr,
    "schedule": lambda run: describe_schedule(run.state.config.family.optim, run.state.step),
    "weight_decay": lambda run: run.state.config.family.optim.weight_decay,
    "device": lambda run: run.state.config.train.device,
    "dtype": lambda run: run.state.config.train.dtype,
    "threads": lambda run: run.state.config.train.threads,
}


def tokens_per_second(run: EndedRun) -> float:
    """Training speed without the first step, which also loads kernels and allocates memory."""
    steady, train = run.step_ms[1:] or run.step_ms, run.state.config.train
    return len(steady) / sum(steady) * 1e3 * train.batch_size * train.context_length if steady else 0.0


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer keeps between steps."""
    return sum(x.numel() * x.element_size() for x in tensors_in(dict(optimizer.state)))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of an optimizer's state; some optimizers keep lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)
