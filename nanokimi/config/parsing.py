"""Settings by dotted key: converting them to their types, reporting mistakes in one line, reading and replacing them.

jsonargparse converts types and handles dotted overrides. This file turns its errors into one line that names the
nearest valid key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from nanokimi.config.schema import BUDGETS, FAMILIES, ModelName, RunConfig
from nanokimi.config.words import full_name, last_parts, right_name
from nanokimi.errors import UserError
from nanokimi.runtime.text import one_line, whole_number

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

MOST_LISTED = 40  # names in an error message


def jsonargparse_parser() -> ArgumentParser:
    """An empty parser that reads attribute docstrings and raises errors."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return jsonargparse.ArgumentParser(prog="nanokimi", exit_on_error=False, add_help=False)


@cache
def setting_parser(key: str) -> ArgumentParser:
    """A parser of one setting, which takes a hundredth of the time of a parser of all 200."""
    parser = jsonargparse_parser()
    parser.add_argument(f"--{key}", type=type_of(key))
    return parser


@cache
def number_of(key: str) -> type | None:
    """The type of a setting that takes one sort of numbers or truth values only (or null); None for another setting."""
    kind = type_of(key)
    kinds = {kind} if get_origin(kind) is None else set(get_args(kind)) - {NoneType}
    is_single = get_origin(kind) in (None, Union, UnionType) and len(kinds) == 1
    return next(iter(kinds)) if is_single and kinds <= {int, float, bool} else None


def with_content(config: RunConfig, content: dict[str, Any], source: str = "") -> RunConfig:
    """The configuration with its settings replaced by those of a file, {group: {setting: value}}.

    Raises UserError, starting with `source`, for a value of the wrong type. It is not checked that values fit together.
    """
    for key, value in _leaves(content):
        before = _value_of(config, key)
        if isinstance(value, dict) and isinstance(before, dict):
            value = merged(before, value)
        if repr(value) != repr(before):  # skips most of a saved configuration, which has mostly defaults
            config = _with_typed(config, key, source, value=value)
    return config


def with_parsed(config: RunConfig, words: dict[str, str]) -> RunConfig:
    """The configuration with some settings replaced. `words` has their values by dotted key, as on the command line.

    Raises UserError for a value of the wrong type. It is not checked that values fit together.
    """
    return with_options(config, [f"--{key}={word}" for key, word in words.items()])


def with_options(
    config: RunConfig, arguments: Sequence[str], families: Sequence[ModelName] = FAMILIES
) -> RunConfig:
    """The configuration with settings replaced by command-line options, `--key value` or `--key=value`.

    `families` are those of the arms that are trained, for words that stand for a setting of the arm (see `words`).
    Raises UserError for unknown options and for values of the wrong type. It is not checked that values fit together.
    """
    for option in expand(arguments, families):
        key, _, word = option.removeprefix("--").partition("=")
        leaf = _leaf_of(key)
        before = _value_of(config, leaf) if leaf != key else None  # the option replaces one entry of a table
        config = _with_typed(config, leaf, value=before, word=f"--{key}={_as_whole(key, word)}")
    return config


def _as_whole(key: str, value: Any) -> Any:
    """A value with 1e3, a number of a fraction to YAML, made whole where the setting takes whole numbers only."""
    if isinstance(value, str | float) and key in all_keys() and is_whole(key):
        with suppress(ValueError):
            return whole_number(str(value))
    return value


def _with_typed(
    config: RunConfig, key: str, source: str = "", *, value: Any = None, word: str | None = None
) -> RunConfig:
    """The configuration with one setting as jsonargparse converts a value, then overridden by `--key=word`."""
    value = _as_whole(key, value)
    if word is None and type(value) is number_of(key):  # jsonargparse would only take its time
        return with_changes(config, {key: value})
    parser, nested = setting_parser(key), value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    values = typed(lambda: parser.parse_object(nested), source, key, value)
    if word is not None:
        name, _, given = word.removeprefix("--").partition("=")
        values = typed(lambda: parser.parse_args([word], namespace=values), source, name, given)
    found = parser.instantiate(values)[key]
    _refuse_null(key, found)
    return with_changes(config, {key: found})


def _refuse_null(key: str, value: Any) -> None:
    """Raise UserError if a setting that needs a value, or one in its group, is null. jsonargparse allows it."""
    if is_dataclass(value):
        for field in fields(value):
            _refuse_null(f"{key}.{field.name}", getattr(value, field.name))
    elif value is None and NoneType not in get_args(type_of(key)):
        raise UserError(f"{key} is null: expected {describe_type(type_of(key))}")


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a file with its dotted key. A table is one setting, and so is a group that may be null."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if is_dataclass(type_of(key)):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _leaf_of(key: str) -> str:
    """The setting that a dotted key belongs to: itself, or the table or nullable group that contains it."""
    parts = key.split(".")
    ends = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next(end for end in ends if not is_dataclass(type_of(end)))


def _value_of(config: RunConfig, key: str) -> Any:
    """The value of a setting as YAML represents it."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return plain(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def typed(parse: Callable[[], Any], source: str, key: str, given: Any) -> Any:
    """The result of a call of jsonargparse for the value `given` of a setting.

    Its errors become a UserError of one line, starting with `source`.
    """
    from jsonargparse import ArgumentError

    # its YAML resolver raises many kinds of exception for values that only resemble dates or numbers
    refused = (
        ArgumentError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    )
    try:
        return parse()
    except refused as error:
        raise UserError(f"{source}{_describe_error(error, key, given)}") from None


def merged(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of two files, group by group. Where both have a setting, that of the second file counts."""
    found = dict(before)
    if prefix == "train." and set(BUDGETS) & after.keys():  # as on the command line
        found = {key: value for key, value in before.items() if key not in BUDGETS}
    for key, value in after.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value, f"{prefix}{key}.") if both else value
    return found


def settings(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key, as JSON represents it."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and not (prefix and _is_table(prefix)):
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = plain(value)

    add("", asdict(config))
    return flat


def with_changes(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The configuration with some settings, by dotted key, replaced. Nothing is checked."""
    for key, value in changes.items():
        config = _replaced(config, key.split("."), value)
    return config


def _replaced(part: Any, path: list[str], value: Any) -> Any:
    name = path[0]
    if len(path) > 1:
        value = _replaced(getattr(part, name), path[1:], value)
    elif isinstance(value, list):
        value = tuple(value)
    return replace(part, **{name: value})


def plain(value: Any) -> Any:
    """A value with its tuples as lists, because YAML has no tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


@cache
def all_keys(cls: type = RunConfig, prefix: str = "") -> tuple[str, ...]:
    """Every key, dotted, groups included."""
    keys: list[str] = []
    for name, hint in _hints(cls).items():
        keys.append(prefix + name)
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                keys += all_keys(part, f"{prefix}{name}.")  # type: ignore[arg-type]
    return tuple(keys)


def require_setting(key: str, option: str) -> None:
    """Raise UserError, starting with `option`, unless the dotted key is that of a single setting."""
    if key not in all_keys():
        raise UserError(f"{option}: there is no setting '{key}'{nearest(key, all_keys())}")
    if is_dataclass(type_of(key)):
        raise UserError(
            f"{option}: {key} is a group of settings: name one of them, such as {key}.{_first_key(key)}"
        )


def is_whole(key: str) -> bool:
    """Whether a setting takes whole numbers only (or null)."""
    kind = type_of(key)
    return int in (kind, *get_args(kind)) and float not in get_args(kind)


def check_keys(content: dict[Any, Any], source: str, prefix: str = "") -> None:
    """Raise UserError, naming the nearest setting, for a key that is not a setting."""
    known = all_keys()
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if dotted not in known:
            raise UserError(f"{source}: there is no setting '{dotted}'{nearest(dotted, known)}")
        if isinstance(value, dict) and not _is_table(dotted):
            check_keys(value, source, f"{dotted}.")
        elif is_dataclass(type_of(dotted)):
            raise UserError(f"{source}: {dotted} is {value}: expected settings such as {_first_key(dotted)}")


def expand(arguments: Sequence[str], families: Sequence[ModelName] = FAMILIES) -> list[str]:
    """Options with short names spelled out. Raises UserError for unknown options and missing values."""
    given_as: dict[str, str] = {}
    remaining = list(arguments)
    result: list[str] = []
    while remaining:
        option = remaining.pop(0)
        if not option.startswith("--"):
            hint = (
                f"write --{option}" if re.match(r"[\w.]+=", option) else "settings are given as --key value"
            )
            raise UserError(f"'{option}' is not an option: {hint}")
        given, equals, value = option.partition("=")
        key = _known_key(given.removeprefix("--").replace("-", "_"), families)
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(
                    f"option {given} needs a value (one that starts with dashes: {given}=--value)"
                )
            value = remaining.pop(0)
        if key in given_as:
            both = given if given == given_as[key] else f"{given_as[key]} and {given} are one option, which"
            raise UserError(f"{'option ' if both == given else ''}{both} is given twice: give it once")
        given_as[key] = given
        result.append(f"--{key}={value}")
    named = {key.removeprefix("train.") for key in given_as}
    if named & set(BUDGETS):  # a budget on the command line takes the place of the file's
        result = [f"--train.{budget}=null" for budget in BUDGETS if budget not in named] + result
    return result


def _known_key(name: str, families: Sequence[ModelName]) -> str:
    """The dotted key of an option's name, which may be short. Raises UserError if it is no setting."""
    known = all_keys()
    key = full_name(name, known, families)
    table, _, entry = key.rpartition(".")
    if key not in known and not (entry and table in known and _is_table(table)):
        right = right_name(name, known)
        hint = f"; the nearest is --{right}" if right else nearest_option(name, known)
        raise UserError(f"there is no option --{name}{hint}")
    if key in known and is_dataclass(type_of(key)):
        raise UserError(
            f"--{key} is a group of settings: name one of them, such as --{key}.{_first_key(key)}"
        )
    return key


def nearest_option(name: str, known: Sequence[str]) -> str:
    """'; the nearest is --X', among the short names for a name without dots."""
    if "." in name:
        return nearest(name, known, "--")
    close = difflib.get_close_matches(name, last_parts(known), n=1, cutoff=0.6)
    return f"; the nearest is --{close[0]}" if close else nearest(name, known, "--")


def nearest(name: str, known: Sequence[str], dashes: str = "") -> str:
    """'; the nearest is X', by the whole name or else by its last part."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        last = {key.rsplit(".", 1)[-1]: key for key in known}
        close = [last[k] for k in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1)]
    if close:
        return f"; the nearest is {dashes}{close[0]}"
    shown = known if len(known) <= MOST_LISTED else known[:12]
    rest = f" and {len(known) - len(shown)} more" if len(shown) < len(known) else ""
    return f"; there are {', '.join(shown)}{rest}"


INTERNAL = re.compile(r"<class |Expected |Given value|Got value|Parser key|Does not validate")
"""Words of jsonargparse that are for programmers."""
LONGEST_SHOWN = 200


def _describe_error(error: Exception, key: str, given: Any) -> str:
    """jsonargparse's message as one line: the setting, what it takes, what it was given."""
    text = one_line(error)
    if type(error).__name__ == "ArgumentError":
        # of a list or a group, the part that is wrong
        inner = re.search(r"Parser key [\"']([\w.]+)[\"']", text)
        wrong = re.search(r"(?:Got value|Given value): (.*)$", text)
        if inner is not None and wrong is not None and not INTERNAL.search(wrong[1]):
            key, given = inner[1], "null" if wrong[1] == "None" else wrong[1]
    shown = one_line(given)
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
    kind = type_of(key) if key in all_keys() else get_args(type_of(_leaf_of(key)))[1]
    return f"{key} is {shown or 'empty'}: expected {describe_type(kind)}"


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The declared types of a group, cached because Python parses them from text at each call."""
    return get_type_hints(cls)


@cache
def type_of(key: str) -> Any:
    """The declared type of a dotted key."""
    kind: Any = RunConfig
    for part in key.split("."):
        group = next(c for c in (kind, *get_args(kind)) if is_dataclass(c))
        kind = _hints(group)[part]  # type: ignore[arg-type]
    return kind


def _is_table(key: str) -> bool:
    """Whether a setting is a dictionary, such as the arguments of a user's class, whose keys are not checked here."""
    return get_origin(type_of(key)) is dict


def _first_key(group: str) -> str:
    return fields(type_of(group))[0].name


def describe_type(kind: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is dict:
        return "a list of values with names, like {name: value}"
    if get_origin(kind) is list:
        return f"a list like [{describe_type(get_args(kind)[0])}, ...]"
    if get_origin(kind) is tuple:
        return (
            "a list like [" + ", ".join("..." if a is ... else describe_type(a) for a in get_args(kind)) + "]"
        )
    if isinstance(kind, type) and is_dataclass(kind):
        return f"settings, as in {{{fields(kind)[0].name}: ...}}"
    if get_args(kind):
        return " or ".join(describe_type(part) for part in get_args(kind))
    return words.get(kind, "a group of settings")
