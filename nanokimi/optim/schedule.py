"""Learning-rate schedules as pure functions of the step. To add one, write its shape and its row in SCHEDULES."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from nanokimi.config import OptimConfig


def constant(step: int, total_steps: float, warmup: float, optim: OptimConfig) -> float:
    """The peak rate until the end."""
    return 1.0


def wsd(step: int, total_steps: float, warmup: float, optim: OptimConfig) -> float:
    """Warm-up, stable, decay: linear to `min_lr_ratio` over the last `decay_fraction` (Kimi K2, section 2.5)."""
    decay_steps = optim.decay_fraction * total_steps
    progress = 1 - (total_steps - step) / decay_steps if decay_steps > 0 else 0.0
    return 1 - (1 - optim.min_lr_ratio) * min(max(progress, 0.0), 1.0)


def cosine(step: int, total_steps: float, warmup: float, optim: OptimConfig) -> float:
    """Half a cosine from the end of warm-up to `min_lr_ratio`, as in nanoGPT."""
    progress = min(max(step - warmup, 0) / max(total_steps - warmup, 1), 1.0)
    lowest = optim.min_lr_ratio
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


class Schedule(NamedTuple):
    """The shape of a schedule after warm-up, as a share of the peak rate, and its description in reports."""

    shape: Callable[[int, float, float, OptimConfig], float]
    words: str
    combine: Callable[[float, float], float]
    """How the shape and warm-up are combined: the lower of the two, or their product."""


SCHEDULES = {
    "constant": Schedule(constant, "then constant", min),
    "wsd": Schedule(
        wsd, "stable, linear over the last {decay_fraction:.0%} to {min_lr_ratio:g} of the peak", min
    ),
    "cosine": Schedule(
        cosine, "cosine to {min_lr_ratio:g} of the peak", lambda shape, warming: warming * shape
    ),
}


def lr_scale(step: int, total_steps: float, optim: OptimConfig) -> float:
    """The share of the peak rate at `step` (from 0) of a run of `total_steps`.

    Warm-up is linear over the first `warmup_steps`, at most half the run. SCHEDULES has the shape after it.
    """
    warmup = min(optim.warmup_steps, total_steps / 2)
    warming = min((step + 1) / (warmup + 1), 1.0)
    schedule = SCHEDULES[optim.schedule]
    return schedule.combine(schedule.shape(step, total_steps, warmup, optim), warming)


def describe_schedule(optim: OptimConfig, total_steps: float) -> str:
    """The schedule of a run of `total_steps` in words, with the warm-up that `lr_scale` gives it."""
    words = SCHEDULES[optim.schedule].words.format(
        decay_fraction=optim.decay_fraction, min_lr_ratio=optim.min_lr_ratio
    )
    warmup = f"{optim.warmup_steps} steps of warm-up"
    if optim.warmup_steps > total_steps / 2:
        warmup = f"{total_steps / 2:g} steps of warm-up ({optim.warmup_steps}, cut to half the run)"
    return f"{warmup}, {words}"
