"""`comparison.png`: the comparison at a glance, for a README or a slide; six panels under the verdict."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanokimi.report.metrics import Cost
from nanokimi.report.plots import (
    LINES,
    MARKERS,
    PAPER,
    RC,
    Paint,
    draw_logits,
    draw_loss,
    draw_memory,
    draw_position,
    dress,
)
from nanokimi.report.records import Arm, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE_COLOUR = "#b4bbc4"


def draw_bars(axes: Axes, paint: Paint, bars: Sequence[tuple[str, str, float]], x_label: str) -> None:
    """Horizontal bars (name, colour, value) with their numbers, the first on top."""
    names, colours, values = zip(*bars, strict=True)
    dress(axes, paint, x_label, "")
    axes.grid(False)
    places = list(range(len(names)))
    axes.barh(places, values, color=colours, height=0.66)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f" {value:.3f}", (value, place), va="center", color=paint.ink)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.16 * max(values))


def draw_costs(axes: Axes, paint: Paint, arms: Sequence[Arm], costs: Sequence[Cost]) -> None:
    """Groups of bars, each cost as a share of the dearest arm's, with its number where there is room."""
    dress(axes, paint, "Each against the dearest; shorter is cheaper", "")
    axes.grid(False)
    axes.set_xticks([])
    height = 0.8 / len(arms)
    for i, (_, texts, values) in enumerate(costs):
        top = max(values) or 1.0
        for arm, text, value in zip(arms, texts, values, strict=True):
            place = i - 0.4 + height * (arm.slot + 0.5)
            axes.barh(place, value / top, color=paint.arms[arm.slot], height=height * 0.92)
            if len(arms) <= 3:
                axes.annotate(f" {text}", (value / top, place), va="center", color=paint.ink, fontsize=8)
    axes.set_yticks(range(len(costs)), [textwrap.fill(title, 17) for title, _, _ in costs])
    axes.set_ylim(len(costs) - 0.45, -0.55)
    axes.set_xlim(0, 1.3)


def comparison_png(report: Record, arms: Sequence[Arm], costs: Sequence[Cost]) -> bytes:
    """The picture."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    with rc_context(RC):
        layout = ConstrainedLayoutEngine(rect=(0.01, 0.05, 0.98, 0.94), w_pad=0.12, h_pad=0.12)
        figure = Figure(figsize=(15, 9.2), layout=layout)
        _draw_panels(figure, report, arms, costs)
        figure.suptitle(_balanced(report["verdict"]["sentence"], 105), fontsize=15, fontweight="bold")
        keys = [
            Line2D([], [], color=PAPER.arms[s], linestyle=LINES[s], marker=MARKERS[s], label=label)
            for s, label in ((arm.slot, arm.label) for arm in arms)
        ]
        for arm in [arm for arm in arms if arm.spikes][:1]:
            key = Line2D([], [], color=PAPER.muted, linestyle="none", marker=MARKERS[arm.slot])
            key.set(markerfacecolor="none", label="hollow, upper edge: loss spike")
            keys.append(key)
        figure.legend(handles=keys, loc="lower center", ncols=len(keys), fontsize=11)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()


def _balanced(text: str, width: int) -> str:
    lines = len(textwrap.wrap(text, width))
    return textwrap.fill(text, min(width, len(text) // lines + 8))


def _draw_panels(figure: Figure, report: Record, arms: Sequence[Arm], costs: Sequence[Cost]) -> None:
    baselines = report["data"].get("baselines") or {}
    panels = iter(figure.subplots(2, 3).flat)

    def panel(title: str) -> Axes:
        axes: Axes = next(panels)
        axes.set_title(title, loc="left", fontsize=11, color=PAPER.ink, pad=18)
        return axes

    draw_loss(panel("Loss by step"), PAPER, arms, "step", baselines)
    draw_loss(panel("Loss by training time"), PAPER, arms, "train_seconds", baselines)
    scores = [(a.label, PAPER.arms[a.slot], a.facts["val_bits_per_byte"]) for a in arms]
    scores += [(name, BASELINE_COLOUR, b["bits_per_byte"]) for name, b in baselines.items()]
    measured = [score for score in scores if score[2] is not None]
    if measured:
        draw_bars(panel("Validation text, beside simple baselines"), PAPER, measured, "Bits per byte")
    if costs:
        draw_costs(panel("Cost"), PAPER, arms, costs)
    if any(a.facts.get("loss_by_position") for a in arms):
        draw_position(panel("Loss by position"), PAPER, arms)
    for arm in arms:
        if arm.kind("attention"):
            draw_logits(panel(f"Largest attention logit, {arm.name}"), PAPER, arm)
            break
    else:
        if any("memory_bytes" in r for a in arms for r in a.kind("train")):
            draw_memory(panel("Memory"), PAPER, arms)
    for axes in panels:
        axes.set_axis_off()
