"""The notes that every output of a study shows beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanokimi.compare.match import QUANTITIES
from nanokimi.compare.verdict import looks_sentence
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
    left_out = plan.get("left_out", [])
    dropped = [f"{len(left_out)} comparisons"] if len(left_out) > 1 else left_out
    looks = looks_sentence(plan.get("earlier_seeds", []), len(seeds), dropped, "comparisons")
    few = [f"QUICK: each run is of {steps} steps, too few to say what holds for a whole training."]
    return [
        *(few if steps < FEW_STEPS else []),
        sizes,
        rate,
        f"{several}, paired: the same batches for every arm.",
        *([looks] if looks else []),
        plan["data"].get("split_note")
        or "Settings are chosen on the validation part; the losses here are of the test part.",
        f"The 95% paired t interval over seeds decides{contains}, with Holm's correction over all comparisons of the "
        "study. The bootstrap over seeds and text is shown but decides nothing.",
    ]


def earlier_looks(plans: Sequence[dict[str, Any]], plan: dict[str, Any]) -> dict[str, Any]:
    """How earlier plans judged runs of this one: other numbers of seeds, and comparisons that are left out now."""
    here = runs_in(plan)
    before = [one for one in plans if here & runs_in(one)]
    seeds = sorted({len(one["seeds"]) for one in before} - {len(plan["seeds"])})
    kept = {one["name"] for one in plan["comparisons"]}
    names = dict.fromkeys(one["name"] for earlier in before for one in earlier["comparisons"])
    found = {"earlier_seeds": seeds, "left_out": [name for name in names if name not in kept]}
    return {key: value for key, value in found.items() if value}


def runs_in(plan: dict[str, Any]) -> set[str]:
    """The keys of the runs that a plan judges."""
    return {key for arm in plan["arms"] for keys in arm["runs"].values() for key in keys}


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
    commits = sorted({str(results[key].get("commit"))[:7] for key in runs_in(plan)})
    if len(commits) < 2:
        return []
    return [f"The runs were made by {len(commits)} versions of the program: {', '.join(commits)}."]
