"""The parts of every rule: a condition, and the one line that says why a value is refused."""

from __future__ import annotations

import math

from nanokimi.config.schema import TrainConfig
from nanokimi.errors import UserError

LARGEST_MODEL = 10**12
"""Parameters, roughly."""


def require(condition: bool, message: str) -> None:
    """Raise UserError unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_positive(group: object, path: str, names: tuple[str, ...]) -> None:
    """Refuse values that are not above 0. None is allowed."""
    for name in names:
        value = getattr(group, name)
        if value is not None:
            require(is_finite(value) and value > 0, f"{path}.{name} is {value}: it must be above 0")


def is_finite(value: float) -> bool:
    """Whether a number is finite, also if it is an integer too large for a float."""
    return isinstance(value, int) or math.isfinite(value)


def require_effect(group: object, path: str, names: tuple[str, ...], because: str) -> None:
    """Refuse a setting that was changed but would be ignored."""
    for name in names:
        if getattr(group, name) != getattr(type(group)(), name):
            raise UserError(f"{path}.{name} has no effect with {because}: leave it out")


def require_possible(path: str, rows: int, width: int) -> None:
    """Refuse a model too large for any machine. `rows` times `width` is about the number of its parameters."""
    require(
        rows * width <= LARGEST_MODEL,
        f"{path} would have about {rows * width / 1e9:.0f} billion parameters: it must be {LARGEST_MODEL / 1e9:.0f} "
        "billion at most",
    )


def validate_positions(positions: int | None, path: str, train: TrainConfig) -> None:
    """Refuse a model whose longest sequence is shorter than the training sequences."""
    require(
        positions is None or positions >= train.context_length,
        f"{path}.max_position_embeddings {positions} is below train.context_length {train.context_length}",
    )
