"""`look`: read a text with a model once, and keep what every token shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from nanokimi.errors import TrainingError, UserError
from nanokimi.generation.engine import Engine
from nanokimi.generation.text import TextSettings, requests_of, stream_pieces
from nanokimi.inside.cache import CacheUse, cache_use
from nanokimi.inside.pieces import Piece, Pieces
from nanokimi.inside.routing import Choices, ExpertLayer, joined, load_of, watched_routers
from nanokimi.inside.subject import Subject, blocks_of, reading, readings

ALTERNATIVES = 10
ROWS_AT_ONCE = 64
"""Positions whose logits are looked at together, so that a large vocabulary does not fill the memory."""


@dataclass(frozen=True)
class Alternative:
    """A token that the model could have read or written next."""

    id: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model expected at one position."""

    entropy: float
    """How unsure it was, in bits."""
    alternatives: tuple[Alternative, ...]
    """The likeliest tokens, the first the likeliest."""


@dataclass(frozen=True)
class Token:
    """One token of the text, and how it fitted what the model expected."""

    id: int
    piece: Piece
    written: bool
    """Whether the model wrote it; False in the prompt."""
    surprise: float | None
    """-log2 of its probability, in bits; None for the first token, which nothing predicts."""
    rank: int | None
    """1 if no token was likelier."""
    expected: Prediction | None
    """What was expected in its place."""


@dataclass(frozen=True)
class LayerExperts:
    """A layer with experts."""

    layer: int
    experts: int
    shared: int
    """Shared experts, which see every token beside those chosen."""
    choices: Choices | None
    """The experts of each token, as the router chose them; None if it does not tell."""
    load: np.ndarray | None
    """Each expert's share of this text's choices, (E,); 1 / E each is balanced."""

    def of(self, token: int) -> list[tuple[int, float]]:
        """The experts that took a token and what their outputs are multiplied by, the largest first."""
        if self.choices is None:
            return []
        rows = zip(self.choices.chosen_MK[token].tolist(), self.choices.gates_MK[token].tolist(), strict=True)
        return [(expert, gate) for expert, gate in rows if expert >= 0]


@dataclass(frozen=True)
class Look:
    """What a model shows while it reads a text."""

    name: str
    prompt: str
    text: str
    """The whole, prompt and what was written, without the end-of-text before it."""
    tokens: tuple[Token, ...]
    """All that the model read; where the training text is documents, end-of-text is the first."""
    next: Prediction
    """What the model expects after the last token."""
    layers: int | None
    """Layers of the model; None if its inside is unknown."""
    experts: tuple[LayerExperts, ...]
    """The layers that have experts; empty for a model without."""
    max_logits: np.ndarray | None
    """Each head's largest attention logit over this text, (layers, heads); None if the model does not tell."""
    tau: float | None
    """The largest logit that QK-Clip leaves alone; None: the model was trained without."""
    cache: CacheUse | None
    """What is kept of each token; None for a model that reads its text again for each token."""
    context_length: int
    unknown: tuple[str, ...]
    """What this model does not show, in words."""

    @property
    def ids(self) -> list[int]:
        """The ids of the text."""
        return [token.id for token in self.tokens]

    @property
    def bits(self) -> list[float]:
        """The surprise of each token that has one."""
        return [token.surprise for token in self.tokens if token.surprise is not None]

    @property
    def mean_bits(self) -> float | None:
        """Mean surprise in bits per token; None for a text of one token."""
        return sum(self.bits) / len(self.bits) if self.bits else None


def write_and_look(subject: Subject, prompt: str, settings: TextSettings) -> Look:
    """Let the model continue a prompt, as `nanokimi sample` does with the same settings, and look at the whole.

    Raises UserError for a prompt that is empty, cannot be encoded or is longer than the context.
    """
    request = requests_of(subject.tokenizer, [prompt], settings)[0]
    read = len(request.prompt_ids)
    if read > subject.context_length:
        raise UserError(
            f"the prompt has {read} tokens, and {subject.name} reads {subject.context_length} at once: shorten it"
        )
    engine = Engine(subject.model, context_length=subject.context_length)
    writing = engine.start(request)
    with closing(stream_pieces(engine, subject.tokenizer, [writing], settings.stop)) as pieces:
        for _ in pieces:
            pass
    return look(subject, [*request.prompt_ids, *writing.written], prompt_tokens=read)


def look(subject: Subject, ids: Sequence[int], *, prompt_tokens: int | None = None) -> Look:
    """Read a text, given as token ids, and keep what every token shows.

    Args:
        prompt_tokens: how many of the ids the model did not write itself; None: all.

    A text longer than the context is read in several windows (see `readings`). Raises UserError for no ids at all, and
    TrainingError for a model that has diverged.
    """
    ids = [int(token) for token in ids]
    if not ids:
        raise UserError("the prompt is empty: give at least one character to look at")
    prompt_tokens = len(ids) if prompt_tokens is None else prompt_tokens
    begin = int(ids[0] == subject.tokenizer.start_id)
    pieces = Pieces(subject.tokenizer)
    plan = readings(len(ids), subject.context_length)
    expected: list[Prediction] = []
    surprises: list[float] = []
    ranks: list[int] = []
    max_logits: list[torch.Tensor] = []
    with reading(subject.model) as device, watched_routers(subject.model) as routers:
        for one in plan:
            ids_BT = torch.tensor([ids[one.start : one.stop]], device=device)
            output = subject.model(ids_BT, want_max_logits=True)
            if output.max_logits_LH is not None:
                max_logits.append(output.max_logits_LH.float().cpu())
            logits_TW = output.logits_BTW[0, one.first - one.start :]
            following = torch.tensor(ids[one.first + 1 : one.stop + 1])
            for start in range(0, len(logits_TW), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                expected += predictions(logits_TW[rows], pieces)
                found = surprise_of(logits_TW[rows], following[rows])
                surprises += found[0]
                ranks += found[1]
    tokens = tuple(
        Token(
            id=token,
            piece=piece,
            written=place >= prompt_tokens,
            surprise=surprises[place - 1] if place else None,
            rank=ranks[place - 1] if place else None,
            expected=expected[place - 1] if place else None,
        )
        for place, (token, piece) in enumerate(zip(ids, pieces.of(ids), strict=True))
    )
    layers = [layer_experts(router, [slice(r.first - r.start, None) for r in plan]) for router in routers]
    return Look(
        name=subject.name,
        prompt=subject.tokenizer.decode(ids[begin:prompt_tokens]),
        text=subject.tokenizer.decode(ids[begin:]),
        tokens=tokens,
        next=expected[-1],
        layers=len(blocks_of(subject.model)) or None,
        experts=tuple(layers),
        max_logits=torch.stack(max_logits).amax(dim=0).numpy() if max_logits else None,
        tau=subject.tau,
        cache=cache_use(subject.model),
        context_length=subject.context_length,
        unknown=unknown_of(subject, layers, bool(max_logits)),
    )


def predictions(logits_TW: torch.Tensor, pieces: Pieces) -> list[Prediction]:
    """What each row of logits expects. Raises TrainingError if they are not finite."""
    log_shares = log_probabilities(logits_TW)
    entropy_T = -(log_shares.exp() * log_shares).sum(dim=-1) / math.log(2)
    top = log_shares.topk(min(ALTERNATIVES, log_shares.shape[-1]), dim=-1)
    return [
        Prediction(
            entropy,
            tuple(
                Alternative(token, pieces.label(token), math.exp(log_share))
                for token, log_share in zip(tokens, shares, strict=True)
            ),
        )
        for entropy, tokens, shares in zip(
            entropy_T.tolist(), top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]


def surprise_of(logits_TW: torch.Tensor, following: torch.Tensor) -> tuple[list[float], list[int]]:
    """The surprise, in bits, and the rank of each following token; the last row may have none after it."""
    log_shares = log_probabilities(logits_TW[: len(following)])
    own_T1 = log_shares.gather(1, following[:, None])
    ranks_T = (log_shares > own_T1).sum(dim=-1) + 1
    return (-own_T1[:, 0] / math.log(2)).tolist(), ranks_T.tolist()


def log_probabilities(logits_TW: torch.Tensor) -> torch.Tensor:
    """log softmax of each row, on the CPU in float64. Raises TrainingError if the logits are not finite."""
    logits_TW = logits_TW.float().cpu().double()  # in two steps: MPS has no float64
    if not logits_TW.isfinite().all():
        raise TrainingError("the model's logits are not finite: it has diverged, and there is nothing to see")
    return logits_TW.log_softmax(dim=-1)


def layer_experts(router: ExpertLayer, rows: list[slice]) -> LayerExperts:
    """A layer's choices for the whole text; `rows` are the new tokens of each pass."""
    choices = joined(router.passes, rows) if router.known else None
    load = None if choices is None else load_of(router, choices)
    return LayerExperts(router.layer, router.experts, router.shared, choices, load)


def unknown_of(subject: Subject, layers: Sequence[LayerExperts], logits_known: bool) -> tuple[str, ...]:
    """What a model does not show, in words."""
    said = []
    if not blocks_of(subject.model):
        said.append("It is a module of your own: its layers and experts cannot be seen.")
    said += [
        f"The router of layer {one.layer} does not tell its choices." for one in layers if one.choices is None
    ]
    if not logits_known:
        said.append("Its attention does not tell its largest logits.")
    if not getattr(subject.model, "can_cache", True):
        said.append("It has no cache: it reads its text again for each token.")
    return tuple(said)
