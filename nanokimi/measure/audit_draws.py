"""Constants in place of torch's random numbers, to tell a leak from random numbers that are dealt out otherwise.

Dropout inside an expert draws a number for each token that the expert gets. If later tokens go elsewhere, earlier ones
get other numbers of the same kind: their logits move, and tell nothing. With constants they stay; a leak still moves.
Where as many numbers are drawn as before, none was dealt otherwise, and a movement is a leak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanokimi.measure.audit_inputs import GOLDEN

LEVELS = (0.02, 0.5, 0.98)
"""What a draw between 0 and 1 becomes; others become what they would be then."""


def level_of(number: int) -> float:
    """The level for an input, from 0.01 to 0.99; those of many inputs lie close together everywhere."""
    return 0.01 + 0.98 * (number * GOLDEN % 1)


class Draws(TorchDispatchMode):
    """Notes torch's random numbers; with a level, replaces them by those at this level of their distribution."""

    def __init__(self, level: float | None = None) -> None:
        super().__init__()
        self.level = level
        self.drawn: list[tuple[int, ...]] = []
        """How many numbers each operation drew, as a shape."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would wrap the function below for its compiler, whose import takes seconds and 70 MB."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation of the module."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        with self:  # in inference_mode, operations made of others, such as dropout, come whole
            found = func.decompose(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        found = func(*args, **(kwargs or {}))
        self.drawn.append(tuple(found[0].shape if isinstance(found, tuple) else found.shape))
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        put = PUT.get(func.overloadpacket.__name__.removesuffix("_"))
        return found if put is None or self.level is None else put(self.level, found, named | (kwargs or {}))

    @contextmanager
    def context(self) -> Iterator[None]:
        """Note or replace those of the calls inside."""
        with self:
            yield


def uniform(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """Of torch.rand, and of uniform_ between two bounds."""
    low, high = named.get("from", 0.0), named.get("to", 1.0)
    return found.fill_(low + level * (high - low))


def normal(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """Of torch.randn, and of torch.normal with means and deviations, which may be tensors."""
    return (
        found.zero_().add_(named.get("mean", 0.0)).add_(NormalDist().inv_cdf(level) * named.get("std", 1.0))
    )


def bernoulli(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """Ones where the probability is above the level. Without `p`, the probabilities are the tensor itself."""
    chance = named["p"] if "p" in named else named["self"]
    return found.copy_(torch.as_tensor(level < chance))


def native_dropout(
    level: float, found: tuple[torch.Tensor, torch.Tensor], named: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dropout as one operation: its result and its mask."""
    if named["train"] is False:
        return found
    kept, mask = found
    stays = level < 1 - named["p"]
    kept.copy_(named["input"] / (1 - named["p"]) if stays else torch.zeros_like(kept))
    return kept, mask.fill_(stays)


def exponential(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """Of the Gumbel noise of a router, too."""
    return found.fill_(-math.log1p(-level) / named.get("lambd", 1.0))


def randint(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """Of whole numbers from `low` to below `high`."""
    low, high = named.get("low", 0), named["high"]
    return found.fill_(low + math.floor(level * (high - low)))


def randperm(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """The order that there is, turned by a share of it."""
    return found.copy_(torch.arange(len(found)).roll(math.floor(level * len(found))))


def multinomial(level: float, found: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    """The place at which the weights reach the level; of several without replacement, those of the largest weights."""
    weights, draws = named["self"], found.shape[-1]
    if draws > 1 and not named.get("replacement", False):
        return found.copy_(weights.topk(draws).indices)
    reached = weights.cumsum(-1)
    place = (reached < level * reached[..., -1:]).sum(-1, keepdim=True)
    return found.copy_(place.clamp(max=weights.shape[-1] - 1).expand_as(found))


PUT: dict[str, Callable[[float, Any, dict[str, Any]], Any]] = {
    "rand": uniform,
    "rand_like": uniform,
    "uniform": uniform,
    "randn": normal,
    "randn_like": normal,
    "normal": normal,
    "bernoulli": bernoulli,
    "native_dropout": native_dropout,
    "exponential": exponential,
    "multinomial": multinomial,
    "randint": randint,
    "randint_like": randint,
    "randperm": randperm,
}
"""What to put in the place of each operation's result. Others, such as a Poisson draw, stay random."""
