"""The best value of a setting for each arm: a grid, extended until the optimum is interior, equal trials for all.

While one arm's best value lies at the edge of its grid, every arm gets another trial: that one beyond its edge, the
others between their best value and the better of its neighbours. So nobody is tuned more than anybody else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanokimi.compare.jobs import Job
from nanokimi.compare.pool import Pool
from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json

Points = dict[float, float | None]
DIGITS = 4
"""Significant digits of a value that was tried, so that a file shows what was run."""


def rounded(value: float) -> float:
    """The value as it is tried."""
    return float(f"{value:.{DIGITS}g}")


def geometric_grid(centre: float, factor: float, points: int) -> list[float]:
    """`points` values around `centre`, each `factor` times the one before."""
    if not (centre > 0 and factor > 1 and points >= 2):
        raise UserError("a grid needs a value above 0, a factor above 1 and at least 2 points")
    return [rounded(centre * factor ** (i - (points - 1) / 2)) for i in range(points)]


def best_of(points: Points) -> float:
    """The value with the lowest loss; the lowest value, if every run diverged."""
    return min(sorted(points), key=lambda value: loss_at(points, value))


def loss_at(points: Points, value: float) -> float:
    """The loss, infinite where the run diverged."""
    loss = points[value]
    return math.inf if loss is None else loss


def is_interior(points: Points) -> bool:
    """Whether the best value has a tried one on either side."""
    best = best_of(points)
    return min(points) < best < max(points)


def next_value(points: Points, factor: float) -> float:
    """What to try next: beyond the edge that the best value lies on, or beside it."""
    ordered, best = sorted(points), best_of(points)
    place = ordered.index(best)
    if place == 0:
        return rounded(best / factor)
    if place == len(ordered) - 1:
        return rounded(best * factor)
    beside = min(ordered[place - 1], ordered[place + 1], key=lambda value: loss_at(points, value))
    return rounded(math.sqrt(best * beside))


def tune(
    pool: Pool,
    makers: dict[str, Callable[[Any, int], Job]],
    grids: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    *,
    factor: float = 2.0,
    max_rounds: int = 4,
) -> dict[str, dict[str, Any]]:
    """Try every arm's grid, then extend. `makers` turn (value, seed) into a job.

    Returns for each arm the best value, the whole curve (mean over seeds), the numbers of trials and of seeds, and
    whether the optimum is interior; if it is not after `max_rounds` extensions, the best so far is taken. Only numbers
    above 0 can be extended: for other values `max_rounds` must be 0.
    """
    curves: dict[str, Points] = {name: {} for name in makers}
    due = {name: list(grids[name]) for name in makers}
    rounds = 0
    while True:
        asked = [(name, value, seed) for name, values in due.items() for value in values for seed in seeds]
        lines = pool.run([makers[name](value, seed) for name, value, seed in asked])
        losses: dict[tuple[str, Any], list[float | None]] = {}
        for (name, value, _), line in zip(asked, lines, strict=True):
            losses.setdefault((name, value), []).append(line["val_loss"])
        for (name, value), found in losses.items():
            kept = [loss for loss in found if loss is not None]
            curves[name][value] = sum(kept) / len(kept) if len(kept) == len(found) else None
        if rounds == max_rounds or all(map(is_interior, curves.values())):
            return {name: {**described(points), "seeds": len(seeds)} for name, points in curves.items()}
        rounds += 1
        due = {name: [next_value(points, factor)] for name, points in curves.items()}


def described(points: Points) -> dict[str, Any]:
    """A curve as a plan holds it. Values that are no numbers stand in no order: none of them lies at an edge."""
    numeric = all(type(value) in (int, float) for value in points)
    ordered = sorted(points) if numeric else list(points)
    best = best_of(points) if numeric else min(points, key=lambda value: loss_at(points, value))
    return {
        "best": best,
        "loss": points[best],
        "trials": len(points),
        "interior": is_interior(points) if numeric else True,
        "curve": [[value, points[value]] for value in ordered],
    }


def read_tuned(path: Path, knob: str) -> dict[str, dict[str, Any]]:
    """The curves of an earlier study's tuned.json, by arm.

    Raises UserError for any other file, and for one that holds values of another setting.
    """
    content = read_json(path)
    arms = content.get("arms") if isinstance(content, dict) else None
    if not isinstance(arms, dict):
        raise UserError(f"{path} is no tuned.json: name that of an earlier ladder or scale")
    for name, curve in arms.items():
        if not isinstance(curve, dict) or not is_curve(curve):
            raise UserError(f"{path} is damaged: what it says of '{name}' is no tuning curve")
        if curve["knob"] != knob:
            raise UserError(
                f"{path} holds values of {curve['knob']}, not of {knob}: name the tuned.json of an earlier ladder or "
                "scale"
            )
    return arms


def is_curve(curve: dict[str, Any]) -> bool:
    """Whether a dictionary from a file is what `described` returns, with the name of its setting."""
    kinds = {"knob": str, "trials": int, "interior": bool, "curve": list}
    return (
        all(type(curve.get(key)) is kind for key, kind in kinds.items())
        and type(curve.get("seeds", 1)) is int
        and is_number(curve.get("best"))
        and all(
            isinstance(point, list)
            and len(point) == 2
            and is_number(point[0])
            and (point[1] is None or is_number(point[1]))
            for point in curve["curve"]
        )
    )


def is_number(value: object) -> bool:
    """Whether a value from a file is a number; true and false are none."""
    return type(value) in (int, float)
