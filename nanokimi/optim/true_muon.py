"""TrueMuon, the optimizer of an earlier nanoKimi (seed 2), repaired: Muon without a scale for the matrix's shape.

An orthogonalised update U V^T is taken as it is, so that its spectral norm is about 1 whatever the shape. What was
wrong: it orthogonalised `beta * m + grad`, m being an average of gradients, so that the fresh gradient had 57% of the
weight and, as averages of noise are small, momentum was almost inert. Here it is Nesterov's `beta * m + (1 - beta) *
grad`, which is Muon's; the fresh gradient has 19%. Nor are the rows of each head a matrix of their own any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nanokimi.optim.muon import Muon, update_scale


class TrueMuon(Muon):
    """Muon whose update is not scaled; decay multiplies weights by 1 - lr * weight_decay. Defaults are the seed's.

    It is Muon with other settings: dividing a group's rate by Muon's scale takes that scale out, so each shape of
    matrix gets a group of its own. A schedule has to multiply each group's rate, not replace it.

    Args:
        params: as for Muon; `lr` and `weight_decay` of a group are meant as here.
        lr: learning rate; AdamW groups usually want a tenth of it.
        weight_decay, momentum, **options: as for Muon.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        weight_decay: float = 0.01,
        momentum: float = 0.9,
        **options: Any,
    ) -> None:
        groups = unscaled(params, lr, weight_decay)
        super().__init__(groups, lr, weight_decay=weight_decay, momentum=momentum, **options)


def unscaled(params: Iterable[Any], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups split by shape, rate and decay set such that Muon's shape scale cancels and lr * weight_decay stays."""
    given = list(params)
    groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
    split: list[dict[str, Any]] = []
    for group in groups:
        if group.get("algorithm", "muon") != "muon":
            split.append(dict(group))
            continue
        by_shape: dict[tuple[int, ...], list[Any]] = {}
        for p in group["params"]:
            by_shape.setdefault(tuple(p.shape[-2:]), []).append(p)
        for shape, members in by_shape.items():
            # Muon refuses what is no matrix
            scale = update_scale(shape[0] // group.get("blocks", 1), shape[1]) if len(shape) == 2 else 1.0
            rate, decay = group.get("lr", lr), group.get("weight_decay", weight_decay)
            split.append(group | {"params": members, "lr": rate / scale, "weight_decay": decay * scale})
    return split
