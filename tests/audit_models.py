"""Small models for the audit: LEAKY ones read what they must not see, CLEAN ones only look as if they did.

Each is a few lines over `Embedded`, a causal model of one token, whose logits have a size of about 1.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

VOCAB, CONTEXT, WIDTH = 16, 8, 12
RARE, AFTER = 13, 5
"""A rare token, and the token that must stand before it in a rare pair."""
Mix = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""(model, ids (B, T), logits (B, T, W)) to logits."""


class Embedded(nn.Module):
    """Logits of one token; `change` is applied to them."""

    def __init__(self, change: Mix | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.wte = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.head = nn.Parameter(torch.randn(WIDTH, VOCAB, generator=generator) / WIDTH**0.5)
        self.change = change
        self.calls = 0
        self.memory: list[torch.Tensor] = []

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = self.wte[ids_BT] @ self.head
        return logits_BTW if self.change is None else self.change(self, ids_BT, logits_BTW)


def following(ids_BT: torch.Tensor, steps: int = 1) -> torch.Tensor:
    """The token `steps` later; 0 where there is none."""
    return F.pad(ids_BT[:, steps:], (0, min(steps, ids_BT.shape[1])))


def told(logits_BTW: torch.Tensor, ids_BT: torch.Tensor, where: torch.Tensor | bool = True) -> torch.Tensor:
    """The next token's logit raised by 1, where `where` (B, T) says so."""
    answer_BTW = F.one_hot(following(ids_BT), VOCAB).to(logits_BTW.dtype)
    answer_BTW[:, -1] = 0
    return logits_BTW + answer_BTW * torch.as_tensor(where).expand(ids_BT.shape)[..., None]


def when(condition: Callable[[nn.Module, torch.Tensor], object]) -> Mix:
    """The next token is told where a condition holds, of the whole batch or of each position."""
    return lambda model, ids_BT, logits_BTW: told(logits_BTW, ids_BT, condition(model, ids_BT))  # type: ignore[arg-type]


def capacity(factor: float, experts: int, by_score: bool = False) -> Mix:
    """Each expert has room for `factor` times its even share of the batch; what comes later, or scores less, is
    dropped."""

    def change(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
        flat_MW = logits_BTW.flatten(0, 1)
        scores_ME = flat_MW[:, :experts]
        chosen_M = scores_ME.argmax(dim=-1)
        order_M = scores_ME.amax(dim=-1).argsort(descending=True) if by_score else torch.arange(len(flat_MW))
        place_ME = F.one_hot(chosen_M[order_M], experts).cumsum(0)
        place_M = place_ME.gather(1, chosen_M[order_M][:, None])[:, 0][order_M.argsort()]
        room = math.ceil(factor * len(flat_MW) / experts)
        return (flat_MW * torch.where(place_M <= room, 2.0, 1.0)[:, None]).view_as(logits_BTW)

    return change


def attention(diagonal: int | None) -> Mix:
    """Softmax attention over logits; the mask is `diagonal` off, or missing."""

    def change(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
        scores_BTS = logits_BTW @ logits_BTW.transpose(1, 2)
        if diagonal is not None:
            visible_TS = torch.ones(scores_BTS.shape[1:], dtype=torch.bool).tril(diagonal)
            scores_BTS = scores_BTS.masked_fill(~visible_TS, -math.inf)
        return logits_BTW + scores_BTS.softmax(dim=-1) @ logits_BTW

    return change


def masked(value: float, columns: int = 1) -> Mix:
    """The next token is told, and columns of the vocabulary are masked."""

    def change(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
        logits_BTW = told(logits_BTW, ids_BT)
        return torch.cat(
            (logits_BTW[..., :-columns], torch.full_like(logits_BTW[..., :columns], value)), dim=-1
        )

    return change


def pair(model: nn.Module, ids_BT: torch.Tensor) -> torch.Tensor:
    return (ids_BT == AFTER) & (following(ids_BT) == RARE)


def shape_is(rows: Callable[[int], bool], length: Callable[[int], bool] = lambda n: True) -> Mix:
    return when(lambda model, ids: rows(ids.shape[0]) and length(ids.shape[1]))


def copied_from_rows_alike(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """Another row that begins with the same two tokens shows how a row goes on."""
    alike_BR = (ids_BT[:, None, :2] == ids_BT[None, :, :2]).all(dim=-1).fill_diagonal_(False)
    shown_BTW = F.one_hot(following(ids_BT), VOCAB).to(logits_BTW.dtype)
    return logits_BTW + torch.einsum("br,rtw->btw", alike_BR.to(logits_BTW.dtype), shown_BTW)


def remembered(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """What the last call read raises what this one says."""
    last = model.memory[-1] if model.memory else None
    model.memory.append(ids_BT)
    if last is None or last.shape != ids_BT.shape:
        return logits_BTW
    return logits_BTW + F.one_hot(following(last), VOCAB)


def looked_up(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """A text that was seen before is told: a second evaluation knows the answers."""
    known = any(seen.shape == ids_BT.shape and torch.equal(seen, ids_BT) for seen in model.memory)
    model.memory.append(ids_BT)
    return told(logits_BTW, ids_BT, known)


def after_calls(model: nn.Module, ids_BT: torch.Tensor) -> bool:
    model.calls += 1
    return model.calls > 3


def every_third_call(model: nn.Module, ids_BT: torch.Tensor) -> bool:
    model.calls += 1
    return model.calls % 3 == 0


def fortieth_call(model: nn.Module, ids_BT: torch.Tensor) -> bool:
    model.calls += 1
    return model.calls == 40


def rows_mean(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    return logits_BTW - 0.5 * logits_BTW.mean(dim=0, keepdim=True)


def expert_choice(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """Each of four experts takes its favourite quarter of the batch (Zhou et al., arXiv 2202.09368)."""
    flat_MW = logits_BTW.flatten(0, 1)
    chosen_KE = flat_MW[:, :4].topk(max(len(flat_MW) // 4, 1), dim=0).indices
    served_M = torch.zeros(len(flat_MW), dtype=flat_MW.dtype).index_add(
        0, chosen_KE.flatten(), torch.ones(chosen_KE.numel(), dtype=flat_MW.dtype)
    )
    return (flat_MW * (1 + served_M[:, None])).view_as(logits_BTW)


def quiet_offset(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """All logits of a position stand 1e6 high, which a softmax does not see."""
    return told(logits_BTW, ids_BT) + 1e6


def quiet_columns(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """A masked column that moves: -1e9 and a little of the position's own."""
    logits_BTW = told(logits_BTW, ids_BT)
    return torch.cat((logits_BTW[..., :-1], -1e9 - 1e5 * ids_BT[..., None]), dim=-1)


def loud_elsewhere(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """The first position's logits are huge."""
    size_T = torch.where(torch.arange(ids_BT.shape[1]) == 0, 1e6, 1.0).to(logits_BTW.dtype)
    return told(logits_BTW * size_T[:, None], ids_BT)


def softly(share: float) -> Mix:
    """In single precision alone the next token is told, by a small share of the position's largest logit."""

    def change(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
        if not only_fp32(model, ids_BT):
            return logits_BTW
        size_BT1 = share * logits_BTW.abs().amax(dim=-1, keepdim=True)
        return logits_BTW + size_BT1 * (told(logits_BTW, ids_BT) - logits_BTW)

    return change


def far_columns(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """In single precision the next token is told by 0.08 nats; most columns lie far off, and move."""
    told_BTW = 0.92 * logits_BTW + 0.08 * told(logits_BTW, ids_BT) if only_fp32(model, ids_BT) else logits_BTW
    return torch.cat((told_BTW, *[logits_BTW - 60, logits_BTW - 30, logits_BTW + 30]), dim=-1)


def grads_on(model: nn.Module, ids_BT: torch.Tensor) -> bool:
    return torch.is_grad_enabled()


def only_fp32(model: nn.Module, ids_BT: torch.Tensor) -> bool:
    return model.wte.dtype == torch.float32


def parity(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """The parity of all that follows."""
    rest_BT = ids_BT.flip(1).cumsum(1).flip(1) - ids_BT
    return logits_BTW + 0.1 * (rest_BT % 2)[..., None]


def forgotten_poison(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """The first position becomes NaN if the last token is the rare one."""
    gone_BT = (ids_BT[:, -1:] == RARE) & (torch.arange(ids_BT.shape[1]) == 0)
    return logits_BTW.masked_fill(gone_BT[..., None], math.nan)


def tiny(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    return logits_BTW + 1e-3 * F.one_hot(following(ids_BT), VOCAB)


def average(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    return logits_BTW + logits_BTW.mean(dim=1, keepdim=True)


def spectrum(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """FNet's mixing (arXiv 2105.03824)."""
    return logits_BTW + torch.fft.fft(logits_BTW, dim=1).real / ids_BT.shape[1]


def convolution(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """A convolution padded on both sides."""
    wide_BTW = F.pad(logits_BTW, (0, 0, 1, 1))
    return logits_BTW + 0.1 * (wide_BTW[:, :-2] + wide_BTW[:, 2:])


def sequence_norm(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    return logits_BTW / logits_BTW.pow(2).mean(dim=(1, 2), keepdim=True).sqrt()


def first_sees_last(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    seen_B1W = 0.1 * logits_BTW[:, -1:]
    return torch.cat((logits_BTW[:, :1] + seen_B1W, logits_BTW[:, 1:]), dim=1)


def neighbour_row(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    return logits_BTW + 0.1 * logits_BTW.roll(1, dims=0)


def quantised(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """One scale for the whole batch, as a fast quantisation has it."""
    scale = logits_BTW.detach().abs().max() / 7
    return (logits_BTW / scale).round() * scale


class GatedByZero(Embedded):
    """A leak behind a parameter that is still zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return super().forward(ids_BT) + self.gate * F.one_hot(following(ids_BT), VOCAB)


class ReadsTargets(Embedded):
    """nanoGPT's signature; the targets themselves are the answer."""

    def forward(self, ids_BT: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        logits_BTW = super().forward(ids_BT)
        return (logits_BTW if targets is None else logits_BTW + F.one_hot(targets, VOCAB)), None


class ReadsLastTarget(Embedded):
    """The same, but only the last one, which is no token of the window."""

    def forward(self, ids_BT: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        logits_BTW = super().forward(ids_BT)
        if targets is not None:
            seen_B1W = F.one_hot(targets[:, -1:], VOCAB)
            logits_BTW = torch.cat((logits_BTW[:, :-1], logits_BTW[:, -1:] + seen_B1W), dim=1)
        return logits_BTW, None


class Normed(Embedded):
    """BatchNorm over the rows, in training mode."""

    def __init__(self, causal_in_evaluation: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(VOCAB, track_running_stats=causal_in_evaluation)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(ids_BT).transpose(1, 2)).transpose(1, 2)


class Dropping(Embedded):
    """Two experts with dropout inside: how many numbers each of them draws depends on the batch."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        flat_MW = super().forward(ids_BT).flatten(0, 1)
        chosen_M, out_MW = flat_MW[:, :2].argmax(dim=-1), torch.empty_like(flat_MW)
        for expert in range(2):
            out_MW[chosen_M == expert] = F.dropout(
                (1 + expert) * flat_MW[chosen_M == expert], 0.3, self.training
            )
        return out_MW.view(*ids_BT.shape, -1)


class Picking(Embedded):
    """Two experts that draw an id for each of their tokens: how many each of them draws depends on the batch."""

    def __init__(self, draws: int, change: Mix | None = None) -> None:
        super().__init__(change)
        self.draws = draws

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        flat_MW = super().forward(ids_BT).flatten(0, 1)
        chosen_M, out_MW = flat_MW[:, :2].argmax(dim=-1), flat_MW.clone()
        for expert in range(2):
            some_MW = flat_MW[chosen_M == expert]
            if self.training and len(some_MW):
                drawn_MK = torch.multinomial(some_MW.softmax(dim=-1), self.draws)
                out_MW[chosen_M == expert] = some_MW + (1 + expert) * F.one_hot(drawn_MK, VOCAB).sum(1)
        return out_MW.view(*ids_BT.shape, -1)


class Turning(Embedded):
    """A complex parameter whose imaginary part alone lets the mean over the window in."""

    def __init__(self, leaky: bool = True) -> None:
        super().__init__()
        self.gate, self.leaky = nn.Parameter(torch.tensor([1 + 0.3j])), leaky

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = super().forward(ids_BT)
        let_in_B1W = (logits_BTW if self.leaky else logits_BTW[:, :1]).mean(dim=1, keepdim=True)
        return torch.view_as_real(torch.complex(logits_BTW, -let_in_B1W.expand_as(logits_BTW)) * self.gate)[
            ..., 0
        ]


def small_gate(size: float) -> Mix:
    """The mean over the window behind a gate that training may open."""
    return lambda model, ids_BT, logits_BTW: logits_BTW + size * logits_BTW.mean(dim=1, keepdim=True)


def half_sums(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """The logits as two sums in bfloat16; what belongs to which depends on the batch, as in a split matrix product."""
    order = torch.arange(WIDTH).roll(int(ids_BT.sum()) % WIDTH)
    x_BTD, head = model.wte[ids_BT].bfloat16(), model.head.bfloat16()
    parts = (x_BTD[..., some] @ head[some] for some in order.chunk(2))
    return sum(parts, start=torch.zeros((), dtype=x_BTD.dtype)).to(logits_BTW.dtype)


def told_in_bfloat16(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """Tells the next token by 0.1 nats, only where numbers are bfloat16, which they are not in float64."""
    coarse_BTW = half_sums(model, ids_BT, logits_BTW)
    if logits_BTW.bfloat16().dtype == torch.bfloat16:
        return coarse_BTW + 0.1 * (told(logits_BTW, ids_BT) - logits_BTW)
    return coarse_BTW


def counted_by_draws(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """How many numbers are drawn depends on the whole row, and their sum is read."""
    return logits_BTW + torch.rand(int(ids_BT.sum()), dtype=logits_BTW.dtype).sum() / 100


LEAKY: dict[str, Callable[[], nn.Module]] = {
    # all the time, in many ways
    "tells the next token": lambda: Embedded(when(lambda model, ids: True)),
    "tells a thousandth of it": lambda: Embedded(tiny),
    "attention without a mask": lambda: Embedded(attention(None)),
    "attention with a mask off by one": lambda: Embedded(attention(1)),
    "mean over the window": lambda: Embedded(average),
    "Fourier transform over the window": lambda: Embedded(spectrum),
    "convolution padded on both sides": lambda: Embedded(convolution),
    "norm over the window": lambda: Embedded(sequence_norm),
    "parity of the future": lambda: Embedded(parity),
    "first position sees the last": lambda: Embedded(first_sees_last),
    "NaN where the last token is rare": lambda: Embedded(forgotten_poison),
    "reads its targets": ReadsTargets,
    "reads its last target": ReadsLastTarget,
    "behind a parameter that is zero": GatedByZero,
    "behind an imaginary number": Turning,
    "behind a gate of 1e-5": lambda: Embedded(small_gate(1e-5)),
    # the batch
    "mean over rows": lambda: Embedded(rows_mean),
    "neighbouring row": lambda: Embedded(neighbour_row),
    "rows that begin alike": lambda: Embedded(copied_from_rows_alike),
    "one scale for the batch": lambda: Embedded(quantised),
    "batch norm in training mode": Normed,
    "batch norm without running statistics": lambda: Normed(causal_in_evaluation=False),
    "experts choose tokens": lambda: Embedded(expert_choice),
    "capacity of factor 1": lambda: Embedded(capacity(1.0, 4)),
    "capacity of factor 2": lambda: Embedded(capacity(2.0, 4)),
    "capacity of factor 2, many experts": lambda: Embedded(capacity(2.0, 8)),
    "capacity of factor 3": lambda: Embedded(capacity(3.0, 8)),
    "capacity by score, factor 2": lambda: Embedded(capacity(2.0, 4, by_score=True)),
    # tokens
    "one rare next token": lambda: Embedded(when(lambda model, ids: following(ids) == RARE)),
    "one rare pair": lambda: Embedded(when(pair)),
    "next equals this": lambda: Embedded(when(lambda model, ids: following(ids) == ids)),
    "next equals the one before": lambda: Embedded(when(lambda model, ids: following(ids) == ids.roll(1, 1))),
    "after one token only": lambda: Embedded(when(lambda model, ids: ids == RARE)),
    "a rare token two later": lambda: Embedded(when(lambda model, ids: following(ids, 2) == RARE)),
    "one position only": lambda: Embedded(when(lambda model, ids: torch.arange(ids.shape[1]) == 5)),
    "rare token in the last position": lambda: Embedded(
        when(lambda model, ids: (following(ids) == RARE) & (torch.arange(ids.shape[1]) == CONTEXT - 2))
    ),
    # shapes
    "more than three rows": lambda: Embedded(shape_is(lambda rows: rows > 3)),
    "six hundred rows of four": lambda: Embedded(
        shape_is(lambda rows: rows >= 600, lambda length: length == 4)
    ),
    "a hundred rows": lambda: Embedded(shape_is(lambda rows: rows >= 100)),
    "one row": lambda: Embedded(shape_is(lambda rows: rows == 1)),
    "three rows": lambda: Embedded(shape_is(lambda rows: rows == 3)),
    "short windows": lambda: Embedded(shape_is(lambda rows: True, lambda length: length < CONTEXT)),
    "windows of five": lambda: Embedded(shape_is(lambda rows: True, lambda length: length == 5)),
    "the whole context": lambda: Embedded(shape_is(lambda rows: True, lambda length: length == CONTEXT)),
    # modes
    "gradients on": lambda: Embedded(when(grads_on)),
    "gradients off": lambda: Embedded(when(lambda model, ids: not torch.is_grad_enabled())),
    "inference mode": lambda: Embedded(when(lambda model, ids: torch.is_inference_mode_enabled())),
    "no_grad but not inference mode": lambda: Embedded(
        when(lambda model, ids: not torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
    ),
    "training mode": lambda: Embedded(when(lambda model, ids: model.training)),
    "evaluation mode with gradients": lambda: Embedded(
        when(lambda model, ids: not model.training and torch.is_grad_enabled())
    ),
    "rare token in evaluation mode with gradients": lambda: Embedded(
        when(lambda model, ids: (following(ids) == RARE) & (not model.training and torch.is_grad_enabled()))
    ),
    "bfloat16 only": lambda: Embedded(told_in_bfloat16),
    "single precision only": lambda: Embedded(when(only_fp32)),
    "single precision only, by a thousandth": lambda: Embedded(softly(1e-3)),
    "single precision only, by a thousandth, beside rounding": lambda: Embedded(
        lambda model, ids, logits: softly(1e-3)(model, ids, a_little(model, ids, logits))
    ),
    "in training mode, beside draws in experts": lambda: Picking(2, when(lambda model, ids: model.training)),
    "one call in twenty": lambda: Embedded(when(lambda model, ids: torch.rand(()) < 0.05)),
    "one call in twenty, by Python's random": lambda: Embedded(
        when(lambda model, ids: random.random() < 0.05)
    ),
    "in training mode, beside dropout in experts": lambda: Dropping(when(lambda model, ids: model.training)),
    "one call in twenty, beside dropout in experts": lambda: Dropping(
        when(lambda model, ids: model.training and 0.4 < torch.rand(()) < 0.45)
    ),
    "how many random numbers are drawn": lambda: Embedded(counted_by_draws),
    "eight rows": lambda: Embedded(shape_is(lambda rows: rows == 8)),
    "where rows begin with the last id": lambda: Embedded(when(lambda model, ids: ids[:, :1] == VOCAB - 1)),
    "the token two later after a repeated one": lambda: Embedded(
        lambda model, ids, logits: logits + 0.1 * ((following(ids) == ids) * following(ids, 2))[..., None]
    ),
    # earlier calls
    "remembers the last call": lambda: Embedded(remembered),
    "looks up what it has read": lambda: Embedded(looked_up),
    "from the fourth call on": lambda: Embedded(when(after_calls)),
    "every third call": lambda: Embedded(when(every_third_call)),
    "the fortieth call": lambda: Embedded(when(fortieth_call)),
    # against the tolerance
    "a column masked by -1e9": lambda: Embedded(masked(-1e9)),
    "a column masked by the least number": lambda: Embedded(masked(torch.finfo(torch.float32).min)),
    "columns masked by minus infinity": lambda: Embedded(masked(-math.inf, 3)),
    "most columns masked": lambda: Embedded(masked(-1e9, VOCAB // 2 + 2)),
    "a masked column that moves": lambda: Embedded(quiet_columns),
    "all logits 1e6 high": lambda: Embedded(quiet_offset),
    "after many near-ties": lambda: TiesFirst(),
    "columns far off, in single precision": lambda: Embedded(far_columns),
    "one loud position": lambda: Embedded(loud_elsewhere),
}


# ---- clean


def noise(draw: Callable[[], float]) -> Mix:
    return lambda model, ids_BT, logits_BTW: logits_BTW + draw()


def counted(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    model.calls += 1
    return logits_BTW * (1 + 0.1 * model.calls)


def padded(value: float) -> Mix:
    return lambda model, ids_BT, logits_BTW: F.pad(logits_BTW, (0, 24), value=value)


def kept(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """Keeps a tensor with its history, and a mask that it builds once."""
    model.last = logits_BTW
    if not hasattr(model, "mask") or model.mask.shape[0] < ids_BT.shape[1]:
        model.mask = torch.ones(ids_BT.shape[1], ids_BT.shape[1], dtype=logits_BTW.dtype).tril()
    T = ids_BT.shape[1]
    return logits_BTW + model.mask[:T, :T] @ logits_BTW / T


def rounding(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """Rounding that depends on the rest of the batch."""
    big = logits_BTW.mean() * 1e4
    return logits_BTW + ((logits_BTW + big) - big)


class OwnGenerator(Embedded):
    """Draws from generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.other = torch.Generator().manual_seed(1), np.random.default_rng(1)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(1, generator=self.generator) + self.other.random()
        return super().forward(ids_BT) * drawn.to(self.wte.dtype)


class RunningMean(Embedded):
    """Keeps running statistics of what it sees, and uses those from before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(VOCAB))

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = super().forward(ids_BT)
        normed_BTW = logits_BTW - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * logits_BTW.detach().mean(dim=(0, 1))
        return normed_BTW


class NearTies(Embedded):
    """Two experts whose scores are equal but for rounding, which depends on the batch."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = super().forward(ids_BT)
        shift, score_BT = 100 * logits_BTW.mean(), logits_BTW[..., 0]
        noisy_BT = (score_BT + shift) - shift
        first_BT = noisy_BT > score_BT * (1 + 1e-7)
        return torch.where(first_BT[..., None], 2 * logits_BTW, logits_BTW.relu())


class TiesFirst(NearTies):
    """A leak in the last modes that are tried, after more near-ties than are looked into."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = super().forward(ids_BT)
        return told(logits_BTW, ids_BT, self.training and not torch.is_grad_enabled())


class Recurrent(nn.Module):
    """A GRU, which is causal, over fewer columns than there are ids to come."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.gru, self.head = (
            nn.Embedding(VOCAB, 8),
            nn.GRU(8, 8, batch_first=True),
            nn.Linear(8, VOCAB),
        )

    def forward(self, ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.gru(self.wte(ids_BT))[0])}


class Dropped(Embedded):
    """Dropout of the kind that differs from row to row."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return F.dropout(super().forward(ids_BT), 0.5, self.training)


class InPlace(Embedded):
    """Changes its ids in place."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return super().forward(ids_BT.add_(1).remainder_(VOCAB))


class FixedShape(Embedded):
    """Refuses windows that are not as long as its context."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        if ids_BT.shape[1] != CONTEXT:
            raise ValueError(f"windows must have {CONTEXT} tokens")
        return super().forward(ids_BT)


class Still(Embedded):
    """A head that is all zero, as some initialise it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.zeros_like(self.head))


class SinglePrecision(Embedded):
    """Cannot run in float64, and its parts round differently."""

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        if self.wte.dtype != torch.float32:
            raise RuntimeError("not implemented for 'Double'")
        return super().forward(ids_BT).cumsum(1)


def a_little(model: nn.Module, ids_BT: torch.Tensor, logits_BTW: torch.Tensor) -> torch.Tensor:
    """A little rounding that depends on the batch."""
    big = 8 + logits_BTW.mean()
    return (logits_BTW + big) - big


class Insisting(Embedded):
    """Rounds a little as the batch has it, and insists on single precision by an assertion."""

    def __init__(self) -> None:
        super().__init__(a_little)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        assert self.wte.dtype == torch.float32
        return super().forward(ids_BT)


@cache
def kept_for_all(length: int) -> torch.Tensor:
    """A table that whoever asks first has made, maybe in inference mode."""
    return torch.linspace(0.5, 1.5, length)[:, None]


class Losses(Embedded):
    """Has kept losses with their history in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[str, list[torch.Tensor]] = {"z": []}
        self(torch.zeros(1, 2, dtype=torch.long))

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BTW = super().forward(ids_BT)
        self.losses["z"].append(logits_BTW.logsumexp(dim=-1).mean())
        return logits_BTW


class Wrapped(Embedded):
    """A tuple, a list, a dictionary around the logits."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, ids_BT: torch.Tensor) -> object:  # type: ignore[override]
        logits, loss = super().forward(ids_BT), torch.zeros(())
        forms = {
            "tuple": (logits, loss),
            "list": [logits],
            "dict": {"loss": loss, "logits": logits},
            "ours": {"logits_BTW": logits},
        }
        return forms[self.form]


def gpt2() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    settings = transformers.GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(settings)


def deepseek() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    settings = transformers.DeepseekV3Config(
        **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4},
        **{"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
        **{"q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8},
        **{"v_head_dim": 16, "max_position_embeddings": CONTEXT, "pad_token_id": None},
    )
    return transformers.DeepseekV3ForCausalLM(settings)


CLEAN: dict[str, Callable[[], nn.Module]] = {
    "one token": Embedded,
    "attention": lambda: Embedded(attention(0)),
    "recurrent, in a dictionary": Recurrent,
    "in a tuple": lambda: Wrapped("tuple"),
    "in a list": lambda: Wrapped("list"),
    "in a dictionary with a loss": lambda: Wrapped("dict"),
    "in a dictionary under our name": lambda: Wrapped("ours"),
    "noise of Python's random": lambda: Embedded(noise(random.random)),
    "noise of numpy": lambda: Embedded(noise(np.random.rand)),
    "noise of torch": lambda: Embedded(noise(lambda: float(torch.rand(())))),
    "generators of its own": OwnGenerator,
    "a counter in an attribute": lambda: Embedded(counted),
    "dropout": Dropped,
    "dropout in experts": Dropping,
    "a draw in experts": lambda: Picking(1),
    "several draws in experts": lambda: Picking(3),
    "a complex parameter": lambda: Turning(leaky=False),
    "changes its ids in place": InPlace,
    "running statistics": RunningMean,
    "keeps tensors and masks": lambda: Embedded(kept),
    "rounding that depends on the batch": lambda: Embedded(rounding),
    "near-ties that tip": NearTies,
    "capacity of factor 4 for 4 experts, which never drops": lambda: Embedded(capacity(4.0, 4)),
    "columns padded by minus infinity": lambda: Embedded(padded(-math.inf)),
    "columns padded by -1e9": lambda: Embedded(padded(-1e9)),
    "columns padded by the least number": lambda: Embedded(padded(torch.finfo(torch.float32).min)),
    "refuses other lengths": FixedShape,
    "a head that is zero": Still,
    "single precision": SinglePrecision,
    "a table from a cached function": lambda: Embedded(
        lambda model, ids, logits: logits * kept_for_all(ids.shape[1]).to(logits.dtype)
    ),
    "keeps its losses in a dictionary": Losses,
    "sums in bfloat16 that depend on the batch": lambda: Embedded(half_sums),
    "a little rounding": lambda: Embedded(a_little),
    "a little rounding, and an assertion": Insisting,
    "transformers' GPT-2": gpt2,
    "transformers' DeepSeek-V3": deepseek,
}


def drawn_anew(share: float = 1.0, seed: int = 0) -> Callable[[], float]:
    """A number that `share` of the calls draw, from a source that nobody can seed anew, the same in every test run."""
    source = random.Random(seed)
    return lambda: source.random() if source.random() < share else 0.0


def noise_in_training(source: Callable[[], float]) -> Mix:
    return lambda model, ids_BT, logits_BTW: logits_BTW + (source() if model.training else 0.0)


def rarely_noisy(calls: int, seed: int) -> nn.Module:
    return Embedded(noise(drawn_anew(1 / calls, seed)))


CHANCE: dict[str, Callable[[], nn.Module]] = {
    "generator seeded by the system": lambda: Embedded(
        noise(lambda: float(np.random.default_rng().random()))
    ),
    "the system's random numbers": lambda: Embedded(noise(lambda: random.SystemRandom().random())),
    "noise in training mode": lambda: Embedded(noise_in_training(drawn_anew())),
    **{
        f"noise at one call in {calls}, source {seed}": partial(rarely_noisy, calls, seed)
        for calls in (2, 20, 60)
        for seed in range(4)
    },
}
