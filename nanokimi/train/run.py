"""`nanokimi train`: train one model, show its progress, and stop cleanly when interrupted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from nanokimi.config import RunConfig
from nanokimi.data.store import PreparedData
from nanokimi.runtime.device import choose_device, limit_memory, memory_bytes
from nanokimi.runtime.display import Display
from nanokimi.runtime.interrupts import Interrupted, on_first_signal, stopped_by_signal
from nanokimi.runtime.parallel import current, ending_together
from nanokimi.train.audits import require_sound
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.follow import first_signal, tell
from nanokimi.train.loop import train
from nanokimi.train.prune_record import keep_recovered
from nanokimi.train.result import finish
from nanokimi.train.run_folder import (
    how_to_continue,
    keep_environment,
    keep_kernels,
    keep_plugins,
    require_room,
    training_folder,
)
from nanokimi.train.sharding import require_shareable
from nanokimi.train.state import build_state, total_steps
from nanokimi.train.tracking import tracked


def train_alone(
    config: RunConfig, out: Path, *, resume: bool = False, allow_changes: bool = False
) -> dict[str, Any]:
    """Train the model that `config.model` names in the run folder `out`; return its result.json.

    Raises:
        UserError: bad input, or another process trains in `out`.
        TrainingError: the run cannot continue. What it has done is saved.
        Interrupted: a signal arrived. The run is saved, and `resume` continues it.
    """
    require_shareable(config)
    folder = training_folder(config, out, "train", make_ready, resume=resume, allow_changes=allow_changes)
    with folder as (config, data, _):
        result = train_and_finish(config, data, out, resume, allow_changes)
    if current().is_main:
        keep_recovered(out, result)
    return result


def make_ready(config: RunConfig, data: PreparedData, folder: Path) -> None:
    """Record in the run's folder the environment and the plugins that it was started with.

    Raises UserError if the disk has no room, or if the model is the user's and cannot be trained or reads tokens that
    it must not see.
    """
    keep_environment(folder, config.train.device)
    keep_plugins(config, folder)
    require_sound(config, data)
    require_room([config], folder)


def train_and_finish(
    config: RunConfig, data: PreparedData, out: Path, resume: bool, allow_changes: bool
) -> dict[str, Any]:
    """Train, audit and measure, once folder, configuration and data exist."""
    limit_memory(config.train.memory_limit_gb, choose_device(config.train.device))
    advice = how_to_continue("train", out, allow_changes)
    with Display([config.title], config.train.batch_size * config.train.context_length) as display:
        with ending_together(advice):
            return train_shown(config, data, out, display, config.title, advice, resume, allow_changes)


def train_shown(
    config: RunConfig,
    data: PreparedData,
    folder: Path,
    display: Display,
    title: str,
    advice: str,
    resume: bool,
    allow_changes: bool,
    *,
    measure_generation: bool = True,
) -> dict[str, Any]:
    """Train in a folder that is ready, as `title` on the display, with all processes of the group; returns the result.

    `advice` says how to continue after an interruption. Without `measure_generation`, decoding is not timed, and a
    model of tales is not asked for stories.
    """
    idle_memory_bytes = memory_bytes(choose_device(config.train.device))
    stopped = f"interrupted; {advice}"
    with stopped_by_signal(stopped):  # kernels may be compiled
        tell(folder, resume, advice)
        state = build_state(config, data, folder)
        keep_kernels(state)
    signals: list[int] = []

    def ask_to_stop(number: int) -> None:
        signals.append(number)
        state.stop_requested = True

    state.tell = partial(display.phase, title)
    if resume:
        found = load_newest_checkpoint(
            state, allow_changes=allow_changes, log=lambda line: display.note(title, line)
        )
        display.note(
            title, f"resumed after step {state.step}" if found else "no checkpoint yet: starting afresh"
        )
    with tracked(state, lambda line: display.note(title, line)):
        with on_first_signal(ask_to_stop):
            for record in train(state):
                display.show(title, record, total_steps(state))
        if not state.finished:
            raise Interrupted(first_signal(state, signals), stopped)
        with stopped_by_signal(stopped):  # training is saved, and the rest can be repeated
            return finish(state, idle_memory_bytes, measure_generation=measure_generation)
