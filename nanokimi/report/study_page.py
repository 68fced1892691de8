"""`write_study_page`: study.html and the pictures of a sweep's, ladder's or scale's study.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.report import plots, study_plots, study_search, units
from nanokimi.report.metrics import STUDY_PAGE
from nanokimi.report.page import render
from nanokimi.report.plots import WIDE, svg
from nanokimi.report.study_groups import grouped, names_by_match
from nanokimi.runtime.files import read_json, write_atomic

BUDGET_NAMES = {"tokens": "equal tokens", "flops": "equal FLOPs", "seconds": "equal seconds"}
EFFECT_WIDTH = 7.4


def groups_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons by family, each with its figure."""
    groups = []
    for family, group, rows in grouped(report["effects"]):
        inches = (EFFECT_WIDTH, study_plots.effects_height(len(rows)))
        figure = svg(f"{group.title}: differences in loss", inches, study_plots.draw_effects, rows)
        groups.append(
            {
                "id": family.replace(" ", "-"),
                "title": group.title,
                "lead": group.lead,
                "rows": rows,
                "svg": figure,
            }
        )
    return groups


def make_context(report: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    groups, tuned = groups_of(report), study_plots.tuned_arms(report)
    searched = study_search.searched_arms(report)
    curves, floor = report.get("curves") or [], report["data"]["floor"]
    return {
        "report": report,
        "groups": groups,
        "matches": list(names_by_match(row for group in groups for row in group["rows"]).items()),
        "tuned": tuned,
        "tuning": svg("Tuning curves", WIDE, study_plots.draw_tuning, tuned) if tuned else None,
        "searched": searched,
        "search_svgs": study_search.figures(searched),
        "curves": [
            svg(f"Loss by {axis}", WIDE, study_plots.draw_curves, curves, axis, floor)
            for axis in ("flops", "train_seconds")
            if curves
        ],
        "open": False,
        "sentences": report.get("sentences") or headline(report),
        "budget_names": BUDGET_NAMES,
        "arm_columns": [column for column in STUDY_PAGE if column.key != "floor_gap" or floor is not None],
        "arms": [],
        "units": units,
        "colours": plots.PAPER.arms,
    }


def headline(report: dict[str, Any]) -> list[str]:
    """The sentences on top: which components help, which hurt, and which have no distinguishable effect."""
    components = [one for one in report["effects"] if one["family"] == "additive" and one["mean"] is not None]
    components = components or [
        one for one in report["effects"] if one["family"] == "leave-one-out" and one["mean"] is not None
    ]
    if not components:
        return [f"{one['name']}: {one['words']}." for one in report["effects"][:2]]
    sure = [one for one in components if not one["words"].startswith("not distinguishable")]
    helps = sorted((one for one in sure if one["mean"] < 0), key=lambda one: one["mean"])
    if components[0]["family"] == "leave-one-out":
        helps = sorted((one for one in sure if one["mean"] > 0), key=lambda one: -one["mean"])
    hurts = [one for one in sure if one not in helps]
    parts = []
    if helps:
        named = ", ".join(f"{plain_name(one)} ({abs(one['mean']):.3f})" for one in helps)
        parts.append(f"What lowers the loss, in nats per token: {named}.")
    if hurts:
        named = ", ".join(f"{plain_name(one)} ({abs(one['mean']):.3f})" for one in hurts)
        parts.append(f"What raises it: {named}.")
    unsure = [plain_name(one) for one in components if one not in sure]
    if unsure:
        parts.append(f"Not distinguishable: {', '.join(unsure)}.")
    races = [one for one in report["effects"] if one["family"] == "budgets"]
    for pair in dict.fromkeys(one["name"].partition(",")[0] for one in races):
        said = [
            f"{one['words']} {one['name'].partition(', ')[2]}"
            for one in races
            if one["name"].startswith(f"{pair},")
        ]
        parts.append(f"{pair}: {'; '.join(said)}.")
    return parts


def plain_name(effect: dict[str, Any]) -> str:
    """The name of the component that a comparison is about."""
    return str(effect["name"]).removeprefix("+ ").removeprefix("without ")


def write_study_page(folder: Path) -> None:
    """Write study.html and one picture for each figure, from study.json alone."""
    report = read_json(folder / "study.json")
    context = make_context(report)
    write_atomic(folder / "study.html", render(context, "study.html"))
    for group in context["groups"]:
        inches = (EFFECT_WIDTH, study_plots.effects_height(len(group["rows"])) + 0.3)
        title = f"{group['title']}, {report['data']['path']}"
        picture = study_plots.png(inches, title, "effects", study_plots.draw_effects, group["rows"])
        write_atomic(folder / f"effects-{group['id']}.png", picture)
    if context["tuned"]:
        arguments = (study_plots.draw_tuning, context["tuned"])
        picture = study_plots.png((6, 4), "Tuning curves", "tuning", *arguments)
        write_atomic(folder / "tuning.png", picture)
    for axis in ("flops", "train_seconds"):
        if context["curves"]:
            curves = (study_plots.draw_curves, report["curves"], axis, report["data"]["floor"])
            picture = study_plots.png((6.4, 4.4), report["title"], "scaling", *curves)
            write_atomic(folder / f"curve-{axis.replace('train_', '')}.png", picture)
