"""How the benchmarks write numbers. It stands here and imports nothing, so that a bare machine has it, too."""

from __future__ import annotations

import math
from typing import Any


def rounded(value: Any) -> Any:
    """The same with every float to five significant digits; JSON has no infinity."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
