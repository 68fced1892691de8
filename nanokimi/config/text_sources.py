"""`dataset.sources`: the texts of a mixture, each with a name, a weight and a column of its own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

from nanokimi.config.checks import is_finite, require
from nanokimi.config.schema import DatasetConfig
from nanokimi.errors import UserError

MOST_SOURCES = 64
LONGEST_NAME = 40
PLACE = "dataset.sources"


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """One text of a mixture."""

    name: str
    """What it is called in reports, such as a language."""
    path: str
    """What `dataset.path` may be, but for a folder of tokens."""
    weight: float = 1.0
    """Its share of the training tokens, relative to the other weights."""
    text_column: str = DatasetConfig.text_column
    """The column of its records that holds the text."""


KEYS = tuple(field.name for field in fields(TextSource))


def text_sources(dataset: DatasetConfig) -> tuple[TextSource, ...]:
    """The texts that `dataset.sources` names; empty if it names none. Raises UserError for one that cannot be."""
    entries = dataset.sources
    require(len(entries) <= MOST_SOURCES, f"{PLACE} names {len(entries)} texts: {MOST_SOURCES} at most")
    found = tuple(_source(entry, f"{PLACE}[{number}]") for number, entry in enumerate(entries))
    names = [source.name.casefold() for source in found]
    for number, name in enumerate(names):
        require(
            name not in names[:number],
            f"{PLACE}: two texts are named '{found[number].name}': give each a name of its own",
        )
    return found


def _source(entry: dict[str, Any], where: str) -> TextSource:
    """One entry, checked."""
    for key in entry:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"the nearest is {close[0]}" if close else f"there are {', '.join(KEYS)}"
            raise UserError(f"{where}: there is no setting '{key}'; {hint}")
    for key in ("name", "path"):
        require(key in entry, f"{where} has no {key}: a text needs {{name: english, path: english.txt}}")
    for key in ("name", "path", "text_column"):
        value = entry.get(key, "text")
        require(
            isinstance(value, str) and value.strip() != "",
            f"{where}.{key} is {value!r}: expected text (in YAML, put a word such as no in quotes)",
        )
    name, weight = entry["name"].strip(), entry.get("weight", 1.0)
    require(
        len(name) <= LONGEST_NAME and name.isprintable() and "/" not in name,
        f"{where}.name is {name[:60]!r}: it must be printable, without '/', {LONGEST_NAME} characters at most",
    )
    require(
        isinstance(weight, int | float) and not isinstance(weight, bool) and is_finite(weight) and weight > 0,
        f"{where}.weight is {weight}: it must be a number above 0 (leave out a text that is not to be used)",
    )
    return TextSource(**{**entry, "name": name, "weight": float(weight)})


def shares_of(sources: tuple[TextSource, ...]) -> list[float]:
    """The part of the training tokens that each text gets."""
    largest = max(source.weight for source in sources)  # divided first: a sum of large weights may overflow
    scaled = [source.weight / largest for source in sources]
    return [weight / sum(scaled) for weight in scaled]


def alone(dataset: DatasetConfig, source: TextSource) -> DatasetConfig:
    """The settings of one text of a mixture, as if it were the only one."""
    return replace(dataset, sources=(), path=source.path, text_column=source.text_column)


def text_title(dataset: DatasetConfig) -> str:
    """What data.json calls the text: its path, or the names of several."""
    return dataset.path or ", ".join(one.name for one in text_sources(dataset))


def text_name(dataset: DatasetConfig) -> str:
    """The text, or the texts with their names and paths, for a message."""
    return dataset.path or ", ".join(f"{one.name} ({one.path})" for one in text_sources(dataset))
