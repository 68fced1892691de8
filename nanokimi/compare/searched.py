"""How the arms' settings were found: the records of the search that a preset names, and what has changed since.

`compare.search` names a search.json of `nanokimi sweep --search`. Files of earlier versions do not record the settings
that were not searched, so nothing is said of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanokimi.compare.earlier_searches import (
    entry,
    losses_of,
    patterns_of,
    shipped_searches,
    with_earlier_searches,
)
from nanokimi.compare.match import steps_of
from nanokimi.config import RunConfig
from nanokimi.config.arms import DEFAULT_ARMS
from nanokimi.config.fixed import config_of, differing, differing_split
from nanokimi.config.parsing import settings
from nanokimi.errors import UserError


@dataclass(frozen=True)
class Search:
    """What a search found, and the budget and text it was made for."""

    file: str
    """The file's name."""
    records: dict[str, dict[str, Any]]
    """The tuning record of each arm, by name, with the searches that it inherits from."""
    steps: int
    text: str
    """The name of the text, without its folder."""
    configs: dict[str, RunConfig]
    """Each arm's configuration in the search, by name, without what was searched. Missing if it is not recorded."""


def search_file(name: str, option: str = "compare.search") -> Path:
    """The file that `compare.search`, or another option, means. Raises UserError if there is none."""
    for path in (Path(name), shipped_searches() / f"{name}.json"):
        if path.is_file():
            return path
    raise UserError(f"{option} {name}: there is no such file, and no search of that name among the presets")


def read_search(config: RunConfig) -> Search | None:
    """The content of the file that `compare.search` names. Raises UserError if no search wrote it."""
    if config.compare.search is None:
        return None
    path = search_file(config.compare.search)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for record in content["arms"].values():
            require_complete(record, path)
        arms = {name: with_earlier_searches(arm, path) for name, arm in content["arms"].items()}
        configs = {name: config_of(arm["settings"]) for name, arm in arms.items() if "settings" in arm}
        return Search(path.name, arms, content["steps"], content["data"]["path"], configs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a search.json: name one that nanokimi sweep --search wrote") from None


def require_complete(record: dict[str, Any], path: Path) -> None:
    """Raise KeyError, TypeError, ValueError or AttributeError if a record lacks what a report makes of it."""
    for part in ("best", "space", "interior"):
        record[part].items()
    entry(path.name, "", losses_of(record), patterns_of(record))
    if not all(type(seed) is int for seed in record["seeds"]):
        raise ValueError("a seed is no whole number")


def require_other_seeds(config: RunConfig, seeds: Collection[int]) -> None:
    """Raise UserError if a seed that judges the arms is one that their settings were chosen by.

    The best of many trials is so in part by the luck of its seed, most of all where runs scatter most.
    """
    search = read_search(config)
    for name in (config.arms or DEFAULT_ARMS) if search else ():
        assert search is not None
        if both := sorted({*seeds} & {*search.records.get(name, {}).get("seeds", ())}):
            raise UserError(
                f"the settings of '{name}' were chosen by the loss with seed {both[0]} ({search.file}), which cannot "
                "judge them, too: name another --seed"
            )


def search_records(config: RunConfig, arms: dict[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """The tuning record of each arm that has one, by name. `changed` lists the settings that are different now."""
    search = read_search(config)
    if search is None:
        return {}
    found = {}
    for name, arm in arms.items():
        if name in search.records:
            record, then = search.records[name], search.configs.get(name)
            changed = changed_since_search(arm, record["best"], search.steps)
            if then is not None:
                changed += differing(arm, then, record["best"])
            changed += changed_conditions(config, search)
            if "dataset.path" not in changed:  # of another text, another part was not chosen on either
                changed += differing_split(config, record.get("settings", {}))
            found[name] = {**record, "file": search.file, "changed": changed}
    return found


def changed_conditions(config: RunConfig, search: Search) -> list[str]:
    """Which of the search's conditions are different now: the budget, the text."""
    there = {"train.max_steps": search.steps, "dataset.path": search.text}
    here = {"train.max_steps": known_steps(config), "dataset.path": Path(str(config.dataset.path)).name}
    return [key for key, value in there.items() if here[key] != value]


def changed_since_search(arm: RunConfig, best: dict[str, Any], steps: int) -> list[str]:
    """The settings of an arm that are not what its search found, in runs of `steps` steps.

    A search looks for the share of the steps that warms up, so in a longer run there are more of them.
    """
    now, best = settings(arm), in_longer_run(best, steps, known_steps(arm))
    return [key for key, value in best.items() if now.get(f"{arm.model}.{key}") != value]


def in_longer_run(best: dict[str, Any], steps: int, own: int | None) -> dict[str, Any]:
    """What was found in runs of `steps` steps, for a run of `own`: the same share of it warms up."""
    warmup = "optim.warmup_steps"
    if warmup not in best or own is None:
        return best
    return {**best, warmup: round(best[warmup] / steps * own)}


def known_steps(config: RunConfig) -> int | None:
    """The steps of a budget in steps or tokens; None for another, which cannot be known without the text."""
    train = config.train
    return steps_of(config, 0) if train.max_epochs is None and (train.max_steps or train.max_tokens) else None
