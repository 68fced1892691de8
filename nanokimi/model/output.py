"""What a model's forward pass returns, the same for every model."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Routing(NamedTuple):
    """What one mixture-of-experts layer did with the tokens of a forward pass."""

    counts_E: torch.Tensor  # tokens that chose each expert
    entropy: torch.Tensor  # mean over tokens of the entropy of the normalised scores, in nats
    balance_loss: torch.Tensor  # sequence-wise balance loss, not yet multiplied by its weight


class Output(NamedTuple):
    """Logits and statistics. They are returned rather than kept in a module, so recomputation cannot count twice."""

    logits_BTW: torch.Tensor
    aux_loss: torch.Tensor | None = None  # to be added to the training loss, never part of a reported loss
    routing: tuple[Routing, ...] = ()  # one per mixture-of-experts layer
    max_logits_LH: torch.Tensor | None = None  # largest attention logit of each head, if asked for
