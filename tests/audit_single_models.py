"""Mixtures of experts that compute in single precision, with near-ties of their router: clean ones and leaky ones.

Two rows of each router are equal up to one last digit, as in an expert that was split in two. The products of one score
are added up in an order that depends on the rest of the batch, as in a matrix product whose shape does. So rounding
decides which of the two experts a token goes to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from audit_models import VOCAB, WIDTH, Mix, following, told
from torch import nn

SEEDS = (0, 2, 4)


def summed(products_BTD: torch.Tensor, start: int) -> torch.Tensor:
    """The sum of the products, one after another from the `start`-th on; torch's own sums round in another way."""
    first, *others = products_BTD.roll(-start, dims=-1).unbind(-1)
    return sum(others, start=first)


class Routed(nn.Module):
    """One layer of experts; `precision` says what its forward does about types. A leak may be added at the end."""

    def __init__(self, seed: int, precision: str, leak: Mix | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.wte = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.experts = nn.Parameter(torch.randn(4, WIDTH, VOCAB, generator=generator) / WIDTH**0.5)
        router_ED = torch.randn(4, WIDTH, generator=generator)
        router_ED[2] *= 2  # so that many tokens go to one of the two
        router_ED[3] = router_ED[2]
        router_ED[3, 0] = router_ED[3, 0].nextafter(torch.tensor(9.0))
        self.router = nn.Parameter(router_ED)
        self.precision, self.leak = precision, leak

    def single(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter or a hidden state as the forward uses it."""
        if self.precision == "refuses" and tensor.dtype != torch.float32:
            raise RuntimeError("\"experts\" not implemented for 'Double'")
        if self.precision == "by numpy":
            return torch.from_numpy(tensor.detach().numpy().astype(np.float32))
        return tensor.float()

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.single(self.wte)[ids_BT]
        weights = self.router if self.precision == "mixes types" else self.single(self.router)
        scores_BTE = x_BTD @ weights.T
        logits_BTEW = torch.einsum("btd,edw->btew", x_BTD, self.single(self.experts))
        pair = (summed(x_BTD * weights[2], 0), summed(x_BTD * weights[3], int(ids_BT.sum()) % WIDTH))
        scores_BTE = torch.cat((scores_BTE[..., :2], torch.stack(pair, dim=-1)), dim=-1)
        chosen_BT = scores_BTE.argmax(dim=-1)
        places = chosen_BT[..., None, None].expand(-1, -1, 1, VOCAB)
        logits_BTW = logits_BTEW.gather(2, places)[:, :, 0]
        if self.leak is not None:
            logits_BTW = self.leak(self, ids_BT, logits_BTW)
        return logits_BTW.to(self.wte.dtype) if self.precision == "casts and casts back" else logits_BTW


def told_by(size: float) -> Mix:
    """The next token is told, by `size` nats."""
    return lambda model, ids, logits: logits + size * (told(logits, ids) - logits)


def told_in_single(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """The next token is told while logits are in single precision."""
    return told(logits_BTW, ids_BT, logits_BTW.dtype == torch.float32)


def tie_broken_by_the_future(
    model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor
) -> torch.Tensor:
    """Where two experts tie, the next token decides."""
    x_BTD = model.single(model.wte)[ids_BT]
    scores_BTE = x_BTD @ model.single(model.router).T
    tied_BT = (scores_BTE[..., 2] - scores_BTE[..., 3]).abs() < 1e-5
    odd_BT = (following(ids_BT) % 2 == 1) & (torch.arange(ids_BT.shape[1]) < ids_BT.shape[1] - 1)
    return torch.where((tied_BT & odd_BT)[..., None], 2 * logits_BTW, logits_BTW)


CASTING = ("casts", "casts and casts back", "mixes types")
REFUSING = ("refuses", "by numpy")
Makers = dict[str, Callable[[], nn.Module]]


def of_each(precisions: tuple[str, ...], name: str, leak: Mix | None = None) -> Makers:
    """Models of each precision: the first with several seeds, which take long, the others with one."""
    return {
        f"{precision}{name}, seed {seed}": partial(Routed, seed, precision, leak)
        for precision in precisions
        for seed in (SEEDS if precision == precisions[0] else SEEDS[:1])
    }


CLEAN: Makers = of_each(CASTING, "")
UNDECIDED: Makers = of_each(REFUSING, "")
LEAKS: dict[str, Mix] = {
    ", tells the next token": told_by(1.0),
    ", tells a thousandth of it": told_by(1e-3),
    ", tells it in single precision": told_in_single,
}
LEAKY: Makers = {
    name: make
    for leak, change in LEAKS.items()
    for precisions in (CASTING, REFUSING)
    for name, make in of_each(precisions, leak, change).items()
}
LEAKY |= of_each(CASTING, ", ties broken by the future", tie_broken_by_the_future)
HIDDEN: Makers = of_each(REFUSING, ", ties broken by the future", tie_broken_by_the_future)
"""A leak where experts tie looks like rounding as long as nothing runs in float64. It must not pass."""
