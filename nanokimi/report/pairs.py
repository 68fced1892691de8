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

NAMED = 4
"""Arms that the headline names."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FIRST_ROWS = 10
"""If there are more comparisons, only those of the best arm are shown at once, and the others on demand."""


def is_decided(one: Record) -> bool:
    """Whether the interval over seeds excludes zero, also after Holm's correction.

    One seed decides nothing, nor does an interval without the noise of a search that settings were inherited from.
    """
    if one["mean"] is None or one.get("ci95") is None or one.get("noise_missing"):
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
    rounding = spread["rounding"]
    alone = "" if rounding is None else f" and by {units.fixed(rounding)} by rounding alone"
    return (
        f"Runs of the preset as it ships were measured to differ by {units.fixed(spread['seed'])} nats per token from "
        f"seed to seed{alone} (standard deviation{'s' * bool(alone)} over {units.count(spread['runs'])} runs, "
        f"{spread['file']})."
    )


def headline(report: Record, arms: Sequence[Arm]) -> str:
    """The result in one line: each arm's test loss, the lowest first, and how far the first is ahead, over seeds.

    Such as: NanoKimi 0.861, NanoGPT 3.037 nats per token; NanoKimi ahead by 2.176 +- 0.024, five seeds.
    """
    sound = [arm for arm in arms if arm.sound and arm.metadata.get("test_loss") is not None]
    order = sorted(sound, key=lambda arm: arm.metadata["test_loss"])
    void = [arm.label for arm in arms if not arm.sound]
    named = [f"{arm.name} {arm.metadata['test_loss']:.3f}" for arm in order[:NAMED]]
    named += [f"{len(order) - NAMED} more arms"] if len(order) > NAMED else []
    parts = [f"{', '.join(named)} nats per token"] if named else []
    if void:
        return "; ".join([f"No verdict: {listed(void)}", *parts])
    seeds = fewest_seeds(arms)
    if len(order) < 2:
        return ", ".join([*parts, f"{in_words(seeds)} seed{'s' * (seeds != 1)}"])
    if seeds < 2:
        return f"{parts[0]}; one seed, so no winner"
    return (
        f"{parts[0]}; {_ahead(report, order, winner_name(report['verdict'], arms))}, {in_words(seeds)} seeds"
    )


def _ahead(report: Record, order: Sequence[Arm], winner: str | None) -> str:
    first = order[0].name
    against = {
        (one["second"] if one["first"] == first else one["first"]): one
        for one in report.get("comparisons") or []
        if first in (one["first"], one["second"])
    }
    if winner == first and order[1].name in against:
        return f"{first} ahead by {distance(against[order[1].name])}"
    if any(one.get("noise_missing") for one in against.values()):
        return "no winner, since the noise of an inherited search is missing"
    level = [arm.name for arm in order[1:] if arm.name in against and not is_decided(against[arm.name])]
    if len(level) == 1:
        return f"{first} and {level[0]} not distinguishable ({distance(against[level[0]])} apart)"
    return f"{listed([first, *level])} not distinguishable" if level else "no winner"


def distance(one: Record) -> str:
    """How far apart two arms are, with half the width of the interval."""
    low, high = one["ci95"]
    return f"{abs(one['mean']):.3f} \u00b1 {(high - low) / 2:.3f}"


def in_words(number: int) -> str:
    """A small number as a word."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def caveats(report: Record, arms: Sequence[Arm], baselines: Sequence[Record], search: str) -> list[str]:
    """What a reader of the headline must know, each in a short sentence; `search` says how alike the searches were."""
    found = [
        f"{arm.name} did not pass its audit ({arm.audit}): its loss is void." for arm in arms if not arm.sound
    ]
    if fewest_seeds(arms) == 1 and len(arms) > 1:
        found.append("One seed for each arm, so nothing is ranked: compare with --seeds 5 or more.")
    if report["data"].get("split") == "nanogpt":
        found.append(
            "nanoGPT's published split: the reported text is also the validation text, on which settings are chosen, "
            "so its losses are a little too good."
        )
    losses = [
        arm.metadata["test_loss"] for arm in arms if arm.sound and arm.metadata.get("test_loss") is not None
    ]
    counted = [one["nats"] for one in baselines if one["key"] == "5-gram" and one["nats"] is not None]
    if losses and counted and min(losses) > counted[0]:
        found.append(f"A 5-gram model, which only counts, does better: {counted[0]:.3f} nats per token.")
    if search.startswith("NOT"):
        found.append(search)
    return found


def make_seeds(arms: Sequence[Arm]) -> Record | None:
    """Rows with the test loss of each seed and arm; None if there is only one seed."""
    seeds = list(dict.fromkeys(run.seed for arm in arms for run in arm.runs))
    if len(seeds) < 2:
        return None
    losses = [{run.seed: run.metadata.get("test_loss") for run in arm.runs} for arm in arms]
    return {"shown": [(seed, [units.fixed(row.get(seed)) for row in losses]) for seed in seeds]}
