"""What was searched for each arm before the comparison: the space, the trials, the best, and how much it matters.

An arm whose settings were searched less than another's makes the comparison unfair, so the page says both how each
arm was searched and whether all were searched alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanokimi.report import plots, units
from nanokimi.report.plots import NARROW, Paint, dress, svg
from nanokimi.report.records import Arm, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_THE_EDGE = "AT THE EDGE"


def make_searches(arms: Sequence[Arm]) -> Record:
    """Each arm's search, and whether they were alike."""
    entries = [
        {"arm": arm, "search": _search(arm, arm.facts["search"])} for arm in arms if arm.facts.get("search")
    ]
    return {
        "entries": entries,
        "as_configured": [arm for arm in arms if not arm.facts.get("search")],
        "alike": alike(arms),
    }


def alike(arms: Sequence[Arm]) -> str:
    """Whether every arm had the same trials, seeds, design and space; empty if there is nothing to compare."""
    searches = [arm.facts["search"] for arm in arms if arm.facts.get("search")]
    if len(arms) < 2 or not searches:
        return ""
    if len(searches) < len(arms):
        missing = units.listed([arm.name for arm in arms if not arm.facts.get("search")])
        return f"NOT ALIKE: no search was made for {missing}."
    first, differ = searches[0], []
    for key, name in (("trials", "trials"), ("seeds", "tuning seeds"), ("design", "design")):
        if any(search.get(key) != first.get(key) for search in searches):
            differ.append(name)
    if any(search.get("runs") != first.get("runs") for search in searches) and "trials" not in differ:
        differ.append("number of runs")
    if differ:
        return f"NOT ALIKE: the arms differ in {units.listed(differ)}."
    same_space = all(_ranges(search) == _ranges(first) for search in searches)
    space = "the same space" if same_space else "spaces that differ (see each)"
    return f"Every arm was searched with the same design, trials and tuning seeds, over {space}."


def _ranges(search: Record) -> Record:
    return {
        knob: (limits.get("low"), limits.get("high"), limits.get("scale"))
        for knob, limits in search["space"].items()
    }


def _search(arm: Arm, search: Record) -> Record:
    rows = [
        {
            "knob": knob,
            "setting": limits.get("setting") or knob,
            "range": range_text(limits),
            "best": value_text(best_of(search, knob)),
            "place": place_of(search, knob),
        }
        for knob, limits in search["space"].items()
    ]
    figures = [
        (knob, svg(f"{knob} of {arm.name}", NARROW, draw_sensitivity, arm, search, knob))
        for knob, points in (search.get("sensitivity") or {}).items()
        if any(loss is not None for _, loss in points)
    ]
    return {
        "facts": search,
        "rows": rows,
        "figures": figures,
        "knobs": list(search["space"]),
        "trials": _trials(search),
        "edges": [row["knob"] for row in rows if row["place"] == AT_THE_EDGE],
    }


def best_of(search: Record, knob: str) -> Any:
    """The best value of a knob; report.json keeps it under the name of the setting that the knob turns."""
    best = search.get("best") or {}
    return best.get(search["space"][knob].get("setting"), best.get(knob))


def place_of(search: Record, knob: str) -> str:
    """Whether the best value lies inside what was searched."""
    inside = (search.get("interior") or {}).get(knob)
    return "not judged" if inside is None else "interior" if inside else AT_THE_EDGE


def range_text(limits: Record) -> str:
    """A knob's limits and scale, or its choices."""
    if limits.get("low") is None:
        return ", ".join(map(value_text, limits.get("choices") or [])) or units.MISSING
    scale = f", {limits['scale']}" if limits.get("scale") else ""
    return f"{value_text(limits['low'])} to {value_text(limits['high'])}{scale}"


def value_text(value: Any) -> str:
    """A setting's value: numbers to four digits, anything else as it is."""
    if value is None:
        return units.MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(search: Record) -> list[Record]:
    """Every trial, the best first; one that diverged with any seed has no mean and comes last."""
    rows = []
    for trial in search.get("table") or []:
        losses = trial["losses"]
        whole = bool(losses) and None not in losses
        rows.append(
            {
                "values": [value_text(trial["values"].get(knob)) for knob in search["space"]],
                "losses": ["diverged" if loss is None else units.fixed(loss) for loss in losses],
                "mean": sum(losses) / len(losses) if whole else None,
            }
        )
    return sorted(rows, key=lambda row: (row["mean"] is None, row["mean"] or 0.0))


def draw_sensitivity(axes: Axes, paint: Paint, arm: Arm, search: Record, knob: str) -> None:
    """Mean loss over the values of one knob; dotted: the limits of what was searched, ring: the best trial's value."""
    points = [(x, y) for x, y in search["sensitivity"][knob] if y is not None]
    limits = search["space"].get(knob) or {}
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in points)
    dress(axes, paint, value_text(limits.get("setting") or knob), "Validation loss (nats)")
    places = [float(x) for x, _ in points] if numeric else [float(i) for i in range(len(points))]
    losses, colour, slot = [y for _, y in points], paint.arms[arm.slot], arm.slot
    axes.plot(places, losses, color=colour, marker=plots.MARKERS[slot], markersize=4)
    best = best_of(search, knob) if knob in search["space"] else None
    for place, (x, y) in zip(places, points, strict=True):
        if best is not None and x == best:
            axes.plot([place], [y], "o", markersize=10, markerfacecolor="none", color=paint.ink)
    if not numeric:
        axes.set_xticks(places, [value_text(x) for x, _ in points])
        return
    if limits.get("scale") == "log" and min(places) > 0:
        _log_ticks(axes, places)
    for end in (limits.get("low"), limits.get("high")):
        if end is not None:
            axes.axvline(end, color=paint.muted, linewidth=0.85, linestyle=(0, (1.2, 1.4)))


def _log_ticks(axes: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis with a label at up to five of the values tried."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    stride = -(-len(places) // 5)
    kept = sorted(places)[::stride]
    axes.set_xticks(kept, [f"{value:.2g}" for value in kept])
    axes.xaxis.set_minor_locator(NullLocator())
