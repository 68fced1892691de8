"""The state of a run: its parts, everything that changes during training, and the steps that its budget allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanokimi.config import RunConfig, TrainConfig
from nanokimi.data.batches import Prefetched
from nanokimi.data.store import PreparedData
from nanokimi.kernels.accelerate import accelerate_, accelerate_optimizer_, choose_loss
from nanokimi.kernels.decode import decode_form
from nanokimi.kernels.structs import Choice
from nanokimi.measure.cost import model_cost, optimizer_flops
from nanokimi.measure.evaluate import Evaluation
from nanokimi.model.build import LanguageModel
from nanokimi.optim.build import build_optimizer
from nanokimi.optim.sharded import take_shards_
from nanokimi.runtime.device import keep_freed_memory
from nanokimi.runtime.parallel import ALONE, World, current, is_sharded
from nanokimi.train.sharding import device_of, shard_, sharers
from nanokimi.train.telemetry import Telemetry
from nanokimi.train.weights import initial_model, require_same_tokenizer

Record = dict[str, Any]

COPY_SEARCH_TOKENS = 1_000_000  # of the training text, in which a story's copied passages are looked for


def _never() -> bool:
    return False


def _untold(phase: str, done: int, amount: int) -> None:
    pass


def _untracked(record: Record) -> None:
    pass


@dataclass
class TrainState:
    """The parts of a run, and everything that changes during it."""

    config: RunConfig
    data: PreparedData
    batches: Prefetched
    folder: Path
    device: torch.device
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    scaler: torch.amp.GradScaler
    flops_per_token: float
    flops_per_step: float  # the optimizer's matrix products and QK-Clip's logits
    kernels: list[Choice] = field(default_factory=list)  # which fast implementations are used
    kernels_at_start: list[Choice] = field(default_factory=list)  # the same before torch.compile
    compiled: Callable[..., Any] | None = None  # the model as torch.compile made it
    compile_seconds: float = 0.0  # not part of train_seconds
    step: int = 0
    train_seconds: float = 0.0
    best_val_loss: float = math.inf
    best_step: int = 0
    micro_batch_size: int = 0  # sequences per forward pass; smaller than configured once memory ran out
    batches_skipped: int = 0  # their update was skipped or undone, because numbers were not finite
    skipped_in_a_row: int = 0
    peak_memory_bytes: int = 0  # of training steps, not of validation and samples
    telemetry: Telemetry = field(default_factory=Telemetry)
    last_evaluation: Evaluation | None = None
    evaluated: bool = False  # whatever was due at this step is in metrics.jsonl
    # True from the optimizer's step to the end of the update. If it is still True after an exception, parameters may be
    # half updated, and `recovery` goes back to a checkpoint instead of repeating the step.
    updating: bool = False
    # One of many runs of a study: no stories, no telemetry, one validation at the end.
    only_final_score: bool = False
    finished: bool = False  # the budget is spent and the last evaluation done
    stop_requested: bool = False  # set from outside: finish the step, save, return
    stop_waiting: Callable[[], bool] = _never  # polled during validations and samples: whether to stop
    # Told what the run is doing outside its training steps, how much of it is done and how much there is (0: unknown).
    tell: Callable[[str, int, int], None] = _untold
    # Given every record after it is in metrics.jsonl, and the result; see `tracking`.
    track: Callable[[Record], None] = _untracked
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    # With several processes (see `together`): the whole model, in the main one, and the step whose weights it has; and
    # what all agreed on in the last step: whether to stop and whether to save, because one of them wished it.
    world: World = ALONE
    shard: int = 1  # processes that share one copy of the weights
    copy_of_model: LanguageModel | None = None
    copied_step: int = -1
    stop_agreed: bool = False
    save_agreed: bool = False
    save_wished: bool = False

    @property
    def forward(self) -> Callable[..., Any]:
        """The forward pass of training: the model, or what torch.compile made of it."""
        return self.model if self.compiled is None else self.compiled

    @property
    def whole_model(self) -> LanguageModel:
        """The model that is evaluated and saved: the trained one, or the main process's whole copy of it."""
        return self.model if self.copy_of_model is None else self.copy_of_model

    @property
    def stopping(self) -> bool:
        """Whether to save and end now; with several processes, whether all of them agreed on it."""
        return self.should_stop if self.world.alone else self.stop_agreed

    @cached_property
    def training_text(self) -> str:
        """The beginning of the training text, in which to find what a story copied; of a mixture, that of each text."""
        sizes = [one["train_tokens"] for one in self.data.sources] or [len(self.data.train_ids)]
        most, ends = COPY_SEARCH_TOKENS // len(sizes), np.cumsum(sizes)
        pieces = [self.data.train_ids[end - n : end][:most] for n, end in zip(sizes, ends, strict=True)]
        return "".join(map(self.data.tokenizer.decode, pieces))

    @property
    def tokens(self) -> int:
        """Training tokens seen so far."""
        return self.step * self.config.train.batch_size * self.config.train.context_length

    @property
    def flops(self) -> float:
        """Training FLOPs spent so far, the optimizer's included."""
        return self.tokens * self.flops_per_token + self.step * self.flops_per_step

    @property
    def should_stop(self) -> bool:
        """Whether the run has been asked to save and end."""
        self.stop_requested = self.stop_requested or self.stop_waiting()
        return self.stop_requested


def build_state(config: RunConfig, data: PreparedData, folder: Path) -> TrainState:
    """A fresh run of a resolved configuration."""
    train, optim = config.train, config.family.optim
    torch.set_num_threads(train.threads or 1)
    world = current()
    device = device_of(train.device, world)
    keep_freed_memory(device)
    require_same_tokenizer(config, data, folder)
    model = initial_model(config, folder).to(device)
    model.activation_checkpointing = train.activation_checkpointing
    rows = world.share(train.batch_size)
    vocab_size = config.family.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    # As one process would choose: any number of them may continue the run, with the same implementations.
    logits = micro_batch(train, ALONE) * train.context_length * vocab_size
    loss, of_loss = choose_loss(logits, train.dtype)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    kernels = accelerate_(model, dtype=train.dtype)
    if not world.alone:
        shard_(model, train, device)
    optimizer, of_optimizer = accelerated_optimizer(config, model)
    kernels = [*kernels, *of_optimizer, of_loss]
    return TrainState(
        config=config,
        micro_batch_size=micro_batch(train, world),
        data=data,
        batches=Prefetched(
            data.train_ids, config.seed, train.batch_size, train.context_length, data.mixture, rows
        ),
        folder=folder,
        device=device,
        model=model,
        optimizer=optimizer,
        loss=loss,
        kernels=kernels,
        kernels_at_start=kernels,
        scaler=fresh_scaler(train.dtype, device),
        flops_per_token=model_cost(config.family.model, train.context_length).train_flops_per_token,
        flops_per_step=optimizer_flops(shapes, optim, config.family.model, train),
        world=world,
        shard=sharers(train, world),
    )


def micro_batch(train: TrainConfig, world: World, most: int | None = None) -> int:
    """Sequences per forward pass of each process: as configured, at most `most`, and dividing its part of the batch."""
    part, wanted = train.batch_size // world.size, train.micro_batch_size or train.batch_size
    return max(n for n in range(1, min(part, wanted, most or wanted) + 1) if part % n == 0)


def kernel_forms(state: TrainState) -> dict[str, str]:
    """Which implementation of each mechanism a run uses; with torch.compile, which it uses elsewhere."""
    choices = [*state.kernels_at_start, decode_form(state.whole_model)]
    return {choice.mechanism: choice.form for choice in choices}


def fresh_optimizer(config: RunConfig, model: LanguageModel) -> torch.optim.Optimizer:
    """The optimizer of a run that has not begun."""
    return accelerated_optimizer(config, model)[0]


def accelerated_optimizer(
    config: RunConfig, model: LanguageModel
) -> tuple[torch.optim.Optimizer, list[Choice]]:
    """The optimizer of a run that has not begun, and which fast implementations it uses."""
    optimizer = build_optimizer(model, config.family.optim, config.family.model.num_attention_heads)
    choices = accelerate_optimizer_(optimizer)
    if any(is_sharded(p) for p in model.parameters()):
        take_shards_(optimizer)
    return optimizer, choices


def fresh_scaler(dtype: str, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler that fp16 needs; for other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype == "fp16")


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
    assert train.max_seconds is not None, "validate() requires a budget"
    if state.train_seconds == 0:  # not only before the first step: one that is skipped takes no training time
        return 1e9  # speed unknown; the first step is warm-up anyway
    left = max(train.max_seconds - state.train_seconds, 0.0)
    return state.step + math.ceil(left / (state.train_seconds / state.step))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The random seed of a step, so that a resumed run needs no stored random state; another one in each process."""
    entropy = [seed, step, rank] if rank else [seed, step]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
