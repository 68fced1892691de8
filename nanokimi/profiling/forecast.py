"""What a run will take, before it starts: a part of a validation and its first steps, timed; the rest is arithmetic.

    training      steps x the mean of the timed steps
    validations   tokens x seconds for each of those timed; so for the test part, and for the audit's forward passes
    disk          the prepared text + (keep_checkpoints + 2) checkpoints, each the weights and the optimizer's state +
                  the weights once more + a line for each step

Memory is the peak over the steps taken, as a run's result.json counts it. Not counted in time: starting, stories,
saving, the latency of decoding and, with tales, the questions and judged stories. docs/reliability.md says how near
this comes.

The run is set up in a folder inside the cache that is removed afterwards; the tokens stay, for the run to find.
"""

from __future__ import annotations

import math
import shutil
import signal
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from nanokimi.config import RunConfig
from nanokimi.data.cache import cache_folder
from nanokimi.data.store import PreparedData
from nanokimi.errors import TrainingError, UserError
from nanokimi.measure.audit import audit_passes
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.measure.cost import Cost, model_cost
from nanokimi.measure.evaluate import evaluate
from nanokimi.runtime.device import (
    choose_device,
    fenced_seconds,
    is_out_of_memory,
    limit_memory,
    peak_memory_bytes,
    reset_peak_memory,
)
from nanokimi.runtime.files import cannot_write
from nanokimi.runtime.gpu import describe_gpu
from nanokimi.runtime.interrupts import Interrupted, on_first_signal
from nanokimi.runtime.plugins import name_plugin, named_plugins
from nanokimi.runtime.processes import ignore_signals, start_process
from nanokimi.train.metrics import optimizer_bytes
from nanokimi.train.run_folder import set_up
from nanokimi.train.state import TrainState, build_state, total_steps
from nanokimi.train.step import train_step
from nanokimi.train.torch_compile import compile_step

WARM_UP_STEPS = 2  # slower than the rest: buffers are allocated and kernels chosen
TIMED_STEPS, TIMED_SECONDS = 5, 2.0  # at least so many, and for so long
VALIDATION_TOKENS = 65_536  # of the validation text, timed
LINE_BYTES = 300  # of a step, in metrics.jsonl
BYTES_OF_A_PARAMETER = 12  # at least: weight, gradient and one moment, in fp32


@dataclass(frozen=True)
class Forecast:
    """What a run will need. Memory is the process's on the CPU, the allocator's on a GPU."""

    config: RunConfig  # as resolved for this machine
    cost: Cost
    train_tokens: int  # of the text
    val_tokens: int
    steps: int  # of the budget; where that is in seconds, the steps expected
    flops: float  # of all steps, the optimizer's included
    step_seconds: float
    steps_timed: int
    validations: int
    seconds: dict[str, float]  # by phase: "compiling", "training", "validations", "test", "audit"
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_memory_bytes: int  # over training steps
    validation_memory_bytes: int
    gpu: dict[str, Any] | None  # as a run's environment has it
    disk_bytes: int  # of the run folder at its largest
    free_disk_bytes: int  # where it would be


def forecast(config: RunConfig, out: Path, *, apart: bool = True) -> Forecast:
    """Prepare the data of a validated configuration, and measure what training it into `out` will need.

    With `apart`, in a process of its own, so that somebody is left to say so if the system kills it.

    Raises:
        UserError: bad input, as training it would.
        TrainingError: too little memory; the line says for what, also if the system kills the process that tries.
            Or a loss that is not finite.
        Interrupted: a signal came; nothing but prepared data is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and a run never overwrites another: choose another --out")

    def stop(number: int) -> None:
        raise Interrupted(number, "interrupted; the dry run kept nothing but prepared data")

    parent = next(p for p in [out.absolute(), *out.absolute().parents] if p.exists())
    with on_first_signal(stop), scratch_folder(cache_folder(config.dataset)) as folder:
        work = measure_apart if apart else measure
        return work(config, folder, shutil.disk_usage(parent).free)


def measure_apart(config: RunConfig, folder: Path, free_disk_bytes: int) -> Forecast:
    """`measure` in a process of its own."""
    arguments = (config, str(folder), free_disk_bytes, named_plugins())
    process, connection = start_process(serve_forecast, *arguments, name="dry run")
    try:
        kind, content = connection.recv()
    except (EOFError, OSError):
        process.join()
        kind, content = "training error", death_of(process.exitcode)
    finally:
        process.kill()
        process.join()
    if kind == "forecast":
        return content
    raise UserError(content) if kind == "user error" else TrainingError(content)


def death_of(exit_code: int | None) -> str:
    """What to say of a dry run's process that has ended without an answer."""
    if exit_code != -signal.SIGKILL:
        return f"the process of the dry run ended with exit code {exit_code}"
    return (
        "the system killed the dry run (SIGKILL), as it does when memory runs out. Less is needed with a smaller "
        "--train.micro_batch_size, --train.activation_checkpointing true, or a smaller model; with "
        "--train.memory_limit_gb the line says for what it was"
    )


def serve_forecast(
    connection: Connection, config: RunConfig, folder: str, free_disk_bytes: int, plugins: list[str]
) -> None:
    """Send ("forecast", Forecast), ("user error", line) or ("training error", line)."""
    ignore_signals()
    try:
        for plugin in plugins:
            name_plugin(plugin)
        connection.send(("forecast", measure(config, Path(folder), free_disk_bytes)))
    except UserError as error:
        connection.send(("user error", str(error)))
    except (TrainingError, MemoryError) as error:
        connection.send(("training error", str(error) or "out of memory"))
    except OSError as error:
        connection.send(("training error", cannot_write(error, Path(folder))))


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent` that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dry-run-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(config: RunConfig, folder: Path, free_disk_bytes: int) -> Forecast:
    """Set the run up in `folder`, score a part of its validation text and take its first steps, in a run's order."""
    config, data = set_up(config, folder)
    train, cost = config.train, model_cost(config.family.model, config.train.context_length)
    state = build_if_it_fits(config, data, folder, cost)
    with tried(f"a validation, windows of {train.context_length} tokens"):
        reset_peak_memory(state.device)
        token_seconds = seconds_per_scored_token(state)
    validation_memory_bytes = peak_memory_bytes(state.device)
    micro = train.micro_batch_size or train.batch_size
    with tried(f"training steps, {micro} x {train.context_length} tokens at a time"):
        if train.compile:
            compile_step(state)
        timed = timed_steps(state)
    step_seconds = statistics.fmean(timed)  # what disturbs a step now and then is part of the whole
    steps = max(round(train.max_seconds / step_seconds), 1) if train.max_seconds else int(total_steps(state))
    validations = 1 + math.ceil(steps / train.eval_every)  # before the first step, when due, and at the end
    tokens_per_step = train.batch_size * train.context_length
    weights_bytes = tensor_bytes([*state.model.parameters(), *state.model.buffers()])
    moments_bytes = optimizer_bytes(state.optimizer)
    checkpoints = train.keep_checkpoints + 2  # the best one stays, and an old one until a new one is whole
    return Forecast(
        config=config,
        cost=cost,
        train_tokens=len(data.train_ids),
        val_tokens=len(data.val_ids),
        steps=steps,
        flops=steps * (tokens_per_step * state.flops_per_token + state.flops_per_step),
        step_seconds=step_seconds,
        steps_timed=len(timed),
        validations=validations,
        seconds={
            "compiling": state.compile_seconds,
            "training": steps * step_seconds,
            "validations": validations * len(data.val_ids) * token_seconds,
            "test": len(data.test_ids) * token_seconds,
            "audit": audit_tokens(state) * token_seconds,
        },
        weights_bytes=weights_bytes,
        gradient_bytes=tensor_bytes(state.model.parameters()),
        optimizer_bytes=moments_bytes,
        peak_memory_bytes=state.peak_memory_bytes,
        validation_memory_bytes=validation_memory_bytes,
        gpu=describe_gpu(state.device),
        disk_bytes=folder_bytes(folder)
        + checkpoints * (weights_bytes + moments_bytes)
        + weights_bytes
        + steps * LINE_BYTES,
        free_disk_bytes=free_disk_bytes,
    )


@contextmanager
def tried(what: str) -> Iterator[None]:
    """Name what did not fit, if memory runs out meanwhile: as TrainingError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator raises a plain RuntimeError
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"too little memory, tried: {what}. Less is needed with a smaller --train.micro_batch_size, "
            "--train.activation_checkpointing true, or a smaller model"
        ) from None


def build_if_it_fits(config: RunConfig, data: PreparedData, folder: Path, cost: Cost) -> TrainState:
    """The run before its first step; refused before the machine swaps, or the system kills something else."""
    device = choose_device(config.train.device)
    limit_memory(config.train.memory_limit_gb, device)
    what = f"{config.title} of {cost.params_total:,} parameters on {device}"
    with tried(f"weights, gradients and optimizer state of {what}"):
        least = BYTES_OF_A_PARAMETER * cost.params_total
        if device.type == "cpu" and least > psutil.virtual_memory().available:
            raise MemoryError
        return build_state(config, data, folder)


def timed_steps(state: TrainState) -> list[float]:
    """Seconds of each of the run's first steps after the warm-up; of its last step, if it has no more."""
    seconds: list[float] = []
    while state.step < total_steps(state):
        timed = seconds[WARM_UP_STEPS:]
        if len(timed) >= TIMED_STEPS and sum(timed) >= TIMED_SECONDS:
            break
        seconds.append(train_step(state)["step_ms"] / 1e3)
    return seconds[WARM_UP_STEPS:] or seconds[-1:]


def seconds_per_scored_token(state: TrainState) -> float:
    """Seconds that a validation takes for each token, over the beginning of the text; its last document is cut."""
    train, data = state.config.train, state.data
    ids = data.val_ids[:VALIDATION_TOKENS]
    ends = np.unique(np.minimum(data.val_doc_offsets, len(ids)))
    part = replace(data, val_ids=ids, val_doc_offsets=ends)
    start = fenced_seconds(state.device)
    evaluate(state.model, part, train.context_length, train.eval_batch_size)
    return (fenced_seconds(state.device) - start) / len(ids)


def audit_tokens(state: TrainState) -> int:
    """Tokens in all forward passes of the audit."""
    train, vocab_size = state.config.train, state.config.family.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    windows = windows_of(state.data.val_ids, train.context_length)
    passes = audit_passes(state.model, vocab_size, train.context_length, train.eval_batch_size, windows)
    return sum(rows * length for rows, length in passes)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct tensors."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
