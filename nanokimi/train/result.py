"""result.json, written at the end of a run: its last evaluations, its metrics and its audit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import numpy as np

from nanokimi.data.parts import split_note
from nanokimi.data.store import PreparedData
from nanokimi.generation.story import story_ids
from nanokimi.kernels.decode import decode_form
from nanokimi.measure.audit import AuditResult
from nanokimi.measure.evaluate import Evaluation
from nanokimi.measure.floor import floors, floors_by_source, text_floor
from nanokimi.measure.speed import generation_latency
from nanokimi.measure.spikes import spike_entries
from nanokimi.measure.story_world import judge_stories, recall, world_of
from nanokimi.runtime.c_compiler import why_not_compiled
from nanokimi.runtime.files import read_json_lines, write_json
from nanokimi.train.audits import audit_run, passes_of_run
from nanokimi.train.evaluation import evaluate_test
from nanokimi.train.finite import named_if_not_finite
from nanokimi.train.metrics import METRICS, ended_run
from nanokimi.train.state import TrainState

MAX_TALE_TOKENS = 2000  # a tale of 400 words in characters
RESULT_FILE = "result.json"


def finish(state: TrainState, idle_memory_bytes: int, *, measure_generation: bool = True) -> dict[str, Any]:
    """Audit and measure a trained model, and write the run's result.json.

    Without `measure_generation`, decoding is not timed, and a model of tales is not asked for stories or answers.
    """
    assert state.last_evaluation is not None, "train() ends with a validation"
    context_length = state.config.train.context_length
    scores = score_test(state)
    if measure_generation:
        state.tell("measuring speed", 0, 0)
    prefill, decode = (
        generation_latency(state.whole_model, context_length) if measure_generation else (None, None)
    )
    run = ended_run(state, scores, idle_memory_bytes=idle_memory_bytes, prefill=prefill, decode=decode)
    result = {
        "name": state.config.title,
        "seed": state.config.seed,
        "folder": state.folder.name,
        **state.last_evaluation.record(),
        **scores.record(),  # also the loss by position
        "tokens_by_position": scores.tokens_by_position,
        **floor_gaps(state.data, scores, context_length),
        **{key: measure(run) for key, measure in METRICS.items()},
        "spikes": spike_entries(read_json_lines(state.folder / "metrics.jsonl")),
        "audit": asdict(audited(state)),
        "split_note": split_note(state.data.metadata),
        "kernels": [choice._asdict() for choice in (*state.kernels, decode_form(state.whole_model))],
        "kernels_in_c_missing": why_not_compiled(),
    }
    for name, floor in floors_by_source(state.data).items():
        result["test_sources"][name]["floor"] = floor
    if measure_generation and "val_floor_nats" in state.data.metadata:
        result["tales"] = evaluate_tales(state)
    with named_if_not_finite(result, "the result of the run"):
        write_json(state.folder / RESULT_FILE, result)
    state.track({"kind": "result", "step": state.step, **result})
    return result


def audited(state: TrainState) -> AuditResult:
    """Audit the trained model, and tell how many of its planned forward passes are done.

    Those that repeat a small movement in float64 come on top, and cannot be known before.
    """
    done = count(1)
    passes = passes_of_run(state.whole_model, state.config, state.data)
    state.tell("auditing", 0, passes)
    hook = state.whole_model.register_forward_hook(
        lambda *_: state.tell("auditing", min(next(done), passes), passes)
    )
    try:
        return audit_run(state.whole_model, state.config, state.data)
    finally:
        hook.remove()


def score_test(state: TrainState, cancelled: Callable[[], bool] | None = None) -> Evaluation:
    """The score of the whole test part. The score of each window is kept in the run's folder. Raises Cancelled."""
    scores = evaluate_test(state, cancelled)
    np.save(state.folder / "window_nats.npy", scores.window_nats)
    return scores


def floor_gaps(data: PreparedData, scores: Evaluation, context_length: int) -> dict[str, float | None]:
    """The entropy floor in nats per token, and how far the model is above it, also in bits per byte; None if unknown.

    If every document fits into the context, the floor is attainable. Otherwise the gap is still measured from it,
    although no model can be expected to reach it.
    """
    part = scores.part
    floor, known = text_floor(data, context_length, part), floors(data, context_length, part)
    if floor is None or known["floor"] is None:
        return {**known, "floor_gap": None, "floor_gap_bits_per_byte": None}
    bits_per_byte = floor.nats / math.log(2) / data.metadata[f"{part}_text_bytes"]
    return {
        **known,
        "floor_gap": scores.loss - known["floor"],
        "floor_gap_bits_per_byte": scores.bits_per_byte - bits_per_byte,
    }


def evaluate_tales(state: TrainState) -> dict[str, Any]:
    """How the stories of a model trained on tales do before the story world's parser, and its answers to questions."""
    config, tokenizer = state.config, state.data.tokenizer

    def write(opening: str, number: int) -> str:
        state.tell("judging stories", number, config.sample.judged_stories)
        again = replace(config, seed=config.seed + number)
        again = replace(again, sample=replace(config.sample, max_new_tokens=MAX_TALE_TOKENS))
        return tokenizer.decode(list(story_ids(state.whole_model, tokenizer, opening, again)))

    world, sample = world_of(state.data.metadata), config.sample
    return {
        "judged": judge_stories(write, sample.judged_stories, world),
        "recall": recall(state.whole_model, tokenizer, config.train.context_length, sample.questions, world),
    }
