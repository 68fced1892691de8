"""The searches of a study: their tables, and the curves around the optima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanokimi.report import units
from nanokimi.report.plots import LINES, MARKERS, WIDE, Paint, dress, svg
from nanokimi.report.records import style_of
from nanokimi.report.search_place import place_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSINE = "cosine"
COSINE_X = 1.12
"""The position of cosine on the axis of decay fractions, which ends at 1."""


def searched_arms(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms that had a search of their own, each with the rows of its table."""
    arms = [arm for arm in report["arms"] if arm["budget"] == "tokens" and not arm["leaking"]]
    return [
        {**arm, "rows": hyperparameter_rows(arm["tuning"])}
        for arm in arms
        if arm["tuning"] and arm["tuning"]["kind"] == "search"
    ]


def hyperparameter_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one search's table, one for each hyperparameter."""
    rows = []
    for hyperparameter, space in record["space"].items():
        curve = ", ".join(
            f"{shown(value)}: {'diverged' if loss is None else units.fixed(loss)}"
            for value, loss in record["sensitivity"].get(hyperparameter, [])
        )
        rows.append(
            {
                "hyperparameter": hyperparameter,
                "setting": space["setting"],
                "low": shown(space["low"]),
                "high": shown(space["high"]) + (" or cosine" if COSINE in space["scale"] else ""),
                "best": shown(record["best_values"][hyperparameter]),
                "interior": record["interior"][hyperparameter],
                "place": place_of(record, hyperparameter),
                "curve": curve,
            }
        )
    return rows


def shown(value: float | str) -> str:
    """A hyperparameter's value as text."""
    return value if isinstance(value, str) else units.rate(value)


def figures(arms: Sequence[dict[str, Any]]) -> list[str]:
    """One picture for each hyperparameter that any arm has."""
    hyperparameters = dict.fromkeys(
        hyperparameter for arm in arms for hyperparameter in arm["tuning"]["space"]
    )
    return [
        svg(f"Loss around the optimum: {hyperparameter}", WIDE, draw_hyperparameter, arms, hyperparameter)
        for hyperparameter in hyperparameters
    ]


def draw_hyperparameter(
    axes: Axes, paint: Paint, arms: Sequence[dict[str, Any]], hyperparameter: str
) -> None:
    """Draw each arm's loss above its own best, over one hyperparameter's values."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    spaces = [
        arm["tuning"]["space"][hyperparameter] for arm in arms if hyperparameter in arm["tuning"]["space"]
    ]
    dress(
        axes,
        paint,
        f"{hyperparameter}: {spaces[0]['setting'].partition(' with ')[0]}",
        "Above the best (nats)",
    )
    if spaces[0]["scale"] == "log":
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _=None: f"{x:g}"))
    else:
        axes.set_xticks([0.2, 0.6, 1.0, COSINE_X], ["0.2", "0.6", "1", COSINE])
    tried = [point[0] for arm in arms for point in arm["tuning"]["sensitivity"].get(hyperparameter, [])]
    reach = [float(x) for x in tried if x != COSINE] + [spaces[0]["low"], spaces[0]["high"]]
    axes.set_xlim(min(reach) * 0.9, 1.2 if COSINE in spaces[0]["scale"] else max(reach) * 1.1)
    for slot, arm in enumerate(arms):
        points = arm["tuning"]["sensitivity"].get(hyperparameter, [])
        curve = [point for point in points if point[1] is not None]
        if not curve:
            continue
        style, lowest = style_of(slot), min(loss for _, loss in curve)
        xs = [COSINE_X if value == COSINE else value for value, _ in curve]
        ys = [loss - lowest for _, loss in curve]
        axes.plot(
            xs,
            ys,
            label=arm["name"],
            color=paint.arms[style.colour],
            linestyle=LINES[style.dash],
            linewidth=1.2,
            marker=MARKERS[style.mark],
            markersize=4,
        )
    axes.legend(labelcolor=paint.muted, fontsize=7)
