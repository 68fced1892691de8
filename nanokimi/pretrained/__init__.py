"""The weights that come with the package: folders of finished runs, which have a name wherever a run is read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SHIPPED = Path(__file__).parent


def run_path(run: str | os.PathLike[str]) -> Path:
    """The folder that the user means by `run`, with ~ as the home folder.

    A path that exists is that path. Any other word that names a folder of shipped weights ("tales-1m"), or a run in
    one ("tales-1m/nanokimi/seed-1337"), is that folder.
    """
    path = Path(run)
    with suppress(RuntimeError):  # there is no such user
        path = path.expanduser()
    if path.is_absolute() or ".." in path.parts or not path.parts or os.path.lexists(path):
        return path
    shipped = SHIPPED / path
    return shipped if os.path.isdir(shipped) and path.parts[0] in shipped_names() else path


def word_for(folder: Path) -> str:
    """What the user writes for a run: its name if it is shipped ("tales-1m/nanokimi/seed-1337"), else its folder."""
    return folder.relative_to(SHIPPED).as_posix() if SHIPPED in folder.parents else str(folder)


def is_shipped(folder: Path) -> bool:
    """Whether it is a folder of shipped weights, which may hold several runs."""
    return folder.parent == SHIPPED


def shipped_names() -> list[str]:
    """The names of the shipped weights."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir() and path.name != "__pycache__")
