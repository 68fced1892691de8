"""The noise that searches add to an interval: those of its arms, and those whose settings its arms inherit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def with_inherited_variance(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the variance that the search adds whose settings they inherit; 0 for settings of their own."""
    own = {row["name"]: row.get("search_variance") for row in rows if row["budget"] == "tokens"}
    return [{**row, "inherited_variance": own.get(searched_arm(row)) or 0.0} for row in rows]


def searched_arm(row: dict[str, Any]) -> str | None:
    """The arm whose settings an arm inherits; None if it has its own."""
    return (row["tuning"] or {}).get("inherited_from")


def noise_of_searches(weights: Mapping[str, float], rows: Mapping[str, dict[str, Any]]) -> float:
    """The variance that searches add to a comparison, those of its arms and those that they inherit from.

    Infinite if an arm's own search had too few trials to tell. An arm's own search counts in full, even if the other
    arm has its settings; their common luck would cancel in part, so this errs on the wide side.
    """
    noises = {name: row["search_variance"] for name, row in rows.items()}
    if None in noises.values():
        return math.inf
    return sum(weight**2 * noises[name] for name, weight in weights.items()) + inherited_noise(weights, rows)


def inherited_noise(weights: Mapping[str, float], rows: Mapping[str, dict[str, Any]]) -> float:
    """The variance of a comparison by searches that its arms inherit from.

    Arms that have the settings of one and the same search share its luck, which their difference then lacks.
    """
    origins = {name: searched_arm(row) or name for name, row in rows.items()}
    alone = [name for name in rows if list(origins.values()).count(origins[name]) == 1]
    return sum(weights[name] ** 2 * float(rows[name]["inherited_variance"]) for name in alone)
