"""The figures of a study: each change with its interval, tuning curves, loss against compute."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nanokimi.report import units
from nanokimi.report.plots import LINES, MARKERS, PAPER, RC, Paint, dress
from nanokimi.report.reading import how_to_read
from nanokimi.report.records import SLOTS
from nanokimi.runtime.drawing import drawing, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Effect = dict[str, Any]
BETTER, WORSE = 2, 1
"""Slots of the colours for lower and higher losses."""
FAMILIES = {"NanoKimi": 0, "NanoGPT with Muon": 1, "NanoGPT": 2}
"""The slots that arms of these names have in the comparisons of the presets."""
CHARACTERS = 16
"""That fit into an inch of the line below a picture."""


def effects_height(rows: int) -> float:
    """The height in inches that this many rows need."""
    return 0.75 + 0.27 * rows


def draw_effects(axes: Axes, paint: Paint, effects: Sequence[Effect]) -> None:
    """Draw each difference with its t interval (line) and bootstrap interval (band). Hollow: not distinguishable."""
    dress(axes, paint, "Difference in loss (nats per token)", "")
    axes.grid(True, axis="x", color=paint.grid, linewidth=0.8)
    axes.grid(False, axis="y")
    axes.axvline(0, color=paint.ink, linewidth=1.0)
    for place, one in enumerate(effects):
        if one["mean"] is None:
            continue
        sure = not one["words"].startswith("not distinguishable")
        colour = paint.arms[BETTER if one["mean"] < 0 else WORSE] if sure else paint.muted
        if one["ci95"] is not None:
            axes.plot(
                one["bootstrap95"], [place] * 2, color=colour, linewidth=5, alpha=0.25, solid_capstyle="butt"
            )
            axes.plot(one["ci95"], [place] * 2, color=colour, linewidth=1.8)
        face = colour if sure else "none"
        axes.plot([one["mean"]], [place], marker="o", markersize=5.5, color=colour, markerfacecolor=face)
    axes.set_yticks(range(len(effects)), [one["name"] for one in effects])
    axes.tick_params(axis="y", labelcolor=paint.ink, length=0)
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.margins(x=0.08)


def draw_tuning(axes: Axes, paint: Paint, arms: Sequence[dict[str, Any]]) -> None:
    """Draw every arm's loss above its own best, over the learning rate relative to the best one."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    dress(axes, paint, "Learning rate over the best one", "Loss above the best (nats per token)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _=None: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for arm in arms:
        curve = [(x, y) for x, y in arm["tuning"]["sensitivity"]["lr"] if y is not None]
        if not curve:
            continue
        best_x, best_y = min(curve, key=lambda point: point[1])
        muon = arm["optimizer"] != "adamw"
        xs, ys = [x / best_x for x, _ in curve], [y - best_y for _, y in curve]
        axes.plot(xs, ys, **_rate_style(paint, 0 if muon else 1), alpha=0.6)
    axes.set_ylim(bottom=-0.005)
    for slot, name in ((0, "Muon"), (1, "AdamW")):
        axes.plot([], [], **_rate_style(paint, slot), label=name)
    axes.legend(labelcolor=paint.muted)


def _rate_style(paint: Paint, slot: int) -> dict[str, Any]:
    """How the tuning curves of an optimizer are drawn, also without colours."""
    style = dict(color=paint.arms[slot], linestyle=LINES[slot], linewidth=0.9)
    return {**style, "marker": MARKERS[slot], "markersize": 2.8}


def tuned_arms(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Arms whose rate was tuned and that have a best trial. The curve of a searched arm is that of its rate alone."""
    arms = [arm for arm in report["arms"] if arm["budget"] == "tokens" and arm["tuning"]]
    return [arm for arm in arms if arm["tuning"]["loss"] is not None]


def draw_curves(
    axes: Axes, paint: Paint, curves: Sequence[dict[str, Any]], axis: str, floor: float | None
) -> None:
    """Draw every run, the means, and each family's law, up to twice the compute that was measured.

    If a law does not describe its sizes, the lines between them are drawn, which are used in its place.
    """
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    name = "Training FLOPs" if axis == "flops" else "Training time (s)"
    dress(axes, paint, name, "Loss (nats per token)")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(units.tick))
    axes.xaxis.set_minor_formatter(FuncFormatter(units.minor_tick))
    for slot, one in zip(slots_of([one["family"] for one in curves]), curves, strict=True):
        xs = [point[axis] for point in one["points"]]
        for point in one["points"]:
            losses = point["losses"]
            axes.plot(
                [point[axis]] * len(losses), losses, ".", color=paint.arms[slot], markersize=3, alpha=0.5
            )
        means = [point["test_loss"] for point in one["points"]]
        axes.plot(xs, means, MARKERS[slot], color=paint.arms[slot], markersize=5, label=one["family"])
        law = one["laws"][axis]
        fine = np.geomspace(min(xs), max(xs) * (2 if law["describes"] else 1), 61)
        if law["describes"]:
            height = law["log_a"] - law["alpha"] * np.log(fine)
        else:
            order = np.argsort(xs)
            height = np.interp(
                np.log(fine),
                np.log(xs)[order],
                np.log(np.maximum(np.array(means) - (floor or 0.0), 1e-9))[order],
            )
        e0 = law["e0"] if law["describes"] else floor or 0.0
        line: dict[str, Any] = dict(color=paint.arms[slot], linestyle=LINES[slot], linewidth=1.3)
        axes.plot(fine, e0 + np.exp(height), **line)
    if floor is not None:
        axes.axhline(floor, color=paint.muted, linewidth=0.9, linestyle=LINES[2])
        axes.annotate(
            "entropy of the text", (0.99, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    axes.legend(labelcolor=paint.muted)


def slots_of(families: Sequence[str]) -> list[int]:
    """The slot of each family's colour, line and mark: the same as in other reports, and free ones for new names."""
    free = iter(slot for slot in range(SLOTS) if slot not in {FAMILIES.get(name) for name in families})
    return [FAMILIES[name] if name in FAMILIES else next(free) for name in families]


def png(
    inches: tuple[float, float], title: str, kind: str, draw: Callable[..., None], *arguments: Any
) -> bytes:
    """What `draw` draws, as a PNG picture on white, with a line on how to read this kind of picture."""
    with drawing(RC):
        from matplotlib.figure import Figure

        reading = textwrap.wrap(how_to_read(kind, ()), int(inches[0] * CHARACTERS))
        width, height = inches
        figure = Figure(figsize=(width, height + 0.16 * len(reading)), layout="constrained")
        figure.supxlabel("\n".join(reading), x=0.01, ha="left", fontsize=8, color=PAPER.muted)
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontsize=10.5, color=PAPER.ink)
        draw(axes, PAPER, *arguments)
        return png_of(figure, dpi=150)
