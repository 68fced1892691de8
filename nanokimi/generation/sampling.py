"""From logits to a token: repetition penalty, temperature, top-k, top-p and min-p as pure functions, in this order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from nanokimi.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. `config.checks.require_sampling` says which values are possible."""

    temperature: float = 0.8
    """0: always the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens."""
    top_p: float | None = None
    """Draw among the fewest tokens that hold this much probability."""
    min_p: float | None = None
    """Draw among the tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that the prompt or the text already holds become less likely."""


def truncate_logits(
    logits_W: torch.Tensor, top_k: int | None, top_p: float | None, min_p: float | None = None
) -> torch.Tensor:
    """Keep the `top_k` likeliest tokens, then the fewest that have `top_p` in total, then those above `min_p`.

    The others become -inf. The likeliest token is always kept. (Nucleus sampling: arXiv 1904.09751; min-p: arXiv
    2407.01082, where a token needs `min_p` times the probability of the likeliest.)
    """
    if top_k is not None and top_k < logits_W.shape[-1]:
        threshold = logits_W.topk(top_k, dim=-1).values[..., -1:]
        logits_W = logits_W.masked_fill(logits_W < threshold, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = logits_W.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # The tokens before these have enough probability already.
        beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits_W = logits_W.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
    if min_p is not None and min_p > 0:
        probabilities = logits_W.softmax(dim=-1)
        too_rare = probabilities < min_p * probabilities.amax(dim=-1, keepdim=True)
        logits_W = logits_W.masked_fill(too_rare, float("-inf"))
    return logits_W


def penalize_repetition(logits_W: torch.Tensor, seen: Collection[int], penalty: float) -> torch.Tensor:
    """Divide the positive logits of the tokens in `seen` by the penalty, and multiply the negative ones by it.

    The rule of CTRL (arXiv 1909.05858, section 4.1) in the form that Hugging Face uses.
    """
    if penalty == 1 or not seen:
        return logits_W
    ids = torch.tensor(sorted(seen))
    logits = logits_W[ids]
    logits_W = logits_W.clone()
    logits_W[ids] = torch.where(logits < 0, logits * penalty, logits / penalty)
    return logits_W


def sample_token(
    logits_W: torch.Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seen: Collection[int] = (),
) -> int:
    """Draw one token id from the logits of one position. Temperature 0 takes the likeliest.

    `seen` are the ids that `repetition_penalty` is for. Computed on the CPU in float64, so that a seed gives the same
    token on every device.

    Raises TrainingError if the logits are not finite, as in a model that has diverged.
    """
    logits_W = logits_W.detach().cpu().double()  # in two steps: MPS has no float64
    if not logits_W.isfinite().all():
        raise TrainingError("the model's logits are not finite, so it cannot write: lower the learning rate")
    logits_W = penalize_repetition(logits_W, seen, repetition_penalty)
    if temperature == 0:
        return int(logits_W.argmax())
    probabilities = truncate_logits(logits_W / temperature, top_k, top_p, min_p).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
