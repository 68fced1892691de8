"""One arm of a comparison in a process of its own, so that its time and memory are measured alone.

The parent sends a request with its argument, and between requests the worker waits and uses no processor:

    train STEPS    take so many training steps, and send each record as it comes; at the end, "turn over"
    stop           save a checkpoint after the current step or evaluation; at the end, "turn over"
    finish WHOLE   measure and write the result, and send it; without WHOLE, do not time generation or judge stories

At any time before its answer the worker may send "phase": what it is doing, how much of it is done, and how much there
is. Instead of an answer an error may come, after which the worker has ended.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nanokimi.config.files import load_config
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.c_compiler import say_nothing
from nanokimi.runtime.device import is_out_of_memory, release_if_scarce
from nanokimi.runtime.files import cannot_write
from nanokimi.runtime.plugins import name_plugin, named_plugins
from nanokimi.runtime.processes import ignore_signals, start_process
from nanokimi.runtime.text import one_line

SECONDS_BETWEEN_MESSAGES = 0.25
ORPHAN_SECONDS = 60.0  # a worker whose parent was killed ends after its current record


class ArmProcess:
    """The parent's end of a worker."""

    def __init__(self, name: str, folder: Path, resume: bool, allow_changes: bool = False) -> None:
        self.name, self.folder = name, folder
        self.finished = self.told_to_stop = False
        self.show_phase: Callable[[str, int, int], None] = lambda phase, done, amount: None
        self.process, self.connection = start_process(
            serve_turns, str(folder), resume, allow_changes, named_plugins(), name=name
        )

    def take_turn(self, steps: int) -> Iterator[tuple[dict[str, Any], float | None]]:
        """Let the arm take `steps` training steps; yields its records, each with the total steps of its budget."""
        self._send("train", steps)
        while True:
            kind, content = self._receive()
            if kind == "records":
                yield from content
            else:
                self.finished = content
                return

    def tell_to_stop(self) -> None:
        """Ask the arm to end its turn after its current step or evaluation. Safe to call from a signal handler."""
        if not self.finished and not self.told_to_stop:
            self.told_to_stop = True
            self._send("stop", None)

    def stop(self) -> None:
        """Make the arm save a checkpoint after its last whole step, and wait for it."""
        if not self.finished:
            self.tell_to_stop()
            while self._receive()[0] == "records":
                pass

    def finish(self, whole: bool) -> dict[str, Any]:
        """Make the arm measure and write its result, then end its process; returns the result.

        Without `whole` it skips timing the generation and judging stories.
        """
        self._send("finish", whole)
        result = self._receive()[1]
        self.process.join()
        return result

    def _send(self, request: str, argument: int | bool | None) -> None:
        with suppress(OSError):  # it has ended, and what it said before that is still to be received
            self.connection.send((request, argument))

    def _death(self) -> TrainingError:
        """The error to raise when the worker is gone."""
        self.process.join()
        code = self.process.exitcode
        hint = " (out of memory?)" if code == -9 else ""
        return TrainingError(f"the process of {self.name} ended with exit code {code}{hint}")

    def _receive(self) -> Any:
        while True:
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                raise self._death() from None
            if message[0] != "phase":
                break
            self.show_phase(*message[1])
        if message[0] == "user error":
            raise UserError(f"{self.name}: {message[1]}")
        if message[0] == "training error":
            raise TrainingError(f"{self.name}: {message[1]}")
        return message


def serve_turns(
    connection: Connection, folder: str, resume: bool, allow_changes: bool, plugins: Sequence[str] = ()
) -> None:
    """Serve the parent until it ends. `plugins` are the user's classes that the command named."""
    ignore_signals()
    say_nothing()  # of missing kernels: the parent does
    try:
        for plugin in plugins:
            name_plugin(plugin)
        _serve(connection, Path(folder), resume, allow_changes)
    except UserError as error:
        connection.send(("user error", str(error)))
    except TrainingError as error:
        connection.send(("training error", str(error)))
    except (ConnectionError, EOFError):
        pass  # the parent is gone
    except OSError as error:
        advice = "what was saved is whole: make room"
        connection.send(("training error", f"{cannot_write(error, Path(folder))}; {advice}"))
    except Exception as error:
        if is_out_of_memory(error):  # outside of a training step, where there is nothing smaller to try
            connection.send(("training error", one_line(error) or "out of memory"))
            return
        connection.send(("training error", unexpected(error, Path(folder))))


def unexpected(error: Exception, folder: Path) -> str:
    """One line about an error that is being handled and that nobody foresaw. Its traceback goes into error.txt."""
    log, said = folder / "error.txt", f"unexpected {type(error).__name__}"
    try:
        log.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as full:
        return f"{said} ({one_line(error)}), whose traceback is not kept: {cannot_write(full, log)}"
    return f"{said}; its traceback is in {log}"


@dataclass
class Messenger:
    """Sends an arm's phases and records to the parent, several at a time: a message wakes it, which needs a core."""

    connection: Connection
    total_steps: Callable[[], float]
    unsent: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    sent: float = field(default_factory=time.monotonic)
    phase: str = ""
    phase_sent: float = 0.0

    def tell(self, phase: str, done: int, amount: int) -> None:
        """Send a phase and how much of it is done."""
        if phase != self.phase or time.monotonic() - self.phase_sent > SECONDS_BETWEEN_MESSAGES:
            self.phase, self.phase_sent = phase, time.monotonic()
            self.connection.send(("phase", (phase, done, amount)))

    def send(self, record: dict[str, Any], at_once: bool = False) -> None:
        """Send a record, now or with those that follow it."""
        self.unsent.append((record, self.total_steps()))
        if at_once or time.monotonic() - self.sent > SECONDS_BETWEEN_MESSAGES:
            self.flush()

    def flush(self) -> None:
        """Send the records that wait."""
        if self.unsent:
            self.connection.send(("records", list(self.unsent)))
            self.unsent.clear()
        self.sent = time.monotonic()


def _serve(connection: Connection, folder: Path, resume: bool, allow_changes: bool) -> None:
    from nanokimi.data.store import open_prepared
    from nanokimi.runtime.device import choose_device, limit_memory, memory_bytes
    from nanokimi.runtime.locks import only_process
    from nanokimi.train.checkpoint import load_newest_checkpoint
    from nanokimi.train.loop import train
    from nanokimi.train.result import finish
    from nanokimi.train.run_folder import find_data, keep_kernels, keep_plugins
    from nanokimi.train.state import build_state, total_steps
    from nanokimi.train.tracking import tracked

    with only_process(folder, ORPHAN_SECONDS):
        config = load_config(str(folder / "config.yaml"))
        keep_plugins(config, folder)
        device = choose_device(config.train.device)
        limit_memory(config.train.memory_limit_gb, device)
        idle_memory_bytes = memory_bytes(device)
        state = build_state(config, open_prepared(find_data(folder)), folder)
        keep_kernels(state)
        state.stop_waiting = connection.poll  # during a turn nothing but "stop" is ever sent

        messages = Messenger(connection, lambda: total_steps(state))
        state.tell = messages.tell

        def note(line: str) -> None:
            messages.send({"kind": "event", "step": state.step, "detail": line}, at_once=True)

        if resume:
            found = load_newest_checkpoint(state, allow_changes=allow_changes, log=note)
            note(f"resumed after step {state.step}" if found else "no checkpoint yet: starting afresh")
        with tracked(state, note):
            records = train(state)
            while True:
                request, argument = connection.recv()
                if request == "finish":
                    connection.send(("result", finish(state, idle_memory_bytes, measure_generation=argument)))
                    return
                if request == "stop":
                    state.stop_requested = True  # train() then saves, and yields no more records
                taken = 0
                while request == "stop" or (taken < argument and not connection.poll()):
                    record = next(records, None)
                    if record is None:
                        break
                    messages.send(record)
                    taken += record["kind"] == "train"
                messages.flush()
                # the others' turns need it, and would else make their batches smaller
                release_if_scarce(state.device)
                connection.send(("turn over", state.finished))
