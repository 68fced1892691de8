"""The processes beside the main one: each waits to be told which run folder to train in, and trains its part.

The main process reads the command line, prepares folder and data, prints, and writes. What it tells the others is the
folder, whose configuration and data they read, so all nodes must see the same file system.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanokimi.config.files import load_config
from nanokimi.data.store import open_prepared
from nanokimi.runtime.c_compiler import say_nothing
from nanokimi.runtime.device import choose_device, limit_memory
from nanokimi.runtime.interrupts import Interrupted, on_first_signal
from nanokimi.runtime.parallel import World, current, ending_together
from nanokimi.runtime.plugins import name_plugin, named_plugins
from nanokimi.train.checkpoint import load_newest_checkpoint
from nanokimi.train.loop import train
from nanokimi.train.state import TrainState, build_state
from nanokimi.train.weights import find_data


@dataclass(frozen=True)
class Task:
    """A training for all processes."""

    folder: Path
    resume: bool
    plugins: tuple[str, ...] = ()
    """The user's classes that the command named."""
    advice: str = ""
    """How to continue it, for the line that says why it ends."""


def tell(folder: Path, resume: bool, advice: str) -> None:
    """Let the other processes, if there are any, train in a folder that is ready; the main one does the same."""
    plugins = tuple(named_plugins())
    current().from_main(lambda: Task(folder.resolve(), resume, plugins, advice))


def release() -> None:
    """Let the other processes end, because the command is done."""
    with ending_together("all was done"):
        current().from_main(lambda: None)


def follow() -> int:
    """What a process that is not the main one does until the main one is done. Returns its exit status.

    Raises:
        TrainingError: the run cannot continue, or another process has ended.
        Interrupted: a signal came to one of the processes. The run is saved.
    """
    world = current()
    say_nothing()  # of missing kernels: the main process does
    while (task := next_task(world)) is not None:
        with ending_together(task.advice):
            train_part(task)
    return 0


def next_task(world: World) -> Task | None:
    """What the main process wants done next; None: nothing."""
    with ending_together("nothing was being trained"):
        return world.from_main(lambda: None)


def train_part(task: Task) -> None:
    """Train this process's part of one run."""
    for plugin in task.plugins:
        name_plugin(plugin)
    config = load_config(str(task.folder / "config.yaml"))
    limit_memory(config.train.memory_limit_gb, choose_device(config.train.device))
    state = build_state(config, open_prepared(find_data(task.folder)), task.folder)
    if task.resume:
        load_newest_checkpoint(state)
    signals: list[int] = []

    def ask_to_stop(number: int) -> None:
        signals.append(number)
        state.stop_requested = True

    with on_first_signal(ask_to_stop):
        for _ in train(state):
            pass
    if not state.finished:
        raise Interrupted(first_signal(state, signals), f"interrupted; {task.advice}")


def first_signal(state: TrainState, signals: list[int]) -> int:
    """The signal that stopped a run, which may have come to another process. All must call this together."""
    return max(state.world.gathered(signals[0] if signals else 0))
