"""Words put together for people: lists as a sentence has them, and messages on one line."""

from __future__ import annotations

from collections.abc import Iterable


def listed(things: Iterable[object]) -> str:
    """The things as a sentence lists them: "a", "a and b" or "a, b and c"; "" if there are none."""
    words = [str(thing) for thing in things]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def one_line(message: object) -> str:
    """A message, such as an exception, on one line: each run of white space becomes one space."""
    return " ".join(str(message).split())
