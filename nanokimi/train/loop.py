"""THE TRAINING LOOP: build_state, train_step, train. Straight-line functions; everything happens in view, in order.

`train` is a generator of records, so that one loop serves `nanokimi train`, which runs it through, and
`nanokimi compare`, which takes a few steps of each model in turn. Clocks run only inside train_step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanokimi.config import RunConfig
from nanokimi.data.batches import sample_batch
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError
from nanokimi.generation.story import story_ids
from nanokimi.generation.story_scores import copied_share, distinct_ngrams, repetition
from nanokimi.measure.cost import model_cost, optimizer_flops
from nanokimi.measure.evaluate import Evaluation, evaluate
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.model.kimi import NanoKimi
from nanokimi.optim.groups import build_optimizer
from nanokimi.optim.qk_clip import MuonClip
from nanokimi.optim.schedule import lr_scale
from nanokimi.runtime.device import (
    DTYPES,
    fenced_seconds,
    memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)
from nanokimi.runtime.files import append_json_line, write_atomic
from nanokimi.train.checkpoint import save_checkpoint, save_weights
from nanokimi.train.telemetry import Telemetry

Record = dict[str, Any]

COPY_SEARCH_TOKENS = 1_000_000  # of the training text, searched for what a story copied


@dataclass
class TrainState:
    """Everything that changes during a run, and what it is made of."""

    config: RunConfig
    data: PreparedData
    folder: Path
    device: torch.device
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    flops_per_token: float
    flops_per_step: float  # the optimizer's matrix products and QK-Clip's logits
    step: int = 0
    train_seconds: float = 0.0
    best_val_loss: float = math.inf
    peak_memory_bytes: int = 0  # over training steps; validation and samples not counted
    telemetry: Telemetry = field(default_factory=Telemetry)
    last_evaluation: Evaluation | None = None
    resumed: bool = False  # what was due at this step was written before the checkpoint
    stop_requested: bool = False  # set from outside: finish the step, save, return

    @cached_property
    def training_text(self) -> str:
        """The beginning of the training text, in which to find what a story copied."""
        return self.data.tokenizer.decode(self.data.train_ids[:COPY_SEARCH_TOKENS])

    @property
    def tokens(self) -> int:
        """Training tokens seen so far."""
        return self.step * self.config.train.batch_size * self.config.train.context_length

    @property
    def flops(self) -> float:
        """Training FLOPs spent so far, the optimizer's included."""
        return self.tokens * self.flops_per_token + self.step * self.flops_per_step


def build_state(config: RunConfig, data: PreparedData, folder: Path) -> TrainState:
    """A fresh run of a resolved configuration."""
    train, optim = config.train, config.arm.optim
    torch.set_num_threads(train.threads or 1)
    device = torch.device(train.device)
    model = build_model(config.arm.model, config.seed).to(device)
    model.activation_checkpointing = train.activation_checkpointing
    heads = config.arm.model.num_attention_heads
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return TrainState(
        config=config,
        data=data,
        folder=folder,
        device=device,
        model=model,
        optimizer=build_optimizer(model, optim, heads),
        scaler=torch.amp.GradScaler(device.type, enabled=train.dtype == "fp16"),
        flops_per_token=model_cost(config.arm.model, train.context_length).train_flops_per_token,
        flops_per_step=optimizer_flops(shapes, optim, config.arm.model, train),
    )


def total_steps(state: TrainState) -> float:
    """Steps that the budget allows. A budget in seconds is turned into steps at the speed so far."""
    train = state.config.train
    tokens_per_step = train.batch_size * train.context_length
    if train.max_steps is not None:
        return train.max_steps
    if train.max_epochs is not None:
        return math.ceil(train.max_epochs * len(state.data.train_ids) / tokens_per_step)
    if train.max_tokens is not None:
        return math.ceil(train.max_tokens / tokens_per_step)
    if train.max_flops is not None:
        return math.ceil(train.max_flops / (tokens_per_step * state.flops_per_token + state.flops_per_step))
    assert train.max_seconds is not None, "validate() demands a budget"
    if state.step == 0:
        return 1e9  # speed unknown; the first step is warm-up anyway
    left = max(train.max_seconds - state.train_seconds, 0.0)
    return state.step + math.ceil(left / (state.train_seconds / state.step))


def train(state: TrainState) -> Iterator[Record]:
    """Train to the end of the budget, yielding each record after writing it to metrics.jsonl."""
    save_every = state.config.train.save_every
    while True:
        last = state.step >= total_steps(state)  # n + 1 turns, so that the end shares this code
        yield from write(state, look(state, last))
        if last or state.stop_requested or (state.step > 0 and state.step % save_every == 0):
            save_checkpoint(state)
        if last:
            save_weights(state.model, state.folder / "model.safetensors")
        if last or state.stop_requested:
            return
        yield from write(state, [train_step(state)])


def look(state: TrainState, last: bool) -> Iterator[Record]:
    """Whatever is due at this step: validation, stories, telemetry."""
    every, step = state.config.train, state.step
    telemetry_every = every.telemetry_every or max(every.eval_every // 10, 1)
    if state.resumed:  # all of it was written before the checkpoint
        state.resumed = False
        if last:
            evaluate_now(state)
        return
    if last or step % every.eval_every == 0:
        yield {"kind": "eval", **evaluate_now(state).record()}
    if last or step % (every.sample_every or every.eval_every) == 0:
        yield from sample_records(state)
    if last or step % telemetry_every == 0:
        yield from telemetry_records(state)


def write(state: TrainState, records: Iterable[Record]) -> Iterator[Record]:
    """Append records to metrics.jsonl, each with where the run stood, and pass them on."""
    for record in records:
        stamp = {"step": state.step, "tokens": state.tokens, "flops": state.flops}
        stamped = {"kind": record["kind"], **stamp, "train_seconds": state.train_seconds, **record}
        append_json_line(state.folder / "metrics.jsonl", stamped)
        yield stamped


def train_step(state: TrainState) -> Record:
    """One optimizer step over all micro-batches: forward, backward, clip, update, QK-Clip, router balance."""
    optim = state.config.arm.optim
    reset_peak_memory(state.device)
    start = fenced_seconds(state.device)
    torch.manual_seed(step_seed(state.config.seed, state.step))  # dropout is a function of (seed, step), too
    scale = lr_scale(state.step, total_steps(state), optim)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale

    mean_nll, mean_aux, outputs = forward_backward(state)
    if not math.isfinite(mean_nll + mean_aux):
        raise TrainingError(
            f"the loss at step {state.step + 1} is {mean_nll + mean_aux}: lower the learning rate"
        )
    state.scaler.unscale_(state.optimizer)
    limit = optim.grad_clip if optim.grad_clip is not None else math.inf
    grad_norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), limit))
    if not math.isfinite(grad_norm) and not state.scaler.is_enabled():
        raise TrainingError(f"the gradient at step {state.step + 1} is not finite: lower the learning rate")

    extra = {}
    if isinstance(state.optimizer, MuonClip):
        state.optimizer.heads_clipped = torch.zeros((), dtype=torch.int64)  # should the scaler skip this step
        extra["max_logits_LH"] = torch.stack([o.max_logits_LH for o in outputs]).amax(dim=0)
    state.scaler.step(state.optimizer, **extra)  # with fp16, skips the update if a gradient overflowed
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    balance_experts_(state.model, outputs, optim.router_bias_update_speed)

    seconds = fenced_seconds(state.device) - start
    state.step += 1
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


def forward_backward(state: TrainState) -> tuple[float, float, list[Any]]:
    """Accumulate gradients over the step's micro-batches.

    Returns the mean negative log-likelihood and the mean auxiliary loss, both in nats, and the outputs without
    their logits.
    """
    train = state.config.train
    want_max_logits = isinstance(state.optimizer, MuonClip)
    inputs_BT, targets_BT = training_batch(state)
    micro = train.micro_batch_size or train.batch_size
    passes = train.batch_size // micro
    total_nll, total_aux, outputs = (
        torch.zeros((), device=state.device),
        torch.zeros((), device=state.device),
        [],
    )
    for x_BT, y_BT in zip(inputs_BT.split(micro), targets_BT.split(micro), strict=True):
        with torch.autocast(state.device.type, dtype=DTYPES[train.dtype], enabled=train.dtype != "fp32"):
            output = state.model(x_BT, want_max_logits=want_max_logits)
        nll = F.cross_entropy(output.logits_BTW.float().flatten(0, 1), y_BT.flatten())
        loss = nll if output.aux_loss is None else nll + output.aux_loss
        state.scaler.scale(loss / passes).backward()
        total_nll += nll.detach()
        if output.aux_loss is not None:
            total_aux += output.aux_loss.detach()
        outputs.append(output._replace(logits_BTW=None, aux_loss=None))
    return float(total_nll) / passes, float(total_aux) / passes, outputs


def training_batch(state: TrainState) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of this step, (B, T) each, on the device."""
    train = state.config.train
    batch = sample_batch(
        state.data.train_ids,
        seed=state.config.seed,
        index=state.step,
        batch_size=train.batch_size,
        context_length=train.context_length,
    )
    inputs_BT, targets_BT = (torch.from_numpy(ids).to(state.device) for ids in batch)
    return inputs_BT, targets_BT


def balance_experts_(model: LanguageModel, outputs: list[Any], speed: float) -> None:
    """Nudge each router's bias by the whole step's load (all micro-batches together)."""
    if speed == 0 or not isinstance(model, NanoKimi):
        return
    for layer, router in enumerate(model.routers()):
        router.update_bias_(torch.stack([o.routing[layer].counts_E for o in outputs]).sum(dim=0), speed)


def step_seed(seed: int, step: int) -> int:
    """A seed of its own for each step, so that a resumed run needs no stored random state."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def evaluate_now(state: TrainState) -> Evaluation:
    """Score the model on the validation text and remember it."""
    train = state.config.train
    result = evaluate(state.model, state.data, train.context_length, train.eval_batch_size)
    if not math.isfinite(result.val_loss):
        raise TrainingError(
            f"the validation loss after step {state.step} is not finite: lower the learning rate"
        )
    state.last_evaluation = result
    state.best_val_loss = min(state.best_val_loss, result.val_loss)
    return result


def telemetry_records(state: TrainState) -> list[Record]:
    """Expert load and attention logits since the last such records.

    Without QK-Clip nothing needs the logits during training, so they are looked up for one batch, off the clock.
    """
    optim = state.config.arm.optim
    if optim.name != "muonclip" and state.step > 0:
        with torch.no_grad():
            inputs_BT = training_batch(state)[0][: state.config.train.micro_batch_size]
            state.telemetry.max_logits_LH = state.model(inputs_BT, want_max_logits=True).max_logits_LH
    return state.telemetry.drain(state.model, optim.qk_clip_tau if optim.name == "muonclip" else None)


def sample_records(state: TrainState) -> list[Record]:
    """A story from each prompt, with how much it repeats and copies."""
    tokenizer = state.data.tokenizer
    records: list[Record] = []
    for prompt in state.config.sample.prompts:
        ids = list(story_ids(state.model, tokenizer, prompt, state.config))
        text = tokenizer.decode(ids)
        scores = {"distinct_2": distinct_ngrams(text.split(), 2), "repetition": repetition(text)}
        copied = copied_share(text, state.training_text)
        records.append({"kind": "sample", "prompt": prompt, "text": text, **scores, "copied": copied})
    (state.folder / "samples").mkdir(exist_ok=True)
    stories = "\n\n----\n\n".join(record["prompt"] + record["text"] for record in records)
    write_atomic(state.folder / "samples" / f"step-{state.step:08d}.txt", stories + "\n")
    return records
