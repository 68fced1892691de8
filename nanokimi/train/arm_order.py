"""The order in which a comparison's runs are shown everywhere: that of the arms in its configuration, then by seed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from nanokimi.config.arms import DEFAULT_ARMS, arms_of_pair, slug
from nanokimi.config.safe_yaml import read_yaml
from nanokimi.errors import UserError

CONFIG_FILE = "config.yaml"


def in_order(folder: Path, runs: Iterable[Path]) -> list[Path]:
    """Paths in the folder of a comparison, arm by arm as its configuration names them, with the seeds counted up.

    Arms that it does not name come last, by name. A configuration that cannot be read says nothing about the order: the
    runs have their own, and can be shown without it.
    """
    path = folder / CONFIG_FILE
    names = _arm_folders(path, os.stat(path).st_mtime_ns) if path.is_file() else ()
    places = {name: place for place, name in enumerate(names)}

    def place(run: Path) -> tuple[int, str, int, str]:
        arm, *inner = run.relative_to(folder).parts
        seed = inner[0].removeprefix("seed-") if inner else ""
        return places.get(arm, len(places)), arm, int(seed) if seed.isdecimal() else 0, str(run)

    return sorted(runs, key=place)


@lru_cache(maxsize=256)
def _arm_folders(path: Path, _changed: int) -> tuple[str, ...]:
    """The names of the arms' folders. A page that follows runs asks for them every few seconds."""
    try:
        content = read_yaml(path)
        arms = arms_of_pair(content).get("arms") if isinstance(content, dict) else None
    except UserError:
        return ()
    return tuple(slug(name) for name in (arms if isinstance(arms, dict) and arms else DEFAULT_ARMS))
