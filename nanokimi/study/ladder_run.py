"""`nanokimi ladder`: audit, tune, train with every seed, and judge per token, per FLOP and per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanokimi.compare.match import fewer_steps
from nanokimi.config import RunConfig
from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json_lines
from nanokimi.runtime.text import listed
from nanokimi.study.added import added_arm, plugged_arm
from nanokimi.study.audits import with_leaks_found
from nanokimi.study.jobs import RESULTS_FILE
from nanokimi.study.ladder import DESIGNS, END, MUON_START, START, inheritance_tests, lineage, plan_ladder
from nanokimi.study.output import write_outputs
from nanokimi.study.pool import Pool
from nanokimi.study.settle import FULL, TuningOptions, settle
from nanokimi.study.study import (
    Study,
    StudyArm,
    arm_entry,
    comparison_entry,
    job_of,
    open_study,
    report_of,
    run_seeds,
    runs_of,
    study_title,
    write_plan,
)
from nanokimi.study.tuning_record import SEARCHED, read_settled

EQUAL_BUDGETS = {"tokens": "per token", "flops": "per FLOP", "seconds": "per second"}
UNDER_EVERY_BUDGET = (START, MUON_START, END)
"""The arms that are compared under every budget."""


@dataclass(frozen=True)
class LadderOptions(TuningOptions):
    """What the command line gives besides the configuration."""

    designs: tuple[str, ...] = DESIGNS
    components: tuple[str, ...] = ()
    seeds: int = 5
    budgets: tuple[str, ...] = ("tokens", "flops", "seconds")
    added: tuple[str, ...] = ()
    """The values of --arm."""
    plugins: tuple[str, ...] = ()
    workers: int | None = None
    keep: bool = False
    quick: bool = False
    """Whether this is a quick look, which the title says."""


def run_ladder(config: RunConfig, out: Path, options: LadderOptions) -> dict[str, Any]:
    """Run the whole study and write its pages; returns the report. Runs that `out` already holds are not repeated."""
    with open_study(config, out) as study:
        known = None if options.tuned is None else read_settled(options.tuned)
        kinds = {record["kind"] for record in (known or {}).values()}
        searched = options.search == FULL if known is None else SEARCHED in kinds
        arms, comparisons = plan_ladder(study.config, options.designs, options.components, searched)
        for text in options.added:
            arm = added_arm(arms, text)
            comparisons.append(comparison_entry("also", arm.name, arm.name, str(arm.made_from)))
            arms.append(arm)
        for spec in options.plugins:
            arm = plugged_arm(arms, spec)
            comparisons.append(comparison_entry("also", arm.name, arm.name, str(arm.made_from)))
            arms.append(arm)
        if searched:
            more, tests = inheritance_tests(arms)
            arms += [arm for arm in more if known is None or arm.name in known]
            comparisons += [one for one in tests if known is None or one["name"] in known]
        arms = with_leaks_found(arms, study)
        with study.pool(options.workers, options.keep) as pool:
            arms = settle(study, pool, arms, options, lineage(study.config, arms))
            arms = run_seeds(pool, arms, study.seeds(options.seeds))
            steps = budget_steps(study, pool, arms, options)
            sound = [arm for arm in arms if arm.name in UNDER_EVERY_BUDGET and arm.leaking is None]
            seeds = study.seeds(options.seeds)
            pool.run(
                [
                    job_of(arm, seed, "seed", steps[budget][arm.name])
                    for budget in steps
                    for seed in seeds
                    for arm in sound
                ]
            )
            plan = write_plan(study, "ladder", ladder_plan(study, pool, arms, comparisons, steps, options))
            report = report_of(plan, pool.results)
        write_outputs(out, report)
        return report


def budget_steps(
    study: Study, pool: Pool, arms: Sequence[StudyArm], options: LadderOptions
) -> dict[str, dict[str, int]]:
    """For each other budget, the steps in which each arm spends what the cheapest one spends in all its steps.

    Times are those of the runs at equal tokens. They are read once, so that a study that is extended keeps its steps.
    """
    path = study.folder / RESULTS_FILE
    plans = [line for line in read_json_lines(path) if line["kind"] == "plan"]
    kept = plans[-1].get("budget_steps", {}) if plans else {}
    runs = {arm["name"]: arm["runs"].get("tokens", []) for arm in plans[-1]["arms"]} if kept else {}
    sound = [arm for arm in arms if arm.name in UNDER_EVERY_BUDGET and arm.leaking is None]
    first = study.seeds(1)[0]
    if not all(pool.key(job_of(arm, first, "seed")) in runs.get(arm.name, ()) for arm in sound):
        kept = {}  # these steps were solved for other arms
    found: dict[str, dict[str, int]] = {}
    for budget in options.budgets:
        if budget == "tokens" or len(sound) < 2:
            continue
        names = [arm.name for arm in sound]
        if set(kept.get(budget, {})) == set(names) and max(kept[budget].values()) == study.steps:
            found[budget] = kept[budget]
            continue
        costs = []
        for arm in sound:
            lines = [pool.result(job_of(arm, seed, "seed")) for seed in study.seeds(options.seeds)]
            per_step = [cost_of_step(line, budget) for line in lines if line["val_loss"] is not None]
            if not per_step:
                raise UserError(f"every run of {arm.name} diverged: lower its learning rate")
            costs.append(sorted(per_step)[len(per_step) // 2])
        found[budget] = dict(zip(names, fewer_steps(study.steps, costs), strict=True))
    return found


def cost_of_step(line: dict[str, Any], budget: str) -> float:
    """FLOPs or milliseconds of one step."""
    return float(line["flops"] / line["steps"] if budget == "flops" else line["ms_per_step"])


def ladder_plan(
    study: Study,
    pool: Pool,
    arms: Sequence[StudyArm],
    comparisons: list[dict[str, Any]],
    steps: dict[str, dict[str, int]],
    options: LadderOptions,
) -> dict[str, Any]:
    """The entries of the plan that only a ladder has."""
    seeds = study.seeds(options.seeds)
    planned = []
    for arm in arms:
        runs = {"tokens": runs_of(pool, arm, seeds)}
        for budget, by_arm in steps.items():
            if arm.name in by_arm:
                runs[budget] = runs_of(pool, arm, seeds, by_arm[arm.name])
        planned.append(arm_entry(arm, runs))
    names = [arm.name for arm in arms]
    own = [spec.replace("\\", "/").rpartition("/")[2] for spec in options.plugins]
    plugged = f", and {listed(own)}" if own else ""
    budgets = []
    for budget in ("tokens", *steps):
        for first, second in ((END, START), (END, MUON_START), (MUON_START, START)):
            if first in names and second in names:
                title = f"{first} against {second}, {EQUAL_BUDGETS[budget]}"
                budgets.append(comparison_entry("budgets", title, first, second, budget))
    return {
        "title": study_title(
            f"What each change from NanoGPT to NanoKimi is worth{plugged}: {Path(study.data.metadata['path']).name}",
            arms,
            options.quick,
            study.steps,
        ),
        "match": "active_params",
        "seeds": seeds,
        "arms": planned,
        "comparisons": comparisons + budgets,
        "budget_steps": steps,
    }
