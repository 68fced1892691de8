"""`nanokimi scale`: families at several sizes, each tuned; their loss against compute, and what NanoKimi saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanokimi.compare.size import WIDTH_STEP
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_words
from nanokimi.config.parsing import with_changes
from nanokimi.config.rules_variant import is_plugin
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.runtime.text import listed
from nanokimi.study.added import added_arm
from nanokimi.study.audits import with_leaks_found
from nanokimi.study.ladder import CORNERS, END, START, check_corners, ladder_arm
from nanokimi.study.ladder_run import LadderOptions
from nanokimi.study.output import write_outputs
from nanokimi.study.power_law import Size, Sizes, describe_fit, multiplier
from nanokimi.study.settle import settle
from nanokimi.study.study import (
    StudyArm,
    arm_entry,
    comparison_entry,
    open_study,
    report_of,
    run_seeds,
    runs_of,
    study_title,
    write_plan,
)
from nanokimi.study.tuning_record import SEARCHED, read_settled

MIN_SIZES = 4
MOST_TIMES = 1000
SIZED = ("model.hidden_size", "model.num_attention_heads", "model.kv_lora_rank")


@dataclass(frozen=True)
class ScaleOptions:
    """What the command line gives besides the configuration."""

    sizes: tuple[int, ...]
    families: tuple[str, ...] = (END, START)
    equal_steps: bool = False
    added: tuple[str, ...] = ()
    """The values of --arm, each of which adds a family."""
    ladder: LadderOptions = LadderOptions()
    """Seeds, tuning and workers, as for the ladder."""


def at_size(config: RunConfig, hidden: int, equal_steps: bool) -> RunConfig:
    """The configuration with both models at another hidden size: heads keep their width and change in number.

    The steps grow with the active parameters, unless `equal_steps`. Raises UserError if `hidden` is not a multiple of
    the width of a head.
    """
    gpt, kimi = config.nanogpt.model, config.nanokimi.model
    head = gpt.hidden_size // gpt.num_attention_heads
    if hidden % head:
        raise UserError(f"--sizes: {hidden} is not a multiple of the width of a head, {head}")
    share = hidden / gpt.hidden_size

    def scaled(width: int) -> int:
        return max(WIDTH_STEP, WIDTH_STEP * round(width * share / WIDTH_STEP))

    context, steps = config.train.context_length, config.train.max_steps
    assert steps is not None
    wide = None if gpt.intermediate_size is None else scaled(gpt.intermediate_size)
    sized = with_changes(
        config,
        {
            "nanogpt.model.hidden_size": hidden,
            "nanogpt.model.num_attention_heads": hidden // head,
            "nanogpt.model.intermediate_size": wide,
            "nanokimi.model.hidden_size": hidden,
            "nanokimi.model.num_attention_heads": hidden // head,
            "nanokimi.model.kv_lora_rank": scaled(kimi.kv_lora_rank),
        },
    )
    before = model_cost(gpt, context).params_active
    ratio = 1.0 if equal_steps else model_cost(sized.nanogpt.model, context).params_active / before
    changes: dict[str, Any] = {"train.max_steps": max(round(steps * ratio), 2)}
    for arm in ("nanogpt", "nanokimi"):
        warm_up = getattr(config, arm).optim.warmup_steps
        changes[f"{arm}.optim.warmup_steps"] = round(warm_up * ratio)
    return with_changes(sized, changes)


def scale_arms(config: RunConfig, options: ScaleOptions) -> list[StudyArm]:
    """Every family at every size."""
    check_corners(config)
    arms = []
    for hidden in options.sizes:
        sized = at_size(config, hidden, options.equal_steps)
        for family in options.families:
            arm = ladder_arm(sized, f"{family}, {hidden} wide", CORNERS[family])
            arms.append(replace(arm, family=family, hidden_size=hidden))
        arms += [added_family(sized, text, hidden) for text in options.added]
    return arms


def added_family(sized: RunConfig, text: str, hidden: int) -> StudyArm:
    """A user's family at one size, such as "NAME: from=nanokimi optim.name=lion".

    Raises UserError for a class, whose size cannot be changed, and for a text that sets the size itself.
    """
    corners = [ladder_arm(sized, family, components) for family, components in CORNERS.items()]
    name, source, given = arm_words(text)
    if is_plugin(source):
        raise UserError(f"--arm '{text}': a class of your own has no width that scale could change")
    for key in SIZED:
        if key in given:
            raise UserError(f"--arm '{text}': {key} is what --sizes changes: leave it out")
    arm = added_arm(corners, text)
    return replace(arm, name=f"{name}, {hidden} wide", family=name, hidden_size=hidden)


def family_parents(arms: Sequence[StudyArm], hidden: int) -> dict[str, StudyArm]:
    """The arm that each arm inherits from in a full search, by name: its family's, of the width nearest to `hidden`."""
    families: dict[str, list[StudyArm]] = {}
    for arm in arms:
        families.setdefault(str(arm.family), []).append(arm)
    found: dict[str, StudyArm] = {}
    for some in families.values():
        parent = min(some, key=lambda arm: abs(int(arm.hidden_size or 0) - hidden))
        found |= {arm.name: parent for arm in some if arm is not parent}
    return found


def run_scale(config: RunConfig, out: Path, options: ScaleOptions) -> dict[str, Any]:
    """Run the whole study and write its pages; returns the report. Runs that `out` already holds are not repeated."""
    if len(set(options.sizes)) < MIN_SIZES:
        raise UserError(f"--sizes names {len(set(options.sizes))}: a curve needs at least {MIN_SIZES}")
    if options.ladder.tuned is not None:
        read_settled(options.ladder.tuned)  # a wrong file is refused before anything is audited
    with open_study(config, out) as study:
        arms = with_leaks_found(scale_arms(study.config, options), study)
        with study.pool(options.ladder.workers, options.ladder.keep) as pool:
            parents = family_parents(arms, study.config.nanogpt.model.hidden_size)
            arms = settle(study, pool, arms, options.ladder, parents)
            seeds = study.seeds(options.ladder.seeds)
            arms = run_seeds(pool, arms, seeds)
            families = dict.fromkeys(str(arm.family) for arm in arms)
            base = [family for family in families if family != END]
            content = {
                "title": study_title(
                    f"Loss against compute: {Path(study.data.metadata['path']).name}",
                    arms,
                    options.ladder.quick,
                    study.steps,
                ),
                "match": "active_params",
                "seeds": seeds,
                "arms": [arm_entry(arm, {"tokens": runs_of(pool, arm, seeds)}) for arm in arms],
                "comparisons": [
                    comparison_entry(
                        "families",
                        f"{END} - {other}, {hidden} wide",
                        f"{END}, {hidden} wide",
                        f"{other}, {hidden} wide",
                    )
                    for other in base
                    for hidden in options.sizes
                    if END in options.families
                ],
            }
            plan = write_plan(study, "scale", content)
            report = report_of(plan, pool.results, curves_of)
        write_outputs(out, report)
        return report


def curves_of(report: dict[str, Any]) -> dict[str, Any]:
    """The families' laws, and what NanoKimi saves in FLOPs and in seconds, as numbers and in sentences."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in report["arms"]:
        if row["test_loss"] is not None:
            families.setdefault(row["changes"]["family"], []).append(row)
    # older plans hold only the text's entropy, which windows that cut stories cannot reach
    floor = report["data"].get("attainable_floor", report["data"]["floor"])
    curves: list[dict[str, Any]] = []
    for family, rows in families.items():
        if len(rows) >= MIN_SIZES:
            losses_SN = np.array([row["losses"] for row in rows]).T
            laws = {
                axis: describe_fit([row[axis] for row in rows], losses_SN, floor)
                for axis in ("flops", "train_seconds")
            }
            points = [point_of(row, report["data"]["train_tokens"]) for row in rows]
            curves.append({"family": family, "laws": laws, "points": points})
    savings = [
        saving(curves, base["family"], axis, floor)
        for base in curves
        if base["family"] != END and any(one["family"] == END for one in curves)
        for axis in ("flops", "train_seconds")
    ]
    return {"curves": curves, "savings": savings, "sentences": [one["sentence"] for one in savings]}


def point_of(row: dict[str, Any], train_tokens: int) -> dict[str, Any]:
    """One size of a family, with how many times it read the text."""
    kept = ("flops", "train_seconds", "losses", "test_loss")
    more = {"hidden_size": row["changes"]["hidden_size"], "epochs": row["tokens"] / train_tokens}
    # A family's sizes share one search, whose luck other families do not share.
    shared, own = [row["inherited_variance"], *row["earlier_variances"].values()], [row["search_variance"]]
    if row["tuning"] and row["tuning"]["kind"] == SEARCHED:
        shared, own = shared + own, []
    more["own_variance"], more["shared_variance"], more["search_variance"] = (
        None if None in some else sum(some) for some in (own, shared, own + shared)
    )
    return {**{key: row[key] for key in kept}, **more}


def saving(curves: Sequence[dict[str, Any]], base: str, axis: str, floor: float | None) -> dict[str, Any]:
    """What NanoKimi saves against the base at each size, and a sentence on the largest whose loss the base reaches.

    It is read on the base's law or, if that does not describe its sizes, on lines between them.
    """
    by_family = {one["family"]: one["points"] for one in curves}
    law = next(one["laws"][axis] for one in curves if one["family"] == base)
    # The variances are None with one seed, for which there is no interval.
    own, shared = (
        np.array([point[kind] or 0.0 for point in by_family[base]])
        for kind in ("own_variance", "shared_variance")
    )
    sizes = Sizes(
        np.array([point[axis] for point in by_family[base]]),
        np.array([point["losses"] for point in by_family[base]]).T,
        own,
        shared,
    )
    found = [
        {
            "at": point[axis],
            "hidden_size": point["hidden_size"],
            "epochs": point["epochs"],
            "loss": point["test_loss"],
            **multiplier(
                sizes,
                Size(point[axis], np.array(point["losses"]), point["search_variance"] or 0.0),
                floor,
                by_law=law["describes"],
            ),
        }
        for point in by_family[END]
    ]
    what = "compute" if axis == "flops" else "training time"
    inside = [one for one in found if one["ratio"] is not None]
    for one in inside:
        one["read_on"] = read_around(by_family[base], axis, one["ratio"] * one["at"])
    sentence = " ".join([headline(found, inside, base, what, law), where_read(found, inside, base)])
    return {"base": base, "axis": axis, "sizes": found, "sentence": sentence}


def headline(
    found: Sequence[dict[str, Any]],
    inside: Sequence[dict[str, Any]],
    base: str,
    what: str,
    law: dict[str, Any],
) -> str:
    """The ratio at the largest size whose loss the base reaches, or else a bound, and which curve it was read on."""
    if inside:
        sentence = ratio_sentence(max(inside, key=lambda one: one["at"]), base, what)
    else:
        is_lower_bound = found[0]["bound"][0] == "more than"
        one = max(found, key=lambda one: one["bound"][1]) if is_lower_bound else found[-1]
        side, factor = one["bound"]
        measured = "twice (or half) of what was measured" if law["describes"] else "what was measured"
        sentence = (
            f"{base} needs {side} {factor:.2f} times {END}'s {what} for the loss {one['loss']:.4f}; its curve does "
            f"not reach that within {measured}, so no number is given beyond."
        )
    if not law["describes"]:
        sentence += (
            f" Read between {base}'s sizes: a power law misses their losses by up to {law['misses_by']:.2f} nats, more "
            "than seeds scatter."
        )
    return sentence


def ratio_sentence(one: dict[str, Any], base: str, what: str) -> str:
    """What the base needs for the loss of one of NanoKimi's sizes, with the interval or the range of the curves."""
    if one["ci95"] is not None:
        low, high = one["ci95"]
        sure = f"95% interval {times(low)} to {times(high)}, over seeds, searches, four curves and each size left out"
    else:
        low, high = one["range"]
        sure = (
            f"{times(low)} to {times(high)} by other curves or without one size; no interval, and so no verdict: that "
            "takes several seeds, and curves that all reach this loss"
        )
    loss, ratio = f"{one['loss']:.4f}", f"{one['ratio']:.2f}"
    sentence = f"{base} needs {ratio} times {END}'s {what} for the loss {loss} ({sure})"
    if one["ci95"] is None:
        return f"{sentence}."
    if low <= 1 <= high:
        return f"{sentence}, which is not distinguishable from once."
    return f"{sentence}, so {END} needs more." if one["ratio"] < 1 else f"{sentence}."


def times(ratio: float) -> str:
    """A ratio of computes for people: what lies far outside any measured range is no number."""
    if ratio > MOST_TIMES:
        return f"more than {MOST_TIMES:,}"
    return f"{ratio:.2f}" if ratio >= 0.005 else "less than 0.01"


def read_around(points: Sequence[dict[str, Any]], axis: str, needed: float) -> list[int]:
    """The sizes on either side of a compute, or the one next to it if the compute is beyond all sizes."""
    ordered = sorted(points, key=lambda point: point[axis])
    below = [point["hidden_size"] for point in ordered if point[axis] <= needed][-1:]
    above = [point["hidden_size"] for point in ordered if point[axis] > needed][:1]
    return below + above


def where_read(found: Sequence[dict[str, Any]], inside: Sequence[dict[str, Any]], base: str) -> str:
    """At how many sizes a ratio was read, between which sizes of the base, and how often each size read the text."""
    sentence = f"A ratio was read at {len(inside)} of {len(found)} sizes"
    if inside:
        sentence += ": " + ", ".join(
            f"{one['ratio']:.2f} at {one['hidden_size']} wide (from {base}'s {listed(one['read_on'])})"
            for one in inside
        )
    outside = [one["hidden_size"] for one in found if one["ratio"] is None]
    if outside:
        sentence += f"; none at {listed(outside)} wide, beyond what was measured of {base}"
    epochs = [f"{one['epochs']:.2g}" for one in found]
    return f"{sentence}. The sizes read the text {listed(epochs)} times."
