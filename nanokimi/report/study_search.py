"""What was searched for the arms of a study: the rows of a table, and for each knob the curves around the optima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanokimi.report import units
from nanokimi.report.plots import LINES, MARKERS, WIDE, Paint, dress, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSINE = "cosine"
COSINE_X = 1.12
"""Where a cosine stands on the axis of decay fractions, which ends at 1."""


def searched_arms(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms that had a search of their own, each with the rows of its table."""
    arms = [arm for arm in report["arms"] if arm["reading"] == "tokens" and not arm["leaking"]]
    return [
        {**arm, "rows": knob_rows(arm["tuning"])}
        for arm in arms
        if arm["tuning"] and arm["tuning"]["kind"] == "search"
    ]


def knob_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each knob."""
    rows = []
    for knob, space in record["space"].items():
        curve = ", ".join(
            f"{shown(value)}: {'diverged' if loss is None else units.fixed(loss)}"
            for value, loss in record["sensitivity"].get(knob, [])
        )
        rows.append(
            {
                "knob": knob,
                "setting": space["setting"],
                "low": shown(space["low"]),
                "high": shown(space["high"]) + (" or cosine" if COSINE in space["scale"] else ""),
                "best": shown(record["best_values"][knob]),
                "interior": record["interior"][knob],
                "curve": curve,
            }
        )
    return rows


def shown(value: float | str) -> str:
    """A knob's value."""
    return value if isinstance(value, str) else units.rate(value)


def figures(arms: Sequence[dict[str, Any]]) -> list[str]:
    """One picture for each knob that any arm has."""
    knobs = dict.fromkeys(knob for arm in arms for knob in arm["tuning"]["space"])
    return [svg(f"Loss around the optimum: {knob}", WIDE, draw_knob, arms, knob) for knob in knobs]


def draw_knob(axes: Axes, paint: Paint, arms: Sequence[dict[str, Any]], knob: str) -> None:
    """Each arm's loss above its own best one, over one knob's values."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    spaces = [arm["tuning"]["space"][knob] for arm in arms if knob in arm["tuning"]["space"]]
    dress(axes, paint, f"{knob}: {spaces[0]['setting'].partition(' with ')[0]}", "Above the best (nats)")
    if spaces[0]["scale"] == "log":
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _=None: f"{x:g}"))
    else:
        axes.set_xticks([0.2, 0.6, 1.0, COSINE_X], ["0.2", "0.6", "1", COSINE])
    axes.set_xlim(
        spaces[0]["low"] * 0.9, max(spaces[0]["high"] * 1.1, 0) if COSINE not in spaces[0]["scale"] else 1.2
    )
    for slot, arm in enumerate(arms):
        curve = [point for point in arm["tuning"]["sensitivity"].get(knob, []) if point[1] is not None]
        if not curve:
            continue
        lowest = min(loss for _, loss in curve)
        xs = [COSINE_X if value == COSINE else value for value, _ in curve]
        ys = [loss - lowest for _, loss in curve]
        colour, line = paint.arms[slot % len(paint.arms)], LINES[slot % len(LINES)]
        axes.plot(
            xs, ys, marker=MARKERS[slot % len(MARKERS)], color=colour, linestyle=line, markersize=4, linewidth=1.2,
            label=arm["name"],
        )  # fmt: skip
    axes.legend(labelcolor=paint.muted, fontsize=7)
