"""The parts of every rule: a condition, and the one line that says why a value is refused."""

from __future__ import annotations

import json
import math
from typing import Protocol

from nanokimi.config.schema import TrainConfig
from nanokimi.errors import UserError

LARGEST_MODEL = 10**12
"""Parameters, roughly."""
SMALLEST_TEMPERATURE = 1e-6
PENALTIES = (0.01, 100.0)
"""Beyond these, a repetition penalty leaves nothing of the logits."""


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
        default = getattr(type(group)(), name)
        if getattr(group, name) != default:
            reset = f", or reset it to {json.dumps(default)} if it is the preset's"
            raise UserError(f"{path}.{name} has no effect with {because}: leave it out{reset}")


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


class SamplingValues(Protocol):
    """Whatever says how tokens are chosen: `SampleConfig`, or `generation.sampling.Sampling`."""

    @property
    def temperature(self) -> float:
        """0 or more."""

    @property
    def top_k(self) -> int | None:
        """Above 0."""

    @property
    def top_p(self) -> float | None:
        """Above 0, at most 1."""

    @property
    def min_p(self) -> float | None:
        """0 to 1."""

    @property
    def repetition_penalty(self) -> float:
        """1: none."""


def require_sampling(sample: SamplingValues, path: str = "") -> None:
    """Refuse values with which no token can be chosen. `path` is put before the names in the messages."""
    temperature, top_k, top_p = sample.temperature, sample.top_k, sample.top_p
    require(
        is_finite(temperature) and temperature >= 0,
        f"{path}temperature is {temperature}: it must be 0 or more",
    )
    require(
        temperature == 0 or temperature >= SMALLEST_TEMPERATURE,
        f"{path}temperature is {temperature}: below {SMALLEST_TEMPERATURE:g} logits overflow; 0 takes the likeliest "
        "token",
    )
    require(top_k is None or top_k > 0, f"{path}top_k is {top_k}: it must be above 0")
    require(top_p is None or 0 < top_p <= 1, f"{path}top_p is {top_p}: it must be above 0, at most 1")
    require(
        sample.min_p is None or 0 <= sample.min_p <= 1,
        f"{path}min_p is {sample.min_p}: it must be at least 0, at most 1",
    )
    low, high = PENALTIES
    require(
        low <= sample.repetition_penalty <= high,
        f"{path}repetition_penalty is {sample.repetition_penalty}: it must be {low:g} to {high:g}",
    )
