"""QK-Clip, and with Muon: MuonClip, the optimizer of Kimi K2 (arXiv 2507.20534, section 2.1 and algorithm 1).

Muon lets attention logits grow without bound, as others may. After each step, every head whose largest logit in that
step's forward pass was above tau has its query and key weights scaled so that the same inputs would give exactly tau.
Only the attention knows which rows belong to which head, so it does the scaling itself, in `rescale_heads_(gamma_H)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from nanokimi.optim.muon import Muon
from nanokimi.optim.shampoo import Shampoo


class RescalableAttention(Protocol):
    """Any attention that can multiply each head's logits by a factor."""

    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Change the weights so that head h's logits are multiplied by gamma_H[h]."""
        ...


@torch.no_grad()
def qk_clip_(
    attentions: Sequence[RescalableAttention],
    max_logits_LH: Sequence[torch.Tensor] | torch.Tensor,
    tau: float,
) -> torch.Tensor:
    """Scale down the heads whose largest logit exceeds `tau`; the others are not touched.

    Args:
        attentions: one per layer.
        max_logits_LH: per layer, each head's largest scaled logit (before the softmax, over visible keys) seen in the
            forward passes of this step.
        tau: threshold, 100 in Kimi K2.

    Returns:
        The number of heads clipped, a tensor, so that nothing waits for the device.
    """
    if len(attentions) != len(max_logits_LH):
        raise ValueError(f"{len(attentions)} attention layers, but logits of {len(max_logits_LH)}")
    clipped = [torch.as_tensor(max_logits_H > tau).sum() for max_logits_H in max_logits_LH]
    if clipped[0].device.type == "cpu" and not any(clipped):  # elsewhere, asking would wait for the device
        return torch.stack(clipped).sum()
    for attention, max_logits_H in zip(attentions, max_logits_LH, strict=True):
        # a head whose logits are all negative is far below tau: its gamma is 1
        attention.rescale_heads_(torch.where(max_logits_H > tau, tau / max_logits_H, 1.0))
    return torch.stack(clipped).sum()


class Clipping(torch.optim.Optimizer):
    """Put before an optimizer among the bases of a class, it lets QK-Clip follow each of that optimizer's steps.

    Args:
        params, lr, **options: as for the optimizer.
        attentions: the model's attention layers, in the order of the logits given to `step`; they need
            `rescale_heads_`.
        tau: largest logit that is left alone.
        estimate: in place of the logits of `step`, a function that finds each head's largest logit from the weights
            before the update (`rms_logits`); the forward pass then need not look for them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        attentions: Sequence[RescalableAttention],
        tau: float = 100.0,
        estimate: Callable[[], torch.Tensor] | None = None,
        **options: Any,
    ) -> None:
        if tau <= 0:
            raise ValueError(f"tau is {tau}: it must be above 0")
        super().__init__(params, lr, **options)  # type: ignore[arg-type]  # the optimizer's
        self.attentions, self.tau, self.estimate = list(attentions), tau, estimate
        self.heads_clipped: torch.Tensor = torch.zeros((), dtype=torch.int64)

    @property
    def needs_logits(self) -> bool:
        """Whether `step` has to be given the forward pass's largest logits."""
        return self.estimate is None

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_logits_LH: Sequence[torch.Tensor] | torch.Tensor | None = None,
    ) -> Any:
        """The optimizer's step, then QK-Clip by the logits of this step's forward pass.

        Raises:
            ValueError: `max_logits_LH` is missing; without it QK-Clip would silently do nothing.
        """
        if self.estimate is not None:
            max_logits_LH = self.estimate()
        if max_logits_LH is None:
            name = type(self).__name__
            raise ValueError(f"{name}.step needs max_logits_LH, the largest logit of each head in this step")
        loss = super().step(closure)
        self.heads_clipped = qk_clip_(self.attentions, max_logits_LH, self.tau)
        return loss


class MuonClip(Clipping, Muon):
    """Muon followed by QK-Clip, for any model whose attentions have `rescale_heads_`; see both for the arguments.

    Example::

        groups = muon_groups(model.named_parameters())
        optimizer = MuonClip(groups, attentions=model.attentions(), lr=2e-3)
        output = model(ids, want_max_logits=True)
        loss(output).backward()
        optimizer.step(max_logits_LH=output.max_logits_LH)
    """


class ShampooClip(Clipping, Shampoo):
    """Shampoo followed by QK-Clip, as an earlier nanoKimi (seed 0) meant its optimizer to be."""
