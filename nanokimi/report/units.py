"""Numbers as people read them: three or four digits, thousands separators, a unit; "n/a" for what was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

Number = float | int | None

MISSING = "n/a"
"""What stands for a number that was not measured."""
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def is_number(value: object) -> bool:
    """Whether a value from a file is a number. True and false do not count, nor does a word such as "cosine"."""
    return type(value) in (int, float)


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without an exponent; digits left of the point are never dropped."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def short(value: Number) -> str:
    """1234567 as "1.23 M"."""
    if value is None:
        return MISSING
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{significant(value / size)} {prefix}"
    return significant(value) if value % 1 else f"{value:.0f}"


def tick(value: float, _position: int | None = None) -> str:
    """An axis label: as `short`, without the zeros that say nothing."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:g} {prefix}"
    return f"{value:g}"


def count(value: Number) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def fixed(value: Number) -> str:
    """A loss or anything near 1: four decimals."""
    return MISSING if value is None else f"{value:,.4f}"


def signed(value: Number) -> str:
    """A difference of losses: four decimals and always a sign."""
    return MISSING if value is None else f"{value:+,.4f}"


def spread(mean: Number, deviation: Number) -> str:
    """A mean over seeds with its standard deviation; the mean alone where one seed gives none."""
    return fixed(mean) if deviation is None else f"{fixed(mean)} \u00b1 {fixed(deviation)}"


def between(ends: Sequence[float] | None) -> str:
    """An interval of differences."""
    return MISSING if ends is None else f"{signed(ends[0])} to {signed(ends[1])}"


def plain(value: Number) -> str:
    """Three significant digits, where the unit stands elsewhere."""
    return MISSING if value is None else significant(value)


def rate(value: Number) -> str:
    """A learning rate, as it is written in a configuration."""
    return MISSING if value is None else f"{value:g}"


def size(value: Number) -> str:
    """Bytes in decimal units: 1 MB is 1,000,000 bytes."""
    if value is None:
        return MISSING
    for unit, name in BYTES:
        if abs(value) >= unit:
            return f"{significant(value / unit)} {name}"
    return f"{value:,.0f} B"


def milliseconds(value: Number) -> str:
    """A time given in milliseconds."""
    return MISSING if value is None else f"{significant(value)} ms"


def seconds(value: Number) -> str:
    """A time given in seconds; in minutes from two minutes on, in hours from two hours on."""
    if value is None:
        return MISSING
    if value < 120:
        return f"{significant(value)} s"
    whole = round(value)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def percent(value: Number) -> str:
    """A share of 1."""
    return MISSING if value is None else f"{100 * value:.0f} %"


def relative(value: float) -> str:
    """A ratio as a distance: "+38 %", from three times on "3.40x"."""
    return f"{100 * (value - 1):+.0f} %" if value < 3 else ratio(value)


def ratio(value: Number) -> str:
    """How many times as much: "1.38x"."""
    return MISSING if value is None else f"{significant(value)}x"
