"""What the processes of test_parallel.py do: trainings and checks in one group, whose results go to the test."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore

from nanokimi.config.files import load_config
from nanokimi.config.rules_variant import plugins_of
from nanokimi.data.store import open_prepared
from nanokimi.measure.communication import Counting
from nanokimi.runtime import parallel
from nanokimi.runtime.plugins import name_plugin
from nanokimi.runtime.processes import start_process
from nanokimi.train import loop
from nanokimi.train.checkpoint import load_newest_checkpoint, save_checkpoint
from nanokimi.train.follow import first_signal
from nanokimi.train.loop import train
from nanokimi.train.run_folder import find_data
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.step import train_step
from nanokimi.train.together import refresh_whole_model
from nanokimi.train.weights import untied


@dataclass(frozen=True)
class Training:
    """A training in a run folder, and what may happen in it."""

    folder: Path
    steps: int = 4
    micro_batch_size: int | None = None
    recompute: bool = False
    shard: int | None = None
    expert_parallel: int = 1
    starved: bool = False
    """The last half of the experts of each layer get no token."""
    resume: bool = False
    save: bool = False
    signalled: tuple[int, int] | None = None
    """(process, step): a SIGTERM comes to this process in this step."""
    broken: tuple[int, int] | None = None
    """(process, step): the output of `spoilt` is infinite in this process and step."""
    spoilt: str = "lm_head"
    hurried: int | None = None
    """The process by whose clock it is always time to save, which it never is by another's."""


def trained(job: Training) -> dict[str, Any]:
    """Train a few steps; returns what this process saw, and in the main one the whole weights."""
    state = begun(job)
    if job.resume:
        load_newest_checkpoint(state)
    for router in state.model.routers() if job.starved else []:
        router.e_score_correction_bias[len(router.weight) // 2 :] = -9.0
    for happening, act in ((job.signalled, interrupt), (job.broken, partial(spoil, job.spoilt))):
        if happening is not None and happening[0] == state.world.rank:
            act(state, happening[1])
    seconds = {None: 60.0, state.world.rank: 0.0}.get(job.hurried, 1e9)
    signals: list[int] = []

    def note(number: int, _: Any) -> None:
        signals.append(number)
        state.stop_requested = True

    usual, handler = loop.MOST_WORK_LOST, signal.signal(signal.SIGTERM, note)
    loop.MOST_WORK_LOST, records = (1.0, seconds), []
    try:
        for record in train(state):
            records.append(record)
            if record["kind"] == "train" and record["step"] == job.steps:
                break
    finally:  # jobs also run in the process of the tests, where others find what is left
        loop.MOST_WORK_LOST = usual
        signal.signal(signal.SIGTERM, handler)
    if job.save:
        save_checkpoint(state)
    refresh_whole_model(state)
    routers = state.model.routers() if hasattr(state.model, "routers") else []
    weights = {name: tensor.clone() for name, tensor in untied(state.whole_model).items()}
    return {
        "saved_step": state.saved_step,
        "losses": [r["loss"] for r in records if r["kind"] == "train"],
        "norms": [r["grad_norm"] for r in records if r["kind"] == "train"],
        "records": records,
        "clipped": int(state.telemetry.heads_clipped),
        "counts": state.telemetry.counts_LE,
        "biases": [
            r.e_score_correction_bias.clone() for r in routers if hasattr(r, "e_score_correction_bias")
        ],
        "weights": weights if state.world.is_main else {},
        "bits": bits_of(state),
        "rows": sum(parallel.local_of(p).numel() for p in state.model.parameters()),
        "step": state.step,
        "signal": first_signal(state, signals),
        "micro_batch_size": state.micro_batch_size,
    }


def begun(job: Training) -> TrainState:
    """A run before its first step."""
    config = load_config(str(job.folder / "config.yaml"))
    for source in plugins_of(config.family):
        name_plugin(str(job.folder.parent / source))
    settings = replace(
        config.train,
        micro_batch_size=job.micro_batch_size,
        activation_checkpointing=job.recompute,
        shard=job.shard,
        expert_parallel=job.expert_parallel,
    )
    config = replace(config, train=settings)
    return build_state(config, open_prepared(find_data(job.folder)), job.folder)


def bits_of(state: TrainState) -> str:
    """A digest of what this process holds of the weights and of the optimizer's state."""
    kept = [*state.model.state_dict().values()]
    for parameter in state.model.parameters():
        values = state.optimizer.state[parameter]
        kept += [values[name] for name in sorted(values) if isinstance(values[name], torch.Tensor)]
    digest = hashlib.sha256()
    for tensor in kept:
        digest.update(parallel.local_of(tensor.detach()).contiguous().numpy().tobytes())
    return digest.hexdigest()


def interrupt(state: TrainState, step: int) -> None:
    """Let a SIGTERM come in the forward pass of a step."""

    def hook(*_: Any) -> None:
        if state.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    state.model.register_forward_pre_hook(hook)


def spoil(part: str, state: TrainState, step: int) -> None:
    """Make the output of a part of the model infinite in a step."""
    module = state.model.get_submodule(part)
    module.register_forward_hook(lambda _, __, y: y * float("inf") if state.step + 1 == step else None)


def mapped(change: Callable[[Any], Any], result: Any) -> Any:
    """A result with its tensors as arrays or the other way round: tensors would go with the process that sent them."""
    if isinstance(result, torch.Tensor | np.ndarray):
        return change(result)
    if isinstance(result, dict):
        return {name: mapped(change, value) for name, value in result.items()}
    return [mapped(change, value) for value in result] if isinstance(result, list) else result


def serve(connection: Connection, place: dict[str, str], jobs: Sequence[Callable[[], Any]]) -> None:
    """Join the group and do one job after another, telling each result or the exception."""
    os.environ.update(place)
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    parallel.join()
    for job in jobs:
        try:
            connection.send(mapped(torch.Tensor.numpy, job()))
        except BaseException:
            connection.send(traceback.format_exc())
            raise
    parallel.leave()


def command(
    connection: Connection, place: dict[str, str], words: Sequence[str], said: str, happening: tuple[str, int]
) -> None:
    """Run a command as one process of the group, with its standard error in a file, and end with its status.

    `happening` is what goes wrong in this process, and in which step.
    """
    os.environ.update(place)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    from nanokimi.cli import main
    from nanokimi.train import step

    what, when = happening
    calls = [0]
    plain = step.forward_backward

    def forward_backward(state: TrainState) -> Any:
        calls[0] += 1
        if what and state.step + 1 == when:
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise torch.OutOfMemoryError("out of memory")
        return plain(state)

    step.forward_backward = forward_backward
    sys.stdout = open(os.devnull, "w")
    status = main(list(words))
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def places(size: int) -> Iterator[list[dict[str, str]]]:
    """What torchrun would tell each process, and the store that it keeps for them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    address |= {"LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    yield [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    del store


def in_group(size: int, jobs: Sequence[Callable[[], Any]]) -> list[list[Any]]:
    """Do jobs in a group of processes; returns for each job the results of all processes."""
    results = []
    with places(size) as group:
        started = [start_process(serve, place, jobs) for place in group]
        for _ in jobs:
            received = [connection.recv() for _, connection in started]
            assert not any(isinstance(result, str) for result in received), "\n".join(map(str, received))
            results.append([mapped(torch.from_numpy, result) for result in received])
        for process, _ in started:
            process.join()
            assert process.exitcode == 0
    return results


def command_in_group(
    words: Sequence[str], said: Path, happenings: Sequence[tuple[str, int]]
) -> list[int | None]:
    """Run a command in a group, of which process i suffers happenings[i]; returns the exit statuses."""
    with places(len(happenings)) as group:
        started = [
            start_process(command, place, words, str(said), happening)
            for place, happening in zip(group, happenings, strict=True)
        ]
        for process, _ in started:
            process.join()
    return [process.exitcode for process, _ in started]


def counted(job: Training) -> dict[str, int]:
    """The bytes that this process receives in the second of two steps; and as "pairs" its tokens times the experts that
    they choose in other processes."""
    state = begun(job)
    train_step(state)
    pairs: list[int] = []

    def note(_: Any, __: Any, routed: Any) -> None:
        chosen_MK, experts = routed[0], len(routed[2].counts_E)
        owner = chosen_MK // (experts // job.expert_parallel)
        pairs.append(int((owner != state.world.rank % job.expert_parallel).sum()))

    for router in state.model.routers():
        router.register_forward_hook(note)
    with Counting(state.world.size) as counting:
        train_step(state)
    shared = {"pairs": sum(pairs)} if job.expert_parallel > 1 else {}
    return {**asdict(counting.found), **shared}


__all__ = ["Training", "command_in_group", "counted", "in_group", "trained"]
