"""Every setting with its value, its type in words and its meaning, for `nanokimi COMMAND --help-all`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import is_dataclass
from functools import cache
from typing import get_args

from nanokimi.config.parsing import all_keys, describe_type, settings, type_of
from nanokimi.config.schema import RunConfig


def settings_help(config: RunConfig, groups: tuple[str, ...], width: int) -> str:
    """The settings whose keys begin with one of `groups`: the value in `config`, what it may be, and its meaning."""
    found, values = [], settings(config)
    for key in all_keys():
        kind = type_of(key)
        if not key.startswith(groups) or is_dataclass(kind):
            continue
        value = values.get(key)  # a group that is null has no settings
        shown = {type(None): "null", bool: str(value).lower()}.get(type(value), value)
        shown = "(empty)" if shown == "" else shown
        text = f"{' '.join(_docstring(key).split())} ({describe_type(kind)})"
        lines = textwrap.wrap(text, width - 6, break_on_hyphens=False, break_long_words=False)
        found.append(f"  --{key} {shown}\n" + "\n".join(f"      {line}" for line in lines))
    return "\n".join(found) + "\n"


def _docstring(key: str) -> str:
    """The meaning of a setting: the string below its definition."""
    group, _, name = key.rpartition(".")
    kind = type_of(group) if group else RunConfig
    cls = next(part for part in (kind, *get_args(kind)) if is_dataclass(part))
    return _docstrings(cls)[name]  # type: ignore[arg-type]


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a group of settings."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): str(ast.literal_eval(text.value))
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
