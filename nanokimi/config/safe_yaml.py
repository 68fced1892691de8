"""Untrusted YAML: only plain values, each key once, and no larger or deeper than settings can be.

PyYAML's safe loader builds only plain values, but it raises many kinds of exception for text that resembles a date or a
number, recurses as deeply as the text is nested, and expands a few lines of anchors to billions of values. ruamel.yaml
would be one more dependency, and would only replace the check for repeated keys.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from nanokimi.errors import UserError
from nanokimi.runtime.text import one_line

MAX_BYTES = 100_000
MAX_VALUES, MAX_DEPTH = 5000, 20
MAX_BITS = 128
MAX_OPEN_BRACKETS = 200  # counting those within quotes
IN_PROGRESS = 0


class _Loader(yaml.SafeLoader):
    """The safe loader, with a check of the document before anything is built from it."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {}, 0)
        return node


def _count(node: yaml.Node, seen: dict[int, int], depth: int) -> int:
    """The number of values in a node with its aliases expanded. Raises ValueError if settings cannot need so many."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if id(node) not in seen:
        seen[id(node)] = IN_PROGRESS
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        seen[id(node)] = 1 + sum(_count(part, seen, depth + 1) for part in parts)
    elif seen[id(node)] == IN_PROGRESS:
        raise ValueError("a list or mapping contains itself")
    if seen[id(node)] > MAX_VALUES:
        raise ValueError(f"it expands to more than {MAX_VALUES} values")
    return seen[id(node)]


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Refuse a key that occurs twice, because one of its values would be ignored."""
    names: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in names:
                raise ValueError(
                    f"'{key.value}' occurs twice, the second time in line {key.start_mark.line + 1}"
                )
            names.add(key.value)


def _refuse_huge_numbers(value: Any) -> None:
    """Refuse integers too long to print. Containers that contain themselves have already been refused."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("it contains a number of more than 38 digits")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_huge_numbers(key)
            _refuse_huge_numbers(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _refuse_huge_numbers(item)


def parse_yaml(text: str) -> Any:
    """The only document in `text` as plain values. Raises ValueError saying what is wrong with it."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES} characters")
    depth = accumulate((c in "[{") - (c in "]}") for c in text)
    if max(depth, default=0) > MAX_OPEN_BRACKETS:  # PyYAML's time grows with the square of their number
        raise ValueError("it is nested too deeply")
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
        _refuse_huge_numbers(value)
        return value
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(one_line(error) or type(error).__name__) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError if it cannot be read or is not valid."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        return parse_yaml(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
