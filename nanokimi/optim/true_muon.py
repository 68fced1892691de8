"""TrueMuon, the optimizer of an earlier nanoKimi (seed 2), repaired: Muon without a scale for the matrix's shape.

The orthogonalised update U V^T is not scaled, so that its spectral norm is about 1 for any shape. The original
orthogonalised `beta * m + grad` with an average m of gradients, which gave 57% of the weight to the newest gradient. As
averages of noise are small, momentum had almost no effect. Here it is Nesterov's `beta * m + (1 - beta) * grad`, as in
Muon, with 19% for the newest gradient. The original also orthogonalised the rows of each head separately.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nanokimi.optim.muon import Muon


class TrueMuon(Muon):
    """Muon whose update is not scaled. Decay multiplies weights by 1 - lr * weight_decay. Defaults are the seed's.

    Args:
        params: as for Muon.
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
        options |= dict(weight_decay=weight_decay, momentum=momentum)
        super().__init__(params, lr, scale_updates=False, **options)
