"""What is searched: one table of hyperparameters with a range each, for all arms, and how a point becomes settings.

A point is a tuple of numbers from 0 to 1, one for each row of HYPERPARAMETERS. Values do not depend on the width of the
model or the length of the run (the initialiser's scale is multiplied by the square root of the width, warm-up is a
share of the steps), so one arm can inherit what was found for another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanokimi.config import ModuleConfig, OptimConfig, RunConfig
from nanokimi.config.rules import OPTIMIZERS
from nanokimi.errors import UserError
from nanokimi.report.units import is_number
from nanokimi.study.tune import rounded

Value = float | str
Point = tuple[float, ...]
Values = dict[str, Value]
LOG, DECAY = "log", "linear, then cosine"
COSINE = "cosine"
COSINE_BEGINS = 0.8
"""The schedule's coordinate: below this, WSD with a decay over a share of the run; above it, cosine."""
COSINE_AT = (1 + COSINE_BEGINS) / 2
RATE, RATIO = "lr", "adamw_ratio"


@dataclass(frozen=True)
class Hyperparameter:
    """One row of the space."""

    name: str
    low: float
    high: float
    setting: str
    """The settings that it determines, as a formula."""
    scale: str = LOG

    def value(self, unit: float) -> Value:
        """The value at a coordinate from 0 to 1, rounded to the digits that it is run with."""
        if self.scale == LOG:
            return rounded(self.low * (self.high / self.low) ** unit)
        if unit > COSINE_BEGINS:
            return COSINE
        return rounded(self.low + (self.high - self.low) * unit / COSINE_BEGINS)

    def unit(self, value: Value) -> float:
        """The coordinate of a value, from 0 to 1."""
        if isinstance(value, str):
            return COSINE_AT
        if self.scale == LOG:
            found = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            found = COSINE_BEGINS * (value - self.low) / (self.high - self.low)
        return min(max(found, 0.0), 1.0)

    def is_end(self, value: Value) -> bool:
        """Whether a value lies at an edge of the space beyond which other values exist.

        Nothing lies beyond a decay over the whole run, or beyond cosine.
        """
        if isinstance(value, str):
            return False
        return value <= self.low or (value >= self.high and self.scale == LOG)


HYPERPARAMETERS = (
    Hyperparameter(RATE, 5e-4, 6.4e-2, "optim.lr"),
    Hyperparameter(RATIO, 0.1, 4.0, "optim.adamw_lr / optim.lr"),
    Hyperparameter("init_scale", 0.15, 2.0, "model.initializer_range * sqrt(hidden_size)"),
    Hyperparameter("warmup", 0.005, 0.25, "optim.warmup_steps / steps"),
    Hyperparameter("weight_decay", 0.01, 1.0, "optim.weight_decay"),
    Hyperparameter(
        "decay",
        0.1,
        1.0,
        "optim.decay_fraction with optim.schedule wsd, or cosine; optim.min_lr_ratio 0",
        DECAY,
    ),
    Hyperparameter("beta2", 0.001, 0.1, "1 - optim.betas[1]"),
    Hyperparameter("momentum", 0.02, 0.2, "1 - optim.momentum, or 1 - optim.betas[0]"),
)
"""The space. All other settings keep their configured values."""
BY_NAME = {hyperparameter.name: hyperparameter for hyperparameter in HYPERPARAMETERS}
KEYS = {
    RATE: ("optim.lr",),
    RATIO: ("optim.adamw_lr",),
    "init_scale": ("model.initializer_range",),
    "warmup": ("optim.warmup_steps",),
    "weight_decay": ("optim.weight_decay",),
    "decay": ("optim.schedule", "optim.decay_fraction", "optim.min_lr_ratio"),
    "beta2": ("optim.betas",),
    "momentum": ("optim.momentum", "optim.betas"),
}
"""The settings that each hyperparameter may change. An arm that sets one of them does not inherit the others."""


def left_out(config: RunConfig) -> dict[str, str]:
    """The hyperparameters that the configuration's arm lacks, with the reasons."""
    optim, reasons = config.family.optim, {}
    if not hasattr(config.family.model, "initializer_range"):
        reasons["init_scale"] = "the model initialises itself"
    if optim.third_party:
        reasons |= dict.fromkeys((RATIO, "beta2", "momentum"), f"{optim.name} is not an optimizer of ours")
    elif "adamw_lr" not in OPTIMIZERS[optim.name]:
        reasons[RATIO] = f"{optim.name} has a single rate"
    return reasons


def hyperparameters_of(config: RunConfig) -> list[Hyperparameter]:
    """The hyperparameters that the configuration's arm has."""
    missing = left_out(config)
    return [hyperparameter for hyperparameter in HYPERPARAMETERS if hyperparameter.name not in missing]


def values_at(point: Sequence[float], hyperparameters: Sequence[Hyperparameter], steps: int) -> Values:
    """Each hyperparameter's value at a point, with warm-up rounded to whole steps."""
    units = dict(zip((hyperparameter.name for hyperparameter in HYPERPARAMETERS), point, strict=True))
    values = {
        hyperparameter.name: hyperparameter.value(units[hyperparameter.name])
        for hyperparameter in hyperparameters
    }
    if "warmup" in values:
        values["warmup"] = rounded(warmup_steps(values["warmup"], steps) / steps)
    return values


def warmup_steps(share: Value, steps: int) -> int:
    """A share of the run in whole steps, at least one."""
    return max(1, round(float(share) * steps))


def settings_of(values: Mapping[str, Value], config: RunConfig, steps: int) -> dict[str, Any]:
    """Values as settings of the configuration's arm, such as {"optim.lr": 0.01}. They may lack hyperparameters."""
    optim = config.family.optim
    found: dict[str, Any] = {}
    betas = list(optim.betas)
    uses_momentum = not optim.third_party and "momentum" in OPTIMIZERS[optim.name]
    for name, value in values.items():
        if name == "decay":
            found |= schedule_settings(value)
            continue
        number = float(value)
        if name == RATE:
            found["optim.lr"] = number
        elif name == RATIO:
            found["optim.adamw_lr"] = rounded(number * float(values[RATE]))
        elif name == "init_scale":
            model = config.family.model
            assert not isinstance(model, ModuleConfig), "a class of the user's initialises itself"
            found["model.initializer_range"] = rounded(number / math.sqrt(model.hidden_size))
        elif name == "warmup":
            found["optim.warmup_steps"] = warmup_steps(value, steps)
        elif name == "weight_decay":
            found["optim.weight_decay"] = number
        elif name == "beta2":
            betas[1] = round(1 - number, 6)
        elif uses_momentum:
            found["optim.momentum"] = round(1 - number, 6)
        else:
            betas[0] = round(1 - number, 6)
    if "beta2" in values or ("momentum" in values and not uses_momentum):
        found["optim.betas"] = betas
    return found


def schedule_settings(value: Value) -> dict[str, Any]:
    """The settings of the schedule that a value of `decay` stands for."""
    if value == COSINE:
        fraction = OptimConfig().decay_fraction  # cosine does not use it, so it must be the default
        return {"optim.schedule": COSINE, "optim.decay_fraction": fraction, "optim.min_lr_ratio": 0.0}
    return {"optim.schedule": "wsd", "optim.decay_fraction": float(value), "optim.min_lr_ratio": 0.0}


def space_record(hyperparameters: Sequence[Hyperparameter]) -> dict[str, dict[str, Any]]:
    """The space, for the record."""
    return {
        hyperparameter.name: {
            "low": hyperparameter.low,
            "high": hyperparameter.high,
            "scale": hyperparameter.scale,
            "setting": hyperparameter.setting,
        }
        for hyperparameter in hyperparameters
    }


def require_values(values: object, where: str) -> Values:
    """Check values from a file. Raises UserError, which begins with `where`, if no search can have found them."""
    if isinstance(values, dict) and all(
        name in BY_NAME and (is_number(value) or (name == "decay" and value == COSINE))
        for name, value in values.items()
    ):
        return values
    raise UserError(f"{where} is damaged: its settings are not those of a search")
