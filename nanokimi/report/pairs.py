"""The comparisons of one arm with another: the intervals on the first screen, and the title of the picture.

Two intervals are shown, and only that over seeds decides: it says what other seeds may give. The interval over the text
says how much the difference depends on which text was scored, and is drawn thinner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanokimi.report import units
from nanokimi.report.records import Arm, Record, fewest_seeds, winner_name
from nanokimi.runtime.text import listed

FIRST_ROWS = 10
"""If there are more comparisons, only those of the best arm are shown at once, and the others on demand."""


def is_decided(one: Record) -> bool:
    """Whether the interval over seeds excludes zero, also after Holm's correction. One seed decides nothing."""
    if one["mean"] is None or one.get("ci95") is None:
        return False
    low, high = one["ci95"]
    holm = one.get("holm_p")
    return (low > 0 or high < 0) and (holm is None or holm < 0.05)


def split_for_display(report: Record, arms: Sequence[Arm]) -> tuple[list[Record], list[Record]]:
    """The comparisons, split into those shown first and the others."""
    comparisons = list(report.get("comparisons") or [])
    if len(comparisons) <= FIRST_ROWS:
        return comparisons, []
    measured = [arm for arm in arms if arm.sound and arm.metadata.get("test_loss") is not None]
    best = min(measured, key=lambda arm: arm.metadata["test_loss"], default=None)
    first = [one for one in comparisons if best is not None and best.name in (one["first"], one["second"])]
    return first, [one for one in comparisons if one not in first]


def reach_of(comparisons: Sequence[Record]) -> float:
    """Half the width of an axis around zero that holds every interval."""
    ends = [0.0]
    for one in comparisons:
        if one["mean"] is not None:
            ends += [one["mean"], *(one.get("ci95") or ()), *(one.get("text95") or ())]
    return 1.1 * max(map(abs, ends)) or 1.0


def tick_of(reach: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that fits on the axis with room for its label."""
    power = 10.0 ** math.floor(math.log10(reach))
    return max(step for step in (power / 2, power, 2 * power, 5 * power) if step <= 0.85 * reach)


def make_strip(report: Record, arms: Sequence[Arm]) -> Record | None:
    """Every comparison, with the positions of its intervals on one axis in percent; None if there are none."""
    first, others = split_for_display(report, arms)
    if not first:
        return None
    reach = reach_of(first + others)
    by_name = {arm.name: arm for arm in arms}
    spread = (report.get("spread") or {}).get("seed")
    band = None if spread is None else min(spread, reach) / reach * 50
    rows, more = ([_row(one, by_name, reach) for one in part] for part in (first, others))
    tick = tick_of(reach)
    ticks = [
        (round(50 + 50 * value / reach, 2), f"{value:+g}" if value else "0") for value in (-tick, 0.0, tick)
    ]
    known = [one for one in first + others if one["mean"] is not None]
    return {
        "rows": rows,
        "more": more,
        "ticks": ticks,
        "band": band,
        "over_seeds": any(one.get("ci95") for one in known),
        "over_text": any(one.get("text95") for one in known),
    }


def _row(one: Record, by_name: dict[str, Arm], reach: float) -> Record:
    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 50 + 50 * value / reach)), 2)

    measured = one["mean"] is not None
    void = not (by_name[one["first"]].sound and by_name[one["second"]].sound)
    return {
        "first": by_name[one["first"]],
        "second": by_name[one["second"]],
        "middle": place(one["mean"]) if measured else None,
        "seeds": [place(end) for end in one["ci95"]] if measured and one.get("ci95") else None,
        "text": [place(end) for end in one["text95"]] if measured and one.get("text95") else None,
        "decided": is_decided(one) and not void,
        "void": void,
        "words": words_of(one, void),
        "metadata": one,
    }


def words_of(one: Record, void: bool) -> str:
    """The verdict on a comparison: its own words if it has an interval over seeds, or else why there is no verdict."""
    if void:
        return "no verdict: an arm did not pass its audit"
    if one.get("ci95") is None:
        return "one seed: decides nothing"
    return str(one.get("words") or "")


def spread_words(report: Record) -> str:
    """How much runs of this preset differ from one another, if that was measured."""
    spread = report.get("spread")
    if not spread:
        return "It was not measured how much runs with these settings differ from one another."
    return (
        f"Runs of the preset as it ships were measured to differ by {units.fixed(spread['seed'])} nats per token from "
        f"seed to seed and by {units.fixed(spread['rounding'])} by rounding alone (standard deviations over "
        f"{units.count(spread['runs'])} runs, {spread['file']})."
    )


def short_verdict(report: Record, arms: Sequence[Arm]) -> str:
    """The verdict in one line, as the picture's title."""
    void = [arm.label for arm in arms if not arm.sound]
    winner, seeds = winner_name(report["verdict"], arms), fewest_seeds(arms)
    if void:
        return f"No verdict: {listed(void)}"
    if len(arms) == 1:
        return arms[0].name
    if seeds < 2:
        return f"{len(arms)} arms, one seed: no winner is named"
    if winner is None:
        return f"No winner among {len(arms)} arms over {seeds} seeds"
    return f"{winner} has the lowest test loss of {len(arms)} arms, by {seeds} seeds"


def make_seeds(arms: Sequence[Arm]) -> Record | None:
    """Rows with the test loss of each seed and arm; None if there is only one seed."""
    seeds = list(dict.fromkeys(run.seed for arm in arms for run in arm.runs))
    if len(seeds) < 2:
        return None
    losses = [{run.seed: run.metadata.get("test_loss") for run in arm.runs} for arm in arms]
    return {"shown": [(seed, [units.fixed(row.get(seed)) for row in losses]) for seed in seeds]}
