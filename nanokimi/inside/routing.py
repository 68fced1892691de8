"""Which experts take each token: what the routers of a forward pass choose, taken with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from nanokimi.inside.subject import Block, blocks_of
from nanokimi.model.variants.experts import ExpertChoice, SoftExperts

NOBODY = -1
"""The expert in an unused column."""


@dataclass(frozen=True)
class Choices:
    """What one layer's router did with some tokens."""

    chosen_MK: np.ndarray
    """The experts of each token, the one with the largest gate first; NOBODY where there are fewer."""
    gates_MK: np.ndarray
    """What each expert's output is multiplied by; 0 where there is none."""


@dataclass
class ExpertLayer:
    """A layer with experts, and its choices in each pass while it is watched."""

    layer: int
    experts: int
    shared: int
    """Shared experts, which see every token."""
    weighed: bool = False
    """Whether every expert takes every token, so that its load is the sum of its gates."""
    passes: list[Choices] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether its choices were seen."""
        return bool(self.passes)


def has_router(block: Block) -> bool:
    """Whether a layer has experts."""
    return isinstance(getattr(block.feed_forward, "gate", None), nn.Module)


def shared_experts_of(model: nn.Module, feed_forward: Any) -> int:
    """How many experts of a layer see every token."""
    there = getattr(feed_forward, "shared_experts", None) is not None
    return int(getattr(model.config, "n_shared_experts", 1)) if there else 0


@contextmanager
def watched_routers(model: nn.Module) -> Iterator[list[ExpertLayer]]:
    """The layers with experts. While the block runs, each forward pass adds its choices to them."""
    watched = []
    with ExitStack() as stack:
        for layer, block in enumerate(blocks_of(model)):
            if not has_router(block):
                continue
            part: Any = block.feed_forward
            experts = int(getattr(model.config, "n_routed_experts", 0))
            found = ExpertLayer(layer, experts, shared_experts_of(model, part))
            watched.append(found)
            stack.enter_context(_watch(part, found))
        yield watched


@contextmanager
def _watch(part: Any, found: ExpertLayer) -> Iterator[None]:
    """Add the choices of one layer's passes to `found`."""
    if isinstance(part, SoftExperts):
        found.weighed = True
        with _replaced(part.gate, "shares", lambda _, shares_ME: _soft(shares_ME, part.gate.scaling, found)):
            yield
    elif isinstance(part, ExpertChoice):
        with _replaced(part, "choose", lambda shares_ME, taken: _taken(len(shares_ME), taken, part, found)):
            yield
    else:
        hook = part.gate.register_forward_hook(lambda _module, _inputs, output: _of_router(output, found))
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _replaced(owner: Any, name: str, see: Callable[[Any, Any], None]) -> Iterator[None]:
    """While the block runs, `see` what a method of `owner` is given and returns."""
    method = getattr(owner, name)

    def seen(argument: Any) -> Any:
        result = method(argument)
        see(argument, result)
        return result

    setattr(owner, name, seen)
    try:
        yield
    finally:
        delattr(owner, name)


def _of_router(output: Any, found: ExpertLayer) -> None:
    """The choices of a router that returns experts (M, K) and gates (M, K); nothing for one that does not."""
    if not isinstance(output, tuple) or len(output) < 2:
        return
    chosen, gates = output[:2]
    if not isinstance(chosen, torch.Tensor) or not isinstance(gates, torch.Tensor):
        return
    if chosen.dim() == 2 and chosen.shape == gates.shape and not chosen.is_floating_point():
        found.passes.append(_sorted(chosen.cpu().numpy(), gates.float().cpu().numpy()))


def _soft(shares_ME: torch.Tensor, scaling: float, found: ExpertLayer) -> None:
    """Every expert takes every token."""
    gates = (shares_ME * scaling).float().cpu().numpy()
    found.passes.append(_sorted(np.broadcast_to(np.arange(gates.shape[1]), gates.shape), gates))


def _taken(
    tokens: int, taken: tuple[torch.Tensor, torch.Tensor], part: ExpertChoice, found: ExpertLayer
) -> None:
    """Each expert has taken its tokens."""
    gates_EC, taken_EC = (x.cpu() for x in taken)
    experts = len(taken_EC)
    gates_EM = torch.zeros(experts, tokens).scatter_(1, taken_EC, gates_EC.float() * part.gate.scaling)
    took_EM = torch.zeros(experts, tokens, dtype=torch.bool).scatter_(1, taken_EC, True)
    chosen_ME = np.where(took_EM.t().numpy(), np.arange(experts), NOBODY)
    found.passes.append(_sorted(chosen_ME, gates_EM.t().numpy()))


def _sorted(chosen_MK: np.ndarray, gates_MK: np.ndarray) -> Choices:
    """Choices in the order of their gates, unused columns last."""
    order = np.argsort(np.where(chosen_MK == NOBODY, np.inf, -gates_MK), axis=1, kind="stable")
    return Choices(np.take_along_axis(chosen_MK, order, 1), np.take_along_axis(gates_MK, order, 1))


def joined(passes: list[Choices], rows: list[slice]) -> Choices:
    """Some rows of each pass as the choices of one text."""
    width = max(one.chosen_MK.shape[1] for one in passes)
    pad = [((0, 0), (0, width - one.chosen_MK.shape[1])) for one in passes]
    return Choices(
        np.concatenate(
            [
                np.pad(one.chosen_MK[row], p, constant_values=NOBODY)
                for one, row, p in zip(passes, rows, pad, strict=True)
            ]
        ),
        np.concatenate([np.pad(one.gates_MK[row], p) for one, row, p in zip(passes, rows, pad, strict=True)]),
    )


def load_of(layer: ExpertLayer, choices: Choices) -> np.ndarray:
    """Each expert's share of a layer's choices, (E,), summing to 1."""
    used = choices.chosen_MK != NOBODY
    weights = choices.gates_MK[used].astype(float) if layer.weighed else None
    counts_E = np.bincount(choices.chosen_MK[used], weights=weights, minlength=layer.experts)
    return np.asarray(counts_E / counts_E.sum())
