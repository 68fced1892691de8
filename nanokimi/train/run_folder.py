"""Run folders: creating one, resuming an interrupted one, and opening a finished one.

All commands that train use `training_folder`. The steps that it consists of follow it.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.rules import is_resolved, resolve
from nanokimi.config.rules_variant import plugins_of
from nanokimi.data.changes import changed_source
from nanokimi.data.sources import absolute, with_absolute_paths
from nanokimi.data.store import PreparedData, open_prepared, prepare, val_openings
from nanokimi.errors import TrainingError, UserError
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.optim.named import require_optimizer
from nanokimi.pretrained import run_path
from nanokimi.runtime.c_compiler import why_not_compiled
from nanokimi.runtime.device import check_memory_limit, choose_device, choose_dtype, choose_threads
from nanokimi.runtime.files import (
    cannot_write,
    create_run_folder,
    describe_environment,
    first_missing,
    read_json,
    refuse_links,
    remove_what_was_made,
    write_json,
)
from nanokimi.runtime.locks import LOCK_FILE, only_process
from nanokimi.runtime.parallel import current, launcher
from nanokimi.runtime.plugins import plugin_hashes, require_same_plugins, words_for_plugins
from nanokimi.runtime.text import listed
from nanokimi.train.arm_order import CONFIG_FILE as CONFIG_FILE
from nanokimi.train.arm_order import in_order
from nanokimi.train.chosen_weights import weights_of
from nanokimi.train.restored import (
    decides_results,
    require_checkpoints,
    restored_if_refused,
    set_results_aside,
)
from nanokimi.train.state import TrainState, fresh_optimizer, kernel_forms
from nanokimi.train.weights import DATA_FOLDER as DATA_FOLDER
from nanokimi.train.weights import find_data as find_data
from nanokimi.train.weights import keep_start, load_weights

PLUGINS_FILE, ENVIRONMENT_FILE = "plugins.json", "environment.json"
MOST_LISTED = 12
LEAST_BYTES_KEPT = 12
"""For each parameter: its weight and one moment in a checkpoint, and the weight at the end, in fp32."""

Made = TypeVar("Made")


@contextmanager
def training_folder(
    config: RunConfig,
    out: Path,
    verb: str,
    make_ready: Callable[[RunConfig, PreparedData, Path], Made],
    *,
    resume: bool,
    allow_changes: bool,
) -> Iterator[tuple[RunConfig, PreparedData, Made]]:
    """The folder of `nanokimi VERB`, newly set up or resumed, and locked while the block trains in it.

    Yields the resolved configuration, the data, and what `make_ready` returns. `make_ready` writes whatever else
    belongs in the folder before training. If it fails, or if the block refuses the run before its first record, a new
    folder is removed. A resumed folder is restored if the run refuses its changes.

    Raises:
        UserError: the input or the folder cannot be used.
        TrainingError: the disk is full, or the folder can no longer be written.
    """
    check_memory_limit(config.train.memory_limit_gb, choose_device(config.train.device))
    missing = first_missing(out)
    if not resume:
        with fresh_folder(out):
            config, data = set_up(config, out)
            made = make_ready(config, data, out)
    ours = False
    try:
        with only_process(out), restored_if_refused(out, allow_changes):
            ours = not resume
            if resume:
                refuse_links(out)
                config, data = resume_set_up(config, out, allow_changes)
                made = make_ready(config, data, out)
            with whole_where_it_stops(out, f"make room, then {how_to_continue(verb, out, allow_changes)}"):
                yield config, data, made
    except UserError:
        if ours and not any(out.rglob("metrics.jsonl")):
            remove_what_was_made(out, missing)
        raise


def how_to_continue(verb: str, out: Path, allow_changes: bool = False) -> str:
    """The command that continues an interrupted run, whose changes may not have come to all its checkpoints yet."""
    changes, folder = " --allow-changes" * allow_changes, shlex.quote(str(out))
    return f"continue with: {launcher()} {verb} --resume{changes} --out {folder}{words_for_plugins()}"


@contextmanager
def whole_where_it_stops(folder: Path, advice: str) -> Iterator[None]:
    """Turn an OSError of the block into a TrainingError with advice. The block saves files completely or not at all."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{cannot_write(error, folder)}; what was saved is whole: {advice}") from None


def keep_environment(folder: Path, device: str) -> None:
    """Record the machine, the command and the versions that a run on this device was started with."""
    path = folder / ENVIRONMENT_FILE
    if not path.exists():
        group = {} if current().alone else {"processes": current().size}
        write_json(path, describe_environment(device) | group)


def keep_kernels(state: TrainState) -> None:
    """Add to the environment of a run that begins which implementations it uses, and why it lacks those in C."""
    path = state.folder / ENVIRONMENT_FILE
    if path.is_file() and not (state.folder / "checkpoints").exists():
        kernels = {"kernels": kernel_forms(state), "kernels_in_c_missing": why_not_compiled()}
        write_json(path, read_json(path) | kernels)


@contextmanager
def fresh_folder(out: str | Path) -> Iterator[Path]:
    """A new run folder, locked. If setting it up fails, it is removed, with any parents created for it."""
    folder = Path(out)
    made = first_missing(folder)
    create_run_folder(folder)
    refuse_taken(folder)
    ours = False
    try:
        with only_process(folder):
            refuse_taken(folder)  # another process may have used it in the meantime
            ours = True
            yield folder
    except BaseException:
        if ours:
            remove_what_was_made(folder, made)
        raise


def refuse_taken(folder: Path) -> None:
    """Raise UserError if a folder already holds something, because it must not be overwritten."""
    if {entry.name for entry in folder.iterdir()} - {LOCK_FILE}:
        raise UserError(
            f"{folder} already holds files and a run never overwrites another: choose another --out"
        )


def set_up(config: RunConfig, folder: Path) -> tuple[RunConfig, PreparedData]:
    """Choose device, dtype and threads, prepare the data in `folder`, and save the resolved configuration there."""
    device = choose_device(config.train.device)
    dtype = choose_dtype(config.train.dtype, device)
    config = replace(config, dataset=with_absolute_paths(config.dataset))
    if config.train.init_from is not None:
        config = replace(
            config, train=replace(config.train, init_from=absolute(str(run_path(config.train.init_from))))
        )
    require_optimizer(config.family.optim)
    save_config(config, folder / CONFIG_FILE)  # so that a run that dies while preparing can be resumed
    data = prepare(config.dataset, folder / DATA_FOLDER, config.train.context_length)
    config = resolve(
        config,
        vocab_size=data.tokenizer.vocab_size,
        device=str(device),
        dtype=dtype,
        threads=choose_threads(config.train.threads),
    )
    prompts = config.sample.prompts or val_openings(data)
    for prompt in prompts:  # one that cannot be encoded is refused now, not after the first epoch
        data.tokenizer.encode(prompt)
    config = replace(config, sample=replace(config.sample, prompts=prompts))
    keep_start(config, folder)
    save_config(config, folder / CONFIG_FILE)
    return config, data


def require_room(configs: Sequence[RunConfig], folder: Path) -> None:
    """Raises UserError if the disk has no room for one checkpoint and the weights of each run's model."""
    parameters = sum(
        model_cost(config.family.model, config.train.context_length).params_total for config in configs
    )
    needed, free = LEAST_BYTES_KEPT * parameters, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} needs at least {needed / 1e9:.1f} GB for checkpoints and weights, and the disk has "
            f"{free / 1e9:.1f} GB: make room, or choose another --out"
        )


def keep_plugins(config: RunConfig, folder: Path) -> None:
    """Record in the run's folder the hash of every file of the user's that the run's arm uses.

    Raises UserError if a file was not named, has changed since the run began, or holds a class that cannot be built.
    """
    path = folder / PLUGINS_FILE
    kept = read_plugins(path)
    require_same_plugins(kept, folder)
    now = plugin_hashes(plugins_of(config.family))
    if now.keys() - kept.keys():
        with torch.device("meta"):  # a trial before training, which takes neither memory nor time
            model = build_model(config.family.model, config.seed)
        fresh_optimizer(config, model)
        write_json(path, {**kept, **now})


def read_plugins(path: Path) -> dict[str, str]:
    """SHA-256 by FILE.py:NAME, empty if there is no such file. Raises UserError if it holds anything else."""
    kept = read_json(path) if path.is_file() else {}
    if not isinstance(kept, dict) or not all(isinstance(value, str) for value in kept.values()):
        raise UserError(f"{path} is not the file that the run wrote")
    return kept


def resume_set_up(
    config: RunConfig, folder: Path, allow_changes: bool = False
) -> tuple[RunConfig, PreparedData]:
    """The configuration and data of the interrupted run in `folder`. Changes that `config` makes to them are saved.

    The caller has checked that changes are wanted. What the run found before an allowed change is set aside first, so
    that it never stands beside other settings. A run that ended while preparing its data prepares it now. Raises
    UserError if the text has changed under the same name, unless `allow_changes`: then it is prepared anew.
    """
    saved = load_config(str(folder / CONFIG_FILE))
    if config != saved:
        number = len(list(folder.glob("config-before-*.yaml"))) + 1
        shutil.copyfile(folder / CONFIG_FILE, folder / f"config-before-{number}.yaml")
        if allow_changes and decides_results(saved, config):
            set_results_aside(folder)
    own = find_data(folder) == folder / DATA_FOLDER
    if not is_resolved(config) or config.dataset != saved.dataset:
        if not own and find_data(folder).exists():
            raise UserError(f"{folder} shares the data of its comparison: resume that one instead")
        return set_up(config, folder)
    if config != saved:
        save_config(config, folder / CONFIG_FILE)
    data = open_prepared(find_data(folder))
    if (changed := changed_source(config.dataset, data, find_data(folder))) is not None:
        if own and allow_changes:
            require_checkpoints(folder)
            set_results_aside(folder)
            return set_up(config, folder)
        raise UserError(
            f"{changed} has changed since the run in {folder} was begun with it: put it back, or take it away to go on "
            "with the run's own copy, or resume with --allow-changes to go on with what it is now"
        )
    if not len(data.test_ids):
        raise UserError(
            f"the run in {folder} was begun without a test part, by an earlier version, and cannot be finished by this "
            "one: start it again in a new folder"
        )
    return config, data


@dataclass(frozen=True)
class Run:
    """A finished run, opened."""

    folder: Path
    config: RunConfig
    model: LanguageModel
    data: PreparedData


def open_run(folder: Path, device: str | None = None, checkpoint: str = "final") -> Run:
    """Load a run's configuration, data, and the weights that `checkpoint` names (see `weights_of`).

    Raises UserError if the folder does not hold them.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
    weights = weights_of(folder, checkpoint)
    config = load_config(str(folder / CONFIG_FILE))
    if not is_resolved(config):
        raise UserError(f"{folder / CONFIG_FILE} is not the file that the run wrote: values are missing")
    require_same_plugins(read_plugins(folder / PLUGINS_FILE), folder)
    torch.set_num_threads(choose_threads(config.train.threads))
    data = open_prepared(find_data(folder))
    model = build_model(config.family.model, config.seed)
    load_weights(model, weights)
    model.to(choose_device(device or config.train.device))
    accelerate_(model)
    return Run(folder, config, model, data)


def runs_in(folder: Path) -> list[Path]:
    """The run folders in `folder`: if it is a comparison, every arm's and seed's, in its order; else `folder` itself.

    Raises UserError for a study's folder, and for one that holds several runs, naming them.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name a run folder or a comparison's")
    inside = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG_FILE}")]
    if (folder / "results.jsonl").is_file():
        raise UserError(
            f"{folder} is a study, whose runs keep their weights only with --keep: name a run in it"
        )
    if inside and not (folder / CONFIG_FILE).is_file() and not (folder / DATA_FOLDER).exists():
        found = list(map(described, runs_below(folder) or inside[:MOST_LISTED]))
        one = f"is no run, but holds one: name {found[0]}"
        raise UserError(
            f"{folder} {one if len(found) == 1 else f'holds several runs: name one of {listed(found)}'}"
        )
    return in_order(folder, inside) or [folder]


def runs_below(folder: Path) -> list[Path]:
    """The runs, comparisons and studies directly in `folder`, the newest first, at most MOST_LISTED."""
    found = [
        path
        for path in folder.iterdir()
        if (path / CONFIG_FILE).is_file() or (path / "results.jsonl").is_file()
    ]
    return sorted(found, key=lambda path: -path.stat().st_mtime)[:MOST_LISTED]


def described(run: Path) -> str:
    """A run's folder, and whether it has finished."""
    ended = any(run.glob("result.json")) or any(
        (run / name).is_file() for name in ("report.json", "study.json", "search.json", "sweep.json")
    )
    return f"{run}{'' if ended else ' (not finished)'}"


def first_seeds(folder: Path) -> list[Path]:
    """Like `runs_in`, but of a comparison only the first seed of each arm.

    A folder that is named otherwise, such as a copy, does not take the place of a seed.
    """
    runs = runs_in(folder)
    numbers = {run: run.name.removeprefix("seed-") for run in runs}
    seeds = {run: int(number) if number.isdecimal() else math.inf for run, number in numbers.items()}
    return [run for run in runs if seeds[run] == min(seeds[o] for o in runs if o.parent == run.parent)]
