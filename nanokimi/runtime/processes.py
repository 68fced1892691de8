"""Processes of our own: started while signals are held back, each with a pipe to its parent.

On Linux they come from a server that has loaded torch once (`forkserver`), so that another one starts at once;
elsewhere each loads everything anew (`spawn`). Either way a process gets the environment that its parent has now, and
signals stay blocked until it has said what they mean.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

LONGEST_SOCKET_FOLDER = 70
"""Characters; the server's socket lies in a folder below, and its whole path has at most 107."""
PRELOADED = ["torch", "nanokimi.train.loop", "nanokimi.train.result", "nanokimi.measure.audit"]
"""What the server imports: names alone, since this room knows no model. None of it touches a GPU."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start_process(
    work: Callable[..., None],
    *arguments: Any,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[BaseProcess, Connection]:
    """Start `work(connection, *arguments)`; returns the process and our end of the pipe.

    `environment` is added to this process's own. A process whose parent ends is ended, too.
    """
    method = start_method()
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe()
    whole = {**os.environ, **(environment or {})}
    process = context.Process(target=begin, args=(work, theirs, whole, *arguments), name=name, daemon=True)
    resource_tracker.ensure_running()  # started inside start(), it would let the signals through
    with signals_blocked():  # the process inherits this, and so does the server
        process.start()
    theirs.close()
    return process, ours


def start_method() -> str:
    """The server's, where there can be one."""
    has_room = len(tempfile.gettempdir()) <= LONGEST_SOCKET_FOLDER
    return "forkserver" if sys.platform == "linux" and has_room else "spawn"


def begin(
    work: Callable[..., None], connection: Connection, environment: dict[str, str], *arguments: Any
) -> None:
    """The first thing that a process does."""
    os.environ.clear()
    os.environ.update(environment)
    work(connection, *arguments)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold back the signals that end a run; one started meanwhile sees none until it lets them through."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """For a worker: signals may reach every process, and its parent decides what they mean."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
