"""QK-Clip, and MuonClip (Muon with QK-Clip), the optimizer of Kimi K2 (arXiv 2507.20534, section 2.1, algorithm 1).

With Muon, attention logits may grow without bound. QK-Clip looks at each head's largest logit in the forward passes
of a step. If it is above tau, the head's query and key weights are scaled after the step so that the same inputs would
give exactly tau. Only the attention knows which rows belong to which head, so it scales them itself (`rescale_heads_`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from nanokimi.optim.muon import Muon
from nanokimi.optim.shampoo import Shampoo


class RescalableAttention(Protocol):
    """An attention that can multiply each head's logits by a factor."""

    def rescale_heads_(self, gamma_H: torch.Tensor) -> None:
        """Change the weights so that head h's logits are multiplied by gamma_H[h]."""
        ...


@torch.no_grad()
def qk_clip_(
    attentions: Sequence[RescalableAttention],
    max_logits_LH: Sequence[torch.Tensor] | torch.Tensor,
    tau: float,
) -> torch.Tensor:
    """Scale down the heads whose largest logit exceeds `tau`.

    Args:
        attentions: one per layer.
        max_logits_LH: per layer, each head's largest scaled logit (before the softmax, over visible keys) seen in the
            forward passes of this step.
        tau: threshold, 100 in Kimi K2.

    Returns:
        The number of heads clipped, as a tensor, so that nothing waits for the device.
    """
    if len(attentions) != len(max_logits_LH):
        raise ValueError(f"{len(attentions)} attention layers, but logits of {len(max_logits_LH)}")
    clipped = [torch.as_tensor(max_logits_H > tau).sum() for max_logits_H in max_logits_LH]
    if clipped[0].device.type == "cpu" and not any(clipped):  # on other devices, looking would wait
        return torch.stack(clipped).sum()
    for attention, max_logits_H in zip(attentions, max_logits_LH, strict=True):
        # A head whose logits are all negative is far below tau, and its gamma is 1.
        attention.rescale_heads_(torch.where(max_logits_H > tau, tau / max_logits_H, 1.0))
    return torch.stack(clipped).sum()


class Clipping(torch.optim.Optimizer):
    """A base class that adds QK-Clip to the optimizer that is the next base: `class MuonClip(Clipping, Muon)`.

    Args:
        params, lr, **options: of the optimizer.
        attentions: the model's attention layers, in the order of the logits given to `step`; they need
            `rescale_heads_`.
        tau: the largest logit that is not clipped.
        estimate: a function that estimates each head's largest logit from the weights before the update (`rms_logits`).
            It replaces the logits given to `step`, so the forward pass does not need to compute them.
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
        """The optimizer's step, then QK-Clip with the logits of this step's forward passes.

        Raises:
            ValueError: `max_logits_LH` is missing. Without it, QK-Clip would silently do nothing.
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
    """Muon followed by QK-Clip, for any model whose attentions have `rescale_heads_`. Arguments are those of both.

    Example::

        groups = muon_groups(model.named_parameters())
        optimizer = MuonClip(groups, attentions=model.attentions(), lr=2e-3)
        output = model(ids, want_max_logits=True)
        loss(output).backward()
        optimizer.step(max_logits_LH=output.max_logits_LH)
    """


class ShampooClip(Clipping, Shampoo):
    """Shampoo followed by QK-Clip, which is what an earlier nanoKimi (seed 0) intended."""
