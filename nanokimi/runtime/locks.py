"""A lock that lets only one process use a run folder. The system frees it when the process ends or is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nanokimi.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def only_process(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the run folder's lock, waiting up to `patience` seconds for it.

    Raises UserError if another process holds it.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(
            f"another process is training in {folder}: wait until it ends, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {folder}: {error.strerror or error}; choose another with --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
