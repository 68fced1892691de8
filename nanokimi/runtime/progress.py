"""Progress bars for bytes and for steps of a longer computation; without a terminal, a line that names the latter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


def progress_console() -> Console:
    """Standard error as a console, which is a terminal only if standard error is one.

    By itself, rich takes FORCE_COLOR to mean a terminal. A notebook sets it for the commands that its cells start, and
    would be filled with every redrawing of a bar.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()  # None: it was closed before the program began
    return Console(stderr=True, force_terminal=None if terminal else False)


@contextmanager
def byte_progress(
    what: str, total: int | None, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of bytes done so far. `total` is None if it is unknown."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    console = console or progress_console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def step_progress(what: str, steps: int, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of `steps` steps. Where there is no terminal, a line says what is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = console or progress_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if not console.is_terminal:
        console.print(what, highlight=False, markup=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda: bar.advance(task)
