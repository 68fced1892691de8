"""The panels of the page, as small SVGs.

Each is drawn on one matplotlib Axes by a `draw_*` function, which `picture` uses too. Page colours are placeholders
that become CSS variables, so one SVG suits light and dark screens and paper. Text stays text, in the page's font.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from nanokimi.report import units
from nanokimi.report.records import (
    SLOTS,
    X_AXES,
    Arm,
    Band,
    Record,
    Series,
    loss_limits,
    peaks,
    series,
    spike_places,
    spread_series,
)
from nanokimi.runtime.drawing import drawing, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = (4.5, 2.8)
NARROW = (3.4, 2.5)
FLAT = (3.4, 2.0)
"""Sizes of panels in inches: two wide, three narrow or three flat ones fill a row, all with text of the same size."""
DASHES = (
    (),
    (5, 1.6),
    (1.2, 1.4),
    (6, 1.5, 1.2, 1.5),
    (3, 3),
    (9, 2),
    (7, 1.5, 1.2, 1.5, 1.2, 1.5),
    (2.5, 1.2),
)
LINES = tuple((0, dashes) for dashes in DASHES)
HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++", "//--")
"""Of bars, so that they differ without colours."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MAX_MARKERS, FEWER_MARKERS = 25, 8
"""On a curve; the fewer where more than SLOTS arms are drawn, at other places of each."""
SELDOM = 0.1
"""Of the tokens at the first position of a text: how many another must have for its mean loss to be drawn."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """The colours of a figure, with those of arms in the order of the comparison."""

    ink: str
    muted: str
    grid: str
    arms: tuple[str, ...]
    paper: str = "#ffffff"
    """What lies behind the figure; the lines of a hatch are drawn in it."""


PAGE = Paint(
    ink="#010101",
    muted="#010102",
    grid="#010103",
    arms=tuple(f"#02020{slot}" for slot in range(SLOTS)),
    paper="#010104",
)
PAGE_VARIABLES = {
    PAGE.ink: "--ink",
    PAGE.muted: "--muted",
    PAGE.grid: "--line",
    PAGE.paper: "--card",
    **{placeholder: f"--arm-{slot}" for slot, placeholder in enumerate(PAGE.arms)},
}
PAPER = Paint(
    ink="#1b1f24",
    muted="#5a6370",
    grid="#e3e6ea",
    arms=("#0067a5", "#c4520a", "#00795c", "#a0478a", "#806400", "#4d5866", "#8c2f2f", "#5b45b0"),
)
RC: dict[Any, Any] = {
    "font.size": 8.6,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in an arm's name is a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.2,
    "lines.linewidth": 1.7,
}


class Frame(NamedTuple):
    """Where the axes lie in a picture, as parts of its width and height from its upper left, and what they show."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]


def svg(name: str, inches: tuple[float, float], draw: Callable[..., None], *arguments: Any) -> str:
    """What `draw` draws, as an `<svg>` element that takes colours and font from the page around it."""
    return framed_svg(name, inches, draw, *arguments)[0]


def framed_svg(
    name: str, inches: tuple[float, float], draw: Callable[..., None], *arguments: Any
) -> tuple[str, Frame]:
    """Like `svg`, with the place of the axes in it."""
    with drawing({**RC, "svg.hashsalt": name}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.subplots()
        draw(axes, PAGE, *arguments)
        text = _for_page(svg_of(figure, dpi=200), name)  # which also lays the figure out
        box = axes.get_position()
        frame = Frame(box.x0, 1 - box.y1, box.width, box.height, axes.get_xlim(), axes.get_ylim())
        return text, frame


def _for_page(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    for placeholder, variable in PAGE_VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)


def dress(axes: Axes, paint: Paint, x_label: str, y_label: str) -> None:
    """Set labels, a light grid and muted axes."""
    axes.set_xlabel(x_label, color=paint.muted)
    axes.set_ylabel(y_label, color=paint.muted)
    axes.tick_params(colors=paint.muted, which="both", length=3, width=0.6)
    axes.grid(True, axis="y", color=paint.grid, linewidth=0.8)
    axes.grid(False, axis="x")
    for spine in axes.spines.values():
        spine.set_color(paint.grid)


def draw_range(axes: Axes, paint: Paint, values: Sequence[float], place: float, ends: float = 7) -> None:
    """Draw a line from the lowest to the highest value, if they differ; its ends are so many points high."""
    if len(set(values)) > 1:
        low_high = [min(values), max(values)]
        axes.plot(low_high, [place] * 2, color=paint.ink, linewidth=1.3, marker="|", markersize=ends)


def short_ticks(axes: Axes) -> None:
    """Set at most six ticks, with short labels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(units.tick))


def arm_line(
    axes: Axes,
    points: Series,
    arm: Arm,
    paint: Paint,
    *,
    marks: bool = True,
    width: float | None = None,
    crowded: bool = False,
) -> None:
    """Draw a curve in the arm's colour and line style, with its marker as `mark_of` says."""
    xs, ys = points
    every = max(1, -(-len(xs) // (FEWER_MARKERS if crowded else MAX_MARKERS)))
    axes.plot(
        xs,
        ys,
        color=paint.arms[arm.style.colour],
        linestyle=LINES[arm.style.dash],
        linewidth=width,
        marker=mark_of(arm, marks),
        markersize=4.5,
        markevery=(5 * arm.slot % every if crowded else 0, every),
        label=arm.label,
    )


def mark_of(arm: Arm, marks: bool) -> str | None:
    """The marker of an arm's curve; without `marks`, only arms have one whose dashes are those of an earlier arm."""
    return MARKERS[arm.style.mark] if marks or arm.slot >= SLOTS else None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number that changes through a run, and how it is drawn against a budget."""

    record: str
    """The kind of record that has it."""
    key: str
    label: str
    smoothed: bool = False
    """Whether it is averaged over the last steps."""


LOSS = Curve(record="eval", key="val_loss", label="Validation loss (nats per token)")
BITS = Curve(record="eval", key="val_bits_per_byte", label="Validation loss (bits per byte)")
TRAINING = Curve(record="train", key="loss", label="Training loss (nats per token)", smoothed=True)
RATE = Curve(record="train", key="lr", label="Learning rate")


def band_of(arm: Arm, curve: Curve, x_key: str) -> Band:
    """An arm's curve over its seeds."""
    window = arm.smoothing if curve.smoothed else 1
    return spread_series(arm.runs, curve.record, x_key, curve.key, window)


def draw_bands(axes: Axes, paint: Paint, arms: Sequence[Arm], curve: Curve, x_key: str) -> list[Series]:
    """Draw every arm's mean over a band from the lowest to the highest seed; returns the band's edges by step."""
    dress(axes, paint, X_AXES[x_key], curve.label)
    short_ticks(axes)
    edges: list[Series] = []
    crowded = len(arms) > SLOTS
    width = 1.1 if crowded else None if curve.smoothed else 2.2
    for arm in arms:
        band = band_of(arm, curve, x_key)
        if len(arm.runs) > 1:
            axes.fill_between(
                band.xs, band.lows, band.highs, color=paint.arms[arm.style.colour], alpha=0.2, linewidth=0
            )
        arm_line(axes, band.mean, arm, paint, marks=not curve.smoothed, width=width, crowded=crowded)
        by_step = band_of(arm, curve, "step")
        edges += [(by_step.xs, by_step.lows), (by_step.xs, by_step.highs)]
    return edges


def draw_loss(
    axes: Axes,
    paint: Paint,
    arms: Sequence[Arm],
    x_key: str,
    baselines: Sequence[Record],
    curve: Curve = LOSS,
) -> None:
    """Draw the validation loss over a band of its seeds, with the baselines (`nats` is their place) as levels."""
    low, high = loss_limits(draw_bands(axes, paint, arms, curve, x_key))
    floors = [one["nats"] for one in baselines if "floor" in one["key"] and one["nats"] is not None]
    if floors:  # keep the best possible loss visible
        low = min(low, min(floors) - 0.06 * (high - min(floors)))
    axes.set_ylim(low, high)
    _draw_levels(axes, paint, baselines, low, high)


def draw_training(axes: Axes, paint: Paint, arms: Sequence[Arm], x_key: str = "step") -> None:
    """Draw the smoothed training loss over a band of its seeds.

    Loss spikes, which smoothing hides and the axis may leave out, are hollow marks on the upper edge.
    """
    axes.set_ylim(*loss_limits(draw_bands(axes, paint, arms, TRAINING, x_key)))
    for arm in arms:
        _mark_spikes(axes, [place for run in arm.runs for place in spike_places(run, x_key)], arm, paint)


def draw_rate(axes: Axes, paint: Paint, arms: Sequence[Arm], x_key: str) -> None:
    """Draw the learning rate, which is that of every seed."""
    draw_bands(axes, paint, arms, RATE, x_key)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    axes.yaxis.get_offset_text().set_color(paint.muted)


def _draw_levels(axes: Axes, paint: Paint, baselines: Sequence[Record], low: float, high: float) -> None:
    """Draw each baseline as a level. Those above the axis are named at its top, and close ones on alternate sides."""
    levels: dict[float, str] = {}
    for one in baselines:
        if one["nats"] is not None:
            name = f"{levels[one['nats']]} = {one['name']}" if one["nats"] in levels else one["name"]
            levels[one["nats"]] = name
    previous, right = -math.inf, False
    for nats in sorted(nats for nats in levels if low < nats < high):
        crowded = nats - previous < 0.07 * (high - low)
        right = not right if crowded else nats > low + (high - low) / 3
        level_line(axes, nats, levels[nats], paint.muted, right=right)
        previous = nats
    above = [f"{name} {nats:.3f}" for nats, name in levels.items() if nats >= high]
    if above:
        axes.annotate(
            "above: " + ", ".join(above),
            (1, 1),
            xycoords="axes fraction",
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color=paint.muted,
            fontsize=8,
        )


def _mark_spikes(axes: Axes, places: Sequence[float], arm: Arm, paint: Paint) -> None:
    if not places:
        return
    axes.plot(
        places,
        [1.0] * len(places),
        transform=axes.get_xaxis_transform(),
        color=paint.arms[arm.style.colour],
        linestyle="none",
        marker=MARKERS[arm.style.mark],
        markersize=5,
        markerfacecolor="none",
        markeredgewidth=0.9,
        clip_on=False,
    )


def level_line(axes: Axes, value: float, name: str, colour: str, *, right: bool = False) -> None:
    """Draw a dashed level with its name above it, on the left or right, wherever curves are far away."""
    axes.axhline(value, color=colour, linewidth=0.85, linestyle=(0, (2, 2)))
    axes.annotate(
        name,
        (1 if right else 0, value),
        xycoords=("axes fraction", "data"),
        xytext=(-3 if right else 3, 3),
        textcoords="offset points",
        ha="right" if right else "left",
        color=colour,
        fontsize=8,
    )


def position_losses(arm: Arm) -> list[float]:
    """The mean over seeds of the loss at each position; empty if a run has none.

    Where texts are scored from their beginnings, few reach the last positions, and a mean of a few tokens says nothing:
    positions behind the last one with SELDOM of the tokens of the first are left out.
    """
    rows = [run.metadata.get("loss_by_position") or [] for run in arm.runs]
    if not rows or not all(rows):
        return []
    # older results have no counts
    counts = arm.runs[0].metadata.get("tokens_by_position") or [1] * len(rows[0])
    often = max(place for place, count in enumerate(counts, start=1) if count >= SELDOM * max(counts))
    return [sum(column) / len(rows) for column in zip(*rows, strict=False)][:often]


def draw_position(axes: Axes, paint: Paint, arms: Sequence[Arm]) -> None:
    """Draw the loss of the 1st, 2nd, ... token of a window, which shows what more context is worth."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    dress(axes, paint, "Position in the context (tokens, log scale)", "Loss (nats per token)")
    longest = 1
    for arm in arms:
        losses = position_losses(arm)
        longest = max(longest, len(losses))
        points = ([float(i + 1) for i in range(len(losses))], list(losses))
        arm_line(axes, points, arm, paint, marks=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**i for i in range(int(math.log2(longest)) + 1)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(units.tick))


def draw_memory(axes: Axes, paint: Paint, arms: Sequence[Arm]) -> None:
    """Draw the memory in MB after each step of the first seed."""
    dress(axes, paint, "Optimizer steps", "Memory (MB)")
    short_ticks(axes)
    for arm in arms:
        xs, ys = peaks(series(arm.kind("train"), "step", "memory_bytes"))
        arm_line(axes, (xs, [y / 1e6 for y in ys]), arm, paint, marks=False)
    axes.set_ylim(bottom=0)
