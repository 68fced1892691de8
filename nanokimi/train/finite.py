"""Numbers that are not finite in what a run writes: JSON has none, and they mean that the weights have diverged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nanokimi.errors import TrainingError


@contextmanager
def named_if_not_finite(content: Any, what: str) -> Iterator[None]:
    """Turn the ValueError of writing `content` as JSON into a TrainingError that names the number.

    `what` says what was written, and after which step.
    """
    try:
        yield
    except ValueError:
        found = first_not_finite(content)
        if found is None:
            raise
        raise TrainingError(
            f"{what} has a number that is not finite, {found}: the weights have grown too large; lower the learning "
            "rate (what was saved before is whole)"
        ) from None


def first_not_finite(content: Any, path: str = "") -> str | None:
    """The path of the first number in nested JSON that is not finite, such as "rms_logits[1][0] = inf", or None."""
    if isinstance(content, float):
        return None if math.isfinite(content) else f"{path} = {content}"
    pairs: list[tuple[str, Any]] = []
    if isinstance(content, dict):
        pairs = [(f"{path}.{key}" if path else str(key), value) for key, value in content.items()]
    elif isinstance(content, list | tuple):
        pairs = [(f"{path}[{index}]", value) for index, value in enumerate(content)]
    return next(filter(None, (first_not_finite(value, name) for name, value in pairs)), None)
