"""The settings of a comparison. All other settings are in `schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SpreadConfig:
    """Standard deviations of the reported loss, in nats per token, over runs of a preset that should be equal."""

    seed: float
    """Over runs that differ in the seed alone; the largest of the preset's arms."""
    rounding: float | None
    """Over runs that differ only in how sums are rounded; the largest of the preset's arms. None: not measured."""
    runs: int
    """Runs behind the smaller sample."""
    file: str
    """Where the runs are recorded."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How `compare` runs its arms."""

    seeds: int = 1
    """Seeds that every arm is trained with, counted up from `seed` (short option: --seeds). A winner is named only
    with two or more."""
    match: Literal["none", "active_params", "total_params", "flops", "tokens", "seconds"] = "none"
    """What all arms must have in common (short option: --match): each gets the first one's size (active_params,
    total_params), or the more expensive ones take fewer steps, over which their whole schedule runs (flops, seconds;
    tokens: the same steps)."""
    turn_steps: int = 10
    """Steps that one run takes before it is the next one's turn."""
    spread: SpreadConfig | None = None
    """How much runs of a preset differ; None: not measured."""
    search: str | None = None
    """The file that says how the arms' settings were searched: a path, or a name below the presets' `searches`."""
