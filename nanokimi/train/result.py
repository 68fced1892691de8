"""What a run that has ended was worth: its last evaluations, its audit, its costs; result.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from nanokimi.data.parts import split_note
from nanokimi.data.store import PreparedData
from nanokimi.generation.story import story_ids
from nanokimi.measure.cost import model_cost
from nanokimi.measure.evaluate import Evaluation
from nanokimi.measure.floor import floors, text_floor
from nanokimi.measure.speed import generation_latency
from nanokimi.measure.spikes import spike_entries
from nanokimi.measure.story_world import judge_stories, recall, world_of
from nanokimi.optim.schedule import describe_schedule
from nanokimi.runtime.files import read_json_lines, write_json
from nanokimi.train.audits import audit_run
from nanokimi.train.evaluation import evaluate_test
from nanokimi.train.state import TrainState

MAX_TALE_TOKENS = 2000  # a tale of 400 words in characters
RESULT_FILE = "result.json"


def finish(state: TrainState, idle_memory_bytes: int, *, whole: bool = True) -> dict[str, Any]:
    """Audit and measure a trained model, and write the run's result.json.

    Without `whole` decoding is not timed, and tales are neither judged nor asked about.
    """
    train, optim = state.config.train, state.config.arm.optim
    assert state.last_evaluation is not None, "train() ends with a validation"
    scores = score_test(state)
    prefill, decode = generation_latency(state.model, train.context_length) if whole else (None, None)
    result = {
        "name": state.config.title,
        "seed": state.config.seed,
        "folder": state.folder.name,
        **figures_of_training(state),
        **state.last_evaluation.record(),
        **scores.record(),  # also the loss by position
        "spikes": spike_entries(read_json_lines(state.folder / "metrics.jsonl")),
        **floor_gaps(state.data, scores, train.context_length),
        "idle_memory_bytes": idle_memory_bytes,
        "optimizer_state_bytes": optimizer_bytes(state.optimizer),
        "prefill_ms": prefill and prefill.median_ms,
        "decode_ms_per_token": decode and decode.median_ms,
        "audit": asdict(audit_run(state.model, state.config, state.data)),
        "optimizer": optim.name,
        "schedule": describe_schedule(optim),
        "weight_decay": optim.weight_decay,
        "threads": train.threads,
        "split_note": split_note(state.data.metadata),
    }
    if whole and "val_floor_nats" in state.data.metadata:
        result["tales"] = know_the_world(state)
    write_json(state.folder / RESULT_FILE, result)
    return result


def figures_of_training(state: TrainState) -> dict[str, Any]:
    """Size, budget spent, speed and memory of a trained model: what is known without looking at it once more."""
    train = state.config.train
    cost = model_cost(state.config.arm.model, train.context_length)
    step_ms = [r["step_ms"] for r in read_json_lines(state.folder / "metrics.jsonl") if r["kind"] == "train"]
    return {
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "flops_per_token": cost.train_flops_per_token,
        "forward_flops_per_token": cost.forward_flops_per_token,
        "optimizer_flops_per_step": state.flops_per_step,
        "steps": state.step,
        "tokens": state.tokens,
        "train_seconds": state.train_seconds,
        "compile_seconds": state.compile_seconds or None,  # of the process that ended the run
        "tokens_per_second": steady_speed(step_ms) * train.batch_size * train.context_length,
        "ms_per_step": statistics.median(step_ms) if step_ms else 0.0,
        "first_step_ms": step_ms[0] if step_ms else 0.0,
        "best_val_loss": state.best_val_loss,
        "best_step": state.best_step,
        "batches_skipped": state.batches_skipped,
        "micro_batch_size": state.micro_batch_size,
        "peak_memory_bytes": state.peak_memory_bytes,
        "cache_bytes_per_token": cost.cache_numbers_per_token * 4,
        "cache_bytes_fixed": cost.cache_numbers_fixed * 4,
        "lr": state.config.arm.optim.lr,
        "device": train.device,
        "dtype": train.dtype,
    }


def score_test(state: TrainState, cancelled: Callable[[], bool] | None = None) -> Evaluation:
    """The whole test part's score; each window's is kept in the run's folder. Raises Cancelled."""
    scores = evaluate_test(state, cancelled)
    np.save(state.folder / "window_nats.npy", scores.window_nats)
    return scores


def floor_gaps(data: PreparedData, scores: Evaluation, context_length: int) -> dict[str, float | None]:
    """The floor, in nats per token, and how far a model stays above it, also in bits per byte; None where unknown.

    The gap is to the attainable floor: to the floor itself where documents do not fit into the context, which is then
    less than any model can be expected to reach.
    """
    part = scores.part
    floor, known = text_floor(data, context_length, part), floors(data, context_length, part)
    if floor is None or known["floor"] is None:
        return {**known, "floor_gap": None, "floor_gap_bits_per_byte": None}
    bits_per_byte = floor.nats / math.log(2) / data.metadata[f"{part}_text_bytes"]
    return {
        **known,
        "floor_gap": scores.val_loss - known["floor"],
        "floor_gap_bits_per_byte": scores.val_bits_per_byte - bits_per_byte,
    }


def know_the_world(state: TrainState) -> dict[str, Any]:
    """What the story world's parser and its questions say of a model trained on tales."""
    config, tokenizer = state.config, state.data.tokenizer

    def write(opening: str, number: int) -> str:
        again = replace(config, seed=config.seed + number)
        again = replace(again, sample=replace(config.sample, max_new_tokens=MAX_TALE_TOKENS))
        return tokenizer.decode(list(story_ids(state.model, tokenizer, opening, again)))

    world, sample = world_of(state.data.metadata["path"]), config.sample
    return {
        "judged": judge_stories(write, sample.judged_stories, world),
        "recall": recall(state.model, tokenizer, config.train.context_length, sample.questions, world),
    }


def steady_speed(step_ms: list[float]) -> float:
    """Steps per second after the first, which also loads kernels and allocates."""
    steady = step_ms[1:] or step_ms
    return len(steady) / sum(steady) * 1e3 if steady else 0.0


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer keeps between steps."""
    return sum(x.numel() * x.element_size() for x in tensors_in(dict(optimizer.state)))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a state: some optimizers keep lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)
