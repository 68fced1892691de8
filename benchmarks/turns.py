"""Arms that take turns: each in a process of its own, asleep while another works.

Between its turns a worker waits on a pipe and uses no processor time, and no arm shares an allocator or a thread pool
with another. In every round each arm takes one turn of the same number of steps, in alternating order, so that other
load on the machine affects all arms equally. Set-up, the first step (where compilation happens) and a warm-up turn
come before the rounds.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from nanokimi.runtime.device import memory_bytes, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")


class Finished(BaseException):
    """The parent wants no more steps; passes through a peer's own loop."""


class Turns:
    """A worker's end: `start`, build, `ready`, then `step_done` after each step, which may wait for the next turn."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.at_end: Callable[[], dict[str, Any]] = dict  # asked when the parent wants no more steps

    def start(self) -> None:
        """Everything is imported, including what torch imports on first use; the set-up begins."""
        p = torch.nn.Parameter(torch.zeros(64, 64))
        with torch.autocast("cpu"):
            (p @ p).sum().backward()
        torch.optim.AdamW([p], fused=True).step()
        self.began = time.perf_counter()

    def ready(self) -> None:
        """Say that everything is built, and wait for the first turn."""
        self.connection.send(("ready", time.perf_counter() - self.began))
        self._wait()

    def step_done(self) -> None:
        """Count a step; at the end of the turn report its seconds and wait for the next."""
        self.left -= 1
        if self.left == 0:
            self.connection.send(("turn", time.perf_counter() - self.started))
            self._wait()

    def _wait(self) -> None:
        self.left = self.connection.recv()
        if self.left == 0:
            raise Finished
        self.started = time.perf_counter()


class Watched(Turns):
    """Turns that also record the process's memory: when idle, and at its peak."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.at_end = lambda: {"idle_bytes": self.idle, "peak_bytes": self.peak}

    def start(self) -> None:
        """Everything is imported and nothing built: this is the idle process."""
        super().start()
        self.peak = 0
        reset_peak_memory(CPU)
        self.idle = memory_bytes(CPU)

    def ready(self) -> None:
        """Memory used by building counts as well."""
        self.peak = peak_memory_bytes(CPU)
        super().ready()

    def step_done(self) -> None:
        """`train_step` resets the peak, so it is read after each step."""
        self.peak = max(self.peak, peak_memory_bytes(CPU))
        super().step_done()


def work(
    connection: Connection, body: Callable[..., Any], threads: int, watched: bool, arguments: dict[str, Any]
) -> None:
    """A worker's main function: `body(turns, **arguments)` steps until Finished, then its results are sent."""
    torch.set_num_threads(threads)
    turns = Watched(connection) if watched else Turns(connection)
    try:
        try:
            body(turns, **arguments)
        except Finished:
            pass
        connection.send(("result", turns.at_end()))
    except EOFError:
        pass  # the parent is gone
    except Exception:
        connection.send(("error", traceback.format_exc()))


class Worker:
    """The parent's end of one arm. `body` is a function of a module, called as body(turns, **arguments).

    With `watched`, `finish` also returns the memory of the process: idle_bytes and peak_bytes.
    """

    def __init__(
        self, name: str, body: Callable[..., Any], threads: int, watched: bool = False, **arguments: Any
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=work, args=(theirs, body, threads, watched, arguments), daemon=True
        )
        self.process.start()
        theirs.close()
        self.setup_seconds = float(self._receive("ready"))
        self.first_step_seconds = self.turn(1)

    def turn(self, steps: int) -> float:
        """Have the worker take this many steps; returns their seconds."""
        self.connection.send(steps)
        return float(self._receive("turn"))

    def finish(self) -> dict[str, Any]:
        """End the worker and return its results."""
        self.connection.send(0)
        result = self._receive("result")
        self.process.join()
        return dict(result)

    def _receive(self, wanted: str) -> Any:
        try:
            kind, content = self.connection.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.name} died") from None
        if kind == "error":
            raise SystemExit(f"{self.name} failed:\n{content}")
        assert kind == wanted, (kind, wanted)
        return content


def interleave(workers: list[Worker], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each worker in each round, after one turn each to warm up; the order alternates."""
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(-1, rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            each = worker.turn(steps) / steps
            if number >= 0:
                seconds[worker.name].append(each)
    return seconds
