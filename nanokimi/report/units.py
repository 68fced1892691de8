"""Numbers as text: three or four digits, thousands separators and a unit, or "n/a" if they were not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Number = float | int | None

MISSING = "n/a"
"""What stands for a number that was not measured."""
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def is_number(value: object) -> bool:
    """Whether a value from a file is a number. True and false do not count, nor does a word such as "cosine"."""
    return type(value) in (int, float)


def significant(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits. Digits left of the point are kept; tiny numbers get an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}" if decimals <= 6 else f"{value:.{digits - 1}e}"


def short(value: Number) -> str:
    """A number with three digits and a prefix: 1234567 is "1.23 M"."""
    if value is None:
        return MISSING
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{significant(value / size)} {prefix}"
    return significant(value) if value % 1 else f"{value:.0f}"


def tick(value: float, _position: int | None = None) -> str:
    """A number for an axis label, with a prefix and without trailing zeros: 1500000 is "1.5 M"."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:g} {prefix}"
    return f"{value:g}"


def minor_tick(value: float, _position: int | None = None) -> str:
    """The label between powers of ten on a logarithmic axis: of 2 and 5 only."""
    return tick(value) if f"{value:e}"[0] in "25" else ""


def count(value: Number) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def fixed(value: Number) -> str:
    """A loss, or another number near 1, with four decimals."""
    return MISSING if value is None else f"{value:,.4f}"


def signed(value: Number) -> str:
    """A difference of losses with a sign and four decimals."""
    return MISSING if value is None else f"{value:+,.4f}"


def spread(mean: Number, deviation: Number) -> str:
    """A mean over seeds with its standard deviation, which is None for one seed."""
    return fixed(mean) if deviation is None else f"{fixed(mean)} \u00b1 {fixed(deviation)}"


def between(ends: Sequence[float] | None) -> str:
    """An interval of differences."""
    return MISSING if ends is None else f"{signed(ends[0])} to {signed(ends[1])}"


def plain(value: Number) -> str:
    """A number with three significant digits and no unit."""
    return MISSING if value is None else significant(value)


def rate(value: Number) -> str:
    """A learning rate as configurations have it."""
    return MISSING if value is None else f"{value:g}"


def size(value: Number) -> str:
    """Bytes in decimal units: 1000000 is "1.00 MB"."""
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
    """A time given in seconds, written in minutes from 2 minutes on and in hours from 2 hours on."""
    if value is None:
        return MISSING
    if value < 120:
        return f"{significant(value)} s"
    whole = round(value)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def percent(value: Number) -> str:
    """A share in percent: 0.25 is "25 %"."""
    return MISSING if value is None else f"{100 * value:.0f} %"


def relative(value: float) -> str:
    """A ratio as a change: 1.38 is "+38 %", and 3.4 is "3.40x"."""
    return f"{100 * (value - 1):+.0f} %" if value < 3 else ratio(value)


def ratio(value: Number) -> str:
    """A ratio as a multiple: 1.38 is "1.38x"."""
    return MISSING if value is None else f"{significant(value)}x"


def gpu(found: Mapping[str, Any] | None) -> str:
    """A GPU as a run's environment has it, such as "NVIDIA H200, 144 GB, driver 580.159.03, cuDNN 9.19.0"."""
    if not found:
        return MISSING
    parts = [str(found.get("name"))]
    if is_number(found.get("memory_bytes")):
        parts.append(f"{found['memory_bytes'] / 1e9:,.0f} GB")
    if found.get("driver"):
        parts.append(f"driver {found['driver']}")
    if is_number(found.get("cudnn")):
        parts.append(f"cuDNN {cudnn(int(found['cudnn']))}")
    return ", ".join(parts)


def cudnn(version: int) -> str:
    """cuDNN's version number as people write it: 91900 is 9.19.0, and 8902, of the series before, 8.9.2."""
    first = 10_000 if version >= 90_000 else 1000
    return f"{version // first}.{version % first // 100}.{version % 100}"
