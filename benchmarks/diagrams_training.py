"""The diagrams of how Kimi K2 is trained: balancing, Muon and QK-Clip, with curves from our own functions."""

from __future__ import annotations

import math
import random
from statistics import fmean
from typing import NamedTuple

import torch
from svg_canvas import Sheet

from nanokimi.config.files import load_config
from nanokimi.model.moe import Router
from nanokimi.optim.muon import newton_schulz

TAU = 100.0


class Frame(NamedTuple):
    """A chart's place on the sheet, from 0 to `most` upwards."""

    left: float
    right: float
    top: float
    bottom: float
    most: float

    def at(self, share: float, value: float) -> tuple[float, float]:
        """The point at a share of the width and a value of the upward axis."""
        x = self.left + (self.right - self.left) * share
        return x, self.bottom - (self.bottom - self.top) * value / self.most

    def grid(self, sheet: Sheet, values: dict[str, float]) -> None:
        """A faint line for each labelled value."""
        for label, value in values.items():
            sheet.path([self.at(0, value), self.at(1, value)], "faint")
            sheet.text(self.left - 8, self.at(0, value)[1] + 5, label, "small muted", "end")


def balance_history(steps: int = 200, tokens: int = 256, speed: float = 2e-3) -> list[list[float]]:
    """Each expert's share of the choices, step by step, when our `update_bias_` balances a lopsided router."""
    config = load_config("tales").nanokimi.model
    experts, router, generator = range(config.n_routed_experts), Router(config), random.Random(7)
    liking = [0.75 * math.cos(math.pi * e / (len(experts) - 1)) for e in experts]
    shares = []
    for _ in range(steps):
        bias, counts = router.e_score_correction_bias.tolist(), [0] * len(experts)
        for _ in range(tokens):
            scores = [1 / (1 + math.exp(-generator.gauss(liking[e], 1))) + bias[e] for e in experts]
            for e in sorted(experts, key=scores.__getitem__, reverse=True)[: config.num_experts_per_tok]:
                counts[e] += 1
        shares.append([n / sum(counts) for n in counts])
        router.update_bias_(torch.tensor(counts, dtype=torch.float32), speed)
    return shares


def balancing() -> Sheet:
    """A step of the bias update, and what two hundred of them do."""
    shares, together = balance_history(), 5
    experts = len(shares[0])
    sheet = Sheet(
        640, 520, "Balancing by a bias: busy experts' biases go down, idle experts' go up, until it is even"
    )
    sheet.text(24, 34, "One step: count the tokens of each expert, then move its bias", "title", "start")
    bars = Frame(74, 616, 60, 190, 0.3)
    for e, share in enumerate(shares[0]):
        busy, x = share > 1 / experts, 84.0 + e * 66
        top = bars.at(0, share)[1]
        sheet.box(x, top, 46, bars.bottom - top, role="kept" if busy else "plain", radius=0)
        sheet.text(x + 23, bars.bottom + 20, f"{e + 1}", "small muted")
        sheet.text(x + 23, bars.bottom + 44, "bias -" if busy else "bias +", "small title")
    sheet.path([bars.at(0, 0), bars.at(1, 0)], "faint")
    even = 1 / experts
    sheet.path([bars.at(0, even), bars.at(1, even)], "limit")
    sheet.text(616, bars.at(1, even)[1] - 8, "even share", "small", "end")
    sheet.text(24, bars.bottom + 20, "expert", "small muted", "start")

    sheet.text(24, 284, "The same router, step after step", "title", "start")
    note = "Share of all choices. Solid: began above the even share, dashed: below; thin: even share."
    sheet.text(24, 306, note, "small muted", "start")
    chart = Frame(84, 600, 320, 450, 0.3)
    chart.grid(sheet, {"0%": 0.0, "10%": 0.1, "20%": 0.2})
    for e in range(experts):
        points = [
            chart.at(t / len(shares), fmean(row[e] for row in shares[t : t + together]))
            for t in range(0, len(shares), together)
        ]
        sheet.path(points, "first" if shares[0][e] > even else "second")
    sheet.path([chart.at(0, even), chart.at(1, even)])
    for t in range(0, len(shares) + 1, 50):
        sheet.text(chart.at(t / len(shares), 0)[0], chart.bottom + 22, f"{t}", "small muted")
    sheet.text(chart.at(0.5, 0)[0], chart.bottom + 44, "steps", "small muted")
    return sheet


def muon() -> Sheet:
    """A momentum matrix as an ellipse, its update as a circle, and what Newton-Schulz does to any singular value."""
    sheet = Sheet(
        640, 560, "Muon: an update moves equally far in every direction, however small the gradient is there"
    )
    turn, sizes = math.radians(28), (1.0, 0.12)
    cos, sin = math.cos(turn), math.sin(turn)
    basis = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    momentum = basis @ torch.diag(torch.tensor(sizes, dtype=torch.float64)) @ basis.T
    update = newton_schulz(momentum)
    first, second = torch.linalg.svdvals(update).tolist()
    sheet.text(160, 36, "momentum", "title")
    ellipse(sheet, 160, momentum, basis)
    sheet.text(160, 244, f"{sizes[0]:.2f} in one direction, {sizes[1]:.2f} in the other", "small muted")
    sheet.text(480, 36, "Muon's update", "title")
    ellipse(sheet, 480, update, basis)
    sheet.text(480, 244, f"{first:.2f} in one, {second:.2f} in the other", "small muted")
    sheet.arrow((272, 134), (366, 134))
    sheet.text(319, 122, "newton_schulz", "code muted")
    sheet.text(319, 200, "grey circle: 1", "small muted")

    sheet.text(24, 296, "What five iterations make of a singular value", "title", "start")
    sheet.text(24, 318, "after", "small muted", "start")
    chart, decades = Frame(84, 600, 320, 480, 1.4), 4
    (left, top), (right, bottom) = chart.at(0, 1.2), chart.at(1, 0.7)
    sheet.box(left, top, right - left, bottom - top, role="turned", radius=0)
    sheet.text(right - 8, top - 6, "0.7 to 1.2", "small", "end")
    chart.grid(sheet, {"0": 0.0, "0.5": 0.5, "1": 1.0})
    shares = [i / 400 for i in range(401)]
    sheet.path([chart.at(share, orthogonalised(10 ** (decades * (share - 1)))) for share in shares], "first")
    for power in range(-decades, 1):
        label = f"{10.0**power:g}"
        sheet.text(chart.at(1 + power / decades, 0)[0], chart.bottom + 22, label, "small muted")
    before = "singular value before, as a share of the matrix's norm"
    sheet.text(chart.at(0.5, 0)[0], chart.bottom + 46, before, "small muted")
    return sheet


def ellipse(sheet: Sheet, x: float, matrix: torch.Tensor, basis: torch.Tensor) -> None:
    """What a matrix makes of a circle of size 1 (grey), and of two directions."""
    y, size = 134.0, 78.0
    around = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(0, 361, 5)]
    image = (torch.tensor(around, dtype=torch.float64) @ matrix.T).tolist()
    sheet.path([(x + size * a, y - size * b) for a, b in around], "faint")
    sheet.path([(x + size * a, y - size * b) for a, b in image], "first")
    for a, b in (matrix @ basis).T.tolist():
        sheet.arrow((x, y), (x + size * a, y - size * b))


def orthogonalised(singular_value: float) -> float:
    """What `newton_schulz` makes of one singular value of a matrix of norm 1."""
    other = math.sqrt(max(0.0, 1 - singular_value**2))
    matrix = torch.diag(torch.tensor([singular_value, other], dtype=torch.float64))
    return newton_schulz(matrix)[0, 0].item()


def qk_clip() -> Sheet:
    """The largest logit of each head before and after, and which weights take which part of the factor."""
    before = [62.0, 178.0, 91.0]
    gamma = [min(1.0, TAU / logit) for logit in before]
    factor = gamma[1]
    sheet = Sheet(
        640, 500, "QK-Clip: a head whose largest logit is above tau is scaled down to tau, the others stay"
    )
    largest_logits(sheet, 64, "after a step's forward passes", before)
    largest_logits(sheet, 374, "after QK-Clip", [g * logit for g, logit in zip(gamma, before, strict=True)])
    words = f"Head 2: gamma = {TAU:.0f} / {before[1]:.0f} = {factor:.2f}. Its weights are multiplied by"
    sheet.text(24, 292, words, "title", "start")
    root = ("root of gamma", f"{factor**0.5:.2f}")
    sheet.box(24, 312, 139, 70, ("query", *root), "turned", "small")
    sheet.box(175, 312, 139, 70, ("key", *root), "turned", "small")
    sheet.box(326, 312, 139, 70, ("rotary query", "gamma", f"{factor:.2f}"), "turned", "small")
    sheet.box(477, 312, 139, 70, ("rotary key", "left alone", "1"), "kept", "small")
    for left in (44.0, 346.0):
        sheet.path([(left, 392), (left, 402), (left + 250, 402), (left + 250, 392)])
        sheet.text(left + 125, 422, f"their product: {factor:.2f}", "small")
    shared = "All heads share the rotary key. To change it would change heads 1 and 3,"
    sheet.text(320, 460, shared, "small muted")
    sheet.text(320, 480, "so the rotary query of head 2 takes the whole factor.", "small muted")
    return sheet


def largest_logits(sheet: Sheet, left: float, title: str, logits: list[float]) -> None:
    """A bar for each head, beside tau."""
    sheet.text(left + 120, 34, title, "title")
    bars = Frame(left, left + 240, 46, 226, 200)
    for head, logit in enumerate(logits):
        x, top = left + 16 + head * 76, bars.at(0, logit)[1]
        role, text = ("turned", "small title") if logit >= TAU else ("plain", "small")
        sheet.box(x, top, 52, bars.bottom - top, role=role, radius=0)
        sheet.text(x + 26, top + 22, f"{logit:.0f}", text)
        sheet.text(x + 26, bars.bottom + 20, f"head {head + 1}", "small muted")
    sheet.path([bars.at(0, 0), bars.at(1, 0)], "faint")
    sheet.path([bars.at(0, TAU), bars.at(1, TAU)], "limit")
    sheet.text(left - 8, bars.at(0, TAU)[1] + 5, "tau", "small", "end")
