"""`nanokimi sweep --inherit`: the settings that an earlier search found, with each arm's learning rate tuned here.

A full search of a large model may cost more than there is. Then its arms take what the search of a smaller one found,
converted to their widths and to the steps of the runs, and a grid around each inherited rate tests whether the rate
still holds. Every arm gets the same number of rates, in the same places beside the one that it inherits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanokimi.compare.earlier_searches import (
    MISSING,
    SEARCHES,
    earlier_searches,
    entry,
    losses_of,
    patterns_of,
)
from nanokimi.compare.searched import search_file
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.fixed import fixed_settings
from nanokimi.errors import UserError
from nanokimi.study.pool import Pool
from nanokimi.study.settle import TuningOptions, tune_inheriting_arms
from nanokimi.study.space import RATE, RATIO, hyperparameters_of, left_out
from nanokimi.study.study import Study, StudyArm
from nanokimi.study.tuning_record import Record, read_tuned


@dataclass(frozen=True)
class Earlier:
    """The search whose settings are inherited."""

    file: str
    """The file's name."""
    records: dict[str, Record]
    """The record of each arm, by name."""
    searches: dict[str, Record]
    """What each arm's new record keeps of the searches that its settings are from, so that nobody has to find them."""


def read_earlier(config: RunConfig, name: str, options: TuningOptions) -> Earlier:
    """The search that --inherit names. Raises UserError if it has no settings for one of the configuration's arms."""
    if options.points % 2 == 0:
        raise UserError(
            f"--points is {options.points}: --inherit needs an odd number, so that the inherited rate is one of them"
        )
    path = search_file(name, "--inherit")
    records = read_tuned(path)
    for arm, own in arm_configs(config).items():
        if arm not in records:
            raise UserError(f"--inherit: {path.name} has no arm '{arm}'; it has {', '.join(records)}")
        values = records[arm]["best_values"]
        if RATIO in records[arm]["left_out"] and RATIO not in left_out(own):
            values[RATIO] = 1.0  # AdamW alone had one rate for all weights in earlier versions
        lacking = [one.name for one in hyperparameters_of(own) if one.name not in values]
        if lacking:
            raise UserError(f"--inherit: {path.name} has no {lacking[0]} for '{arm}', which has one here")
        there, here = optimizer_of(records[arm]), own.family.optim.name
        if there not in (None, here):
            raise UserError(
                f"--inherit: {path.name} searched '{arm}' with {there}, and here it has {here}: other settings fit that"
            )
    return Earlier(
        path.name, records, {arm: searches_behind(arm, records, path) for arm in arm_configs(config)}
    )


def searches_behind(arm: str, records: dict[str, Record], path: Path) -> Record:
    """The losses of the search of an arm, and of those that it inherits from itself, for the record of its settings."""
    try:
        found, missing = earlier_searches(records[arm], path)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"--inherit: {path.name} is damaged: what '{arm}' inherits there cannot be read"
        ) from None
    nearest = entry(path.name, arm, losses_of(records[arm]), patterns_of(records[arm]))
    return {SEARCHES: [nearest, *found], MISSING: missing}


def optimizer_of(record: Record) -> str | None:
    """The optimizer that an arm was searched with; None in files of earlier versions, which do not say it."""
    settings = record.get("settings", {})
    name = settings.get(f"{settings.get('model')}.optim.name")
    return None if name is None else str(name)


def tune_inherited(
    study: Study, pool: Pool, arms: Sequence[StudyArm], earlier: Earlier, options: TuningOptions
) -> dict[str, Record]:
    """Each arm's record, by name."""
    file, known = earlier.file, earlier.records
    found = tune_inheriting_arms(study, pool, arms, {arm.name: arm.name for arm in arms}, known, options)
    design = (
        f"settings of {file}; {options.points} learning rates around the one found there, each {options.factor:g} "
        "times the last"
    )
    if options.rounds:
        design += f"; while a best one lies at an edge, one more for every arm, {options.rounds} at most"
    return {
        arm.name: {
            **found[arm.name],
            "inherited_file": file,
            "inherited_rate": known[arm.name]["best_values"][RATE],
            **earlier.searches[arm.name],
            "design": design,
            "left_out": left_out(arm.config) | taken(known[arm.name], arm.config, file),
            "settings": fixed_settings(arm.config, found[arm.name]["best"]),
        }
        for arm in arms
    }


def taken(record: Record, arm: RunConfig, file: str) -> dict[str, str]:
    """What an arm takes over as it is, by hyperparameter, in words."""
    words = {}
    for one in hyperparameters_of(arm):
        if one.name != RATE:
            value = record["best_values"][one.name]
            edge = "" if record["interior"].get(one.name, True) else ", AT THE EDGE of that search"
            words[one.name] = f"{value if isinstance(value, str) else format(value, 'g')} from {file}{edge}"
    return words
