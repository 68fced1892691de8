"""`nanokimi train`: one model through the training loop, watched, and safe to interrupt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.config import DISPLAY_NAMES, RunConfig
from nanokimi.data.store import open_prepared
from nanokimi.runtime.device import choose_device, memory_bytes
from nanokimi.runtime.display import Display
from nanokimi.runtime.files import describe_environment, write_json
from nanokimi.runtime.interrupts import Interrupted, on_first_signal
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.loop import build_state, total_steps, train
from nanokimi.train.runs import find_data, finish, fresh_folder, set_up


def train_alone(config: RunConfig, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train the model that `config.model` names in the run folder `out`; return its result.json.

    Raises:
        UserError, TrainingError: as the parts do.
        Interrupted: a signal came; the run was saved and `resume` continues it.
    """
    if resume:
        data = open_prepared(find_data(out))
    else:
        with fresh_folder(out) as folder:
            config, data = set_up(config, folder)
            write_json(folder / "environment.json", describe_environment())
    idle_memory_bytes = memory_bytes(choose_device(config.train.device))
    state = build_state(config, data, out)
    name = DISPLAY_NAMES[config.model]
    signals: list[int] = []

    def ask_to_stop(number: int) -> None:
        signals.append(number)
        state.stop_requested = True

    with Display([name], config.train.batch_size * config.train.context_length) as display:
        if resume:
            found = load_newest_checkpoint(state)
            display.say(
                name, f"resumed after step {state.step}" if found else "no checkpoint yet: starting afresh"
            )
        with on_first_signal(ask_to_stop):
            for record in train(state):
                display.show(name, record, total_steps(state))
        if signals:
            raise Interrupted(signals[0], f"interrupted; continue with: nanokimi train --resume --out {out}")
        display.say(name, "being audited and measured")
        return finish(state, idle_memory_bytes)
