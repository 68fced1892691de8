"""Pickles that hold plain data, read without running anything.

A pickle is a program for a small stack machine, and some of its instructions call any function there is. An
`Unpickler` whose `find_class` refuses every name stops those, but not a tuple of tuples that takes forever to hash, nor
an index that makes the unpickler's table fill the memory. So the instructions are looked at before any is carried out.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

STORES = {"PUT", "BINPUT", "LONG_BINPUT"}
PLAIN = STORES | set(
    "PROTO FRAME MEMOIZE GET BINGET LONG_BINGET MARK STOP NONE NEWTRUE NEWFALSE INT LONG LONG1 LONG4 BININT BININT1"
    " BININT2 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_DICT DICT SETITEM"
    " SETITEMS EMPTY_LIST LIST APPEND APPENDS".split()
)
"""Instructions for dict, list, str, bytes, int, bool and None. With no tuples, every key is quick to hash."""


def read_plain_pickle(data: bytes) -> Any:
    """The object in a pickle of plain data. Raises ValueError for a damaged one, or one that holds more."""
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in PLAIN:
                raise ValueError(f"it holds the instruction {opcode.name}, which plain data does not need")
            if opcode.name in STORES and int(argument or 0) > (position or 0):  # its table would be that long
                raise ValueError(f"it is damaged (byte {position} stores an object as number {argument})")
        return pickle.loads(data)
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        TypeError,
    ) as error:
        raise ValueError(f"it is damaged ({error})") from None
