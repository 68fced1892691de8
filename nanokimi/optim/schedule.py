"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from nanokimi.config import OptimConfig


def lr_scale(step: int, total_steps: float, optim: OptimConfig) -> float:
    """The share of the peak rate to use at `step` (from 0) of a run of `total_steps`.

    Warm-up is linear over the first `warmup_steps` (at most half the run). wsd holds the peak, then falls linearly to
    `min_lr_ratio` over the last `decay_fraction` of the run (Kimi K2, section 2.5, has this shape); cosine falls all
    the way, as in nanoGPT.
    """
    warmup = min(optim.warmup_steps, total_steps / 2)
    warming = min((step + 1) / (warmup + 1), 1.0)
    floor = optim.min_lr_ratio
    if optim.schedule == "constant":
        return warming
    if optim.schedule == "wsd":
        decay_steps = optim.decay_fraction * total_steps
        progress = 1 - (total_steps - step) / decay_steps if decay_steps > 0 else 0.0
        return min(warming, 1 - (1 - floor) * min(max(progress, 0.0), 1.0))
    progress = min(max(step - warmup, 0) / max(total_steps - warmup, 1), 1.0)
    return warming * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
