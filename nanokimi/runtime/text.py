"""Words put together for people: lists as a sentence has them, and messages on one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,2})?")


def listed(things: Iterable[object]) -> str:
    """The things as a sentence lists them: "a", "a and b" or "a, b and c"; "" if there are none."""
    words = [str(thing) for thing in things]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def one_line(message: object) -> str:
    """A message, such as an exception, on one line: each run of white space becomes one space."""
    return " ".join(str(message).split())


def whole_number(word: str) -> int:
    """The whole number that a word stands for: 300, 3e2 or 300.0. Raises ValueError for anything else, as for 1.5."""
    if not SCIENTIFIC.fullmatch(word.strip()):
        return int(word)
    value = Decimal(word.strip())
    if value != value.to_integral_value():
        raise ValueError(f"{word} is not a whole number")
    return int(value)
