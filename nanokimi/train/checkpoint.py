"""Weights and checkpoints on disk: safetensors for tensors, JSON for the rest, nothing that runs code when read.

A checkpoint is a folder such as `checkpoints/step-00002000`. It is written under another name, and renamed when it is
complete, checksummed and synced. Batches, dropout and samples are functions of (seed, step), so these two numbers are
the whole random state and data position.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanokimi.config.parsing import settings
from nanokimi.config.rules_variant import plugins_of
from nanokimi.errors import UserError
from nanokimi.optim.schedule import lr_scale
from nanokimi.runtime.files import append_json_line, find_damage, read_json, seal, sync, write_json
from nanokimi.runtime.parallel import ALONE
from nanokimi.runtime.plugins import plugin_hashes
from nanokimi.runtime.text import one_line
from nanokimi.train.changes import beginning_sha256, changes_since, require_records
from nanokimi.train.finite import named_if_not_finite
from nanokimi.train.optimizer_state import flatten_optimizer, unflatten_optimizer_
from nanokimi.train.state import (
    TrainState,
    fresh_optimizer,
    fresh_scaler,
    kernel_forms,
    micro_batch,
    step_seed,
    total_steps,
)
from nanokimi.train.together import refresh_whole_model
from nanokimi.train.weights import initial_model, load_whole_, read_tensors, save_tensors
from nanokimi.train.weights import load_weights as load_weights
from nanokimi.train.weights import save_weights as save_weights

SCHEMA_VERSION = 3
PROGRESS = (
    "step",
    "evaluated",
    "train_seconds",
    "best_val_loss",
    "best_step",
    "peak_memory_bytes",
    "micro_batch_size",
    "batches_skipped",
    "skipped_in_a_row",
)
"""The fields of a state that a checkpoint stores as numbers."""


def save_checkpoint(state: TrainState) -> Path:
    """Write the whole state, then remove all checkpoints but the newest `keep_checkpoints` and the best one.

    Raises OSError if the disk is full or cannot be written. Earlier checkpoints are then unchanged.
    """
    final = state.folder / "checkpoints" / f"step-{state.step:08d}"
    state.saved_step, state.saved_at, state.save_wished = state.step, time.monotonic(), False
    if state.world.from_main(final.exists):
        return final  # saved just before, at the end of the run
    refresh_whole_model(state)
    of_optimizer = flatten_optimizer(state)
    state.world.from_main(lambda: write_checkpoint(state, final, *of_optimizer))
    return final


def write_checkpoint(
    state: TrainState, final: Path, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Write the checkpoint `final` with the optimizer's state as given, and remove those that are not kept."""
    folder, metrics = final.parent, state.folder / "metrics.jsonl"
    if metrics.exists():
        sync(metrics)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    remove_unfinished(folder)
    try:
        temporary.mkdir(parents=True)
        save_weights(state.whole_model, temporary / "model.safetensors")
        save_tensors(tensors, temporary / "optimizer.safetensors")
        size = metrics.stat().st_size if metrics.exists() else 0
        written = {"metrics_bytes": size, "metrics_sha256": beginning_sha256(metrics, size)}
        content = describe_state(state) | written | {"optimizer_state": rest}
        with named_if_not_finite(content, f"the checkpoint after step {state.step}"):
            write_json(temporary / "state.json", content)
        seal(temporary)
        os.replace(temporary, final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    kept = checkpoints_in(state.folder)
    for old in kept[: -state.config.train.keep_checkpoints]:
        if step_of(old) != state.best_step:
            shutil.rmtree(old)


def checkpoints_in(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, the oldest first. What else is beside them, such as a copy, is none."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved, by its folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def describe_state(state: TrainState) -> dict[str, Any]:
    """Everything in a run's state that is not a tensor."""
    # The part of a process is no setting: on another number of processes, others fit.
    micro = state.micro_batch_size if state.world.alone else micro_batch(state.config.train, ALONE)
    return {
        "schema_version": SCHEMA_VERSION,
        "step": state.step,
        "evaluated": state.evaluated,
        "train_seconds": state.train_seconds,
        "best_val_loss": state.best_val_loss if state.best_val_loss < float("inf") else None,
        "best_step": state.best_step,
        "peak_memory_bytes": state.peak_memory_bytes,
        "micro_batch_size": micro,
        "activation_checkpointing": state.model.activation_checkpointing,
        "batches_skipped": state.batches_skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "lr_scale_next": lr_scale(state.step, total_steps(state), state.config.family.optim),
        "random": {"seed": state.config.seed, "next_step_seed": step_seed(state.config.seed, state.step)},
        "next_batch": state.step,
        "scaler": state.scaler.state_dict(),
        "telemetry": state.telemetry.state(),
        "kernels": kernel_forms(state),
        "config": settings(state.config),
        "data": state.data.fingerprint,
        "scoring_sha256": state.data.scoring_sha256,
        "plugins": plugin_hashes(plugins_of(state.config.family)),
        "torch": torch.__version__,
        "processes": state.world.size,
        "shard": state.shard,
    }


def remove_unfinished(folder: Path) -> None:
    """Remove what a process left behind that was killed while saving."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load_newest_checkpoint(
    state: TrainState, *, allow_changes: bool = False, log: Callable[[str], None] = lambda line: None
) -> bool:
    """Load the newest undamaged checkpoint of the run's folder into `state`. Returns False if there is none.

    A damaged checkpoint is set aside, one line is logged, and the one before it is used. Records that were written
    after the checkpoint are removed from metrics.jsonl, because the resumed run writes them again. Of several
    processes, the main one does all this, and the others load what it has chosen.

    Raises:
        UserError: the checkpoint is for another configuration, data or tokenizer (unless `allow_changes`), or it was
            not written by nanokimi.
    """
    found = state.world.from_main(lambda: choose_checkpoint(state, allow_changes, log))
    if found is None:
        return False
    path, stored, changes = found
    load_checkpoint(state, path, stored)
    if state.world.is_main:
        cut_records(state, stored["metrics_bytes"], changes, log)
    return True


def cut_records(state: TrainState, size: int, changes: list[str], log: Callable[[str], None]) -> None:
    """Make metrics.jsonl end where the loaded checkpoint does, and record what has changed since then."""
    metrics = state.folder / "metrics.jsonl"
    if metrics.exists():
        os.truncate(metrics, size)
    if changes:
        detail = f"resumed after step {state.step} with {'; '.join(changes)}"
        event = {"kind": "event", "step": state.step, "event": "resumed", "detail": detail}
        append_json_line(metrics, event)
        log(detail)


def choose_checkpoint(
    state: TrainState, allow_changes: bool, log: Callable[[str], None]
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The checkpoint to continue from, its state.json and what has changed since. None: there is none to begin with."""
    folder, metrics = state.folder / "checkpoints", state.folder / "metrics.jsonl"
    remove_unfinished(folder)
    for path in reversed(checkpoints_in(state.folder)):
        damage = find_damage(path)
        if damage is not None:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            log(f"checkpoint {path.name} is damaged ({damage}): set aside, the one before it is used")
            continue
        stored = read_state(path, state.config.train.batch_size)
        require_records(metrics, stored, path.name)
        changes = changes_since(stored, state)
        if changes and not allow_changes:
            raise UserError(
                f"{state.folder} would continue with {one_line(changes[0])}, which is a different run: change it back, "
                "or resume with --allow-changes"
            )
        for line in other_digits(stored, state):
            log(f"{line}: last digits may differ from those of an uninterrupted run")
        return path, stored, changes
    ended = any(state.folder.glob("model*.safetensors"))  # also if its weights were set aside for a change
    if ended and not any(folder.glob("damaged-*")):
        raise UserError(
            f"the run in {state.folder} has finished, and its checkpoints are gone, so it cannot be continued: put "
            "them back, or start another with --out"
        )
    metrics.unlink(missing_ok=True)
    return None


def other_digits(stored: dict[str, Any], state: TrainState) -> list[str]:
    """What rounds differently now from when a checkpoint was saved."""
    before, lines = stored["processes"], []
    size, shard, sharing = state.world.size, state.shard, state.config.train.expert_parallel
    before_sharing = stored["config"].get("train.expert_parallel", 1)
    if stored.get("torch") != torch.__version__:
        lines.append(f"saved with torch {stored.get('torch')}, now it is {torch.__version__}")
    if before != size:
        lines.append(f"saved by {before} process{'es' if before != 1 else ''}, continued by {size}")
    elif stored["shard"] != shard:
        lines.append(
            f"saved with {stored['shard']} processes to a copy of the weights, continued with {shard}"
        )
    elif before_sharing != sharing:
        lines.append(f"saved with the experts shared by {before_sharing}, continued with {sharing}")
    return lines


def read_state(path: Path, batch_size: int) -> dict[str, Any]:
    """The state.json of a checkpoint. Raises UserError if it is not one that this program writes."""
    stored = read_json(path / "state.json")
    if not isinstance(stored, dict) or stored.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path / 'state.json'} is not of schema_version {SCHEMA_VERSION}: it was written by another version of "
            "nanokimi; start the run again with another --out"
        )
    stored.setdefault("kernels", {})  # an earlier version kept no record of them
    stored.setdefault("processes", 1)  # and had one
    stored.setdefault("shard", stored["processes"])  # or as many, which shared one copy of the weights
    for name, right in STATE_RULES.items():
        try:
            fine = right(stored[name], stored)
        except (KeyError, TypeError, ValueError):
            fine = False
        if not fine:
            raise UserError(
                f"{path / 'state.json'} is not the state of a run: '{name}' has an impossible value"
            )
    if batch_size % stored["micro_batch_size"]:
        raise UserError(f"{path / 'state.json'} does not fit this run: its micro-batch is of another batch")
    if stored["step"] != step_of(path):
        raise UserError(f"{path / 'state.json'} is of step {stored['step']}, not of its folder's")
    return stored


def _count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is(kind: type) -> Callable[[Any, dict[str, Any]], bool]:
    return lambda value, _: type(value) is kind


# By name, whether a value is possible, given the other values.
STATE_RULES: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "step": lambda x, _: _count(x, 0, 10**12),
    "evaluated": _is(bool),
    "train_seconds": lambda x, _: type(x) in (int, float) and 0 <= x < 10**12,
    "best_val_loss": lambda x, _: x is None or (type(x) in (int, float) and 0 <= x < 10**12),
    "best_step": lambda x, stored: _count(x, 0, stored["step"]),
    "peak_memory_bytes": lambda x, _: _count(x, 0, 2**60),
    "micro_batch_size": lambda x, _: _count(x, 1, 10**12),
    "activation_checkpointing": _is(bool),
    "processes": lambda x, _: _count(x, 1, 10**6),
    "shard": lambda x, stored: _count(x, 1, stored["processes"]),
    "batches_skipped": lambda x, stored: _count(x, 0, stored["step"]),
    "skipped_in_a_row": lambda x, stored: _count(x, 0, stored["batches_skipped"]),
    "metrics_bytes": lambda x, _: _count(x, 0, 2**60),
    **{name: _is(dict) for name in ("scaler", "telemetry", "config", "data", "kernels", "optimizer_state")},
}


def load_checkpoint(state: TrainState, path: Path, stored: dict[str, Any], *, progress: bool = True) -> None:
    """Load the tensors of a checkpoint and, with `progress`, everything else."""
    load_weights(state.model, path / "model.safetensors")
    state.copied_step = -1
    tensors = read_tensors(path / "optimizer.safetensors")
    try:
        unflatten_optimizer_(state, tensors, stored["optimizer_state"])
        state.scaler.load_state_dict(stored["scaler"])
        state.telemetry.load(stored["telemetry"], state.model)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = one_line(error)
        raise UserError(f"{path} does not fit this run ({type(error).__name__}: {reason})") from None
    if not progress:
        return
    for name in PROGRESS:
        setattr(state, name, stored[name])
    if stored["best_val_loss"] is None:
        state.best_val_loss = float("inf")
    # What made room in memory is kept. Another number of processes may have saved it, or changed settings ask for more.
    train = state.config.train
    state.micro_batch_size = micro_batch(train, state.world, most=stored["micro_batch_size"])
    state.model.activation_checkpointing = (
        stored["activation_checkpointing"] or train.activation_checkpointing
    )
    state.saved_step, state.saved_at = state.step, time.monotonic()
    state.finished = state.updating = False


def restart(state: TrainState) -> None:
    """Go back to the newest checkpoint or to the beginning, but keep the changes that made room in memory."""
    in_memory = (state.micro_batch_size, state.model.activation_checkpointing)
    state.optimizer = fresh_optimizer(state.config, state.model)
    # Changes were allowed or refused when the run began.
    if not load_newest_checkpoint(state, allow_changes=True):
        set_to_beginning(state)
        state.step, state.train_seconds, state.peak_memory_bytes = 0, 0.0, 0
        state.best_val_loss, state.best_step, state.evaluated = float("inf"), 0, False
        state.batches_skipped = state.skipped_in_a_row = 0
    state.micro_batch_size, state.model.activation_checkpointing = in_memory
    state.updating = False


def roll_back(state: TrainState) -> tuple[int, int]:
    """Load weights and optimizer of the newest undamaged checkpoint, or of the beginning, but keep the step count.

    Returns the checkpoint's step and the number of updates in its weights.
    """
    state.optimizer = fresh_optimizer(state.config, state.model)
    found = state.world.from_main(lambda: newest_undamaged(state.folder, state.config.train.batch_size))
    if found is None:
        set_to_beginning(state)
        return 0, 0
    path, stored = found
    load_checkpoint(state, path, stored, progress=False)
    return stored["step"], stored["step"] - stored["batches_skipped"]


def newest_undamaged(folder: Path, batch_size: int) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run's folder that is whole, and its state.json; None if there is none."""
    for path in reversed(checkpoints_in(folder)):
        if find_damage(path) is None:
            return path, read_state(path, batch_size)
    return None


def set_to_beginning(state: TrainState) -> None:
    """Restore the weights and the empty optimizer that the run began with."""
    fresh = initial_model(state.config, state.folder)
    load_whole_(state.model, fresh.state_dict())
    state.copied_step = -1
    state.optimizer = fresh_optimizer(state.config, state.model)
    state.scaler.load_state_dict(fresh_scaler(state.config.train.dtype, state.device).state_dict())
    state.telemetry.clear()
