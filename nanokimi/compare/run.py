"""THE COMPARISON: every arm on the same tokens, in turns, each in its own process, for every seed. Then one report.

The arms take turns of a few steps, so that other work on the machine affects all of them equally. Seeds follow one
another, so the memory in use does not grow with their number.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nanokimi.compare.arm_process import ArmProcess
from nanokimi.compare.by_group import require_shareable_arms, train_one_after_another
from nanokimi.compare.match import matched_arms
from nanokimi.compare.report import build_report, score_baselines
from nanokimi.compare.searched import require_other_seeds
from nanokimi.config import FREE_WHEN_RESUMED, RunConfig
from nanokimi.config.arms import slug
from nanokimi.config.files import load_config, save_config
from nanokimi.config.parsing import settings
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError, UserError
from nanokimi.kernels.accelerate import compile_ahead
from nanokimi.runtime.display import Display
from nanokimi.runtime.drawing import draw_or_say
from nanokimi.runtime.files import read_json, write_json
from nanokimi.runtime.interrupts import Interrupted, on_first_signal, stopped_by_signal
from nanokimi.runtime.parallel import current
from nanokimi.runtime.text import one_line
from nanokimi.train.audits import require_sound
from nanokimi.train.changes import changed_since_checkpoint
from nanokimi.train.checkpoint import newest_undamaged
from nanokimi.train.restored import set_results_aside
from nanokimi.train.result import RESULT_FILE
from nanokimi.train.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    how_to_continue,
    keep_environment,
    keep_plugins,
    require_room,
    training_folder,
)
from nanokimi.train.weights import require_start


def compare(
    config: RunConfig, out: Path, *, resume: bool = False, allow_changes: bool = False
) -> dict[str, Any]:
    """Train, measure and audit the arms that `config` names, and write the report; returns the content of report.json.

    Raises:
        UserError: the input or the configuration cannot be used.
        TrainingError: an arm failed.
        Interrupted: a signal came. The arms were saved, and `resume` continues them.
    """
    require_other_seeds(config, seeds_of(config))  # a wrong file is refused now, not when the report is made
    require_shareable_arms(config)
    folder = training_folder(config, out, "compare", make_runs, resume=resume, allow_changes=allow_changes)
    with folder as (config, data, arms):
        return train_and_report(config, arms, data, out, resume, allow_changes)


def seeds_of(config: RunConfig) -> list[int]:
    """The seeds that every arm is trained with."""
    return [config.seed + i for i in range(config.compare.seeds)]


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """The folder of one arm with one seed."""
    return out / slug(arm) / f"seed-{seed}"


def make_runs(config: RunConfig, data: PreparedData, out: Path) -> dict[str, RunConfig]:
    """Make a run folder for each arm and seed, with its configuration. Files that are already there are kept.

    Returns each arm's configuration; those of its runs differ from it in the seed.
    """
    keep_environment(out, config.train.device)
    arms = matched_arms(config, data, out)
    require_continuable(arms, seeds_of(config), out)
    for arm in arms.values():
        require_sound(arm, data)
        require_start(arm, data, out)
    require_room([arm for arm in arms.values() for _ in seeds_of(config)], out)
    for name, arm in arms.items():
        for seed in seeds_of(config):
            folder = run_folder(out, name, seed)
            folder.mkdir(parents=True, exist_ok=True)
            save_config(replace(arm, seed=seed), folder / CONFIG_FILE)
            if not (folder / ENVIRONMENT_FILE).exists():  # the arm adds to it
                shutil.copyfile(out / ENVIRONMENT_FILE, folder / ENVIRONMENT_FILE)
            keep_plugins(arm, folder)
    return arms


def train_and_report(
    config: RunConfig,
    arms: dict[str, RunConfig],
    data: PreparedData,
    out: Path,
    resume: bool,
    allow_changes: bool,
) -> dict[str, Any]:
    """Train every seed and write the report, once folders, configuration and data exist."""
    if resume:
        set_changed_results_aside(arms, seeds_of(config), data, out, allow_changes)
    go_on = how_to_continue("compare", out, allow_changes)
    stopped = f"interrupted; {go_on}"
    with stopped_by_signal(stopped):
        compile_ahead(config.train.device, config.train.dtype)
        baselines = score_baselines(data)
    results: list[dict[str, Any]] = []
    for seed in seeds_of(config):
        folders = {name: run_folder(out, name, seed) for name in arms}
        if resume and all((folder / RESULT_FILE).is_file() for folder in folders.values()):
            results += [read_json(folder / RESULT_FILE) for folder in folders.values()]
            continue
        several = config.compare.seeds > 1
        titles = {name: f"{name}, seed {seed}" if several else name for name in folders}
        # Stories are judged and decoding is timed for the first seed alone: they take longer than its training.
        whole = seed == config.seed
        if current().alone:
            results += train_in_turns(config, out, folders, titles, resume, allow_changes, whole)
        else:
            results += train_one_after_another(
                config, data, folders, titles, go_on, resume, allow_changes, whole
            )
    with stopped_by_signal(stopped):
        report = build_report(config, arms, data, baselines, results, out)
        write_json(out / "report.json", report)

    from nanokimi.report.page import write_report

    draw_or_say(lambda: write_report(out), out, f"nanokimi report {out}")
    return report


def set_changed_results_aside(
    arms: dict[str, RunConfig], seeds: Sequence[int], data: PreparedData, out: Path, allow_changes: bool
) -> None:
    """Set aside what runs found that were saved with other settings or another text, so that they are continued.

    Raises UserError if there is such a run and no change is allowed, as after a change whose command was ended before
    it came to this.
    """
    changed = changed_runs(arms, seeds, data, out)
    for folder, what in changed.items():
        if not allow_changes:
            raise UserError(
                f"{folder} was saved with other settings than those of the comparison now ({what}): change them back, "
                "or resume with --allow-changes"
            )
        set_results_aside(folder)
    if changed:
        set_results_aside(out)


def changed_runs(
    arms: dict[str, RunConfig], seeds: Sequence[int], data: PreparedData, out: Path
) -> dict[Path, str]:
    """The runs that were saved with other settings or another text, each with the first thing that has changed.

    Another number of seeds changes none. A run without a checkpoint keeps its result: see `require_continuable`.
    """
    found = {}
    for name, arm in arms.items():
        for seed in seeds:
            folder = run_folder(out, name, seed)
            saved, now = newest_undamaged(folder, arm.train.batch_size), replace(arm, seed=seed)
            changed = {} if saved is None else changed_since_checkpoint(saved[1], now, data)
            decisive = [key for key in changed if is_decisive(key)]
            if decisive:
                value, before = changed[decisive[0]]
                found[folder] = one_line(f"{decisive[0]} = {value}, not {before}")
    return found


def require_continuable(arms: dict[str, RunConfig], seeds: Sequence[int], out: Path) -> None:
    """Raise UserError if a run has ended with other settings, and its checkpoints, from which it would go on, are gone.

    Its result would stand in the report for the settings now. Before a run's configuration is written anew, it is that
    of its result.
    """
    for name, arm in arms.items():
        for seed in seeds:
            folder, now = run_folder(out, name, seed), settings(replace(arm, seed=seed))
            if not all((folder / file).is_file() for file in (RESULT_FILE, CONFIG_FILE)):
                continue
            then = settings(load_config(str(folder / CONFIG_FILE)))
            changed = [key for key in now if then.get(key) != now[key] and is_decisive(key)]
            if changed and newest_undamaged(folder, arm.train.batch_size) is None:
                what = one_line(f"{changed[0]} = {now[changed[0]]}, not {then.get(changed[0])}")
                raise UserError(
                    f"the run in {folder} has finished with other settings than those of the comparison now ({what}), "
                    "and its checkpoints are gone, so it cannot be continued: change them back, or start another "
                    "comparison with --out"
                )


def is_decisive(key: str) -> bool:
    """Whether a setting decides the numbers of a run."""
    return key not in FREE_WHEN_RESUMED and not key.startswith("compare.")


def train_in_turns(
    config: RunConfig,
    out: Path,
    folders: dict[str, Path],
    titles: dict[str, str],
    resume: bool,
    allow_changes: bool,
    whole: bool,
) -> list[dict[str, Any]]:
    """Train every arm with one seed to its end, `turn_steps` steps at a time; returns the results."""
    processes: list[ArmProcess] = []
    signals: list[int] = []
    go_on = how_to_continue("compare", out, allow_changes)
    stopped = f"interrupted; {go_on}"

    def ask_to_stop(number: int) -> None:
        signals.append(number)
        for process in processes:
            process.tell_to_stop()

    with Display(list(titles.values()), config.train.batch_size * config.train.context_length) as display:
        try:
            for name, folder in folders.items():
                processes.append(ArmProcess(titles[name], folder, resume, allow_changes))
                processes[-1].show_phase = partial(display.phase, titles[name])
            with on_first_signal(ask_to_stop):
                take_turns(processes, config.compare.turn_steps, signals, display)
            if signals:
                raise Interrupted(signals[0], stopped)
            with stopped_by_signal(stopped):  # all is saved, and resuming repeats the rest
                return [measure(process, display, whole) for process in processes]
        except TrainingError as error:
            raise TrainingError(f"{error}; {go_on}") from None
        finally:
            for process in processes:
                process.process.kill()


def take_turns(processes: list[ArmProcess], steps: int, signals: list[int], display: Display) -> None:
    """Let each arm take `steps` steps in turn until all have finished, or until a signal comes: then all are saved."""
    while not all(process.finished for process in processes) and not signals:
        for process in processes:
            if not process.finished and not signals:
                for record, total in process.take_turn(steps):
                    display.show(process.name, record, total)
                display.phase(process.name, "trained" if process.finished else "waiting")
    if signals:
        for process in processes:
            process.stop()


def measure(process: ArmProcess, display: Display, whole: bool) -> dict[str, Any]:
    """The result of a trained arm."""
    result = process.finish(whole)
    display.phase(process.name, "done")
    return result
