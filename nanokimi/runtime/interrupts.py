"""Ctrl-C and kill: the first one asks a run to finish its step, save and stop. A second one stops it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A signal made a run save and stop early. Has the exit status for the shell."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


@contextmanager
def on_first_signal(ask_to_stop: Callable[[int], None]) -> Iterator[None]:
    """Call `ask_to_stop(signal_number)` at the first SIGINT or SIGTERM. The next one acts as usual."""
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
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
