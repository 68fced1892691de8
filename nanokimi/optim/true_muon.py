"""TrueMuon, the optimizer of an earlier nanoKimi (seed 2), repaired: Muon without a scale for the matrix's shape.

The orthogonalised update U V^T is not scaled, so that its spectral norm is about 1 for any shape. The original
orthogonalised `beta * m + grad` with an average m of gradients, which gave 57% of the weight to the newest gradient. As
averages of noise are small, momentum had almost no effect. Here it is Nesterov's `beta * m + (1 - beta) * grad`, as in
Muon, with 19% for the newest gradient. The original also orthogonalised the rows of each head separately.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nanokimi.optim.muon import Muon, update_scale


class TrueMuon(Muon):
    """Muon whose update is not scaled. Decay multiplies weights by 1 - lr * weight_decay. Defaults are the seed's.

    Dividing a group's rate by Muon's scale cancels that scale, so each shape of matrix gets a group of its own. A
    schedule must multiply each group's rate instead of replacing it.

    Args:
        params: as for Muon; `lr` and `weight_decay` of a group mean the same as here.
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
    """Groups split by shape, with rates that cancel Muon's scale and decays that preserve lr * weight_decay."""
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
            # Muon itself refuses vectors.
            scale = update_scale(shape[0] // group.get("blocks", 1), shape[1]) if len(shape) == 2 else 1.0
            rate, decay = group.get("lr", lr), group.get("weight_decay", weight_decay)
            split.append(group | {"params": members, "lr": rate / scale, "weight_decay": decay * scale})
    return split
