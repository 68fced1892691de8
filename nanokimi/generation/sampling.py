"""From logits to a token: temperature, top-k and top-p as pure functions."""

from __future__ import annotations

import torch

from nanokimi.errors import TrainingError


def truncate_logits(logits_W: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Keep the `top_k` likeliest tokens, then the fewest that have `top_p` in total, and set the others to -inf.

    The likeliest token is always kept (nucleus sampling: arXiv 1904.09751).
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
    return logits_W


def sample_token(
    logits_W: torch.Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """Draw one token id from the logits of one position. Temperature 0 takes the likeliest.

    Computed on the CPU in float64, so that a seed gives the same token on every device.

    Raises TrainingError if the logits are not finite, as in a model that has diverged.
    """
    logits_W = logits_W.detach().cpu().double()  # in two steps: MPS has no float64
    if not logits_W.isfinite().all():
        raise TrainingError("the model's logits are not finite, so it cannot write: lower the learning rate")
    if temperature == 0:
        return int(logits_W.argmax())
    probabilities = truncate_logits(logits_W / temperature, top_k, top_p).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
