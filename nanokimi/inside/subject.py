"""What is looked at: a model with its tokenizer, and, of a run, its text and its threshold of QK-Clip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from nanokimi.data.store import PreparedData
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import UserError
from nanokimi.inside.pieces import visible
from nanokimi.model.build import LanguageModel
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.variants.variant import Variant
from nanokimi.train.run_folder import Run


@dataclass(frozen=True)
class Subject:
    """A model that can be looked into."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    context_length: int
    """Tokens that it reads at once."""
    tau: float | None = None
    """The largest logit that QK-Clip left alone; None: it was trained without."""
    data: PreparedData | None = None
    """The text that it was trained on, for the experts' favourite tokens."""


def subject_of(run: Run) -> Subject:
    """The model of an opened run."""
    optim = run.config.family.optim
    return Subject(
        name=visible(run.config.title, spaces=False),
        model=run.model,
        tokenizer=run.data.tokenizer,
        context_length=run.config.train.context_length,
        tau=optim.qk_clip_tau if optim.clips else None,
        data=run.data,
    )


def require_layer(layer: int, layers: int, what: str = "layer") -> None:
    """Raises UserError if there is no such layer (or head); they are counted from 0."""
    if not 0 <= layer < layers:
        have = f"the model has {what} 0 only" if layers == 1 else f"the model has {what}s 0 to {layers - 1}"
        raise UserError(f"there is no {what} {layer}: {have if layers else f'the model shows no {what}s'}")


class Block(NamedTuple):
    """The two parts of a layer."""

    attention: nn.Module
    feed_forward: nn.Module


def blocks_of(model: nn.Module) -> list[Block]:
    """The layers of a model; empty for a user's whole module, whose inside is unknown."""
    if isinstance(model, NanoGPT):
        return [Block(cast(Any, block).attn, cast(Any, block).mlp) for block in model.transformer.h]
    if isinstance(model, NanoKimi | Variant):
        return [Block(cast(Any, block).self_attn, cast(Any, block).mlp) for block in model.model.layers]
    return []


@contextmanager
def reading(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode, without gradients; yields its device and restores the mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


class Reading(NamedTuple):
    """One forward pass: it reads the tokens from `start` to `stop`, of which those from `first` on are new."""

    start: int
    first: int
    stop: int


def readings(tokens: int, context_length: int) -> list[Reading]:
    """The passes in which a text is read, each token new in one of them.

    A text that fits is read at once. Of a longer one, whenever the context is full, the newer half is kept and read on,
    as `generation.engine` does, so that a model is as surprised by its own text as it was when it wrote it.
    """
    found = [Reading(0, 0, min(tokens, context_length))]
    while found[-1].stop < tokens:
        stop = found[-1].stop
        start = stop + 1 - max(context_length // 2, 1)
        found.append(Reading(start, stop, min(tokens, start + context_length)))
    return found
