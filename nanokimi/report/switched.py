"""A curve against every budget in turn, with values under the pointer: the same figures, a switch, and a short script.

The figures are those that a picture has; the script only shows one of them and reads the numbers beside it. Without the
script the switch still works, and on paper all figures are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nanokimi.report import plots
from nanokimi.report.plots import RATE, TRAINING, WIDE, Curve, band_of, framed_svg
from nanokimi.report.records import X_AXES, Arm, Record

AXIS_WORDS = {"step": "Steps", "tokens": "Tokens", "flops": "FLOPs", "train_seconds": "Seconds"}
"""The words on the switch."""
DIGITS = 6
"""Significant digits of the numbers under the pointer."""


def drawing_of(curve: Curve, levels: Sequence[Record]) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The function that draws a curve, and what it takes after the arms and the budget."""
    if curve is TRAINING:
        return plots.draw_training, ()
    if curve is RATE:
        return plots.draw_rate, ()
    return plots.draw_loss, (levels, curve)


def make_switched(
    name: str,
    arms: Sequence[Arm],
    curve: Curve,
    levels: Sequence[Record] = (),
    *,
    chosen: str = "step",
    keys: Sequence[str] = tuple(X_AXES),
    inches: tuple[float, float] = WIDE,
) -> Record | None:
    """The figures of a curve against those budgets of `keys` that its records have, and their numbers; None if none.

    `name` is the figure's own on its page; `chosen` is the budget that is shown first.
    """
    draw, after = drawing_of(curve, levels)
    panels, numbers = [], {}
    for key in keys:
        bands = [(arm, band_of(arm, curve, key)) for arm in arms]
        if not any(band.xs for _, band in bands):
            continue
        svg, frame = framed_svg(f"{curve.label} by {key}", inches, draw, arms, key, *after)
        panels.append({"key": key, "word": AXIS_WORDS[key], "svg": svg})
        numbers[key] = {
            "frame": [round(value, 5) for value in frame[:4]],
            "x": [short(value) for value in frame.x],
            "y": [short(value) for value in frame.y],
            "arms": [
                {
                    "name": arm.label,
                    "colour": arm.style.colour,
                    "x": [short(x) for x in band.xs],
                    "y": [short(y) for y in band.means],
                    **(
                        {"low": [short(y) for y in band.lows], "high": [short(y) for y in band.highs]}
                        if len(arm.runs) > 1
                        else {}
                    ),
                }
                for arm, band in bands
            ],
        }
    if not panels:
        return None
    chosen = chosen if chosen in numbers else panels[0]["key"]
    return {"name": name, "label": curve.label, "panels": panels, "chosen": chosen, "numbers": numbers}


def short(value: float) -> float:
    """A number with a few digits, so that a page stays small."""
    return float(f"{value:.{DIGITS}g}")
