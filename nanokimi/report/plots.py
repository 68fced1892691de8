"""The panels of the page, as small SVGs.

Each is drawn on one matplotlib Axes by a `draw_*` function, which `picture` uses too. Page colours are placeholders
that become CSS variables: one SVG then suits light, dark and paper. Text stays text, in the page's own font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from nanokimi.report import units
from nanokimi.report.records import (
    BUDGETS,
    Arm,
    Record,
    Series,
    by_layer,
    expert_shares,
    loss_limits,
    peaks,
    series,
    spike_places,
    training_curve,
    validation_curve,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = (4.5, 2.8)
NARROW = (3.4, 2.5)
FLAT = (3.4, 2.0)
"""Panels in inches: two, three or three to a row, so that text has one size on the page."""
LINES = ((0, ()), (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 3)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
MAX_MARKERS = 25


@dataclass(frozen=True, kw_only=True)
class Paint:
    """The colours of a figure; arms come in the order of the comparison."""

    ink: str
    muted: str
    grid: str
    arms: tuple[str, ...]


PAGE = Paint(ink="#010101", muted="#010102", grid="#010103", arms=tuple(f"#02020{slot}" for slot in range(6)))
PAGE_VARIABLES = {PAGE.ink: "--ink", PAGE.muted: "--muted", PAGE.grid: "--line"} | {
    placeholder: f"--arm-{slot}" for slot, placeholder in enumerate(PAGE.arms)
}
PAPER = Paint(
    ink="#1b1f24",
    muted="#5a6370",
    grid="#e3e6ea",
    arms=("#0067a5", "#c4520a", "#00795c", "#a0478a", "#806400", "#4d5866"),
)
RC: dict[Any, Any] = {
    "font.size": 8.6,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.2,
    "lines.linewidth": 1.7,
}


def svg(name: str, inches: tuple[float, float], draw: Callable[..., None], *arguments: Any) -> str:
    """`draw` with its arguments as an `<svg>` element that takes colours and font from the page around it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**RC, "svg.hashsalt": name}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.subplots(), PAGE, *arguments)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, dpi=200)
    return _for_page(buffer.getvalue(), name)


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
    """Labels, light grid, quiet axes."""
    axes.set_xlabel(x_label, color=paint.muted)
    axes.set_ylabel(y_label, color=paint.muted)
    axes.tick_params(colors=paint.muted, which="both", length=3, width=0.6)
    axes.grid(True, axis="y", color=paint.grid, linewidth=0.8)
    axes.grid(False, axis="x")
    for spine in axes.spines.values():
        spine.set_color(paint.grid)


def _short_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(units.tick))


def _arm_line(axes: Axes, points: Series, arm: Arm, paint: Paint, *, marks: bool = True) -> None:
    xs, ys = points
    axes.plot(
        xs,
        ys,
        color=paint.arms[arm.slot],
        linestyle=LINES[arm.slot],
        marker=MARKERS[arm.slot] if marks else None,
        markersize=4.5,
        markevery=max(1, -(-len(xs) // MAX_MARKERS)),
        label=arm.label,
    )


def draw_loss(axes: Axes, paint: Paint, arms: Sequence[Arm], x_key: str, baselines: Record) -> None:
    """Validation loss (markers) over smoothed training loss (thin), with the baselines that fit the axis.

    Loss spikes, which the smoothing hides and the axis may leave out, are hollow marks on the upper edge.
    """
    dress(axes, paint, BUDGETS[x_key], "Loss (nats per token)")
    _short_ticks(axes)
    for arm in arms:
        xs, ys = training_curve(arm, x_key)
        axes.plot(xs, ys, color=paint.arms[arm.slot], linewidth=0.9, alpha=0.45)
        _arm_line(axes, validation_curve(arm, x_key), arm, paint)
        _mark_spikes(axes, spike_places(arm, x_key), arm, paint)
    low, high = loss_limits(arms)
    floor = (baselines.get("floor") or {}).get("test_loss")
    if floor is not None:  # the best possible loss is always in sight
        low = min(low, floor - 0.06 * (high - floor))
    axes.set_ylim(low, high)
    for name, baseline in baselines.items():
        value = baseline["test_loss"]
        if value is not None and low < value < high:
            _level(axes, value, name, paint.muted, right=value > low + (high - low) / 3)


def _mark_spikes(axes: Axes, places: Sequence[float], arm: Arm, paint: Paint) -> None:
    if not places:
        return
    axes.plot(
        places,
        [1.0] * len(places),
        transform=axes.get_xaxis_transform(),
        color=paint.arms[arm.slot],
        linestyle="none",
        marker=MARKERS[arm.slot],
        markersize=5,
        markerfacecolor="none",
        markeredgewidth=0.9,
        clip_on=False,
    )


def _level(axes: Axes, value: float, name: str, colour: str, *, right: bool = False) -> None:
    """A dashed level with its name above it, at the end where falling (right) or rising curves are far away."""
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


def draw_position(axes: Axes, paint: Paint, arms: Sequence[Arm]) -> None:
    """Loss of the 1st, 2nd, ... token of a window: what more context is worth."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    dress(axes, paint, "Position in the context (tokens, log scale)", "Loss (nats per token)")
    longest = 1
    for arm in arms:
        losses = arm.facts.get("loss_by_position") or []
        longest = max(longest, len(losses))
        points = ([float(i + 1) for i in range(len(losses))], list(losses))
        _arm_line(axes, points, arm, paint, marks=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**i for i in range(int(math.log2(longest)) + 1)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(units.tick))


def draw_memory(axes: Axes, paint: Paint, arms: Sequence[Arm]) -> None:
    """Memory after each step, in MB."""
    dress(axes, paint, "Optimizer steps", "Memory (MB)")
    _short_ticks(axes)
    for arm in arms:
        xs, ys = peaks(series(arm.kind("train"), "step", "memory_bytes"))
        _arm_line(axes, (xs, [y / 1e6 for y in ys]), arm, paint, marks=False)
    axes.set_ylim(bottom=0)


def draw_layers(
    axes: Axes,
    paint: Paint,
    arm: Arm,
    steps: list[float],
    rows: list[list[float]],
    layers: list[int],
    y_label: str,
) -> None:
    """One line per layer, from faint (first) to full (last)."""
    dress(axes, paint, "Optimizer steps", y_label)
    _short_ticks(axes)
    named = {0, len(layers) // 2, len(layers) - 1} if len(layers) > 8 else set(range(len(layers)))
    for i, (layer, values) in enumerate(zip(layers, rows, strict=True)):
        xs, ys = peaks((steps, values))
        axes.plot(
            xs,
            ys,
            color=paint.arms[arm.slot],
            alpha=0.3 + 0.7 * (i + 1) / len(layers),
            linestyle=LINES[i % len(LINES)],
            linewidth=1.5,
            label=f"layer {layer}" if i in named else None,
        )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        labelcolor=paint.muted,
        borderaxespad=0.1,
        handlelength=1.7,
        handletextpad=0.5,
        columnspacing=1.1,
    )


def draw_router(axes: Axes, paint: Paint, arm: Arm, key: str, y_label: str) -> None:
    """One of the router's per-layer numbers through the run."""
    from matplotlib.ticker import MaxNLocator

    records = arm.kind("router")
    layers = records[0]["layers"]
    draw_layers(axes, paint, arm, [r["step"] for r in records], by_layer(records, key), layers, y_label)
    if key == "router_entropy":
        uniform = math.log(len(records[0]["load"][0]))
        _reference(axes, paint, uniform, f"uniform: {uniform:.3f}")
    else:
        axes.set_ylim(bottom=0)
    if key == "dead_experts":
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def draw_logits(axes: Axes, paint: Paint, arm: Arm) -> None:
    """The largest attention logit of each layer's top head, against QK-Clip's threshold."""
    from matplotlib.ticker import FuncFormatter

    records = arm.kind("attention")
    rows, steps = by_layer(records, "max_logits"), [r["step"] for r in records]
    draw_layers(axes, paint, arm, steps, rows, list(range(len(rows))), "Largest logit (log scale)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(units.tick))
    axes.yaxis.set_minor_formatter(FuncFormatter(_one_two_five))
    if records[-1]["tau"] is not None:
        _reference(axes, paint, records[-1]["tau"], f"tau = {records[-1]['tau']:g}")


def _one_two_five(value: float, _position: int | None = None) -> str:
    return units.tick(value) if f"{value:e}"[0] in "25" else ""


def _reference(axes: Axes, paint: Paint, value: float, text: str) -> None:
    """A level, and room for its name above it."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(top=max(high, value * (value / low) ** 0.14))
    else:
        axes.set_ylim(top=max(high, value + 0.14 * (value - low)))
    _level(axes, value, text, paint.ink)


def draw_clips(axes: Axes, paint: Paint, arm: Arm) -> None:
    """Heads that QK-Clip scaled down, between one record and the next."""
    from matplotlib.ticker import MaxNLocator

    xs, ys = peaks(series(arm.kind("attention"), "step", "clips"))
    dress(axes, paint, "Optimizer steps", "Heads clipped (between records)")
    _short_ticks(axes)
    axes.fill_between(xs, ys, step="pre", color=paint.arms[arm.slot], alpha=0.75, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(bottom=0)


def draw_aux_loss(axes: Axes, paint: Paint, arm: Arm) -> None:
    """The balance loss, smoothed as the training loss is."""
    dress(axes, paint, "Optimizer steps", "Auxiliary loss")
    _short_ticks(axes)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    _arm_line(axes, training_curve(arm, "step", "aux_loss"), arm, paint, marks=False)
    axes.yaxis.get_offset_text().set_color(paint.muted)


def draw_experts(axes: Axes, paint: Paint, arm: Arm, layer: int) -> None:
    """A heat map of each expert's share over the fair share: clear is fair, green is more, purple is less."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import FixedLocator

    records = arm.kind("router")
    edges, shares = expert_shares(records, layer)
    experts = len(shares)
    purple, green = (0.53, 0.25, 0.68), (0.10, 0.60, 0.36)
    colours = LinearSegmentedColormap.from_list(
        "share", [(0.0, (*purple, 1.0)), (0.5, (*purple, 0.0)), (0.5, (*green, 0.0)), (1.0, (*green, 1.0))]
    )
    dress(axes, paint, "Optimizer steps", "Expert")
    axes.grid(False)
    _short_ticks(axes)
    relative = [[share * experts for share in row] for row in shares]
    rows = [i - 0.5 for i in range(experts + 1)]
    mesh = axes.pcolormesh(edges, rows, relative, cmap=colours, vmin=0, vmax=2, rasterized=True)
    axes.invert_yaxis()
    stride = -(-experts // 16)
    axes.yaxis.set_major_locator(FixedLocator(list(range(0, experts, stride))))
    for row in rows[1:-1]:
        axes.axhline(row, color=paint.grid, linewidth=0.5)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=16)
    bar.set_ticks([0, 1, 2], labels=["none", "fair", "2x fair"])
    bar.ax.tick_params(colors=paint.muted, length=2)
    bar.outline.set_edgecolor(paint.grid)
