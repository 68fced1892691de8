"""What the first statistics said of the withdrawn studies, beside what their corrected version said of the same runs.

The runs are those of docs/results/old. Then, the interval over seeds decided, Holm's correction counted the comparisons
of one table, and a ratio of computes was read on one curve. The correction added what each search's choice adds
(`stats.choice_variance`), counted all comparisons of a study, and read each ratio on several curves. That noise also
decides the course of a search was not counted yet: every arm here has no more than a grid of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from recorded import RESULTS, Row, old_tales

from nanokimi.measure.stats import LEVEL, SeedDifference, choice_variance, holm, paired_t
from nanokimi.measure.story_world import wilson
from nanokimi.runtime.files import read_json_lines
from nanokimi.runtime.text import listed
from nanokimi.study.power_law import Size, Sizes, misfit, multiplier
from nanokimi.study.scale import read_around
from nanokimi.study.study import trials_of

NEW = "NanoKimi"
"""The model series whose losses the others are to reach."""
TALES_GRID = (0.9626, 0.8223, 0.8225, 0.8414)
"""The losses of NanoKimi's four rates on tales, from docs/earlier-results.md: no lines were kept."""


@dataclass(frozen=True)
class Judged:
    """A comparison: by its seeds alone, with the noise of the searches, and the p-values after Holm."""

    name: str
    seeds_alone: SeedDifference
    p_of_table: float
    p_of_study: float
    p_with_searches: float

    @property
    def withdrawn(self) -> bool:
        """Whether it had a winner and lost it."""
        return self.p_of_table < LEVEL <= max(self.p_of_study, self.p_with_searches)


def arm_losses(arm: Row, results: dict[str, Row], budget: str = "tokens") -> list[float]:
    """The losses of an arm's judged runs, by seed."""
    return [results[key]["val_loss"] for key in arm["runs"][budget]]


def judged(study: str) -> list[Judged]:
    """Every comparison of a withdrawn study."""
    *runs, plan = read_json_lines(RESULTS / "old" / f"{study}.jsonl")
    results, arms = {run["key"]: run for run in runs}, {arm["name"]: arm for arm in plan["arms"]}
    alone, wider = [], []
    tables: dict[str, list[int]] = {}
    for number, one in enumerate(plan["comparisons"]):
        total_S, noise = np.zeros(len(plan["seeds"])), 0.0
        for name, weight in one["weights"].items():
            losses = arm_losses(arms[name], results, one["budget"])
            total_S += weight * np.array(losses)
            noise += weight**2 * choice_variance(trials_of(arms[name], results), losses)
        nothing = [0.0] * len(total_S)
        alone.append(paired_t(list(total_S), nothing))
        wider.append(paired_t(list(total_S), nothing, extra_variance=noise if np.any(total_S) else 0.0))
        tables.setdefault(one["family"], []).append(number)
    of_table: dict[int, float] = {}
    for numbers in tables.values():
        of_table |= dict(zip(numbers, holm([alone[i].p for i in numbers]), strict=True))
    of_study, with_searches = (holm([one.p for one in some]) for some in (alone, wider))
    return [
        Judged(one["name"], alone[i], of_table[i], of_study[i], with_searches[i])
        for i, one in enumerate(plan["comparisons"])
    ]


def withdrawn_table(study: str) -> str:
    """The comparisons that lost their winner."""
    lines = [
        "| | difference | p after Holm in its table | in the study | with the searches' noise | old verdict | then |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in judged(study):
        if one.withdrawn:
            mean = one.seeds_alone.mean
            why = "" if one.p_of_study >= LEVEL else ", because of the searches' noise"
            lines.append(
                f"| {one.name} | {mean:+.4f} | {one.p_of_table:.3f} | {one.p_of_study:.3f} | {one.p_with_searches:.3f} "
                f"| {'lower' if mean < 0 else 'higher'} | not distinguishable{why} |"
            )
    return "\n".join(lines)


@cache
def old_series() -> tuple[dict[str, list[Row]], float]:
    """The sizes of each model series of the withdrawn scale study, and the text's entropy."""
    *runs, plan = read_json_lines(RESULTS / "old" / "scale-tales.jsonl")
    results = {run["key"]: run for run in runs}
    series: dict[str, list[Row]] = {}
    for arm in plan["arms"]:
        losses = arm_losses(arm, results)
        series.setdefault(arm["changes"]["family"], []).append(
            {
                "hidden_size": arm["changes"]["hidden_size"],
                "flops": float(np.mean([results[key]["flops"] for key in arm["runs"]["tokens"]])),
                "losses": np.array(losses),
                "noise": choice_variance(trials_of(arm, results), losses),
            }
        )
    return series, float(plan["data"]["floor"])


def ratios(base: Sequence[Row], new: Row, floor: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """How many times the new model's compute the base needs for its loss: without and with the searches' noise."""
    compute_N, losses_SN = (
        np.array([one["flops"] for one in base]),
        np.array([one["losses"] for one in base]).T,
    )
    noise_N = np.array([one["noise"] for one in base])
    by_law = misfit(compute_N, losses_SN, floor)[1]
    without, found = (
        multiplier(
            Sizes(compute_N, losses_SN, share * noise_N, 0.0 * noise_N),
            Size(new["flops"], new["losses"], share * new["noise"]),
            floor,
            by_law=by_law,
        )
        for share in (0.0, 1.0)
    )
    return without, found


def old_ratios_table() -> str:
    """Compute for compute: the interval that was given, and what other curves and the searches make of it."""
    series, floor = old_series()
    lines = [
        "| NanoKimi's loss at | against | interpolated between | ratio | old interval | other curves, or without one "
        "size | interval now |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, base in series.items():
        if name == NEW:
            continue
        beyond = []
        for new in series[NEW]:
            without, found = ratios(base, new, floor)
            if found["ratio"] is None:
                beyond.append(new["hidden_size"])
                continue
            between = listed(read_around(base, "flops", found["ratio"] * new["flops"]))
            old, most, now = (
                f"{low:.2f} to {high:.2f}"
                for low, high in (without["seeds95"], found["range"], found["ci95"])
            )
            once = ": not distinguishable" if found["ci95"][0] <= 1 <= found["ci95"][1] else ""
            lines.append(
                f"| {new['hidden_size']} wide | {name} | {between} | {found['ratio']:.2f} | {old} | {most} "
                f"| {now}{once} |"
            )
        lines.append(f"| {listed(beyond)} wide | {name} | | none: beyond its sizes | | | |")
    return "\n".join(lines)


def old_lead_over_muon() -> str:
    """By how much NanoKimi was below NanoGPT with Muon on tales, with the searches' noise and without."""
    losses, muon = old_tales(), "NanoGPT with Muon"
    lines = read_json_lines(RESULTS / "old" / "tales-muon.jsonl")
    tried = [
        [line["val_loss"]]
        for line in lines
        if line["kind"] == "run" and (line["purpose"], line["arm"]) == ("tune", muon)
    ]
    noise = choice_variance([[loss] for loss in TALES_GRID], losses[NEW]) + choice_variance(
        tried, losses[muon]
    )
    then, now = (paired_t(losses[muon], losses[NEW], extra_variance=extra) for extra in (0.0, noise))
    return f"{now.mean:.3f} ({now.low:.3f} to {now.high:.3f} instead of {then.low:.3f} to {then.high:.3f})"


def old_recall(arm: str) -> str:
    """The share of right answers after 20 words over three seeds, as answers of one seed and, as then, of all."""
    rows = read_json_lines(RESULTS / "old" / "tales.jsonl")
    answers = [row["tales"]["recall"]["20"] for row in rows if row["name"] == arm]
    share, total = fmean(one["share"] for one in answers), answers[0]["total"]
    one, all_seeds = (wilson(share * count, count) for count in (total, total * len(answers)))
    low, high = (f"{100 * end:.0f}" for end in one)
    return f"{share:.0%} ({low} to {high}% instead of {100 * all_seeds[0]:.0f} to {all_seeds[1]:.0%})"
