"""The noise that searches add to an interval: those of its arms, and those whose settings its arms inherit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def searched_arm(row: dict[str, Any]) -> str | None:
    """The arm of the study whose settings an arm inherits; None if it has its own, or those of another file."""
    tuning = row["tuning"] or {}
    return None if "inherited_file" in tuning else tuning.get("inherited_from")


def known(variance: float) -> float | None:
    """A variance for the record, None if it is infinite."""
    return variance if math.isfinite(variance) else None


def noise_of_searches(weights: Mapping[str, float], rows: Mapping[str, dict[str, Any]]) -> float:
    """The variance that searches add to a comparison, those of its arms and those that they inherit from.

    Infinite if an arm's own search had too few trials to tell. An arm's own search counts in full, even if the other
    arm has its settings; their common luck would cancel in part, so this errs on the wide side.
    """
    noises = {name: row["search_variance"] for name, row in rows.items()}
    if None in noises.values():
        return math.inf
    own = sum(weight**2 * noises[name] for name, weight in weights.items())
    return own + inherited_noise(weights, rows) + earlier_noise(weights, rows)


def inherited_noise(weights: Mapping[str, float], rows: Mapping[str, dict[str, Any]]) -> float:
    """The variance of a comparison by searches of its study that its arms inherit from.

    Arms that have the settings of one and the same search share its luck, which their difference then lacks.
    """
    origins = {name: searched_arm(row) or name for name, row in rows.items()}
    alone = [name for name in rows if list(origins.values()).count(origins[name]) == 1]
    noises = {name: rows[name]["inherited_variance"] for name in alone}
    return sum(weights[name] ** 2 * (math.inf if noise is None else noise) for name, noise in noises.items())


def earlier_noise(weights: Mapping[str, float], rows: Mapping[str, dict[str, Any]]) -> float:
    """The variance of a comparison by searches of other files, whose luck arms share that inherit from the same one."""
    shared: dict[str, float] = {}
    noises: dict[str, list[float | None]] = {}
    for name, row in rows.items():
        for search, noise in row["earlier_variances"].items():
            shared[search] = shared.get(search, 0.0) + weights[name]
            noises.setdefault(search, []).append(noise)
    return sum(
        weight**2 * max(math.inf if noise is None else noise for noise in noises[search])
        for search, weight in shared.items()
        if weight
    )
