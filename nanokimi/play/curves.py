"""Line charts as small SVGs, in plain Python: the Watch tab draws them again every few seconds for every visitor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanokimi.play.markup import shown
from nanokimi.report.records import thin, trailing_mean

LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 44
HALF_A_NUMBER = 30
"""Pixels that a number under the axis may need on each side of its place, beside the margin."""
MAX_POINTS = 300
DASHES = ("", "9 3", "2 2.5", "10 3 2 3", "5 5", "14 3", "12 3 2 3 2 3", "4 2")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve, with the slot of its model's colour."""

    name: str
    slot: int
    points: Points
    thin: bool = False
    """A thin line stands back: the training loss beside the validation loss."""


@dataclass(frozen=True)
class Scale:
    """Where values stand in a picture."""

    width: int
    height: int
    last: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return round(LEFT + (self.width - LEFT - RIGHT) * value / self.last, 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return round(TOP + (self.height - TOP - BOTTOM) * (self.high - value) / (self.high - self.low), 1)


def charts(lines: Sequence[Line], label: str, floor: float | None = None) -> str:
    """The chart for a wide window and the one for a phone, of which the page's style shows one; "" without curves."""
    wide, narrow = (chart(lines, label, size, floor) for size in ((1120, 360), (380, 300)))
    return (
        f'<div class="nk-wide-chart">{wide}</div><div class="nk-narrow-chart">{narrow}</div>' if wide else ""
    )


def chart(lines: Sequence[Line], label: str, size: tuple[int, int], floor: float | None = None) -> str:
    """Curves of a loss by step, and a dashed line at the entropy floor; "" if no curve has two points."""
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return ""
    last = max(x for line in lines for x, _ in line.points) or 1.0
    # The first steps fall from the logarithm of the vocabulary and would flatten the rest.
    highs = [y for line in lines for x, y in line.points if x >= 0.05 * last]
    lows = [y for line in lines for _, y in line.points] + ([floor] if floor is not None else [])
    low, high = min(lows), max(highs)
    margin = 0.06 * (high - low) or 0.1
    scale = Scale(*size, last, low - margin, high + margin)
    inner = "".join(curve(line, scale) for line in lines)
    inside = (
        f'<svg x="{LEFT}" y="{TOP}" width="{size[0] - LEFT - RIGHT}" height="{size[1] - TOP - BOTTOM}" '
        f'viewBox="{LEFT} {TOP} {size[0] - LEFT - RIGHT} {size[1] - TOP - BOTTOM}">{inner}</svg>'
    )
    return (
        f'<svg class="nk-chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{shown(label)}">'
        f"{grid(scale)}{inside}{floor_line(floor, scale)}</svg>"
    )


def curve(line: Line, scale: Scale) -> str:
    """One curve."""
    xs, ys = thin(([x for x, _ in line.points], [y for _, y in line.points]), MAX_POINTS)
    points = " ".join(f"{scale.x(x)},{scale.y(y)}" for x, y in zip(xs, ys, strict=True))
    kind, dashes = ("nk-thin", "") if line.thin else ("nk-bold", DASHES[line.slot % 8])
    colour = f"stroke:var(--nk-arm-{line.slot % 8})"
    return f'<polyline points="{points}" class="{kind}" style="{colour}" stroke-dasharray="{dashes}"/>'


def sample(slot: int) -> str:
    """A piece of a model's bold line, for a key: colours alone are not told apart by everybody, or in grey."""
    style = f"stroke:var(--nk-arm-{slot % 8})"
    line = f'<path d="M1 5H33" class="nk-bold" style="{style}" stroke-dasharray="{DASHES[slot % 8]}"/>'
    return f'<svg class="nk-sample" viewBox="0 0 34 10" aria-hidden="true">{line}</svg>'


def floor_line(floor: float | None, scale: Scale) -> str:
    """The lowest loss that is possible."""
    if floor is None:
        return ""
    y = scale.y(floor)
    said = f'<text x="{LEFT + 6}" y="{y - 7}">entropy floor {floor:.3f}</text>'
    return f'<path d="M{LEFT} {y}H{scale.width - RIGHT}" class="nk-floor"/>{said}'


def grid(scale: Scale) -> str:
    """Axes with round numbers."""
    drawn = []
    for value in round_numbers(scale.low, scale.high, 5):
        y = scale.y(value)
        drawn.append(f'<path d="M{LEFT} {y}H{scale.width - RIGHT}" class="nk-grid"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{value:g}</text>')
    for value in round_numbers(0, scale.last, scale.width // 110):
        at = f'x="{scale.x(value)}" y="{scale.height - BOTTOM + 20}"'
        # The last one would be cut off by the picture's edge if it stood under the middle of its place.
        anchor = "end" if scale.x(value) > scale.width - RIGHT - HALF_A_NUMBER else "middle"
        drawn.append(f'<text {at} text-anchor="{anchor}">{value:,.0f}</text>')
    middle = (LEFT + scale.width - RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{scale.height - 4}" text-anchor="middle">step</text>')
    return "".join(drawn)


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 numbers of the form 1, 2 or 5 times a power of ten between the ends."""
    span = (high - low) / most
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span))
    size = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span * 0.999)
    return [round(i * size, 10) for i in range(math.ceil(low / size), math.floor(high / size) + 1)]


def smoothed(points: Points) -> Points:
    """Each value as the mean of itself and the values before it, over a fiftieth of the points."""
    means = trailing_mean([y for _, y in points], max(len(points) // 50, 1))
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]
