"""What happens between training steps and is not counted as training time: validation, stories, telemetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count

import torch

from nanokimi.data.batches import scored_windows
from nanokimi.errors import TrainingError
from nanokimi.generation.story import story_ids
from nanokimi.generation.story_scores import copied_share, distinct_ngrams, repetition
from nanokimi.measure.evaluate import Cancelled, Evaluation, evaluate, windows_at_a_time
from nanokimi.runtime.device import is_out_of_memory, release_memory
from nanokimi.runtime.files import write_atomic
from nanokimi.train.state import Record, TrainState, step_seed
from nanokimi.train.step import needs_logits, training_batch


def evaluate_and_sample(state: TrainState, last: bool) -> Iterator[Record]:
    """Whatever is due at this step: validation, stories, telemetry."""
    if state.evaluated:  # before the run was stopped and resumed
        if last:
            evaluate_now(state)
        return
    score, stories, telemetry = due(state, last)
    if score:
        yield {"kind": "eval", **evaluate_now(state).record()}
    if stories:
        yield from sample_records(state)
    if telemetry:
        yield from telemetry_records(state)


def due(state: TrainState, last: bool) -> tuple[bool, bool, bool]:
    """Whether a validation, stories and telemetry are due at this step."""
    train, step = state.config.train, state.step
    if state.only_final_score:
        return last, False, False
    intervals = (
        train.eval_every,
        train.sample_every or train.eval_every,
        train.telemetry_every or max(train.eval_every // 10, 1),
    )
    score, stories, telemetry = (last or step % every == 0 for every in intervals)
    return score, stories, telemetry


def anything_due(state: TrainState, last: bool) -> bool:
    """Whether `evaluate_and_sample` has anything to do at this step."""
    return last if state.evaluated else any(due(state, last))


def evaluate_now(state: TrainState) -> Evaluation:
    """Score the model on the validation text and remember it."""
    result = evaluate_in_memory(state, "val", cancelled=lambda: state.should_stop)
    if not math.isfinite(result.loss):
        raise TrainingError(
            f"the validation loss after step {state.step} is not finite: lower the learning rate"
        )
    state.last_evaluation = result
    if result.loss < state.best_val_loss:
        state.best_val_loss, state.best_step = result.loss, state.step
    return result


def evaluate_test(state: TrainState, cancelled: Callable[[], bool] | None = None) -> Evaluation:
    """Score a trained model on the test part, which nothing has read before."""
    result = evaluate_in_memory(state, "test", cancelled=cancelled)
    if not math.isfinite(result.loss):
        raise TrainingError("the test loss is not finite: lower the learning rate")
    return result


def evaluate_in_memory(
    state: TrainState, part: str, cancelled: Callable[[], bool] | None = None
) -> Evaluation:
    """Evaluate, with fewer windows at a time if memory runs out. The score does not depend on their number.

    Raises TrainingError if one window does not fit.
    """
    train = state.config.train
    windows = train.eval_batch_size or windows_at_a_time(train.context_length)
    while True:
        told = telling_batches(state, part, windows, cancelled)
        try:
            return evaluate(
                state.whole_model, state.data, train.context_length, windows, part=part, cancelled=told
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if windows == 1:
            raise TrainingError(
                f"out of memory after step {state.step} while scoring one window of {train.context_length} tokens: use "
                "a smaller model or a shorter train.context_length (what was saved before is whole)"
            )
        windows //= 2
        release_memory(state.device)


def telling_batches(
    state: TrainState, part: str, windows: int, cancelled: Callable[[], bool] | None
) -> Callable[[], bool]:
    """A `cancelled` for `evaluate`, which calls it before each batch, that also tells how many batches are done."""
    scored = state.data.scored(part)
    whole = scored_windows(len(scored.ids), scored.doc_offsets, state.config.train.context_length)
    batches, done = -(-len(whole.starts) // windows), count()
    phase = "evaluating" if part == "val" else "scoring the test text"

    def told() -> bool:
        state.tell(phase, next(done), batches)
        return cancelled is not None and cancelled()

    return told


def telemetry_records(state: TrainState) -> list[Record]:
    """Expert load and attention logits since the last such records.

    If training does not need the logits for QK-Clip, they are computed here for one batch.
    """
    optim = state.config.family.optim
    if not needs_logits(state.optimizer) and state.step > 0:
        torch.manual_seed(step_seed(state.config.seed, state.step))  # for dropout
        with torch.no_grad():
            inputs_BT = training_batch(state)[0][: state.micro_batch_size]
            state.telemetry.max_logits_LH = state.whole_model(inputs_BT, want_max_logits=True).max_logits_LH
    return state.telemetry.drain(state.whole_model, optim.qk_clip_tau if optim.clips else None)


def sample_records(state: TrainState) -> list[Record]:
    """A story from each prompt, with measures of how much it repeats itself and copies the training text."""
    tokenizer = state.data.tokenizer
    records: list[Record] = []
    sample, written = state.config.sample, count()
    prompts = sample.prompts or ()  # set_up has chosen some
    for prompt in prompts:
        ids = []
        for token in story_ids(state.whole_model, tokenizer, prompt, state.config):
            if state.should_stop:
                raise Cancelled
            ids.append(token)
            state.tell("writing samples", next(written), len(prompts) * sample.max_new_tokens)
        text = tokenizer.decode(ids)
        scores = {"distinct_2": distinct_ngrams(text.split(), 2), "repetition": repetition(text)}
        copied = copied_share(text, state.training_text)
        records.append({"kind": "sample", "prompt": prompt, "text": text, **scores, "copied": copied})
    (state.folder / "samples").mkdir(exist_ok=True)
    stories = "\n\n----\n\n".join(record["prompt"] + record["text"] for record in records)
    write_atomic(state.folder / "samples" / f"step-{state.step:08d}.txt", stories + "\n")
    return records
