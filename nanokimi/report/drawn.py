"""A picture of `nanokimi plot` as PNG, as SVG, and as a page of one file that needs no network."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from nanokimi.report import plots, units
from nanokimi.report.kinds import CURVES, OF_A_STUDY, PANEL, Panel, Shown, panels_of
from nanokimi.report.page import render
from nanokimi.report.picture import keys_of
from nanokimi.report.plots import PAPER, RC, svg
from nanokimi.report.records import SLOTS, TOLD_APART
from nanokimi.report.switched import make_switched
from nanokimi.runtime.drawing import drawing, png_of, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
INCHES_PER_CHARACTER = 0.075
WITHOUT_KEY = ("cost", "differences", "experts", "logits")
"""Kinds whose axes or panels name the arms."""


def as_png(shown: Shown) -> bytes:
    """The picture as a PNG file on white."""
    with drawing(RC):
        return png_of(_figure(shown), dpi=150)


def as_svg(shown: Shown) -> str:
    """The picture as an SVG file on white, with text as text."""
    with drawing({**RC, "svg.hashsalt": shown.title}):
        return svg_of(_figure(shown), dpi=150, background="white")


def _figure(shown: Shown) -> Figure:
    from matplotlib.figure import Figure

    panels = panels_of(shown)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = columns * max(panel.inches[0] for panel in panels)
    height = sum(
        max(panel.inches[1] for panel in panels[i * columns : (i + 1) * columns]) for i in range(rows)
    )
    figure = Figure(figsize=(width, height + _extra_height(shown, width)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for one, panel in zip(axes, panels, strict=False):
        one.set_title(panel.title, loc="left", fontsize=10, color=PAPER.ink, pad=18)
        panel.draw(one, PAPER, *panel.arguments)
    for one in axes[len(panels) :]:
        one.set_axis_off()
    head = "\n".join(_fitted(text, width) for text in _said(shown))
    figure.suptitle(head, x=0.01, ha="left", fontsize=10.5, color=PAPER.ink)
    if _has_key(shown):
        keys = keys_of(shown.arms, marks=shown.kind != "train")
        many = len(keys) > SLOTS
        place: dict[str, Any] = dict(loc="outside lower center", ncols=min(3, len(keys)))
        figure.legend(
            handles=keys, title=TOLD_APART if many else None, handlelength=6 if many else 3, **place
        )
    return figure


def _said(shown: Shown) -> list[str]:
    """The texts above a picture: its title, how to read it, and what else has to be said."""
    return [text for text in (shown.title, shown.reading, *shown.notes) if text]


def _extra_height(shown: Shown, width: float) -> float:
    """Inches for the title, the legend and the notes."""
    lines = sum(_fitted(text, width).count("\n") + 1 for text in _said(shown))
    return 0.25 + 0.2 * lines + (0.25 * math.ceil((len(shown.arms) + 1) / 3) if _has_key(shown) else 0)


def _has_key(shown: Shown) -> bool:
    return bool(shown.arms) and shown.kind not in WITHOUT_KEY


def _fitted(text: str, inches: float) -> str:
    return textwrap.fill(text, max(30, int(inches / INCHES_PER_CHARACTER)))


def as_page(shown: Shown) -> str:
    """The picture as an HTML page: a curve has a switch of its axis and values under the pointer."""
    panels = panels_of(shown)
    plot = None
    if shown.kind in CURVES:
        plot = make_switched(
            "plot", shown.arms, CURVES[shown.kind], shown.levels, chosen=shown.x_key, inches=PANEL
        )
    return render(
        {
            "shown": shown,
            "plot": plot,
            "figures": [] if plot else [_page_figure(shown, panel, i) for i, panel in enumerate(panels)],
            "wide": len(panels) == 1 or shown.kind in OF_A_STUDY,
            "has_key": _has_key(shown),
            "arms": list(shown.arms),
            "colours": plots.PAPER.arms,
            "units": units,
        },
        "plot.html",
    )


def _page_figure(shown: Shown, panel: Panel, number: int) -> tuple[str, str]:
    """The title of a panel and its `<svg>`, whose name, which keeps its ids apart from others, is its own."""
    name = panel.title or f"{shown.title}, {number + 1}"
    return panel.title, svg(name, panel.inches, panel.draw, *panel.arguments)
