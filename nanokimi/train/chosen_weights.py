"""Which of a run's weights a command reads: the final ones, the best, the newest, or those of a step."""

from __future__ import annotations

from pathlib import Path

from nanokimi.config.files import load_config
from nanokimi.errors import UserError
from nanokimi.runtime.files import find_damage, read_json
from nanokimi.train.arm_order import CONFIG_FILE
from nanokimi.train.checkpoint import checkpoints_in, read_state, step_of
from nanokimi.train.result import RESULT_FILE


def weights_of(folder: Path, checkpoint: str) -> Path:
    """The file of weights for "final", "best", "last" or a step number.

    Raises UserError if there are none, or they are damaged.
    """
    if checkpoint == "final":
        if not (folder / "model.safetensors").is_file():
            raise UserError(
                f"{folder} has no model.safetensors: the run has not finished (resume it with train --resume, or use "
                "--checkpoint last)"
            )
        return folder / "model.safetensors"
    found = checkpoints_in(folder)
    if not found:
        raise UserError(f"{folder} keeps no checkpoint '{checkpoint}', and no other: there is only final")
    steps = [step_of(path) for path in found]
    if checkpoint == "best":
        checkpoint = str(best_step_of(folder, found[-1]))
        if int(checkpoint) not in steps:
            raise UserError(
                f"{folder}: the lowest validation loss was that at step {checkpoint}, whose weights are not kept: use "
                "--checkpoint final or last"
            )
    elif checkpoint == "last":
        checkpoint = str(steps[-1])
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise UserError(
            f"{folder} keeps no checkpoint '{checkpoint}': there are final, best, last"
            + "".join(f", {step}" for step in steps)
        )
    path = found[steps.index(int(checkpoint))]
    if (damage := find_damage(path)) is not None:
        raise UserError(f"{path} is damaged ({damage}): use another --checkpoint")
    return path / "model.safetensors"


def best_step_of(folder: Path, newest: Path) -> int:
    """The step of the lowest validation loss, by a run's result or else by its newest checkpoint.

    The result has the last word: a signal may have asked for that checkpoint in the midst of the last validation, whose
    outcome it then lacks.
    """
    stored = read_state(newest, load_config(str(folder / CONFIG_FILE)).train.batch_size)
    result = read_json(folder / RESULT_FILE) if (folder / RESULT_FILE).is_file() else {}
    return int((result if result.get("steps") == stored["step"] else stored)["best_step"])
