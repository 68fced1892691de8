"""The searches that an arm's settings were inherited from: their luck is part of the arm's interval, too.

A search.json of `nanokimi sweep --inherit` holds the rates that were tried for its own runs. What picked the other
settings was an earlier search, which may have inherited its own. Newer files record the earlier losses; of older ones
the file is looked for, and taken only if it holds the settings that were inherited.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanokimi.measure.stats import search_variance

Record = dict[str, Any]
RATE = "lr"
"""The hyperparameter that an inheriting arm tunes itself."""
SEARCHES, MISSING = "inherited_searches", "inherited_missing"
WHOLE, GRID = "search", "inherited"
"""Kinds of search: over all hyperparameters, or over the rates of an arm that inherits the others."""
USUAL_PATTERNS = 2
"""Of a whole search whose record does not say how many it had."""


def shipped_searches() -> Path:
    """The folder of the presets' searches."""
    return Path(str(resources.files("nanokimi") / "presets" / "searches"))


def with_earlier_searches(record: Record, path: Path) -> Record:
    """An arm's record with the searches that it inherits from; as it is if its settings are its own search's.

    `inherited_searches` has the file, arm, patterns and losses of each, the nearest first. `inherited_missing` says
    where the chain breaks off, or is null. `path` is the record's file. Raises KeyError, TypeError or ValueError if
    the record is damaged.
    """
    if "inherited_from" not in record:
        return record
    found, missing = earlier_searches(record, path)
    return {**record, SEARCHES: found, MISSING: missing}


def earlier_searches(record: Record, path: Path) -> tuple[list[Record], Record | None]:
    """The searches behind a record, the nearest first, and the first one that is not to be found."""
    found: list[Record] = []
    seen: set[tuple[Path, str]] = set()
    while "inherited_from" in record:
        if record.get(SEARCHES) is not None:
            known, missing = record[SEARCHES], record.get(MISSING)
            known = [entry(one["file"], one["arm"], one["losses"], patterns_of(one)) for one in known]
            return found + known, missing
        arm = str(record["inherited_from"])
        file = Path(record.get("inherited_file") or path.name).name
        parent, place, why = parent_of(record, path)
        if parent is None or (place, arm) in seen:
            return found, {"file": file, "arm": arm, "why": why or f"{file} inherits from itself"}
        seen.add((place, arm))
        found.append(entry(file, arm, losses_of(parent), patterns_of(parent)))
        record, path = parent, place
    return found, None


def earlier_variances(record: Record, judged: Sequence[float]) -> dict[Hashable, float]:
    """The variance that each earlier search adds to an arm's loss, by its name; infinite if its trials can't tell.

    `judged` are the validation losses of the arm's runs.
    """
    return {
        f"{one['arm']} of {one['file']}": search_variance(one["losses"], judged, patterns=patterns_of(one))
        for one in record.get(SEARCHES) or ()
    }


def patterns_of(search: Record) -> int:
    """How many patterns, each around the best trial so far, a search had: none if it is a grid of rates.

    `search` is a record, or one of the searches that a record inherits from. Records of earlier versions say it only in
    the words of their design.
    """
    if search.get("kind", WHOLE) != WHOLE:
        return 0
    if (known := search.get("patterns")) is not None:
        if int(known) < 0:
            raise ValueError(f"{known} patterns are no number of patterns")
        return int(known)
    if (design := search.get("design")) is None:
        return USUAL_PATTERNS
    steps = re.search(r"steps of (.+) of its range", design)
    return steps[1].count(",") + 1 if steps else 0


def entry(file: str, arm: str, losses: list[list[float | None]], patterns: int) -> Record:
    """One search of an arm: how many patterns it had, and the losses of each trial with each tuning seed."""
    for row in losses:
        for loss in row:
            if loss is not None and (isinstance(loss, bool) or not isinstance(loss, int | float)):
                raise ValueError(f"{loss!r} is no loss")
    return {"file": str(file), "arm": str(arm), "patterns": patterns, "losses": losses}


def losses_of(record: Record) -> list[list[float | None]]:
    """The losses of a record's trials."""
    return [list(trial["losses"]) for trial in record["table"]]


def parent_of(record: Record, path: Path) -> tuple[Record | None, Path, str]:
    """The record whose settings another one inherits, and its file; else None, and why not."""
    arm, name = record["inherited_from"], record.get("inherited_file")
    if name is None:  # a study's tuned.json holds both
        parent = arms_in(path).get(arm)
        return parent, path, "" if parent else f"{path.name} has no arm '{arm}'"
    name = Path(name).name
    places = [path.parent / name, shipped_searches() / name, Path(name)]
    there = [place for place in places if place.is_file()]
    for place in there:
        parent = arms_in(place).get(arm)
        if parent is not None and is_inherited(record, parent):
            return parent, place, ""
    why = "holds other settings than were inherited" if there else "is not to be found"
    return None, path, f"{name} {why}"


def arms_in(path: Path) -> dict[str, Record]:
    """The records in a file whose trials can be read, by arm; none if no search wrote it."""
    try:
        arms = json.loads(path.read_text(encoding="utf-8"))["arms"]
        for record in arms.values():
            entry(path.name, "", losses_of(record), patterns_of(record))
        return dict(arms)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_inherited(record: Record, parent: Record) -> bool:
    """Whether a record has its parent's values, but for the rate, which was tuned from the parent's."""
    values = dict(parent.get("best_values") or {})
    rate = values.pop(RATE, None)
    own = {name: value for name, value in record["best_values"].items() if name != RATE}
    return rate == record.get("inherited_rate", rate) and all(
        name in values and values[name] == value for name, value in own.items()
    )
