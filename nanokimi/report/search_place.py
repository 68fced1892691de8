"""Where a search's best values lie: at the edge of what was tried, beside a lower trial, or neither.

A value strictly inside what was tried is not therefore the best: the last pattern of trials moves one hyperparameter at
a time, and several of those steps may lower the loss, of which the best trial has made only one.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.report import units
from nanokimi.report.records import Record
from nanokimi.runtime.text import listed

SHOWN = 5e-5
"""Smaller differences do not show in four digits."""
INTERIOR, LOWER_BESIDE, AT_THE_EDGE = "interior", "interior, lower beside it", "AT THE EDGE"


def place_of(search: Record, hyperparameter: str) -> str:
    """Where the best value of a hyperparameter lies; "not judged" where the record does not tell."""
    inside = (search.get("interior") or {}).get(hyperparameter)
    if inside is None:
        return "not judged"
    if not inside:
        return AT_THE_EDGE
    return LOWER_BESIDE if hyperparameter in lower_beside(search) else INTERIOR


def lower_beside(search: Record) -> dict[str, float]:
    """How much lower the loss is one step beside the last pattern's centre, for each hyperparameter where it is lower.

    The step that the best trial itself has made is left out. Empty for a grid of rates, whose best is its lowest.
    """
    found = {}
    for name, curve in (search.get("sensitivity") or {}).items():
        finite = {value: loss for value, loss in curve if loss is not None}
        here = finite.get((search.get("centre") or {}).get(name))
        if here is None:
            continue
        lowest = min(finite, key=lambda value: finite[value])
        if here - finite[lowest] >= SHOWN and lowest != (search.get("best_values") or {}).get(name):
            found[name] = here - finite[lowest]
    return found


def beside_sentence(searches: Sequence[tuple[str, Record]]) -> str:
    """The searches, by arm, whose last pattern had steps to a lower loss that the best trial has not made."""
    arms = {arm: gains for arm, search in searches if (gains := lower_beside(search))}
    if not arms:
        return ""
    said = [
        f"{arm} ({len(gains)} hyperparameter{'s'[: len(gains) > 1]}, by up to {units.fixed(max(gains.values()))})"
        for arm, gains in arms.items()
    ]
    return (
        f"Beside the centre of the last pattern the loss is lower for {listed(said)}: "
        "these steps were not tried together, so a longer search may find better settings."
    )
