"""The record of how an arm's settings were found: by a search, inherited from a searched arm, or by its rate alone.

tuned.json and search.json hold a record for each arm. It is a dictionary:

- `kind`, `seeds`, `trials`, `runs`, `cpu_seconds`, the best `loss`, and the `design` in words
- `patterns`: of a search, how often it went on around its best; files of earlier versions have it in `design` alone
- `space`: each hyperparameter's range and the settings it determines
- `best`: settings without the family in front; `best_values`: values that do not depend on width and length
- `interior`: whether the best value is interior, by hyperparameter
- `table`: each trial's values, and its loss with each seed it was scored with, None if that run diverged
- `sensitivity`: the curve of each hyperparameter through the centre of the last pattern of trials
- `settings`: of a search, the settings that it kept fixed (see `config.fixed`); files of earlier versions lack them
- `found_elsewhere`: of an arm whose settings are a file's: in what other runs they were found, in words
- `searched`: of an arm that was searched later than the others of its file: when, where and with which command
- `inherited_from`: of an arm that inherits, the arm whose settings it has; `inherited_file`, if that arm was searched
  for another configuration: the search's file, with the rate found there as `inherited_rate`, and that search's
  losses, and those of searches before it, as `inherited_searches`, which an arm also has whose parent was searched but
  is no arm of the study
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanokimi.compare.earlier_searches import GRID, MISSING, WHOLE, with_earlier_searches
from nanokimi.errors import UserError
from nanokimi.report.units import is_number
from nanokimi.runtime.files import read_json, write_json
from nanokimi.study.space import BY_NAME, RATE, Value, require_values, space_record

TUNED_FILE, SCHEMA_VERSION = "tuned.json", 2
SEARCHED, INHERITED, RATES = WHOLE, GRID, "rates"
RATE_SETTING = BY_NAME[RATE].setting
Record = dict[str, Any]


def rate_record(
    curve: Mapping[str, Any], seeds: Sequence[int], best: dict[str, Any], values: dict[str, Value]
) -> Record:
    """The record of a rate that was tuned alone: its curve from `tune`, and the arm's settings and values with it."""
    tried = [value for value, _ in curve["curve"]]
    space = space_record([BY_NAME[RATE]])
    space[RATE] |= {"low": min(tried), "high": max(tried)}
    return {
        "kind": RATES,
        "space": space,
        "left_out": {},
        "design": "a grid of rates, extended for all arms alike while an optimum lies at an edge",
        "seeds": list(seeds),
        "best": best,
        "best_values": values,
        "loss": curve["loss"],
        "trials": curve["trials"],
        "runs": sum(len(losses) for _, losses in curve["losses"]),
        "cpu_seconds": curve.get("cpu_seconds", 0.0),
        "interior": {RATE: curve["interior"]},
        "table": [{"values": {RATE: value}, "losses": losses} for value, losses in curve["losses"]],
        "sensitivity": {RATE: curve["curve"]},
    }


def is_at_edge(record: Record) -> list[str]:
    """The hyperparameters whose best value is not interior."""
    return [name for name, interior in record["interior"].items() if not interior]


def write_tuned(
    folder: Path, seeds: Sequence[int], steps: int, arms: Mapping[str, Record], text: str | None = None
) -> None:
    """Write tuned.json, which holds each arm's record, and what they were tuned on: the text's name, the steps."""
    content = {"schema_version": SCHEMA_VERSION, "seeds": list(seeds), "steps": steps, "arms": dict(arms)}
    write_json(folder / TUNED_FILE, content if text is None else {**content, "data": {"path": text}})


def found_elsewhere(path: Path, text: str, steps: int) -> str:
    """In what other runs a tuned.json or search.json found its settings, in words; empty if in such runs as these.

    Nothing is said of what a file of an earlier version does not tell.
    """
    content = read_json(path)
    data, before = content.get("data"), content.get("steps")
    there = data.get("path") if isinstance(data, dict) else None
    words = [f"in runs of {before} steps"] if is_number(before) and before != steps else []
    words += [f"on {there}"] if isinstance(there, str) and there != text else []
    return " ".join(words)


def read_tuned(path: Path) -> dict[str, Record]:
    """The records of an earlier tuned.json or search.json, by arm. Files of schema 1 hold curves of rates.

    Raises UserError for any other file, and for one that holds values of another setting.
    """
    content = read_json(path)
    arms = content.get("arms") if isinstance(content, dict) else None
    if not isinstance(arms, dict):
        raise UserError(
            f"{path} is not a tuned.json: name that of an earlier ladder or scale, or a search.json"
        )
    return {name: read_record(path, name, found) for name, found in arms.items()}


def read_settled(path: Path) -> dict[str, Record]:
    """What `read_tuned` reads, for a study that judges arms with these settings: with the noise of earlier searches."""
    return {name: with_noise(path, record) for name, record in read_tuned(path).items()}


def with_noise(path: Path, record: Record) -> Record:
    """A record with the searches of other files that its settings are from; UserError if one of them is missing."""
    if "inherited_file" not in record:
        return record
    try:
        found = with_earlier_searches(record, path)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged: what it says of earlier searches cannot be read") from None
    if (missing := found[MISSING]) is not None:
        raise UserError(
            f"{path} inherits settings from an earlier search whose noise belongs into the intervals, but "
            f"{missing['why']}: put that file beside it"
        )
    return found


def read_record(path: Path, name: str, found: Any) -> Record:
    """One arm's record from a file."""
    if isinstance(found, dict) and is_curve(found):
        if found.get("knob", RATE_SETTING) != RATE_SETTING:
            raise UserError(
                f"{path} holds values of {found['knob']}, not of {RATE_SETTING}: name the tuned.json of an earlier "
                "ladder or scale"
            )
        curve = {"losses": [[value, [loss]] for value, loss in found["curve"]], **found}
        return rate_record(curve, [], {RATE_SETTING: found["best"]}, {RATE: found["best"]})
    if not isinstance(found, dict) or not is_record(found):
        raise UserError(f"{path} is damaged: its entry for '{name}' is not a tuning record")
    require_values(found["best_values"], f"{path}, arm '{name}',")
    return found


def is_curve(curve: dict[str, Any]) -> bool:
    """Whether a dictionary from a file is a curve of rates."""
    kinds = {"trials": int, "interior": bool, "curve": list}
    return (
        all(type(curve.get(key)) is kind for key, kind in kinds.items())
        and is_number(curve.get("best"))
        and curve["curve"] != []
        and all(map(is_point, curve["curve"]))
    )


def is_point(point: object) -> bool:
    """Whether a value from a file is [value, loss]."""
    return (
        isinstance(point, list)
        and len(point) == 2
        and is_number(point[0])
        and (point[1] is None or is_number(point[1]))
    )


def is_record(record: dict[str, Any]) -> bool:
    """Whether a dictionary from a file has all parts of a record that the outputs show."""
    kinds: dict[str, type] = {
        **dict.fromkeys(("space", "left_out", "best", "best_values", "interior", "sensitivity"), dict),
        **dict.fromkeys(("kind", "design"), str),
        **dict.fromkeys(("seeds", "table"), list),
        **dict.fromkeys(("trials", "runs"), int),
    }
    return (
        all(type(record.get(key)) is kind for key, kind in kinds.items())
        and RATE in record["best_values"]
        and (record.get("patterns") is None or (type(record["patterns"]) is int and record["patterns"] >= 0))
        and (record.get("loss") is None or is_number(record["loss"]))
        and is_number(record.get("cpu_seconds"))
        and (record["kind"] != INHERITED or isinstance(record.get("inherited_from"), str))
        and all(type(interior) is bool for interior in record["interior"].values())
        and all(map(is_row, record["table"]))
        and all(is_curve_of_one(curve) for curve in record["sensitivity"].values())
    )


def is_row(row: object) -> bool:
    """Whether a value from a file is a trial of a table."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("values"), dict)
        and isinstance(row.get("losses"), list)
        and all(loss is None or is_number(loss) for loss in row["losses"])
    )


def is_curve_of_one(curve: object) -> bool:
    """Whether a value from a file is one curve of `sensitivity`, where values may be words."""
    return isinstance(curve, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and (isinstance(point[0], str) or is_point(point))
        and (point[1] is None or is_number(point[1]))
        for point in curve
    )
