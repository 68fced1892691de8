"""`nanokimi sweep`: one setting over a grid for each arm until the optimum is interior, or over Optuna's trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.parsing import is_whole, require_setting, settings, with_parsed
from nanokimi.errors import UserError
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.files import write_json
from nanokimi.study.audits import with_leaks_found
from nanokimi.study.jobs import Job
from nanokimi.study.pool import Pool
from nanokimi.study.settle import setting_maker
from nanokimi.study.space import KEYS, RATE
from nanokimi.study.study import Study, StudyArm, open_study
from nanokimi.study.tune import curve_record, geometric_grid, rounded, tune


@dataclass(frozen=True)
class SweepOptions:
    """What the command line gives besides the configuration."""

    hyperparameter: str = KEYS[RATE][0]
    grid: tuple[str, ...] = ()
    """Values to try, as on the command line. If empty, `points` values around `around` or each arm's configured one."""
    around: float | None = None
    factor: float = 2.0
    points: int = 5
    rounds: int = 4
    seeds: int = 1
    optuna: int | None = None
    workers: int | None = None
    keep: bool = False


def run_sweep(config: RunConfig, out: Path, options: SweepOptions) -> dict[str, Any]:
    """Try the values and write sweep.json into `out`; returns its content."""
    if options.hyperparameter.split(".")[0] not in ("model", "optim", "train"):
        raise UserError(f"--vary {options.hyperparameter}: name a setting of model, optim or train")
    asked = arm_configs(config)
    for arm in asked.values():
        require_setting(full_key(arm.model, options.hyperparameter), "--vary")
    grids = {name: grid_of(arm, options) for name, arm in asked.items()}
    if options.optuna is not None:
        require_optuna()
    with open_study(config, out) as study:
        arms = sound_arms(study)
        with study.pool(options.workers, options.keep) as pool:
            found = curves(study, pool, arms, grids, options)
        content = {
            "schema_version": 1,
            "hyperparameter": options.hyperparameter,
            "seeds": study.tuning_seeds(options.seeds),
            "arms": found,
        }
        write_json(out / "sweep.json", content)
        return content


def sound_arms(study: Study) -> list[StudyArm]:
    """The configuration's arms, audited. Raises UserError if one leaks."""
    arms = [StudyArm(name, arm, {"model": arm.model}) for name, arm in arm_configs(study.config).items()]
    arms = with_leaks_found(arms, study)
    for arm in arms:
        if arm.leaking:
            raise UserError(f"{arm.name} is LEAKING: {arm.leaking}; its loss would be void")
    return arms


def full_key(arm: str, hyperparameter: str) -> str:
    """The dotted name of a setting: with the family in front, unless it is one that all arms share."""
    return hyperparameter if hyperparameter.startswith("train.") else f"{arm}.{hyperparameter}"


def curves(
    study: Study,
    pool: Pool,
    arms: Sequence[StudyArm],
    grids: dict[str, list[Any]],
    options: SweepOptions,
) -> dict[str, dict[str, Any]]:
    """Each arm's curve."""
    makers = {arm.name: setting_maker(arm, options.hyperparameter) for arm in arms}
    seeds = study.tuning_seeds(options.seeds)
    if options.optuna is not None:
        ranges = {name: (min(grid), max(grid)) for name, grid in grids.items()}
        return {
            name: optuna_curve(pool, makers[name], ranges[name], seeds, options.optuna) for name in makers
        }
    rounds = options.rounds if all(map(is_continuous, grids.values())) else 0
    return tune(pool, makers, grids, seeds, factor=options.factor, max_rounds=rounds)


def is_continuous(grid: Sequence[Any]) -> bool:
    """Whether other values may be tried between and beyond these, which whole numbers, 0 and words do not allow."""
    return all(type(value) is float and value > 0 for value in grid)


def grid_of(config: RunConfig, options: SweepOptions) -> list[Any]:
    """The values that the configuration's arm starts with. Raises UserError if the setting cannot take one."""
    key = full_key(config.model, options.hyperparameter)
    require_single(config, key)
    grid = [parsed_value(config, key, word) for word in options.grid or geometric_words(config, key, options)]
    if options.optuna is not None and not is_continuous(grid):
        shown = ", ".join(map(str, grid))
        raise UserError(f"--optuna draws from the numbers above 0, and {key} takes {shown}: leave it out")
    return grid


def parsed_value(config: RunConfig, key: str, word: str) -> Any:
    """A word of the command line as a value of the setting."""
    changed = with_parsed(config, {key: word})
    require_single(changed, key)
    return settings(changed)[key]


def require_single(config: RunConfig, key: str) -> None:
    """Raises UserError if a setting is a list or a table, or belongs to a group that is null."""
    found = settings(config)
    if key not in found or isinstance(found[key], list | dict):
        raise UserError(f"--vary: {key} holds no single value here: a sweep cannot vary it")


def geometric_words(config: RunConfig, key: str, options: SweepOptions) -> list[str]:
    """Numbers around the given or configured one, as words; different whole numbers if the setting needs those."""
    centre = options.around
    if centre is None:
        value: Any = settings(config)[key]
        if type(value) not in (int, float) or value <= 0:
            raise UserError(
                f"--vary {options.hyperparameter} is {value}: name values with --grid, or a number with --around"
            )
        centre = float(value)
    grid = geometric_grid(centre, options.factor, options.points)
    if not is_whole(key):
        return list(map(str, grid))
    whole = sorted({max(round(value), 1) for value in grid})
    if len(whole) < 2:
        raise UserError(
            f"--vary {options.hyperparameter} takes whole numbers, and around {centre} there is only {whole[0]}: "
            "name values with --grid, or a larger --factor"
        )
    return list(map(str, whole))


def require_optuna() -> None:
    """Raises UserError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(f"--optuna needs Optuna: {how_to_install('tune')}") from None


def optuna_curve(
    pool: Pool,
    maker: Callable[[Any, int], Job],
    limits: tuple[float, float],
    seeds: Sequence[int],
    trials: int,
) -> dict[str, Any]:
    """Trials of Optuna's TPE over the grid's range on a log scale, as many at a time as there are workers."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seeds[0], constant_liar=True))
    points: dict[float, float | None] = {}
    while len(search.trials) < trials:
        batch = [search.ask() for _ in range(min(len(pool.slots), trials - len(search.trials)))]
        values = [rounded(trial.suggest_float("value", *limits, log=True)) for trial in batch]
        lines = pool.run([maker(value, seed) for value in values for seed in seeds])
        for i, (trial, value) in enumerate(zip(batch, values, strict=True)):
            losses = [line["val_loss"] for line in lines[i * len(seeds) : (i + 1) * len(seeds)]]
            points[value] = None if None in losses else sum(losses) / len(losses)
            search.tell(trial, math.inf if points[value] is None else points[value])
    return {**curve_record(points), "seeds": len(seeds), "optuna": True}


def sweep_text(content: dict[str, Any]) -> str:
    """The whole curve of each arm, as text for the terminal."""
    lines = [f"{content['hyperparameter']}, {len(content['seeds'])} seed(s): validation loss"]
    for name, curve in content["arms"].items():
        place = "interior" if curve["interior"] else "AT THE EDGE of what was tried"
        lines.append(f"{name}: best {curve['best']} ({place}, {curve['trials']} trials)")
        for value, loss in curve["curve"]:
            mark = " <- best" if value == curve["best"] else ""
            lines.append(f"  {value!s:>10}  {'diverged' if loss is None else f'{loss:.4f}'}{mark}")
    return "\n".join(lines) + "\n"
