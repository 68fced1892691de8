"""How each arm's settings were searched for: the space, the trials, the best, and how much each hyperparameter matters.

A comparison is unfair if one arm was tuned less than another, so the page shows each arm's search and says whether all
arms were tuned with the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanokimi.report import plots, units
from nanokimi.report.plots import NARROW, Paint, dress, svg
from nanokimi.report.records import Arm, Record
from nanokimi.report.search_note import search_note
from nanokimi.report.search_place import AT_THE_EDGE, beside_sentence, place_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def make_searches(arms: Sequence[Arm]) -> Record:
    """Each arm's search, and whether it was the same for all."""
    searched = [arm for arm in arms if arm.metadata.get("search")]
    return {
        "entries": [{"arm": arm, "search": _search(arm, arm.metadata["search"])} for arm in searched],
        "as_configured": [arm for arm in arms if not arm.metadata.get("search")],
        "alike": alike(arms),
    }


def alike(arms: Sequence[Arm]) -> str:
    """A sentence on whether all arms had the same chance."""
    return search_note([{**arm.metadata, "name": arm.name} for arm in arms])


def _search(arm: Arm, search: Record) -> Record:
    rows = [
        {
            "hyperparameter": hyperparameter,
            "setting": limits.get("setting") or hyperparameter,
            "range": range_text(limits),
            "best": value_text(best_of(search, hyperparameter)),
            "place": place_of(search, hyperparameter),
        }
        for hyperparameter, limits in search["space"].items()
    ]
    drawn = [
        hyperparameter
        for hyperparameter, points in (search.get("sensitivity") or {}).items()
        if hyperparameter in search["space"] and any(loss is not None for _, loss in points)
    ]
    figures = [
        (name, svg(f"{name} of {arm.name}", NARROW, draw_sensitivity, arm, search, name)) for name in drawn
    ]
    return {
        "metadata": search,
        "rows": rows,
        "left_out": list((search.get("left_out") or {}).items()),
        "figures": figures,
        "hyperparameters": list(search["space"]),
        "trials": _trials(search),
        "edges": [row["hyperparameter"] for row in rows if row["place"] == AT_THE_EDGE],
        "beside": beside_sentence([(arm.name, search)]),
    }


def best_of(search: Record, hyperparameter: str) -> Any:
    """The best value of a hyperparameter. A record without `best_values` has it under the name of the setting."""
    found = (search.get("best_values") or {}).get(hyperparameter)
    if found is not None:
        return found
    best = search.get("best") or {}
    return best.get(search["space"][hyperparameter].get("setting"), best.get(hyperparameter))


def range_text(limits: Record) -> str:
    """A hyperparameter's limits and scale, or its choices."""
    if limits.get("low") is None:
        return ", ".join(map(value_text, limits.get("choices") or [])) or units.MISSING
    scale = f" ({limits['scale']})" if limits.get("scale") else ""
    return f"{value_text(limits['low'])} to {value_text(limits['high'])}{scale}"


def value_text(value: Any) -> str:
    """A setting's value as text, with numbers to four digits."""
    if value is None:
        return units.MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(search: Record) -> list[Record]:
    """Every trial, with the lowest mean first. Trials that diverged with any seed have no mean and come last."""
    rows = []
    for trial in search.get("table") or []:
        losses = trial["losses"]
        whole = bool(losses) and None not in losses
        rows.append(
            {
                "values": [
                    value_text(trial["values"].get(hyperparameter)) for hyperparameter in search["space"]
                ],
                "losses": ["diverged" if loss is None else units.fixed(loss) for loss in losses],
                "mean": sum(losses) / len(losses) if whole else None,
            }
        )
    return sorted(rows, key=lambda row: (row["mean"] is None, row["mean"] or 0.0))


def draw_sensitivity(axes: Axes, paint: Paint, arm: Arm, search: Record, hyperparameter: str) -> None:
    """Draw the mean loss over one hyperparameter's values. Dotted: limits of the search. Ring: the best trial's value.

    Values that are words, such as a schedule's name, are to the right of the numbers.
    """
    limits = search["space"][hyperparameter]
    dress(axes, paint, hyperparameter, "Validation loss (nats)")
    points = [(x, y) for x, y in search["sensitivity"][hyperparameter] if y is not None]
    numbers = sorted((float(x), y) for x, y in points if units.is_number(x))
    words = [(str(x), y) for x, y in points if not units.is_number(x)]
    log = limits.get("scale") == "log" and bool(numbers) and numbers[0][0] > 0
    ends = [end for end in (limits.get("low"), limits.get("high")) if end is not None] if numbers else []
    reach = [x for x, _ in numbers] + [float(end) for end in ends]
    right, step = (max(reach), 0.14 * (max(reach) - min(reach))) if reach else (0.0, 1.0)
    places = [x for x, _ in numbers] + [right + step * (i + 1) for i in range(len(words))]
    losses = [y for _, y in numbers + words]
    marker, colour = plots.MARKERS[arm.style.mark], paint.arms[arm.style.colour]
    axes.plot(places[: len(numbers)], losses[: len(numbers)], color=colour, marker=marker, markersize=4)
    axes.plot(places[len(numbers) :], losses[len(numbers) :], marker, color=colour, markersize=4)
    best = best_of(search, hyperparameter)
    for place, loss, value in zip(places, losses, [x for x, _ in numbers + words], strict=True):
        if value == best:
            axes.plot([place], [loss], "o", markersize=10, markerfacecolor="none", color=paint.ink)
    for end in ends:
        axes.axvline(end, color=paint.muted, linewidth=0.85, linestyle=(0, (1.2, 1.4)))
    if log:
        axes.set_xscale("log")
    _few_ticks(axes, [x for x, _ in numbers], [*zip(places[len(numbers) :], words, strict=True)], log)


def _few_ticks(axes: Axes, numbers: Sequence[float], words: Sequence[tuple[float, Any]], log: bool) -> None:
    """Set a label at a few of the numbers that were tried, and at each word."""
    from matplotlib.ticker import NullLocator

    kept: list[float] = []
    for number in numbers:
        far = [number / x > 1.6 if log else number - x > 0.2 * (numbers[-1] - numbers[0]) for x in kept[-1:]]
        kept += [number] if all(far) else []
    axes.set_xticks(
        kept + [place for place, _ in words], [f"{x:.2g}" for x in kept] + [word for _, (word, _) in words]
    )
    axes.xaxis.set_minor_locator(NullLocator())
