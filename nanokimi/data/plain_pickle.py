"""Pickles that hold plain data, read without running anything.

A pickle is a program for a small stack machine, and some of its instructions call any function there is. This reader
knows only those that build dict, list, tuple, str, bytes, int, bool and None: the others it cannot even spell.
"""

from __future__ import annotations

import pickletools
from typing import Any

MARK = object()
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
LITERALS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"} | {
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(data: bytes) -> Any:
    """The object in a pickle of plain data. Raises ValueError for a damaged one, or one that holds more."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                (result,) = stack
                return result
            if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(str(argument))])
            elif name not in ("PROTO", "FRAME"):
                _step(name, argument, stack)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is damaged ({error})") from None
    raise ValueError("it ends too early")


def _step(name: str, argument: Any, stack: list[Any]) -> None:
    """One instruction that builds a value."""
    if name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in LITERALS:
        stack.append(argument)
    elif name in EMPTY:
        stack.append(EMPTY[name]())
    elif name == "MARK":
        stack.append(MARK)
    elif name in TUPLES:
        stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
    elif name in ("TUPLE", "LIST", "DICT"):
        items = _pop_to_mark(stack)
        pairs: dict[Any, Any] = {}
        if name == "DICT":
            _add(pairs, items, True)
        stack.append({"TUPLE": tuple(items), "LIST": items, "DICT": pairs}[name])
    elif name in ("APPEND", "SETITEM"):
        items = [stack.pop() for _ in range(1 + (name == "SETITEM"))][::-1]
        _add(stack[-1], items, name == "SETITEM")
    elif name in ("APPENDS", "SETITEMS"):
        items = _pop_to_mark(stack)
        _add(stack[-1], items, name == "SETITEMS")
    else:
        raise ValueError(f"it holds the instruction {name}, which plain data does not need")


def _add(container: Any, items: list[Any], pairs: bool) -> None:
    if pairs and isinstance(container, dict):
        # Tuples of tuples could take forever to hash, or more stack than there is.
        if not all(isinstance(key, str | bytes | int | None) for key in items[0::2]):
            raise ValueError("its keys are no plain names and numbers")
        container.update(zip(items[0::2], items[1::2], strict=True))
    elif not pairs and isinstance(container, list):
        container.extend(items)
    else:
        raise ValueError("it is damaged (it adds to what is no container)")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not MARK:
        items.append(item)
    return items[::-1]
