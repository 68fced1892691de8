"""How the arms of a study get their settings: by the same search, from a searched arm, or from a file.

An arm that inherits takes all settings of another but the rate, which is tuned by a grid around the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanokimi.compare.earlier_searches import MISSING, entry, losses_of, patterns_of
from nanokimi.compare.earlier_searches import SEARCHES as EARLIER
from nanokimi.config.fixed import fixed_settings
from nanokimi.config.parsing import with_changes
from nanokimi.config.rules import validate
from nanokimi.errors import UserError
from nanokimi.study.jobs import Job
from nanokimi.study.pool import Pool
from nanokimi.study.search import Asked, Design, search
from nanokimi.study.space import KEYS, RATE, RATIO, Values, hyperparameters_of, settings_of
from nanokimi.study.study import Study, StudyArm, job_of
from nanokimi.study.tune import cpu_seconds, geometric_grid, tune
from nanokimi.study.tuning_record import (
    INHERITED,
    RATES,
    TUNED_FILE,
    Record,
    found_elsewhere,
    rate_record,
    read_settled,
    write_tuned,
)

FULL, RATES_ONLY, NONE = "full", "rates", "none"
SEARCHES = (FULL, RATES_ONLY, NONE)


@dataclass(frozen=True)
class TuningOptions:
    """How the arms' settings are found, and how much is tried."""

    search: str = FULL
    """full: all hyperparameters of the space. rates: the learning rate alone. none: nothing."""
    trials: int = Design.points
    """Points that a full search begins with."""
    search_rounds: int = Design.rounds
    points: int = 3
    factor: float = 2.0
    rounds: int = 3
    tuning_seeds: int = 2
    tuned: Path | None = None

    @property
    def design(self) -> Design:
        """The design of a full search."""
        return Design(points=self.trials, rounds=self.search_rounds)


def settle(
    study: Study,
    pool: Pool,
    arms: Sequence[StudyArm],
    options: TuningOptions,
    parents: Mapping[str, StudyArm],
) -> list[StudyArm]:
    """The arms with the settings found for them. Leaking ones stay as they are.

    `parents` has, by an arm's name, the arm that it inherits from in a full search. That one is searched even if it is
    not an arm of the study. Arms without an entry are searched themselves.
    """
    if options.tuned is not None:
        return from_file(study, arms, options.tuned)
    sound = [arm for arm in arms if arm.leaking is None]
    if options.search == NONE or not sound:
        return list(arms)
    if options.search == RATES_ONLY:
        found = tune_rates(study, pool, sound, {arm.name: {} for arm in sound}, options)
    else:
        own = {arm.name: arm for arm in sound if arm.name not in parents}
        own |= {parents[arm.name].name: parents[arm.name] for arm in sound if arm.name in parents}
        found = run_searches(study, pool, list(own.values()), options)
        inheriting = [arm for arm in sound if arm.name not in found]
        found |= tune_inheriting_arms(
            study, pool, inheriting, {arm.name: parents[arm.name].name for arm in inheriting}, found, options
        )
    names = {arm.name for arm in sound}
    found = {name: with_search_from_outside(record, found, names) for name, record in found.items()}
    write_tuned(study.folder, study.tuning_seeds(options.tuning_seeds), study.steps, found, study.text)
    return [arm if arm.leaking else arm.tuned(found[arm.name]) for arm in arms]


def with_search_from_outside(record: Record, records: Mapping[str, Record], names: Set[str]) -> Record:
    """A record that also holds the search of the arm it inherits from, if that is none of a study's sound arms.

    A study knows the searches of its own arms alone, and would judge as if the settings were not found by a noisy one.
    Raises UserError if that search is not among the records.
    """
    parent = record.get("inherited_from")
    if parent is None or "inherited_file" in record:
        return record
    if parent in names:
        return {key: value for key, value in record.items() if key not in (EARLIER, MISSING)}
    if parent not in records:
        raise UserError(
            f"there is no record of '{parent}', whose settings are inherited: its noise is unknown"
        )
    nearest = entry(TUNED_FILE, parent, losses_of(records[parent]), patterns_of(records[parent]))
    return {**record, EARLIER: [nearest], MISSING: None}


def from_file(study: Study, arms: Sequence[StudyArm], path: Path) -> list[StudyArm]:
    """The arms with what an earlier study found, converted to this one's widths and steps."""
    known = read_settled(path)
    missing = [arm.name for arm in arms if arm.name not in known and arm.leaking is None]
    if missing:
        raise UserError(
            f"{path} has no value for the arm '{missing[0]}': name the tuned.json of a study with this arm"
        )
    settled, names = [], {arm.name for arm in arms if arm.leaking is None}
    elsewhere = found_elsewhere(path, study.text, study.steps)
    for arm in arms:
        if arm.leaking is None:
            record = with_search_from_outside(known[arm.name], known, names)
            own = {hyperparameter.name for hyperparameter in hyperparameters_of(arm.config)}
            values = {name: value for name, value in record["best_values"].items() if name in own}
            best = settings_of(values, arm.config, arm.steps)
            key = KEYS[RATIO][0]
            if RATIO in own and RATIO not in values and record["kind"] != RATES and key not in named_by(arm):
                best[key] = None  # AdamW alone had one rate for all weights in earlier versions
            told = {"found_elsewhere": elsewhere} if elsewhere else {}
            arm = arm.tuned({**record, "best": best, **told})
        settled.append(arm)
    return settled


def run_searches(
    study: Study, pool: Pool, arms: Sequence[StudyArm], options: TuningOptions
) -> dict[str, Record]:
    """Run a full search; returns each arm's record."""
    by_name, seconds = {arm.name: arm for arm in arms}, dict.fromkeys((arm.name for arm in arms), 0.0)

    def score(asked: Sequence[Asked]) -> list[float | None]:
        lines = pool.run([tuning_job(by_name[name], settings, seed) for name, settings, seed in asked])
        for (name, _, _), line in zip(asked, lines, strict=True):
            seconds[name] += cpu_seconds(line)
        return [line["val_loss"] for line in lines]

    configs, steps = {arm.name: arm.config for arm in arms}, {arm.name: arm.steps for arm in arms}
    seeds = study.tuning_seeds(options.tuning_seeds)
    records = search(configs, score, seeds, steps, options.design)
    return {
        name: {
            **record,
            "cpu_seconds": round(seconds[name], 1),
            "settings": fixed_settings(configs[name], record["best"]),
        }
        for name, record in records.items()
    }


def named_by(arm: StudyArm) -> set[str]:
    """The settings that an arm sets or holds itself, without its family in front. It inherits none of them."""
    return {key.removeprefix(f"{arm.config.model}.") for key in arm.changes} | set(arm.holds)


def inherit(record: Record, arm: StudyArm) -> Values:
    """The values that an arm inherits from another one's record: all but the rate and what the arm itself sets."""
    named = named_by(arm)
    own = {hyperparameter.name for hyperparameter in hyperparameters_of(arm.config)} - {RATE}
    return {
        name: value
        for name, value in record["best_values"].items()
        if name in own and not named & set(KEYS[name])
    }


def tune_inheriting_arms(
    study: Study,
    pool: Pool,
    inheriting: Sequence[StudyArm],
    parents: Mapping[str, str],
    records: Mapping[str, Record],
    options: TuningOptions,
) -> dict[str, Record]:
    """Records of arms that inherit the settings of others, each with its own rate tuned."""
    if not inheriting:
        return {}
    values = {arm.name: inherit(records[parents[arm.name]], arm) for arm in inheriting}
    placed = []
    for arm in inheriting:
        if f"{arm.config.model}.{KEYS[RATE][0]}" not in arm.changes:
            arm = arm.with_settings({KEYS[RATE][0]: records[parents[arm.name]]["best_values"][RATE]})
        placed.append(arm)
    found = tune_rates(study, pool, placed, values, options)
    return {
        name: {
            **record,
            "kind": INHERITED,
            "inherited_from": parents[name],
            "design": f"settings of {parents[name]}; the rate by {record['design']}",
        }
        for name, record in found.items()
    }


def tune_rates(
    study: Study,
    pool: Pool,
    arms: Sequence[StudyArm],
    values: Mapping[str, Values],
    options: TuningOptions,
) -> dict[str, Record]:
    """Tune each arm's rate by a grid around its own; `values` are the other values that it is run with."""
    by_name = {arm.name: arm for arm in arms}

    def settings_at(name: str, rate: float) -> dict[str, Any]:
        return settings_of({RATE: rate, **values[name]}, by_name[name].config, by_name[name].steps)

    def maker(arm: StudyArm) -> Callable[[Any, int], Job]:
        return lambda rate, seed: tuning_job(arm, settings_at(arm.name, rate), seed)

    makers = {arm.name: maker(arm) for arm in arms}
    grids = {
        arm.name: geometric_grid(arm.config.family.optim.lr, options.factor, options.points) for arm in arms
    }
    seeds = study.tuning_seeds(options.tuning_seeds)
    curves = tune(pool, makers, grids, seeds, factor=options.factor, max_rounds=options.rounds)
    return {
        name: rate_record(
            curve, seeds, settings_at(name, curve["best"]), {RATE: curve["best"], **values[name]}
        )
        for name, curve in curves.items()
    }


def tuning_job(arm: StudyArm, settings: Mapping[str, Any], seed: int) -> Job:
    """A tuning run of an arm with some settings replaced, by key without the family in front."""
    return job_of(arm.with_settings(settings), seed, "tune")


def setting_maker(arm: StudyArm, hyperparameter: str) -> Callable[[Any, int], Job]:
    """A function from (value, seed) to a job that trains the arm with that value of a setting."""

    def make(value: Any, seed: int) -> Job:
        if hyperparameter.startswith("train."):
            config = validate(with_changes(arm.config, {hyperparameter: value}))
            return job_of(replace(arm, config=config), seed, "tune")
        return tuning_job(arm, {hyperparameter: value}, seed)

    return make
