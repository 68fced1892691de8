"""The best value of a setting for each arm: a grid, extended until the optimum is interior, with equal trials for all.

While one arm's best value lies at the edge of its grid, every arm gets another trial. That arm tries a value beyond the
edge, the others one between their best value and the better of its neighbours. So no arm is tuned more than another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanokimi.errors import UserError
from nanokimi.report.units import is_number
from nanokimi.study.jobs import Job
from nanokimi.study.pool import Pool

Points = dict[float, float | None]
DIGITS = 4
"""Significant digits of the values that are tried, so that a file shows exactly what was run."""


def rounded(value: float) -> float:
    """The value rounded to DIGITS."""
    return float(f"{value:.{DIGITS}g}")


def geometric_grid(centre: float, factor: float, points: int) -> list[float]:
    """`points` values around `centre`, each `factor` times the previous one. Raises UserError for a bad grid."""
    if not (centre > 0 and factor > 1 and points >= 2):
        raise UserError("a grid needs a value above 0, a factor above 1 and at least 2 points")
    return [rounded(centre * factor ** (i - (points - 1) / 2)) for i in range(points)]


def best_of(points: Points) -> float:
    """The value with the lowest loss; the lowest value if every run diverged."""
    return min(sorted(points), key=lambda value: loss_at(points, value))


def loss_at(points: Points, value: float) -> float:
    """The loss at a value, infinite if the run diverged."""
    loss = points[value]
    return math.inf if loss is None else loss


def is_interior(points: Points) -> bool:
    """Whether values on both sides of the best one were tried."""
    best = best_of(points)
    return min(points) < best < max(points)


def next_value(points: Points, factor: float) -> float:
    """The value to try next: beyond the edge if the best one lies there, otherwise beside the best one."""
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
    factor: float,
    max_rounds: int,
) -> dict[str, dict[str, Any]]:
    """Try every arm's grid, then extend it. `makers` turn (value, seed) into a job.

    Returns for each arm the best value, the whole curve (mean over seeds) and each seed's loss, the numbers of trials
    and of seeds, the processor's seconds, and whether the optimum is interior. If it is not after `max_rounds`
    extensions, the best so far is used. Only numbers above 0 can be extended: for other values `max_rounds` must be 0.
    """
    curves: dict[str, Points] = {name: {} for name in makers}
    tables: dict[str, list[list[Any]]] = {name: [] for name in makers}
    seconds = dict.fromkeys(makers, 0.0)
    due = {name: list(grids[name]) for name in makers}
    rounds = 0
    while True:
        asked = [(name, value, seed) for name, values in due.items() for value in values for seed in seeds]
        lines = pool.run([makers[name](value, seed) for name, value, seed in asked])
        losses: dict[tuple[str, Any], list[float | None]] = {}
        for (name, value, _), line in zip(asked, lines, strict=True):
            losses.setdefault((name, value), []).append(line["val_loss"])
            seconds[name] += cpu_seconds(line)
        for (name, value), found in losses.items():
            tables[name].append([value, found])
            kept = [loss for loss in found if loss is not None]
            curves[name][value] = sum(kept) / len(kept) if len(kept) == len(found) else None
        if rounds == max_rounds or all(map(is_interior, curves.values())):
            return {
                name: {
                    **curve_record(points),
                    "seeds": len(seeds),
                    "losses": tables[name],
                    "cpu_seconds": round(seconds[name], 1),
                }
                for name, points in curves.items()
            }
        rounds += 1
        due = {name: [next_value(points, factor)] for name, points in curves.items()}


def curve_record(points: Points) -> dict[str, Any]:
    """A curve for the record. Values that are not numbers have no order, so none of them lies at an edge."""
    numeric = all(map(is_number, points))
    ordered = sorted(points) if numeric else list(points)
    best = best_of(points) if numeric else min(points, key=lambda value: loss_at(points, value))
    return {
        "best": best,
        "loss": points[best],
        "trials": len(points),
        "interior": is_interior(points) if numeric else True,
        "curve": [[value, points[value]] for value in ordered],
    }


def cpu_seconds(line: dict[str, Any]) -> float:
    """The processor's seconds that a run took, or its seconds of training if an earlier version made it."""
    return float(line.get("cpu_seconds") or line.get("train_seconds") or 0.0)
