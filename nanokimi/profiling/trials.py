"""The parts of a run, tried briefly: a piece of the validation, of a story, of the audit, and the first few steps.

Each function times what the run itself will call and says what all of it would take.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from nanokimi.config import RunConfig
from nanokimi.generation.story import story_ids
from nanokimi.generation.story_scores import copied_share
from nanokimi.measure.audit import audit_passes, movement
from nanokimi.measure.audit_calls import Mode, Subject, default_call, random_states_kept
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.measure.audit_plan import EVALUATION, TRAINING
from nanokimi.measure.evaluate import TOKENS_AT_A_TIME, evaluate
from nanokimi.measure.story_world import recall, world_of
from nanokimi.model.cache import Cache
from nanokimi.runtime.device import fenced_seconds, peak_memory_bytes, reset_peak_memory
from nanokimi.train.loop import LOSS_AT_MOST, write
from nanokimi.train.result import MAX_TALE_TOKENS
from nanokimi.train.state import TrainState, total_steps
from nanokimi.train.step import train_step

WARM_UP_STEPS = 2  # slower than the rest: buffers are allocated and kernels chosen
MIN_STEPS, STEP_SECONDS = 3, 4.0  # steps that are timed: at least so many, and for so long
PART_SECONDS = 1.5  # a validation and a story are timed for about so long
QUESTIONS_TRIED = 4
LATENCY_PREFILLS, LATENCY_DECODES = 24, 53  # calls of generation_latency()
MAPPED_BYTES = 65536  # Linux maps so much of a file around each address that is read


def how_often(config: RunConfig, steps: int, seconds_each: float) -> dict[str, int]:
    """How often the loop does what does not belong to a step: when it is due, and after the last step.

    Every validation is taken for a new best, which is saved.
    """
    train = config.train
    part, minute = LOSS_AT_MOST
    save_every = train.save_every or max(1, min(int(part * steps), int(minute / seconds_each)))

    def due(every: int) -> int:
        return math.ceil(steps / every)

    return {
        "validations": 1 + due(train.eval_every),
        "stories": len(config.sample.prompts) * (1 + due(train.sample_every or train.eval_every)),
        "records": due(train.telemetry_every or max(train.eval_every // 10, 1)),
        "checkpoints": len(
            {*range(save_every, steps, save_every), *range(train.eval_every, steps, train.eval_every)}
        )
        + 1,  # none before the first step
    }


def timed(state: TrainState, call: Callable[[], object]) -> float:
    """Seconds that `call` takes."""
    start = fenced_seconds(state.device)
    call()
    return fenced_seconds(state.device) - start


@dataclass(frozen=True)
class ValidationTrial:
    """What validations take."""

    seconds: float  # of the whole validation text
    memory_bytes: int
    line_bytes: int  # in metrics.jsonl


def try_validation(state: TrainState) -> ValidationTrial:
    """Score the first windows of the validation text."""
    train, ids = state.config.train, state.data.val_ids
    batch_tokens = train.context_length * (
        train.eval_batch_size or max(TOKENS_AT_A_TIME // train.context_length, 1)
    )

    def score(batches: int) -> float:
        tokens = min(batches * batch_tokens, len(ids))
        ends = np.unique(np.minimum(state.data.val_doc_offsets, tokens))  # the last document is cut
        part = replace(state.data, val_ids=ids[:tokens], val_doc_offsets=ends)
        return timed(
            state, lambda: evaluate(state.model, part, train.context_length, train.eval_batch_size).record()
        )

    reset_peak_memory(state.device)
    batches = max(int(PART_SECONDS / score(1)), 1)
    seconds = score(batches)
    share = min(batches * batch_tokens, len(ids)) / len(ids)
    return ValidationTrial(seconds / share, peak_memory_bytes(state.device), 200 + 20 * train.context_length)


@dataclass(frozen=True)
class StoryTrial:
    """What stories take."""

    reading: float  # seconds to decode the text in which copies are looked for, once
    seconds: float  # one story of a trained model
    token: float  # seconds for one more token


def try_story(state: TrainState) -> StoryTrial:
    """Write the beginning of a story, and look for copies in a piece of validation text instead of it.

    That is how a good model writes; in an untrained one's gibberish, what is not copied is found out sooner.
    """
    reading = timed(state, lambda: state.training_text)
    length = story_tokens(state, state.config.sample.max_new_tokens)
    first, token = begin_story(state)
    piece = state.data.val_ids[: min(int(length) + 1, 100)]
    text = state.data.tokenizer.decode(piece)
    searching = timed(state, lambda: copied_share(text, state.training_text)) * length / len(piece)
    return StoryTrial(reading, first + (length - 1) * token + searching, token)


def begin_story(state: TrainState) -> tuple[float, float]:
    """Seconds of a story's first token, prompt included, and of one more."""
    ids = story_ids(state.model, state.data.tokenizer, state.config.sample.prompts[0], state.config)
    first = timed(state, lambda: next(ids, None))
    start, written = fenced_seconds(state.device), 0
    while fenced_seconds(state.device) - start < PART_SECONDS and next(ids, None) is not None:
        written += 1
    return first, (fenced_seconds(state.device) - start) / written if written else first


def story_tokens(state: TrainState, limit: int) -> float:
    """Tokens that a trained model writes: up to `limit`, or a document of the usual length."""
    documents = state.data.metadata.get("val_documents")
    return min(limit, len(state.data.val_ids) / documents) if documents else limit


@dataclass(frozen=True)
class StepsTrial:
    """What training takes, and how many steps it has."""

    total: int  # of the budget
    measured: int
    each: float  # seconds of one after the warm-up
    seconds: float  # of all
    overhead: float  # seconds between two steps
    line_bytes: int  # in metrics.jsonl


def try_steps(state: TrainState) -> StepsTrial:
    """Take the first steps of the run, at most as many as it has."""
    seconds: list[float] = []
    start = fenced_seconds(state.device)
    while state.step < total_steps(state):
        if len(seconds) >= WARM_UP_STEPS + MIN_STEPS and sum(seconds[WARM_UP_STEPS:]) >= STEP_SECONDS:
            break
        seconds += [record["step_ms"] / 1e3 for record in write(state, [train_step(state)])]
    wall = fenced_seconds(state.device) - start
    warm_up = min(WARM_UP_STEPS, len(seconds) - 1)
    steady = seconds[warm_up:]
    each = statistics.fmean(steady)  # what disturbs a step now and then is part of the whole
    limit = state.config.train.max_seconds
    total = int(total_steps(state))
    if limit is not None:
        total = len(seconds) + math.ceil(max(limit - sum(seconds), 0.0) / each)
    return StepsTrial(
        total=total,
        measured=len(steady),
        each=each,
        seconds=sum(seconds[:warm_up]) + (total - warm_up) * each,
        overhead=(wall - sum(seconds)) / len(seconds),
        line_bytes=(state.folder / "metrics.jsonl").stat().st_size // len(seconds),
    )


def audit_seconds(state: TrainState) -> float:
    """Seconds of the audit: two shapes of its passes are timed, the others taken to lie on the line through them."""
    train, vocab_size = state.config.train, state.config.arm.model.vocab_size
    assert vocab_size is not None
    windows = windows_of(state.data.val_ids, train.context_length)
    passes = audit_passes(state.model, vocab_size, train.context_length, train.eval_batch_size, windows)
    subject = Subject(state.model, default_call(state.model), state.config.seed)

    def seconds_of(shape: tuple[int, int], mode: Mode) -> float:
        ids_BT = torch.randint(vocab_size, shape)
        base_BTW = subject.logits(ids_BT, mode)
        start = fenced_seconds(state.device)
        movement(subject.logits(ids_BT, mode), base_BTW)
        return fenced_seconds(state.device) - start

    with random_states_kept(state.device):
        few, many = ((2, 2), passes[0])
        least, most = (
            sum(seconds_of(shape, mode) for mode in (EVALUATION, TRAINING)) / 2 for shape in (few, many)
        )
    small, large = math.prod(few), math.prod(many)
    each = max(most - least, 0.0) / max(large - small, 1)
    return sum(least + each * (rows * length - small) for rows, length in passes)


@torch.inference_mode()
def measuring_seconds(state: TrainState, story: StoryTrial) -> float:
    """Seconds of generation_latency() and, with tales, of the questions and the judged stories."""
    sample, context = state.config.sample, state.config.train.context_length
    prompt_1T = torch.zeros(1, max(context // 2, 1), dtype=torch.long, device=state.device)
    layers = state.config.arm.model.num_hidden_layers
    state.model.eval()
    prefill = min(timed(state, lambda: state.model(prompt_1T, Cache(layers, context))) for _ in range(3))
    state.model.train()
    seconds = LATENCY_PREFILLS * prefill + LATENCY_DECODES * story.token
    if "val_floor_nats" in state.data.metadata:
        few = min(QUESTIONS_TRIED, sample.questions)
        world, tokenizer = world_of(state.data.metadata["path"]), state.data.tokenizer
        asked = timed(state, lambda: recall(state.model, tokenizer, context, few, world)) if few else 0.0
        seconds += asked * sample.questions / max(few, 1)
        seconds += sample.judged_stories * story_tokens(state, MAX_TALE_TOKENS) * story.token
    return seconds


def mapped_later(state: TrainState, steps: int) -> int:
    """Bytes of the tokens' files that a whole run maps into the process beyond what the steps tried have mapped.

    Each window that is drawn maps the pages around it; validation and test read all of their files.
    """
    size, batch = state.data.train_ids.nbytes, state.config.train.batch_size

    def mapped(steps: int) -> float:
        return size * -math.expm1(-steps * batch * MAPPED_BYTES / size)

    return int(mapped(steps) - mapped(state.step)) + state.data.val_ids.nbytes + state.data.test_ids.nbytes
