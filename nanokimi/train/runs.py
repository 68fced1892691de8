"""Run folders from the outside: starting one, finishing one, and opening a finished one."""

from __future__ import annotations

import math
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanokimi.config import OptimConfig, RunConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.rules import is_resolved, resolve
from nanokimi.config.rules_variant import plugs_of
from nanokimi.data.parts import split_note
from nanokimi.data.sources import with_absolute_paths
from nanokimi.data.store import PreparedData, open_prepared, prepare
from nanokimi.errors import UserError
from nanokimi.generation.story import story_ids
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.measure.audit import AuditResult, audit
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.measure.cost import model_cost
from nanokimi.measure.evaluate import Evaluation
from nanokimi.measure.floor import text_floor
from nanokimi.measure.speed import generation_latency
from nanokimi.measure.spikes import spike_entries
from nanokimi.measure.story_world import judge_stories, recall, world_of
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.optim.named import require_optimizer
from nanokimi.runtime.device import choose_device, choose_dtype, choose_threads
from nanokimi.runtime.files import create_run_folder, find_damage, read_json, read_json_lines, write_json
from nanokimi.runtime.locks import LOCK_FILE, only_process
from nanokimi.runtime.plugs import plug_hashes, require_same_plugs
from nanokimi.train.checkpoint import load_weights, read_state
from nanokimi.train.looks import evaluate_test
from nanokimi.train.state import TrainState, fresh_optimizer

MAX_TALE_TOKENS = 2000  # a tale of 400 words in characters
CONFIG_FILE, DATA_FOLDER, RESULT_FILE = "config.yaml", "data", "result.json"
PLUGS_FILE = "plugs.json"


@contextmanager
def fresh_folder(out: str | Path) -> Iterator[Path]:
    """A new run folder, locked; it disappears again, with the parents made for it, if setting it up fails."""
    folder = Path(out)
    made = next((p for p in [*reversed(folder.absolute().parents), folder] if not os.path.lexists(p)), None)
    create_run_folder(folder)
    refuse_taken(folder)
    ours = False
    try:
        with only_process(folder):
            refuse_taken(folder)  # another process may just have had it
            ours = True
            yield folder
    except BaseException:
        if ours:
            shutil.rmtree(made if made is not None else folder)
            if made is None:
                folder.mkdir()
        raise


def refuse_taken(folder: Path) -> None:
    """A folder that already holds something is never written into. Raises UserError."""
    if {entry.name for entry in folder.iterdir()} - {LOCK_FILE}:
        raise UserError(
            f"{folder} already holds files and a run never overwrites another: choose another --out"
        )


def set_up(config: RunConfig, folder: Path) -> tuple[RunConfig, PreparedData]:
    """Choose the machine's part, prepare the data into `folder` and save the resolved configuration there."""
    device = choose_device(config.train.device)
    dtype = choose_dtype(config.train.dtype, device)
    config = replace(config, dataset=with_absolute_paths(config.dataset))
    require_optimizer(config.arm.optim)
    save_config(config, folder / CONFIG_FILE)  # so that a run that dies while preparing can be resumed
    data = prepare(config.dataset, folder / DATA_FOLDER, config.train.context_length)
    config = resolve(
        config,
        vocab_size=data.tokenizer.vocab_size,
        device=str(device),
        dtype=dtype,
        threads=choose_threads(config.train.threads),
    )
    # A prompt that cannot be encoded is refused now, not after the first epoch.
    for prompt in config.sample.prompts:
        data.tokenizer.encode(prompt)
    save_config(config, folder / CONFIG_FILE)
    return config, data


def keep_plugs(config: RunConfig, folder: Path) -> None:
    """Note the content of every file of the user's that the run's arm is made of, in the run's folder.

    Raises UserError if one was not named, is not what it was when the run began, or cannot be built.
    """
    path = folder / PLUGS_FILE
    kept = read_plugs(path)
    require_same_plugs(kept, folder)
    now = plug_hashes(plugs_of(config.arm))
    if now.keys() - kept.keys():
        with torch.device("meta"):  # tried before anything is trained, without memory or time
            model = build_model(config.arm.model, config.seed)
        fresh_optimizer(config, model)
        write_json(path, {**kept, **now})


def read_plugs(path: Path) -> dict[str, str]:
    """SHA-256 by FILE.py:NAME; empty without a file. Raises UserError if it holds anything else."""
    kept = read_json(path) if path.is_file() else {}
    if not isinstance(kept, dict) or not all(isinstance(value, str) for value in kept.values()):
        raise UserError(f"{path} is not the file that the run wrote")
    return kept


def take_up(config: RunConfig, folder: Path) -> tuple[RunConfig, PreparedData]:
    """The configuration and data of the interrupted run in `folder`, with whatever `config` changes of them saved.

    The caller has made sure that changes are wanted. A run that died while it prepared its data prepares it now.
    """
    saved = load_config(str(folder / CONFIG_FILE))
    if config != saved:
        number = len(list(folder.glob("config-before-*.yaml"))) + 1
        shutil.copyfile(folder / CONFIG_FILE, folder / f"config-before-{number}.yaml")
    own = find_data(folder) == folder / DATA_FOLDER
    if not is_resolved(config) or config.dataset != saved.dataset:
        if not own and find_data(folder).exists():
            raise UserError(f"{folder} shares the data of its comparison: resume that one instead")
        return set_up(config, folder)
    if config != saved:
        save_config(config, folder / CONFIG_FILE)
    data = open_prepared(find_data(folder))
    if not len(data.test_ids):
        raise UserError(
            f"the run in {folder} was begun without a test part, by an earlier version, and cannot be finished by this "
            "one: start it again in a new folder"
        )
    return config, data


@contextmanager
def restored_if_refused(folder: Path, changing: bool) -> Iterator[None]:
    """Put configuration and data back as they were, if the run refuses to go on with the changed ones."""
    if not changing:
        yield
        return
    backup = folder / ".before"
    shutil.rmtree(backup, ignore_errors=True)
    backup.mkdir()
    names = [CONFIG_FILE, DATA_FOLDER]
    shutil.copy2(folder / CONFIG_FILE, backup / CONFIG_FILE)
    if (folder / DATA_FOLDER).is_dir():
        shutil.copytree(folder / DATA_FOLDER, backup / DATA_FOLDER)
    kept = set(folder.glob("config-before-*.yaml"))
    try:
        yield
    except UserError:
        shutil.rmtree(folder / DATA_FOLDER, ignore_errors=True)
        for name in names:
            if (backup / name).exists():
                os.replace(backup / name, folder / name)
        for path in set(folder.glob("config-before-*.yaml")) - kept:
            path.unlink()
        raise
    finally:
        shutil.rmtree(backup, ignore_errors=True)


def finish(state: TrainState, idle_memory_bytes: int, *, whole: bool = True) -> dict[str, Any]:
    """Audit and measure a trained model, and write the run's result.json.

    Without `whole` decoding is not timed, and tales are neither judged nor asked about.
    """
    train, model_config, optim = state.config.train, state.config.arm.model, state.config.arm.optim
    assert state.last_evaluation is not None, "train() ends with a validation"
    scores = evaluate_test(state)
    np.save(state.folder / "window_nats.npy", scores.window_nats)
    cost = model_cost(model_config, train.context_length)
    latency = generation_latency(state.model, train.context_length) if whole else (None, None)
    prefill, decode = latency
    step_ms = [r["step_ms"] for r in read_json_lines(state.folder / "metrics.jsonl") if r["kind"] == "train"]
    result = {
        "name": state.config.title,
        "seed": state.config.seed,
        "folder": state.folder.name,
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "flops_per_token": cost.train_flops_per_token,
        "forward_flops_per_token": cost.forward_flops_per_token,
        "optimizer_flops_per_step": state.flops_per_step,
        "steps": state.step,
        "tokens": state.tokens,
        "train_seconds": state.train_seconds,
        "compile_seconds": state.compile_seconds or None,  # of the process that ended the run
        "tokens_per_second": steady_speed(step_ms) * train.batch_size * train.context_length,
        "ms_per_step": statistics.median(step_ms) if step_ms else 0.0,
        "first_step_ms": step_ms[0] if step_ms else 0.0,
        **state.last_evaluation.record(),
        **scores.record(),  # also the loss by position
        "best_val_loss": state.best_val_loss,
        "best_step": state.best_step,
        "batches_skipped": state.batches_skipped,
        "micro_batch_size": state.micro_batch_size,
        "spikes": spike_entries(read_json_lines(state.folder / "metrics.jsonl")),
        **floor_gaps(state.data, scores, train.context_length),
        "peak_memory_bytes": state.peak_memory_bytes,
        "idle_memory_bytes": idle_memory_bytes,
        "optimizer_state_bytes": optimizer_bytes(state.optimizer),
        "cache_bytes_per_token": cost.cache_numbers_per_token * 4,
        "cache_bytes_fixed": cost.cache_numbers_fixed * 4,
        "prefill_ms": prefill and prefill.median_ms,
        "decode_ms_per_token": decode and decode.median_ms,
        "audit": asdict(audit_of(state)),
        "optimizer": optim.name,
        "lr": optim.lr,
        "schedule": describe_schedule(optim),
        "weight_decay": optim.weight_decay,
        "device": train.device,
        "dtype": train.dtype,
        "threads": train.threads,
        "split_note": split_note(state.data.facts),
    }
    if whole and "val_floor_nats" in state.data.facts:
        result["tales"] = know_the_world(state)
    write_json(state.folder / RESULT_FILE, result)
    return result


def audit_of(state: TrainState) -> AuditResult:
    """The audit of a trained model, in the shape of its evaluation and on its validation text."""
    train, vocab_size = state.config.train, state.config.arm.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    return audit(
        state.model,
        vocab_size=vocab_size,
        context=train.context_length,
        batch_size=train.eval_batch_size,
        windows=windows_of(state.data.val_ids, train.context_length),
    )


def floor_gaps(data: PreparedData, scores: Evaluation, context_length: int) -> dict[str, float | None]:
    """The floor, in nats per token, and how far a model stays above it, also in bits per byte; None where unknown.

    The gap is to the attainable floor: to the floor itself where documents do not fit into the context, which is then
    less than any model can be expected to reach.
    """
    part = scores.part
    floor = text_floor(data, context_length, part)
    if floor is None:
        return dict.fromkeys(("floor", "attainable_floor", "floor_gap", "floor_gap_bits_per_byte"))
    tokens, bits = len(data.scored(part).ids), floor.nats / math.log(2)
    return {
        "floor": floor.nats / tokens,
        "attainable_floor": None if floor.attainable_nats is None else floor.attainable_nats / tokens,
        "floor_gap": scores.val_loss - floor.nats / tokens,
        "floor_gap_bits_per_byte": scores.val_bits_per_byte - bits / data.facts[f"{part}_text_bytes"],
    }


def know_the_world(state: TrainState) -> dict[str, Any]:
    """What the story world's parser and its questions say of a model trained on tales."""
    config, tokenizer = state.config, state.data.tokenizer

    def write(opening: str, number: int) -> str:
        told = replace(config, seed=config.seed + number)
        told = replace(told, sample=replace(config.sample, max_new_tokens=MAX_TALE_TOKENS))
        return tokenizer.decode(list(story_ids(state.model, tokenizer, opening, told)))

    world, sample = world_of(state.data.facts["path"]), config.sample
    return {
        "judged": judge_stories(write, sample.judged_stories, world),
        "recall": recall(state.model, tokenizer, config.train.context_length, sample.questions, world),
    }


def steady_speed(step_ms: list[float]) -> float:
    """Steps per second after the first, which also loads kernels and allocates."""
    steady = step_ms[1:] or step_ms
    return len(steady) / sum(steady) * 1e3 if steady else 0.0


def describe_schedule(optim: OptimConfig) -> str:
    """The learning rate's course in words."""
    warm_up = f"{optim.warmup_steps} steps of warm-up"
    if optim.schedule == "constant":
        return f"{warm_up}, then constant"
    end = f"{optim.min_lr_ratio:g} of the peak"
    if optim.schedule == "wsd":
        return f"{warm_up}, stable, linear over the last {optim.decay_fraction:.0%} to {end}"
    return f"{warm_up}, cosine to {end}"


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer keeps between steps."""
    return sum(x.numel() * x.element_size() for x in tensors_in(dict(optimizer.state)))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a state: some optimizers keep lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


@dataclass(frozen=True)
class Run:
    """A finished run, opened."""

    folder: Path
    config: RunConfig
    model: LanguageModel
    data: PreparedData


def find_data(folder: Path) -> Path:
    """The prepared data of a run: its own, or that of the study or comparison that it is part of."""
    *inner, outermost = (folder, *folder.resolve().parents[:2])
    return next((place for place in inner if (place / DATA_FOLDER).exists()), outermost) / DATA_FOLDER


def weights_of(folder: Path, checkpoint: str) -> Path:
    """The weights that "final", "best", "last" or a step number means.

    Raises UserError if there are none, or they are damaged.
    """
    if checkpoint == "final":
        if not (folder / "model.safetensors").is_file():
            raise UserError(
                f"{folder} has no model.safetensors: the run has not finished (resume it with train --resume, or use "
                "--checkpoint last)"
            )
        return folder / "model.safetensors"
    found = sorted((folder / "checkpoints").glob("step-*"))
    steps = [int(path.name.removeprefix("step-")) for path in found]
    if checkpoint == "best" and found:
        checkpoint = str(
            read_state(found[-1], load_config(str(folder / CONFIG_FILE)).train.batch_size)["best_step"]
        )
    elif checkpoint == "last" and found:
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


def open_run(folder: Path, device: str | None = None, checkpoint: str = "final") -> Run:
    """Load a run's configuration, data, and the weights that `checkpoint` means (see `weights_of`).

    Raises UserError if the folder does not hold them.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no run folder: it has no {CONFIG_FILE}")
    weights = weights_of(folder, checkpoint)
    config = load_config(str(folder / CONFIG_FILE))
    if not is_resolved(config):
        raise UserError(f"{folder / CONFIG_FILE} is not the file that the run wrote: values are missing")
    require_same_plugs(read_plugs(folder / PLUGS_FILE), folder)
    torch.set_num_threads(choose_threads(config.train.threads))
    data = open_prepared(find_data(folder))
    model = build_model(config.arm.model, config.seed)
    load_weights(model, weights)
    model.to(choose_device(device or config.train.device))
    accelerate_(model)
    return Run(folder, config, model, data)


def runs_in(folder: Path) -> list[Path]:
    """The run folders that `folder` means: itself, or of a comparison every arm's with every seed."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name a run folder or a comparison's")
    inside = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG_FILE}"))
    return inside or [folder]


def first_seeds(folder: Path) -> list[Path]:
    """The run folders that `folder` means, of a comparison each arm's with its first seed alone."""
    runs = runs_in(folder)
    seeds = {run: int(run.name.removeprefix("seed-")) if run.name.startswith("seed-") else 0 for run in runs}
    return [run for run in runs if seeds[run] == min(seeds[o] for o in runs if o.parent == run.parent)]
