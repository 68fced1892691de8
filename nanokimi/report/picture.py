"""`comparison.png`: the comparison at a glance, for a README or a slide, in six panels under a title."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanokimi.report.metrics import BITS_PER_BYTE, Cost, value_of, values_of
from nanokimi.report.pairs import headline, make_strip
from nanokimi.report.plots import (
    HATCHES,
    LINES,
    PAPER,
    RC,
    Paint,
    draw_loss,
    draw_position,
    draw_range,
    dress,
    mark_of,
    position_losses,
)
from nanokimi.report.records import SLOTS, TOLD_APART, Arm, Record, baseline_scores
from nanokimi.runtime.drawing import drawing, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE_COLOUR = "#b4bbc4"
TITLE_WIDTH = 120
"""Characters of the title, which has at most two lines, in a line."""


Bar = tuple[str, str, float, list[float]]
"""Name, colour, value, and the values of single seeds."""


def draw_bars(axes: Axes, paint: Paint, bars: Sequence[Bar], x_label: str) -> None:
    """Horizontal bars with their numbers and a line from the lowest to the highest seed, the first on top."""
    names, colours, values, seeds = zip(*bars, strict=True)
    ends = [max([value, *own]) for value, own in zip(values, seeds, strict=True)]
    dress(axes, paint, x_label, "")
    axes.grid(False)
    places = list(range(len(names)))
    axes.barh(places, values, color=colours, height=0.66)
    for place, value in enumerate(values):
        draw_range(axes, paint, seeds[place], place)
        axes.annotate(f" {value:.3f}", (ends[place], place), va="center", color=paint.ink)
    axes.set_yticks(places, [textwrap.fill(name, 24) for name in names])
    axes.tick_params(axis="y", labelsize=8 if len(names) > 9 else 8.6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.16 * max(ends))


def draw_costs(axes: Axes, paint: Paint, arms: Sequence[Arm], costs: Sequence[Cost]) -> None:
    """Groups of bars: each cost as a share of the highest, with its seeds, and its number if there is room."""
    dress(axes, paint, "Each relative to the highest; shorter is cheaper", "")
    axes.grid(False)
    axes.set_xticks([])
    height = 0.8 / len(arms)
    for i, (_, texts, values, seeds) in enumerate(costs):
        top = max(values) or 1.0
        for row, (arm, text, value, own) in enumerate(zip(arms, texts, values, seeds, strict=True)):
            place = i - 0.4 + height * (row + 0.5)
            style: dict[str, Any] = dict(hatch=HATCHES[arm.style.dash], edgecolor=paint.paper, linewidth=0)
            axes.barh(place, value / top, color=paint.arms[arm.style.colour], height=height * 0.92, **style)
            draw_range(axes, paint, [one / top for one in own], place, ends=5)
            if len(arms) <= 3:
                end = max([value, *own]) / top
                axes.annotate(f" {text}", (end, place), va="center", color=paint.ink, fontsize=7.5)
    axes.set_yticks(range(len(costs)), [textwrap.fill(cost[0], 17) for cost in costs])
    axes.set_ylim(len(costs) - 0.45, -0.55)
    axes.set_xlim(0, 1.3)


def draw_pairs(axes: Axes, paint: Paint, rows: Sequence[Record], key: str = "") -> None:
    """Differences of test loss, with a thick interval over seeds and a thin one over text, which `key` explains.

    Filled marks: decided.
    """
    label = "First minus second (nats per token); left: the first is lower"
    dress(axes, paint, f"{label}\n{key}" if key else label, "")
    axes.grid(True, axis="x", color=paint.grid, linewidth=0.8)
    axes.grid(False, axis="y")
    axes.axvline(0, color=paint.ink, linewidth=1.0)
    for place, row in enumerate(rows):
        one = row["metadata"]
        if one["mean"] is None:
            continue
        colour = paint.ink if row["decided"] else paint.muted
        if one.get("ci95"):
            axes.plot(one["ci95"], [place] * 2, color=colour, linewidth=4, alpha=0.55, solid_capstyle="butt")
        if one.get("text95"):
            axes.plot(one["text95"], [place + 0.24] * 2, color=paint.muted, linewidth=0.9)
        face = colour if row["decided"] else paint.paper
        axes.plot([one["mean"]], [place], "o", markersize=6, color=colour, markerfacecolor=face)
    names = [f"{row['first'].label} - {row['second'].label}" for row in rows]
    axes.set_yticks(range(len(rows)), [textwrap.fill(name, 30) for name in names])
    axes.tick_params(axis="y", labelcolor=paint.ink, length=0, labelsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.08)


def key_of_pairs(strip: Record) -> str:
    """What the intervals of `draw_pairs` are of."""
    text = "thin: over the text alone, decides nothing" if strip["over_text"] else ""
    seeds = "thick: 95% interval, which decides" if strip["over_seeds"] else "one seed"
    return f"{seeds}; {text}" if text else seeds


def comparison_png(report: Record, arms: Sequence[Arm], costs: Sequence[Cost]) -> bytes:
    """The picture as a PNG file."""
    with drawing(RC):
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        foot = 0.05 if len(arms) <= 4 else 0.08
        layout = ConstrainedLayoutEngine(rect=(0.01, foot, 0.98, 0.99 - foot), w_pad=0.12, h_pad=0.12)
        figure = Figure(figsize=(15, 9.2), layout=layout)
        _draw_panels(figure, report, arms, costs)
        title = textwrap.shorten(headline(report, arms), 2 * TITLE_WIDTH, placeholder=" ...")
        figure.suptitle(textwrap.fill(title, TITLE_WIDTH), fontsize=13, fontweight="bold")
        note = TOLD_APART if len(arms) > SLOTS else None
        place: dict[str, Any] = dict(loc="lower center", ncols=min(4, len(arms)))
        figure.legend(handles=keys_of(arms), title=note, fontsize=11, **place)
        return png_of(figure, dpi=120)


def keys_of(arms: Sequence[Arm], *, marks: bool = True) -> list[Any]:
    """The entries of a legend: each arm's colour, line style and marker (as `mark_of` says) with its name."""
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [],
            [],
            color=PAPER.arms[arm.style.colour],
            linestyle=LINES[arm.style.dash],
            marker=mark_of(arm, marks),
            label=arm.label,
        )
        for arm in arms
    ]


def _draw_panels(figure: Figure, report: Record, arms: Sequence[Arm], costs: Sequence[Cost]) -> None:
    baselines = baseline_scores(report["data"], arms)
    panels = iter(figure.subplots(2, 3).flat)

    def panel(title: str) -> Axes:
        axes: Axes = next(panels)
        axes.set_title(title, loc="left", fontsize=11, color=PAPER.ink, pad=18)
        return axes

    several = any(len(arm.runs) > 1 for arm in arms)
    lines = "; band: seeds" if several else ""
    draw_loss(panel(f"Validation loss by step{lines}"), PAPER, arms, "step", baselines)
    draw_loss(panel("Validation loss by training time"), PAPER, arms, "train_seconds", baselines)
    bits = [(arm, value_of(arm, BITS_PER_BYTE)) for arm in arms]
    bars: list[Bar] = [
        (arm.label, PAPER.arms[arm.style.colour], value, values_of(arm, BITS_PER_BYTE))
        for arm, value in bits
        if value is not None
    ]
    bars += [
        (b["name"], BASELINE_COLOUR, b["bits_per_byte"], [])
        for b in baselines
        if b["bits_per_byte"] is not None
    ]
    spread = "; line: seeds" if several else ""
    if bars:
        draw_bars(panel(f"Test text and simple baselines{spread}"), PAPER, bars, "Bits per byte")
    strip = make_strip(report, arms)
    if strip:
        draw_pairs(panel("Differences of test loss"), PAPER, strip["rows"], key_of_pairs(strip))
    if costs:
        draw_costs(panel(f"Cost{spread}"), PAPER, arms, costs)
    if any(position_losses(arm) for arm in arms):
        draw_position(panel("Test loss by position"), PAPER, arms)
    for axes in panels:
        axes.set_axis_off()
