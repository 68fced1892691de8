"""The notes that every output of a study shows beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanokimi.compare.match import QUANTITIES
from nanokimi.study.jobs import Line
from nanokimi.study.tuning_words import tuning_label

FEW_STEPS = 100
"""Runs of fewer steps are a quick look, whatever was asked for: the first steps say little about a whole training."""


def labels(plan: dict[str, Any]) -> list[str]:
    """Notes on what is matched, how arms were tuned, the seeds, and which interval decides."""
    seeds = plan["seeds"]
    gaps = [arm["size_gap"] for arm in plan["arms"] if not arm["leaking"]]
    if None in gaps:
        sizes = "Sizes are as configured, not matched."
    else:
        sizes = (
            f"Sizes are matched in {QUANTITIES[plan['match']][0]}; the largest remaining gap is "
            f"{max(map(abs, gaps), default=0):.2%}."
        )
    rate = tuning_label(plan["arms"])
    if plan.get("budget_steps"):
        rate += " Runs at equal FLOPs or seconds take the settings tuned at equal tokens."
    several = (
        f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    )
    contains = (
        " and contains the noise of both arms' searches" if any(arm["tuning"] for arm in plan["arms"]) else ""
    )
    steps = plan["settings"]["steps"]
    few = [f"QUICK: each run is of {steps} steps, too few to say what holds for a whole training."]
    return [
        *(few if steps < FEW_STEPS else []),
        sizes,
        rate,
        f"{several}, paired: the same batches for every arm.",
        plan["data"].get("split_note")
        or "Settings are chosen on the validation part; the losses here are of the test part.",
        f"The 95% paired t interval over seeds decides{contains}, with Holm's correction over all comparisons of the "
        "study. The bootstrap over seeds and text is shown but decides nothing.",
    ]


def tests_label(effects: Sequence[dict[str, Any]]) -> list[str]:
    """A note on how many tests Holm's correction counts, if some comparisons are the same test; otherwise none."""
    judged = [one for one in effects if one["mean"] is not None]
    distinct = judged[0]["tests"] if judged else 0
    if distinct == len(judged):
        return []
    return [
        f"{len(judged)} comparisons are judged, which are only {distinct} distinct tests: the others compare the same "
        "runs under other names, or runs with themselves. Holm's correction counts each test once."
    ]


def versions(plan: dict[str, Any], results: dict[str, Line]) -> list[str]:
    """A note if the runs were made by several versions of the program, otherwise none."""
    keys = [key for arm in plan["arms"] for some in arm["runs"].values() for key in some]
    commits = sorted({str(results[key].get("commit"))[:7] for key in keys})
    if len(commits) < 2:
        return []
    return [f"The runs were made by {len(commits)} versions of the program: {', '.join(commits)}."]
