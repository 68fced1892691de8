"""Costs of a user's class, counted by running it, as its inside is unknown."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nanokimi.config import ModuleConfig
from nanokimi.errors import UserError
from nanokimi.model.user_module import UserModule, reason_of

_known: dict[tuple[str, int], tuple[int, int, float, float]] = {}


def module_cost(config: ModuleConfig, context_length: int) -> tuple[int, int, float, float]:
    """(total, active parameters, FLOPs per token forward, FLOPs per token forward and backward).

    All matrices but look-up tables count as active, because it is unknown whether some are experts that only a part of
    the tokens meets. FLOPs are those of torch's counter for one sequence of `context_length`, with all keys.
    """
    key = (repr(config), context_length)
    if key not in _known:
        _known[key] = _counted(UserModule(config), context_length)
    return _known[key]


def _counted(model: UserModule, context_length: int) -> tuple[int, int, float, float]:
    """The same, counted. Raises UserError if no gradient can be computed, as where the class cuts it off."""
    total = sum(p.numel() for p in model.parameters())
    products = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - products
    active = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in tables)
    ids_1T = torch.zeros(1, context_length, dtype=torch.long)
    with torch.random.fork_rng(devices=[]):
        with FlopCounterMode(display=False) as forward:
            logits_1TW = model(ids_1T).logits_BTW
        try:
            with FlopCounterMode(display=False) as backward:
                logits_1TW.float().sum().backward()
        except Exception as error:
            raise UserError(
                f"{model.config.source} cannot be trained: {type(error).__name__}: {reason_of(error)}"
            ) from None
    one = forward.get_total_flops() / context_length
    return total, active, one, one + backward.get_total_flops() / context_length
