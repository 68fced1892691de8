"""Where prepared data is kept, and how two processes that want the same data wait for each other."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nanokimi.config import DatasetConfig
from nanokimi.errors import UserError
from nanokimi.runtime.c_compiler import default_cache_folder, make_private_folder


def cache_folder(dataset: DatasetConfig) -> Path:
    """The folder that `dataset.cache` or $NANOKIMI_CACHE names, or ~/.cache/nanokimi; created if missing."""
    named = dataset.cache or os.environ.get("NANOKIMI_CACHE") or "~/.cache/nanokimi"
    try:
        folder = Path(dataset.cache).expanduser() if dataset.cache else default_cache_folder()
        make_private_folder(folder)
        folder.mkdir(exist_ok=True)  # an error if it is a file
        return folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such user; a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the cache folder {named} cannot be made ({reason}): name another with --dataset.cache or "
            "$NANOKIMI_CACHE"
        ) from None


def store_key(identity: dict[str, Any]) -> str:
    """A name for prepared data: a hash of everything that determines its content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; if another process does, say so and wait. The system frees it when a process dies."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("nanokimi: another process prepares the same data: waiting for it", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"the cache folder {path.parent} cannot be written ({error.strerror}): name another with "
            "--dataset.cache or $NANOKIMI_CACHE"
        ) from None
    try:
        yield
    finally:
        lock.release()
