"""Words put together for people: lists as a sentence has them, messages on one line, and texts without controls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

CONTROL_PICTURES = 0x2400
INVISIBLE = {chr(code): chr(CONTROL_PICTURES + code) for code in range(32) if chr(code) not in "\n\t"}
INVISIBLE |= {chr(0x7F): chr(CONTROL_PICTURES + 0x21)}
TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)
"""Characters that turn the direction of the text after them, and so could disguise it."""
WITHOUT_PICTURE = {chr(code): f"[U+{code:04X}]" for code in (*range(0x80, 0xA0), *TURNING)}
VISIBLE = str.maketrans(INVISIBLE | WITHOUT_PICTURE)
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


def visible(text: object) -> str:
    """A text in which every character but line ends and tabs can be seen and be sent: a terminal finds nothing to obey.

    A file's name, or JSON, may hold half a character (a lone surrogate), which no page can be encoded with.
    """
    return sendable(str(text)).translate(VISIBLE)


def sendable(text: str) -> str:
    """The text with every half of a character written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible_line(text: object) -> str:
    """A name on one line in which every character can be seen."""
    return visible(one_line(text))


def whole_number(word: str) -> int:
    """The whole number that a word stands for: 300, 3e2 or 300.0. Raises ValueError for anything else, as for 1.5."""
    if not SCIENTIFIC.fullmatch(word.strip()):
        return int(word)
    value = Decimal(word.strip())
    if value != value.to_integral_value():
        raise ValueError(f"{word} is not a whole number")
    return int(value)
