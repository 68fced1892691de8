"""Child processes, each with a pipe to its parent, started while signals are blocked.

On Linux they are forked from a server that has already loaded torch (`forkserver`), so they start at once. Elsewhere
each process loads everything again (`spawn`). Either way, a process gets the present environment of its parent, does
not run the user's script again, and signals stay blocked until it has set how it handles them.
"""

from __future__ import annotations

import gc
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
from pathlib import Path
from typing import Any

from nanokimi.runtime.interrupts import STOPPING

LONGEST_SOCKET_FOLDER = 70
"""Characters. The server's socket is in a folder below it, and its path may have at most 107."""
PRELOADED = ["torch", "nanokimi.train.loop", "nanokimi.train.result", "nanokimi.measure.audit"]
"""What the server imports, as names, because this package must not import them. None of them uses a GPU."""


def start_process(
    work: Callable[..., None],
    *arguments: Any,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[BaseProcess, Connection]:
    """Start `work(connection, *arguments)`. Returns the process and our end of the pipe.

    `environment` is added to this process's own. When the parent ends, the process is ended.
    """
    method = start_method()
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe()
    whole = {**os.environ, **(environment or {})}
    process = context.Process(target=begin, args=(work, theirs, whole, *arguments), name=name, daemon=True)
    with signals_blocked():  # a terminal that is gone must not end the tracker
        resource_tracker.ensure_running()  # it unblocks some of them again
    with signals_blocked(), main_module_hidden():  # inherited by the process and by the server
        process.start()
    theirs.close()
    return process, ours


def start_method() -> str:
    """The start method of multiprocessing: `forkserver` where it is possible."""
    has_room = len(tempfile.gettempdir()) <= LONGEST_SOCKET_FOLDER
    return "forkserver" if sys.platform == "linux" and has_room else "spawn"


def begin(
    work: Callable[..., None], connection: Connection, environment: dict[str, str], *arguments: Any
) -> None:
    """The first thing that a process does."""
    # What the server has loaded stays. Each collection would look at it again, which takes a tenth of a second.
    gc.freeze()
    os.environ.clear()
    os.environ.update(environment)
    work(connection, *arguments)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Let a process that is started meanwhile not import the main module.

    multiprocessing would, for work that is defined there, and would so run a script of the user's again, up to the line
    that started the process. Ours is always in this package.
    """
    main = sys.modules["__main__"]
    names = [name for name in ("__file__", "__spec__") if name in main.__dict__]
    hidden: dict[str, Any] = {name: main.__dict__.pop(name) for name in names}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update({"__spec__": None} | hidden)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that end a run. A process started meanwhile inherits this until it unblocks them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore the signals that end a run. For workers, because the parent handles them."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def own_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in a new Python, with `package_on_path` as its environment.

    With -P, the user's folder is not searched: it may hold a nanokimi.py, such as a notebook of that name as a script.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def package_on_path() -> dict[str, str]:
    """The present environment, in which a new Python finds this package wherever it is."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
