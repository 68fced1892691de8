"""The panels of one arm's router and attention, from the records of its first seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nanokimi.report import units
from nanokimi.report.plots import LINES, Paint, arm_line, dress, level_line, short_ticks
from nanokimi.report.records import X_AXES, Arm, by_layer, expert_shares, peaks, series, training_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layers(
    axes: Axes,
    paint: Paint,
    arm: Arm,
    steps: list[float],
    rows: list[list[float]],
    layers: list[int],
    y_label: str,
    x_key: str = "step",
) -> None:
    """Draw one line per layer, from faint (first) to full (last)."""
    dress(axes, paint, X_AXES[x_key], y_label)
    short_ticks(axes)
    named = {0, len(layers) // 2, len(layers) - 1} if len(layers) > 8 else set(range(len(layers)))
    for i, (layer, values) in enumerate(zip(layers, rows, strict=True)):
        xs, ys = peaks((steps, values))
        axes.plot(
            xs,
            ys,
            color=paint.arms[arm.style.colour],
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
    """Draw a number that the router has for each layer, through the run."""
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


def draw_logits(axes: Axes, paint: Paint, arm: Arm, x_key: str = "step") -> None:
    """Draw the largest attention logit of each layer's top head, and QK-Clip's threshold."""
    from matplotlib.ticker import FuncFormatter

    records = arm.kind("attention")
    rows, places = by_layer(records, "max_logits"), [r[x_key] for r in records]
    draw_layers(axes, paint, arm, places, rows, list(range(len(rows))), "Largest logit (log scale)", x_key)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(units.tick))
    axes.yaxis.set_minor_formatter(FuncFormatter(units.minor_tick))
    if records[-1]["tau"] is not None:
        _reference(axes, paint, records[-1]["tau"], f"tau = {records[-1]['tau']:g}")


def _reference(axes: Axes, paint: Paint, value: float, text: str) -> None:
    """Draw a level, with room for its name above it."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(top=max(high, value * (value / low) ** 0.14))
    else:
        axes.set_ylim(top=max(high, value + 0.14 * (value - low)))
    level_line(axes, value, text, paint.ink)


def draw_clips(axes: Axes, paint: Paint, arm: Arm) -> None:
    """Draw how many heads QK-Clip scaled down between one record and the next."""
    from matplotlib.ticker import MaxNLocator

    xs, ys = peaks(series(arm.kind("attention"), "step", "clips"))
    dress(axes, paint, "Optimizer steps", "Heads clipped (between records)")
    short_ticks(axes)
    axes.fill_between(xs, ys, step="pre", color=paint.arms[arm.style.colour], alpha=0.75, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(bottom=0)


def draw_aux_loss(axes: Axes, paint: Paint, arm: Arm) -> None:
    """Draw the balance loss, smoothed like the training loss."""
    dress(axes, paint, "Optimizer steps", "Auxiliary loss")
    short_ticks(axes)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    points = training_curve(arm.runs[:1], "step", "aux_loss", window=arm.smoothing)
    arm_line(axes, points, arm, paint, marks=False)
    axes.yaxis.get_offset_text().set_color(paint.muted)


def draw_experts(axes: Axes, paint: Paint, arm: Arm, layer: int, x_key: str = "step") -> None:
    """Draw a heat map of each expert's share relative to the fair share: the lighter, the more.

    The colours keep their order in grey and to colour-blind eyes.
    """
    from matplotlib.ticker import FixedLocator

    records = arm.kind("router")
    edges, shares = expert_shares(records, layer, x_key)
    experts = len(shares)
    dress(axes, paint, X_AXES[x_key], "Expert")
    axes.grid(False)
    short_ticks(axes)
    relative = [[share * experts for share in row] for row in shares]
    rows = [i - 0.5 for i in range(experts + 1)]
    mesh = axes.pcolormesh(edges, rows, relative, cmap="cividis", vmin=0, vmax=2, rasterized=True)
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
