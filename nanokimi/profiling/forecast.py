"""What a run will cost, before it starts: its data prepared, its model built, a few of its own steps taken.

Everything is measured with the functions that the run itself will call, in a process of its own: memory that preparing
the text left behind is not counted, and a process that the system kills for its memory can be reported. The process
works in a folder inside the cache that is removed afterwards; only the tokens stay, where the run will find them.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.data.build import prepare_store
from nanokimi.data.cache import cache_folder
from nanokimi.data.sources import with_absolute_paths
from nanokimi.errors import TrainingError, UserError
from nanokimi.measure.cost import model_cost
from nanokimi.profiling.trials import (
    audit_seconds,
    how_often,
    mapped_later,
    measuring_seconds,
    timed,
    try_steps,
    try_story,
    try_validation,
)
from nanokimi.runtime.device import choose_device, choose_dtype, is_out_of_memory, limit_memory
from nanokimi.runtime.files import describe_environment, write_json
from nanokimi.runtime.interrupts import Interrupted, on_first_signal
from nanokimi.runtime.plugins import name_plugin, named_plugins
from nanokimi.runtime.processes import start_process
from nanokimi.train.checkpoint import save_checkpoint, save_weights
from nanokimi.train.evaluation import telemetry_records
from nanokimi.train.loop import write
from nanokimi.train.metrics import optimizer_bytes
from nanokimi.train.run_folder import set_up
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.torch_compile import compile_step


@dataclass(frozen=True)
class Phase:
    """One kind of work of a run."""

    count: float  # how often it is done
    seconds: float  # all of it together


@dataclass(frozen=True)
class Forecast:
    """What a run will need. Memory is the process's on the CPU, the allocator's on a GPU."""

    name: str
    device: str
    dtype: str
    threads: int
    params_total: int
    params_active: int
    train_tokens: int  # of the text
    val_tokens: int
    steps: int  # of the budget; where that is in seconds, the steps expected
    steps_expected: bool  # whether `steps` follows from the speed, not from the configuration
    tokens: int  # that the steps train on
    step_ms: float
    steps_measured: int
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_memory_bytes: int  # over training steps, as a run's result.json counts it
    validation_memory_bytes: int
    disk_bytes: int  # of the run folder at its largest
    checkpoint_bytes: int  # of one
    phases: dict[str, Phase]
    free_disk_bytes: int | None = None  # where the run folder would be

    @property
    def train_seconds(self) -> float:
        """Seconds inside training steps, as a run's result.json counts them."""
        return self.phases["training"].seconds

    @property
    def seconds(self) -> float:
        """Seconds from the start of the process to its end."""
        return sum(phase.seconds for phase in self.phases.values())


def forecast(config: RunConfig, out: Path) -> Forecast:
    """Prepare the data of a validated configuration, and measure what training it into `out` will need.

    Raises:
        UserError: bad input, as training it would.
        TrainingError: too little memory; the line says for what. Or a loss that is not finite.
        Interrupted: a signal came; nothing but prepared data is left.
    """
    choose_dtype(config.train.dtype, choose_device(config.train.device))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and a run never overwrites another: choose another --out")
    config = replace(config, dataset=with_absolute_paths(config.dataset))
    prepare_store(config.dataset)  # the process that is measured finds the tokens, as the run will

    def stop(number: int) -> None:
        raise Interrupted(number, "interrupted; the dry run kept nothing but prepared data")

    with on_first_signal(stop), scratch_folder(cache_folder(config.dataset)) as folder:
        save_config(config, folder / "config.yaml")
        found = measure_apart(config, folder)
    parent = next(p for p in [out.absolute(), *out.absolute().parents] if p.exists())
    return replace(found, free_disk_bytes=shutil.disk_usage(parent).free)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent` that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dry-run-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_apart(config: RunConfig, folder: Path) -> Forecast:
    """Run `measure` in a process of its own."""
    process, ours = start_process(work, str(folder), named_plugins())  # signals stay blocked in it
    stage = "starting"
    try:
        while True:
            kind, content = ours.recv()
            if kind == "forecast":
                return content
            if kind == "user error":
                raise UserError(content)
            if kind == "memory":
                raise too_little_memory(content)
            if kind == "error":
                raise TrainingError(content)
            stage = content
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise too_little_memory(stage) from None
        raise TrainingError(
            f"the dry run's process ended with exit code {process.exitcode}: {stage}"
        ) from None
    finally:
        process.kill()
        process.join()


def too_little_memory(tried: str) -> TrainingError:
    """The error that names what did not fit."""
    return TrainingError(
        f"too little memory, tried: {tried}. Less is needed with a smaller --train.micro_batch_size, "
        "--train.activation_checkpointing true, or a smaller model"
    )


def work(connection: Connection, folder: str, plugins: Sequence[str] = ()) -> None:
    """The whole life of the measuring process; `plugins` are the classes that the user named."""
    stage = ["starting"]

    def log(text: str) -> None:
        stage[0] = text
        connection.send(("stage", text))

    try:
        for plugin in plugins:
            name_plugin(plugin)
        config = load_config(f"{folder}/config.yaml")
        connection.send(("forecast", measure(config, Path(folder), log)))
    except UserError as error:
        connection.send(("user error", str(error)))
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator raises a plain RuntimeError
        short = is_out_of_memory(error)
        connection.send(("memory", stage[0]) if short else ("error", " ".join(str(error).split())))
    except OSError as error:
        connection.send(("error", f"{stage[0]}: {error}"))


def build(config: RunConfig, folder: Path, log: Callable[[str], None]) -> tuple[TrainState, str]:
    """Set a run up in `folder`, as training does; returns it and what it is in words.

    Raises MemoryError before the machine swaps, or the system kills something else.
    """
    log("preparing")
    (folder / "run").mkdir()
    config, data = set_up(config, folder / "run")
    write_json(folder / "environment.json", describe_environment())
    cost = model_cost(config.arm.model, config.train.context_length)
    what = f"{config.title} of {cost.params_total:,} parameters on {config.train.device}"
    limit_memory(config.train.memory_limit_gb, choose_device(config.train.device))
    log(f"weights, gradients and optimizer state of {what}")
    if config.train.device == "cpu" and 12 * cost.params_total > psutil.virtual_memory().available:
        raise MemoryError
    return build_state(config, data, folder / "run"), what


def measure(config: RunConfig, folder: Path, log: Callable[[str], None]) -> Forecast:
    """Do a little of everything that a run does, in a run's order, and time it. `say` is told what comes next."""
    state, what = build(config, folder, log)
    starting = time.time() - psutil.Process().create_time()
    config, train, data = state.config, state.config.train, state.data
    cost = model_cost(config.arm.model, train.context_length)

    log(f"a validation of {what}, windows of {train.context_length} tokens")
    validation = try_validation(state)
    log(f"a story of {what}")
    story = try_story(state)
    micro = train.micro_batch_size or train.batch_size
    log(f"training steps of {what}, {micro} x {train.context_length} tokens at a time")
    if train.compile:
        compile_step(state)
    steps = try_steps(state)
    telemetry = timed(state, lambda: list(write(state, telemetry_records(state))))
    log(f"a checkpoint of {what}")
    saving = timed(state, lambda: save_checkpoint(state))
    weights = timed(state, lambda: save_weights(state.model, state.folder / "model.safetensors"))
    log(f"the audit and the measurements of {what}")
    times = how_often(config, steps.total, steps.each)
    later = mapped_later(state, steps.total) if train.device == "cpu" else 0
    checkpoint_bytes = folder_bytes(state.folder / "checkpoints")
    # an old one goes once a new one is whole, and the best one stays
    more = min(times["checkpoints"], train.keep_checkpoints + 2) - 1
    lines = times["validations"] * validation.line_bytes + steps.total * steps.line_bytes
    return Forecast(
        name=config.title,
        device=train.device,
        dtype=train.dtype,
        threads=train.threads or 1,
        params_total=cost.params_total,
        params_active=cost.params_active,
        train_tokens=len(data.train_ids),
        val_tokens=len(data.val_ids),
        steps=steps.total,
        steps_expected=train.max_seconds is not None,
        tokens=steps.total * train.batch_size * train.context_length,
        step_ms=steps.each * 1e3,
        steps_measured=steps.measured,
        weights_bytes=tensor_bytes([*state.model.parameters(), *state.model.buffers()]),
        gradient_bytes=tensor_bytes(state.model.parameters()),
        optimizer_bytes=optimizer_bytes(state.optimizer),
        peak_memory_bytes=state.peak_memory_bytes + later,
        validation_memory_bytes=validation.memory_bytes,
        disk_bytes=folder_bytes(state.folder) + more * checkpoint_bytes + lines,
        checkpoint_bytes=checkpoint_bytes,
        phases={
            "starting": Phase(1, starting),
            **({"compiling": Phase(1, state.compile_seconds)} if train.compile else {}),
            "training": Phase(steps.total, steps.seconds),
            "validations": Phase(times["validations"], times["validations"] * validation.seconds),
            "test": Phase(1, validation.seconds * len(data.test_ids) / len(data.val_ids)),
            "stories": Phase(times["stories"], story.reading + times["stories"] * story.seconds),
            "records": Phase(times["records"], times["records"] * telemetry + steps.total * steps.overhead),
            "checkpoints": Phase(times["checkpoints"], times["checkpoints"] * saving + weights),
            "audit": Phase(1, audit_seconds(state)),
            "measuring": Phase(1, measuring_seconds(state, story)),
        },
    )


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct tensors."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
