"""Signals that end a run: the first one asks it to finish its step, save and stop. A second one stops it at once."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Ctrl-C, `kill`, a terminal that is gone, and the warning of a batch system such as SLURM before its time limit."""


class Interrupted(Exception):
    """A signal made a run save and stop early. Has the exit status for the shell."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


@contextmanager
def on_first_signal(ask_to_stop: Callable[[int], None]) -> Iterator[None]:
    """Call `ask_to_stop(signal_number)` at the first signal of STOPPING. The next one acts as usual.

    One that the process was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    """
    old = {number: signal.getsignal(number) for number in STOPPING}
    old = {number: handler for number, handler in old.items() if handler is not signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        leave_lost_terminal()
        ask_to_stop(number)

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    for number in old:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@contextmanager
def stopped_by_signal(message: str) -> Iterator[None]:
    """Raise Interrupted at the first signal, at any point of the block. For work that can be repeated."""

    def stop(number: int) -> None:
        raise Interrupted(number, message)

    with on_first_signal(stop):
        yield


def leave_lost_terminal() -> None:
    """Discard what will be written to a terminal that is gone, which would be an error each time."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
